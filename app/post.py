"""Commands about what carries mail: transports with their limits, and messages of which nobody knows whether they arrived."""

from __future__ import annotations

import argparse
import asyncio
import sys
from datetime import UTC, datetime
from typing import Any

from app.errors import InputError, NotFound, SendError
from app.rules.timing import duration


def transports_add(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.transports import add

    with cli.installation(args) as (settings, engine), engine.begin() as conn:
        add(conn, settings, args.name, _url(args.url), datetime.now(UTC), **_limits(args))
        named = args.name in _lifecycle_names(conn)
    hint = "" if named else f" Nothing goes over it yet: lifecycle.yaml gives a sender or a topic `transport: {args.name}`."
    cli.show(args, {"added": args.name, "named": named}, f"Added.{hint}")


def transports_edit(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.transports import edit

    with cli.installation(args) as (settings, engine), engine.begin() as conn:
        edit(conn, settings, args.name, datetime.now(UTC), url=_url(args.url) if args.url else None, **_limits(args))
    cli.show(args, {"changed": args.name}, "Changed.")


def transports_list(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.publish import book
    from app.flow.transports import listed

    with cli.installation(args) as (settings, engine), engine.connect() as conn:
        try:
            lifecycle = book(conn).lifecycle
        except NotFound:
            lifecycle = None
        rows = listed(conn, settings, lifecycle, datetime.now(UTC))
    cli.show(args, rows, "\n".join(line for row in rows for line in _lines(row)))


def transports_pause(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.transports import pause

    now = datetime.now(UTC)
    with cli.installation(args) as (_, engine), engine.begin() as conn:
        pause(conn, args.name, now, until=now + _length(args.until) if args.until else None, detail=args.reason)
    cli.show(args, {"paused": args.name}, "Paused: its mail waits.")


def transports_resume(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.transports import resume

    with cli.installation(args) as (_, engine), engine.begin() as conn:
        resume(conn, args.name, datetime.now(UTC), provider=args.provider)
    cli.show(args, {"resumed": args.name, "provider": args.provider}, "Resumed.")


def transports_remove(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.transports import remove

    with cli.installation(args) as (_, engine), engine.begin() as conn:
        moved = remove(conn, args.name)
    cli.show(args, {"removed": args.name, "moved": moved}, f"Removed. {moved} messages go over default now.")


def transports_test(args: argparse.Namespace) -> int:
    """Connects, speaks TLS and signs in, and sends nothing. Exit code 1 if that does not work."""
    from app import cli
    from app.flow.deliver import transport_for
    from app.flow.transports import ways
    from app.rules.delivery import Limits

    now = datetime.now(UTC)
    with cli.installation(args) as (settings, engine):
        with engine.connect() as conn:
            way = ways(conn, settings, now).get(args.name)
        if way is None:
            raise NotFound(f"There is no transport {args.name}: nurture transports list")
        if way.problem:
            raise InputError(way.problem)
        relay = transport_for(settings, engine, lambda: now, Limits(), way)
        try:
            asyncio.run(_knock(relay))
        except SendError as error:
            data = {"transport": args.name, "works": False, "answer": error.text, "setting": error.setting}
            cli.show(args, data, f"{args.name} does not work: {error.text}")
            return 1
    words = "is the outbox: mail stays on this installation" if way.url is None else "works: connected, TLS and sign-in as its URL asks"
    cli.show(args, {"transport": args.name, "works": True}, f"{args.name} {words}.")
    return 0


def unknown_list(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.unknown import unknown

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        rows = unknown(conn, campaign=args.campaign)
    lines = [
        f"{row['id']}  {_at(row['dot_at'])}  {row['address']}  {row['campaign']}/{row['step']}  waits until {_at(row['unknown_until'])}"
        for row in rows
    ]
    cli.show(args, rows, "\n".join(lines) or "There is no message whose outcome is unknown.")


def unknown_resolve(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.unknown import decide
    from app.queue import Bells

    with cli.installation(args) as (settings, engine):
        with engine.begin() as conn:
            done = decide(conn, args.message, "sent" if args.sent else "not_sent", datetime.now(UTC))
        if done and not args.sent:
            Bells(settings.redis_url).deliver()
    said = "count as sent" if args.sent else "are sent again"
    left = len(set(args.message)) - len(done)
    others = f" {left} had no unknown outcome and were left alone." if left else ""
    cli.show(args, {"resolved": [str(one) for one in done]}, f"{len(done)} messages {said}.{others}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="as lifecycle.yaml names it")
    parser.add_argument("url", help="such as smtps://user:password@host:465; - reads it from standard input")
    _limit_arguments(parser)


def edit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")
    parser.add_argument("--url", help="another URL; - reads it from standard input")
    _limit_arguments(parser)
    switch = parser.add_mutually_exclusive_group()
    switch.add_argument("--enable", action="store_true", default=None, help="it takes mail again")
    switch.add_argument("--disable", action="store_true", default=None, help="it takes no mail; what is for it waits")
    parser.add_argument("--no-provider", metavar="NAME", action="append", default=[], help="forget the limits of a provider")


def pause_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")
    parser.add_argument("--until", metavar="DURATION", help="from now, such as 2h; without it, until it is resumed")
    parser.add_argument("--reason", default="", help="why, for whoever looks at it")


def resume_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name")
    parser.add_argument("--provider", metavar="NAME", help="only the lane of this provider, such as google")


def unknown_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--campaign", metavar="KEY", help="only of this campaign")


def resolve_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("message", nargs="+", help="ids of messages")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sent", action="store_true", help="they arrived, or shall count as sent")
    what.add_argument("--not-sent", action="store_true", help="they did not arrive: send them again, under the same Message-ID")


def _limit_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--connections", type=int, metavar="N", help="at once, of all workers together (10)")
    parser.add_argument("--rate", type=_rate, metavar="N[/s|/m|/h]", help="messages per second, minute or hour, of all workers (100/s)")
    parser.add_argument("--letters", type=int, metavar="N", help="messages per connection, at most 100")
    parser.add_argument("--idle", type=float, metavar="SECONDS", help="when an unused connection is closed (60)")
    parser.add_argument("--size", type=int, metavar="OCTETS", help="of a message at most (10000000)")
    parser.add_argument("--reset", choices=["on", "off"], help="RSET between messages (on)")
    parser.add_argument(
        "--timeout", metavar="PHASE=SECONDS", action="append", default=[], help="connect, command, mail, rcpt, data, body or dot"
    )
    parser.add_argument(
        "--provider",
        metavar="NAME[:RATE[:CONNECTIONS[:DOMAIN,DOMAIN]]]",
        action="append",
        default=[],
        help="limits towards a provider, such as google:20/s:5 or acorn:5/s::acorn.example,oak.example",
    )


def _limits(args: argparse.Namespace) -> dict[str, Any]:
    found: dict[str, Any] = {name: getattr(args, name) for name in ("connections", "rate", "letters", "idle", "size")}
    found["reset"] = None if args.reset is None else args.reset == "on"
    if getattr(args, "enable", None) or getattr(args, "disable", None):
        found["enabled"] = bool(args.enable)
    if args.timeout:
        found["timeouts"] = dict(map(_timeout, args.timeout))
    providers = dict(map(_provider, args.provider)) | dict.fromkeys(getattr(args, "no_provider", []))
    return found | ({"providers": providers} if providers else {})


def _timeout(text: str) -> tuple[str, float]:
    name, _, seconds = text.partition("=")
    try:
        return name, float(seconds)
    except ValueError as error:
        raise InputError(f"{text!r} is not like rcpt=30", "--timeout") from error


def _provider(text: str) -> tuple[str, dict[str, Any]]:
    name, rate, connections, domains = (text.split(":") + ["", "", ""])[:4]
    how: dict[str, Any] = {"domains": [one for one in domains.split(",") if one]}
    try:
        how |= {"rate": _rate(rate) if rate else None, "connections": int(connections) if connections else None}
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise InputError(f"{text!r} is not like google:20/s:5", "--provider") from error
    return name, how


def _rate(text: str) -> float:
    number, _, unit = text.partition("/")
    try:
        return float(number) / {"": 1, "s": 1, "m": 60, "h": 3600}[unit]
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is not a rate; write it like 20/s, 30/m or 100/h") from None


def _url(given: str) -> str:
    return sys.stdin.readline().strip() if given == "-" else given


def _length(value: str) -> Any:
    try:
        return duration(value)
    except ValueError as error:
        raise InputError(str(error), "--until") from error


def _lifecycle_names(conn: Any) -> frozenset[str]:
    from app.flow.publish import book

    try:
        return book(conn).lifecycle.transports
    except NotFound:
        return frozenset()


async def _knock(relay: Any) -> None:
    connection = await relay.open()
    await connection.close()


def _lines(row: dict[str, Any]) -> list[str]:
    until = f" until {_at(row['until'])}" if row.get("until") else ""
    said = f": {row['detail']}" if row.get("detail") else ""
    if row["state"] == "missing":
        return [f"{row['name']:<16}  missing{said}"]
    limits = f"{row['connections'] or 'any'} connections, {_shown_rate(row['rate'])}"
    lines = [f"{row['name']:<16}  {row['state']}{until}{said}", f"{'':<18}{row['to'] or '–'}, {limits}, {row['due']} messages due"]
    for one in row["lanes"]:
        ends = f" until {_at(one['until'])}" if one["until"] else ""
        lines.append(f"{'':<18}{one['provider']}: {one['state']}{ends}, {one['strikes']} refusals in a row: {one['reply'] or ''}")
    return lines


def _shown_rate(rate: float | None) -> str:
    if rate is None:
        return "any rate"
    return f"{rate:g}/s" if rate >= 1 else f"{rate * 60:g}/m" if rate * 60 >= 1 else f"{rate * 3600:g}/h"


def _at(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M}" if moment else "–"
