"""The audience proof: what a text needs and somebody lacks is named with the first of them, and nothing else is."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from sqlalchemy import text

from app.cli import main
from app.errors import DefinitionError
from app.flow.audience import blocking, prove
from app.flow.check import read
from app.flow.publish import publish
from tests.stories import START, group, identify, post, publish_campaigns, run, track, write_campaigns

HELLO = """
name: Hello
stage: onboarding
topic: product
trigger: {event: signed_up}
audience: account.touch != "high" or account.touch is missing
exit_when: stage.name != "onboarding"
recipients: {roles: [admin], pick: all}
steps:
  - {id: hello, email: hello.mjml, subject: Hello}
"""
KEY = "onboarding/hello"


def mail(content: str) -> str:
    return f"<mj-section>\n<mj-column>\n<mj-text>{content}</mj-text>\n</mj-column>\n</mj-section>\n"


def people(engine) -> None:
    """Birch has an admin with a name and one without, cedar's admin has none, elm is looked after in person, fir is past onboarding."""
    post(
        engine,
        group("birch", "ben", name="Birch", touch="smb"),
        identify("ben", "birch", email="ben@birch.test", first_name="Ben", roles=["admin"], locale="de-AT"),
        identify("bea", "birch", email="bea@birch.test", roles=["admin"]),
        identify("bob", "birch", email="bob@birch.test", roles=["user"]),
        identify("bix", "birch", first_name="Bix", roles=["admin"]),
        group("cedar", "cem", touch="smb"),
        identify("cem", "cedar", email="cem@cedar.test", first_name=" ", roles=["admin"]),
        group("elm", "eli", touch="high"),
        identify("eli", "elm", email="eli@elm.test", roles=["admin"]),
        group("fir", "fay", touch="smb"),
        identify("fay", "fir", email="fay@fir.test", roles=["admin"]),
        track("report_shared", "fay", "fir"),
    )
    run(engine)


@pytest.fixture
def known(engine, tmp_path):
    publish_campaigns(engine, tmp_path / "empty", {})
    people(engine)
    return engine


def proven(engine, root: Path, campaign: str, content: str, **parts: str):
    folder = write_campaigns(root, {KEY: campaign}, mail=mail(content), **parts)
    with engine.connect() as conn:
        return prove(conn, read(folder), START)


def test_who_lacks_a_value_is_named(known, tmp_path):
    [found] = proven(known, tmp_path / "c", HELLO, "Hello {{ contact.first_name }}")
    assert (found.campaign, found.step, found.file, found.path) == (KEY, "hello", f"{KEY}/hello.mjml", "contact.first_name")
    # Ben has a name, bob has no such role, bix no address, eli is not in the audience and fay has left the stage.
    assert (found.kind, found.count, found.of, found.account, found.contact) == ("skip", 2, 3, "birch", "bea")
    assert found.definite
    assert "2 of 3 contacts lack it, so step hello would skip them; the first is bea of birch" in str(found)


@pytest.mark.parametrize(
    "content",
    [
        "Hello {{ contact.first_name | default('you') }}",
        "{% if contact.first_name %}Hello {{ contact.first_name }}{% endif %}",
        "{{ contact.email }} {{ account.id }} {{ stage.name }} {{ usage.logins.last_7d }} {{ now }} {{ enrollment.entered_at }}",
        # A guard that only the facts can prove: nobody who is asked has more than three seats.
        "{% if account.seats > 3 %}{{ contact.first_name }}{% endif %}",
    ],
)
def test_what_everybody_has_is_proven(known, tmp_path, content):
    assert proven(known, tmp_path / "c", HELLO, content) == []


def test_subjects_links_and_languages_count(known, tmp_path):
    campaign = HELLO.replace("subject: Hello", 'subject: "{{ account.traits.plan }}"')
    found = proven(known, tmp_path / "c", campaign, '<a href="https://a.example/{{ account.name | urlencode }}">x</a>')
    assert [(one.path, one.count, one.account) for one in found] == [("account.name", 1, "cedar"), ("account.traits.plan", 3, "birch")]
    (tmp_path / "c" / KEY / "hello.de.mjml").write_text(mail("{{ contact.last_name }}"))
    found = proven(known, tmp_path / "c", HELLO, "Hello")
    # Only ben reads German.
    assert [(one.file, one.path, one.count, one.contact) for one in found] == [(f"{KEY}/hello.de.mjml", "contact.last_name", 1, "ben")]


def test_notices_show_a_dash_and_stop_nothing(known, tmp_path):
    step = '  - {id: tell, alert: {to: owner, text: "{{ account.owner.name }} of {{ account.name }}, {{ contact.first_name }}"}}\n'
    found = proven(known, tmp_path / "c", HELLO + step, "Hello")
    assert [(one.kind, one.path, one.count, one.of, one.account, one.contact) for one in found] == [
        ("dash", "account.name", 1, 2, "cedar", None),
        ("dash", "account.owner.name", 2, 2, "birch", None),
        ("unproven", "contact.first_name", 0, 0, None, None),
    ]
    assert not any(one.definite for one in found)


def test_properties_of_events_are_held_against_those_that_came(known, tmp_path):
    content = "{{ event.properties.plan }} {{ event.properties.seats | default(1) }} {{ event.name }}"
    campaign = HELLO.replace("{event: signed_up}", '{event: signed_up, where: event.properties.source != "import"}')
    [found] = proven(known, tmp_path / "c", campaign, content)
    assert (found.kind, found.path) == ("unproven", "event.properties.plan") and "no event" in str(found)
    for number, properties in enumerate([{"plan": "a"}, {"plan": " "}, {}, {"source": "import"}]):
        post(known, {**track("signed_up", "ben", "birch", **{"source": "web", **properties}), "messageId": f"s{number}"}, name="more")
    [found] = proven(known, tmp_path / "c", campaign, content)
    assert (found.kind, found.count, found.of, found.account, found.definite) == ("event", 2, 3, "birch", False)
    [found] = proven(known, tmp_path / "c", campaign, content.replace("plan", "plna"))
    assert (found.kind, found.count, found.of, found.definite) == ("event", 3, 3, True)


def test_answers_cannot_be_proven_and_are_said_to_be(known, tmp_path):
    [found] = proven(known, tmp_path / "c", HELLO, "{{ response.comment }}")
    assert (found.kind, found.definite) == ("unproven", False) and "no stored fact tells" in str(found)


def test_a_condition_that_reads_an_event_counts_as_true(known, tmp_path):
    campaign = HELLO.replace('audience: account.touch != "high" or account.touch is missing', "audience: event.properties.plan == 1")
    [found] = proven(known, tmp_path / "c", campaign, "{{ contact.first_name }}")
    assert (found.count, found.of) == (3, 4)  # eli's account is among them


def test_a_contact_campaign_is_proven_for_every_member(known, tmp_path):
    campaign = HELLO.replace("recipients: {roles: [admin], pick: all}", "enrolls: contact")
    [found] = proven(known, tmp_path / "c", campaign, "{{ contact.first_name }}")
    assert (found.count, found.of) == (3, 4)  # bob, too


def test_publishing_refuses_a_definite_hole_and_changes_nothing(known, tmp_path):
    folder = write_campaigns(tmp_path / "c", {KEY: HELLO}, mail=mail("\nHi {{ contact.first_name }}"))
    with known.begin() as conn, pytest.raises(DefinitionError) as caught:
        publish(conn, folder, START)
    [problem] = caught.value.problems
    assert (problem.file, problem.line, problem.column, problem.rule) == (f"{KEY}/hello.mjml", 4, 7, "audience")
    assert problem.fix == 'contact.first_name | default("…")'
    with known.begin() as conn:
        assert conn.execute(text("select count(*) from campaign where key = :key"), {"key": KEY}).scalar() == 0
        (folder / KEY / "hello.mjml").write_text(mail("Hi"))
        [done] = publish(conn, folder, START)
        assert done.what == "new"


def test_what_is_in_force_already_is_not_proven_again(known, tmp_path):
    """A restart must not fail since a contact came without a name meanwhile."""
    folder = write_campaigns(tmp_path / "c", {KEY: HELLO.replace("[admin]", "[champion]")}, mail=mail("{{ contact.first_name }}"))
    with known.begin() as conn:
        publish(conn, folder, START)
    post(known, identify("new", "birch", email="new@birch.test", roles=["champion"]), name="later")
    run(known)
    with known.begin() as conn:
        assert [one.what for one in publish(conn, folder, START)] == ["unchanged"]
        assert prove(conn, read(folder), START)[0].contact == "new"


def test_the_command_tells_it_to_people_and_editors(known, tmp_path, capsys, monkeypatch):
    folder = write_campaigns(tmp_path / "c", {KEY: HELLO}, mail=mail("{{ contact.first_name }}{{ response.comment }}"))
    monkeypatch.setenv("DATABASE_URL", known.url.render_as_string(hide_password=False))
    assert main(["check", str(folder), "--audience", "--home", str(tmp_path / "home")]) == 1
    said = capsys.readouterr().out
    assert f"{KEY}/hello.mjml:3:13: contact.first_name has no fallback: 2 of 3 contacts lack it" in said
    assert f"{KEY}/hello.mjml:3:37: warning: response.comment has no fallback" in said
    assert main(["check", str(folder), "--audience", "--json", "--home", str(tmp_path / "home")]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [(row["rule"], row["severity"], row["line"]) for row in rows] == [("audience", "error", 3), ("audience", "warning", 3)]
    assert main(["check", str(folder), "--home", str(tmp_path / "home")]) == 0


def test_ten_thousand_accounts_are_proven_within_seconds(engine, tmp_path):
    with engine.begin() as conn:
        conn.exec_driver_sql(
            "insert into account (external_id, partition, name, touch, stage, created_at) "
            "select 'a' || n, n %% 64, 'Account ' || n, 'smb', 'onboarding', now() from generate_series(1, 10000) n"
        )
        conn.exec_driver_sql(
            "insert into contact (external_id, address, person, first_name, created_at) select 'c' || n, 'c' || n || '@a.test', "
            "'c' || n || '@a.test', case when n %% 10 > 0 then 'Ada' end, now() from generate_series(1, 30000) n"
        )
        conn.exec_driver_sql(
            "insert into membership (account_id, contact_id, roles, joined_at) select a.id, c.id, '{admin}', now() from contact c "
            "join account a on a.external_id = 'a' || (1 + (substr(c.external_id, 2)::int - 1) / 3)"
        )
    campaigns = {f"onboarding/c{n}": HELLO for n in range(20)}
    folder = read(write_campaigns(tmp_path / "c", campaigns, mail=mail("Hi {{ contact.first_name }} of {{ account.name }}")))
    with engine.connect() as conn:
        begun = time.process_time()
        found = prove(conn, folder, START)
        took = time.process_time() - begun
    assert {(one.path, one.count, one.of) for one in found} == {("contact.first_name", 3_000, 30_000)}
    assert len(found) == 20 and len(blocking(folder, found)) == 20
    print(f"20 campaigns, 10,000 accounts, 30,000 contacts: {took:.1f} s of computing")
    assert took < 8
