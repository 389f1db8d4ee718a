"""The outbox: where the mail of an installation without a relay is read.

It needs no session, so it exists only where nobody else can reach it: without a relay, with a loopback base URL, asked by a loopback
name, and not through a proxy. Everywhere else these addresses are 404, like any that does not exist.
"""

from __future__ import annotations

import re

from flask import Blueprint, Response, abort, jsonify, make_response, render_template, request

from app.config import Settings, is_loopback
from app.flow.reading import outbox
from app.web.context import asked_host, here

blueprint = Blueprint("outbox", __name__, url_prefix="/dev")

PAGE_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; frame-src 'self'; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
# what a mail says runs nothing and loads nothing from us; a link in it opens in a tab of its own.
MAIL_POLICY = (
    "default-src 'none'; img-src https: data:; style-src 'unsafe-inline'; frame-ancestors 'self'; "
    "sandbox allow-popups allow-popups-to-escape-sandbox"
)
_HEAD = re.compile(r"<head[^>]*>", re.IGNORECASE)


def is_here(settings: Settings) -> bool:
    """Whether this installation has an outbox, and this request may see it."""
    if settings.smtp_url is not None or not settings.base_is_loopback:
        return False
    names = [name.lower() for name, _ in request.headers]
    if any(name in ("forwarded", "x-real-ip", "via") or name.startswith("x-forwarded") for name in names):
        return False
    return is_loopback(asked_host())


@blueprint.before_request
def guard() -> None:
    if not is_here(here().settings):
        abort(404)


@blueprint.after_request
def protect(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
    response.headers["Cache-Control"] = "no-store"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Robots-Tag"] = "noindex, nofollow"
    return response


@blueprint.get("/outbox")
def listing() -> str:
    """All captured mail, newest first."""
    with here().engine.connect() as conn:
        mails = outbox.newest(conn)
    return render_template("outbox/listing.html", mails=mails, limit=outbox.NEWEST)


@blueprint.get("/outbox/<bigint:mail_id>")
def reading(mail_id: int) -> str:
    """One mail with its headers, both parts, and the way to the next."""
    with here().engine.connect() as conn:
        mail = outbox.one(conn, mail_id)
        newer, older = outbox.neighbours(conn, mail_id)
    if mail is None:
        abort(404)
    return render_template("outbox/reading.html", mail=mail, newer=newer, older=older)


@blueprint.get("/outbox/<bigint:mail_id>/html")
def body(mail_id: int) -> Response:
    """The HTML part alone, for the reading pane's frame."""
    with here().engine.connect() as conn:
        mail = outbox.one(conn, mail_id)
    if mail is None:
        abort(404)
    opened_elsewhere = '<base target="_blank">'
    html, found = _HEAD.subn(lambda head: head[0] + opened_elsewhere, mail.html, count=1)
    response = make_response(html if found else opened_elsewhere + html)
    response.headers["Content-Security-Policy"] = MAIL_POLICY
    # The frame is ours; DENY, which every other answer carries, would keep it out.
    response.headers["X-Frame-Options"] = "SAMEORIGIN"
    return response


@blueprint.get("/outbox.json")
def listing_json() -> Response:
    """The same for programs: `[{id, to, from, subject, headers, text, html, campaign, step, captured_at}]`, newest first."""
    with here().engine.connect() as conn:
        mails = outbox.newest(conn)
    return jsonify(
        [
            {
                "id": mail.id,
                "to": mail.recipient,
                "from": mail.sender,
                "subject": mail.subject,
                "headers": mail.headers,
                "text": mail.text,
                "html": mail.html,
                "campaign": mail.campaign,
                "step": mail.step,
                "captured_at": mail.captured_at.isoformat(),
            }
            for mail in mails
        ]
    )
