"""Commands about one customer, and into the console: `nurture explain`, `nurture hold …`, `nurture sign-in`."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from pydantic_core import to_json

from app.errors import InputError
from app.rules.timing import duration


def explain(args: argparse.Namespace) -> None:
    """Prints why each message was or was not sent to a contact."""
    from app import cli
    from app.flow.explain import explain as explained
    from app.flow.publish import book

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        found = explained(conn, book(conn), args.contact, now=datetime.now(UTC), account=args.account, campaign=args.campaign)
    if args.json:
        print(to_json(found.plain(), indent=2).decode())
        return
    print("\n".join(written(found, args.all)))


def written(found, every: bool = False) -> Iterator[str]:
    """The lines of an explanation. `every` adds the gates that said yes and the steps that were not come to."""
    for note in found.notes:
        yield f"! {note.text}"
    for story in found.stories:
        whose = f" for {story.contact}" if len(found.contacts) > 1 else ""
        yield ""
        yield f"{story.campaign_name} ({story.campaign}, {story.mode}) at {story.account_name or story.account}{whose}"
        yield from _wrapped(story.summary + (f" Goes on {_at(story.due_at)}." if story.due_at else ""), "  ")
        for letter in story.letters:
            if letter.state == "not_made" and not every and story.step != letter.step and not letter.lines[-1].evidence:
                continue
            yield f"  {_MARKS.get(letter.state, '·')} {letter.step}: {letter.subject or ''}".rstrip()
            yield from _wrapped(letter.text + (f" {_at(letter.at)}" if letter.at else ""), "      ")
            for line in letter.lines:
                if every or line.verdict != "yes":
                    yield from _line(line, "      ")
        lines = (*story.entry, *story.way)
        for line in lines if every or not story.letters else ():
            yield from _line(line, "    ")


_MARKS = {"sent": "✓", "due": "…", "claimed": "…", "in_dot": "…", "waiting": "…", "skipped": "✗", "unknown": "?"}


def _line(line, indent: str) -> Iterator[str]:
    when = f"{_at(line.at)}  " if line.at else "now  "
    version = f", version {line.version}" if line.version else ""
    yield from _wrapped(f"{when}{line.gate_name}: {line.verdict}. {line.text} [{line.reason}{version}]", indent)


def _wrapped(words: str, indent: str) -> list[str]:
    return textwrap.wrap(words, 110, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False)


def _at(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("contact", help="the contact's id or address")
    parser.add_argument("--account", help="only for this account (its id)")
    parser.add_argument("--campaign", help="only this campaign (its folder, such as onboarding/first-value)")
    parser.add_argument("--all", action="store_true", help="every gate, also those that said yes, and steps not come to")


def hold_add(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.holding import hold

    now = datetime.now(UTC)
    until = now + _length(args.length) if args.length else None
    with cli.installation(args) as (_, engine), engine.begin() as conn:
        made = hold(conn, args.reason, now, account=args.account, contact=args.contact, until=until)
    ends = f"until {_at(until)}" if until else "until released"
    cli.show(args, {"id": made, "until": until}, f"Held {ends}. Release it: nurture hold release {made}")


def hold_list(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.holding import list_holds

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        rows = list_holds(conn, datetime.now(UTC))
    lines = [
        f"{row['id']}  {'account ' + row['account'] if row['account'] else 'contact ' + str(row['contact'])}  {row['reason']}"
        f"  {'until ' + _at(row['until']) if row['until'] else 'until released'}"
        for row in rows
    ]
    cli.show(args, rows, "\n".join(lines) or "Nobody is on hold.")


def hold_release(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.holding import release

    with cli.installation(args) as (_, engine), engine.begin() as conn:
        release(conn, args.id, datetime.now(UTC))
    cli.show(args, {"released": args.id}, "Released.")


def hold_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--account", help="the account's id")
    parser.add_argument("--contact", help="the contact's id")
    parser.add_argument("--reason", default="by hand", help="why, for whoever wonders later")
    parser.add_argument("--for", dest="length", metavar="DURATION", help="such as 14d; until released if not given")


def sign_in(args: argparse.Namespace) -> None:
    """Prints a fresh one-time link to the console; with --end-all signs everybody out first."""
    from app import cli
    from app.flow.access import create_sign_in, end_all_sessions

    now = datetime.now(UTC)
    with cli.installation(args) as (settings, engine), engine.begin() as conn:
        ended = end_all_sessions(conn, now) if args.end_all else None
        link = f"{settings.base_url}/console/sign-in/{create_sign_in(conn, now)}"
    words = f"{link}\nIt works once, within 24 hours."
    cli.show(args, {"link": link, "ended": ended}, words if ended is None else f"{ended} session(s) ended.\n{words}")


def _length(value: str) -> timedelta:
    try:
        return duration(value)
    except ValueError as error:
        raise InputError(str(error), "--for") from error
