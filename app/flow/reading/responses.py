"""Answers to surveys: the list, and how the scores spread."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

from app.errors import InputError
from app.flow.reading.paging import LIMIT, Page, clean, page, read_cursor

SCALES = {"nps": range(11), "csat": range(1, 6), "ces": range(1, 8)}


def responses(
    conn: Connection,
    *,
    survey: str | None = None,
    campaign: str | None = None,
    account: str | None = None,
    contact: str | None = None,
    cursor: str | None = None,
    limit: int = LIMIT,
) -> Page:
    """Counted answers that match every filter, newest first."""
    where, values = _filters(survey, campaign, account, contact)
    after = read_cursor(cursor, datetime, int)
    if after:
        where.append("(r.answered_at, r.id) < (:at, :last)")
        values |= {"at": after[0], "last": after[1]}
    rows = conn.execute(
        text(
            f"""select r.id, r.survey, r.question, r.score, r.comment, r.answered_at, r.revision, r.message_id, k.key as campaign,
                  k.name as campaign_name, a.external_id as account, a.name as account_name, c.external_id as contact,
                  nullif(concat_ws(' ', c.first_name, c.last_name), '') as contact_name
                from response r join campaign k on k.id = r.campaign_id join account a on a.id = r.account_id
                join contact c on c.id = r.contact_id
                where {" and ".join(where) or "true"} order by r.answered_at desc, r.id desc limit :limit"""
        ),
        values | {"limit": limit + 1},
    ).all()
    return page(
        rows,
        limit,
        lambda r: {**{k: v for k, v in r._mapping.items() if k not in ("id", "message_id")}, "message": str(r.message_id)},
        lambda r: (r.answered_at, r.id),
    )


def spread(
    conn: Connection,
    *,
    survey: str | None = None,
    campaign: str | None = None,
    account: str | None = None,
    contact: str | None = None,
    since: datetime | None = None,
) -> list[dict[str, Any]]:
    """For each survey that has answers: {survey, counts: {score: n}, total, mean, nps}; `nps` is None for the others than nps."""
    where, values = _filters(survey, campaign, account, contact)
    if since:
        where.append("r.answered_at >= :since")
        values["since"] = since
    rows = conn.execute(
        text(
            f"""select r.survey, r.score, count(*) as n from response r join campaign k on k.id = r.campaign_id
                join account a on a.id = r.account_id join contact c on c.id = r.contact_id
                where {" and ".join(where) or "true"} group by 1, 2"""
        ),
        values,
    )
    surveys: dict[str, dict[int, int]] = {}
    for row in rows:
        surveys.setdefault(row.survey, {})[row.score] = row.n
    return [_spread(survey, surveys[survey]) for survey in SCALES if survey in surveys]


def _spread(survey: str, found: dict[int, int]) -> dict[str, Any]:
    counts = {score: found.get(score, 0) for score in SCALES[survey]}
    total = sum(counts.values())
    promoters, detractors = sum(counts.get(s, 0) for s in (9, 10)), sum(counts.get(s, 0) for s in range(7))
    return {
        "survey": survey,
        "counts": counts,
        "total": total,
        "mean": sum(score * n for score, n in counts.items()) / total if total else None,
        "nps": round(100 * (promoters - detractors) / total) if survey == "nps" and total else None,
    }


def _filters(survey: str | None, campaign: str | None, account: str | None, contact: str | None) -> tuple[list[str], dict[str, Any]]:
    where, values = [], {}
    if (survey := clean(survey)) and survey not in SCALES:
        raise InputError(f"must be one of {', '.join(SCALES)}", "survey")
    for column, name, value in (
        ("r.survey", "survey", survey),
        ("k.key", "campaign", campaign),
        ("a.external_id", "account", account),
        ("c.external_id", "contact", contact),
    ):
        if value := clean(value):
            where.append(f"{column} = :{name}")
            values[name] = value
    return where, values
