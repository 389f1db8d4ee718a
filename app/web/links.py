"""The links in mails: click, open, unsubscribe, preferences, view in browser.

GET and HEAD decide nothing (invariant 9): a GET may store a hit, a POST changes what somebody gets. Tokens name the message; no cookie,
no session, no referrer. One-click unsubscribe follows RFC 8058 (U-01 to U-10).
"""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime
from uuid import UUID

from flask import Blueprint, Response, current_app, redirect, request
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from app.flow import respond, track
from app.flow import view as flow_view
from app.flow.consents import CLICK_TRACKING, OPEN_TRACKING, PAUSE, Said
from app.flow.links import HONEYPOT
from app.flow.respond import ALL, Message, Why
from app.rules.lifecycle import TRANSACTIONAL
from app.web import phrases, public
from app.web.context import here

blueprint = public.prepare(Blueprint("links", __name__))

PIXEL = b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAICRAEAOw==")

# A mail brings its styles along and may show images of its sender; it runs nothing and posts nothing.
MAIL_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src 'self' https: data:; "
    "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)


@blueprint.get("/c/<token>")
def click(token: str) -> Response:
    """Sends the reader on to the destination that is stored with the message, never to one from the request (T-10 to T-13)."""
    found = public.read_token(token, "click")
    if found is None:
        return public.not_found()
    message_id, index = found
    with here().engine.begin() as conn:
        if index == HONEYPOT:
            _record(conn, message_id, "honeypot", None)
            return public.not_found(conn)
        url = track.destination(conn, message_id, index)
        if url is None:
            message = respond.find_message(conn, message_id)
            if message is None or message.links is not None:
                return public.not_found(conn)
            public.speak(message.locale)
            return public.notice(conn, "link_gone", 410)
        _record(conn, message_id, "click", index)
    return redirect(url, 302)


@blueprint.get("/o/<path:name>")
def opened(name: str) -> Response:
    """The pixel: the same 43 bytes for everybody, bad tokens included (T-01)."""
    found = public.read_token(name.removesuffix(".gif"), "open")
    if found is not None and request.method == "GET":
        try:
            with here().engine.begin() as conn:
                # The most frequent request of all, and nothing is decided by it: it does not wait for the disk.
                conn.exec_driver_sql("set local synchronous_commit = off")
                _record(conn, found[0], "open", None)
        except DBAPIError as error:
            # Evidence of an open decides nothing, and a broken picture in somebody's mail is worse than its loss.
            public.log.warning("open_not_recorded", error=type(error.orig or error).__name__)
    return Response(PIXEL, mimetype="image/gif", headers={"Cache-Control": "no-store, private"})


@blueprint.get("/u/<token>")
def unsubscribe(token: str) -> Response:
    """A page with one button. Opening it changes nothing (U-06)."""
    with here().engine.begin() as conn:
        message = _message(conn, token, "unsubscribe")
        if message is None:
            return public.not_found(conn)
        _record(conn, message.id, "unsubscribe", None)
        if message.topic == TRANSACTIONAL:
            return public.notice(conn, "belongs")
        closed = not respond.choices(conn, message, datetime.now(UTC)).gets(message.topic)
        return public.page(conn, "unsubscribe.html", topic=_topic(conn, message.topic), closed=closed, preferences=_preferences(message))


@blueprint.post("/u/<token>")
def unsubscribe_now(token: str) -> Response:
    """Unsubscribes from the message's topic: a provider's one-click POST, or the button of the page. Always 200 for a good token,
    never a redirect, needs no cookie and sets none, and has no limit per address (U-04, U-05, U-07, U-08)."""
    if not _means_it():
        return Response("The body must say List-Unsubscribe=One-Click.\n", 400, mimetype="text/plain")
    with here().engine.begin() as conn:
        message = _message(conn, token, "unsubscribe")
        if message is None:
            return public.not_found(conn)
        by_page = "page" in request.form
        method = "page" if by_page else "one_click"
        shown = public.say("stop_topic", topic=_topic(conn, message.topic)) if by_page else public.say("one_click")
        said = _said(method, "u", {message.topic: shown})
        respond.unsubscribe(conn, message, message.topic, datetime.now(UTC), method=method, network=public.network(), said=said)
        if not by_page:
            return Response("Unsubscribed.\n", mimetype="text/plain")
        if message.topic == TRANSACTIONAL:
            return public.notice(conn, "belongs")
        return _preference_page(conn, message, done="unsubscribed")


@blueprint.get("/p/<token>")
def preferences(token: str) -> Response:
    """All topics, with what the person gets now."""
    with here().engine.begin() as conn:
        message = _message(conn, token, "preferences")
        if message is None:
            return public.not_found(conn)
        _record(conn, message.id, "preferences", None)
        return _preference_page(conn, message)


@blueprint.post("/p/<token>")
def choose(token: str) -> Response:
    """Takes one of the forms: topics kept and dropped, everything stopped or taken up again, a pause or its end, what may be recorded."""
    now = datetime.now(UTC)
    with here().engine.begin() as conn:
        message = _message(conn, token, "preferences")
        if message is None:
            return public.not_found(conn)
        if not public.from_our_page(token, "preferences"):
            return _preference_page(conn, message, status=400, problem=public.say("out_of_date"))
        action = request.form.get("action") or "save"
        # Whoever wants to stop everything is never told to wait.
        if action != "everything" and current_app.extensions["paces"].preferences.wait(str(message.id)):
            return _preference_page(conn, message, status=429, problem=public.say("too_fast"))
        done = _take(conn, message, action, now)
        return _preference_page(conn, message, done=done)


def _take(conn: Connection, message: Message, action: str, now: datetime) -> str:
    """What the form asks for, by the button that was pressed. Returns the phrase that says what was done."""
    topics = _topics(conn)
    offered = frozenset(topics)
    words = {key: f"{topic.name}: {topic.description}" if topic.description else topic.name for key, topic in topics.items()}
    said = _said("page", "p", {**words, ALL: public.say("stop_everything"), PAUSE: public.say("pause_text")})
    if action == "everything":
        respond.unsubscribe(conn, message, ALL, now, method="page", network=public.network(), said=said)
        return "all_stopped"
    if action == "pause":
        respond.pause(conn, message, now, said=said)
        return "now_paused"
    if action == "resume":
        respond.resume(conn, message, now, said=said)
        return "now_resumed"
    if action == "privacy":
        shown = {OPEN_TRACKING: f"{public.say('opens')}: {public.say('opens_text')}"}
        shown[CLICK_TRACKING] = f"{public.say('clicks')}: {public.say('clicks_text')}"
        wanted = ("opens" in request.form, "clicks" in request.form)
        respond.permit(conn, message, *wanted, now, said=_said("page", "p", shown))
    elif action == "again":
        if request.form.get("again") in offered:
            respond.subscribe(conn, message, {ALL, request.form["again"]}, now, said=said)
    elif action == "all":
        respond.subscribe(conn, message, {ALL, *offered}, now, said=said)
    elif action == "save":
        respond.choose(conn, message, frozenset(request.form.getlist("topic")) & offered, offered, now, said=said)
    return "saved"


def _said(method: str, page: str, words: dict[str, str]) -> Said:
    source = f"{here().settings.base_url}/{page}/ (form {phrases.FORM})"
    return Said(method, "contact", source=source, network=public.network(), words=words, locale=public.spoken())


@blueprint.get("/v/<token>")
def view(token: str) -> Response:
    """The message in the browser; 410 when what it was rendered with is no longer kept."""
    with here().engine.begin() as conn:
        message = _message(conn, token, "view")
        if message is None:
            return public.not_found(conn)
        _record(conn, message.id, "view", None)
        mail = flow_view.view(conn, message, public.links())
        if mail is None:
            return public.notice(conn, "gone", 410)
    return Response(mail.html, mimetype="text/html", headers={"Content-Security-Policy": MAIL_POLICY})


def _message(conn: Connection, token: str, kind: str) -> Message | None:
    found = public.read_token(token, kind)
    message = respond.find_message(conn, found[0]) if found else None
    if message is not None:
        public.speak(message.locale)
    return message


def _record(conn: Connection, message_id: UUID, kind: str, link: int | None) -> None:
    if request.method == "GET":
        track.record_hit(conn, message_id, kind, link, datetime.now(UTC), public.facts())


def _means_it() -> bool:
    """Whether the body says One-Click, in either encoding; also when a provider names no content type that is understood."""
    values = [value.strip().lower() for value in request.form.getlist("List-Unsubscribe")]
    if values:
        return "one-click" in values
    return not request.form and b"list-unsubscribe=one-click" in request.get_data(cache=True)[:1000].lower()


def _preference_page(
    conn: Connection, message: Message, status: int = 200, done: str | None = None, problem: str | None = None
) -> Response:
    choices = respond.choices(conn, message, datetime.now(UTC))
    topics = [
        {"key": key, "name": topic.name, "description": topic.description, "on": choices.gets(key)} for key, topic in _topics(conn).items()
    ]
    token = _preferences(message).rpartition("/")[2]
    paused = phrases.day(choices.paused_until, public.spoken()) if choices.paused_until else ""
    why = respond.why(conn, message)
    return public.page(
        conn,
        "preferences.html",
        status,
        topics=topics,
        topic=_topic(conn, message.topic),
        topic_key=message.topic,
        choices=choices,
        none_left=not any(topic["on"] for topic in topics),
        address=_masked(message.people[-1]) if message.people and "@" in message.people[-1] else "",
        action=f"/p/{token}",
        page_nonce=public.links().nonce(token, "preferences"),
        paused_day=paused,
        done=done,
        said=public.say(done, day=paused) if done and done != "unsubscribed" else "",
        problem=problem,
        why=why,
        why_started=_started(why) if why else "",
        why_since=phrases.day(why.since, public.spoken()) if why and why.since else "",
    )


def _started(why: Why) -> str:
    kind, name = why.started_by
    known = f"why_{kind}" in phrases.PHRASES["en"] and kind not in ("other", "account", "campaign")
    return public.say(f"why_{kind}" if known else "why_other", name=name)


def _topics(conn: Connection) -> dict:
    found = respond.lifecycle_in_force(conn)
    # By name: the database does not keep the order of the file.
    return dict(sorted(found[1].topics.items(), key=lambda one: one[1].name)) if found else {}


def _topic(conn: Connection, key: str) -> str:
    """The topic's name as the reader knows it; the key for one that is no longer published."""
    found = _topics(conn).get(key)
    return found.name if found else key.replace("_", " ").capitalize()


def _preferences(message: Message) -> str:
    return public.links().preferences(message.id).removeprefix(here().settings.base_url)


def _masked(person: str) -> str:
    """An address that its owner knows again and a stranger with a forwarded mail does not learn."""
    name, _, domain = person.rpartition("@")
    return f"{name[:1]}…@{domain}"
