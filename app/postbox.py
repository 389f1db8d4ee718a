"""Commands about mail that came in."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC
from typing import Any

from app.errors import InputError


def inbound_list(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.reading.inbound import mails

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        found = mails(conn, kind=args.kind, state=args.state, limit=args.limit)
    more = ["There are more: --limit shows them, --kind and --state narrow them down."] if found.next else []
    cli.show(args, found.items, "\n".join([*map(_line, found.items), *more]) or "No mail came in that matches.")


def inbound_show(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.reading.inbound import mail, raw

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        found = mail(conn, args.id)
        data = raw(conn, args.id) if args.raw else None
    if data is not None:
        sys.stdout.buffer.write(data)
        return
    reports = [", ".join(f"{name} {value}" for name, value in one.items()) for one in found["reports"]]
    about = ("received_at", "author", "recipient", "subject", "message", "account", "contact", "why")
    lines = [_line(found), *(f"{name}: {found[name]}" for name in about if found[name] is not None)]
    lines += [f"report: {one}" for one in reports] + [f"note: {one}" for one in found["notes"]]
    cli.show(args, found, "\n".join([*lines, "", found["text"] or ""]).rstrip())


def inbound_retry(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.inbound import retry
    from app.queue import Bells

    try:
        mail_id = None if args.id == "all" else int(args.id)
    except ValueError as error:
        raise InputError("is the id of a mail, or all", "id") from error
    with cli.installation(args) as (settings, engine):
        with engine.begin() as conn:
            count = retry(conn, mail_id)
        Bells(settings.redis_url).inbound()
    cli.show(args, {"retried": count}, f"{count} will be read again.")


def list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kind", help="only bounce, delay, delivery, complaint, feedback, unsubscribe, auto_reply, reply, other or unreadable"
    )
    parser.add_argument("--state", help="only waiting, done, failed or aside (failed, unreadable, forged or about no message of ours)")
    parser.add_argument("--limit", type=int, default=50, metavar="N", help="at most so many (50)")


def show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", type=int, help="the mail's id")
    parser.add_argument("--raw", action="store_true", help="the mail as it came, and nothing else")


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the mail's id; all: whatever failed or was put aside")


def _line(one: dict[str, Any]) -> str:
    kind = one["kind"] or one["state"]
    state = one["problem"] or (one["state"] if one["state"] != "done" else "")
    when = f"{one['received_at'].astimezone(UTC):%Y-%m-%d %H:%M}"
    return f"{one['id']:>6}  {when}  {kind:<11}  {state:<10}  {one['author'] or '–'}: {one['subject'] or ''}"
