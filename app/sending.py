"""Commands about sending: the keys that sign mail, and the brakes that stop it."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.errors import InputError


def dkim_make(args: argparse.Namespace) -> None:
    """Makes a key and prints the DNS record. Signs nothing yet."""
    from app import cli
    from app.flow.dkim import make_key

    options = {"selector": args.selector, "algorithm": args.algorithm, "bits": args.bits, "pem": _read(args.pem)}
    with cli.installation(args) as (settings, engine), engine.begin() as conn:
        made = make_key(conn, settings, args.domain, datetime.now(UTC), **options)
    words = [
        f"{made['name']} TXT",
        *_strings(made["value"]),
        f"Publish this record, then: nurture dkim activate {made['domain']} {made['selector']}",
    ]
    cli.show(args, made, "\n".join(words))


def dkim_list(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.dkim import list_keys

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        rows = list_keys(conn)
    lines = [f"{one['domain']:<30}  {one['selector']:<16}  {one['algorithm']:<7} {one['bits']:>4}  {one['state']}" for one in rows]
    cli.show(args, rows, "\n".join(lines) or "There are no keys, so the relay signs: nurture dkim make DOMAIN")


def dkim_record(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.dkim import find_key

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        found = find_key(conn, args.domain, args.selector)
    cli.show(args, found, "\n".join([f"{found['name']} TXT", *_strings(found["value"])]))


def dkim_activate(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.dkim import activate_key

    with cli.installation(args) as (settings, engine), engine.begin() as conn:
        found = activate_key(conn, settings, args.domain, args.selector)
    cli.show(args, found, f"{found['selector']} signs what comes from {found['domain']}.")


def dkim_retire(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.dkim import retire_key

    with cli.installation(args) as (_, engine), engine.begin() as conn:
        found = retire_key(conn, args.domain, args.selector, datetime.now(UTC))
    words = f"{found['selector']} of {found['domain']} signs nothing any more. Leave its record in the DNS for a week: mail is on its way."
    cli.show(args, found, words)


def brakes_list(args: argparse.Namespace) -> None:
    from app import cli
    from app.flow.brakes import list_brakes, sentence

    with cli.installation(args) as (_, engine), engine.connect() as conn:
        rows = list_brakes(conn, every=args.all)
    lines = [f"{one['id']:>5}  {one['action']:<5}  {one['set_at']:%Y-%m-%d %H:%M}  {_ended(one)}{sentence(one)}" for one in rows]
    cli.show(args, rows, "\n".join(lines) or "No brake is on.")


def brakes_release(args: argparse.Namespace) -> None:
    """Takes a brake off. Of a campaign that is paused by it, what is overdue must be answered for."""
    from app import cli
    from app.flow.brakes import release
    from app.queue import Bells

    with cli.installation(args) as (settings, engine):
        with engine.begin() as conn:
            done = release(conn, args.id, datetime.now(UTC), choice=args.overdue)
        bells = Bells(settings.redis_url)
        bells.advance(done["partitions"])
        bells.deliver()
    what = f"Campaign {done['campaign']} goes on." if done["campaign"] else f"Mail from {done['domain']} goes on."
    cli.show(args, done, f"{what} {done['messages']} messages that waited are due now." if done["messages"] else what)


def release_arguments(parser: argparse.ArgumentParser) -> None:
    from app.rules.modes import OVERDUE

    parser.add_argument("id", type=int)
    parser.add_argument("--overdue", choices=OVERDUE, help="what becomes of what a paused campaign held up")


def make_arguments(parser: argparse.ArgumentParser) -> None:
    from app.flow.dkim import ALGORITHMS, RSA_BITS

    parser.add_argument("domain", help="the domain of the From address")
    parser.add_argument("--selector", metavar="NAME", help="the name of the key in the DNS (the month and the algorithm)")
    parser.add_argument("--algorithm", choices=ALGORITHMS, default="rsa", help="rsa, or ed25519 for a second signature")
    parser.add_argument("--bits", type=int, default=RSA_BITS, help=f"of an RSA key ({RSA_BITS})")
    parser.add_argument("--pem", metavar="FILE", help="take this private key instead of making one")


def key_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("domain", help="the domain of the From address")
    parser.add_argument("selector", help="the name of the key in the DNS")


def _ended(one: dict[str, Any]) -> str:
    return f"released {one['released_at']:%Y-%m-%d %H:%M} by {one['released_by']}. " if one["released_at"] else ""


def _read(file: str | None) -> bytes | None:
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise InputError(f"cannot be read: {error.strerror}", file) from error


def _strings(value: str) -> list[str]:
    """As zone files want it: strings of at most 255 characters."""
    return [f'  "{value[start : start + 255]}"' for start in range(0, len(value), 255)]
