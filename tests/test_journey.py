"""What follows from an occurrence: the state machine, without a database."""

from __future__ import annotations

from dataclasses import replace

import pytest

from app.rules.facts import EMPTY, Timer
from app.rules.journey import needs, react
from app.rules.reasons import sentence
from tests.stories import LIFECYCLE, at, make_account, make_book, make_event

WELCOME = """
trigger: {event: signed_up}
steps:
  - {id: hello, email: hello.mjml, subject: Hello}
  - {id: pause, wait: 2d}
  - {id: tips, email: tips.mjml, subject: Tips}
"""


def reasons(reaction) -> list[tuple[str, str, str]]:
    return [(one.gate, one.verdict, one.reason) for one in reaction.decisions]


def settle(book, account, message, offset):
    properties = {"message": str(message.id), "enrollment": str(message.enrollment), "step": message.step, "outcome": "sent"}
    return react(book, account, make_event("nurture.message_settled", offset, None, **properties))


def test_an_event_that_matches_enrolls_and_mails():
    """A trigger enrolls once and the first step's message follows at once, with its reasons."""
    done = react(make_book(WELCOME), make_account(), make_event("signed_up"))
    assert [(one.step, one.contact, one.due_at) for one in done.messages] == [("hello", "ada", at())]
    assert reasons(done) == [("trigger", "yes", "enrolled"), ("recipient", "yes", "queued")]
    assert done.account.enrollments[0].step == "hello"


def test_the_same_facts_give_the_same_ids():
    book, account, event = make_book(WELCOME), make_account(), make_event("signed_up")
    assert react(book, account, event) == react(book, account, event)


def test_a_wait_counts_from_the_moment_the_email_was_settled():
    book = make_book(WELCOME)
    done = react(book, make_account(), make_event("signed_up"))
    done = settle(book, done.account, done.messages[0], "3h")
    [enrollment] = done.account.enrollments
    assert (enrollment.step, enrollment.due_at) == ("pause", at("2d3h"))
    done = react(book, done.account, Timer(at("2d3h"), enrollment.id))
    assert [one.step for one in done.messages] == ["tips"]
    done = settle(book, done.account, done.messages[0], "2d4h")
    assert done.account.enrollments == ()
    assert done.enrollments[0].state == "finished"


def test_a_second_trigger_while_active_is_refused_with_a_reason():
    book = make_book(WELCOME)
    done = react(book, make_account(), make_event("signed_up"))
    done = react(book, done.account, make_event("signed_up", "1h"))
    assert reasons(done) == [("trigger", "no", "already_enrolled")]
    assert done.messages == ()


def test_reentry_is_never_by_default_and_counts_from_the_exit():
    book = make_book(
        "trigger: {event: e}\nsteps: [{id: out, exit: done}]", "trigger: {event: e}\nreentry: {after: 1d}\nsteps: [{id: out, exit: done}]"
    )
    done = react(book, make_account(), make_event("e"))
    assert len(done.enrollments) == 2
    again = react(book, done.account, make_event("e", "2h"))
    assert reasons(again) == [("trigger", "no", "no_reentry"), ("trigger", "no", "reentry_too_soon")]
    later = react(book, done.account, make_event("e", "25h"))
    assert [one.campaign for one in later.enrollments] == ["c2"]


GOAL = """
trigger: {event: signed_up}
goal: {milestone: setup_completed, within: 14d}
exit_when: account.traits.plan == "free"
steps: [{id: hello, email: hello.mjml, subject: Hello}, {id: pause, wait: 30d}]
"""


def test_a_goal_ends_a_waiting_enrollment_at_once():
    book = make_book(GOAL)
    done = react(book, make_account(), make_event("signed_up"))
    done = react(book, done.account, make_event("setup_completed", "1d"))
    assert done.enrollments[-1].end_reason == "goal_met"
    assert done.enrollments[-1].goal_at == at("1d")
    assert done.account.milestones["setup_completed"].reached_at == at("1d")
    assert [one.name for one in done.derived] == ["nurture.milestone_reached"]


def test_a_goal_met_after_its_window_ends_without_counting():
    book = make_book(GOAL)
    done = react(book, make_account(), make_event("signed_up"))
    done = react(book, done.account, make_event("setup_completed", "20d"))
    assert (done.enrollments[-1].end_reason, done.enrollments[-1].goal_at) == ("goal_met_late", None)


@pytest.mark.parametrize(("name", "value", "reason"), [("setup_completed", None, "goal_already_met"), ("plan", "free", "exit_already_met")])
def test_a_met_goal_or_exit_blocks_entry(name, value, reason):
    book = make_book(GOAL)
    account = make_account(traits={name: value}) if value else react(book, make_account(), make_event(name)).account
    done = react(book, account, make_event("signed_up", "1h"))
    assert reasons(done)[0][2] == reason
    assert done.account.enrollments == ()


WAIT_FOR = """
trigger: {event: signed_up}
steps:
  - id: setup
    wait_for: {event: imported, where: event.properties.rows > 10, timeout: 3d}
    on_timeout: [{id: nudge, email: nudge.mjml, subject: Shall we?}]
  - {id: share, email: share.mjml, subject: Share}
"""


def test_wait_for_passes_when_the_event_comes():
    book = make_book(WAIT_FOR)
    done = react(book, make_account(), make_event("signed_up"))
    assert done.account.enrollments[0].due_at == at("3d")
    assert react(book, done.account, make_event("imported", "1h", rows=3)).messages == ()
    assert [one.step for one in react(book, done.account, make_event("imported", "1h", rows=30)).messages] == ["share"]


def test_wait_for_times_out_into_its_branch():
    book = make_book(WAIT_FOR)
    done = react(book, make_account(), make_event("signed_up"))
    done = react(book, done.account, Timer(at("3d"), done.account.enrollments[0].id))
    assert [one.step for one in done.messages] == ["nudge"]
    assert ("wait_for", "no", "timed_out") in reasons(done)


def test_wait_for_knows_events_that_came_before_it_began():
    book = make_book(
        """
        trigger: {event: signed_up}
        steps:
          - {id: pause, wait: 1d}
          - {id: setup, wait_for: {event: imported, timeout: 3d}}
          - {id: share, email: share.mjml, subject: Share}
        """
    )
    done = react(book, make_account(), make_event("signed_up"))
    done = react(book, done.account, make_event("imported", "1h"))
    done = react(book, done.account, Timer(at("1d"), done.account.enrollments[0].id))
    assert [one.step for one in done.messages] == ["share"]


def test_a_state_that_holds_already_passes_at_once():
    book = make_book(
        "trigger: {event: e}\nsteps: [{id: w, wait_for: {milestone: setup_completed, timeout: 3d}}, {id: m, email: m.mjml, subject: M}]"
    )
    account = react(book, make_account(), make_event("setup_completed", "-30m")).account
    assert [one.step for one in react(book, account, make_event("e")).messages] == ["m"]


BRANCH = """
trigger: {event: signed_up}
steps:
  - id: ask
    survey: nps
    question: How likely?
    email: ask.mjml
    subject: One question
  - id: answer
    wait_for: {survey: ask, timeout: 7d}
    on_timeout: [{id: silent, exit: no answer}]
  - id: fork
    branch:
      - when: response.score >= 9
        steps: [{id: promoter, email: promoter.mjml, subject: Thanks}]
      - else: [{id: other, email: other.mjml, subject: Sorry}]
"""


@pytest.mark.parametrize(("score", "step"), [(10, "promoter"), (3, "other")])
def test_an_answer_chooses_the_branch(score, step):
    book = make_book(BRANCH)
    done = react(book, make_account(), make_event("signed_up"))
    [asked] = done.messages
    done = settle(book, done.account, asked, "1m")
    answer = {"enrollment": str(asked.enrollment), "message": str(asked.id), "step": "ask", "survey": "nps", "score": score}
    done = react(book, done.account, make_event("nurture.survey_responded", "1h", **answer))
    assert [one.step for one in done.messages] == [step]


def test_an_answer_of_another_enrollment_is_not_heard():
    book = make_book(BRANCH)
    done = react(book, make_account(), make_event("signed_up"))
    done = settle(book, done.account, done.messages[0], "1m")
    done = react(book, done.account, make_event("nurture.survey_responded", "1h", enrollment="somebody else's", step="ask", score=9))
    assert done.messages == ()


def test_recipients_are_chosen_by_role_and_reach():
    """`pick: first` takes the first in the order of roles who can be reached, and the ledger says why not the others."""
    book = make_book("trigger: {event: e}\nrecipients: {roles: [admin, champion]}\nsteps: [{id: m, email: m.mjml, subject: M}]")
    account = make_account()
    ada = replace(account.contacts["ada"], suppressed=frozenset({"product"}))
    bo = replace(account.contacts["ada"], key="bo", id=2, person="bo@example.com", roles=frozenset({"champion"}))
    done = react(book, replace(account, contacts={"ada": ada, "bo": bo}), make_event("e"))
    assert [one.contact for one in done.messages] == ["bo"]
    assert ("recipient", "no", "topic_opted_out") in reasons(done)


def test_a_step_with_nobody_reachable_waits_and_a_late_joiner_gets_it():
    book = make_book(WELCOME)
    lonely = make_account(contacts={})
    done = react(book, lonely, make_event("signed_up", "0s", None))
    assert reasons(done)[-1] == ("recipient", "wait", "nobody_reachable")
    assert done.account.enrollments[0].due_at == at("3d")
    joined = replace(make_account().contacts["ada"], joined_at=None, clocks={})
    account = replace(done.account, contacts={"ada": joined})
    late = react(book, account, make_event("identify", "1h", "ada", "identify", email="ada@example.com"))
    assert [one.step for one in late.messages] == ["hello"]
    nobody = react(book, done.account, Timer(at("3d"), done.account.enrollments[0].id))
    assert ("recipient", "no", "nobody_reachable") in reasons(nobody)
    assert nobody.account.enrollments[0].step == "pause"


def test_a_value_never_set_keeps_the_candidate_open_for_half_an_hour():
    book = make_book('trigger: {event: e}\naudience: account.touch == "smb"\nsteps: [{id: m, email: m.mjml, subject: M}]')
    done = react(book, make_account(), make_event("e"))
    assert reasons(done) == [("audience", "wait", "missing")]
    assert done.account.due_at == at("30m")
    told = react(book, done.account, make_event("group", "10m", "ada", "group", touch="smb"))
    assert [one.step for one in told.messages] == ["m"]
    assert told.account.candidates == ()
    expired = react(book, done.account, Timer(at("30m")))
    assert reasons(expired) == [("audience", "no", "missing")]
    assert expired.decisions[0].evidence["paths"] == ["account.touch"]


@pytest.mark.parametrize("mark", ["too_old", "backfill"])
def test_old_events_update_state_and_enroll_nobody(mark):
    book = make_book("trigger: {milestone: setup_completed}\nsteps: [{id: m, email: m.mjml, subject: M}]")
    done = react(book, make_account(), replace(make_event("setup_completed"), mark=mark))
    assert done.account.milestones["setup_completed"].reached_at == at()
    assert done.derived[0].mark == mark
    assert reasons(done) == [("trigger", "no", mark)]


def test_stages_follow_milestones_and_derived_events_trigger_at_once():
    book = make_book("trigger: {stage: adoption}\nsteps: [{id: m, email: m.mjml, subject: M}]")
    done = react(book, make_account(), make_event("report_shared"))
    assert [one.name for one in done.derived] == ["nurture.milestone_reached", "nurture.stage_entered"]
    assert done.account.stage == "adoption"
    assert [one.step for one in done.messages] == ["m"]


def test_a_milestone_falls_overdue_once():
    book = make_book("trigger: {milestone_overdue: first_value}\nsteps: [{id: m, email: m.mjml, subject: M}]")
    account = react(book, make_account(), make_event("setup_completed")).account
    assert account.due_at == at("23h")  # the daily look
    while account.due_at < at("13d23h"):
        done = react(book, account, Timer(account.due_at))
        assert done.derived == ()
        account = done.account
    assert account.due_at == at("13d23h")
    done = react(book, account, Timer(account.due_at))
    assert [one.name for one in done.derived] == ["nurture.milestone_overdue"]
    assert (len(done.messages), done.account.due_at) == (1, at("14d23h"))


def test_an_older_fact_never_overwrites_a_newer_one():
    book, account = make_book(), make_account()
    newer = make_event("group", "1h", "ada", "group", name="New name", plan="pro")
    older = make_event("group", "30m", "ada", "group", name="Old name", seats=5)
    for order in ((newer, older), (older, newer)):
        known = account
        for event in order:
            known = react(book, known, event).account
        assert (known.name, known.seats, known.traits["plan"]) == ("New name", 5, "pro")


def test_a_value_of_the_wrong_type_is_kept_raw_and_reads_as_missing():
    done = react(make_book(), make_account(), make_event("group", "0s", "ada", "group", seats="many", touch="gold"))
    assert (done.account.seats, done.account.touch) == (None, None)
    assert done.account.traits == {"seats": "many", "touch": "gold"}


def test_derived_events_that_feed_each_other_end_in_the_ledger():
    """Two definitions cannot loop for ever: the ninth derived event is a `loop`."""
    event = replace(make_event("setup_completed"), depth=8)
    done = react(make_book(), make_account(), event)
    assert reasons(done) == [("trigger", "no", "loop")]


def test_shadow_and_live_are_counted_apart():
    live, shadow = make_book(WELCOME), make_book(WELCOME, mode="shadow")
    account = react(live, make_account(), make_event("signed_up")).account
    done = react(shadow, account, make_event("signed_up", "1h"))
    assert [one.shadow for one in done.account.enrollments] == [False, True]


def test_a_send_window_shifts_the_message_and_says_so():
    book = make_book('trigger: {event: e}\nsend_window: {days: mon-fri, hours: "10:00-17:00"}\nsteps: [{id: m, email: m.mjml, subject: M}]')
    done = react(book, make_account(timezone="America/New_York"), make_event("e"))
    assert at("6h") <= done.messages[0].due_at <= at("6h15m")
    assert ("window", "wait", "window_closed") in reasons(done)


# What was read -------------------------------------------------------------------------------------------------------


def said(done, reason):
    return next(one for one in done.decisions if one.reason == reason).evidence


def test_a_goal_that_is_met_says_what_its_condition_read():
    book = make_book(
        """
        trigger: {event: signed_up}
        goal: {when: account.seats > 5, within: 14d}
        steps: [{id: pause, wait: 30d}]
        """
    )
    done = react(book, make_account(seats=3), make_event("signed_up"))
    done = react(book, done.account, make_event("group", "1d", "ada", "group", seats=9))
    evidence = said(done, "goal_met")
    assert evidence["account.seats"] == 9 and evidence["because"]
    assert "account.seats was 9" in sentence("goal_met", evidence)


def test_a_goal_that_an_event_meets_names_it():
    book = make_book("trigger: {event: signed_up}\ngoal: {event: paid}\nsteps: [{id: pause, wait: 30d}]")
    done = react(book, make_account(), make_event("signed_up"))
    assert said(react(book, done.account, make_event("paid", "1d")), "goal_met") == {"event": "paid", "message_id": "paid@1d"}


def test_a_branch_without_a_fitting_arm_says_what_its_conditions_read():
    book = make_book(
        """
        trigger: {event: signed_up}
        steps:
          - id: fork
            branch:
              - {when: account.seats > 50, steps: [{id: a, wait: 1d}]}
              - {when: 'account.touch == "high"', steps: [{id: b, wait: 1d}]}
          - {id: pause, wait: 30d}
        """
    )
    evidence = said(react(book, make_account(seats=3, touch="smb"), make_event("signed_up")), "no_branch_matched")
    assert (evidence["account.seats"], evidence["account.touch"]) == (3, "smb") and len(evidence["because"]) == 2
    assert "account.seats was 3" in sentence("no_branch_matched", evidence) and "smb" in sentence("no_branch_matched", evidence)


# What must be loaded -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["exit_when: event.name == 'cancelled'", "goal: {when: event.properties.sum > 5}"])
def test_whoever_may_leave_by_an_event_is_loaded(rule):
    """Others may begin by it, who need to know the people: what is not loaded must not be decided."""
    book = make_book(f"trigger: {{event: signed_up}}\n{rule}\nsteps: [{{id: pause, wait: 30d}}]")
    inside = react(book, make_account(), make_event("signed_up")).account
    leaves = make_event("cancelled", "1d", "ada", "track", sum=9)
    assert needs(book, inside, leaves) == {"contacts", "usage"}
    assert needs(book, inside, make_event("opened", "1d", "ada", "track", sum=2)) == frozenset()


def test_the_first_event_of_an_account_has_it_loaded():
    """It enters a stage by it, and a campaign may begin with the stage."""
    assert needs(make_book(WELCOME), make_account(stage=None), make_event("opened")) == {"contacts", "usage"}


DATES = """
trigger: {date: {field: contact.traits.certified_until, offset: -1d}}
enrolls: contact
steps: [{id: pause, wait: 30d}]
"""


def test_what_needs_nothing_changes_no_time():
    """Without its people loaded, an account's next look is left as it is: a contact's date is not forgotten until the daily look."""
    lifecycle = LIFECYCLE.replace("contact: {title: text}", "contact: {title: text, certified_until: date}")
    leaving = "trigger: {event: signed_up}\nexit_when: event.name == 'cancelled'\nsteps: [{id: rest, wait: 30d}]"
    book = make_book(DATES, leaving, lifecycle=lifecycle)
    known = react(book, make_account(), make_event("identify", "0s", "ada", "identify", certified_until=at("30h").isoformat())).account
    known = react(book, known, make_event("signed_up", "1m")).account
    assert known.due_at == at("6h")
    bare = replace(known, contacts=EMPTY, usage=EMPTY)
    for name in ("opened", "cancelled"):
        event = make_event(name, "1h")
        if not needs(book, known, event):
            done = react(book, bare, event)
            assert done.account is bare and not (done.decisions or done.derived or done.enrollments)
        else:
            assert react(book, known, event).account.due_at == at("6h")
