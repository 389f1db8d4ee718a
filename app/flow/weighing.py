"""How large mails come out, with wrapped links and encoded as they go over the wire: mail programs cut long ones off (M-13).

The compiler has refused what is too large by itself; here mails are written for a sample recipient and for some who are stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection

from app.errors import RenderSkip
from app.flow import mime, proof
from app.flow.check import Campaigns
from app.flow.compiling import Rendering, render_apart
from app.flow.compose import HTML_LIMIT
from app.flow.links import Keyring, Links
from app.rules.fields import Problem

WARN_FROM = 90 * 1024
PEOPLE = 5

# Links of the length that they will have: the host's name is as long as most are.
_LINKS = Links("https://" + "n" * 32, Keyring({0: bytes(32)}, 0))
_ANY = UUID(int=0)
_PLACES = proof.Places(
    unsubscribe=_LINKS.unsubscribe(_ANY),
    preferences=_LINKS.preferences(_ANY),
    view=_LINKS.view(_ANY),
    survey=_LINKS.survey(_ANY, 0).rpartition("/")[0],
    pixel=_LINKS.open(_ANY),
    click=_LINKS.click(_ANY, 0),
)


def weigh(campaigns: Campaigns, now: datetime, conn: Connection | None = None) -> list[Problem]:
    """What is too large for a sample recipient, or with `conn` also for those of the contacts stored last who belong to an account: an
    error from 100 KB on, a warning from 90. The limit is that of the finished HTML as it is encoded."""
    people = [tuple(row) for row in conn.exec_driver_sql(_PEOPLE, {"limit": PEOPLE})] if conn is not None else []
    wanted: list[tuple[str, str, Rendering]] = []
    for folder in campaigns.folders:
        for template in folder.templates:
            draft = proof.Draft(campaigns, folder, template)
            for facts, whose in _recipients(draft, people, now, conn):
                wanted.append((template.path, whose, proof.rendering(draft, facts, _PLACES)))
    heaviest: dict[str, tuple[int, str]] = {}
    for (path, whose, _), mail in zip(wanted, render_apart([one for *_, one in wanted]), strict=True):
        # Somebody whose mail would be skipped has none to weigh: others find out about that.
        if not isinstance(mail, RenderSkip):
            heaviest[path] = max(heaviest.get(path, (0, "")), (mime.html_size(mail.html), whose))
    return [_problem(path, size, whose) for path, (size, whose) in heaviest.items() if size > WARN_FROM]


def errors(problems: Iterable[Problem]) -> list[Problem]:
    return [one for one in problems if one.severity == "error"]


def _recipients(
    draft: proof.Draft, people: Iterable[tuple[str, str]], now: datetime, conn: Connection | None
) -> Iterator[tuple[Mapping[str, Any], str]]:
    yield proof.sample_values(draft, now), "a sample recipient"
    for account, contact in people:
        yield proof.stored_values(conn, draft, account, contact, now), f"{contact} of {account}"


def _problem(file: str, size: int, whose: str) -> Problem:
    said = f"the finished mail has {size / 1024:.0f} KB for {whose}; mail programs cut it off after {HTML_LIMIT // 1024}, so shorten it"
    problem = Problem(file, 1, 1, "size", said)
    return problem if size > HTML_LIMIT else replace(problem, severity="warning")


_PEOPLE = """
select a.external_id, c.external_id from (select * from contact order by id desc limit 1000) c
join lateral (select account_id from membership m where m.contact_id = c.id limit 1) m on true join account a on a.id = m.account_id
order by octet_length(c.traits::text) desc, c.id limit %(limit)s"""
