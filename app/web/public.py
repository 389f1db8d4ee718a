"""What the pages that a customer's customers see have in common: tokens, brand, headers, the facts of a request.

They need no session and set no cookie, run no script, load nothing from third parties and are kept out of search engines.
"""

from __future__ import annotations

import hmac
import secrets
import time
from dataclasses import dataclass
from uuid import UUID

import structlog
from flask import Blueprint, Response, current_app, g, make_response, render_template, request
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from app.flow.links import Links, load_keyring
from app.flow.respond import lifecycle_in_force
from app.flow.track import truncated
from app.rules.signals import Request
from app.web import phrases
from app.web.context import here

log = structlog.get_logger("web")
_RELOADS_AFTER = 10.0  # seconds: a stranger who makes up key ids must not make us read the ring for every request


@dataclass(frozen=True, slots=True)
class Look:
    """The brand as the pages show it. `ink` is the text colour that can be read on the brand colour."""

    name: str
    color: str
    ink: str
    website: str | None
    support_email: str | None
    postal_address: str | None


def prepare(blueprint: Blueprint) -> Blueprint:
    """Gives a blueprint of public pages its headers and its friendly answer to a database that is away."""
    blueprint.after_request(_add_headers)
    for error in (OperationalError, InterfaceError, PoolTimeout, DBAPIError):
        blueprint.register_error_handler(error, _failed)
    return blueprint


def read_token(token: str, kind: str) -> tuple[UUID, int] | None:
    """The message and link number of a token; None for every kind of bad token. Looks for newer keys where the token's is unknown."""
    found = links().read(token, kind)
    if found is None and not links().knows(token) and time.monotonic() - _ring()["at"] > _RELOADS_AFTER:
        _ring(reload=True)
        found = links().read(token, kind)
    return found


def links() -> Links:
    """The maker and reader of this installation's links."""
    return _ring()["links"]


def facts() -> Request:
    """What the present request tells of itself, for the judging of hits."""
    settings = here().settings
    return Request(
        user_agent=request.headers.get("User-Agent", ""),
        accept_language=request.headers.get("Accept-Language", ""),
        fetch_mode=request.headers.get("Sec-Fetch-Mode", ""),
        trustworthy=settings.base_url.startswith("https:") or settings.base_is_loopback,
        network=network(),
        listed=_sender() in here().scanners,
    )


def network() -> str | None:
    """The network the request came from, truncated (T-06)."""
    return truncated(_sender())


def _sender() -> str | None:
    """The address the request came from: the nearest that is no trusted proxy of ours. What strangers write into the header is not
    believed; a Unix socket, which has no address, is reached by a proxy only."""
    trusted, address = here().proxies, request.remote_addr
    told = [hop.strip() for header in request.headers.getlist("X-Forwarded-For") for hop in header.split(",")]
    while told and (address in trusted or (not address and trusted)):
        address = told.pop()
    return address


def speak(locale: str | None) -> str:
    """Fixes the language of this request's page: the contact's, else the browser's."""
    g.public_language = phrases.language(locale, request.headers.get("Accept-Language"))
    return g.public_language


def spoken() -> str:
    """The language of this request's page."""
    return g.public_language if "public_language" in g else speak(None)


def say(name: str, /, **values: object) -> str:
    """A phrase in the language of the page."""
    return phrases.PHRASES[spoken()][name].format(**values)


def page(conn: Connection | None, name: str, status: int = 200, **values) -> Response:
    """Renders `public/<name>` with the brand of the lifecycle in force (a neutral one without a connection or before there is any)."""
    g.public_nonce = secrets.token_urlsafe(16)
    look, lang = _look(conn), spoken()
    return make_response(render_template(f"public/{name}", look=look, nonce=g.public_nonce, lang=lang, say=say, **values), status)


def notice(conn: Connection | None, name: str, /, status: int = 200, **values: object) -> Response:
    """A page of a heading and a sentence, `<name>_title` and `<name>_text` of the phrases."""
    return page(conn, "notice.html", status, title=say(f"{name}_title"), text=say(f"{name}_text", **values))


def not_found(conn: Connection | None = None) -> Response:
    """The one answer to every bad token: it does not tell what was wrong."""
    return notice(conn, "not_found", 404)


def from_our_page(token: str, kind: str) -> bool:
    """Whether the form that was posted carries the nonce of our page for this token (Q-06)."""
    given = request.form.get("nonce", "").encode("utf-8", "replace")
    return hmac.compare_digest(given, links().nonce(token, kind).encode())


def ink_on(color: str) -> str:
    """Black or white, whichever has the higher contrast on `color` (#rrggbb), by WCAG relative luminance."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#ffffff" if 1.05 / (luminance + 0.05) >= (luminance + 0.05) / 0.05 else "#111111"


_NEUTRAL = Look("", "#2f5f8f", "#ffffff", None, None, None)


def _look(conn: Connection | None) -> Look:
    found = lifecycle_in_force(conn) if conn is not None else None
    if found is None:
        return _NEUTRAL
    brand = found[1].brand
    website = brand.website if (brand.website or "").startswith(("https://", "http://")) else None
    return Look(brand.name, brand.color, ink_on(brand.color), website, brand.support_email, brand.postal_address)


def _ring(reload: bool = False) -> dict:
    kept = current_app.extensions.get("nurture.links")
    if kept is None or reload:
        with here().engine.connect() as conn:
            kept = {"links": Links(here().settings.base_url, load_keyring(conn)), "at": time.monotonic()}
        current_app.extensions["nurture.links"] = kept
    return kept


def _add_headers(response: Response) -> Response:
    response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["X-Robots-Tag"] = "noindex, nofollow"
    response.headers["X-Content-Type-Options"] = "nosniff"
    style = f"'self' 'nonce-{g.public_nonce}'" if "public_nonce" in g else "'self'"
    policy = f"default-src 'none'; style-src {style}; img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    response.headers.setdefault("Content-Security-Policy", policy)
    return response


def _failed(error: SQLAlchemyError) -> Response:
    """A database that is away is 503, so that providers post again (X-48); anything else it says is our fault."""
    away = isinstance(error, OperationalError | InterfaceError | PoolTimeout) or getattr(error, "connection_invalidated", False)
    log.error("public page failed", page=request.endpoint, exc_info=None if away else error, error=type(error).__name__)
    response = notice(None, "later", 503 if away else 500)
    response.headers["Retry-After"] = "30"
    return response
