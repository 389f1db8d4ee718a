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
    """Prints why each message was or was not sent to a contact, or what became of an account in each campaign."""
    from app import cli
    from app.flow.explain import explain as explained
    from app.flow.explain import read_moment
    from app.flow.publish import book

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        known = book(conn)
        wanted = {"account": args.account, "campaign": args.campaign, "at": read_moment(args.at, known)}
        found = explained(conn, known, args.contact, now=datetime.now(UTC), **wanted)
    if args.json:
        print(to_json(found.plain(), indent=2, inf_nan_mode="null").decode())
        return
    print("\n".join(written(found, args.all)))


def written(found, every: bool = False) -> Iterator[str]:
    """The lines of an explanation, the answer first. `every` adds the gates that were open, and those that were not asked, of every mail,
    and the steps that were not come to."""
    yield from _wrapped(_answer(found), "")
    for note in found.notes:
        yield from _wrapped(note.text, "! ")
    for story in found.stories:
        whose = f" for {story.contact}" if len(found.contacts) > 1 else ""
        version = f", version {story.version}" if story.version else ""
        yield ""
        yield f"{story.campaign_name} ({story.campaign}, {story.mode}{version}) at {story.account_name or story.account}{whose}"
        said = "" if len(found.stories) == 1 else story.summary
        yield from _wrapped(f"{said} Goes on {_at(story.due_at)}.".strip() if story.due_at else said, "  ")
        yield from _ladder(story, every)
        for letter in story.letters:
            if letter.state == "not_made" and not every and story.step != letter.step and not letter.lines[-1].evidence.get("has"):
                continue
            to = f" to {letter.contact}" if letter.contact and not found.contacts else ""
            yield f"  {_MARKS.get(letter.state, '·')} {letter.step}: {letter.subject or ''}{to}".rstrip()
            yield from _wrapped(letter.text + (f" {_at(letter.at)}" if letter.at else ""), "      ")
            for line in letter.lines:
                if every or (line.verdict != "yes" and line.text != letter.text):
                    yield from _line(line, "      ")
        for line in (*story.entry[:-1], *story.way) if every else ():
            yield from _line(line, "    ")


_MARKS = {"sent": "✓", "due": "…", "claimed": "…", "in_dot": "…", "waiting": "…", "skipped": "✗", "unknown": "?"}
_VERDICTS = {"yes": "✓", "no": "✗", "wait": "…", "not asked": "·"}


def _answer(found) -> str:
    """The first line: the answer where there is one story, else how many there are of each kind."""
    who = ", ".join(found.contacts) or (found.stories[0].account if found.stories else "nobody")
    when = f"as of {_at(found.at)}"
    if len(found.stories) == 1:
        return f"{who}, {when}: {found.stories[0].summary}"
    inside = [one for one in found.stories if one.letters or one.step]
    letters = [letter for one in found.stories for letter in one.letters]
    counts = [(sum(letter.state in states for letter in letters), word) for word, states in _COUNTED.items()]
    told = ", ".join(f"{count} {word}" for count, word in counts if count) or "nothing sent"
    return f"{who}, {when}: entered {len(inside)} of {len(found.stories)} campaigns; {told}."


_COUNTED = {"sent": ("sent",), "waiting": ("due", "claimed", "in_dot", "waiting"), "not sent": ("skipped", "unknown")}


def _ladder(story, every: bool) -> Iterator[str]:
    """The gates in order. The first that failed is marked; those that were not asked are only counted, unless all are wanted."""
    if not story.gates:
        return
    yield f"  Gates{f' of {story.of}' if story.of else ''}, in order:"
    if story.first_failed is None and not every:
        passed = [line.gate_name for line in story.gates if line.verdict == "yes"]
        yield from _wrapped(f"✓ all that were asked were open: {', '.join(passed)}", "    ")
        return
    silent = 0
    for line in story.gates:
        if line.verdict == "not asked" and not every:
            silent += 1
            continue
        first = "  <- the first that failed" if line.gate == story.first_failed else ""
        yield f"    {_VERDICTS[line.verdict]} {line.gate_name}{first}"
        if line.verdict == "not asked" or (line.verdict == "yes" and not every and not line.evidence.get("because")):
            continue
        said = line.text if every or line.text not in story.summary else ""
        again = "" if line.stored else ", recomputed"
        version = f", version {line.version}" if line.version else ""
        when = f", {_at(line.at)}" if line.at and line.verdict != "yes" else ""
        yield from _wrapped(f"{said} [{line.reason}{version}{when}{again}]".strip(), "        ")
    if silent:
        yield f"    · {silent} more {'was' if silent == 1 else 'were'} not asked"


def _line(line, indent: str) -> Iterator[str]:
    when = f"{_at(line.at)}  " if line.at else "now  "
    version = f", version {line.version}" if line.version else ""
    yield from _wrapped(f"{when}{line.gate_name}: {line.verdict}. {line.text} [{line.reason}{version}]", indent)


def _wrapped(words: str, indent: str) -> list[str]:
    return textwrap.wrap(words, 110, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False)


def _at(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("contact", nargs="?", help="the contact's id or address; without one, the account itself is explained")
    parser.add_argument("--account", help="only for this account (its id)")
    parser.add_argument("--campaign", help="only this campaign (its folder, such as onboarding/first-value)")
    parser.add_argument("--at", metavar="TIME", help="as of this moment of the past, such as 2026-03-02T09:00")
    parser.add_argument("--all", action="store_true", help="every gate, also those that said yes or were not asked, and steps not come to")


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
        link = f"{settings.console_base}/console/sign-in/{create_sign_in(conn, now)}"
    words = f"{link}\nIt works once, within 24 hours."
    cli.show(args, {"link": link, "ended": ended}, words if ended is None else f"{ended} session(s) ended.\n{words}")


def _length(value: str) -> timedelta:
    try:
        return duration(value)
    except ValueError as error:
        raise InputError(str(error), "--for") from error
