"""The page of tasks: what staff have to do, and the buttons that say it is done."""

from __future__ import annotations

from flask import g, redirect, render_template, request, url_for
from werkzeug import Response

from app.errors import InputError
from app.flow.reading import tasks
from app.flow.reading.paging import clean
from app.flow.tasks import change_task
from app.web.console import blueprint, known_book
from app.web.context import here, reading

# What a button asks for → the state that follows.
DOES = {"done": "done", "dismiss": "dismissed", "reopen": "open"}
TABS = (("open", "Open"), ("overdue", "Overdue"), ("done", "Done"), ("dismissed", "Dismissed"))


@blueprint.get("/tasks", endpoint="tasks")
def tasks_page() -> str:
    show = clean(request.args.get("show")) or "open"
    if show not in dict(TABS):
        raise InputError(f"must be one of {', '.join(dict(TABS))}", "show")
    wanted = {name: clean(request.args.get(name)) for name in ("assignee", "account")}
    with reading() as conn:
        known_book(conn)
        return render_template(
            "console/tasks.html",
            page=tasks.tasks(
                conn,
                g.now,
                **wanted,
                state="open" if show == "overdue" else show,
                overdue=show == "overdue",
                cursor=request.args.get("cursor"),
            ),
            counts=tasks.counts(conn, g.now),
            assignees=tasks.assignees(conn),
            nobody=tasks.NOBODY,
            wanted=wanted,
            filtered=any(wanted.values()),
            show=show,
            tabs=TABS,
            changed=tasks.task(conn, changed, g.now) if (changed := clean(request.args.get("changed"))) else None,
        )


@blueprint.post("/tasks/<task_id>", endpoint="change_task")
def change(task_id: str) -> Response | tuple[str, int]:
    """Closes a task or opens it again, and goes back to the page it was pressed on."""
    does, account = request.form.get("do", ""), request.form.get("account", "")
    try:
        if does not in DOES:
            raise InputError(f"must be one of {', '.join(DOES)}", "do")
        outcome = clean(request.form.get("outcome")) if does != "reopen" else None
        with here().engine.begin() as conn:
            change_task(conn, task_id, g.now, state=DOES[does], outcome=outcome)
    except InputError as error:
        return render_template("console/problem.html", title="Nothing was changed", detail=str(error)), 400
    if account:
        return redirect(url_for("console.account", key=account) + "#tasks", 303)
    kept = {name: value for name in ("show", "assignee") if (value := clean(request.form.get(name)))}
    return redirect(url_for("console.tasks", **kept, changed=task_id), 303)
