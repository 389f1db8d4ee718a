"""The campaign language, word by word: triggers that time and people bring, steps that tell staff, split, repeat, remind and set."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from app.rules.facts import Account, Contact, Event, Reaction, Timer, Usage
from app.rules.journey import STEERED, react
from app.rules.steps import message_id
from tests.stories import LIFECYCLE, at, make_account, make_book, make_event

MAIL = "{id: hello, email: hello.mjml, subject: Hello}"


def person(key: str, *roles: str, joined: str = "-1h", **values) -> Contact:
    address = f"{key}@example.com"
    number = sum(key.encode())
    return Contact(key, number, address, address, key.title(), roles=frozenset(roles), joined_at=at(joined), **values)


def people(*contacts: Contact) -> dict[str, Contact]:
    return {one.key: one for one in contacts}


def own(name: str, offset: str, properties: dict, contact: str | None = None) -> Event:
    return Event(name, properties, at(offset), at(offset), f"{name}@{offset}", "track", contact)


def until(book, account: Account, offset: str) -> tuple[Account, list[Reaction]]:
    """The account's own timers and those of its enrollments, one after the other, up to a time."""
    done = []
    while True:
        timers = [(one.due_at, str(one.id), one.id) for one in account.enrollments if one.due_at]
        timers += [(account.due_at, "", None)] if account.due_at else []
        timers.sort(key=lambda one: one[:2])
        if not timers or timers[0][0] > at(offset):
            return account, done
        reaction = react(book, account, Timer(timers[0][0], timers[0][2]))
        account = reaction.account
        done.append(reaction)


def settled(account: Account, offset: str, outcome: str = "sent") -> Event:
    """What delivery says of the open message of the only enrollment."""
    [enrollment] = account.enrollments
    properties = {"enrollment": str(enrollment.id), "message": enrollment.position["open"][0], "step": enrollment.step, "outcome": outcome}
    return Event("nurture.message_settled", properties, at(offset), at(offset), f"settled:{properties['message']}")


def made(reactions: list[Reaction]) -> list[str]:
    return [message.step for one in reactions for message in one.messages]


def reasons(reaction: Reaction) -> list[str]:
    return [one.reason for one in reaction.decisions]


# Triggers ------------------------------------------------------------------------------------------------------------


def test_a_date_is_reached_once_and_again_when_it_moves():
    book = make_book(f"trigger: {{date: {{field: account.renewal_date, offset: -90d}}}}\nreentry: {{after: 1d}}\nsteps: [{MAIL}]")
    account = react(book, make_account(), make_event("group", "0s", None, "group", renewal_date=at("100d").isoformat())).account
    account, done = until(book, account, "9d")
    assert made(done) == []
    account, done = until(book, account, "11d")
    assert made(done) == ["hello"]
    event = next(one for reaction in done for one in reaction.derived)
    assert (event.name, event.occurred_at) == ("nurture.date_reached", at("10d"))
    account = react(book, account, settled(account, "11d")).account
    account, done = until(book, account, "60d")
    assert made(done) == []
    account = react(book, account, make_event("group", "60d", None, "group", renewal_date=at("465d").isoformat())).account
    account, done = until(book, account, "380d")
    assert made(done) == ["hello"]


def test_a_date_that_passed_long_before_anybody_heard_of_it_enrolls_nobody():
    book = make_book(f"trigger: {{date: {{field: account.renewal_date, offset: -90d}}}}\nsteps: [{MAIL}]")
    account = react(book, make_account(), make_event("group", "0s", None, "group", renewal_date=at("30d").isoformat())).account
    account, done = until(book, account, "1d")
    assert [reason for one in done for reason in reasons(one)] == ["too_old"]
    account, done = until(book, account, "40d")
    assert made(done) == []


def test_a_date_of_each_contact():
    lifecycle = LIFECYCLE.replace("contact: {title: text}", "contact: {title: text, certified_at: date}")
    book = make_book(
        f"enrolls: contact\ntrigger: {{date: {{field: contact.traits.certified_at, offset: 365d}}}}\nsteps: [{MAIL}]", lifecycle=lifecycle
    )
    account = make_account(contacts=people(person("ada", "admin"), person("ben", "user")))
    for key, offset in (("ada", "0d"), ("ben", "2d")):
        event = make_event("identify", offset, key, "identify", certified_at=at(offset).isoformat())
        account = react(book, account, event).account
    account, done = until(book, account, "368d")
    assert [(message.contact, message.created_at) for one in done for message in one.messages] == [("ada", at("365d")), ("ben", at("367d"))]


def test_usage_that_falls_is_told_once_until_it_recovers():
    story = f"trigger: {{usage: {{metric: logins, drop: 50%, window: 7d, at_least: 10}}}}\nreentry: {{after: 1d}}\nsteps: [{MAIL}]"
    book = make_book(story)
    today = at().date().toordinal()
    days = tuple((today + ahead, 3) for ahead in reversed(range(20, 40))) + tuple((today - back, 3) for back in range(20))
    account = make_account(created_at=at("-60d"), usage={"logins": Usage(days, at())})
    account = react(book, account, make_event("group", "1m", None, "group", plan="pro")).account
    account, done = until(book, account, "3d")
    assert made(done) == []
    account, done = until(book, account, "12d")
    assert made(done) == ["hello"]
    event = next(one for reaction in done for one in reaction.derived)
    assert (event.name, event.properties["previous"], event.properties["last"]) == ("nurture.usage_changed", 21, 9)
    account = react(book, account, settled(account, "12d")).account
    account, done = until(book, account, "60d")
    assert made(done) == ["hello"]  # it had recovered, and fell again when the counts end


def test_utilization_crosses_a_level_upwards():
    book = make_book(f"trigger: {{utilization: {{above: 60%}}}}\nsteps: [{MAIL}]")
    account = make_account(seats=3, contacts=people(person("ada", "admin", last_seen_at=at("-1d")), person("ben", "user")))
    account, done = until(book, replace(account, due_at=at("1h")), "2h")
    assert made(done) == []
    account = react(book, account, make_event("logged_in", "3h", "ben")).account
    account, done = until(book, account, "2d")
    assert made(done) == ["hello"]
    account, done = until(book, account, "20d")
    assert made(done) == []


def test_a_key_contact_who_goes_silent_and_comes_back():
    book = make_book(f"enrolls: contact\ntrigger: {{inactive: {{role: champion, days: 14}}}}\nreentry: {{after: 1d}}\nsteps: [{MAIL}]")
    ada = person("ada", "champion", joined="-20d", last_seen_at=at("-10d"))
    account = make_account(created_at=at("-20d"), contacts=people(ada, person("ben", "user", joined="-100d")), due_at=at("1h"))
    account, done = until(book, account, "3d")
    assert made(done) == []
    account, done = until(book, account, "6d")
    assert [message.contact for one in done for message in one.messages] == ["ada"]
    account = react(book, account, settled(account, "6d")).account
    account = react(book, account, make_event("page_opened", "7d", "ada")).account
    account, done = until(book, account, "20d")
    assert made(done) == []
    account, done = until(book, account, "22d")
    assert made(done) == ["hello"]


def test_being_mailed_is_not_being_seen():
    book = make_book(f"enrolls: contact\ntrigger: {{inactive: {{role: admin, days: 14}}}}\nsteps: [{MAIL}]")
    account = make_account(created_at=at("-20d"), contacts=people(person("ada", "admin", joined="-20d", last_seen_at=at("-10d"))))
    for name in ("nurture.message_settled", "nurture.email_clicked"):
        account = react(book, account, own(name, "1d", {}, "ada")).account
    assert account.contacts["ada"].last_seen_at == at("-10d")


def test_a_role_falls_vacant():
    book = make_book(f"trigger: {{role_vacant: champion}}\nsteps: [{MAIL}]")
    account = make_account(contacts=people(person("ada", "admin"), person("cleo", "champion")), due_at=at("1h"))
    account, _ = until(book, account, "1h")
    done = react(book, account, make_event("identify", "2h", "cleo", "identify", roles=["user"]))
    assert [one.name for one in done.derived] == ["nurture.role_vacant"]
    assert [one.step for one in done.messages] == ["hello"]


def test_a_role_that_was_never_filled_is_not_vacant():
    book = make_book(f"trigger: {{role_vacant: champion}}\nsteps: [{MAIL}]")
    done = react(book, make_account(), make_event("identify", "2h", "ada", "identify", roles=["user"]))
    assert done.derived == ()


def test_somebody_joins():
    book = make_book(f"enrolls: contact\ntrigger: {{contact_added: {{roles: [user]}}}}\nsteps: [{MAIL}]")
    stranger = Contact("ben", 7)
    account = make_account(contacts={**make_account().contacts, "ben": stranger})
    done = react(book, account, make_event("identify", "0s", "ben", "identify", email="ben@example.com", roles=["user"]))
    assert [one.contact for one in done.messages] == ["ben"]
    again = react(book, done.account, make_event("identify", "1h", "ben", "identify", title="Baker"))
    assert (again.messages, again.derived) == ((), ())


def test_one_campaign_follows_another():
    first = f"trigger: {{event: signed_up}}\nsteps: [{MAIL}]"
    second = "trigger: {campaign: {campaign: x/c1, result: finished}}\nsteps: [{id: next, email: next.mjml, subject: Next}]"
    book = make_book(first, second, keys=["x/c1", "x/c2"])
    account = react(book, make_account(), make_event("signed_up")).account
    done = react(book, account, settled(account, "1m"))
    assert [one.name for one in done.derived] == ["nurture.campaign_ended"]
    assert [one.step for one in done.messages] == ["next"]


def test_a_goal_met_starts_another_campaign():
    first = f"trigger: {{event: signed_up}}\ngoal: {{event: shared, then: continue}}\nsteps: [{MAIL}, {{id: rest, wait: 9d}}]"
    second = "trigger: {campaign: {campaign: x/c1, result: goal}}\nsteps: [{id: bravo, email: bravo.mjml, subject: Bravo}]"
    book = make_book(first, second, keys=["x/c1", "x/c2"])
    account = react(book, make_account(), make_event("signed_up")).account
    done = react(book, account, make_event("shared", "1h"))
    assert [one.step for one in done.messages] == ["bravo"]
    assert len(done.account.enrollments) == 2


def test_two_campaigns_that_start_each_other_are_cut():
    first = "trigger: {campaign: {campaign: x/c2, result: ended}}\nreentry: {after: 1s}\nsteps: [{id: out, exit: done}]"
    second = "trigger: {campaign: {campaign: x/c1, result: ended}}\nreentry: {after: 1s}\nsteps: [{id: out, exit: done}]"
    start = "trigger: {event: go}\nsteps: [{id: out, exit: done}]"
    book = make_book(first.replace("reentry: {after: 1s}\n", ""), second, start.replace("go", "go"), keys=["x/c1", "x/c2", "x/c3"])
    event = own("nurture.enroll_requested", "0s", {"campaign": "x/c1"})
    done = react(book, make_account(), event)
    assert "no_reentry" in reasons(done) or "loop" in reasons(done)
    assert done.account.enrollments == ()


def test_enrolling_by_hand_asks_every_other_gate():
    book = make_book(f'trigger: {{manual: true}}\naudience: account.touch == "smb"\nsteps: [{MAIL}]', keys=["x/c1"])
    request = own("nurture.enroll_requested", "0s", {"campaign": "x/c1"})
    assert reasons(react(book, make_account(touch="high"), request)) == ["not_in_audience"]
    done = react(book, make_account(touch="smb"), request)
    assert [one.step for one in done.messages] == ["hello"]
    assert reasons(react(book, done.account, replace(request, message_id="again"))) == ["already_enrolled"]
    assert reasons(react(book, make_account(), own("nurture.enroll_requested", "0s", {"campaign": "x/nobody"}))) == ["no_campaign"]
    assert react(book, make_account(), own("nurture.enroll_requested", "0s", {"campaign": 7})).enrollments == ()


def test_the_health_score_crosses_a_value():
    book = make_book(f"trigger: {{health: {{below: 50}}}}\nreentry: {{after: 1h}}\nsteps: [{MAIL}]")

    def changed(score: float, before: float | None) -> list[str]:
        properties = {"score": score, "band": "red", "previous_score": before, "band_changed": False}
        return [one.step for one in react(book, make_account(), own("nurture.health_changed", "0s", properties)).messages]

    assert (changed(49, 52), changed(48, 49), changed(51, 48), changed(30, None)) == (["hello"], [], [], ["hello"])


# Stages --------------------------------------------------------------------------------------------------------------

STAGES = LIFECYCLE.replace(
    """  - {name: onboarding, exit_when: milestone.first_value.reached}
  - {name: adoption}
""",
    """  - {name: onboarding, exit_when: milestone.first_value.reached, at_most: 30d}
  - {name: adoption}
  - {name: renewal, enter_when: account.renewal_date | days_until <= 90, exit_when: account.renewal_date | days_until > 90, next: adoption}
""",
)


def test_stages_are_entered_and_left_by_their_rules_and_overdue_by_the_clock():
    book = make_book(f"trigger: {{stage_overdue: onboarding}}\nsteps: [{MAIL}]", lifecycle=STAGES)
    account = react(book, make_account(), make_event("group", "0s", None, "group", renewal_date=at("200d").isoformat())).account
    account, done = until(book, account, "40d")
    assert made(done) == ["hello"]
    assert account.stage == "onboarding"
    account = react(book, account, make_event("report_shared", "41d")).account
    assert account.stage == "adoption"
    account, _ = until(book, account, "112d")
    assert account.stage == "renewal"
    account = react(book, account, make_event("group", "113d", None, "group", renewal_date=at("565d").isoformat())).account
    assert account.stage == "adoption"


def test_a_stage_may_end_by_the_clock():
    book = make_book(lifecycle=STAGES.replace("at_most: 30d", "at_most: 30d, then: next"))
    account = react(book, make_account(), make_event("anything", "0s")).account
    account, done = until(book, replace(account, due_at=at("1h")), "31d")
    assert account.stage == "adoption"
    assert [one.name for reaction in done for one in reaction.derived] == [
        "nurture.milestone_overdue",
        "nurture.stage_overdue",
        "nurture.stage_entered",
    ]


def test_stages_that_lead_back_to_each_other_are_cut():
    onboarding, adoption = "{name: onboarding, exit_when: milestone.first_value.reached}", "{name: adoption}"
    back = LIFECYCLE.replace(onboarding, "{name: onboarding, exit_when: account.touch is missing}")
    book = make_book(lifecycle=back.replace(adoption, "{name: adoption, exit_when: account.touch is missing, next: onboarding}"))
    done = react(book, make_account(stage=None), make_event("group", "0s", None, "group", plan="x"))
    assert (done.account.stage, reasons(done)) == ("adoption", ["stage_loop"])


# Steps ---------------------------------------------------------------------------------------------------------------


def test_a_split_is_sticky_and_follows_its_weights():
    story = """
trigger: {event: signed_up}
reentry: {after: 1s}
steps:
  - id: ab
    split:
      - {name: short, weight: 1, steps: [{id: short, email: short.mjml, subject: S}]}
      - {name: long, weight: 3, steps: [{id: long, email: long.mjml, subject: L}]}
"""
    book = make_book(story)
    drawn = []
    for number in range(400):
        account = replace(make_account(), key=f"account-{number}")
        [step] = [one.step for one in react(book, account, make_event("signed_up")).messages]
        assert [one.step for one in react(book, account, make_event("signed_up", "1h")).messages] == [step]
        drawn.append(step)
    assert 60 <= drawn.count("short") <= 140


def test_an_alert_a_task_and_a_webhook_are_made_once_with_what_they_read():
    story = """
trigger: {event: signed_up}
steps:
  - {id: tell, alert: {to: owner, text: "{{ account.name }} has {{ account.seats }} seats"}}
  - {id: call, task: {title: "Call {{ account.name }}", due: 2d}}
  - {id: crm, webhook: {to: crm, data: {plan: "{{ account.traits.plan }}", level: 3}}}
"""
    lifecycle = LIFECYCLE + "channels: {crm: The CRM}\n"
    book = make_book(story, lifecycle=lifecycle)
    account = make_account(name="Acorn", owner_email="sam@example.com")
    done = react(book, account, make_event("signed_up"))
    assert [(one.kind, one.step, one.state) for one in done.effects] == [
        ("alert", "tell", "due"),
        ("task", "call", "due"),
        ("webhook", "crm", "due"),
    ]
    assert done.effects[0].values == {"account": {"name": "Acorn"}}
    assert len({one.id for one in done.effects}) == 3
    assert done.enrollments[-1].state == "finished"
    again = react(book, account, make_event("signed_up"))
    assert [one.id for one in again.effects] == [one.id for one in done.effects]


@pytest.mark.parametrize(
    ("holdout", "mode", "state", "reason"), [("99.99999%", "live", "ghosted", "held_out"), ("0%", "shadow", "shadow", "shadow")]
)
def test_staff_effects_of_the_held_out_and_of_the_shadow_are_only_kept(holdout, mode, state, reason):
    story = f"""
trigger: {{event: signed_up}}
holdout: {holdout}
steps:
  - {{id: tell, alert: {{text: Look}}}}
  - {{id: mark, set: {{account.traits.plan: gold}}}}
"""
    done = react(make_book(story, mode=mode), make_account(), make_event("signed_up"))
    assert [one.state for one in done.effects] == [state]
    assert reasons(done).count(reason) == 2
    assert "plan" not in done.account.traits


def test_set_says_it_as_the_product_would():
    story = """
trigger: {event: signed_up}
enrolls: contact
steps:
  - {id: mark, set: {account.traits.plan: gold, contact.traits.title: Champion}}
  - id: see
    branch:
      - {when: account.traits.plan == "gold", steps: [{id: yes, email: yes.mjml, subject: Y}]}
"""
    done = react(make_book(story), make_account(), make_event("signed_up"))
    assert (done.account.traits["plan"], done.account.contacts["ada"].traits["title"]) == ("gold", "Champion")
    assert {(one.kind, one.contact) for one in done.derived} == {("group", None), ("identify", "ada")}
    older = make_event("group", "-1h", None, "group", plan="old")
    assert react(make_book(story), done.account, older).account.traits["plan"] == "gold"


def test_a_step_repeats_without_drift_and_an_outage_collapses():
    story = """
trigger: {event: signed_up}
steps:
  - id: remind
    alert: {text: Still waiting}
    repeat: {every: 7d, until: milestone.setup_completed.reached, at_most: 5}
  - {id: last, email: last.mjml, subject: Last}
"""
    book = make_book(story)
    account = react(book, make_account(), make_event("signed_up")).account
    account, done = until(book, account, "15d")
    times = [one.created_at for reaction in done for one in reaction.effects]
    assert times == [at("7d"), at("14d")]
    assert [one.occurrence for reaction in done for one in reaction.effects] == [2, 3]
    # Nothing ran from day 15 to day 40: the time of day 21 is made up for once, and the next one is on day 42.
    [enrollment] = account.enrollments
    late = react(book, account, Timer(enrollment.due_at, enrollment.id, at("40d")))
    assert [one.occurrence for one in late.effects] == [4]
    assert late.account.enrollments[0].due_at == at("42d")
    account = react(book, late.account, make_event("setup_completed", "41d")).account
    account, done = until(book, account, "43d")
    assert made(done) == ["last"]


def test_a_mail_repeats_when_it_is_settled():
    story = "trigger: {event: signed_up}\nsteps: [{id: digest, email: digest.mjml, subject: D, repeat: {every: 30d, at_most: 3}}]"
    book = make_book(story)
    done = react(book, make_account(), make_event("signed_up"))
    account, sent = done.account, [one.id for one in done.messages]
    for offset in ("1h", "30d1h", "60d1h"):
        account = react(book, account, settled(account, offset)).account
        account, reactions = until(book, account, "60d" if offset != "1h" else "30d")
        sent += [message.id for one in reactions for message in one.messages]
    assert len(sent) == len(set(sent)) == 3
    assert account.enrollments == ()


def test_a_reminder_goes_to_those_who_have_not_answered():
    story = """
trigger: {event: signed_up}
recipients: {roles: [admin, user], pick: all}
steps:
  - {id: ask, survey: nps, question: How?, email: ask.mjml, subject: Ask}
  - {id: pause, wait: 5d}
  - {id: again, email: again.mjml, subject: Again, reminds: ask}
  - {id: end, wait: 1d}
"""
    book = make_book(story)
    account = make_account(contacts=people(person("ada", "admin"), person("ben", "user"), person("cleo", "user")))
    done = react(book, account, make_event("signed_up"))
    account, enrollment = done.account, done.account.enrollments[0]
    assert {one.contact for one in done.messages} == {"ada", "ben", "cleo"}
    for one in done.messages:
        properties = {"enrollment": str(enrollment.id), "message": str(one.id), "step": "ask", "outcome": "sent"}
        account = react(book, account, own("nurture.message_settled", "1m", properties)).account
    answer = {"enrollment": str(enrollment.id), "step": "ask", "score": 9, "survey": "nps"}
    account = react(book, account, own("nurture.survey_responded", "1d", answer, "ben")).account
    late = make_event("identify", "2d", "dora", "identify", email="dora@example.com", roles=["user"])
    account = react(book, replace(account, contacts={**account.contacts, "dora": Contact("dora", 99)}), late).account
    account, reactions = until(book, account, "6d")
    assert [message.contact for one in reactions for message in one.messages] == ["ada", "cleo"]


def test_a_reminder_of_nothing_passes():
    story = """
trigger: {event: signed_up}
steps:
  - {id: ask, survey: nps, question: How?, email: ask.mjml, subject: Ask}
  - {id: again, email: again.mjml, subject: Again, reminds: ask}
"""
    book = make_book(story)
    account = react(book, make_account(), make_event("signed_up")).account
    [enrollment] = account.enrollments
    answer = {"enrollment": str(enrollment.id), "step": "ask", "score": 9, "survey": "nps"}
    account = react(book, account, own("nurture.survey_responded", "1m", answer, "ada")).account
    done = react(book, account, settled(account, "2m"))
    assert "nobody_to_remind" in reasons(done)
    assert done.account.enrollments == ()


def test_the_thanks_go_to_whoever_answered():
    story = """
trigger: {event: signed_up}
recipients: {roles: [admin, user], pick: all}
steps:
  - {id: ask, survey: nps, question: How?, email: ask.mjml, subject: Ask}
  - {id: answer, wait_for: {survey: ask, timeout: 9d}}
  - {id: thanks, email: thanks.mjml, subject: Thanks, recipients: {pick: responder}}
"""
    book = make_book(story)
    account = make_account(contacts=people(person("ada", "admin"), person("ben", "user")))
    done = react(book, account, make_event("signed_up"))
    account, enrollment = done.account, done.account.enrollments[0]
    for one in done.messages:
        properties = {"enrollment": str(enrollment.id), "message": str(one.id), "step": "ask", "outcome": "sent"}
        account = react(book, account, own("nurture.message_settled", "1m", properties)).account
    answer = {"enrollment": str(enrollment.id), "step": "ask", "score": 9, "survey": "nps"}
    done = react(book, account, own("nurture.survey_responded", "1d", answer, "ben"))
    assert [(one.step, one.contact) for one in done.messages] == [("thanks", "ben")]


def test_a_wait_until_a_date_at_a_clock_time_in_the_owners_zone():
    story = """
trigger: {event: signed_up}
steps:
  - {id: before, wait: {until: account.renewal_date, offset: -30d, at: "09:00", if_past: exit}}
  - {id: hello, email: hello.mjml, subject: Hello}
"""
    account = make_account(renewal_date=at("100d"), owner_timezone="America/New_York")
    done = react(make_book(story), account, make_event("signed_up"))
    due = done.account.enrollments[0].due_at
    assert (due.date(), due.hour) == (at("70d").date(), 13)  # summer time in New York
    [line] = [one for one in done.decisions if one.gate == "wait"]
    assert (line.evidence["zone"], line.evidence["zone_of"]) == ("America/New_York", "owner")


# Steering ------------------------------------------------------------------------------------------------------------

WAITING = """
trigger: {event: signed_up}
steps:
  - {id: pause, wait: 3d}
  - {id: hello, email: hello.mjml, subject: Hello}
  - {id: rest, wait: 9d}
"""


def steered(enrollment: UUID, **properties) -> Event:
    return own(STEERED, "1d", {"enrollment": str(enrollment), "reason": "steered", **properties})


def test_an_operator_ends_skips_and_hastens():
    book = make_book(WAITING)
    account = react(book, make_account(), make_event("signed_up")).account
    ident = account.enrollments[0].id
    done = react(book, account, steered(ident, action="exit"))
    assert (done.enrollments[0].state, done.enrollments[0].end_reason) == ("exited", "steered")
    done = react(book, account, steered(ident, action="go"))
    assert [one.step for one in done.messages] == ["hello"]
    done = react(book, account, steered(ident, action="skip"))
    assert (done.messages, done.account.enrollments[0].step) == ((), "rest")
    for nonsense in ({"action": "fly"}, {"action": "move", "version": "x"}, {"action": "move", "version": 99}, {}):
        done = react(book, account, steered(ident, **nonsense))
        assert reasons(done) == ["cannot_steer"]
        assert done.account.enrollments == account.enrollments


def test_moving_to_another_version_keeps_the_place_and_takes_its_times():
    book = make_book(WAITING, WAITING.replace("3d", "5d").replace("{id: rest, wait: 9d}", "{id: other, wait: 1d}"), keys=["x/c", "x/c"])
    account = react(book, make_account(), make_event("signed_up")).account
    ident = account.enrollments[0].id
    book = make_book(WAITING, WAITING.replace("3d", "5d").replace("{id: rest, wait: 9d}", "{id: other, wait: 1d}"), keys=["x/c", "x/c"])
    first = next(one.version for one in account.enrollments)
    other = next(number for number in book.versions if number != first)
    done = react(book, account, steered(ident, action="move", version=other, step="pause"))
    [moved] = done.account.enrollments
    span = {1: "3d", 2: "5d"}[other]
    assert (moved.version, moved.step, moved.due_at) == (other, "pause", at(span))
    done = react(book, account, steered(ident, action="move", version=other, step="hello"))
    assert [(one.step, one.version) for one in done.messages] == [("hello", other)]
    done = react(book, account, steered(ident, action="move", version=other, step=None))
    assert done.enrollments[-1].state == "exited"


def test_ids_name_the_source_so_that_two_sources_never_collide():
    book = make_book(f"trigger: {{event: signed_up}}\nreentry: {{after: 1s}}\nsteps: [{MAIL}]")
    event = make_event("signed_up")
    one, other = (react(book, make_account(), replace(event, source=source)).messages[0] for source in (1, 2))
    assert one.id != other.id
    assert one.id == message_id(one.enrollment, "hello", 1, "ada")


def test_candidates_of_one_account_are_bounded():
    book = make_book(f'trigger: {{event: signed_up}}\naudience: account.traits.plan == "pro"\nsteps: [{MAIL}]')
    account = make_account()
    for number in range(130):
        event = replace(make_event("signed_up", "1s"), message_id=f"m{number}")
        reaction = react(book, account, event)
        account = reaction.account
    assert len(account.candidates) == 100
    assert account.candidates[0]["entry"]["message_id"] == "m30"


def test_time_passing_is_looked_at_daily_and_never_in_the_past():
    account = react(make_book(), make_account(), make_event("anything")).account
    account = react(make_book(), replace(account, due_at=None), make_event("group", "10d", None, "group", plan="x")).account
    assert at("10d") < account.due_at <= at("10d") + timedelta(days=1)


# Answers by mail -------------------------------------------------------------------------------------------------------

OFFER = """
trigger: {event: signed_up}
steps: [{id: offer, email: offer.mjml, subject: Hm}, {id: rest, wait: 4d}, {id: more, email: more.mjml, subject: More}]
"""


def replied(account: Account, offset: str, step: str = "offer", contact: str = "ada") -> Event:
    [enrollment] = account.enrollments
    properties = {"campaign": enrollment.campaign, "enrollment": str(enrollment.id), "step": step, "text": "Yes"}
    return own("nurture.email_replied", offset, properties, contact)


def test_a_campaign_stops_when_somebody_writes_back_to_it():
    stops = 'exit_when: event.name == "nurture.email_replied" and event.properties.campaign == enrollment.campaign\n'
    book = make_book(stops + OFFER, keys=["x/c1"])
    account = react(book, make_account(), make_event("signed_up")).account
    account = react(book, account, settled(account, "1m")).account
    other = own("nurture.email_replied", "1d", {"campaign": "x/other", "enrollment": "x", "step": "offer"}, "ada")
    account = react(book, account, other).account
    assert len(account.enrollments) == 1
    done = react(book, account, replied(account, "2d"))
    assert done.account.enrollments == () and "left" in reasons(done)


def test_a_step_waits_for_the_answer_to_one_mail_of_its_own():
    story = """
trigger: {event: signed_up}
steps:
  - {id: offer, email: offer.mjml, subject: Hm}
  - {id: heard, wait_for: {reply: offer, timeout: 4d}, on_timeout: [{id: again, email: again.mjml, subject: Again, reminds: offer}]}
  - {id: end, wait: 9d}
"""
    book = make_book(story)
    account = react(book, make_account(), make_event("signed_up")).account
    account = react(book, account, settled(account, "1m")).account
    stranger = own("nurture.email_replied", "1d", {"enrollment": "another", "step": "offer"}, "ada")
    account = react(book, account, stranger).account
    assert account.enrollments[0].step == "heard"
    account = react(book, account, replied(account, "1d", step="end")).account
    assert account.enrollments[0].step == "heard"
    done = react(book, account, replied(account, "2d"))
    assert done.account.enrollments[0].step == "end" and done.messages == ()
    silent, reactions = until(book, account, "5d")
    assert made(reactions) == ["again"]


def test_whoever_answered_by_mail_is_not_reminded():
    story = """
trigger: {event: signed_up}
steps:
  - {id: offer, email: offer.mjml, subject: Hm}
  - {id: rest, wait: 4d}
  - {id: again, email: again.mjml, subject: Again, reminds: offer}
"""
    book = make_book(story)
    account = react(book, make_account(), make_event("signed_up")).account
    account = react(book, account, settled(account, "1m")).account
    account = react(book, account, replied(account, "1d")).account
    account, reactions = until(book, account, "5d")
    assert made(reactions) == [] and account.enrollments == ()


def test_an_answer_or_a_dead_address_starts_a_campaign():
    for name, where in (
        ("nurture.email_replied", "event.properties.step == 'offer'"),
        ("nurture.email_bounced", "event.properties.sort == 'hard'"),
    ):
        book = make_book(f'trigger: {{event: {name}, where: "{where}"}}\nsteps: [{MAIL}]')
        done = react(book, make_account(), own(name, "1d", {"step": "offer", "sort": "hard"}, "ada"))
        assert [one.step for one in done.messages] == ["hello"]
        assert react(book, make_account(), own(name, "1d", {"step": "other", "sort": "soft"}, "ada")).messages == ()
