"""The console: server-rendered pages for staff, always behind a session, all reading but sign-out, holds, tasks,
steering and the retry of provider webhooks.

One cookie carries the session's token, signed; the session itself is a row (X-31). Pages need no script and load nothing from
third parties; the only form posts are protected against forgery (X-30).
"""

from __future__ import annotations

from datetime import UTC, datetime
from urllib.parse import urlsplit

import structlog
from flask import Blueprint, Response, abort, current_app, g, redirect, render_template, request, session, url_for
from flask_wtf.csrf import CSRFError, CSRFProtect
from sqlalchemy import Connection

from app.errors import InputError, NotFound, StartError
from app.flow import access
from app.flow.publish import book
from app.rules.book import Book
from app.web import public
from app.web.console import words
from app.web.context import here
from app.web.guards import too_fast

log = structlog.get_logger("access")
blueprint = Blueprint("console", __name__, url_prefix="/console")
csrf = CSRFProtect()

CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; frame-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
# Reached without a session: the link itself is the credential.
OPEN = frozenset({"console.take_sign_in"})


@blueprint.record_once
def configure(state) -> None:
    """The cookie's settings (Flask's own are insecure) and the words that templates use."""
    app = state.app
    secure = app.extensions["nurture"].settings.console_base.startswith("https://")
    app.config.update(
        SESSION_COOKIE_NAME="__Host-nurture" if secure else "nurture",
        SESSION_COOKIE_SECURE=secure,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_PATH="/",
        SESSION_REFRESH_EACH_REQUEST=False,
        PERMANENT_SESSION_LIFETIME=access.SESSION_LIFE,
        # Checked by the guard below, for the console alone: every other POST carries a token or key of its own.
        WTF_CSRF_CHECK_DEFAULT=False,
        WTF_CSRF_TIME_LIMIT=None,
    )
    csrf.init_app(app)
    words.register(app)


@blueprint.before_request
def guard() -> Response | tuple[str, int] | None:
    g.now = datetime.now(UTC)
    if elsewhere():
        abort(404)
    if request.endpoint in OPEN:
        return None
    token = session.get("token")
    if token:
        with here().engine.begin() as conn:
            if access.session_valid(conn, token, g.now):
                csrf.protect()
                return None
        session.clear()
    return render_template("console/signed_out.html", ended=bool(token)), 401


def elsewhere() -> bool:
    """Whether the console has a host of its own, and this request came to another: that of the links, which sets and reads no cookie."""
    url = here().settings.console_url
    return url is not None and request.host.lower() != urlsplit(url).netloc.lower()


@blueprint.after_request
def protect(response: Response) -> Response:
    response.headers.setdefault("Content-Security-Policy", CONTENT_POLICY)
    response.headers["X-Content-Type-Options"] = "nosniff"
    # Not no-referrer: the forgery check of secure sites compares the referrer of the site's own forms.
    response.headers["Referrer-Policy"] = "same-origin"
    response.headers["Cache-Control"] = "no-store"
    response.headers["X-Robots-Tag"] = "noindex, nofollow"
    return response


@blueprint.get("/sign-in/<token>")
def take_sign_in(token: str) -> Response | tuple[str, int]:
    """Signs in by a one-time link. HEAD changes nothing."""
    if request.method == "HEAD":
        return Response(status=200)
    if wait := current_app.extensions["paces"].sign_in.wait(public.network() or ""):
        return too_fast(wait)
    with here().engine.begin() as conn:
        made = access.sign_in(conn, token, g.now, request.headers.get("User-Agent"))
        if made and (old := session.get("token")):
            access.end_session(conn, old, g.now)
    if made is None:
        log.warning("sign-in refused", network=public.network())
        return render_template("console/signed_out.html", spent=True), 401
    log.info("signed in", network=public.network())
    session.clear()
    session["token"] = made
    session.permanent = True
    return redirect(url_for("console.overview"), 303)


@blueprint.post("/sign-out")
def sign_out() -> tuple[str, int]:
    with here().engine.begin() as conn:
        access.end_session(conn, session["token"], g.now)
    log.info("signed out", network=public.network())
    session.clear()
    return render_template("console/signed_out.html", out=True), 200


class NothingPublished(Exception):
    """No campaigns folder has been published yet, so there are no stages, milestones or campaigns to speak of."""


def known_book(conn: Connection) -> Book:
    """What is in force; from here on this request shows times in its zone. Raises NothingPublished, which becomes a page."""
    try:
        found = book(conn)
    except NotFound as error:
        raise NothingPublished from error
    words.set_zone(found.lifecycle.timezone)
    return found


@blueprint.errorhandler(NothingPublished)
def nothing_published(_: NothingPublished) -> str:
    return render_template("console/unpublished.html")


@blueprint.errorhandler(NotFound)
def not_found(error: NotFound) -> tuple[str, int]:
    return render_template("console/problem.html", title="Not found", detail=str(error)), 404


@blueprint.errorhandler(InputError)
def bad_input(error: InputError) -> tuple[str, int]:
    return render_template("console/problem.html", title="That filter cannot be used", detail=str(error)), 400


@blueprint.errorhandler(StartError)
def busy(error: StartError) -> tuple[str, int]:
    return render_template("console/problem.html", title="Nothing was changed", detail=f"It cannot be done at this moment: {error}."), 503


@blueprint.errorhandler(CSRFError)
def forged(error: CSRFError) -> tuple[str, int]:
    log.warning("form refused", endpoint=request.endpoint, problem=error.description, network=public.network())
    detail = "The form was too old or did not come from this page. Go back, reload and try again."
    return render_template("console/problem.html", title="Nothing was changed", detail=detail), 400


from app.web.console import customers, hooks, inbound, mail, privacy, sending, steering, tasks  # noqa: E402, F401 — they add their pages to the blueprint
