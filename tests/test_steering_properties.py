"""No sequence of sign-ups, days, publishes, moves, rollbacks, pauses and resumes sends anything twice, loses a due message, leaves somebody
waiting for ever, or ends a message without a reason."""

from __future__ import annotations

from datetime import timedelta
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from app import models
from app.errors import InputError
from app.flow.deliver import run as deliver
from app.flow.enrolling import preview, request
from app.flow.moving import move, plan_moves
from app.flow.publish import publish
from app.flow.steering import find_campaign, overdue, set_mode
from app.flow.versions import roll_back
from app.providers.memory import MemoryTransport
from app.queue import Bells
from tests.stories import START, group, identify, post, run, track, write_campaigns
from tests.test_steering import KEY, QUICK

HEAD = "name: Welcome\nstage: onboarding\ntopic: product\ntrigger: {event: signed_up}\nreentry: {after: 1d}\nsteps:\n"
STEPS = {
    "hello": "  - {id: hello, email: hello.mjml, subject: Hello}\n",
    "pause": "  - {id: pause, wait: SPAN}\n",
    "tips": "  - {id: tips, email: tips.mjml, subject: Tips}\n",
    "setup": "  - id: setup\n    wait_for: {milestone: setup_completed, timeout: SPAN}\n"
    "    on_timeout: [{id: nudge, email: nudge.mjml, subject: Nudge}, {id: calm, wait: SPAN}]\n",
    "fork": "  - id: fork\n    branch:\n"
    "      - when: account.touch == 'smb'\n        steps: [{id: left, wait: SPAN}, {id: small, email: small.mjml, subject: Small}]\n"
    "      - else: [{id: right, wait: SPAN}]\n",
    "tell": "  - {id: tell, alert: {to: owner, text: Look}}\n",
    "call": "  - {id: call, task: {title: Call, due: 2d}}\n",
    "more": "  - {id: more, email: more.mjml, subject: More}\n",
}
campaigns = st.builds(
    lambda names, spans: HEAD + "".join(STEPS[name].replace("SPAN", span) for name, span in zip(names, spans, strict=False)),
    st.lists(st.sampled_from(sorted(STEPS)), unique=True, min_size=1, max_size=6),
    st.lists(st.sampled_from(["1h", "1d", "2d", "4d"]), min_size=6, max_size=6),
)
ACTS = st.one_of(
    st.tuples(st.just("publish"), campaigns),
    st.tuples(st.just("sign_up"), st.sampled_from(["acorn", "bolt", "cedar"])),
    st.tuples(st.just("complete"), st.sampled_from(["acorn", "bolt", "cedar"])),
    st.tuples(st.just("later"), st.sampled_from([1, 24, 50])),
    st.tuples(st.sampled_from(["move", "back", "pause", "enroll", "advance", "deliver"]), st.none()),
    st.tuples(st.just("resume"), st.sampled_from(["send", "skip", "exit"])),
)


class World:
    """A campaign, three accounts, and a clock that only goes forward."""

    def __init__(self, engine, settings_, root):
        self.engine, self.settings, self.root, self.transport = engine, settings_, root, MemoryTransport()
        self.now, self.count = START, 0

    def act(self, what, how):
        self.now += timedelta(seconds=1)
        try:
            with self.engine.begin() as conn:
                getattr(self, what)(conn, how)
        except InputError:
            pass  # what cannot be meant is refused and changes nothing; that is tested elsewhere

    def publish(self, conn, words):
        write_campaigns(self.root, {KEY: words})
        publish(conn, self.root, self.now)

    def sign_up(self, conn, key):
        self.count += 1
        who = f"{key}-admin"
        touch = "smb" if key == "acorn" else "high"
        items = (group(key, who, touch=touch), identify(who, key, email=f"{who}@example.com"), track("signed_up", who, key))
        post(self.engine, *items, now=self.now)

    def complete(self, conn, key):
        post(self.engine, track("setup_completed", f"{key}-admin", key), now=self.now)

    def later(self, conn, hours):
        self.now += timedelta(hours=hours)

    def move(self, conn, _):
        plan = plan_moves(conn, KEY, self.now)
        move(conn, plan, self.now)
        assert move(conn, plan, self.now)[0] == 0

    def back(self, conn, _):
        roll_back(conn, KEY, self.now)

    def pause(self, conn, _):
        set_mode(conn, KEY, "paused", self.now)

    def resume(self, conn, choice):
        if find_campaign(conn, KEY).mode == "paused":
            set_mode(conn, KEY, "live", self.now, choice=choice)

    def enroll(self, conn, _):
        request(conn, preview(conn, KEY, self.now, everybody=True), "hand", self.now)

    def advance(self, conn, _):
        run(self.engine, self.now, batch=7)

    def deliver(self, conn, _):
        deliver(self.engine, self.settings, uuid4(), lambda: self.now, Bells(None), transport=self.transport, limits=QUICK)

    def settle(self):
        while True:
            before = len(self.transport.letters)
            moved = run(self.engine, self.now)
            self.deliver(None, None)
            if not moved and len(self.transport.letters) == before:
                return


# Somebody who is inside and waits for nothing: no time, no message that is still to be settled, no answer that is on its way.
# The log of consents takes nothing back, and nothing here writes to it.
KEPT = ("installation", "token_key", "consent")
STUCK = """
select e.step_id, e.position from enrollment e where e.state = 'active' and e.due_at is null
and not exists (select from message m where m.enrollment_id = e.id and m.state in ('due', 'claimed', 'in_dot'))"""


@pytest.mark.timeout(300)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ACTS, min_size=4, max_size=16), campaigns)
def test_no_sequence_of_steering_doubles_loses_or_forgets(engine, settings, tmp_path, acts, first):
    with engine.begin() as conn:
        tables = ", ".join(f'"{table.name}"' for table in models.metadata.sorted_tables if table.name not in KEPT)
        conn.execute(text(f"truncate {tables} cascade"))
        conn.execute(text("insert into source (id, name) values (0, 'nurture')"))
    world = World(engine, settings, tmp_path / "campaigns")
    world.act("publish", first)
    world.act("sign_up", "acorn")
    for what, how in acts:
        world.act(what, how)
    with engine.begin() as conn:
        paused = find_campaign(conn, KEY).mode == "paused"
        waiting = sum(one.count for one in overdue(conn, KEY, world.now))
    if paused:
        world.act("resume", "send" if waiting else None)
    for _ in range(20):  # the longest campaign takes sixteen days
        world.settle()
        world.now += timedelta(days=1)
    with engine.begin() as conn:
        assert conn.execute(text("select traceback from parked")).scalars().all() == []
        assert conn.execute(text("select count(*) from event_pending")).scalar_one() == 0
        assert conn.execute(text(STUCK)).all() == []
        assert conn.execute(text("select step_id, due_at from enrollment where state = 'active'")).all() == []
        frozen = "select step_id from effect where state = 'frozen' union all select step_id from task where state = 'frozen'"
        assert conn.execute(text(frozen)).all() == []
        assert conn.execute(text("select end_reason from enrollment where end_reason is null")).all() == []
        unsettled = "select state, reason from message where state <> 'sent' and (state <> 'skipped' or reason is null)"
        assert conn.execute(text(unsettled)).all() == []
        sent = conn.execute(text("select count(*) from message where state = 'sent'")).scalar_one()
        twice = "select enrollment_id, step_id from message group by 1, 2, contact_id having count(*) > 1"
        assert conn.execute(text(twice)).all() == []
    assert sent == len(world.transport.letters)
