"""Assessing: the health of accounts, when they have changed and at least daily, for silence is news.

Scores are appended with their contributions and what was known, never changed, so that any past score can be rebuilt (invariant 11).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Connection, Engine, text

from app.db import insert_rows, update_rows
from app.errors import NotFound
from app.flow.ingest import Own, raise_own
from app.flow.respond import lifecycle_in_force
from app.models import account, health_score
from app.queue import Bells
from app.rules.lifecycle import HealthModel, Lifecycle
from app.rules.scoring import Contribution, Sample, Score, Standing, score, stand

AGAIN_AFTER = timedelta(days=1)
BATCH = 500
NEWS = 1.0  # points by which a score must move to be told

WINDOW = re.compile(r"usage\.([a-z0-9_]+)\.(last|previous)_(\d{1,4})d")
SURVEY = re.compile(r"survey\.(nps|csat|ces)")
SEATS_SHARE = "usage.seats.share"
MILESTONES_SHARE = "milestones.share"

_heard_of: set[tuple[str, str]] = set()
_unheard: dict[tuple[str, str], datetime] = {}


def assess_due(engine: Engine, clock: Callable[[], datetime], bells: Bells) -> int:
    """Assesses every account that has changed or was not assessed for a day, 500 to a transaction, and asks for the next assessment
    a day later.

    A row is appended when the score, a contribution or the band has changed, or none was there. `nurture.health_changed` is raised
    when the band changed (`band_changed` in its properties) or the score moved by at least 1 point since it was last told, which is
    then `previous_score`: small steps add up, and no crossing of a value is missed. An account locked by somebody else stays due.
    Returns how many were assessed; assessing twice changes nothing the second time.
    """
    assessed = 0
    while True:
        with engine.begin() as conn:
            now = clock()
            count, partitions = _assess_batch(conn, now)
        bells.advance(partitions)
        assessed += count
        if not count:
            return assessed


def rebuild(conn: Connection, health_score_id: int) -> Score:
    """The score of a past row, computed again from what was known then, with the model of then. Raises NotFound for either."""
    row = conn.execute(text("select model, known from health_score where id = :id"), {"id": health_score_id}).first()
    if row is None:
        raise NotFound(f"no health score {health_score_id}")
    for definition in conn.execute(text("select definition from lifecycle_version order by id desc")).scalars():
        model = Lifecycle.model_validate(definition).health
        if model is not None and model_hash(model) == row.model.rpartition("@")[2]:
            return score(model, {metric: [Sample(*sample) for sample in samples] for metric, samples in row.known["metrics"].items()})
    raise NotFound(f"the model {row.model} of health score {health_score_id} is not among the published lifecycles")


@lru_cache(maxsize=16)
def _hash_of(content: bytes) -> str:
    return blake2b(content, digest_size=8).hexdigest()


def model_hash(model: HealthModel) -> str:
    """16 hex digits that follow from what a model says."""
    return _hash_of(to_json(model.model_dump(mode="json")))


def _assess_batch(conn: Connection, now: datetime) -> tuple[int, set[int]]:
    changed = dict(conn.execute(_CHANGED, {"now": now, "limit": BATCH}).all())
    accounts = conn.execute(_DUE, {"now": now, "limit": BATCH, "changed": list(changed)}).mappings().all()
    # Whoever is assessed for the day is assessed for what is to come within minutes, too.
    changed.update(conn.execute(_AS_WELL, {"ids": [one["id"] for one in accounts]}).all())
    conn.execute(_TAKEN, {"ids": list(changed), "assessed": [one["id"] for one in accounts]})
    if not accounts:
        return 0, set()
    found = lifecycle_in_force(conn)
    model = found[1].health if found else None
    ids = [one["id"] for one in accounts]
    conn.execute(_LATER, {"ids": ids, "events": [changed.get(id) for id in ids], "at": now + AGAIN_AFTER})
    if model is None:
        return len(ids), set()
    known = _Known(conn, accounts, found[1], now).by_account(metrics_of(model))
    before = {row["account_id"]: row for row in conn.execute(_LATEST, {"ids": ids}).mappings()}
    of = model_hash(model)
    rows = [assessment(one, score(model, known[one["id"]]), known[one["id"]], before.get(one["id"]), of, now) for one in accounts]
    rows = [row for row in rows if row]
    appended = insert_rows(conn, health_score, rows, returning=("id", "account_id"))
    states = [{"id": row["account_id"], "health_score": row["score"], "health_band": row["band"], "health_at": now} for row in rows]
    update_rows(conn, account, states)
    keys = {one["id"]: one["external_id"] for one in accounts}
    return len(ids), _tell(conn, rows, {row.account_id: row.id for row in appended}, keys, before, now)


def assessment(
    one: Mapping, result: Score, known: Mapping[str, Sequence[Sample]], before: Mapping | None, model: str, now: datetime
) -> dict[str, Any] | None:
    """The row to append to what is stored (or to what a world remembers) of the account `one` (`id`, `stage`), or None when nothing of it
    differs from the last one, `before`. `told` in `known` is the score last told."""
    past = before["known"] if before else {}
    leaning = past.get("leaning") or {}
    since = datetime.fromisoformat(leaning["since"]) if leaning else None
    standing = stand(result.score, Standing(before["band"] if before else None, leaning.get("band"), since), now)
    contributions = [{name: getattr(one, name) for name in Contribution.__slots__} for one in result.contributions]
    same = before and (before["score"], before["band"], before["contributions"]) == (result.score, standing.band, contributions)
    # Without a score the coverage is all there is to tell.
    if same and (result.score is not None or before["coverage"] == result.coverage):
        return None
    told = past.get("told")
    news = standing.band != (before["band"] if before else None) or _apart(result.score, told) >= NEWS
    return {
        "account_id": one["id"],
        "at": now,
        "score": result.score,
        "band": standing.band,
        "coverage": result.coverage,
        "model": f"{one['stage'] or ''}@{model}",
        "contributions": contributions,
        "known": {
            "metrics": {metric: [[sample.value, sample.age_days] for sample in samples] for metric, samples in known.items()},
            "missing": list(result.missing),
            "leaning": {"band": standing.leaning, "since": standing.since.isoformat()} if standing.leaning else None,
            "told": result.score if news else told,
            "news": news,
        },
        "cause": "first" if before is None else "changed",
    }


def news(row: Mapping, last: Mapping | None) -> dict[str, Any] | None:
    """What `nurture.health_changed` tells of a row after the `last` one; None where it is no news."""
    if not row["known"]["news"]:
        return None
    return {
        "score": row["score"],
        "band": row["band"],
        "previous_score": last["known"].get("told") if last else None,
        "previous_band": last["band"] if last else None,
        "band_changed": row["band"] != (last["band"] if last else None),
    }


def _apart(score: float | None, told: float | None) -> float:
    return 0.0 if score is None or told is None else abs(score - told)


def _tell(
    conn: Connection, rows: list[dict], ids: Mapping[int, int], keys: Mapping[int, str], before: Mapping[int, Mapping], now: datetime
) -> set[int]:
    events = []
    for row in rows:
        id = row["account_id"]
        if (properties := news(row, before.get(id))) is None:
            continue
        events.append(Own("nurture.health_changed", f"health:{ids[id]}", properties, keys[id], None, now))
    if not events:
        return set()
    return raise_own(conn, events, now, conn.execute(text("select partitions from installation")).scalar_one())


class _Known:
    """The metric values of many accounts, read by one query per kind of metric, and only of the kinds that the model asks for.

    Usage windows count whole UTC days. An account without any count of a metric is known to be silent (0) only when it has existed
    for the whole window and the installation has received that metric from somebody; before that, nothing is known.
    """

    def __init__(self, conn: Connection, accounts: Sequence[Mapping], lifecycle: Lifecycle, now: datetime):
        self.conn = conn
        self.accounts = accounts
        self.ids = [one["id"] for one in accounts]
        self.lifecycle = lifecycle
        self.now = now

    def by_account(self, metrics: frozenset[str]) -> dict[int, dict[str, list[Sample]]]:
        known: dict[int, dict[str, list[Sample]]] = {id: {} for id in self.ids}
        windows = {metric: match for metric in metrics if (match := WINDOW.fullmatch(metric))}
        self._usage(known, windows)
        if MILESTONES_SHARE in metrics and self.lifecycle.milestones:
            self._milestones(known)
        if SEATS_SHARE in metrics:
            self._seats(known)
        if surveys := [match[1] for metric in metrics if (match := SURVEY.fullmatch(metric))]:
            self._surveys(known, surveys)
        return known

    def _usage(self, known: dict, windows: Mapping[str, re.Match]) -> None:
        if not windows:
            return
        names = sorted({match[1] for match in windows.values()})
        ever = {(row.account_id, row.metric) for row in self.conn.execute(_EVER, {"ids": self.ids, "names": names})}
        today = self.now.astimezone(UTC).date()
        for metric, match in windows.items():
            name, days = match[1], int(match[3])
            newest = today - timedelta(days=days if match[2] == "previous" else 0)
            window = {"ids": self.ids, "name": name, "after": newest - timedelta(days=days), "until": newest}
            counts = dict(self.conn.execute(_COUNTS, window).all())
            oldest_for_silence = self.now - timedelta(days=days * (2 if match[2] == "previous" else 1))
            for one in self.accounts:
                if (one["id"], name) in ever or (one["created_at"] <= oldest_for_silence and self._heard(name)):
                    known[one["id"]][metric] = [Sample(float(counts.get(one["id"], 0)))]

    def _heard(self, metric: str) -> bool:
        """Whether anybody has ever reported `metric`. No index answers this, so a no is believed for 10 minutes."""
        database = self.conn.engine.url.render_as_string()
        asked = _unheard.get((database, metric))
        if (database, metric) in _heard_of or (asked and self.now - asked < timedelta(minutes=10)):
            return (database, metric) in _heard_of
        if self.conn.execute(_HEARD, {"name": metric}).scalar():
            _heard_of.add((database, metric))
            return True
        _unheard[database, metric] = self.now
        return False

    def _milestones(self, known: dict) -> None:
        names = list(self.lifecycle.milestones)
        reached = dict(self.conn.execute(_REACHED, {"ids": self.ids, "names": names}).all())
        for id in self.ids:
            known[id][MILESTONES_SHARE] = [Sample(reached.get(id, 0) / len(names))]

    def _seats(self, known: dict) -> None:
        """People seen in the last 30 days per seat; unknown where the seats are, or where nobody was ever seen."""
        for row in self.conn.execute(_SEEN, {"ids": self.ids, "since": self.now - timedelta(days=30)}):
            known[row.id][SEATS_SHARE] = [Sample(row.recent / row.seats)]

    def _surveys(self, known: dict, surveys: list[str]) -> None:
        latest: dict[tuple[int, str], list[Sample]] = defaultdict(list)
        for row in self.conn.execute(_ANSWERS, {"ids": self.ids, "surveys": surveys, "now": self.now}):
            # Whole days: an answer must not make a new score at every look.
            latest[row.account_id, row.survey].append(Sample(float(row.score), float((self.now - row.answered_at).days)))
        for (id, survey), samples in latest.items():
            known[id][f"survey.{survey}"] = samples


def metrics_of(model: HealthModel) -> frozenset[str]:
    return frozenset(measure.metric for group in model.groups for measure in group.measures)


_CHANGED = text("""
    select account_id, last_event_at from unassessed where assess_at <= :now order by assess_at limit :limit for update skip locked
""")

# Waits for nobody: who waited for `advance`, which waits for rows held here, might wait for ever.
_DUE = text("""
    select id, external_id, stage, seats, created_at from account
     where id = any(cast(:changed as bigint[]) || array(select id from account where assess_at <= :now order by assess_at limit :limit))
     order by id limit :limit
       for no key update skip locked
""")

_AS_WELL = text("select account_id, last_event_at from unassessed where account_id = any(:ids) for update skip locked")

# What is left of the changed belongs to accounts that somebody else holds, or is beyond the limit: it stays due.
_TAKEN = text("""
    delete from unassessed u where account_id = any(:ids)
       and (account_id = any(:assessed) or not exists (select from account a where a.id = u.account_id))
""")

_LATER = text("""
    update account a set assess_at = :at, last_event_at = greatest(a.last_event_at, r.event)
      from unnest(cast(:ids as bigint[]), cast(:events as timestamptz[])) as r(id, event) where a.id = r.id
""")

_LATEST = text("""
    select h.account_id, h.score, h.band, h.coverage, h.contributions, h.known
      from unnest(cast(:ids as bigint[])) as wanted(id)
     cross join lateral (select * from health_score h where h.account_id = wanted.id order by h.at desc, h.id desc limit 1) as h
""")

_HEARD = text("select exists (select 1 from usage_day where metric = :name)")

_EVER = text("""
    select a.id as account_id, name as metric
      from unnest(cast(:ids as bigint[])) as a(id), unnest(cast(:names as text[])) as name
     where exists (select 1 from usage_day u where u.account_id = a.id and u.metric = name)
""")

_COUNTS = text("""
    select account_id, sum(count)::float from usage_day
     where account_id = any(:ids) and metric = :name and day > :after and day <= :until group by account_id
""")

_REACHED = text("""
    select account_id, count(*)::int from milestone
     where account_id = any(:ids) and name = any(:names) and reached_at is not null group by account_id
""")

_SEEN = text("""
    select a.id, a.seats::float as seats, count(*) filter (where c.last_seen_at >= :since) as recent
      from account a join membership m on m.account_id = a.id join contact c on c.id = m.contact_id
     where a.id = any(:ids) and a.seats > 0 and c.last_seen_at is not null
     group by a.id, a.seats
""")

_ANSWERS = text("""
    select distinct on (r.account_id, r.survey, coalesce(c.person, c.id::text)) r.account_id, r.survey, r.score, r.answered_at
      from response r join contact c on c.id = r.contact_id
     where r.account_id = any(:ids) and r.survey = any(:surveys) and r.answered_at <= :now
     order by r.account_id, r.survey, coalesce(c.person, c.id::text), r.answered_at desc, r.id desc
""")
