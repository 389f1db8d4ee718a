"""Commands for staff: their tasks, and the channels that alerts and webhooks go to."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import Any

from app.errors import InputError
from app.rules.timing import duration


def tasks_list(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.reading.tasks import tasks

    wanted = {"account": args.account, "assignee": args.assignee, "overdue": args.overdue, "state": "all" if args.all else None}
    with cli.installation(args) as (_, engine), engine.connect() as conn:
        found = tasks(conn, datetime.now(UTC), **wanted, limit=1000)
    more = ["There are more: narrow them down with --account or --assignee."] if found.next else []
    cli.show(args, found.items, "\n".join([*map(_line, found.items), *more]) or "There is nothing to do.")


def tasks_add(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.tasks import add_task

    now = datetime.now(UTC)
    due_at = now + _length(args.due) if args.due else None
    with cli.installation(args) as (_, engine), engine.begin() as conn:
        made = add_task(conn, args.account, args.title, now, contact=args.contact, note=args.note, assignee=args.assignee, due_at=due_at)
    cli.show(args, {"id": made}, f"Added: {made}")


def tasks_done(args: argparse.Namespace) -> None:
    _change(args, "Done.", state="done", outcome=args.outcome)


def tasks_dismiss(args: argparse.Namespace) -> None:
    _change(args, "Dismissed.", state="dismissed", outcome=args.outcome)


def tasks_reopen(args: argparse.Namespace) -> None:
    _change(args, "Open again.", state="open")


def tasks_assign(args: argparse.Namespace) -> None:
    nobody = args.address == "nobody"
    _change(args, "Nobody's now." if nobody else f"Given to {args.address}.", assignee=None if nobody else args.address)


def _change(args: argparse.Namespace, words: str, **changes: Any) -> None:
    from app import cli
    from app.flow.reading.tasks import task
    from app.flow.tasks import change_task

    now = datetime.now(UTC)
    with cli.installation(args) as (_, engine), engine.begin() as conn:
        change_task(conn, args.id, now, **changes)
        found = task(conn, args.id, now)
    cli.show(args, found, words)


def channels_set(args: argparse.Namespace) -> None:
    """Prints a webhook's signing secret when it is new, and never again."""
    from app import cli
    from app.flow.channels import set_channel

    kind, address = next((kind, value) for kind in ("slack", "webhook", "email") if (value := getattr(args, kind)))
    address = sys.stdin.readline().strip() if address == "-" else address
    with cli.installation(args) as (settings, engine), engine.begin() as conn:
        before = _secret_of(conn, settings, args.name)
        made = set_channel(conn, settings, args.name, kind, address, datetime.now(UTC), rotate=args.rotate)
        declared = args.name in _declared(conn)
    fresh = made.secret if made.secret != before else None
    lines = [f"Channel {made.name} goes to {made.shown}."]
    lines += [] if declared else [f"lifecycle.yaml does not declare it yet: channels: {{{made.name}: what it is for}}"]
    lines += [f"Signing secret: {fresh}", "Keep it: it cannot be shown again."] if fresh else []
    lines += ["What is sent is signed with the old secret too for 24 hours."] if made.old_secret and args.rotate else []
    data = {"name": made.name, "kind": made.kind, "to": made.shown, "declared": declared, "secret": fresh}
    cli.show(args, data, "\n".join(lines))


def channels_list(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.channels import list_channels

    with cli.installation(args) as (settings, engine), engine.connect() as conn:
        rows = list_channels(conn, settings, _declared(conn))
    lines = [f"{one['name']:<20}  {one['kind'] or '–':<7}  {one['to'] or one['state']}{_disabled(one)}" for one in rows]
    cli.show(args, rows, "\n".join(lines) or "There are no channels: lifecycle.yaml declares them under channels.")


def channels_enable(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.channels import enable_channel

    with cli.installation(args) as (_, engine), engine.begin() as conn:
        enable_channel(conn, args.name)
    cli.show(args, {"enabled": args.name}, f"Alerts and webhooks go to {args.name} again. What failed meanwhile is not sent again.")


def channels_remove(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.channels import remove_channel

    with cli.installation(args) as (_, engine), engine.begin() as conn:
        remove_channel(conn, args.name)
    cli.show(args, {"removed": args.name}, "Removed.")


def channels_test(args: argparse.Namespace) -> None:
    """Sends one word through the channel."""
    from app import cli
    from app.errors import NotFound
    from app.flow.channels import find_channels
    from app.flow.deliver import transport_for
    from app.flow.dkim import signers_now
    from app.flow.notify import send_test
    from app.flow.publish import book
    from app.providers.outgoing import Caller
    from app.rules.delivery import Limits

    now = datetime.now(UTC)
    with cli.installation(args) as (settings, engine):
        with engine.connect() as conn:
            channel = find_channels(conn, settings, [args.name]).get(args.name)
            lifecycle, signers = book(conn).lifecycle, signers_now(conn, settings)
        if channel is None:
            raise NotFound(f"There is no channel {args.name} on this installation: nurture channels set {args.name} …")
        transport = transport_for(settings, engine, lambda: now, Limits())
        said = send_test(channel, lifecycle, signers, transport, now, Caller(settings.allow_hosts))
    cli.show(args, {"channel": args.name, "answer": said}, f"{channel.shown} answered: {said}")


def list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--account", metavar="ID", help="only this account's")
    parser.add_argument("--assignee", metavar="ADDRESS", help="only this person's; nobody: those nobody has")
    parser.add_argument("--overdue", action="store_true", help="only open ones whose date has passed")
    parser.add_argument("--all", action="store_true", help="closed ones too, the latest first")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("title", help="what is to be done")
    parser.add_argument("--account", metavar="ID", required=True, help="the account's id")
    parser.add_argument("--contact", metavar="ID", help="a contact's id")
    parser.add_argument("--note", default="", help="what else there is to know")
    parser.add_argument("--assignee", metavar="ADDRESS", help="who does it; the account's owner if not given")
    parser.add_argument("--due", metavar="DURATION", help="from now, such as 3d")


def close_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the task's id")
    parser.add_argument("--outcome", metavar="TEXT", help="what came of it")


def assign_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the task's id")
    parser.add_argument("address", help="whose it is now; nobody: no one's")


def set_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="the channel, as lifecycle.yaml names it")
    ways = parser.add_mutually_exclusive_group(required=True)
    ways.add_argument("--slack", metavar="URL", help="a Slack-compatible incoming webhook; - reads it from standard input")
    ways.add_argument("--webhook", metavar="URL", help="an address that takes signed webhooks; - reads it from standard input")
    ways.add_argument("--email", metavar="ADDRESS", help="an email address; for alerts only")
    parser.add_argument("--rotate", action="store_true", help="give a webhook a new signing secret; the old one signs too for 24 hours")


def _disabled(one: dict[str, Any]) -> str:
    why = one["disabled"]
    return f"  disabled since {why['at'][:16].replace('T', ' ')}: {why['why']} (nurture channels enable {one['name']})" if why else ""


def _line(one: dict[str, Any]) -> str:
    due = f"{one['due_at'].astimezone(UTC):%Y-%m-%d}" if one["due_at"] else "no date"
    mark = "overdue" if one["overdue"] else one["state"]
    whose = one["assignee_name"] or one["assignee"] or "nobody"
    return f"{one['id']}  {due:<10}  {mark:<9}  {whose}: {one['title']} ({one['account_name'] or one['account']})"


def _declared(conn: Any) -> dict[str, str]:
    from app.errors import NotFound
    from app.flow.publish import book

    try:
        return dict(book(conn).lifecycle.channels)
    except NotFound:
        return {}


def _secret_of(conn: Any, settings: Any, name: str) -> str | None:
    from app.flow.channels import Sealed, find_channels

    try:
        found = find_channels(conn, settings, [name]).get(name)
    except Sealed:
        return None
    return found.secret if found else None


def _length(value: str) -> Any:
    try:
        return duration(value)
    except ValueError as error:
        raise InputError(str(error), "--due") from error
