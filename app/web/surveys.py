"""Surveys: the page behind a score in a mail, and the answer that its button posts.

Opening a score link answers nothing (Q-01): it shows the question with that score chosen, and stores a hit as an intent. Only a POST
with the page's own nonce is an answer (Q-06); no cookie, no script.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from flask import Blueprint, Response, request
from sqlalchemy import Connection

from app.errors import InputError, SurveyClosed, TooOften
from app.flow import respond, track
from app.flow.compose import SCALES
from app.flow.respond import Message
from app.web import public
from app.web.context import here
from app.web.phrases import day

blueprint = public.prepare(Blueprint("surveys", __name__))

# From which score on an answer is glad, and up to which it is low: promoters and detractors, top and bottom boxes.
MOODS = {"nps": (9, 6), "csat": (4, 2), "ces": (6, 3)}


@blueprint.get("/s/<token>")
@blueprint.get("/s/<token>/<score>")
def ask(token: str, score: str | None = None) -> Response:
    """The question, with the score of the link chosen, or else the one that counts at present."""
    now = datetime.now(UTC)
    with here().engine.begin() as conn:
        message = _message(conn, token)
        if message is None:
            return public.not_found(conn)
        if message.erased:
            return public.notice(conn, "gone", 410)
        low, high = SCALES[message.survey].low, SCALES[message.survey].high
        chosen = int(score) if score and score.isascii() and score.isdecimal() and len(score) < 4 else None
        chosen = chosen if chosen is not None and low <= chosen <= high else None
        if request.method == "GET":
            track.record_hit(conn, message.id, "survey", chosen, now, public.facts())
        closes = message.sent_at + _closes_after(conn)
        if now >= closes:
            return _closed(conn, closes)
        before = respond.counted(conn, message)
        if chosen is None and before:
            chosen = before.score
        return _form(conn, token, message, closes, chosen=chosen, comment=before.comment if before else None, answered=before is not None)


@blueprint.post("/s/<token>")
@blueprint.post("/s/<token>/<score>")
def answer(token: str, score: str | None = None) -> Response:
    """Takes the answer of the form; the score is the form's, never the address's. Says thank you, or what was wrong with it."""
    now = datetime.now(UTC)
    given, comment = request.form.get("score", ""), request.form.get("comment")
    with here().engine.begin() as conn:
        message = _message(conn, token)
        if message is None:
            return public.not_found(conn)
        if message.erased:
            return public.notice(conn, "gone", 410)
        closes_after = _closes_after(conn)
        closes = message.sent_at + closes_after
        low, high = SCALES[message.survey].low, SCALES[message.survey].high
        chosen = int(given) if given.isascii() and given.isdecimal() and len(given) < 4 and low <= int(given) <= high else None
        again = {"chosen": chosen, "comment": comment, "answered": False}
        if not public.from_our_page(token, "survey"):
            return _form(conn, token, message, closes, 400, problem=public.say("press_again"), **again)
        if chosen is None:
            return _form(conn, token, message, closes, 400, problem=public.say("choose_number", low=low, high=high), **again)
        try:
            taken = respond.answer(conn, message, chosen, comment, now, closes_after=closes_after, partitions=here().partitions)
        except SurveyClosed as closed:
            return _closed(conn, closed.at)
        except TooOften:
            return public.notice(conn, "often", 429)
        except InputError:
            return _form(conn, token, message, closes, 400, problem=public.say("comment_long", most=respond.COMMENT_LENGTH), **again)
        glad, low_mood = MOODS[message.survey]
        mood = "glad" if chosen >= glad else "low" if chosen <= low_mood else "fair"
        thanks = public.page(conn, "thanks.html", score=chosen, mood=mood, action=f"/s/{token}", closes=_day(closes))
    here().bells.advance(taken.partitions)
    if taken.partitions:
        here().bells.assess()
    return thanks


def _message(conn: Connection, token: str) -> Message | None:
    found = public.read_token(token, "survey")
    message = respond.find_message(conn, found[0]) if found else None
    if message is None or message.survey not in SCALES:
        return None
    public.speak(message.locale)
    return message


def _closes_after(conn: Connection) -> timedelta:
    found = respond.lifecycle_in_force(conn)
    return found[1].survey.closes_after if found else timedelta(days=30)


def _form(conn: Connection, token: str, message: Message, closes: datetime, status: int = 200, **values) -> Response:
    scale = SCALES[message.survey]
    return public.page(
        conn,
        "survey.html",
        status,
        question=message.question,
        scores=list(range(scale.low, scale.high + 1)),
        low=public.say(f"{message.survey}_low"),
        high=public.say(f"{message.survey}_high"),
        action=f"/s/{token}",
        page_nonce=public.links().nonce(token, "survey"),
        closes=_day(closes),
        **{"problem": None, **values},
    )


def _closed(conn: Connection, at: datetime) -> Response:
    return public.notice(conn, "closed", 410, day=_day(at))


def _day(moment: datetime) -> str:
    return day(moment, public.spoken())
