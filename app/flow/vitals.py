"""The health of the accounts of a world: when it is assessed, and what is known of it then. What is made of that, `flow.assess` says.

As a live engine does, an account is assessed soon after it changed, and at least daily, for silence is news.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from app.flow.assess import AGAIN_AFTER, MILESTONES_SHARE, SEATS_SHARE, SURVEY, WINDOW, assessment, metrics_of, model_hash, news
from app.rules.facts import Account, Health
from app.rules.lifecycle import Lifecycle
from app.rules.scoring import Sample, Score, score

SEATS_WITHIN = timedelta(days=30)  # whoever was seen so lately uses a seat
KEPT = 20_000  # scores that are remembered
Counts = Mapping[str, Sequence[tuple[int, int]]]  # by metric: (day, count), the newest first


class Vitals:
    """What a world remembers of the health of its accounts. It assesses only those that it was told to `watch`, from then on."""

    def __init__(self) -> None:
        self._since: dict[str, datetime] = {}
        self._due: dict[str, datetime] = {}
        self._last: dict[str, Mapping[str, Any]] = {}  # the latest row, as the database has them
        self._known: dict[str, Mapping[str, list[Sample]]] = {}  # of which the latest row was made, where nothing but that can change it
        self._answers: dict[str, dict[tuple[str, str], tuple[datetime, int]]] = defaultdict(dict)  # by account: (survey, person)
        self._heard: set[str] = set()
        self._read(None)

    def watch(self, account: str, since: datetime, last: Mapping[str, Any] | None) -> None:
        """From `since` on the account is assessed here; `last` is the row of its latest assessment, if it had one."""
        self._since[account] = since
        if last is not None:
            self._last[account] = last

    def ask(self, account: str, at: datetime, lifecycle: Lifecycle) -> bool:
        """Whether the account is to be assessed at `at`: it is watched by then, and not to be assessed before."""
        since, due = self._since.get(account), self._due.get(account)
        if lifecycle.health is None or since is None or at < since or (due is not None and due <= at):
            return False
        self._due[account] = at
        return True

    def is_due(self, account: str, at: datetime) -> bool:
        return self._due.get(account) == at

    def hear(self, metrics: Iterable[str]) -> None:
        """Some account reported these metrics."""
        self._heard.update(metrics)

    def answered(self, account: str, survey: str, person: str, score: int, at: datetime) -> None:
        """The latest answer of a person counts."""
        self._answers[account][survey, person] = at, score

    def assess(
        self, account: Account, counts: Counts, seen: Sequence[datetime], lifecycle: Lifecycle, now: datetime
    ) -> tuple[Health | None, Mapping[str, Any] | None]:
        """The new health, where it is another, and what `nurture.health_changed` tells of it, where that is news. `seen` is when each
        of its people was last seen."""
        if lifecycle is not self._lifecycle:
            self._read(lifecycle)
        key = account.key
        self._due[key] = now + AGAIN_AFTER
        known = self._measure(account, counts, seen, now)
        if self._known.get(key) == known:
            return None, None
        last = self._last.get(key)
        row = assessment({"id": 0, "stage": account.stage}, self._score(known), known, last, self._model, now)
        if row is not None:
            self._last[key] = row
        # While the score leans towards another band, time alone may change the band.
        self._known[key] = {} if self._last[key]["known"]["leaning"] else known
        if row is None:
            return None, None
        return Health(row["score"], row["band"], now), news(row, last)

    def _score(self, known: Mapping[str, list[Sample]]) -> Score:
        """The same is known of many accounts, and of one at many times: a score is made once."""
        key = tuple((metric, *((one.value, one.age_days) for one in samples)) for metric, samples in known.items())
        found = self._scores.get(key)
        if found is None:
            if len(self._scores) >= KEPT:
                self._scores.clear()
            found = self._scores[key] = score(self._lifecycle.health, known)
        return found

    def _read(self, lifecycle: Lifecycle | None) -> None:
        self._lifecycle = lifecycle
        metrics = metrics_of(lifecycle.health) if lifecycle and lifecycle.health else frozenset()
        self._model = model_hash(lifecycle.health) if lifecycle and lifecycle.health else ""
        windows = [(metric, WINDOW.fullmatch(metric)) for metric in sorted(metrics)]
        self._windows = [(metric, match[1], int(match[3]), match[2] == "previous") for metric, match in windows if match]
        self._surveys = frozenset(match[1] for metric in metrics if (match := SURVEY.fullmatch(metric)))
        self._milestones = tuple(lifecycle.milestones) if lifecycle and MILESTONES_SHARE in metrics else ()
        self._seats = SEATS_SHARE in metrics
        self._known.clear()
        self._scores: dict[tuple, Score] = {}

    def _measure(self, account: Account, counts: Counts, seen: Sequence[datetime], now: datetime) -> dict[str, list[Sample]]:
        """As `assess._Known` reads it from a database."""
        known: dict[str, list[Sample]] = {}
        today = now.astimezone(UTC).toordinal()
        for metric, name, length, previous in self._windows:
            days = counts.get(name)
            if days is None:
                if name not in self._heard or (now - account.created_at).total_seconds() < length * (1 + previous) * 86400:
                    continue
                days = ()
            newest = today - length * previous
            total = 0
            for day, count in days:
                if day <= newest - length:
                    break
                if day <= newest:
                    total += count
            known[metric] = [Sample(float(total))]
        if self._milestones:
            reached = [one for name in self._milestones if (one := account.milestones.get(name)) is not None and one.reached_at is not None]
            known[MILESTONES_SHARE] = [Sample(len(reached) / len(self._milestones))]
        if self._seats and account.seats and account.seats > 0 and seen:
            known[SEATS_SHARE] = [Sample(sum(one >= now - SEATS_WITHIN for one in seen) / account.seats)]
        for (survey, _), (at, value) in self._answers.get(account.key, {}).items():
            if survey in self._surveys:
                known.setdefault(f"survey.{survey}", []).append(Sample(float(value), float((now - at).days)))
        return known
