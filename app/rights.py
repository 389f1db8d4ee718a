"""Commands about the rights of people: `nurture export`, `erase`, `consents`, `suppressions …`, `retention`."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from app.config import Settings
from app.errors import InputError

WAITS = 60.0  # seconds that `nurture erase` waits for mail on the wire


def export(args: argparse.Namespace) -> None:
    """Writes everything that is known of a contact or an account into a ZIP, aside and renamed; private to this user."""
    from app import cli
    from app.flow.erase import export_name
    from app.flow.export import write_zip

    now = datetime.now(UTC)
    with cli.installation(args) as (settings, engine), engine.connect() as conn:
        conn.exec_driver_sql("set transaction isolation level repeatable read, read only")
        target = Path(args.out).expanduser().resolve() if args.out else settings.exports / export_name(conn, args.kind, args.key, now)
        draft = target.with_name(target.name + ".part")
        try:
            if not args.out:
                target.parent.mkdir(mode=0o700, exist_ok=True)
            with os.fdopen(os.open(draft, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600), "w+b") as file:
                counts = write_zip(conn, args.kind, args.key, now, file)
            draft.rename(target)
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", str(target)) from error
        finally:
            draft.unlink(missing_ok=True)
    lines = [f"{number:>9,}  {name}" for name, number in counts.items()]
    kept = "" if args.out else "\nAn erasure deletes this file, too. One that was written elsewhere with --out is yours to delete."
    cli.show(args, {"file": str(target), "rows": counts}, "\n".join([str(target), *lines]) + kept)


def erase(args: argparse.Namespace) -> int | None:
    """Erases a contact or an account, to the end. Asked again, it shows the receipt."""
    from app import cli
    from app.flow import erase as flow

    with cli.installation(args) as (settings, engine):
        if not args.yes and not _agreed(f"Erase everything that is known of the {args.kind} {args.key}? This cannot be undone."):
            raise InputError("nothing was erased: it takes --yes, or somebody who agrees")
        with engine.begin() as conn:
            asked = flow.request(conn, args.kind, args.key, _who(), datetime.now(UTC))
        found = _finish(args, settings, engine, asked.id)
    cli.show(args, found.plain(), receipt_words(found))
    return 0 if found.finished_at else 1


def _finish(args: argparse.Namespace, settings: Settings, engine: Engine, erasure_id: Any) -> Any:
    from app.flow import erase as flow

    deadline, said = time.monotonic() + WAITS, 0
    while True:
        with engine.connect() as conn:
            found = flow.receipt(conn, erasure_id)
        rows = sum(found.counts.values())
        if rows != said and not args.json:
            said = rows
            print(f"{rows:,} rows erased …", file=sys.stderr)
        if found.finished_at or time.monotonic() > deadline:
            return found
        began = time.monotonic()
        soon = datetime.now(UTC).timestamp() + 2
        if not flow.work(engine, lambda: datetime.now(UTC), settings.exports, until=datetime.fromtimestamp(soon, UTC)):
            if time.monotonic() - began < 1:
                time.sleep(1)  # mail of theirs is on the wire
            else:
                deadline = time.monotonic() + WAITS  # there is much to do


def receipt_words(found: Any) -> str:
    """The receipt as plain text. Nothing in it names anybody."""
    done = f"{found.finished_at:%Y-%m-%d %H:%M} UTC" if found.finished_at else "at work; the workers go on with it"
    lines = [
        f"Receipt of an erasure ({found.kind})",
        f"  number       {found.id}",
        f"  subject      {found.subject}",
        f"  asked        {found.requested_at:%Y-%m-%d %H:%M} UTC by {found.requested_by}",
        f"  finished     {done}",
        "",
        *(f"  {number:>9,}  {name}" for name, number in found.counts.items()),
    ]
    kept = "Kept: numbers under a random name, and a keyed hash of each address for the suppression list."
    return "\n".join(
        [*lines, "", *found.notes, kept, "Backups from before this moment still hold what was erased, until they are deleted."]
    )


def consents(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow import consents as flow
    from app.flow.reading.contacts import find_contact, match_contacts

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        rows = [
            {"contact": key, **line}
            for key in match_contacts(conn, args.contact)
            for line in flow.read(conn, flow.people_of(conn, find_contact(conn, key).id))
        ]
    lines = [
        f"{one['at']:%Y-%m-%d %H:%M}  {'yes' if one['granted'] else 'no ':<3}  {one['purpose']:<15}  {one['method']} by "
        f"{one['actor'] or 'unknown'}{', ' + one['source'] if one['source'] else ''}"
        for one in rows
    ]
    cli.show(args, rows, "\n".join(lines) or "Nothing was said.")


def suppressions_list(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.suppressing import suppressions

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        found = suppressions(conn, search=args.email, scope=args.scope, reason=args.reason, limit=1000)
    lines = [f"{one['created_at']:%Y-%m-%d}  {one['scope']:<14}  {one['reason']:<13}  {one['email'] or '(erased)'}" for one in found.items]
    more = ["There are more: nurture suppressions export FILE"] if found.next else []
    cli.show(args, found.items, "\n".join([*lines, *more]) or "Nobody is on the list.")


def suppressions_add(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.suppressing import add

    with cli.installation(args) as (_, engine), engine.begin() as conn:
        made = add(conn, args.email, args.scope, args.reason, datetime.now(UTC), by=_who(), method="operator", note=args.note)
    cli.show(args, made, f"{made['email']} gets nothing in the scope {made['scope']} ({made['reason']}).")


def suppressions_lift(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.suppressing import lift

    with cli.installation(args) as (_, engine), engine.begin() as conn:
        lifted = lift(conn, args.email, args.scope, datetime.now(UTC), by=_who(), method="operator", evidence=args.evidence)
    cli.show(args, {"email": args.email, "lifted": lifted}, f"Lifted: {', '.join(lifted)}.")


def suppressions_import(args: argparse.Namespace) -> int:
    from app import cli
    from app.flow.suppressing import FILE_BYTES, import_file

    try:
        with sys.stdin.buffer if args.file == "-" else Path(args.file).expanduser().open("rb") as file:
            data = file.read(FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", args.file) from error
    with cli.installation(args) as (_, engine), engine.begin() as conn:
        found = import_file(conn, data, datetime.now(UTC), by=_who(), source=Path(args.file).name, dry_run=args.dry_run)
    told = "would be added" if args.dry_run else "added"
    lines = [
        *map(str, found.problems[:100]),
        f"{found.added:,} {told}, {found.known:,} known already, {len(found.problems):,} rows with problems.",
    ]
    cli.show(args, {**found.plain(), "dry_run": args.dry_run}, "\n".join(lines))
    return 1 if found.problems else 0


def suppressions_export(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.suppressing import export_file

    target, count = Path(args.file).expanduser().resolve(), -1
    with cli.installation(args) as (_, engine), engine.connect() as conn:
        try:
            with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8", newline="") as file:
                for line in export_file(conn):
                    file.write(line)
                    count += 1
        except OSError as error:
            raise InputError(f"cannot be written: {error.strerror}", str(target)) from error
    cli.show(args, {"file": str(target), "rows": count}, f"{count:,} rows in {target}.")


def retention(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow import retain

    with cli.installation(args) as (_, engine):
        if args.now:
            retain.work(engine, lambda: datetime.now(UTC))
        with engine.connect() as conn:
            found = retain.state(conn, datetime.now(UTC))
    lines = [f"{one['what'][:1].upper() + one['what'][1:]}: {one['keeps']} ({one['setting']})" for one in found["kept"]]
    for run in found["runs"]:
        took = ", ".join(f"{number:,} {name}" for name, number in run["counts"].items()) or "nothing was too old"
        lines.append(f"{run['day']}: {took}{'' if run['finished_at'] else ' (not finished)'}")
    cli.show(args, found, "\n".join(lines))


def _who() -> str:
    try:
        return f"operator ({getpass.getuser()})"
    except (KeyError, OSError, ImportError):
        return "operator"


def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def whose_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=["contact", "account"])
    parser.add_argument("key", help="its id")


def export_arguments(parser: argparse.ArgumentParser) -> None:
    whose_arguments(parser)
    parser.add_argument("--out", metavar="FILE", help="the ZIP file; in the home's exports folder if not given")


def erase_arguments(parser: argparse.ArgumentParser) -> None:
    whose_arguments(parser)
    parser.add_argument("--yes", action="store_true", help="without asking")


def list_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--email", metavar="ADDRESS", help="only of this address")
    parser.add_argument("--scope", help="only in this scope: all, a topic, manual, complained or bounced")
    parser.add_argument("--reason", help="only for this reason: unsubscribed, manual, complained or bounced")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("email", metavar="ADDRESS")
    parser.add_argument("--scope", default="all", help="all, or a topic")
    parser.add_argument(
        "--reason", default="unsubscribed", help="unsubscribed (they asked); manual, complained, bounced: not even transactional mail"
    )
    parser.add_argument("--note", default="", metavar="TEXT", help="evidence for whoever asks later")


def lift_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("email", metavar="ADDRESS")
    parser.add_argument("--scope", default="all", help="all (with what stops transactional mail, too), or a topic")
    parser.add_argument("--evidence", required=True, metavar="TEXT", help="by what right: who asked for it, when, where")


def import_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="CSV with the columns email, scope, reason, since; - reads standard input")
    parser.add_argument("--dry-run", action="store_true", help="say what would be added, and change nothing")
