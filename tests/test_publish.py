"""Publishing: immutable versions, what is said to change for whom, and that nobody inside is touched by it."""

from __future__ import annotations

import pytest
from alembic import command
from sqlalchemy import select, text

from app import db
from app.errors import DefinitionError, InputError, NotFound
from app.flow.check import read
from app.flow.past import Laws
from app.flow.publish import book, including, publish
from app.flow.steering import set_mode
from app.flow.versions import list_versions, rebranded, roll_back, texts_in, texts_of, unified
from app.migrate import config
from app.models import campaign, campaign_change, campaign_version, enrollment, message
from tests.stories import at, group, identify, post, run, track, write_campaigns

WELCOME = """
name: Welcome
stage: onboarding
topic: product
priority: 50
trigger: {event: signed_up}
steps:
  - {id: hello, email: hello.mjml, subject: Hello}
  - {id: pause, wait: 2d}
  - {id: tips, email: tips.mjml, subject: Tips}
"""
KEY = "onboarding/welcome"


@pytest.fixture
def world(engine, tmp_path):
    """Publishes versions of one campaign and has accounts sign up."""
    return World(engine, tmp_path / "campaigns")


class World:
    def __init__(self, engine, root):
        self.engine, self.root = engine, root

    def publish(self, text_=WELCOME, moment="0s", **parts):
        write_campaigns(self.root, {KEY: text_}, **parts)
        with self.engine.begin() as conn:
            return publish(conn, self.root, at(moment))[0]

    def sign_up(self, *keys, moment="0s"):
        items = []
        for key in keys:
            who = f"{key}-admin"
            items += [
                group(key, who, touch="smb"),
                identify(who, key, email=f"{who}@example.com", roles=["admin"]),
                track("signed_up", who, key),
            ]
        post(self.engine, *items, now=at(moment))
        run(self.engine, at(moment))

    def place(self, step, due=None, version=1):
        """Puts everybody at a step, as if they had come there."""
        with self.engine.begin() as conn:
            conn.execute(text("update enrollment set step_id = :step, position = '{}', due_at = :due"), {"step": step, "due": due})
            conn.execute(text("delete from message"))

    def rows(self, *columns):
        with self.engine.connect() as conn:
            return [tuple(row) for row in conn.execute(select(*columns).order_by(*columns))]


def test_publishing_says_what_changes_and_who_stays_where(world):
    first = world.publish()
    assert (first.what, first.number, first.before, first.inside) == ("new", 1, None, ())
    world.sign_up("acorn", "bolt")
    assert world.publish().what == "unchanged"
    second = world.publish(WELCOME.replace("priority: 50", "priority: 70").replace("wait: 2d", "wait: 5d"), "1h")
    assert (second.what, second.number, second.before, second.mode) == ("changed", 2, 1, "live")
    assert list(second.difference.lines()) == ["~ priority: 50 → 70", "~ step pause: wait: 2d → 5d"]
    assert [(one.version, one.step, one.count) for one in second.inside] == [(1, "hello", 2)]
    third = world.publish(mail="<mj-section><mj-column><mj-text>Other words</mj-text></mj-column></mj-section>", moment="2h")
    assert list(third.difference.lines()) == [
        "~ priority: 70 → 50",
        "~ step hello: its mail",
        "~ step pause: wait: 5d → 2d",
        "~ step tips: its mail",
    ]


def test_what_was_published_before_is_the_same_version_again(world):
    world.publish()
    world.publish(WELCOME.replace("2d", "3d"))
    again = world.publish()
    assert (again.what, again.number, again.before) == ("changed", 1, 2)
    assert len(world.rows(campaign_version.c.number)) == 2


def test_invariant_7_publishing_and_rolling_back_move_nobody(world):
    world.publish()
    world.sign_up("acorn", "bolt")
    before = world.rows(*enrollment.c)
    messages = world.rows(message.c.id, message.c.version_id, message.c.state, message.c.due_at)
    world.publish(WELCOME.replace("2d", "9d").replace("{id: hello", "{id: other"), "1h")
    with world.engine.begin() as conn:
        roll_back(conn, KEY, at())
    world.publish(
        "name: Empty\nstage: onboarding\ntopic: product\ntrigger: {event: signed_up}\nsteps:\n  - {id: end, exit: Enough}\n", "2h"
    )
    run(world.engine, at("2h"))
    assert world.rows(*enrollment.c) == before
    assert world.rows(message.c.id, message.c.version_id, message.c.state, message.c.due_at) == messages


def test_a_step_id_is_never_used_again_for_another_kind(world):
    world.publish()
    world.publish(WELCOME.replace("  - {id: tips, email: tips.mjml, subject: Tips}\n", ""))
    with pytest.raises(DefinitionError) as refused:
        world.publish(WELCOME.replace("{id: tips, email: tips.mjml, subject: Tips}", '{id: "tips", wait: 3d}'))
    (problem,) = refused.value.problems
    assert (problem.file, problem.line, problem.column, problem.rule) == ("onboarding/welcome/campaign.yaml", 10, 6, "step")
    assert "was a step of the kind email in version 1" in problem.message and "the kind wait" in problem.message
    assert [version for (version,) in world.rows(campaign_version.c.number)] == [1, 2]
    # The same kind may come back, and another campaign may call its steps what it likes.
    assert world.publish(WELCOME.replace("Tips", "Tricks")).number == 3
    write_campaigns(
        world.root, {"onboarding/other": WELCOME.replace("{id: tips, email: tips.mjml, subject: Tips}", "{id: tips, wait: 3d}")}
    )
    with world.engine.begin() as conn:
        assert [one.what for one in publish(conn, world.root, at())] == ["new", "unchanged"]


def test_a_publishing_that_fails_changes_nothing(world):
    world.publish()
    write_campaigns(world.root, {"onboarding/other": WELCOME})
    with pytest.raises(DefinitionError):
        world.publish(WELCOME.replace("{id: pause, wait: 2d}", "{id: pause, email: hello.mjml, subject: Now a mail}"))
    assert world.rows(campaign.c.key) == [(KEY,)]


# Versions ------------------------------------------------------------------------------------------------------------


def test_versions_are_listed_with_who_is_inside(world):
    world.publish()
    world.sign_up("acorn", "bolt")
    world.publish(WELCOME.replace("2d", "3d"), "1h")
    with world.engine.connect() as conn:
        found = list_versions(conn, KEY)
        assert [(one["number"], one["active"], one["enrollments"], one["current"]) for one in found] == [(2, 0, 0, True), (1, 2, 2, False)]
        assert all(len(one["hash"]) == 64 for one in found)
        with pytest.raises(NotFound, match="onboarding/welcome"):
            list_versions(conn, "no/such")


def test_after_a_rollback_new_enrollments_enter_the_earlier_version_and_back_again(world):
    world.publish()
    world.publish(WELCOME.replace("wait: 2d", "wait: 3d").replace("name: Welcome", "name: Hello"), "1h")
    with world.engine.begin() as conn:
        done = roll_back(conn, KEY, at())
    assert (done.number, done.before) == (1, 2)
    assert list(done.difference.lines()) == ["~ name: Hello → Welcome", "~ step pause: wait: 3d → 2d"]
    assert world.rows(campaign.c.name) == [("Welcome",)]
    world.sign_up("acorn", moment="2h")
    with world.engine.begin() as conn:
        assert roll_back(conn, KEY, at(), 2).number == 2
        with pytest.raises(InputError, match="already"):
            roll_back(conn, KEY, at(), 2)
        with pytest.raises(NotFound, match="it has 1, 2"):
            roll_back(conn, KEY, at(), 9)
    world.sign_up("bolt", moment="3h")
    numbers = select(campaign_version.c.number).join(enrollment, enrollment.c.version_id == campaign_version.c.id)
    with world.engine.connect() as conn:
        assert conn.execute(numbers.order_by(enrollment.c.entered_at)).scalars().all() == [1, 2]


def test_publishing_the_folder_as_it_is_undoes_no_rollback(world):
    """Whoever publishes another campaign, or starts the engine, does not bring back what somebody went back from."""
    world.publish()
    world.publish(WELCOME.replace("2d", "3d"))
    third = WELCOME.replace("2d", "4d")
    world.publish(third)
    with world.engine.begin() as conn:
        roll_back(conn, KEY, at())
        roll_back(conn, KEY, at())
    same = world.publish(third)
    assert (same.what, same.number) == ("rolled back", 1)
    assert world.publish(WELCOME.replace("2d", "5d")).number == 4
    again = world.publish(third)  # the folder has changed since: now it is meant
    assert (again.what, again.number) == ("changed", 3)
    with world.engine.begin() as conn:
        roll_back(conn, KEY, at(), 1)
        roll_back(conn, KEY, at(), 3)
    assert world.publish(third).what == "unchanged"


def test_there_is_nothing_before_the_first_version(world):
    world.publish()
    with world.engine.begin() as conn, pytest.raises(InputError, match="nothing to go back to"):
        roll_back(conn, KEY, at())


def test_two_versions_and_the_folder_are_compared_as_text(world):
    world.publish()
    world.publish(WELCOME.replace("wait: 2d", "wait: 3d"))
    with world.engine.connect() as conn:
        first, second = texts_of(conn, KEY, 1), texts_of(conn, KEY)
        with pytest.raises(NotFound):
            texts_of(conn, KEY, 7)
    lines = list(unified(first, second))
    assert lines[:2] == ["--- version 1/campaign.yaml", "+++ version 2/campaign.yaml"]
    assert [line for line in lines[2:] if line[0] in "+-"] == ["-  wait: 2d", "+  wait: 3d"]
    assert not list(unified(second, texts_in(read(world.root).folders[0])))
    (world.root / KEY / "tips.mjml").write_text("<mj-section><mj-column><mj-text>New</mj-text></mj-column></mj-section>\n", "utf-8")
    lines = list(unified(second, texts_in(read(world.root).folders[0])))
    assert lines[0] == "--- version 2/tips.mjml" and "+<mj-section><mj-column><mj-text>New</mj-text></mj-column></mj-section>" in lines


def test_a_block_of_the_brand_that_changed_is_said_though_no_file_of_the_campaign_did(world):
    world.publish()
    layout = world.root / "brand" / "layout.mjml"
    layout.write_text(
        layout.read_text("utf-8").replace("</mj-body>", "<mj-section><mj-column><mj-text>PS</mj-text></mj-column></mj-section></mj-body>")
    )
    with world.engine.connect() as conn:
        old, new = texts_of(conn, KEY), texts_in(read(world.root).folders[0])
    assert not list(unified(old, new)) and rebranded(old, new) == ["hello", "tips"]


# The book ------------------------------------------------------------------------------------------------------------


def test_only_versions_that_somebody_is_inside_of_are_compiled(world, database):
    """A process that starts now knows the present version; an older one is compiled when somebody inside it has something happen."""
    world.publish()
    world.sign_up("acorn")
    for days in range(3, 8):
        world.publish(WELCOME.replace("2d", f"{days}d"), f"{days}h")
    fresh = db.connect(database + ("&" if "?" in database else "?") + "sslmode=prefer")  # another address is another cache
    try:
        with fresh.connect() as conn:
            known = book(conn)
            assert [one.number for one in known.versions.values()] == [6]
            first = conn.execute(select(campaign_version.c.id).where(campaign_version.c.number == 1)).scalar_one()
            wider = including(conn, known, [first, first + 1000])
            assert sorted(one.number for one in wider.versions.values()) == [1, 6]
            assert including(conn, wider, [first]) is wider and book(conn) is wider
        world.place("pause", at("1d"))
        run(fresh, at("1d"))
        assert world.rows(message.c.step_id) == [("tips",)]
    finally:
        fresh.dispose()


def test_an_old_version_is_forgotten_when_something_is_published(world):
    world.publish()
    with world.engine.connect() as conn:
        first = conn.execute(select(campaign_version.c.id)).scalar_one()
    world.publish(WELCOME.replace("2d", "3d"))
    with world.engine.connect() as conn:
        assert first in including(conn, book(conn), [first]).versions
    world.publish(WELCOME.replace("2d", "4d"))
    with world.engine.connect() as conn:
        assert first not in book(conn).versions


# What was in force when ----------------------------------------------------------------------------------------------


def changes(engine):
    with engine.connect() as conn:
        rows = conn.execute(select(campaign_change, campaign_version.c.number).join(campaign_version).order_by(campaign_change.c.id))
        return [(one.mode, one.number, one.at, one.by) for one in rows]


def test_every_change_of_what_is_in_force_is_written_down(world):
    """And the past is explained by it: modes before the latest one, and the version after a rollback."""
    world.publish(WELCOME)
    world.publish(WELCOME.replace("wait: 2d", "wait: 3d"), moment="1d")
    world.publish(WELCOME.replace("wait: 2d", "wait: 3d"), moment="2d")  # says the same
    with world.engine.begin() as conn:
        set_mode(conn, KEY, "paused", at("3d"), by="console")
        roll_back(conn, KEY, at("4d"), by="console")
        set_mode(conn, KEY, "live", at("5d"), by="key ops")
    wanted = [("live", 1, "0s", "publish"), ("live", 2, "1d", "publish"), ("paused", 2, "3d", "console"), ("paused", 1, "4d", "console")]
    assert changes(world.engine) == [(m, n, at(t), by) for m, n, t, by in (*wanted, ("live", 1, "5d", "key ops"))]
    with world.engine.connect() as conn:
        laws = Laws(conn)
        found = []
        for moment in ("0s", "36h", "84h", "108h", "9d"):
            known = laws.book(at(moment))
            found.append((known.standings[KEY].mode, known.versions[known.standings[KEY].version].number))
        assert found == [("live", 1), ("live", 2), ("paused", 2), ("paused", 1), ("live", 1)]
        assert laws.published_at(KEY) == at()


def test_what_an_older_database_knows_is_kept(world):
    world.publish(WELCOME)
    world.publish(WELCOME.replace("wait: 2d", "wait: 3d"), moment="2d")
    with world.engine.begin() as conn:
        set_mode(conn, KEY, "paused", at("3d"))
        roll_back(conn, KEY, at("4d"))
        command.downgrade(config(conn), "0002")
        command.upgrade(config(conn), "head")
    found = changes(world.engine)
    assert [one[:3] for one in found[:3]] == [("draft", 1, at()), ("draft", 2, at("2d")), ("paused", 2, at("3d"))]
    assert found[3][:2] == ("paused", 1) and {one[3] for one in found} == {"migration"}
