"""The links in mails: click, open, unsubscribe, preferences, view in browser.

GET and HEAD decide nothing (invariant 9): a GET may store a hit, a POST changes what somebody gets. Tokens name the message; no cookie,
no session, no referrer. One-click unsubscribe follows RFC 8058 (U-01 to U-10).
"""

from __future__ import annotations

from base64 import b64decode
from datetime import UTC, datetime
from uuid import UUID

from flask import Blueprint, Response, redirect, request
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from app.flow import respond, track
from app.flow import view as flow_view
from app.flow.respond import ALL, Message
from app.rules.lifecycle import TRANSACTIONAL
from app.web import public
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
        url = track.destination(conn, message_id, index)
        if url is None:
            return public.not_found(conn)
        _record(conn, message_id, "click", index)
    return redirect(url, 302)


@blueprint.get("/o/<path:name>")
def opened(name: str) -> Response:
    """The pixel: the same 43 bytes for everybody, bad tokens included (T-01)."""
    found = public.read_token(name.removesuffix(".gif"), "open")
    if found is not None and request.method == "GET":
        try:
            with here().engine.begin() as conn:
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
            return public.page(conn, "notice.html", title="These emails belong to your account", text=_NO_OPT_OUT)
        closed = not respond.choices(conn, message).gets(message.topic)
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
        respond.unsubscribe(
            conn, message, message.topic, datetime.now(UTC), method="page" if by_page else "one_click", network=public.network()
        )
        if not by_page:
            return Response("Unsubscribed.\n", mimetype="text/plain")
        if message.topic == TRANSACTIONAL:
            return public.page(conn, "notice.html", title="These emails belong to your account", text=_NO_OPT_OUT)
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
    """Takes the form: topics kept and dropped, everything stopped, or one topic taken up again."""
    now, network = datetime.now(UTC), public.network()
    with here().engine.begin() as conn:
        message = _message(conn, token, "preferences")
        if message is None:
            return public.not_found(conn)
        if request.form.get("nonce") != public.links().nonce(token, "preferences"):
            return _preference_page(conn, message, status=400, problem="This page was out of date. Please choose once more.")
        offered = frozenset(_topics(conn))
        action = request.form.get("action")
        if action == "everything":
            respond.unsubscribe(conn, message, ALL, now, method="page", network=network)
        elif action == "again" and request.form.get("again") in offered:
            respond.subscribe(conn, message, {ALL, request.form["again"]}, now, network=network)
        else:
            wanted = frozenset(request.form.getlist("topic")) & offered
            respond.choose(conn, message, wanted, offered, "tracking" in request.form, now, network=network)
        return _preference_page(conn, message, done="everything" if action == "everything" else "saved")


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
            return public.page(conn, "notice.html", 410, title="This email is no longer kept", text=_GONE)
    return Response(mail.html, mimetype="text/html", headers={"Content-Security-Policy": MAIL_POLICY})


def _message(conn: Connection, token: str, kind: str) -> Message | None:
    found = public.read_token(token, kind)
    return respond.find_message(conn, found[0]) if found else None


def _record(conn: Connection, message_id: UUID, kind: str, link: int | None) -> None:
    if request.method == "GET":
        track.record_hit(conn, message_id, kind, link, datetime.now(UTC), public.facts())


def _means_it() -> bool:
    """Whether the body says One-Click, in either encoding; also when a provider names no content type that is understood."""
    values = [value.strip().lower() for value in request.form.getlist("List-Unsubscribe")]
    if values:
        return "one-click" in values
    return not request.form and b"list-unsubscribe=one-click" in request.get_data(cache=True)[:1000].lower()


def _preference_page(conn: Connection, message: Message, status: int = 200, **values) -> Response:
    choices = respond.choices(conn, message)
    topics = [
        {"key": key, "name": topic.name, "description": topic.description, "on": choices.gets(key)} for key, topic in _topics(conn).items()
    ]
    token = _preferences(message).rpartition("/")[2]
    return public.page(
        conn,
        "preferences.html",
        status,
        topics=topics,
        topic=_topic(conn, message.topic),
        topic_key=message.topic,
        choices=choices,
        none_left=not any(topic["on"] for topic in topics),
        address=_masked(message.people[-1]) if message.people else "",
        action=f"/p/{token}",
        page_nonce=public.links().nonce(token, "preferences"),
        **{"done": None, "problem": None, **values},
    )


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


_NO_OPT_OUT = "They tell you about things that you or your account have asked for, so they cannot be switched off one by one."
_GONE = "What it said is deleted after some time. The copy in your mailbox is the only one left."
