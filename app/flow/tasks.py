"""Tasks of staff: done, dismissed, opened again, given to somebody, made by hand. Campaigns make theirs with their other effects."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal
from uuid import UUID, uuid4

from sqlalchemy import Connection, select, update

from app.errors import InputError, NotFound
from app.flow.composing.filters import one_line
from app.flow.reading.accounts import find_account
from app.flow.reading.contacts import find_contact
from app.models import task
from app.rules.identity import normalise

Keep = Literal["keep"]
CLOSED = ("done", "dismissed")
VISIBLE = ("open", *CLOSED)  # those that are somebody's to do, or were


def add_task(
    conn: Connection,
    account: str,
    title: str,
    now: datetime,
    *,
    contact: str | None = None,
    note: str = "",
    assignee: str | None = None,
    due_at: datetime | None = None,
) -> UUID:
    """Makes a task by hand for the account of that external id; without `assignee` it is the owner's. Returns its id.

    Raises InputError on an empty or long title or note and on a bad address, NotFound when the account or contact does not exist.
    """
    title = one_line(title).strip()
    if not 1 <= len(title) <= 500:
        raise InputError("must have 1 to 500 characters", "title")
    whose = find_account(conn, account)
    made = uuid4()
    conn.execute(
        task.insert().values(
            id=made,
            account_id=whose.id,
            contact_id=find_contact(conn, contact).id if contact else None,
            title=title,
            note=_words(note, "note") or "",
            assignee=_address(assignee) if assignee else whose.owner_email,
            assignee_name=None if assignee else whose.owner_name,
            created_at=now,
            due_at=due_at,
            state="open",
        )
    )
    return made


def change_task(
    conn: Connection,
    task_id: str | UUID,
    now: datetime,
    *,
    state: str | None = None,
    outcome: str | None = None,
    assignee: str | None | Keep = "keep",
) -> bool:
    """Closes the task, opens it again, or gives it to another address (None: to nobody). `outcome` is what came of it, and is forgotten
    when it is opened again. Returns whether its state is another now: asking twice changes nothing more.

    Only an open task is closed as something else: whoever closed it first decides. Raises NotFound, InputError.
    """
    row = conn.execute(
        select(task.c.id, task.c.state).where(task.c.id == _id(task_id), task.c.state.in_(VISIBLE)).with_for_update()
    ).first()
    if row is None:
        raise NotFound(f"There is no task {task_id}.")
    wanted = state or row.state
    if wanted not in VISIBLE:
        raise InputError(f"must be one of {', '.join(VISIBLE)}", "state")
    if row.state in CLOSED and wanted in CLOSED and wanted != row.state:
        raise InputError(f"the task is {row.state} already; open it again first", "state")
    if outcome is not None and wanted not in CLOSED:
        raise InputError("says what came of a task that is done or dismissed", "outcome")
    changes: dict[str, Any] = {}
    if wanted != row.state:
        changes |= {"state": wanted, "closed_at": None if wanted == "open" else now, "outcome": None}
    if outcome is not None:
        changes["outcome"] = _words(outcome, "outcome")
    if assignee != "keep":
        changes |= {"assignee": _address(assignee) if assignee else None, "assignee_name": None}
    if changes:
        conn.execute(update(task).where(task.c.id == row.id).values(changes))
    return wanted != row.state


def _id(value: str | UUID) -> UUID:
    try:
        return value if isinstance(value, UUID) else UUID(value)
    except ValueError:
        raise NotFound(f"There is no task {value!r}.") from None


def _address(value: str) -> str:
    if normalise(value) is None:
        raise InputError("is not an email address", "assignee")
    return value.strip()


def _words(value: str, field: str) -> str | None:
    value = value.replace("\x00", "").encode("utf-8", "replace").decode().strip()
    if len(value) > 4000:
        raise InputError("must have 4,000 characters at most", field)
    return value or None
