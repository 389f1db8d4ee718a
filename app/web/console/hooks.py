"""The pages of what mail providers told: their addresses, each call with its verdict, its JSON, and a button that has it read again."""

from __future__ import annotations

from flask import g, redirect, render_template, request, url_for
from werkzeug import Response

from app.errors import InputError
from app.flow.hooks import retry_call
from app.flow.reading import hooks
from app.flow.reading.paging import clean
from app.web.console import blueprint, known_book
from app.web.context import here, reading

TABS = (("", "All"), ("unmatched", "Unmatched"), ("failed", "Failed"), ("refused", "Refused"), ("waiting", "Waiting"))


@blueprint.get("/hooks", endpoint="hooks")
def hooks_page() -> str:
    wanted = {name: clean(request.args.get(name)) for name in ("hook", "state")}
    with reading() as conn:
        known_book(conn)
        return render_template(
            "console/hooks.html",
            hooks=hooks.hooks(conn, here().settings, g.now),
            page=hooks.received(conn, **wanted, cursor=request.args.get("cursor")),
            wanted=wanted,
            tabs=TABS,
        )


@blueprint.get("/hooks/<bigint:call_id>", endpoint="hook_call")
def call_page(call_id: int) -> str:
    with reading() as conn:
        known_book(conn)
        return render_template("console/hook_call.html", call=hooks.call(conn, call_id))


@blueprint.post("/hooks/<bigint:call_id>", endpoint="retry_hook_call")
def retry(call_id: int) -> Response | tuple[str, int]:
    """Has the call read once more, and goes back to it."""
    try:
        with here().engine.begin() as conn:
            retry_call(conn, call_id)
    except InputError as error:
        return render_template("console/problem.html", title="Nothing was changed", detail=str(error)), 400
    here().bells.hooks()
    return redirect(url_for("console.hook_call", call_id=call_id), 303)
