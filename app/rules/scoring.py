"""The health score: what is known of an account, weighed by the model of `lifecycle.yaml`. Pure.

A measure maps its metric to 0–100 between a worst and a best value. A measure without data is left out, and the others of its group carry
the group's weight; a group without any data is left out, and the others' weights are brought back to a whole. The weight of the groups
that had data is the coverage, and under the model's minimum coverage there is no score. Data that ages (`half_life`) loses weight against
the rest, not coverage. Every score is the sum of its contributions, so a change between two scores is explained exactly (DESIGN.md 10,
invariant 11).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import fsum, isfinite

from app.rules.lifecycle import HealthModel, Measure

BANDS = ("red", "yellow", "green")
_FROM = {"red": 0.0, "yellow": 60.0, "green": 80.0}
INSIDE = 2.0  # a band changes at once when the score is this far inside it
LINGER = timedelta(days=3)  # or when it has been in it for so long


@dataclass(frozen=True, slots=True)
class Sample:
    """One value of a metric; `age_days` counts only for measures with a half-life. A usage count is one sample of age 0, survey
    answers are one sample per person."""

    value: float
    age_days: float = 0.0


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one measure added. `points` is its place between worst (0) and best (100), `weight` its share of the whole (they sum to
    1), `contribution` the two multiplied (they sum to the score)."""

    group: str
    measure: str
    label: str
    metric: str
    value: float
    points: float
    weight: float
    contribution: float


@dataclass(frozen=True, slots=True)
class Score:
    """`score` is None when coverage is under the model's minimum; then there are no contributions. `missing` names the measures
    without data."""

    score: float | None
    coverage: float
    contributions: tuple[Contribution, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """The band in force, and since when the score lies in another one (`leaning`) without having made the change."""

    band: str | None = None
    leaning: str | None = None
    since: datetime | None = None


def score(model: HealthModel, known: Mapping[str, Sequence[Sample]]) -> Score:
    """The score of an account of which `known` is known, by metric. A metric that is absent, or empty, is missing data.

    The order of groups, measures and samples changes nothing beyond rounding. Values that are not finite are refused (ValueError).
    """
    total = fsum(group.weight for group in model.groups)
    weighed, missing, covered = [], [], []
    for group in model.groups:
        there = [(measure, samples) for measure in group.measures if (samples := known.get(measure.metric))]
        missing += [measure.name for measure in group.measures if not known.get(measure.metric)]
        if not there:
            continue
        covered.append(group.weight / total)
        share = group.weight / total / fsum(measure.weight for measure, _ in there)
        for measure, samples in there:
            value, freshness = _value(measure, samples)
            weighed.append((group.name, measure, value, _points(measure, value), share * measure.weight * freshness))
    coverage = min(1.0, fsum(covered))
    # Rounding may put a coverage that is exactly the minimum a hair under it.
    if not weighed or coverage + 1e-9 < model.minimum_coverage:
        return Score(None, coverage, (), tuple(missing))
    whole = fsum(weight for *_, weight in weighed)
    contributions = tuple(
        Contribution(
            group, measure.name, measure.label or measure.name, measure.metric, value, points, weight / whole, points * weight / whole
        )
        for group, measure, value, points, weight in weighed
    )
    return Score(min(100.0, fsum(one.contribution for one in contributions)), coverage, contributions, tuple(missing))


def band_of(score: float) -> str:
    """green [80,100], yellow [60,80), red [0,60)."""
    return "green" if score >= _FROM["green"] else "yellow" if score >= _FROM["yellow"] else "red"


def stand(score: float | None, before: Standing, at: datetime) -> Standing:
    """The band at `at`, given where the account stood before.

    It changes when the score is 2 points past the edge of the new band, or has lain in that band for 3 days; a score that jumps over
    a whole band changes at least to the band that it is past by 2 points. Without a score there is no band; the first score, and the
    first after a gap, takes its band at once.
    """
    if score is None:
        return Standing()
    raw = band_of(score)
    if before.band is None or raw == before.band:
        return Standing(raw)
    since = before.since if before.leaning == raw and before.since else at
    if at - since >= LINGER:
        return Standing(raw)
    falls = BANDS.index(raw) < BANDS.index(before.band)
    firm = _firm(score, falls)
    crossed = BANDS.index(firm) < BANDS.index(before.band) if falls else BANDS.index(firm) > BANDS.index(before.band)
    band = firm if crossed else before.band
    return Standing(band) if band == raw else Standing(band, raw, since)


def _firm(score: float, falls: bool) -> str:
    """The band that the score has reached with 2 points to spare, coming from above (`falls`) or from below."""
    if falls:
        return "red" if score <= _FROM["yellow"] - INSIDE else "yellow" if score <= _FROM["green"] - INSIDE else "green"
    return "green" if score >= _FROM["green"] + INSIDE else "yellow" if score >= _FROM["yellow"] + INSIDE else "red"


def _value(measure: Measure, samples: Sequence[Sample]) -> tuple[float, float]:
    """The mean of the samples, newer ones weighing more where the measure has a half-life, and how fresh the newest is (0 to 1]."""
    if not all(isfinite(sample.value) and isfinite(sample.age_days) for sample in samples):
        raise ValueError(f"{measure.metric} has a value that is not a number")
    if measure.half_life is None:
        return fsum(sample.value for sample in samples) / len(samples), 1.0
    half_life = measure.half_life / timedelta(days=1)
    newest = min(max(0.0, sample.age_days) for sample in samples)
    # Relative to the newest, so that answers of long ago do not all vanish to a weight of zero.
    weights = [0.5 ** ((max(0.0, sample.age_days) - newest) / half_life) for sample in samples]
    mean = fsum(sample.value * weight for sample, weight in zip(samples, weights, strict=True)) / fsum(weights)
    # Never quite nothing: an answer of long ago still counts where nothing else is known.
    return mean, max(1e-9, 0.5 ** (newest / half_life))


def _points(measure: Measure, value: float) -> float:
    """The place of `value` between worst (0) and best (100). Worst may be the larger one: fewer is better."""
    return 100.0 * min(1.0, max(0.0, (value - measure.worst) / (measure.best - measure.worst)))
