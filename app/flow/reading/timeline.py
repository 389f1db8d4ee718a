"""An account's timeline: events, messages, answers, stages, enrollments and decisions, merged, newest first."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from app.errors import InputError
from app.flow.reading.accounts import find_account
from app.flow.reading.paging import LIMIT, Page, page, read_cursor

KINDS = ("event", "message", "response", "stage", "enrollment", "decision")

# Each gives at, kind, ref (its id as text; the cursor's tie-breaker), body. Own events that merely repeat another kind are left out.
_BRANCHES = {
    "event": """select e.received_at as at, 'event' as kind, lpad(e.id::text, 20, '0') as ref, jsonb_build_object(
          'name', e.name, 'type', e.kind, 'contact', e.contact_key, 'contact_name', nullif(concat_ws(' ', c.first_name, c.last_name), ''),
          'properties', e.properties, 'occurred_at', e.occurred_at,
          'message_id', e.message_id, 'mark', e.mark) as body
        from event e left join contact c on c.external_id = e.contact_key where e.account_key = :key and e.received_at <= :before
          and e.name not in ('nurture.message_settled', 'nurture.survey_responded', 'nurture.stage_entered')""",
    "message": """select coalesce(m.settled_at, m.created_at), 'message', m.id::text, jsonb_build_object(
          'id', m.id, 'state', m.state, 'reason', m.reason, 'subject', m.subject, 'step', m.step_id, 'campaign', k.key,
          'campaign_name', k.name, 'contact', c.external_id, 'contact_name', concat_ws(' ', c.first_name, c.last_name),
          'email', c.address, 'due_at', m.due_at)
        from message m join campaign k on k.id = m.campaign_id join contact c on c.id = m.contact_id
        where m.account_id = :id and coalesce(m.settled_at, m.created_at) <= :before""",
    "response": """select r.answered_at, 'response', lpad(r.id::text, 20, '0'), jsonb_build_object(
          'survey', r.survey, 'question', r.question, 'score', r.score, 'comment', r.comment, 'message', r.message_id,
          'contact', c.external_id, 'contact_name', concat_ws(' ', c.first_name, c.last_name))
        from response r join contact c on c.id = r.contact_id where r.account_id = :id and r.answered_at <= :before""",
    "stage": """select s.entered_at, 'stage', lpad(s.id::text, 20, '0'), jsonb_build_object('stage', s.stage, 'reason', s.reason)
        from stage_history s where s.account_id = :id and s.entered_at <= :before""",
    "enrollment": """select t.at, 'enrollment', n.id::text || t.what, jsonb_build_object('id', n.id, 'campaign', k.key,
          'campaign_name', k.name, 'what', t.what, 'reason', n.end_reason, 'state', n.state, 'shadow', n.shadow)
        from enrollment n join campaign k on k.id = n.campaign_id
        cross join lateral (values (n.entered_at, 'entered'), (n.ended_at, 'ended')) t(at, what)
        where n.account_id = :id and t.at is not null and t.at <= :before""",
    "decision": """select d.at, 'decision', lpad(d.id::text, 20, '0'), jsonb_build_object('gate', d.gate, 'verdict', d.verdict,
          'reason', d.reason, 'evidence', d.evidence, 'campaign', k.key, 'campaign_name', k.name, 'step', d.step_id,
          'contact', c.external_id,
          'contact_name', nullif(concat_ws(' ', c.first_name, c.last_name), ''), 'message', d.message_id)
        from decision d left join campaign k on k.id = d.campaign_id left join contact c on c.id = d.contact_id
        where d.account_id = :id and d.at <= :before""",
}


def timeline(conn: Connection, key: str, now: datetime, *, kinds: str | None = None, cursor: str | None = None, limit: int = LIMIT) -> Page:
    """What happened to the account, newest first. `kinds` names some of them, separated by commas; all by default. Raises NotFound."""
    account = find_account(conn, key)
    wanted = [kind for kind in (kinds or "").split(",") if kind] or list(KINDS)
    for kind in wanted:
        if kind not in KINDS:
            raise InputError(f"must name some of {', '.join(KINDS)}", "kinds")
    after = read_cursor(cursor, datetime, str, str)
    values: dict[str, Any] = {"id": account.id, "key": account.external_id, "before": after[0] if after else now, "limit": limit + 1}
    skip = ""
    if after:
        values |= {"kind": after[1], "ref": after[2]}
        skip = "where (b.at, b.kind, b.ref) < (:before, :kind, :ref)"
    branches = " union all ".join(
        f"(select b.* from ({_BRANCHES[kind]}) b(at, kind, ref, body) {skip} order by b.at desc, b.kind desc, b.ref desc limit :limit)"
        for kind in dict.fromkeys(wanted)
    )
    rows = conn.execute(text(f"select * from ({branches}) t order by at desc, kind desc, ref desc limit :limit"), values).all()
    return page(rows, limit, lambda r: {"at": r.at, "kind": r.kind, **r.body}, lambda r: (r.at, r.kind, r.ref))
