"""Assessing accounts: what is known becomes a score, once, with its reasons."""

import copy
import threading
from datetime import timedelta

import pytest
from cast_listening import LIFECYCLE, add_account, add_contact, add_letter, add_message, publish
from conftest import NOW
from sqlalchemy import text

from app.errors import NotFound
from app.flow.assess import assess_due, model_hash, rebuild
from app.flow.respond import answer, find_message
from app.models import account, contact, health_score, lifecycle_version, milestone, usage_day
from app.queue import Bells
from app.rules.lifecycle import Lifecycle

TODAY = NOW.date()


@pytest.fixture
def bells(redis_server):
    return Bells(redis_server)


@pytest.fixture
def cast(engine):
    with engine.begin() as conn:
        return publish(conn)


def rows(engine, query):
    with engine.connect() as conn:
        return [dict(row) for row in conn.execute(text(query)).mappings()]


def use(engine, account_id, metric, count, days_ago=1):
    day = TODAY - timedelta(days=days_ago)
    with engine.begin() as conn:
        conn.execute(usage_day.insert().values(account_id=account_id, metric=metric, day=day, count=count, last_at=NOW))


def reach(engine, account_id, *names):
    with engine.begin() as conn:
        for name in names:
            conn.execute(milestone.insert().values(account_id=account_id, name=name, reached_at=NOW))


def assess(engine, bells, at=NOW):
    with engine.begin() as conn:
        conn.execute(account.update().values(assess_at=at))
    return assess_due(engine, lambda: at, bells)


def scores(engine):
    return rows(engine, "select * from health_score order by id")


def told(engine):
    return [one["properties"] for one in rows(engine, "select properties from event where name = 'nurture.health_changed' order by id")]


@pytest.fixture
def busy(engine, cast):
    """Sign-ins 20 (100 points), reports 15 (50), 2 of 3 milestones."""
    with engine.begin() as conn:
        id = add_account(conn, assess_at=NOW)
    use(engine, id, "logins", 12)
    use(engine, id, "logins", 8, days_ago=29)
    use(engine, id, "logins", 99, days_ago=30)
    use(engine, id, "reports", 15)
    reach(engine, id, "setup_completed", "report_shared")
    return id


def test_a_score_with_its_contributions(engine, bells, busy):
    assert assess_due(engine, lambda: NOW, bells) == 1
    [row] = scores(engine)
    assert row["coverage"] == pytest.approx(0.7) and row["band"] == "yellow" and row["cause"] == "first"
    assert row["score"] == pytest.approx((20 * 100 + 20 * 50 + 30 * 200 / 3) / 70)
    assert [(one["measure"], one["value"]) for one in row["contributions"]] == [("sign_ins", 20), ("reports", 15), ("milestones", 2 / 3)]
    assert sum(one["contribution"] for one in row["contributions"]) == pytest.approx(row["score"], abs=1e-9)
    assert row["known"]["missing"] == ["nps", "csat", "seats"]
    [one] = rows(engine, "select * from account")
    assert (one["health_score"], one["health_band"], one["health_at"]) == (row["score"], "yellow", NOW)
    assert one["assess_at"] == NOW + timedelta(days=1)
    [event] = rows(engine, "select * from event")
    assert (event["message_id"], event["account_key"], event["contact_key"]) == (f"health:{row['id']}", "acme", None)
    assert event["properties"] == {
        "score": row["score"],
        "band": "yellow",
        "previous_score": None,
        "previous_band": None,
        "band_changed": True,
    }


def test_assessing_again_changes_nothing(engine, bells, busy):
    assess(engine, bells)
    assert assess_due(engine, lambda: NOW, bells) == 0
    assert assess(engine, bells) == 1
    assert assess(engine, bells, NOW + timedelta(hours=3)) == 1
    assert len(scores(engine)) == 1 and len(told(engine)) == 1


def test_silence_is_news(engine, bells, busy):
    assess(engine, bells)
    assess(engine, bells, NOW + timedelta(days=40))
    assert [row["band"] for row in scores(engine)] == ["yellow", "red"]
    assert told(engine)[1]["previous_band"] == "yellow" and told(engine)[1]["band_changed"]


def test_an_account_that_never_did_anything_is_silent_only_after_a_whole_window(engine, bells, busy):
    with engine.begin() as conn:
        old = add_account(conn, "old", created_at=NOW - timedelta(days=30))
        new = add_account(conn, "new", created_at=NOW - timedelta(days=29))
    assess(engine, bells)
    found = {row["account_id"]: row for row in scores(engine)}
    assert found[old]["score"] == 0 and found[old]["band"] == "red"
    assert found[new]["score"] is None and found[new]["band"] is None and found[new]["contributions"] == []
    assert len(told(engine)) == 2  # nothing is told of the one without a score


def test_a_metric_that_nobody_reports_is_not_silence(engine, bells, cast):
    with engine.begin() as conn:
        add_account(conn)
    assess(engine, bells)
    assert scores(engine)[0]["score"] is None


def test_small_steps_are_kept_and_told_when_they_add_up(engine, bells, busy):
    assess(engine, bells)
    for number in range(1, 8):  # each report is 0.95 points
        use(engine, busy, "reports", 1, days_ago=1 + number)
        assess(engine, bells, NOW + timedelta(minutes=number))
    assert len(scores(engine)) == 8
    assert [one["band_changed"] for one in told(engine)] == [True, False, False, False]
    assert told(engine)[1]["previous_score"] == told(engine)[0]["score"] and told(engine)[2]["previous_score"] == told(engine)[1]["score"]


def test_a_band_follows_after_three_days_though_nothing_else_changed(engine, bells, cast):
    with engine.begin() as conn:
        lifecycle = copy.deepcopy(LIFECYCLE)
        measure = {"name": "shares", "metric": "milestones.share", "worst": 0, "best": 1}
        lifecycle["health"] = {"minimum_coverage": 0, "groups": [{"name": "g", "weight": 1, "measures": [measure]}]}
        lifecycle["milestones"] = {f"m{number}": {"event": "x"} for number in range(100)}
        conn.execute(lifecycle_version.insert().values(hash="other", definition=lifecycle, published_at=NOW))
        id = add_account(conn)
    reach(engine, id, *(f"m{number}" for number in range(79)))
    assess(engine, bells)
    reach(engine, id, "m79", "m80")
    bands = []
    for day in range(1, 6):
        assess(engine, bells, NOW + timedelta(days=day))
        bands.append(rows(engine, "select health_band from account")[0]["health_band"])
    assert bands == ["yellow", "yellow", "yellow", "green", "green"]
    assert [round(row["score"]) for row in scores(engine)] == [79, 81, 81]
    assert [one["band_changed"] for one in told(engine)] == [True, False, True]


def test_answers_count_the_latest_of_each_person(engine, bells, cast, busy):
    with engine.begin() as conn:
        ada, bob = add_contact(conn, busy), add_contact(conn, busy, "bob")
        twin = add_contact(conn, busy, "ada2", person="ada@example.org")
        for number, (who, value) in enumerate([(ada, 2), (bob, 10), (twin, 6)]):
            found = find_message(conn, add_message(conn, cast, busy, who, "ask"))
            answer(conn, found, value, None, NOW - timedelta(hours=3 - number), closes_after=timedelta(days=30), partitions=64)
    assess_due(engine, lambda: NOW, bells)
    known = scores(engine)[0]["known"]["metrics"]["survey.nps"]
    assert sorted(known) == [[6.0, 0.0], [10.0, 0.0]]
    assert next(one for one in scores(engine)[0]["contributions"] if one["measure"] == "nps")["value"] == 8


def test_an_answer_is_assessed_at_once_and_fades(engine, bells, cast):
    with engine.begin() as conn:
        letter = add_letter(conn, cast, "ask")
        ids = conn.execute(text("select id from account")).scalar_one()
    use(engine, ids, "logins", 20)
    use(engine, ids, "reports", 30)
    assess(engine, bells)
    assert scores(engine)[0]["score"] == pytest.approx((40 * 100 + 30 * 0) / 70)
    with engine.begin() as conn:
        answer(conn, find_message(conn, letter), 0, None, NOW, closes_after=timedelta(days=30), partitions=64)
    assert assess_due(engine, lambda: NOW, bells) == 1
    assert scores(engine)[1]["score"] == pytest.approx(40 * 100 / 90)
    assess(engine, bells, NOW + timedelta(days=10))
    weights = [next(one["weight"] for one in row["contributions"] if one["measure"] == "nps") for row in scores(engine)[1:]]
    assert weights[0] > weights[1] > 0


def test_an_answer_shows_in_the_coverage_also_while_there_is_no_score(engine, bells, cast):
    with engine.begin() as conn:
        lifecycle = copy.deepcopy(LIFECYCLE)
        lifecycle["health"]["minimum_coverage"] = 0.9
        conn.execute(lifecycle_version.insert().values(hash="strict", definition=lifecycle, published_at=NOW))
        letter = add_letter(conn, cast, "ask")
    assess(engine, bells)
    with engine.begin() as conn:
        answer(conn, find_message(conn, letter), 9, None, NOW, closes_after=timedelta(days=30), partitions=64)
    assess_due(engine, lambda: NOW, bells)
    assess(engine, bells, NOW + timedelta(minutes=5))
    first, second = scores(engine)
    assert (first["score"], second["score"]) == (None, None)
    assert second["coverage"] > first["coverage"]
    assert told(engine) == []


def test_the_share_of_seats_in_use(engine, bells, busy):
    with engine.begin() as conn:
        for number, days in enumerate((1, 29, 31)):
            id = add_contact(conn, busy, f"c{number}")
            conn.execute(contact.update().where(contact.c.id == id).values(last_seen_at=NOW - timedelta(days=days)))
        conn.execute(account.update().values(seats=4))
    assess(engine, bells)
    assert scores(engine)[0]["known"]["metrics"]["usage.seats.share"] == [[0.5, 0.0]]


def test_invariant_11_a_past_score_is_rebuilt_from_what_was_known(engine, bells, cast, busy):
    assess(engine, bells)
    use(engine, busy, "reports", 15, days_ago=3)
    assess(engine, bells, NOW + timedelta(hours=1))
    with engine.begin() as conn:
        changed = copy.deepcopy(LIFECYCLE)
        changed["health"]["groups"][0]["weight"] = 400
        conn.execute(lifecycle_version.insert().values(hash="changed", definition=changed, published_at=NOW))
    assess(engine, bells, NOW + timedelta(hours=2))
    found = scores(engine)
    assert len({row["model"] for row in found}) == 2
    with engine.connect() as conn:
        for row in found:
            again = rebuild(conn, row["id"])
            assert (again.score, again.coverage) == (row["score"], row["coverage"])
            assert [one.contribution for one in again.contributions] == [one["contribution"] for one in row["contributions"]]
        with pytest.raises(NotFound):
            rebuild(conn, 999)
    with engine.begin() as conn:
        conn.execute(health_score.update().values(model="onboarding@gone"))
    with engine.connect() as conn, pytest.raises(NotFound, match="gone"):
        rebuild(conn, found[0]["id"])


def test_a_lifecycle_without_a_model_or_none_at_all_assesses_nothing(engine, bells):
    with engine.begin() as conn:
        add_account(conn)
    assert assess(engine, bells) == 1 and scores(engine) == []
    with engine.begin() as conn:
        bare = {name: part for name, part in LIFECYCLE.items() if name != "health"}
        conn.execute(lifecycle_version.insert().values(hash="bare", definition=bare, published_at=NOW))
    assert assess(engine, bells) == 1 and scores(engine) == []
    assert rows(engine, "select assess_at from account")[0]["assess_at"] == NOW + timedelta(days=1)


def test_many_accounts_in_several_places_at_once_are_assessed_once(engine, bells, cast):
    with engine.begin() as conn:
        rows_ = [{"external_id": f"a{n}", "partition": 1, "created_at": NOW - timedelta(days=90), "assess_at": NOW} for n in range(1200)]
        conn.execute(account.insert(), rows_)
        conn.execute(text("insert into milestone (account_id, name, reached_at) select id, 'first_value', now() from account"))
        conn.execute(
            text("insert into usage_day select id, 'logins', :day, (id % 25)::int, now() from account"), {"day": TODAY - timedelta(days=1)}
        )
    counts, failures = [], []

    def run():
        try:
            counts.append(assess_due(engine, lambda: NOW, bells))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assess_due(engine, lambda: NOW, bells)
    assert failures == []
    assert rows(engine, "select count(*), count(distinct account_id) as accounts from health_score") == [{"count": 1200, "accounts": 1200}]
    assert len(told(engine)) == 1200


def test_the_models_hash_follows_its_content():
    one, same = Lifecycle.model_validate(LIFECYCLE).health, Lifecycle.model_validate(copy.deepcopy(LIFECYCLE)).health
    other = copy.deepcopy(LIFECYCLE)
    other["health"]["groups"][0]["measures"][0]["best"] = 21
    assert model_hash(one) == model_hash(same) != model_hash(Lifecycle.model_validate(other).health)
