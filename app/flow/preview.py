"""Previewing: a message as staff may look at it, so that looking clicks nothing, opens nothing and answers nothing."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from selectolax.lexbor import LexborHTMLParser
from sqlalchemy import Connection

from app.errors import NotFound
from app.flow.compose import Mail
from app.flow.links import Links
from app.flow.respond import find_message
from app.flow.view import view


def preview(conn: Connection, message_id: UUID, links: Links) -> Mail | None:
    """The mail as it was sent, its links dead; None when what it was rendered with is not (or no longer) kept. Raises NotFound."""
    message = find_message(conn, message_id)
    if message is None:
        raise NotFound(f"There is no message {str(message_id)!r}.")
    mail = view(conn, message, links)
    return replace(mail, html=_dead(mail.html)) if mail else None


def _dead(html: str) -> str:
    tree = LexborHTMLParser(html)
    for node in tree.css("script, iframe, object, embed, base, meta[http-equiv='refresh' i], form"):
        node.decompose()
    for node in tree.css("[href]"):
        if node.tag != "link":
            del node.attrs["href"]
    return "<!doctype html>\n" + (tree.html or "")
