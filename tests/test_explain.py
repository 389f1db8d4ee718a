"""Why each message was or was not sent: told from the ledger, recomputed where nothing is stored, in words for every code."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import replace
from datetime import timedelta
from functools import cache
from uuid import uuid4

import pytest
from sqlalchemy import text

from app import ask
from app.config import CODE
from app.errors import InputError, NotFound
from app.flow import deliver, holding
from app.flow.explain import explain, read_moment
from app.flow.ingest import Own, raise_own
from app.flow.publish import book, publish
from app.queue import Bells
from app.rules import gates, reasons
from tests.stories import LIFECYCLE, START, group, identify, post, publish_campaigns, run, track, write_campaigns

WELCOME = """
name: Welcome
stage: onboarding
topic: product
trigger: {event: workspace_created, where: event.properties.plan != "free"}
audience: account.touch != "high"
recipients: {roles: [admin], pick: first}
steps:
  - id: hello
    email: hello.mjml
    subject: "Hello {{ contact.first_name | default('you') }}"
  - id: settle
    wait: 2d
  - id: more
    email: more.mjml
    subject: "More"
"""
MILESTONE = """
name: After value
stage: onboarding
topic: product
trigger: {milestone: first_value}
steps:
  - id: well
    email: well.mjml
    subject: "Well done"
"""
WINDOW = WELCOME.replace("steps:", 'send_window: {days: sat-sun, hours: "09:00-17:00"}\nsteps:')


@pytest.fixture
def tell(engine, tmp_path):
    """Publishes campaigns, posts and advances; then explains."""

    class Tell:
        lifecycle = LIFECYCLE

        def campaigns(self, **texts):
            folders = {key.replace("__", "/"): text for key, text in texts.items()}
            publish_campaigns(engine, tmp_path / "campaigns", folders, lifecycle=self.lifecycle)

        def happens(self, *items, at=START, mark=None):
            post(engine, *items, now=at, mark=mark)
            run(engine, at)

        def why(self, contact="ada", now=START, **only):
            with engine.connect() as conn:
                return explain(conn, book(conn), contact, now=now, **only)

        def only(self, contact="ada", now=START, **wanted):
            found = self.why(contact, now, **wanted)
            assert len(found.stories) == 1
            return found.stories[0]

        def sql(self, statement, **values):
            with engine.begin() as conn:
                conn.execute(text(statement), values)

    told = Tell()
    told.engine, told.root = engine, tmp_path / "campaigns"
    return told


def acorn(**traits):
    return group(touch="smb", **traits), identify(email="ada@example.com", first_name="Ada", roles=["admin"])


def reasons_of(story):
    return [line.reason for line in story.entry]


def test_a_trigger_that_never_happened(tell):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn())
    story = tell.only()
    assert reasons_of(story) == ["never_happened"] and not story.entry[0].stored
    assert story.summary == "Not entered. What starts the campaign has never happened here. Event: workspace_created."


def test_a_trigger_that_happened_but_whose_condition_failed_names_the_value(tell):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn(), track("workspace_created", plan="free"))
    story = tell.only()
    assert reasons_of(story) == ["where_failed"] and not story.entry[0].stored
    assert "event.properties.plan was “free”" in story.summary
    assert story.entry[0].at == START


def test_a_milestone_trigger_speaks_of_the_milestone(tell):
    tell.campaigns(a__value=MILESTONE)
    tell.happens(*acorn(), track("setup_completed"))
    story = tell.only()
    assert reasons_of(story) == ["never_happened"]
    assert "It starts when the milestone first_value is reached." in story.summary


def test_no_to_the_audience_comes_from_the_ledger_with_what_it_saw(tell):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn(), group(touch="high"), track("workspace_created", plan="team"))
    story = tell.only()
    assert reasons_of(story) == ["not_in_audience"] and story.entry[0].stored
    assert "account.touch was “high”" in story.summary
    assert story.tone == "bad"


def test_what_is_sent_what_waits_and_what_comes_later(tell, settings):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn(), track("workspace_created", plan="team"))
    story = tell.only()
    assert [(one.step, one.state) for one in story.letters] == [("hello", "due"), ("more", "not_made")]
    assert story.summary == "Entered: nothing sent, 1 waiting; now at hello."
    assert deliver.run(tell.engine, settings, uuid4(), lambda: START, Bells(None)) == 1
    run(tell.engine, START)
    story = tell.only()
    assert [(one.step, one.state, one.subject) for one in story.letters] == [("hello", "sent", "Hello Ada"), ("more", "not_made", "More")]
    assert story.step == "settle" and story.due_at == START + timedelta(days=2)
    assert story.letters[1].text == reasons.SENTENCES["not_reached"] + " It is at settle until 2026-03-04 09:00 UTC."
    assert [line.reason for line in story.way if line.gate == "trigger"] == ["enrolled"]


def test_a_closed_window_says_until_when(tell):
    tell.campaigns(a__welcome=WINDOW)
    tell.happens(*acorn(), track("workspace_created", plan="team"))
    letter = tell.only().letters[0]
    assert letter.state == "due" and letter.at.weekday() == 5
    assert [line.reason for line in letter.lines if line.verdict == "wait"] == ["window_closed"]


def test_the_mail_went_to_somebody_else(tell):
    tell.campaigns(a__welcome=WELCOME)
    bob = identify("bob", email="bob@example.com", roles=["user"])
    cleo = identify("cleo", email="cleo@example.com", roles=["admin"])
    tell.happens(*acorn(), bob)
    tell.happens(cleo, track("workspace_created", plan="team"), at=START + timedelta(minutes=1))
    told = {who: tell.only(who).letters[0] for who in ("ada", "bob", "cleo")}
    assert told["ada"].state == "due"
    assert told["bob"].lines[-1].reason == "wrong_role"
    assert told["bob"].text == "The contact has none of the roles that the campaign writes to. Wanted: admin; has: user."
    assert told["cleo"].lines[-1].reason == "other_recipient"


def test_nobody_reachable(tell):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(group(touch="smb"), identify(roles=["admin"]), track("workspace_created", plan="team"))
    letter = tell.only().letters[0]
    assert letter.state in ("waiting", "skipped") and "no_address" in [line.reason for line in letter.lines]


def test_a_hold_and_an_opt_out_found_at_sending_are_in_the_ledger(tell, settings):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn(), track("workspace_created", plan="team"))
    with tell.engine.begin() as conn:
        held = holding.hold(conn, "Open ticket", START, account="acorn")
    deliver.run(tell.engine, settings, uuid4(), lambda: START, Bells(None))
    letter = tell.only().letters[0]
    assert letter.state == "due" and "Reason of the hold: Open ticket." in [line.text for line in letter.lines if line.gate == "hold"][0]
    with tell.engine.begin() as conn:
        holding.release(conn, held, START)
    tell.sql(
        "insert into suppression (person, scope, reason, created_at) values ('ada@example.com', 'product', 'unsubscribed', :now)", now=START
    )
    later = START + timedelta(hours=1)
    deliver.run(tell.engine, settings, uuid4(), lambda: later, Bells(None))
    letter = tell.only().letters[0]
    assert letter.state == "skipped" and letter.text == reasons.SENTENCES["topic_opted_out"]


@pytest.mark.parametrize(("mode", "said"), [("draft", "Its mode was draft."), ("paused", "Its mode was paused."), ("archived", "archived")])
def test_a_campaign_that_is_not_live(tell, mode, said):
    tell.campaigns(a__welcome=WELCOME)
    tell.sql("update campaign set mode = :mode", mode=mode)
    tell.happens(*acorn(), track("workspace_created", plan="team"))
    story = tell.only()
    assert reasons_of(story) == ["campaign_not_live"] and said in story.summary


def test_an_event_from_before_publishing(tell):
    tell.campaigns(a__other=MILESTONE)
    tell.happens(*acorn(), track("workspace_created", plan="team"), at=START - timedelta(days=1))
    tell.campaigns(a__other=MILESTONE, a__welcome=WELCOME)
    assert reasons_of(tell.only(campaign="a/welcome")) == ["before_published"]


def test_history_enrolls_nobody_and_says_so(tell):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn())
    tell.happens(track("workspace_created", plan="team"), mark="backfill", at=START + timedelta(minutes=1))
    assert reasons_of(tell.only()) == ["backfill"]


def test_an_event_still_pending(tell):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn())
    post(tell.engine, track("workspace_created", plan="team"), now=START + timedelta(minutes=1))
    assert reasons_of(tell.only()) == ["too_soon_to_say"]


def test_a_contact_without_an_account(tell):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(identify(key=None, email="ada@example.com"))
    found = tell.why()
    assert found.stories == () and [line.reason for line in found.notes] == ["no_account"]


def test_a_contact_of_two_accounts_has_a_story_for_each_and_ambiguous_events_are_noted(tell):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn(), group("birch", touch="smb"), identify(key="birch", roles=["admin"]))
    tell.happens(track("workspace_created", key=None, plan="team"), at=START + timedelta(minutes=1))
    found = tell.why()
    assert [one.account for one in found.stories] == ["acorn", "birch"]
    assert "account_ambiguous" in [line.reason for line in found.notes]
    assert tell.only(account="birch").account == "birch"
    assert [reasons_of(one) for one in found.stories] == [["account_ambiguous"], ["account_ambiguous"]]


def test_what_a_hold_kept_waiting_is_due_when_the_hold_is_released(tell, settings):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn(), track("workspace_created", plan="team"))
    with tell.engine.begin() as conn:
        on_account = holding.hold(conn, "Open ticket", START, account="acorn")
        on_contact = holding.hold(conn, "On leave", START, contact="ada")
    deliver.run(tell.engine, settings, uuid4(), lambda: START, Bells(None))
    soon = START + timedelta(minutes=1)
    for hold, state in ((on_account, "due"), (on_contact, "sent")):
        with tell.engine.begin() as conn:
            assert conn.execute(text("select due_at > :soon from message where state = 'due'"), {"soon": soon}).scalar_one()
            holding.release(conn, hold, soon)
        deliver.run(tell.engine, settings, uuid4(), lambda: soon, Bells(None))
        assert tell.only(now=soon).letters[0].state == state


def test_the_address_finds_every_contact_that_has_it(tell):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn(), identify("ada2", email="Ada@Example.com", roles=["user"]))
    assert tell.why("ADA@example.com").contacts == ("ada", "ada2")


@pytest.mark.parametrize("wanted", [{"contact": "nobody"}, {"campaign": "no/such"}, {"account": "nothing"}, {"account": "birch"}])
def test_what_does_not_exist_is_named(tell, wanted):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn(), group("birch", None, touch="smb"))
    with pytest.raises(NotFound, match=next(iter(wanted.values()))):
        tell.why(**wanted)


def test_explaining_writes_nothing_and_changes_nothing(tell):
    tell.campaigns(a__welcome=WELCOME, a__value=MILESTONE)
    tell.happens(*acorn(), track("workspace_created", plan="team"))
    with tell.engine.connect() as conn:
        conn.exec_driver_sql("set transaction read only")
        first = explain(conn, book(conn), "ada", now=START)
        assert explain(conn, book(conn), "ada", now=START) == first


def test_the_command_prints_it_readably_and_as_json(tell):
    tell.campaigns(a__welcome=WELCOME, a__value=MILESTONE)
    tell.happens(*acorn(), track("workspace_created", plan="team"))
    found = tell.why()
    words = "\n".join(ask.written(found))
    assert "Welcome (a/welcome, live, version 1) at acorn" in words and "… hello: Hello" in words
    assert "It starts when the milestone first_value is reached." in " ".join(words.split())
    assert max(map(len, words.splitlines())) <= 120
    every = "\n".join(ask.written(found, True))
    assert "enrolled" in every and len(every) > len(words)
    plain = found.plain()
    assert {one["reason"] for one in plain["decisions"]} >= {"enrolled", "queued", "never_happened"}
    assert json.loads(json.dumps(plain, default=str))["stories"][0]["campaign"] == "a/value"


# Gates, and the past ---------------------------------------------------------------------------------------------------

TAKES = WELCOME.replace(
    'audience: account.touch != "high"', "audience: usage.logins.last_7d >= 5\nexit_when: account.traits.plan == 'gone'"
)


def verdicts(of):
    return {line.gate: line.verdict for line in of.gates}


def test_the_gates_come_in_order_with_their_inputs_and_by_how_much_the_first_failed(tell):
    tell.campaigns(a__welcome=TAKES)
    tell.happens(*acorn(), track("logged_in"), track("logged_in"), track("workspace_created", plan="team"))
    story = tell.only()
    assert tuple(line.gate for line in story.gates) == gates.ORDER
    assert story.first_failed == "audience" and story.version == 1 and {line.version for line in story.gates} == {1}
    assert list(verdicts(story).values()) == ["yes"] * 5 + ["no"] + ["not asked"] * 10
    assert story.summary.endswith("audience. usage.logins.last_7d was 2, 3 short of 5.")
    assert tell.only().gates[0].evidence["event.properties.plan"] == "team"
    assert story.gates[4].evidence["because"][0] == {"what": "account.traits.plan", "was": None, "is": "==", "wanted": "gone"}


def test_a_sent_mail_has_passed_every_gate(tell, settings):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn(), track("workspace_created", plan="team"))
    deliver.run(tell.engine, settings, uuid4(), lambda: START, Bells(None))
    run(tell.engine, START)
    story = tell.only()
    assert story.of == "hello" and story.first_failed is None and set(verdicts(story).values()) == {"yes"}
    assert verdicts(story.letters[1])["enrollment"] == "wait"


@pytest.mark.parametrize(
    ("trigger", "told", "words"),
    [
        (
            "{health: {below: 50}}",
            [("nurture.health_changed", {"score": 71, "band": "yellow"})],
            "event.properties.score was 71, 21 too much",
        ),
        ("{health: {below: 50}}", [], "health.score was never set, wanted less than 50."),
        ("{date: {field: account.renewal_date, offset: -30d}}", [], "account.renewal_date | days_until was 90, 60 days too early."),
        ("{usage: {metric: logins, drop: 50%}}", [], "usage.logins.change_7d was never set, wanted at most -0.5."),
        ("{utilization: {above: 90%}}", [], "utilization was 0, 0.9 short, wanted more than 0.9."),
        ("{stage: adoption}", [], "stage.name was “onboarding”, wanted “adoption”."),
        ("{survey: {type: nps, score: [0, 6]}}", [], "It starts when a survey is answered within its range of scores."),
    ],
)
def test_how_near_a_trigger_is_that_never_came(tell, trigger, told, words):
    health = "health: {groups: [{name: all, weight: 1, measures: [{name: use, metric: usage.logins.last_7d, worst: 0, best: 9}]}]}\n"
    tell.lifecycle = LIFECYCLE + health
    tell.campaigns(a__near=MILESTONE.replace("{milestone: first_value}", trigger))
    tell.happens(group(touch="smb", seats=10, renewal_date=(START + timedelta(days=90)).isoformat()), *acorn())
    with tell.engine.begin() as conn:
        raise_own(conn, [Own(name, "own-1", {"previous_score": 80, **more}, "acorn", None, START) for name, more in told], START, 64)
    run(tell.engine, START)
    assert words in tell.only().summary


def test_the_account_itself_is_explained(tell):
    tell.campaigns(a__welcome=WELCOME, a__value=MILESTONE)
    tell.happens(*acorn(), track("workspace_created", plan="team"))
    found = tell.why(None, account="acorn")
    assert found.contacts == () and [(one.campaign, one.contact, one.first_failed) for one in found.stories] == [
        ("a/value", None, "trigger"),
        ("a/welcome", None, "send"),
    ]
    assert [(one.step, one.contact) for one in found.stories[1].letters] == [("hello", "ada"), ("more", None)]
    with pytest.raises(NotFound, match="nothing"):
        tell.why(None, account="nothing")
    with pytest.raises(InputError, match="name a contact or an account"):
        tell.why(None)


def test_the_past_is_told_by_what_was_known_and_in_force_then(tell, settings):
    """Traits, versions, letters, holds: nothing that came later counts."""
    day = timedelta(days=1)
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn(), track("workspace_created", plan="team"))
    deliver.run(tell.engine, settings, uuid4(), lambda: START, Bells(None))
    run(tell.engine, START)
    with tell.engine.begin() as conn:
        publish(conn, write_campaigns(tell.root, {"a/welcome": TAKES, "a/value": MILESTONE}), START + day)
    tell.happens(group(touch="high"), track("workspace_created", plan="team"), at=START + 2 * day)
    run(tell.engine, START + 3 * day)
    later = {"now": START + 9 * day}
    assert tell.only(**later, campaign="a/welcome").letters[1].state == "due"

    then = tell.only(at=START + day / 2, campaign="a/welcome", **later)
    assert (then.version, then.step, then.due_at, then.letters[1].state) == (1, "settle", START + 2 * day, "not_made")
    assert then.entry == () and tell.only(**later, campaign="a/welcome").entry[-1].reason == "already_enrolled"
    not_yet = tell.only(at=START + day / 2, campaign="a/value", **later)
    assert not_yet.first_failed == "campaign" and not_yet.entry[-1].reason == "not_published" and not_yet.version is None
    before = tell.why(at=START - day, **later)
    assert before.stories == () and [line.reason for line in before.notes] == ["no_account"]
    with pytest.raises(InputError, match="at: is still to come"):
        tell.why(at=START + day, now=START)


def test_what_the_ledger_has_lost_is_decided_again_exactly(tell):
    tell.campaigns(a__welcome=TAKES)
    tell.happens(*acorn(), track("logged_in"), track("workspace_created", plan="team"))
    # What is known now would give another answer: the rules are asked with what was known then.
    tell.happens(*(track("logged_in") for _ in range(9)), at=START + timedelta(hours=1))
    stored = tell.only()
    tell.sql("delete from decision")
    again = tell.only()
    assert again.summary == stored.summary and again.first_failed == stored.first_failed == "audience"
    assert (stored.entry[0].stored, again.entry[0].stored) == (True, False)
    assert (again.entry[0].at, again.entry[0].evidence) == (stored.entry[0].at, stored.entry[0].evidence)


def test_pruned_events_are_named_instead_of_guessed(tell):
    tell.campaigns(a__welcome=WELCOME)
    tell.happens(*acorn())
    tell.happens(track("logged_in"), at=START + timedelta(days=2))
    tell.sql("delete from event where received_at < :cut", cut=START + timedelta(days=1))
    found = tell.why(at=START + timedelta(days=1), now=START + timedelta(days=3))
    assert [(line.reason, line.evidence["since"]) for line in found.notes] == [("events_pruned", (START + timedelta(days=2)).isoformat())]
    now = tell.only(now=START + timedelta(days=3))
    assert "Events from before 2026-03-04 09:00 UTC are no longer stored." in now.summary


def test_moments_are_read_by_the_installations_clock(tell):
    tell.campaigns(a__welcome=WELCOME)
    with tell.engine.connect() as conn:
        known = book(conn)
    berlin = replace(known, lifecycle=known.lifecycle.model_copy(update={"timezone": "Europe/Berlin"}))
    assert read_moment("2026-03-02T10:00", berlin) == read_moment("2026-03-02T09:00:00Z", berlin) == START
    assert read_moment("2026-03-02T10:00:00 01:00", berlin) == START
    assert read_moment("2026-03-02", known) == START - timedelta(hours=9)
    assert read_moment(" ", known) is read_moment(None, known) is None
    for wrong in ("soon", "2026-02-30", "0001-01-01T00:00+10:00", "2026-03-02T25:00"):
        with pytest.raises(InputError, match="at: is no time"):
            read_moment(wrong, known)


def test_a_full_cap_says_how_full_and_until_when(tell, settings):
    tell.lifecycle = LIFECYCLE + "caps: [{per: person, at_most: 1, within: 7d}]\n"
    tell.campaigns(a__welcome=WELCOME, a__other=WELCOME.replace("name: Welcome", "name: Other\npriority: 90"))
    tell.happens(*acorn(), track("workspace_created", plan="team"))
    deliver.run(tell.engine, settings, uuid4(), lambda: START, Bells(None))
    story = tell.only(campaign="a/welcome")
    assert story.first_failed == "caps" and verdicts(story)["window"] == "yes" and verdicts(story)["render"] == "not asked"
    assert "1 of at most 1 for the person within 7 days, the latest a/other/hello; room again 2026-03-09 09:00 UTC." in story.summary


# Every code has a sentence -------------------------------------------------------------------------------------------


def test_every_reason_code_in_the_source_has_a_sentence():
    used = dict(codes())
    assert {
        "enrolled",
        "already_enrolled",
        "goal_already_met",
        "account_ambiguous",
        "campaign_paused",
        "missing_value",
        "worker_died",
        "topic_opted_out",
        "exit_when",
    } <= set(used)
    missing = {code: where for code, where in used.items() if code not in reasons.SENTENCES}
    assert not missing


def test_every_gate_in_the_source_has_a_name():
    used = {gate for path in sources() for gate in gates_of(path)}
    assert {"trigger", "window", "recipient"} <= used
    assert used <= set(reasons.GATES)


def sources():
    return [path for folder in ("rules", "flow") for path in (CODE / "app" / folder).rglob("*.py")]


RETURNS = {"unreachable", "reentry", "_why_not"}  # functions that return a reason, perhaps among other things
SUPPRESSIONS = {"unsubscribed", "bounced", "complained", "manual"}  # reasons of a suppression are facts, not decisions
CODE_LIKE = re.compile(r"[a-z]+(_[a-z]+)*")


def codes():
    places = parameters("reason")
    for path in sources():
        if path.name == "reasons.py":
            continue
        source = path.read_text("utf-8")
        where = str(path.relative_to(CODE))
        # In SQL: an assignment, or a verdict followed by its reason.
        found = re.findall(r"reason = '([a-z_]+)'", source) + re.findall(r"'(?:yes|no|wait)', '([a-z_]+)'", source)
        for node in ast.walk(ast.parse(source)):
            found += given(node, places, "reason")
            if isinstance(node, ast.Dict):
                kept = [value for key, value in zip(node.keys, node.values, strict=True) if getattr(key, "value", None) == "reason"]
                found += [one for value in kept for one in constants(value)]
            elif isinstance(node, ast.FunctionDef) and node.name in RETURNS:
                returned = [inner.value for inner in ast.walk(node) if isinstance(inner, ast.Return) and inner.value is not None]
                # A tuple is (reason, evidence), or (gate, reason, evidence).
                returned = [value.elts[len(value.elts) - 2] if isinstance(value, ast.Tuple) else value for value in returned]
                found += [one for value in returned for one in constants(value)]
            elif isinstance(node, ast.For) and isinstance(node.target, ast.Tuple) and isinstance(node.iter, ast.Tuple):
                names = [getattr(target, "id", None) for target in node.target.elts]
                if "reason" in names:
                    found += [one for row in node.iter.elts for one in constants(row.elts[names.index("reason")])]
        yield from ((one, where) for one in found if one not in SUPPRESSIONS)


def gates_of(path):
    places = parameters("gate")
    return [one for node in ast.walk(ast.parse(path.read_text("utf-8"))) for one in given(node, places, "gate")]


@cache
def parameters(wanted):
    """Where functions and classes of the source take the argument of that name: {name: position}."""
    places = {}
    for path in [*sources(), CODE / "app" / "errors.py"]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                names = [one.arg for one in node.args.args if one.arg != "self"]
            elif isinstance(node, ast.ClassDef):
                makers = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
                names = [one.arg for one in makers[0].args.args[1:]] if makers else []
                names = names or [one.target.id for one in node.body if isinstance(one, ast.AnnAssign)]
            else:
                continue
            # consent's own `decide` calls the gate by another name.
            names = ["gate" if node.name == "decide" and one == "name" else one for one in names]
            if wanted in names:
                places.setdefault(node.name, set()).add(names.index(wanted))
    return places


def given(node, places, wanted):
    """The literal codes that a call gives for the argument."""
    name = getattr(node.func, "attr", getattr(node.func, "id", None)) if isinstance(node, ast.Call) else None
    if name not in places or name == "hold":  # why somebody is on hold is said in words
        return []
    arguments = [node.args[place] for place in places[name] if place < len(node.args)]
    arguments += [word.value for word in node.keywords if word.arg == wanted]
    return [one for argument in arguments for one in constants(argument)]


def constants(node):
    """The strings an expression may be; those inside a comparison are not its value."""
    if isinstance(node, ast.IfExp):
        return constants(node.body) + constants(node.orelse)
    if isinstance(node, ast.BoolOp):
        return [one for value in node.values for one in constants(value)]
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and CODE_LIKE.fullmatch(node.value):
        return [node.value]
    return []
