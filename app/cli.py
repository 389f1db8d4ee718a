"""The `nurture` command. Every subcommand is one function that takes the parsed arguments and returns the exit code (None is 0).

A new command: a function here or in a module of its own, and a line in COMMANDS. Commands that need the database use
`with installation(args) as (settings, engine)`: it finds the engine that runs on the same home, or the external database of
DATABASE_URL, or runs the embedded PostgreSQL for as long as the command takes. Reading commands take `--json`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from app import ask, desk, embedded, home, hooks, post, postbox, rehearse, rights, sending, steer
from app.config import VERSION, Settings, load
from app.db import connect
from app.errors import HomeInUse, InputError, NotFound, NurtureError, RenderSkip, StartError
from app.migrate import migrate, pending


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. What goes wrong on purpose (NurtureError) is one clear line on stderr and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show a letter gets a question mark
    args = _parser().parse_args(argv)
    try:
        return args.run(args) or 0
    except NurtureError as error:
        print(f"nurture: {error}", file=sys.stderr)
        return 2
    except DBAPIError as error:
        print(f"nurture: the database says: {str(error.orig).strip()}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130


@contextlib.contextmanager
def installation(args: argparse.Namespace) -> Iterator[tuple[Settings, Engine]]:
    """The settings, with live database and Redis URLs where there are any, and an engine on a migrated database.

    Raises StartError when there is none, DatabaseNewer when a newer version wrote it.
    """
    settings = load(home=args.home)
    with contextlib.ExitStack() as stack:
        own = False
        if not settings.database_url:
            settings, own = _servers(settings, args.command, stack)
        engine = connect(settings.database_url, pool_size=1)
        stack.callback(engine.dispose)
        _ready(engine, own)
        yield settings, engine


def _servers(settings: Settings, command: str, stack: contextlib.ExitStack) -> tuple[Settings, bool]:
    lock = home.Lock(settings.home, command)
    try:
        lock.take()
    except HomeInUse:
        found = home.running(settings.home)
        if not found or found.pid != lock.holder().get("pid"):
            raise StartError(f"Nurture is just starting on {settings.home}; try again in a moment") from None
        return replace(
            settings, database_url=found.database_url, redis_url=settings.redis_url or found.redis_url, base_url=found.base_url
        ), False
    stack.callback(lock.release)
    postgres = embedded.Postgres(settings.home)
    postgres.start()
    stack.callback(postgres.stop)
    return replace(settings, database_url=postgres.ensure_database("nurture")), True


def _ready(engine: Engine, own: bool) -> None:
    with engine.connect() as conn:
        behind = pending(conn)
    if behind is None or (behind and own):
        migrate(engine, datetime.now(UTC))
    elif behind:
        raise StartError("the database's tables are older than this version: run `nurture migrate` first (stop older versions before)")


def _up(args: argparse.Namespace) -> None:
    from app.up import up

    up(load(home=args.home, port=args.port), port=args.port, sample=args.sample)


def _migrate(args: argparse.Namespace) -> None:
    settings = load(home=args.home)
    with contextlib.ExitStack() as stack:
        if not settings.database_url:
            settings, _ = _servers(settings, args.command, stack)
        engine = connect(settings.database_url, pool_size=1)
        stack.callback(engine.dispose)
        migrate(engine, datetime.now(UTC))
    print("The tables are up to date.")


def _keys_create(args: argparse.Namespace) -> None:
    from app.flow.access import create_key

    with installation(args) as (_, engine), engine.begin() as conn:
        key = create_key(conn, args.name, args.scope, datetime.now(UTC))
    show(args, {"key": key}, f"{key}\nKeep it: it cannot be shown again.")


def _keys_list(args: argparse.Namespace) -> None:
    from app.flow.access import list_keys

    with installation(args) as (_, engine), engine.connect() as conn:
        rows = [dict(row._mapping) for row in list_keys(conn)]
    lines = [f"{row['id']}  {row['scope']:<5}  {'revoked' if row['revoked_at'] else 'valid':<7}  {row['name']}" for row in rows]
    show(args, rows, "\n".join(lines) or "There are no keys yet: nurture keys create NAME --scope write")


def _keys_revoke(args: argparse.Namespace) -> None:
    from app.flow.access import revoke_key

    with installation(args) as (_, engine), engine.begin() as conn:
        if not revoke_key(conn, args.id, datetime.now(UTC)):
            raise NotFound(f"there is no valid key {args.id}: nurture keys list")
    show(args, {"revoked": args.id}, "Revoked.")


def _doctor(args: argparse.Namespace) -> int:
    from app import doctor
    from app.finding import Finding

    if args.retry:
        with installation(args) as (settings, engine), engine.begin() as conn:
            released = doctor.retry(conn, args.retry, datetime.now(UTC))
        show(args, {"released": released}, f"{released} parked occurrence(s) will be tried again.")
        return 0
    with contextlib.ExitStack() as stack:
        try:
            settings, engine = stack.enter_context(installation(args))
            findings = doctor.examine(settings, engine, datetime.now(UTC), args.dns)
        except (StartError, DBAPIError) as error:
            findings = [Finding("database", False, str(getattr(error, "orig", None) or error).strip())]
    show(args, [finding.as_dict() for finding in findings], "\n".join(str(finding) for finding in findings))
    return 0 if all(finding.good for finding in findings) else 1


def _backup(args: argparse.Namespace) -> None:
    from app import archive

    with installation(args) as (settings, engine):
        made = archive.backup(settings, engine, Path(args.file), datetime.now(UTC))
    words = f"{made.file} ({made.size / 2**20:.1f} MB). Bring it back with: nurture restore FILE --home DIR"
    if not made.with_secret:
        words += "\nNURTURE_SECRET_KEY is not in it: keep it as well."
    show(args, {"file": str(made.file), "bytes": made.size, "secret": made.with_secret}, words)


def _restore(args: argparse.Namespace) -> None:
    from app import archive

    settings = load(home=args.home)
    with contextlib.ExitStack() as stack:
        if not settings.database_url:
            settings, own = _servers(settings, args.command, stack)
            if not own:
                raise HomeInUse("Nurture runs on this home: a backup is restored into one that is empty and stopped")
        done = archive.restore(settings, Path(args.file), datetime.now(UTC), as_it_was=args.as_it_was)
    data = {"made_at": done.made_at, "version": done.version, "paused": done.paused, "due": done.due, "secret": done.with_secret}
    lines = [f"Restored what was there at {done.made_at} (Nurture {done.version})."]
    if not done.with_secret:
        lines.append("The secret key was not taken from the backup: NURTURE_SECRET_KEY must be the one of then.")
    if done.paused:
        lines.append(
            f"Mail that went out after the backup would go out again, so {len(done.paused)} live campaigns are paused, with "
            f"{done.due} messages and alerts due. End each pause with a choice:"
        )
        lines += [f"  nurture resume {key} --overdue send|skip|exit" for key in done.paused]
    show(args, data, "\n".join(lines))


def _check(args: argparse.Namespace) -> int:
    """Needs no database without `--audience`: it reads the folder and nothing else."""
    from app.flow.check import check

    root = load(home=args.home, campaigns=args.folder).campaigns
    found, problems = check(root)
    noted = list(found.warnings) if found else []
    if found:
        from app.flow.weighing import errors, weigh

        heavy = weigh(found, datetime.now(UTC))
        if args.audience:
            from app.flow.audience import blocking, prove

            with installation(args) as (_, engine), engine.connect() as conn:
                breaks, heavy = prove(conn, found, datetime.now(UTC)), weigh(found, datetime.now(UTC), conn)
            problems = [*problems, *blocking(found, breaks)]
            noted += blocking(found, breaks, "warning")
        problems = [*problems, *errors(heavy)]
        noted += [one for one in heavy if one not in errors(heavy)]
    shown = [*problems, *noted]
    data = [
        {
            "file": one.file,
            "line": one.line,
            "column": one.column,
            "rule": one.rule,
            "severity": one.severity,
            "problem": one.message,
            "fix": one.fix,
        }
        for one in shown
    ]
    good = [f"{len(found.folders)} campaigns in {root}: no problems."] if found and not problems else []
    show(args, data, "\n".join([*map(str, shown), *good]))
    return 1 if problems else 0


def _schemas(args: argparse.Namespace) -> None:
    from app.flow.schemas import FOLDER, write

    root = load(home=args.home).campaigns
    target = Path(args.folder) if args.folder else root / FOLDER
    try:
        written = write(target)
    except OSError as error:
        raise InputError(f"cannot be written: {error.strerror}", str(target)) from error
    show(args, {"files": [str(one) for one in written]}, "\n".join(map(str, written)))


def _render(args: argparse.Namespace) -> int:
    """Sample values need no database; stored ones do."""
    from app.flow import proof

    settings, now = load(home=args.home), datetime.now(UTC)
    draft = proof.draft(settings.campaigns, args.campaign, args.step, args.locale)
    if args.account:
        with installation(args) as (settings, engine), engine.connect() as conn:
            facts = proof.stored_values(conn, draft, args.account, args.contact, now)
    else:
        facts = proof.sample_values(draft, now)
    try:
        mail = proof.render(draft, facts, settings.base_url)
    except RenderSkip as skip:
        show(args, {"skipped": skip.reason, "evidence": skip.evidence}, f"This message would be skipped: {skip}")
        return 1
    if args.html:
        Path(args.html).write_text(mail.html, "utf-8")
    data = {"subject": mail.subject, "text": mail.text, "html": mail.html, "links": mail.links, "values": facts}
    show(args, data, f"Subject: {mail.subject}\n\n{mail.text}" + (f"\nThe HTML is in {args.html}." if args.html else ""))
    return 0


def show(args: argparse.Namespace, data: object, words: str) -> None:
    """Prints `data` as JSON with `--json`, else `words`."""
    print(json.dumps(data, default=str, ensure_ascii=False, indent=2) if args.json else words)


@dataclass(frozen=True, slots=True)
class Command:
    """`words` are the command's (one or two); `arguments` adds its arguments to its parser."""

    words: tuple[str, ...]
    help: str
    run: Callable[[argparse.Namespace], int | None]
    arguments: Callable[[argparse.ArgumentParser], object] = lambda parser: None


def _up_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--port", type=_port, default=8000, help="of the web service (8000)")
    parser.add_argument("--sample", action="store_true", help="add a small sample customer base, once")


def _create_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="who uses it, such as the product's name")
    parser.add_argument("--scope", choices=["write", "read", "admin", "inbound"], default="write")


def _folder_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", help="the campaigns folder (NURTURE_CAMPAIGNS)")


def _check_arguments(parser: argparse.ArgumentParser) -> None:
    _folder_argument(parser)
    parser.add_argument(
        "--audience", action="store_true", help="prove every value against the stored accounts and contacts that match; needs the database"
    )


def _schemas_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", help="where to (.schemas in the campaigns folder)")


def _render_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("campaign", help="the campaign's folder, such as onboarding/first-value")
    parser.add_argument("step", help="the id of an email or survey step")
    parser.add_argument("--account", metavar="ID", help="with the values of this account instead of sample values")
    parser.add_argument("--contact", metavar="ID", help="and of this contact of it (the one whom the campaign would write to)")
    parser.add_argument("--locale", default="", help="the language of the template, such as de")
    parser.add_argument("--html", metavar="FILE", help="write the HTML into a file")


def _doctor_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--retry", metavar="ID|all", help="try parked occurrences again")
    parser.add_argument(
        "--dns",
        type=_dns,
        metavar="ADDRESS[:PORT]",
        help="ask this server for the records of senders' domains, without a relay, too",
    )


def _dns(text: str) -> object:
    from app.providers.dns import Dns

    address, sign, port = text.rpartition(":") if text.count(":") == 1 else (text, "", "")
    try:
        return Dns([(str(ip_address(address)), _port(port) if sign else 53)])
    except ValueError:
        raise argparse.ArgumentTypeError("an address such as 9.9.9.9 or 127.0.0.1:5353") from None


def _restore_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="what `nurture backup` wrote")
    parser.add_argument("--as-it-was", action="store_true", help="leave live campaigns live: nothing was sent after the backup")


COMMANDS: list[Command] = [
    Command(("up",), "run the whole engine on this machine", _up, _up_arguments),
    Command(("migrate",), "bring the database to this version's tables", _migrate),
    Command(("check",), "report every problem of a campaigns folder; exit code 1 if there are any", _check, _check_arguments),
    Command(("schemas",), "write the JSON Schemas with which an editor completes the files of campaigns", _schemas, _schemas_arguments),
    Command(("publish",), "publish what changed in a campaigns folder; say what changes for whom", steer.publish, steer.publish_arguments),
    Command(("versions",), "list the versions of a campaign", steer.versions, steer.campaign_arguments),
    Command(
        ("diff",), "compare two versions, or the published one and the folder; exit code 1 if they differ", steer.diff, steer.diff_arguments
    ),
    Command(("rollback",), "have new enrollments enter an earlier version again", steer.rollback, steer.rollback_arguments),
    Command(("mode",), "show or change the mode of a campaign", steer.mode, steer.mode_arguments),
    Command(("pause",), "pause a campaign: its timers stand still, its mail waits", steer.pause, steer.campaign_arguments),
    Command(("resume",), "end a pause; say first what is overdue", steer.resume, steer.resume_arguments),
    Command(("enroll",), "enroll accounts or contacts by hand; say first who would enter", steer.enroll, steer.enroll_arguments),
    Command(("render",), "show a mail of the campaigns folder as a customer would see it; sends nothing", _render, _render_arguments),
    Command(("test",), "run the tests.yaml of the campaigns; exit code 1 if one fails", rehearse.test, rehearse.test_arguments),
    Command(
        ("simulate",),
        "show what campaigns would do, over stored history or a file of events; sends nothing",
        rehearse.simulate,
        rehearse.simulate_arguments,
    ),
    Command(("keys", "create"), "make an API key", _keys_create, _create_arguments),
    Command(("keys", "list"), "list the API keys", _keys_list),
    Command(("keys", "revoke"), "revoke an API key", _keys_revoke, lambda p: p.add_argument("id")),
    Command(
        ("doctor",),
        "look whether everything is well; exit code 1 if it is not",
        _doctor,
        _doctor_arguments,
    ),
    Command(("explain",), "say why each message was or was not sent to a contact", ask.explain, ask.explain_arguments),
    Command(("hold", "add"), "send an account or a contact nothing but transactional mail", ask.hold_add, ask.hold_arguments),
    Command(("hold", "list"), "list the holds in force", ask.hold_list),
    Command(("hold", "release"), "end a hold", ask.hold_release, lambda p: p.add_argument("id", type=int)),
    Command(("tasks", "list"), "list what staff have to do, by the date it is due", desk.tasks_list, desk.list_arguments),
    Command(("tasks", "add"), "give somebody a task about an account", desk.tasks_add, desk.add_arguments),
    Command(("tasks", "done"), "mark a task done", desk.tasks_done, desk.close_arguments),
    Command(("tasks", "dismiss"), "close a task that nobody will do", desk.tasks_dismiss, desk.close_arguments),
    Command(("tasks", "reopen"), "open a closed task again", desk.tasks_reopen, lambda p: p.add_argument("id", help="the task's id")),
    Command(("tasks", "assign"), "give a task to somebody else", desk.tasks_assign, desk.assign_arguments),
    Command(("channels", "set"), "give a channel its address on this installation", desk.channels_set, desk.set_arguments),
    Command(("channels", "list"), "list the channels that alerts and webhooks go to", desk.channels_list),
    Command(("channels", "enable"), "open a disabled channel again", desk.channels_enable, lambda p: p.add_argument("name")),
    Command(("channels", "remove"), "forget a channel's address", desk.channels_remove, lambda p: p.add_argument("name")),
    Command(("channels", "test"), "send one word through a channel", desk.channels_test, lambda p: p.add_argument("name")),
    Command(("inbound", "list"), "list the mail that came in, newest first", postbox.inbound_list, postbox.list_arguments),
    Command(("inbound", "show"), "show what a mail was taken for", postbox.inbound_show, postbox.show_arguments),
    Command(("inbound", "retry"), "have a mail read again", postbox.inbound_retry, postbox.retry_arguments),
    Command(("hooks", "add"), "make an address at which a mail provider tells what became of mail", hooks.add, hooks.add_arguments),
    Command(("hooks", "list"), "list these addresses, and what came within a day", hooks.show_list),
    Command(
        ("hooks", "rotate"), "give a hook a new secret; the present one counts for a while longer", hooks.rotate, hooks.rotate_arguments
    ),
    Command(("hooks", "confirm"), "confirm subscriptions of a hook's topics for the next hour", hooks.confirm, hooks.id_argument),
    Command(("hooks", "remove"), "remove an address, with what was told there", hooks.remove, hooks.id_argument),
    Command(
        ("hooks", "received"), "list what providers told, the latest first; refused calls too", hooks.received, hooks.received_arguments
    ),
    Command(("hooks", "retry"), "have what a provider told read once more", hooks.retry, hooks.call_argument),
    Command(("dkim", "make"), "make a key that signs a domain's mail, and print its DNS record", sending.dkim_make, sending.make_arguments),
    Command(("dkim", "list"), "list the keys that sign mail", sending.dkim_list),
    Command(("dkim", "record"), "print the DNS record of a key", sending.dkim_record, sending.key_arguments),
    Command(("dkim", "activate"), "have a key sign its domain's mail", sending.dkim_activate, sending.key_arguments),
    Command(("dkim", "retire"), "end a key and destroy its private half", sending.dkim_retire, sending.key_arguments),
    Command(
        ("brakes", "list"),
        "list what stopped mail by itself, and warnings of it",
        sending.brakes_list,
        lambda p: p.add_argument("--all", action="store_true", help="the released ones, too"),
    ),
    Command(("brakes", "release"), "take a brake off", sending.brakes_release, sending.release_arguments),
    Command(("transports", "add"), "add a relay that carries mail", post.transports_add, post.add_arguments),
    Command(("transports", "list"), "list what carries mail: limits, pauses, lanes to providers", post.transports_list),
    Command(("transports", "edit"), "change a transport's limits or its URL", post.transports_edit, post.edit_arguments),
    Command(("transports", "pause"), "let a transport's mail wait", post.transports_pause, post.pause_arguments),
    Command(("transports", "resume"), "end the pause of a transport and its lanes", post.transports_resume, post.resume_arguments),
    Command(
        ("transports", "remove"), "forget a transport; its mail goes over default", post.transports_remove, lambda p: p.add_argument("name")
    ),
    Command(("transports", "test"), "connect and sign in; sends nothing", post.transports_test, lambda p: p.add_argument("name")),
    Command(("unknown", "list"), "list the messages of which nobody knows whether they arrived", post.unknown_list, post.unknown_arguments),
    Command(("unknown", "resolve"), "say what became of such messages", post.unknown_resolve, post.resolve_arguments),
    Command(
        ("sign-in",),
        "print a one-time link to the console",
        ask.sign_in,
        lambda p: p.add_argument("--end-all", action="store_true", help="sign everybody out and void unused links first"),
    ),
    Command(("backup",), "write everything that cannot be made again into a file", _backup, lambda p: p.add_argument("file")),
    Command(("restore",), "bring a backup back into an empty database; live campaigns come back paused", _restore, _restore_arguments),
    Command(("export",), "write everything that is known of a contact or an account into a file", rights.export, rights.export_arguments),
    Command(("erase",), "erase a contact or an account, and print the receipt", rights.erase, rights.erase_arguments),
    Command(
        ("consents",),
        "show what a contact said about mail and tracking",
        rights.consents,
        lambda p: p.add_argument("contact", help="its id or address"),
    ),
    Command(("suppressions", "list"), "list the addresses that must not be written to", rights.suppressions_list, rights.list_arguments),
    Command(("suppressions", "add"), "put an address on the list", rights.suppressions_add, rights.add_arguments),
    Command(
        ("suppressions", "lift"), "take an address off the list, with the evidence why", rights.suppressions_lift, rights.lift_arguments
    ),
    Command(
        ("suppressions", "import"),
        "put the addresses of a CSV file on the list; exit code 1 if a row has a problem",
        rights.suppressions_import,
        rights.import_arguments,
    ),
    Command(
        ("suppressions", "export"),
        "write the list into a CSV file",
        rights.suppressions_export,
        lambda p: p.add_argument("file", help="where to"),
    ),
    Command(
        ("retention",),
        "show what is kept how long, and what was taken away",
        rights.retention,
        lambda p: p.add_argument("--run", dest="now", action="store_true", help="take away what is too old, now"),
    ),
]


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--home", metavar="DIR", help="folder of everything the engine writes (NURTURE_HOME)")
    shared.add_argument("--json", action="store_true", help="answer in JSON")
    parser = argparse.ArgumentParser(prog="nurture", description="Self-hosted email nurture engine for customer success.")
    parser.add_argument("--version", action="version", version=f"nurture {VERSION}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    groups: dict[str, argparse._SubParsersAction] = {}
    for command in COMMANDS:
        place = commands
        if len(command.words) == 2:
            group = command.words[0]
            if group not in groups:
                groups[group] = commands.add_parser(group, help=f"nurture {group} --help").add_subparsers(required=True, metavar="COMMAND")
            place = groups[group]
        mine = place.add_parser(command.words[-1], help=command.help, description=command.help.capitalize() + ".", parents=[shared])
        command.arguments(mine)
        mine.set_defaults(run=command.run, command=" ".join(command.words))
    return parser


def _port(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError("a port is a number from 1 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
