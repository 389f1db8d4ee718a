"""Commands that steer campaigns: publishing, versions, modes, enrolling by hand.

Whatever moves, enrolls or sends is listed first and done only when somebody agrees: `--yes` for scripts, a question on a terminal.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, Engine

from app.errors import InputError
from app.rules.definition import MODES
from app.rules.modes import ENTERED, OVERDUE

SHOWN = 20  # lines of a list that a person reads


# Publishing ----------------------------------------------------------------------------------------------------------


def publish(args: argparse.Namespace) -> None:
    """Publishes what changed. `--move` and `--enroll-existing` list what they would do, and do it when somebody agrees."""
    from app import cli
    from app.config import load
    from app.flow.check import read
    from app.flow.publish import publish_read

    root, now = load(home=args.home, campaigns=args.folder).campaigns, datetime.now(UTC)
    campaigns = read(root)
    with cli.installation(args) as (_, engine):
        with engine.connect() as conn:
            done = publish_read(conn, campaigns, now, root)
            data = [_published(one) for one in done]
            if args.dry_run:
                moves, previews = _consider(conn, args, done, now)
                conn.rollback()
            else:
                conn.commit()
        _say(args, [line for one in done for line in _published_lines(one)])
        if not done:
            _say(args, [f"There is no campaign in {root}: make a folder like onboarding/welcome with a campaign.yaml."])
        if args.dry_run:
            _say(args, [*(_move_lines(moves) if args.move else ()), *_enroll_lines(previews), "Nothing was changed: this was a dry run."])
        elif args.move or args.enroll_existing:
            with engine.connect() as conn:
                moves, previews = _consider(conn, args, done, now)
            _say(args, _move_lines(moves) if args.move else [])
            moved = _move(args, engine, moves, now)
            _say(args, _enroll_lines(previews) if args.enroll_existing else [])
            enrolled = _enroll_existing(args, engine, previews, now)
            _add(data, "moved", moved)
            _add(data, "enrolled", enrolled)
        if args.dry_run or args.move or args.enroll_existing:
            _add(data, "move", {one.campaign: one.plain() for one in moves})
            _add(data, "enroll", {one.campaign: one.plain() for one in previews})
    if args.json:
        cli.show(args, data, "")


def _consider(conn: Connection, args: argparse.Namespace, done: Sequence[Any], now: datetime) -> tuple[list[Any], list[Any]]:
    """What moving and enrolling would do: everybody inside an older version, and those who match what is new or changed."""
    from app.flow.enrolling import preview
    from app.flow.moving import plan_moves

    moves = [plan_moves(conn, one.key, now) for one in done if one.inside] if args.move else []
    entered = [one.key for one in done if one.what != "unchanged" and one.mode in ENTERED] if args.enroll_existing else []
    return [one for one in moves if one.count], [preview(conn, key, now, everybody=True, by="publish") for key in entered]


def _move(args: argparse.Namespace, engine: Engine, moves: Sequence[Any], now: datetime) -> dict[str, int]:
    from app.flow.moving import move

    total, mails = sum(one.count for one in moves), sum(one.mails for one in moves)
    if not total or not _agreed(args, f"Move {total} and send {mails} mails at once?", "Nobody was moved"):
        return {}
    with engine.begin() as conn:
        moved = {one.campaign: move(conn, one, now)[0] for one in moves}
    _say(args, [f"{sum(moved.values())} are being moved."])
    return moved


def _enroll_existing(args: argparse.Namespace, engine: Engine, previews: Sequence[Any], now: datetime) -> dict[str, int]:
    from app.flow.enrolling import request

    total = sum(len(one.entering) for one in previews)
    if not total or not _agreed(args, f"Enroll {total}?", "Nobody was enrolled"):
        return {}
    with engine.begin() as conn:
        enrolled = {one.campaign: request(conn, one, "publish", now)[0] for one in previews}
    _say(args, [f"{sum(enrolled.values())} are being enrolled."])
    return enrolled


def _published(one: Any) -> dict[str, Any]:
    return {
        "campaign": one.key,
        "what": one.what,
        "version": one.number,
        "mode": one.mode,
        "before": one.before,
        "changes": list(one.difference.lines()),
        "inside": [asdict(place) for place in one.inside],
    }


def _published_lines(one: Any) -> Iterator[str]:
    was = f" (was {one.before})" if one.what == "changed" else ""
    yield f"{one.what:<11}  {one.mode:<8}  version {one.number:<3}  {one.key}{was}"
    if one.what == "rolled back":
        yield "    What the folder says was gone back from. Change it, or go forward again: nurture versions, nurture rollback."
    yield from (f"    {line}" for line in one.difference.lines())
    for version in dict.fromkeys(place.version for place in one.inside):
        places = [place for place in one.inside if place.version == version]
        where = ", ".join(f"{place.count} at {place.step}" for place in places)
        yield f"    {sum(place.count for place in places)} inside version {version} stay there: {where}"


def _move_lines(moves: Sequence[Any]) -> Iterator[str]:
    if not moves:
        yield "Nobody is inside an older version."
    for one in moves:
        yield f"Moving {one.count} in {one.campaign} to version {one.version}:"
        for line in one.lines:
            goes = {"stay": f"goes on waiting at {line.target}", "go": f"goes on at {line.target}", "exit": "leaves the campaign"}[line.how]
            follows = [
                f"{count} {what} at once" for count, what in ((line.mails, "mails"), (line.effects, "alerts, tasks or calls")) if count
            ]
            yield f"    {line.count:>6} at {line.step} of version {line.version}: {goes}{': ' + ', '.join(follows) if follows else ''}"


def _enroll_lines(previews: Sequence[Any]) -> Iterator[str]:
    for one in previews:
        yield from _preview_lines(one)


def _add(data: list[dict[str, Any]], name: str, found: dict[str, Any]) -> None:
    for one in data:
        if one["campaign"] in found:
            one[name] = found[one["campaign"]]


def publish_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", help="the campaigns folder (NURTURE_CAMPAIGNS)")
    parser.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    parser.add_argument("--move", action="store_true", help="list where those inside older versions would go, and move them if you agree")
    parser.add_argument(
        "--enroll-existing", action="store_true", help="list who matches what is new or changed already, and enroll them if you agree"
    )
    _yes_argument(parser)


# Versions ------------------------------------------------------------------------------------------------------------


def versions(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.versions import list_versions

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        rows = list_versions(conn, args.campaign)
    lines = [
        f"{'*' if row['current'] else ' '} {row['number']:>4}  {_at(row['published_at'])}  {row['active']:>7} inside  {row['hash'][:12]}"
        for row in rows
    ]
    cli.show(args, rows, "\n".join([*lines, "* is the one that new enrollments enter."]))


def diff(args: argparse.Namespace) -> int:
    """Two versions, or the published one and the folder on disk. Exit code 1 if they differ, as `diff` has it."""
    from app import cli
    from app.config import load
    from app.errors import NotFound
    from app.flow.check import read
    from app.flow.versions import rebranded, texts_in, texts_of, unified

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        old = texts_of(conn, args.campaign, args.old)
        new = texts_of(conn, args.campaign, args.new) if args.old is not None else None
    if new is None:
        root = load(home=args.home).campaigns
        folder = next((one for one in read(root).folders if one.key == args.campaign), None)
        if folder is None:
            raise NotFound(f"There is no folder {args.campaign} in {root}.")
        new = texts_in(folder)
    lines = list(unified(old, new))
    lines += [f"The mail of {step} looks different: a block of brand/ changed." for step in rebranded(old, new)]
    data = {"campaign": args.campaign, "old": old.named, "new": new.named, "differs": bool(lines), "lines": lines}
    cli.show(args, data, "\n".join(lines) or f"{old.named.capitalize()} and {new.named} are the same.")
    return 1 if lines else 0


def diff_arguments(parser: argparse.ArgumentParser) -> None:
    _campaign_argument(parser)
    parser.add_argument(
        "old", nargs="?", type=int, metavar="A", help="this version; without it, the published one against the folder on disk"
    )
    parser.add_argument("new", nargs="?", type=int, metavar="B", help="against this one (the one that new enrollments enter)")


def rollback(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.versions import roll_back

    with cli.installation(args) as (_, engine), engine.begin() as conn:
        done = roll_back(conn, args.campaign, datetime.now(UTC), args.number)
    undo = f"nurture rollback {args.campaign} {done.before}"
    words = [
        f"New enrollments of {args.campaign} enter version {done.number} again, not {done.before}:",
        *(f"    {line}" for line in done.difference.lines()),
        f"{done.inside} inside other versions stay there. Publishing the folder as it is changes nothing; a changed one is a new version.",
        f"Undo: {undo}",
    ]
    data = {
        "campaign": done.campaign,
        "version": done.number,
        "before": done.before,
        "changes": list(done.difference.lines()),
        "inside": done.inside,
        "undo": undo,
    }
    cli.show(args, data, "\n".join(words))


def rollback_arguments(parser: argparse.ArgumentParser) -> None:
    _campaign_argument(parser)
    parser.add_argument("number", nargs="?", type=int, metavar="NUMBER", help="the version (the one before the present one)")


# Modes ---------------------------------------------------------------------------------------------------------------


def mode(args: argparse.Namespace) -> None:
    """Shows the mode, or changes it."""
    from app import cli
    from app.flow.steering import find_campaign, overdue

    if args.mode is not None:
        _change(args, args.mode, args.overdue, args.exit)
        return
    with cli.installation(args) as (_, engine), engine.connect() as conn:
        row = find_campaign(conn, args.campaign)
        waiting = overdue(conn, args.campaign, datetime.now(UTC))
    since = f" since {_at(row.mode_at)}" if row.mode_at else ""
    data = {"campaign": row.key, "mode": row.mode, "since": row.mode_at, "overdue": [asdict(one) for one in waiting]}
    cli.show(args, data, "\n".join([f"{row.key} is {row.mode}{since}.", *_overdue_lines(waiting)]))


def pause(args: argparse.Namespace) -> None:
    _change(args, "paused", None, False)


def resume(args: argparse.Namespace) -> None:
    """Ends a pause. What fell due meanwhile is listed, and nothing happens until somebody says what becomes of it."""
    _change(args, "live", args.overdue, False, only_from="paused")


def _change(args: argparse.Namespace, wanted: str, choice: str | None, leave: bool, only_from: str | None = None) -> None:
    from app import cli
    from app.flow.steering import find_campaign, overdue, set_mode
    from app.rules.modes import check_change

    now = datetime.now(UTC)
    with cli.installation(args) as (_, engine):
        with engine.connect() as conn:
            row = find_campaign(conn, args.campaign)
            if only_from and row.mode != only_from:
                raise InputError(f"{args.campaign} is {row.mode}, not {only_from}")
            check_change(row.mode, wanted)
            waiting = overdue(conn, args.campaign, now) if row.mode == "paused" and not leave else []
        _say(args, _overdue_lines(waiting))
        if waiting and choice is None:
            choice = _asked(args, waiting)
        with engine.begin() as conn:
            done = set_mode(conn, args.campaign, wanted, now, was=row.mode, choice=choice, leave=leave)
    data = {name: value for name, value in asdict(done).items() if name != "partitions"}
    data["waited"] = [asdict(one) for one in waiting]
    cli.show(args, data, "\n".join(_changed_lines(done)))


def _asked(args: argparse.Namespace, waiting: Sequence[Any]) -> str:
    count = sum(one.count for one in waiting)
    problem = f"{count} are overdue and nothing was changed: pass --overdue send, --overdue skip or --overdue exit"
    if not sys.stdin.isatty() or args.json:
        raise InputError(problem)
    print("send: everything goes now. skip: without these mails they go on. exit: they leave the campaign.")
    answer = input("send, skip or exit? ").strip().lower()
    if answer not in OVERDUE:
        raise InputError(problem)
    return answer


def _overdue_lines(waiting: Sequence[Any]) -> Iterator[str]:
    if waiting:
        yield "Overdue, the oldest first:"
    for one in waiting:
        if one.what == "message":
            yield f"    {one.count:>6} messages of {one.step} wait to be sent, the oldest since {_at(one.oldest)}"
        elif one.what != "timer":
            yield f"    {one.count:>6} {one.what}s of {one.step} wait to be done, the oldest since {_at(one.oldest)}"
        else:
            then = f"to {one.then}" if one.then else "to the end"
            yield f"    {one.count:>6} at {one.step} go on {then}, the first due {_at(one.oldest)}"


def _changed_lines(done: Any) -> Iterator[str]:
    yield f"{done.campaign} is {done.after} (was {done.before})."
    if done.leaving:
        yield f"{done.leaving} enrollments leave it."
    if done.skipping:
        yield f"{done.skipping} go on without what was overdue."
    if done.messages:
        yield f"{done.messages} messages {'are due now' if done.overdue == 'send' else 'are skipped'}."
    if done.effects:
        yield f"{done.effects} alerts, webhooks and tasks {'are due now' if done.overdue == 'send' else 'are skipped'}."
    undo = {"paused": "nurture resume", "live": "nurture pause", "archived": "nurture mode"}.get(done.after)
    if undo and (done.before, done.after) != ("shadow", "live"):
        yield f"Back: {undo} {done.campaign}{' paused' if done.after == 'archived' else ''}"


def mode_arguments(parser: argparse.ArgumentParser) -> None:
    _campaign_argument(parser)
    parser.add_argument("mode", nargs="?", choices=MODES, help="the mode from now on; shown if not given")
    _overdue_argument(parser)
    parser.add_argument("--exit", action="store_true", help="with archived: everybody inside leaves; otherwise they finish")


def resume_arguments(parser: argparse.ArgumentParser) -> None:
    _campaign_argument(parser)
    _overdue_argument(parser)


def _overdue_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--overdue", choices=OVERDUE, help="what becomes of what fell due during the pause")


# Enrolling -----------------------------------------------------------------------------------------------------------


def enroll(args: argparse.Namespace) -> int:
    """Enrolls accounts, contacts, or everybody who matches. Exit code 1 if nobody agreed, or nobody would enter."""
    from app import cli
    from app.flow.enrolling import preview, request

    now = datetime.now(UTC)
    with cli.installation(args) as (_, engine):
        with engine.connect() as conn:
            found = preview(conn, args.campaign, now, accounts=args.account or (), contacts=args.contact or (), everybody=args.all)
        _say(args, _preview_lines(found, list(found.entering)))
        entering, enrolled = len(found.entering), 0
        if (entering or (args.yes and found.named and found.mode in ENTERED)) and _agreed(
            args, f"Enroll {entering}?", "Nobody was enrolled"
        ):
            with engine.begin() as conn:
                enrolled, _ = request(conn, found, "hand", now)
            _say(args, [f"{enrolled} asked for; why each did or did not enter is in the ledger."])
    if args.json:
        cli.show(args, {**found.plain(), "requested": enrolled}, "")
    return 0 if enrolled else 1


def _preview_lines(found: Any, listed: Sequence[Any] = ()) -> Iterator[str]:
    from app.flow.enrolling import reasons_of

    mails = sum(len(one.mails) for one in found.entering)
    yield f"{len(found.entering)} would enter {found.campaign}, version {found.version} ({found.mode}), with {mails} mails to begin with:"
    first: dict[str, list[datetime]] = {}
    for one in found.entering:
        for mail in one.mails:
            first.setdefault(mail.step, []).append(mail.due_at)
    for step, times in first.items():
        yield f"    {len(times):>6} mails of {step}, due {_at(min(times))}{f' to {_at(max(times))}' if max(times) > min(times) else ''}"
    for one in listed[:SHOWN]:
        begins = ", ".join(f"{mail.step} to {mail.contact}" for mail in one.mails) or f"waits at {one.step}"
        yield f"    {one.account}{f', {one.contact}' if one.contact else ''}: {'held out' if one.held_out else begins}"
    if len(listed) > SHOWN:
        yield f"    and {len(listed) - SHOWN} more"
    for one in reasons_of(found.refused):
        yield f"    {one['count']:>6} would not: {one['text']} [{one['gate']}: {one['reason']}]"
    for one in [one for one in found.refused if found.named][:SHOWN]:
        yield f"    {one.account}{f', {one.contact}' if one.contact else ''} would not [{one.gate}: {one.reason}]"


def enroll_arguments(parser: argparse.ArgumentParser) -> None:
    _campaign_argument(parser)
    parser.add_argument("--account", nargs="+", metavar="ID", help="these accounts (or all contacts of them, where it enrolls contacts)")
    parser.add_argument("--contact", nargs="+", metavar="ID", help="these contacts (or their accounts, where it enrolls accounts)")
    parser.add_argument("--all", action="store_true", help="everybody who matches now")
    _yes_argument(parser)


# All of them ---------------------------------------------------------------------------------------------------------


def campaign_arguments(parser: argparse.ArgumentParser) -> None:
    _campaign_argument(parser)


def _campaign_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("campaign", help="its folder, such as onboarding/first-value")


def _yes_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--yes", action="store_true", help="agree to what is listed")


def _agreed(args: argparse.Namespace, question: str, otherwise: str) -> bool:
    """Whether to go on: `--yes`, or yes on a terminal. Nobody to ask is a no, which is said on stderr."""
    if args.yes:
        return True
    if sys.stdin.isatty() and not args.json:
        if input(f"{question} [y/N] ").strip().lower() in ("y", "yes"):
            return True
        print(f"{otherwise}.")
    else:
        print(f"{otherwise}: nobody agreed. Pass --yes to agree.", file=sys.stderr)
    return False


def _say(args: argparse.Namespace, lines: Sequence[str] | Iterator[str]) -> None:
    if not args.json:
        for line in lines:
            print(line)


def _at(at: datetime) -> str:
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
