"""Viewing: a message in the browser, rendered again from the values that were kept when it was sent (DESIGN.md 7)."""

from __future__ import annotations

import threading

from sqlalchemy import Connection, text

from app.errors import RenderSkip
from app.flow.compose import Addresses, Compiled, Composer, Link, Mail
from app.flow.links import Links
from app.flow.respond import Message, lifecycle_in_force
from app.rules.lifecycle import TRANSACTIONAL

# A composer belongs to one thread at a time.
_local = threading.local()


def view(conn: Connection, message: Message, links: Links) -> Mail | None:
    """The mail that `message` was, without its pixel; None when what it was rendered with is no longer kept.

    The template is that of the version it was sent with; brand and postal address are those in force now. Writes nothing.
    """
    found = lifecycle_in_force(conn)
    compiled = _template(conn, message)
    if message.values is None or found is None or compiled is None:
        return None
    brand = found[1].brand
    addresses = Addresses(
        unsubscribe=None if message.topic == TRANSACTIONAL else links.unsubscribe(message.id),
        preferences=links.preferences(message.id),
        view=links.view(message.id),
        pixel=None,
        clicks=lambda number: links.click(message.id, number),
        score=(lambda score: links.survey(message.id, score)) if message.survey else None,
    )
    try:
        return _composer().render(
            compiled, compiled, message.values, addresses, brand.model_dump(), f"You got this email from {brand.name}."
        )
    except RenderSkip:
        # The contact's language has changed since, and the template of the new one reads what was not kept.
        return None


def _template(conn: Connection, message: Message) -> Compiled | None:
    rows = {row.locale: row for row in conn.execute(_TEMPLATES, {"version": message.version_id, "step": message.step})}
    wanted = (message.locale or "").replace("_", "-")
    row = next((rows[name] for name in (wanted, wanted.lower(), wanted.split("-")[0].lower(), "") if name in rows), None)
    if row is None:
        return None
    return Compiled(row.subject, row.html, row.text, tuple(Link(**link) for link in row.links), frozenset(row.reads))


def _composer() -> Composer:
    if not hasattr(_local, "composer"):
        _local.composer = Composer(size=64)
    return _local.composer


_TEMPLATES = text("select locale, subject, html, text, links, reads from template where version_id = :version and step_id = :step")
