"""The page of the way out: what carries mail and stands still, what stopped mail by itself, who signs, and messages of which nobody knows
whether they arrived, with a button for whoever does."""

from __future__ import annotations

from flask import g, redirect, render_template, request, url_for
from werkzeug import Response

from app.errors import InputError
from app.flow import brakes, transports, unknown
from app.flow.dkim import list_keys
from app.rules.modes import OVERDUE
from app.web.console import blueprint, known_book
from app.web.context import here, reading


@blueprint.get("/sending", endpoint="sending")
def sending_page() -> str:
    with reading() as conn:
        book = known_book(conn)
        waiting = unknown.unknown(conn)
        return render_template(
            "console/sending.html",
            transports=transports.listed(conn, here().settings, book.lifecycle if book else None, g.now),
            brakes=[{**one, "said": brakes.sentence(one)} for one in brakes.list_brakes(conn)],
            keys=[one for one in list_keys(conn) if one["state"] != "retired"],
            unknown=waiting,
            more=len(waiting) >= unknown.SHOWN,
            choices=OVERDUE,
        )


@blueprint.post("/sending/transports/<name>", endpoint="steer_transport")
def steer_transport(name: str) -> Response | tuple[str, int]:
    """Pauses a transport, or ends its pause and those of its lanes."""
    action = request.form.get("action", "")
    try:
        with here().engine.begin() as conn:
            if action == "pause":
                transports.pause(conn, name, g.now, detail="paused in the console")
            elif action == "resume":
                transports.resume(conn, name, g.now)
            else:
                raise InputError("must be pause or resume", "action")
    except InputError as error:
        return _refused(error)
    if action == "resume":
        here().bells.deliver()
    return redirect(url_for("console.sending") + "#transports", 303)


@blueprint.post("/sending/brakes/<bigint:ident>", endpoint="release_brake")
def release_brake(ident: int) -> Response | tuple[str, int]:
    """Takes a brake off; of a paused campaign with the choice what becomes of what it held up."""
    try:
        with here().engine.begin() as conn:
            done = brakes.release(conn, ident, g.now, choice=request.form.get("overdue") or None, by="console")
    except InputError as error:
        return _refused(error)
    here().bells.advance(done["partitions"])
    here().bells.deliver()
    return redirect(url_for("console.sending") + "#brakes", 303)


@blueprint.post("/sending/unknown", endpoint="resolve_unknown")
def resolve_unknown() -> Response | tuple[str, int]:
    """What somebody who has looked at the relay's log says of one message: it arrived, or it is to be sent again."""
    try:
        with here().engine.begin() as conn:
            done = unknown.decide(conn, [request.form.get("message", "")], request.form.get("verdict", ""), g.now)
            if not done:
                raise InputError("is settled already: somebody or something was quicker", "message")
    except InputError as error:
        return _refused(error)
    here().bells.deliver()
    return redirect(url_for("console.sending") + "#unknown", 303)


def _refused(error: InputError) -> tuple[str, int]:
    return render_template("console/problem.html", title="Nothing was changed", detail=str(error)), 400
