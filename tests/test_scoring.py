"""The health score: invariant 11, bands and their hysteresis, half-lives."""

import math
import random
from datetime import timedelta

import pytest
from conftest import NOW
from hypothesis import assume, given
from hypothesis import strategies as st

from app.rules.lifecycle import HealthModel
from app.rules.scoring import Sample, Standing, band_of, score, stand

NUMBERS = st.floats(-1e6, 1e6, allow_nan=False)
METRICS = [f"m{number}" for number in range(8)]


@st.composite
def models(draw, minimum=None):
    groups, number = [], 0
    for group in range(draw(st.integers(1, 4))):
        measures = []
        for _ in range(draw(st.integers(1, 3))):
            worst = draw(st.integers(-50, 50))
            measures.append(
                {
                    "name": f"n{number}",
                    "metric": draw(st.sampled_from(METRICS)),
                    "worst": worst,
                    "best": worst + draw(st.sampled_from([-70, -1, 1, 70])),
                    "weight": draw(st.integers(1, 9)),
                    "half_life": draw(st.sampled_from([None, "1d", "180d"])),
                }
            )
            number += 1
        groups.append({"name": f"g{group}", "weight": draw(st.integers(1, 100)), "measures": measures})
    covers = draw(st.sampled_from([0, 0.25, 0.5, 1])) if minimum is None else minimum
    return HealthModel.model_validate({"minimum_coverage": covers, "groups": groups})


SAMPLES = st.lists(st.builds(Sample, NUMBERS, st.integers(0, 4000).map(float)), max_size=4)
KNOWN = st.dictionaries(st.sampled_from(METRICS), SAMPLES, max_size=8)


@given(models(), KNOWN)
def test_invariant_11_health_adds_up(model, known):
    result = score(model, known)
    if result.score is None:
        assert result.contributions == () and (result.coverage < model.minimum_coverage or result.coverage == 0)
        return
    assert math.isclose(math.fsum(one.contribution for one in result.contributions), result.score, abs_tol=1e-9)
    assert math.isclose(math.fsum(one.weight for one in result.contributions), 1, abs_tol=1e-9)
    assert 0 <= result.score <= 100 and 0 < result.coverage <= 1
    assert all(0 <= one.points <= 100 and one.contribution >= 0 for one in result.contributions)
    assert len(result.contributions) + len(result.missing) == sum(len(group.measures) for group in model.groups)


@given(models(), KNOWN, st.data())
def test_better_values_never_lower_the_score(model, known, data):
    measure = data.draw(st.sampled_from([measure for group in model.groups for measure in group.measures]))
    others = [one for group in model.groups for one in group.measures if one.metric == measure.metric]
    upwards = {one.best >= one.worst for one in others}
    assume(len(upwards) == 1)
    step = data.draw(st.floats(0, 1e5)) * (1 if upwards.pop() else -1)
    known = known | {measure.metric: known.get(measure.metric) or [Sample(data.draw(NUMBERS))]}
    better = known | {measure.metric: [Sample(sample.value + step, sample.age_days) for sample in known[measure.metric]]}
    before, after = score(model, known).score, score(model, better).score
    assert before is after is None or after >= before - 1e-9


@given(models(), KNOWN, st.randoms())
def test_the_order_of_measures_is_irrelevant(model, known, chance):
    raw = model.model_dump()
    for group in raw["groups"]:
        chance.shuffle(group["measures"])
    chance.shuffle(raw["groups"])
    known_again = {metric: random.Random(1).sample(samples, len(samples)) for metric, samples in reversed(list(known.items()))}
    before, after = score(model, known), score(HealthModel.model_validate(raw), known_again)
    if math.isclose(before.coverage, model.minimum_coverage, abs_tol=1e-6):
        return
    assert before.score is after.score is None or math.isclose(before.score, after.score, abs_tol=1e-6)


def model(**half):
    """Two groups of equal weight, one measure each."""
    measure = {"worst": 0, "best": 10}
    groups = [
        {"name": "use", "weight": 50, "measures": [{"name": "use", "metric": "use", **measure}]},
        {"name": "say", "weight": 50, "measures": [{"name": "nps", "metric": "nps", **measure, **half}]},
    ]
    return HealthModel.model_validate({"minimum_coverage": 0.5, "groups": groups})


def test_missing_data_is_left_out_not_counted_as_neutral():
    assert score(model(), {"use": [Sample(10)]}).score == 100
    assert score(model(), {"use": [Sample(10)]}).coverage == 0.5
    assert score(model(), {"use": [Sample(10)]}).missing == ("nps",)
    assert score(model(), {"use": [Sample(10)], "nps": [Sample(0)]}).score == 50


def test_under_the_minimum_coverage_there_is_no_score():
    thin = HealthModel.model_validate(model().model_dump() | {"minimum_coverage": 0.51})
    assert score(thin, {"use": [Sample(10)]}).score is None
    assert score(model(), {}).score is None
    assert score(model(), {"use": []}).coverage == 0


def test_the_weight_of_an_answer_halves_with_its_half_life():
    aging = model(half_life="180d")
    fresh = score(aging, {"use": [Sample(10)], "nps": [Sample(0, 0)]})
    old = score(aging, {"use": [Sample(10)], "nps": [Sample(0, 180)]})
    assert fresh.score == 50
    assert old.score == pytest.approx(100 * 2 / 3) and old.coverage == 1
    assert score(aging, {"use": [Sample(10)], "nps": [Sample(0, 36_000_000)]}).score == pytest.approx(100)


def test_newer_answers_weigh_more_than_older_ones():
    aging = model(half_life="10d")
    assert score(aging, {"nps": [Sample(10, 0), Sample(1, 10)]}).contributions[0].value == pytest.approx(7)
    assert score(model(), {"nps": [Sample(10, 0), Sample(1, 10)]}).contributions[0].value == pytest.approx(5.5)


def test_fewer_may_be_better_and_values_beyond_the_ends_are_ends():
    groups = [{"name": "g", "weight": 1, "measures": [{"name": "tickets", "metric": "t", "worst": 20, "best": 0}]}]
    fewer = HealthModel.model_validate({"groups": groups})
    assert [score(fewer, {"t": [Sample(value)]}).score for value in (-5, 0, 5, 20, 99)] == [100, 100, 75, 0, 0]


def test_a_value_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="use"):
        score(model(), {"use": [Sample(math.nan)]})


@pytest.mark.parametrize(
    ("value", "band"), [(0, "red"), (59.999, "red"), (60, "yellow"), (79.999, "yellow"), (80, "green"), (100, "green")]
)
def test_bands(value, band):
    assert band_of(value) == band


@pytest.mark.parametrize(
    ("before", "value", "after"),
    [
        ("green", 79.9, "green"),
        ("green", 78.01, "green"),
        ("green", 78, "yellow"),
        ("yellow", 80, "yellow"),
        ("yellow", 81.9, "yellow"),
        ("yellow", 82, "green"),
        ("yellow", 58.1, "yellow"),
        ("yellow", 58, "red"),
        ("red", 61.9, "red"),
        ("red", 62, "yellow"),
        ("green", 59, "yellow"),  # past yellow, but not 2 points into red
        ("green", 58, "red"),
        ("red", 81, "yellow"),
        ("red", 82, "green"),
        (None, 59.9, "red"),
        (None, 80, "green"),
    ],
)
def test_a_band_changes_two_points_inside_the_new_one(before, value, after):
    assert stand(value, Standing(before), NOW).band == after


def test_a_band_changes_after_three_days_in_the_new_one():
    standing = stand(79.5, Standing("green"), NOW)
    assert standing == Standing("green", "yellow", NOW)
    standing = stand(79.2, standing, NOW + timedelta(days=2, hours=23))
    assert standing == Standing("green", "yellow", NOW)
    assert stand(79.4, standing, NOW + timedelta(days=3)) == Standing("yellow")


def test_a_visit_back_starts_the_three_days_anew():
    standing = stand(79.5, Standing("green"), NOW)
    standing = stand(80.5, standing, NOW + timedelta(days=2))
    assert standing == Standing("green")
    standing = stand(79.5, standing, NOW + timedelta(days=3))
    assert standing == Standing("green", "yellow", NOW + timedelta(days=3))


def test_without_a_score_there_is_no_band_and_the_next_score_takes_its_own_at_once():
    assert stand(None, Standing("green", "yellow", NOW), NOW) == Standing()
    assert stand(79, Standing(), NOW) == Standing("yellow")


@given(st.lists(st.floats(0, 100), min_size=1, max_size=40))
def test_a_band_is_never_wrong_for_long_nor_by_much(values):
    standing, at = Standing(), NOW
    for value in values:
        standing, at = stand(value, standing, at), at + timedelta(hours=20)
        edges = {"red": (0, 60), "yellow": (60, 80), "green": (80, 101)}[standing.band]
        assert edges[0] - 2 < value < edges[1] + 2
        assert standing.leaning is None or at - standing.since <= timedelta(days=3, hours=20)
