"""What a campaign in shadow, and an account in the holdout, are spared: everything runs, and no mail leaves."""

from __future__ import annotations

from uuid import uuid4

import pytest
from sqlalchemy import select, text

from app import models
from app.flow.deliver import Limits
from app.flow.deliver import run as deliver
from app.providers.memory import MemoryTransport
from app.queue import Bells
from tests import stories
from tests.stories import START, group, identify, post, publish_campaigns, track

CAMPAIGN = """
name: Welcome
stage: onboarding
topic: product
trigger: {event: signed_up}
MORE
steps:
  - {id: welcome, email: welcome.mjml, subject: "Welcome"}
  - {id: rest, wait: 2d}
"""


@pytest.mark.parametrize(
    ("more", "state", "reason", "gate"),
    [("mode: shadow", "shadow", "shadow", "campaign"), ("holdout: 99.99999%", "ghosted", "held_out", "holdout")],
)
def test_nothing_is_sent_and_everything_goes_on(engine, settings, tmp_path, more, state, reason, gate):
    publish_campaigns(engine, tmp_path / "campaigns", {"onboarding/welcome": CAMPAIGN.replace("MORE", more)}, START)
    post(engine, group(), identify(email="ada@acorn.example", roles=["admin"]), track("signed_up"))
    stories.run(engine)
    transport = MemoryTransport()
    limits = Limits(poll=0.02, gather=0.0)
    sent = deliver(engine, settings, uuid4(), lambda: START, Bells(None), transport=transport, limits=limits)
    stories.run(engine)
    assert sent == 0 and transport.letters == []
    with engine.connect() as conn:
        message = conn.execute(select(models.message)).one()
        assert (message.state, message.reason, message.dot_at) == (state, reason, None)
        assert message.settled_at is not None
        assert conn.execute(text("select gate from decision where reason = :reason"), {"reason": reason}).scalar_one() == gate
        # The message is settled, so the enrollment has gone on to its next step.
        assert conn.execute(select(models.enrollment.c.step_id)).scalar_one() == "rest"
