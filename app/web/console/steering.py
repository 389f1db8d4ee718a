"""Forms that steer a campaign: its mode, and the version that new enrollments enter. Each says what the page showed, so that whoever
presses a button changes what he saw and nothing else."""

from __future__ import annotations

from typing import Any

from flask import g, redirect, render_template, request, url_for
from werkzeug import Response

from app.errors import InputError
from app.flow.reading.paging import clean
from app.flow.steering import set_mode
from app.flow.versions import roll_back
from app.web.console import blueprint
from app.web.context import here

# mode → its buttons: (the mode that follows, what the button says, what it does).
BUTTONS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "draft": (
        ("shadow", "Start in shadow", "Everything runs; messages are kept instead of sent."),
        ("live", "Go live", "New enrollments begin, and mail is sent."),
    ),
    "shadow": (
        ("live", "Go live", "What ran in shadow ends; new enrollments begin, and mail is sent."),
        ("draft", "Back to draft", "What ran in shadow ends, and nothing new begins."),
    ),
    "live": (("paused", "Pause", "Timers stand still; mail, alerts, webhooks and tasks wait, until somebody resumes it."),),
    "paused": (),
    "archived": (("paused", "Unarchive", "It is paused then: nothing is sent before somebody resumes it."),),
}
CHOICES = (
    ("send", "Send it now", "Everything goes at once, and what follows counts from now."),
    ("skip", "Skip it", "They go on without what was overdue."),
    ("exit", "Take them out", "Whoever was overdue leaves the campaign."),
)


def undo_of(row: dict[str, Any]) -> dict[str, Any] | None:
    """What the page says after a change, by the query that the change led to: the mode or version that was before, and is not now."""
    was = clean(request.args.get("was"))
    if was in BUTTONS and was != row["mode"]:
        return {"mode": was}
    numbers = {str(one["number"]) for one in row["versions"]}
    return {"version": int(was)} if was in numbers and was != str(row["version"]) else None


@blueprint.post("/campaigns/<key:key>/mode", endpoint="set_mode", merge_slashes=False)
def change_mode(key: str) -> Response | tuple[str, int]:
    """Pauses, resumes, archives a campaign or has it go live."""
    wanted, was = request.form.get("mode", ""), request.form.get("was", "")
    choice, leave = request.form.get("overdue") or None, request.form.get("exit") == "yes"
    try:
        with here().engine.begin() as conn:
            done = set_mode(conn, key, wanted, g.now, was=was, choice=choice, leave=leave, by="console")
    except InputError as error:
        return _refused(error)
    here().bells.advance(done.partitions)
    if done.effects:
        here().bells.notify()
    return redirect(url_for("console.campaign", key=key, was=was), 303)


@blueprint.post("/campaigns/<key:key>/version", endpoint="roll_back", merge_slashes=False)
def change_version(key: str) -> Response | tuple[str, int]:
    """Has new enrollments enter another version."""
    number, was = request.form.get("number", ""), request.form.get("was", "")
    try:
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise InputError("is not the number of a version", "number")
        with here().engine.begin() as conn:
            done = roll_back(conn, key, g.now, int(number), by="console")
            if str(done.before) != was:
                raise InputError(f"somebody has changed it meanwhile: it is {done.before} now, not {was or 'known'}", "version")
    except InputError as error:
        return _refused(error)
    return redirect(url_for("console.campaign", key=key, was=was) + "#versions", 303)


def _refused(error: InputError) -> tuple[str, int]:
    return render_template("console/problem.html", title="Nothing was changed", detail=str(error)), 400
