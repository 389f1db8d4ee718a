"""Commands for hooks: the addresses at which mail providers tell what became of our mail."""

from __future__ import annotations

import argparse
import sys
from datetime import UTC, datetime
from typing import Any

from app.errors import InputError
from app.rules.timing import duration


def add(args: argparse.Namespace) -> None:
    """Prints the address, and the password that Postmark is to use, once."""
    from app import cli
    from app.flow.hooks import add_hook

    options = {"transport": args.transport, "secret": _secret(args), "topics": args.topic, "stand_in": args.stand_in}
    if args.signature_version == 1:
        options["versions"] = (1, 2)
    with cli.installation(args) as (settings, engine), engine.begin() as conn:
        made = add_hook(conn, settings, args.provider, datetime.now(UTC), **options)
    address = made.address(settings.base_url)
    lines = [f"Hook {made.id}", f"Have {args.provider} call {address}"]
    lines += _password(made, settings.base_url)
    if made.confirm_until:
        lines.append(
            f"Subscribe it to the topic within the hour, until {made.confirm_until:%H:%M} UTC; later: nurture hooks confirm {made.id}"
        )
    if settings.base_is_loopback:
        lines.append("NURTURE_BASE_URL is of this machine, where no provider can reach it.")
    data = {"id": made.id, "provider": made.provider, "address": address, **_told_once(made, settings.base_url, args.secret)}
    data |= {"transport": made.transport, "topics": made.options.get("topics", []), "confirm_until": made.confirm_until}
    cli.show(args, data, "\n".join(lines))


def show_list(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.reading.hooks import hooks

    now = datetime.now(UTC)
    with cli.installation(args) as (settings, engine), engine.connect() as conn:
        rows = hooks(conn, settings, now)
    cli.show(args, rows, "\n".join(map(_line, rows)) or "There are no hooks: nurture hooks add PROVIDER")


def rotate(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.hooks import rotate_hook

    try:
        keep = duration(args.keep)
    except ValueError as error:
        raise InputError(str(error), "--keep") from error
    now = datetime.now(UTC)
    with cli.installation(args) as (settings, engine), engine.begin() as conn:
        made = rotate_hook(conn, settings, args.id, now, secret=_secret(args), keep=keep)
    until = next((one.until for one in made.secrets if one.until and one.until > now), None)
    words = [f"The secret before it counts until {until:%Y-%m-%d %H:%M} UTC." if until else "No other secret counts."]
    data = {"id": made.id, "old_until": until, **_told_once(made, settings.base_url, args.secret)}
    cli.show(args, data, "\n".join([*_password(made, settings.base_url), *words]))


def confirm(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.hooks import open_confirmation

    with cli.installation(args) as (_, engine), engine.begin() as conn:
        until = open_confirmation(conn, args.id, datetime.now(UTC))
    cli.show(args, {"confirm_until": until}, f"Subscriptions of its topics are confirmed until {until:%H:%M} UTC.")


def remove(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.hooks import remove_hook

    with cli.installation(args) as (_, engine), engine.begin() as conn:
        remove_hook(conn, args.id)
    cli.show(args, {"removed": args.id}, "Removed, with what was told there. What followed from it stays.")


def received(args: argparse.Namespace) -> None:
    """With `--json` and a number, the whole of that call."""
    from app import cli
    from app.flow.reading.hooks import call
    from app.flow.reading.hooks import received as page_of
    from app.flow.reading.paging import read_limit

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        if args.call is not None:
            found = call(conn, args.call)
            cli.show(args, found, f"{_call_line(found)}\n{found['pretty']}")
            return
        items = page_of(conn, hook=args.hook, state=args.state, limit=read_limit(args.limit)).items
    cli.show(args, items, "\n".join(map(_call_line, items)) or "Nothing was told.")


def retry(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.hooks import retry_call

    with cli.installation(args) as (_, engine), engine.begin() as conn:
        retry_call(conn, args.call)
    cli.show(args, {"retried": args.call}, "It is read once more.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("provider", help="ses, sendgrid, postmark or mailgun")
    parser.add_argument("--transport", metavar="NAME", help="the transport that this provider is behind")
    parser.add_argument(
        "--topic", metavar="ARN", action="append", default=[], help="of Amazon SES: a topic of Amazon SNS; may be given again"
    )
    parser.add_argument(
        "--signature-version", type=int, choices=[1, 2], default=2, help="of Amazon SES: 1 takes SHA-1 signatures as well (2)"
    )
    parser.add_argument("--stand-in", metavar="URL", help="of Amazon SES, for trials: the origin of what plays Amazon SNS")
    _secret_argument(parser)


def rotate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the hook's id")
    parser.add_argument("--keep", metavar="DURATION", default="7d", help="for how long the present secret counts as well (7d)")
    _secret_argument(parser)


def id_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", help="the hook's id")


def received_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("call", nargs="?", type=int, help="the number of one call, to be shown whole")
    parser.add_argument("--hook", metavar="ID", help="only this hook's")
    parser.add_argument("--state", help="waiting, done, unmatched (heard, and no message of ours found), failed or refused")
    parser.add_argument("--limit", type=int, help="how many (50)")


def call_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("call", type=int, help="the number of the call")


def _secret_argument(parser: argparse.ArgumentParser) -> None:
    words = "what the provider shows: SendGrid's verification key, Mailgun's HTTP webhook signing key; - reads it from standard input"
    parser.add_argument("--secret", metavar="KEY", help=words)


def _secret(args: argparse.Namespace) -> str | None:
    return sys.stdin.readline().strip() if args.secret == "-" else args.secret


def _password(made: Any, base_url: str) -> list[str]:
    if made.provider != "postmark":
        return []
    return [
        f"With its password: {made.address_with_password(base_url)}",
        f"Or with a header instead: X-Nurture-Hook: {made.secrets[0].secret}",
        "Keep them: they cannot be shown again.",
    ]


def _told_once(made: Any, base_url: str, given: str | None) -> dict[str, str]:
    if made.provider != "postmark":
        return {}
    return {"address_with_password": made.address_with_password(base_url), **({} if given else {"secret": made.secrets[0].secret})}


def _line(one: dict[str, Any]) -> str:
    state = "sealed under another secret key" if one["sealed"] else "confirms subscriptions" if one["confirms"] else ""
    counts = ", ".join(f"{one[name]} {name}" for name in ("taken", "unmatched", "failed", "refused") if one[name]) or "nothing"
    return f"{one['id']}  {one['provider']:<8}  {one['transport'] or '–':<12}  within a day: {counts}" + (f"; {state}" if state else "")


def _call_line(one: dict[str, Any]) -> str:
    what = f"{one['matched']} of {one['reports']} matched" if one["state"] == "done" else one["state"]
    tail = f": {one['reason']}" if one["reason"] else f": message {one['message']}" if one["message"] else ""
    return (
        f"{one['id']:>8}  {one['received_at'].astimezone(UTC):%Y-%m-%d %H:%M}  {one['provider']:<8}  {one['kind'] or '–':<24}  {what}{tail}"
    )
