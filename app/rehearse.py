"""Commands that show what campaigns will do before they do it: `nurture simulate`, `nurture test`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from app.errors import InputError
from app.rules.book import with_live
from app.rules.timing import zone

BEFORE, AFTER = timedelta(days=90), timedelta(days=30)
SHOWN = 15


def simulate(args: argparse.Namespace) -> int:
    """Runs the campaigns of a folder over stored history, or over a file of events, and reports what they would do."""
    from app import cli
    from app.config import load
    from app.flow import simulate as flow
    from app.flow.check import read
    from app.flow.history import of_file
    from app.flow.world import book_of, compose_of

    root, now = load(home=args.home, campaigns=args.folder).campaigns, datetime.now(UTC)
    campaigns = read(root)
    book = _chosen(book_of(campaigns), args.campaign)
    where, bad = zone(campaigns.lifecycle.timezone), []
    options = {"chosen": args.campaign, "compose": compose_of(campaigns), "progress": _progress(args)}
    published = None
    if args.events:
        history, bad = of_file(Path(args.events))
        for problem in bad[:SHOWN]:
            print(f"{args.events}: {problem}", file=sys.stderr)
        if len(bad) > SHOWN:
            print(f"{args.events}: and {len(bad) - SHOWN} more lines that cannot be taken (--json names all)", file=sys.stderr)
        if not history.events:
            raise InputError("holds no event that can be taken", args.events)
        moments = [one.received_at for one in history.events]
        began, ends = _period(args, where, min(moments), max(moments) + AFTER)
        if args.against:
            with cli.installation(args) as (_, engine), engine.connect() as conn:
                published = _published(conn, args, [history], began, ends)
        found = flow.simulate(book, [history], began, ends, **options)
    else:
        from app.flow.history import of_database

        began, ends = _period(args, where, now - BEFORE, now + AFTER)
        with cli.installation(args) as (_, engine), engine.connect() as conn:
            if args.against:
                published = _published(conn, args, of_database(conn, until=ends), began, ends)
            found = flow.simulate(book, of_database(conn, until=ends), began, ends, **options)
    _clear()
    changes = flow.compare(published, found) if published is not None else None
    if args.html:
        from app.flow.reporting import page

        Path(args.html).write_text(page(found, f"{campaigns.lifecycle.brand.name}: what the campaigns will do", changes), "utf-8")
    data = found.plain() | ({"changes": changes.plain()} if changes else {})
    data["problems"] = [{"line": one.line, "field": one.field, "problem": one.problem} for one in bad]
    cli.show(args, data, "\n".join(_written(found, data, args.html)))
    return 1 if bad else 0


def simulate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", help="the campaigns folder as it is on disk (NURTURE_CAMPAIGNS)")
    parser.add_argument("--campaign", metavar="KEY", nargs="+", help="report these only, as if live; the others run beside them")
    parser.add_argument("--events", metavar="FILE", help="events to run over instead of the stored ones: a call of Segment's API a line")
    parser.add_argument("--from", dest="began", metavar="DATE", help="report from then on (90 days ago; the first event of the file)")
    parser.add_argument(
        "--to", dest="ends", metavar="DATE", help="until just before then (in 30 days; 30 days after the last event of the file)"
    )
    parser.add_argument("--against", choices=["published"], help="say what the folder changes against what is published")
    parser.add_argument("--html", metavar="FILE", help="write a page with a calendar")


def _chosen(book: Any, campaigns: list[str] | None) -> Any:
    """The book with these campaigns live beside the others. Raises InputError for one that it does not have."""
    if not campaigns:
        return book
    if unknown := [key for key in campaigns if key not in book.standings]:
        raise InputError(f"there is no campaign {unknown[0]}; there are: {', '.join(sorted(book.standings)) or 'none'}", "--campaign")
    return with_live(book, campaigns)


def _published(conn: Any, args: argparse.Namespace, histories: Any, began: datetime, ends: datetime) -> Any:
    """The same history with what is published."""
    from app.flow.publish import book as in_force
    from app.flow.simulate import published_writing, simulate

    book = in_force(conn)
    if args.campaign:
        book = with_live(book, args.campaign)
    return simulate(book, histories, began, ends, chosen=args.campaign, compose=published_writing(conn, book))


def _period(args: argparse.Namespace, where: ZoneInfo, began: datetime, ends: datetime) -> tuple[datetime, datetime]:
    began, ends = _moment(args.began, where, "--from") or began, _moment(args.ends, where, "--to") or ends
    if began >= ends:
        raise InputError(f"the period must begin before it ends; it is {began:%Y-%m-%d} to {ends:%Y-%m-%d}", "--to")
    return began, ends


def _moment(value: str | None, where: ZoneInfo, field: str) -> datetime | None:
    """A date or time, by the clock of `where` unless it names a zone."""
    if not value:
        return None
    try:
        found = datetime.fromisoformat(value.strip())
        return (found if found.tzinfo else found.replace(tzinfo=where)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InputError(f"{value!r} is not a date; write it like 2026-03-02", field) from None


def _progress(args: argparse.Namespace) -> Callable[[int, datetime], None]:
    """Says on a terminal how far a run is, in one line that goes again in the end."""
    if not sys.stderr.isatty():
        return lambda accounts, at: None

    def say(accounts: int, at: datetime) -> None:
        print(f"\r{accounts:,} accounts done, the next at {at:%Y-%m-%d} ", end="", file=sys.stderr, flush=True)

    return say


def _clear() -> None:
    if sys.stderr.isatty():
        print(f"\r{'':<60}\r", end="", file=sys.stderr, flush=True)


def _written(found: Any, data: dict[str, Any], html: str | None) -> Iterator[str]:
    """The report for people."""
    total = {name: f"{count:,}" for name, count in data["totals"].items()}
    totals, period = data["totals"], f"{data['days'][0]['day']} to {data['days'][-1]['day']} ({data['timezone']})"
    yield f"{period}: {total['accounts']} accounts, {total['events']} events. Nothing was sent."
    yield ""
    yield f"{total['mails']} mails ({total['surveys']} surveys) to {total['people']} people at {total['accounts_reached']} accounts."
    yield f"{total['accounts_silent']} accounts get nothing. {total['not_sent']} mails are not sent; staff gets {total['staff']} notices."
    if totals["held_out"] or totals["in_shadow"]:
        yield f"{totals['held_out']:,} withheld by holdout, {totals['in_shadow']:,} kept in shadow."
    yield ""
    yield f"{'campaign':<38} {'entered':>8} {'mails':>7} {'people':>7} {'surveys':>8} {'not sent':>9} {'staff':>6}"
    for row in data["campaigns"]:
        counts = (row["entered"], row["mails"], row["people"], row["surveys"], sum(row["not_sent"].values()), sum(row["staff"].values()))
        yield f"{row['campaign']:<38} {counts[0]:>8,} {counts[1]:>7,} {counts[2]:>7,} {counts[3]:>8,} {counts[4]:>9,} {counts[5]:>6,}"
    if data["others"]:
        yield ""
        yield from _beside(data)
    busiest = [day for day in sorted(data["days"], key=lambda one: -one["mails"]) if day["mails"]][:5]
    if busiest:
        yield ""
        yield "Busiest days: " + ", ".join(f"{day['day']} ({day['mails']:,})" for day in busiest)
    if data["reasons"]:
        yield ""
        yield "Not sent, or waiting:"
        yield from (f"  {one['messages']:>6,}  {one['text']} [{one['reason']}]" for one in data["reasons"][:SHOWN])
    if data["caps"]:
        yield ""
        yield "Caps:"
        yield from (f"  {one['times']:>6,}  {one['message']} lost to {one['lost_to']} (per {one['per']})" for one in data["caps"][:SHOWN])
    close = data["collisions"]
    yield ""
    times, crowded = close["within_a_day"], len(close["crowded"])
    yield f"Two mails to a person within a day: {times:,} times. Four or more within a week: {crowded:,} people."
    yield from (f"  {one['times']:>6,}  {one['first']} then {one['second']}" for one in close["pairs"][:5])
    asked = data["surveys"]
    stopped = f"{asked['stopped_by_quarantine']:,} stopped by quarantine"
    yield f"Surveys: {asked['asked']:,} asked of {asked['people']:,} people, at most {asked['most_per_person']} each; {stopped}."
    if data["busiest"]:
        yield ""
        yield "Most mail: " + ", ".join(f"{one['account']} ({one['mails']} to {one['people']})" for one in data["busiest"][:5])
    if data["silent"]:
        yield ""
        yield f"Nothing at all ({len(data['silent']):,} accounts):"
        yield from (f"  {one['account']}: {one['why']}" for one in data["silent"][:SHOWN])
        if len(data["silent"]) > SHOWN:
            yield f"  … and {len(data['silent']) - SHOWN:,} more (--json or --html lists all)"
    if "changes" in data:
        yield ""
        yield "Against what is published:"
        yield from _changed(data["changes"])
    if html:
        yield ""
        yield f"The page is {html}."


def _beside(data: dict[str, Any]) -> Iterator[str]:
    """What the campaigns did that nobody asked about."""
    others = data["others"]
    mails = sum(row["mails"] for row in others)
    yield f"Beside {'it' if len(data['campaigns']) == 1 else 'them'} ran {len(others):,} more, with {mails:,} mails."
    for row in others:
        parts = [
            f"took the place of {row['caps_taken']:,}" if row["caps_taken"] else "",
            f"lost its place to {row['caps_given']:,}" if row["caps_given"] else "",
            f"asked before {row['surveys_taken']:,} surveys" if row["surveys_taken"] else "",
        ]
        if any(parts):
            yield f"  {row['campaign']} " + ", ".join(part for part in parts if part)


def _changed(changes: dict[str, Any]) -> Iterator[str]:
    if not changes["campaigns"]:
        yield "  Nobody gets another mail, or the same one at another time."
    for row in changes["campaigns"]:
        yield f"  {row['campaign']}: {row['gained']:,} mails gained, {row['lost']:,} lost, {row['moved']:,} moved"
    for name, word in (("gained", "+"), ("lost", "-"), ("moved", "~")):
        for one in changes[name][:5]:
            more = f" was {one['was_at'][:16]}" if name == "moved" else f" {one['why']}" if name == "lost" else ""
            yield f"  {word} {one['campaign']}/{one['step']} to {one['contact']} at {one['account']}, {one['local']}{more}"


def test(args: argparse.Namespace) -> int:
    """Runs the tests.yaml of every campaign of a folder on the virtual clock. Needs no database."""
    from app import cli
    from app.config import load
    from app.flow.trial import trials

    root = load(home=args.home, campaigns=args.folder).campaigns
    found, problems = trials(root, args.campaign or ())
    failed = sum(not one.passed for trial in found for one in trial.results)
    missed = sum(len(trial.missed) for trial in found)
    data = {
        "passed": sum(len(trial.results) for trial in found) - failed,
        "failed": failed,
        "missed": missed,
        "problems": [
            {"file": one.file, "line": one.line, "column": one.column, "rule": one.rule, "problem": one.message, "fix": one.fix}
            for one in problems
        ],
        "campaigns": [
            {
                "campaign": trial.campaign,
                "places": trial.places,
                "missed": trial.missed,
                "tests": [
                    {
                        "name": one.name,
                        "file": one.file,
                        "line": one.line,
                        "passed": one.passed,
                        "seconds": one.seconds,
                        "came": [{"kind": kind, "step": step, "to": to, "at": at.isoformat()} for kind, step, to, at in one.came],
                        "differences": [
                            {"line": each.line, "expected": each.expected, "got": each.got, "why": each.why} for each in one.differences
                        ],
                    }
                    for one in trial.results
                ],
            }
            for trial in found
        ],
    }
    cli.show(args, data, "\n".join(_tested(found, problems, args.coverage)))
    return 1 if failed or problems or (args.strict and missed) else 0


def test_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", help="the campaigns folder (NURTURE_CAMPAIGNS)")
    parser.add_argument("--campaign", metavar="KEY", nargs="+", help="only these campaigns, such as onboarding/first-value")
    parser.add_argument("--coverage", action="store_true", help="name everything that no test came to")
    parser.add_argument("--strict", action="store_true", help="fail when a step or a branch was never come to")


def _tested(found: Any, problems: Any, every: bool) -> Iterator[str]:
    for trial in found:
        yield f"{trial.campaign}"
        if not trial.results:
            yield "  no tests: write a tests.yaml beside its campaign.yaml"
        for one in trial.results:
            yield f"  {'✓' if one.passed else '✗'} {one.name}  ({one.seconds * 1000:.0f} ms)"
            yield from (f"      {one.file}:{each.line}: {each}" for each in one.differences)
        if trial.missed and (trial.results or every):
            shown = trial.missed if every else trial.missed[:3]
            count = len(trial.missed)
            yield f"  {count} of {trial.places} {'place was' if count == 1 else 'places were'} come to by no test:"
            yield from (f"      {place}" for place in shown)
            if len(shown) < count:
                yield f"      … and {count - len(shown)} more (--coverage)"
    yield from (str(problem) for problem in problems)
    results = [one for trial in found for one in trial.results]
    failed = sum(not one.passed for one in results)
    yield ""
    yield f"{len(results) - failed} passed, {failed} failed, in {sum(one.seconds for one in results):.2f} s."
