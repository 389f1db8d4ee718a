"""Invariant 8 in full: whatever happened, everybody gets an answer in every campaign; it is what the ledger recorded, it is the same
when the ledger is gone, and any past moment is explained as it was explained then."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from heapq import heappop

import pytest
from sqlalchemy import text

from app.flow.explain import Explanation, Letter, Story, explain
from app.flow.publish import book
from app.flow.track import settle_due
from app.models import source
from app.rules.gates import FAILED, NOT_ASKED, ORDER
from app.rules.reasons import SENTENCES
from tests import twins

START, END = datetime(2028, 2, 24, tzinfo=UTC), datetime(2028, 4, 3, tzinfo=UTC)
LOOKS = [START + timedelta(days=days, hours=days % 24, minutes=7) for days in (1, 4, 9, 17, 30)]
# What another moment may not change: all but the sentence that names the present step's time in words.
Answers = dict[tuple[str, str, str], tuple]


class AtOnce(twins.Live):
    """The live engine looked at whenever something is due, as a World without ticks looks at it; `looked` is called in between."""

    def tell_at_once(self, root, story, looks, looked) -> None:
        with self.engine.begin() as conn:
            twins.publish(conn, root, START)
            ident = conn.execute(source.insert().values(name="story").returning(source.c.id)).scalar_one()
        waiting = list(self._happenings(story, ident))[::-1]
        looks = list(looks)[::-1]
        while (moment := self._next(waiting)) <= END:
            while looks and looks[-1] < moment:
                looked(looks.pop())
            self.now = moment
            while waiting and waiting[-1][0] <= moment:
                with self.engine.begin() as conn:
                    waiting.pop()[1](conn)
            while self.replies and self.replies[0][0] <= moment:
                with self.engine.begin() as conn:
                    self._reply(conn, *heappop(self.replies))
            settle_due(self.engine, lambda: self.now, self.bells)
            self._settle()

    def _next(self, waiting) -> datetime:
        with self.engine.connect() as conn:
            due = conn.execute(text(_NEXT)).scalar()
        found = [one for one in (due, waiting[-1][0] if waiting else None, self.replies[0][0] if self.replies else None) if one]
        return max(min(found, default=datetime.max.replace(tzinfo=UTC)), self.now)


_NEXT = """
select least((select min(due_at) from message where state = 'due'), (select min(due_at) from enrollment where state = 'active'),
             (select min(due_at) from account), (select min(settle_at) from hit where settled_at is null),
             (select min(received_at) from event_pending))"""


def everybody(conn, now, **more) -> list[Explanation]:
    known = book(conn)
    contacts = conn.execute(text("select external_id from contact order by id")).scalars().all()
    return [explain(conn, known, contact, now=now, **more) for contact in contacts]


def stories(found) -> list[Story]:
    return [story for one in found for story in one.stories]


def answers(found) -> Answers:
    """What was answered, in the words that a program compares."""
    return {
        (story.contact, story.account, story.campaign): (
            story.mode,
            story.version,
            story.step,
            said(story),
            tuple((letter.step, letter.state, letter.contact, said(letter)) for letter in story.letters),
        )
        for story in stories(found)
    }


def said(of: Story | Letter) -> tuple[str, str, str] | None:
    shut = next((line for line in of.gates if line.verdict in FAILED), None)
    return shut and (shut.gate, shut.verdict, shut.reason)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [11, 21])
def test_invariant_8_every_no_has_a_reason_stored_or_recomputed_exactly(engine, settings, tmp_path, seed):
    root = twins.write_folder(tmp_path / "campaigns")
    story = twins.make_story(5, START, END, every=timedelta(minutes=1), seed=seed, events=14)
    then: dict[datetime, Answers] = {}

    def looked(now: datetime) -> None:
        with engine.connect() as conn:
            then[now] = answers(everybody(conn, now))
        if now == LOOKS[2]:
            publish_another(engine, root, now + timedelta(seconds=1))

    AtOnce(engine, settings).tell_at_once(root, story, LOOKS, looked)
    with engine.begin() as conn:
        found = everybody(conn, END)
        everyone_is_answered(conn, found)
        as_recorded(conn, found)
        assert {version for _, version, *_ in answers(found).values()} == {1, 2}
        # Any moment of the past is explained as it was explained then, by the versions that were in force then.
        assert sorted(then) == LOOKS
        for moment, was in then.items():
            assert differences(was, answers(everybody(conn, END, at=moment))) == []
        # Without the ledger the same rules give the same answers.
        conn.execute(text("delete from decision"))
        again = everybody(conn, END)
        assert differences(answers(found), answers(again)) == []
        assert evidence_of(found) == evidence_of(again)
    reasons = Counter(said(one) and said(one)[2] for one in stories(found))
    assert len(reasons) >= 12, reasons


def publish_another(engine, root, now: datetime) -> None:
    """Further versions of two campaigns: whom they take changes."""
    changes = {"onboarding/night": ('"phone"', '"desk"'), "onboarding/first-value": ('account.touch != "high"', 'account.touch != "smb"')}
    for key, (old, new) in changes.items():
        path = root / key / "campaign.yaml"
        source = path.read_text("utf-8")
        assert old in source
        path.write_text(source.replace(old, new), "utf-8")
    with engine.begin() as conn:
        twins.publish(conn, root, now)


def differences(first: Answers, second: Answers) -> list[tuple]:
    return [(key, first.get(key), second.get(key)) for key in sorted({*first, *second}) if first.get(key) != second.get(key)]


def everyone_is_answered(conn, found) -> None:
    members = {tuple(row) for row in conn.execute(text(_MEMBERS))}
    campaigns = set(conn.execute(text("select key from campaign")).scalars())
    asked = {(one.contact, one.account, one.campaign) for one in stories(found)}
    assert asked == {(contact, account, campaign) for contact, account in members for campaign in campaigns}
    for one in stories(found):
        ladders = [one.gates, *(letter.gates for letter in one.letters)]
        assert one.summary
        for gates in ladders:
            assert tuple(line.gate for line in gates) == ORDER
            assert all(line.reason in SENTENCES and line.text for line in gates)
            verdicts = [line.verdict for line in gates]
            shut = next((place for place, verdict in enumerate(verdicts) if verdict in FAILED), None)
            if shut is not None:
                assert all(verdict in (NOT_ASKED, *FAILED) for verdict in verdicts[shut:])
                assert one.first_failed or gates is not one.gates
        inside = any(line.verdict == "yes" and line.gate == "trigger" for line in one.gates)
        assert one.first_failed or inside, "who did not enter is told the gate"


def as_recorded(conn, found) -> None:
    """The first gate that failed is the one that the ledger names, wherever it names one."""
    compared = 0
    for one in stories(found):
        if not one.letters and one.entry and one.entry[-1].stored:
            last = one.entry[-1]
            assert said(one) == (last.gate, last.verdict, last.reason)
            compared += 1
        for letter in one.letters:
            last = conn.execute(text(_LAST), {"message": letter.id}).first() if letter.id else None
            if letter.state in ("sent", "due", "claimed") or last is None:
                continue
            assert said(letter) == tuple(last), (one.campaign, letter)
            compared += 1
    assert compared > 30


_MEMBERS = """
select c.external_id, a.external_id from membership m
join contact c on c.id = m.contact_id join account a on a.id = m.account_id"""
_LAST = "select gate, verdict, reason from decision where message_id = :message and verdict <> 'yes' order by at desc, id desc limit 1"


def evidence_of(found) -> dict:
    """What the first failing gate of each story saw, with its version: the moment and where it comes from left out."""
    return {
        (one.contact, one.account, one.campaign): [
            replace(line, stored=True, at=None) for line in one.gates if line.gate == one.first_failed and line.gate in _DECIDED
        ]
        for one in stories(found)
    }


_DECIDED = ("trigger", "goal", "exit", "audience", "hold", "quarantine", "window")
