"""Names, values and the order of steps: each wrong one is a problem with its place and the nearest right name."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.flow.check import check
from app.rules.fields import Problem
from tests.stories import write_campaigns

LIFECYCLE = """
timezone: UTC
brand: {name: Sample, postal_address: "1 Sample Street"}
senders: {default: {name: Sample, email: hello@example.com}, csm: {name: Sample, email: csm@example.com, owner: true}}
topics: {product: {name: Product}, survey: {name: Surveys}}
roles: {admin: Admin, champion: Champion}
channels: {slack: Team, crm: CRM}
stages:
  - {name: onboarding, exit_when: milestone.first_value.reached}
  - {name: adoption, at_most: 90d}
milestones:
  setup_completed: {event: setup_completed}
  first_value: {event: report_shared, expected_within: 14d}
traits: {account: {plan: text, partner: boolean, sites: number, signed_on: date, tags: list}, contact: {title: text, trained_on: date}}
usage: {logins: {event: logged_in, contacts: true}, reports: {event: viewed}}
health:
  groups:
    - {name: engagement, weight: 1, measures: [{name: logins, metric: usage.logins.last_30d, worst: 0, best: 9}]}
"""
CAMPAIGN = """
name: Good
stage: onboarding
topic: product
trigger: {event: signed_up}
steps:
  - {id: hello, email: hello.mjml, subject: Hello}
"""


def found(tmp_path: Path, trigger: str = "", steps: str = "", more: str = "", lifecycle: str = LIFECYCLE) -> list[Problem]:
    """The problems of a campaign with these parts; its own steps come first."""
    text = CAMPAIGN.replace("{event: signed_up}", trigger or "{event: signed_up}") + "".join(f"  - {one}\n" for one in steps.splitlines())
    other = CAMPAIGN.replace("Hello}", "Hello}\n  - {id: ask, survey: nps, question: How?, email: ask.mjml, subject: Hello}")
    root = write_campaigns(tmp_path / "c", {"onboarding/x": text + more, "onboarding/other": other}, lifecycle=lifecycle)
    return check(root)[1]


TRIGGERS = [
    ("{milestone: setup_complete}", "milestone setup_complete is not declared", "setup_completed"),
    ("{milestone_overdue: first_valu}", "milestone first_valu is not declared", "first_value"),
    ("{milestone_overdue: setup_completed}", "has no expected_within, so it never falls overdue", None),
    ("{stage: adoptoin}", "stage adoptoin is not declared", "adoption"),
    ("{stage_overdue: onbording}", "stage onbording is not declared", "onboarding"),
    ("{stage_overdue: onboarding}", "has no at_most, so it is never overdue", None),
    ("{health: redd}", "'redd' is not one of", "red"),
    ("{date: {field: account.renewal_dat}}", "account.renewal_dat is not a name", "account.renewal_date"),
    ("{date: {field: account.traits.plan}}", "account.traits.plan is not a date, but text", None),
    ("{date: {field: account.traits.sites}}", "is not a date, but number", None),
    ("{date: {field: contact.roles}}", "is not a date, but list", None),
    ("{date: {field: event.occurred_at}}", "is not known before a campaign begins", None),
    ("{usage: {metric: login, drop: 50%}}", "usage metric login is not declared", "logins"),
    ("{inactive: {role: admn, days: 14}}", "role admn is not declared", "admin"),
    ("{role_vacant: champoin}", "role champoin is not declared", "champion"),
    ("{contact_added: {roles: [admin, champon]}}", "role champon is not declared", "champion"),
    ("{campaign: {campaign: onboarding/othr}}", "there is no campaign onboarding/othr; there are: onboarding/other", "onboarding/other"),
    ("{campaign: {campaign: onboarding/x}}", "a campaign cannot start itself", None),
    ("{campaign: {campaign: onboarding/other, result: goal}}", "has no goal that it could meet", None),
    ("{survey: {type: npss}}", "'npss' is not one of", "nps"),
    ("{evnt: signed_up}", "trigger.evnt: is not known here", "event"),
    ("{event: x, where: event.propertys.a == 1}", "event.propertys.a is not a name", "event.properties"),
]


@pytest.mark.parametrize(("trigger", "said", "fix"), TRIGGERS, ids=[one[0] for one in TRIGGERS])
def test_triggers(tmp_path, trigger, said, fix):
    problems = found(tmp_path, trigger)
    assert [(one.line, one.fix) for one in problems] == [(5, fix)], problems
    assert said in problems[0].message and problems[0].column >= 11


@pytest.mark.parametrize(
    "trigger",
    [
        "{date: {field: account.renewal_date, offset: -90d}}",
        "{date: {field: account.traits.signed_on}}",
        "{date: {field: contact.traits.trained_on}}",
        "{date: {field: stage.entered_at, offset: 30d}}",
        "{milestone_overdue: first_value}",
        "{stage_overdue: adoption}",
        "{campaign: {campaign: onboarding/other, result: ended}}",
        "{health: {below: 50}}",
        "{contact_added: true}",
        "{manual: true}",
    ],
)
def test_triggers_that_are_right(tmp_path, trigger):
    assert found(tmp_path, trigger) == []


def test_health_needs_a_model(tmp_path):
    bare = LIFECYCLE[: LIFECYCLE.index("health:")]
    assert "no health model" in found(tmp_path, "{health: red}", lifecycle=bare)[0].message
    steps = "{id: wait, wait_for: {health: green, timeout: 3d}}"
    assert "no health model" in found(tmp_path / "b", steps=steps, lifecycle=bare)[0].message


STEPS = [
    ("{id: a, email: hello.mjml, subject: Hello, topic: prodct}", "topic prodct is not declared", "product"),
    ("{id: a, email: hello.mjml, subject: Hello, recipients: {roles: [admin, bos]}}", "role bos is not declared", None),
    ("{id: a, email: helo.mjml, subject: Hello}", "helo.mjml is not in the folder", "hello.mjml"),
    ('{id: a, email: hello.mjml, subject: "{{ contact.frist_name }}"}', "contact.frist_name is not a name", "contact.first_name"),
    ('{id: a, email: hello.mjml, subject: "{{ contact.first_name | uper }}"}', "there is no filter named uper", "upper"),
    ('{id: a, email: hello.mjml, subject: "{{ 9**9 }}"}', "templates do not know **", None),
    ('{id: a, email: hello.mjml, subject: "{{ mail.why }}"}', "mail.why is not known here", None),
    ('{id: a, email: hello.mjml, subject: "{{ brand.nme }}"}', "brand.nme is not a name", "brand.name"),
    ('{id: a, survey: nps, question: "{{ accont.name }}", email: hello.mjml, subject: x}', "accont is not a name", "account"),
    ("{id: a, email: hello.mjml, subject: x, reminds: helo}", "helo is no mail step", "hello"),
    ("{id: a, email: hello.mjml, subject: x, reminds: a}", "a never comes before this step", None),
    ("{id: a, wait_for: {milestone: first_valeu, timeout: 3d}}", "milestone first_valeu is not declared", "first_value"),
    ("{id: a, wait_for: {stage: adopton, timeout: 3d}}", "stage adopton is not declared", "adoption"),
    ("{id: a, wait_for: {survey: hello, timeout: 3d}}", "hello is no survey step", None),
    ("{id: a, wait_for: {click: hallo, timeout: 3d}}", "hallo is no mail step", "hello"),
    ("{id: a, wait_for: {event: x, where: event.x, timeout: 3d}}", "event.x is not a name", None),
    ("{id: a, wait_for: {event: x, timout: 3d}}", "timout: is not known here", "timeout"),
    ("{id: a, wait: {until: account.traits.plan, if_past: skip}}", "account.traits.plan is not a date, but text", None),
    ("{id: a, wait: {until: account.renewaldate, if_past: skip}}", "account.renewaldate is not a name", "account.renewal_date"),
    ("{id: a, wait: {dayz: 3}}", "dayz: is not known here", "days"),
    ("{id: a, alert: {to: slck, text: x}}", "channel slck is not declared", "slack"),
    ('{id: a, alert: {text: "{{ account.nam }}"}}', "account.nam is not a name", "account.name"),
    ('{id: a, alert: {text: "{{ brand.name }}"}}', "brand.name is for mails only", None),
    ('{id: a, alert: {text: "{% set x = 1 %}"}}', "templates do not know {% set %}", None),
    ('{id: a, task: {title: "Call {{ account.traits.pln }}"}}', "account.traits.pln is not declared", "account.traits.plan"),
    ('{id: a, task: {title: Call, note: "{{ usage.login.total }}"}}', "usage metric login is not declared", "usage.logins"),
    ("{id: a, webhook: {to: cmr}}", "channel cmr is not declared", "crm"),
    ('{id: a, webhook: {to: crm, data: {x: "{{ milestone.frist.reached }}"}}}', "milestone frist is not declared", None),
    ("{id: a, set: {account.traits.plna: pro}}", "account.traits.plna is not declared", "account.traits.plan"),
    ("{id: a, set: {account.traits.partner: 'yes'}}", "is declared as boolean, and 'yes' is none", None),
    ("{id: a, set: {account.traits.sites: many}}", "is declared as number", None),
    ("{id: a, set: {account.traits.sites: true}}", "is declared as number", None),
    ("{id: a, set: {account.traits.plan: 3}}", "is declared as text", None),
    ("{id: a, set: {account.traits.signed_on: soon}}", "is declared as date", None),
    ("{id: a, set: {account.traits.tags: x}}", "is a list, which a step cannot set", None),
    ("{id: a, set: {account.name: x}}", "does not fit here; write it as a trait", None),
    ("{id: a, email: hello.mjml, subject: x, repeat: {every: 7d, until: stag.name == 'x'}}", "stag.name is not a name", "stage"),
    ("{id: a, email: hello.mjml, subject: x, recipients: {pick: responder}}", "nobody has answered a survey before a", None),
    ("{id: a, email: hello.mjml, subject: x, recipients: {pick: frist}}", "'frist' is not one of", "first"),
    ("{id: a, branch: [{when: health.scor > 3, steps: [{id: b, exit: x}]}]}", "health.scor is not a name", "health.score"),
    ("{id: a, split: [{name: b, steps: [{id: c, wait_for: {stage: adoptio, timeout: 1d}}]}, {name: d}]}", "stage adoptio", "adoption"),
    ("{id: a, brnch: []}", "a step needs an id and one of", "branch"),
    ("{id: hello, wait: 1d}", "the step id hello is used twice, first in line 7", None),
]


@pytest.mark.parametrize(("step", "said", "fix"), STEPS, ids=[one[0] for one in STEPS])
def test_steps(tmp_path, step, said, fix):
    (tmp_path / "c" / "onboarding" / "x").mkdir(parents=True)
    problems = found(tmp_path, steps=step)
    if "helo.mjml" in step:  # which the story wrote
        (tmp_path / "c/onboarding/x/helo.mjml").unlink()
        problems = check(tmp_path / "c")[1]
    assert [(one.file, one.line, one.fix) for one in problems] == [("onboarding/x/campaign.yaml", 8, fix)], problems
    assert said in problems[0].message and problems[0].column >= 5


RIGHT = """{id: ask, survey: nps, question: "{{ account.name }}?", email: ask.mjml, subject: "{{ brand.name }} asks"}
{id: answered, wait_for: {survey: ask, timeout: 3d}, on_timeout: [{id: again, email: again.mjml, subject: x, reminds: ask}]}
{id: thanks, email: thanks.mjml, subject: x, recipients: {pick: responder}}
{id: tell, alert: {to: slack, text: "{{ account.name }}: {{ response.score }}"}}
{id: tell-one, alert: {to: someone@example.com, text: x}}
{id: mark, set: {account.traits.plan: pro, account.traits.partner: true, account.traits.sites: 3, account.traits.signed_on: 2026-03-01}}
{id: unmark, set: {account.traits.plan: null}}
{id: until, wait: {until: event.properties.at, if_past: continue}}
{id: until-then, wait: {until: contact.traits.trained_on, if_past: skip}}
{id: call, task: {title: "Call {{ account.owner.name }}"}}
{id: hook, webhook: {to: crm, data: {score: "{{ health.score }}", n: 3}}}"""


def test_steps_that_are_right(tmp_path):
    assert found(tmp_path, steps=RIGHT) == []


@pytest.mark.parametrize(
    ("more", "column", "said", "fix"),
    [
        ("sender: defualt", 9, "sender defualt is not declared", "default"),
        ("goal: {milestone: first_vlue}", 19, "milestone first_vlue is not declared", "first_value"),
        ("goal: {stage: adoptn}", 15, "stage adoptn is not declared", "adoption"),
        ("goal: {wen: x}", 8, "goal.wen: is not known here", "when"),
        ("prioritty: 3", 1, "prioritty: is not known here", "priority"),
        ("mode: lvie", 7, "'lvie' is not one of", "live"),
        ("reentry: {aftr: 3d}", 11, "reentry.aftr: is not known here", "after"),
        ("reentry: nevr", 10, "'nevr' is not one of 'never'", "never"),
        ("recipients: {roles: [admin, champin]}", 29, "role champin is not declared", "champion"),
        ("send_window: {day: mon}", 15, "send_window.day: is not known here", "days"),
        ("audience: usage.logins.lst_7d > 3", 11, "is not a window", None),
        ("expires: 3 days", 10, "'3 days' is not a duration; write it like 3d", None),
        ('name2: "x"', 1, "name2: is not known here", "name"),
    ],
)
def test_settings(tmp_path, more, column, said, fix):
    problems = found(tmp_path, more=more + "\n")
    assert [(one.line, one.column, one.fix) for one in problems] == [(8, column, fix)], problems
    assert said in problems[0].message


@pytest.mark.parametrize(
    ("wrong", "right", "said", "fix"),
    [
        ("{name: adoption, at_most: 90d, next: onbording}", "{name: adoption, at_most: 90d}", "leads to onbording", "onboarding"),
        (
            "enter_when: milestone.first.reached",
            "exit_when: milestone.first_value.reached",
            "milestone first is not declared",
            "milestone.first_value",
        ),
        ("event: viewed, where: event.propertie.x}", "event: viewed}", "event.propertie.x is not a name", "event.properties"),
        ("metric: usage.login.last_30d", "metric: usage.logins.last_30d", "is not a metric", "usage.logins.last_30d"),
        ("sites: nubmer", "sites: number", "'nubmer' is not one of", "number"),
        ("channels: {owner: x, slack: Team, crm: CRM}", "channels: {slack: Team, crm: CRM}", "the channel owner exists always", None),
        ("senders: {defalt: {", "senders: {default: {", "senders needs one called default", None),
        ("timezone: Europe/Berln", "timezone: UTC", "is not a time zone", None),
        (
            "channels: {}\ncaps: [{topic: prodct, at_most: 2, within: 7d}]",
            "channels: {slack: Team, crm: CRM}",
            "prodct is not a topic",
            "product",
        ),
        ("roles: {Admin: x}", "roles: {admin: Admin, champion: Champion}", "small letters, digits and _", None),
    ],
)
def test_the_lifecycle(tmp_path, wrong, right, said, fix):
    assert LIFECYCLE.count(right) == 1
    text = LIFECYCLE.replace(right, wrong)
    problems = [one for one in found(tmp_path, lifecycle=text) if one.file == "lifecycle.yaml"]
    assert [one.fix for one in problems] == [fix] and said in problems[0].message, problems
    place = text.index(wrong)
    assert text[:place].count("\n") + 1 <= problems[0].line <= text[: place + len(wrong)].count("\n") + 1 and problems[0].column > 1


# The way through the steps ---------------------------------------------------------------------------------------------

UNREACHABLE = [
    ("{id: out, exit: x}\n{id: late, wait: 1d}", "nobody comes to late: every way ends at out"),
    (
        "{id: f, branch: [{when: account.seats > 1, steps: [{id: a, exit: x}]}, {else: [{id: b, exit: x}]}]}\n{id: late, wait: 1d}",
        "nobody comes to late",
    ),
    (
        "{id: f, split: [{name: a, steps: [{id: b, exit: x}]}, {name: c, steps: [{id: d, exit: x}]}]}\n{id: late, wait: 1d}",
        "nobody comes to late",
    ),
    ("{id: f, branch: [{when: account.seats > 1, steps: [{id: a, exit: x}, {id: late, wait: 1d}]}]}", "nobody comes to late"),
    ("{id: f, branch: [{when: 1 == 1, steps: [{id: a, wait: 1d}]}, {else: [{id: b, wait: 1d}]}]}", "the condition of arm 1 is always true"),
    ("{id: f, branch: [{when: 1 == 2, steps: [{id: a, wait: 1d}]}]}", "its condition is never true"),
    (
        "{id: f, branch: [{when: account.seats > 1, steps: [{id: a, wait: 1d}]}, {when: account.seats > 1, steps: [{id: b, wait: 1d}]}]}",
        "arm 1 asks the same",
    ),
]


@pytest.mark.parametrize(("steps", "said"), UNREACHABLE)
def test_steps_that_nobody_reaches(tmp_path, steps, said):
    [problem] = found(tmp_path, steps=steps)
    assert problem.rule == "reach" and said in problem.message and problem.column > 5


@pytest.mark.parametrize(
    "steps",
    [
        "{id: f, branch: [{when: account.seats > 1, steps: [{id: a, exit: x}]}]}\n{id: late, wait: 1d}",
        "{id: f, split: [{name: a, steps: [{id: b, exit: x}]}, {name: c}]}\n{id: late, wait: 1d}",
        "{id: w, wait_for: {milestone: first_value, timeout: 1d}, on_timeout: [{id: out, exit: x}]}\n{id: late, wait: 1d}",
        "{id: f, branch: [{when: account.seats > 1, steps: [{id: a, exit: x}]}, {else: [{id: b, wait: 1d}]}]}\n{id: late, wait: 1d}",
    ],
)
def test_steps_that_somebody_may_reach(tmp_path, steps):
    assert found(tmp_path, steps=steps) == []


def test_a_step_of_another_arm_never_comes_before(tmp_path):
    arms = "{name: a, steps: [{id: ask, survey: nps, question: x, email: ask.mjml, subject: x}]}, "
    arms += "{name: b, steps: [{id: again, email: again.mjml, subject: x, reminds: ask}]}"
    [problem] = found(tmp_path, steps=f"{{id: f, split: [{arms}]}}")
    assert "ask never comes before this step" in problem.message and problem.fix is None


# Warnings --------------------------------------------------------------------------------------------------------------


def test_what_works_and_hardly_as_meant_is_a_warning(tmp_path):
    steps = "{id: w, wait: 10d}\n{id: v, wait_for: {milestone: first_value, timeout: 5d}}"
    more = "goal: {milestone: first_value, within: 14d}\nenrolls: contact\nrecipients: {roles: [admin]}\n"
    assert found(tmp_path, steps=steps, more=more) == []
    root = tmp_path / "c"
    (root / "onboarding/x/old.mjml").write_text("x")
    (root / "campaign.yaml").write_text("x")
    (root / "onboarding/x/campaign.yml").write_text("x")
    text = (root / "onboarding/x/campaign.yaml").read_text().replace("subject: Hello}", "subject: Hello, subjects: {de: Hallo}}")
    (root / "onboarding/x/campaign.yaml").write_text(text)
    campaigns, problems = check(root)
    assert problems == [] and len(campaigns.folders) == 2
    said = [str(one) for one in campaigns.warnings]
    for part in (
        "campaign.yaml:1:1: warning: is not read: a campaign stands in a folder of a folder",
        "onboarding/x/campaign.yml:1:1: warning: is not read; call it campaign.yaml",
        "onboarding/x/campaign.yaml:7:63: warning: there is no template hello.de.mjml",
        "onboarding/x/campaign.yaml:10:40: warning: the steps may take 15 days, but the goal only counts within 2 weeks",
        "onboarding/x/campaign.yaml:12:1: warning: is not looked at",
        "onboarding/x/old.mjml:1:1: warning: no step sends this template",
    ):
        assert any(one.startswith(part) for one in said), (part, said)
    assert len(said) == 6


def test_b07_transactional_mail_from_the_address_of_other_mail_is_a_warning(tmp_path):
    receipt = CAMPAIGN.replace("topic: product", "topic: transactional")
    both = {"onboarding/good": CAMPAIGN, "onboarding/receipt": receipt}
    warned = (
        "onboarding/receipt/campaign.yaml:4:1: warning: transactional mail comes from hello@example.com, as does mail of onboarding/good"
    )
    campaigns, _ = check(write_campaigns(tmp_path / "one", both, lifecycle=LIFECYCLE))
    assert [str(one) for one in campaigns.warnings if one.rule == "sender"][0].startswith(warned)
    apart = {**both, "onboarding/receipt": receipt + "sender: csm\n"}
    for number, good in enumerate((apart, {"onboarding/receipt": receipt}, {"onboarding/good": CAMPAIGN})):
        campaigns, _ = check(write_campaigns(tmp_path / f"good{number}", good, lifecycle=LIFECYCLE))
        assert [one for one in campaigns.warnings if one.rule == "sender"] == []


@pytest.mark.parametrize("name", ["nurture.email_opened", "Email Opened", "email_open", "E-Mail opened", "Opened Email", "opened an email"])
def test_t03_whoever_wants_to_listen_to_opens_is_warned(tmp_path, name):
    waits = f'{{id: wait, wait_for: {{event: "{name}", timeout: 3d}}}}'
    lifecycle = LIFECYCLE.replace("{event: viewed}", f'{{event: "{name}"}}')
    text = CAMPAIGN.replace("signed_up", f'"{name}"') + f'  - {waits}\ngoal: {{event: "{name}"}}\n'
    campaigns, problems = check(write_campaigns(tmp_path / "c", {"onboarding/x": text}, lifecycle=lifecycle))
    assert problems == []
    opens = [one for one in campaigns.warnings if one.rule == "open"]
    assert [(Path(one.file).name, one.line) for one in opens] == [("lifecycle.yaml", 15), *[("campaign.yaml", line) for line in (5, 8, 9)]]
    assert all(f"{name} {'never comes' if name.startswith('nurture.') else 'tells of an open'}" in one.message for one in opens)


@pytest.mark.parametrize("name", ["report_opened", "email_clicked", "ticket_opened", "open_report", "mail_sent"])
def test_other_events_are_no_opens(tmp_path, name):
    campaigns, _ = check(write_campaigns(tmp_path / "c", {"onboarding/x": CAMPAIGN.replace("signed_up", name)}, lifecycle=LIFECYCLE))
    assert [one for one in campaigns.warnings if one.rule == "open"] == []
