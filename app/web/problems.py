"""Errors as RFC 9457 problem details, security headers on every answer, and the handler of last resort (X-37, X-48).

A view may raise what `app.errors` names: InputError becomes 400 with its field, NotFound 404. A database that is away is 503, so that
callers try again. Anything else is 500 without a word of what went wrong; the log has the traceback. People's browsers get a page.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import structlog
from flask import Flask, Response, request
from markupsafe import Markup
from pydantic_core import to_json
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from werkzeug.exceptions import HTTPException

from app.config import Settings
from app.errors import InputError, NotFound

RETRY_AFTER = 2  # seconds: a restart of PostgreSQL takes about one
FOR_PROGRAMS = ("/v1/", "/inbound/", "/hooks/", "/api/", "/dev/", "/openapi.json", "/healthz", "/readyz", "/metrics")
CONTENT_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self' data:; font-src 'self'; form-action 'self'; base-uri 'none'; "
    "object-src 'none'; frame-ancestors 'none'"
)
CODES = {
    400: "bad_request",
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
    415: "not_json",
    421: "wrong_host",
    429: "too_many_requests",
    500: "internal_error",
    503: "unavailable",
}

log = structlog.get_logger("web")


def install(app: Flask, settings: Settings) -> None:
    """Gives `app` the error handlers and the headers. A view or blueprint that sets one of the headers itself keeps its own."""
    app.register_error_handler(HTTPException, _http)
    app.register_error_handler(InputError, _input)
    app.register_error_handler(NotFound, lambda error: problem(404, str(error)))
    for away in (OperationalError, InterfaceError, PoolTimeout, DBAPIError):
        app.register_error_handler(away, _database)
    app.register_error_handler(Exception, _unexpected)
    headers = _headers(settings)

    @app.after_request
    def protect(response: Response) -> Response:
        for name, value in headers:
            response.headers.setdefault(name, value)
        if request.endpoint != "static":
            response.headers.setdefault("Cache-Control", "no-store")
        return response


def problem(status: int, detail: str, *, code: str | None = None, headers: dict[str, str] | None = None, **members: Any) -> Response:
    """A problem details answer: `type`, `title`, `status`, `detail`, a `code` for programs, and any further `members`.

    Where a browser asks for a page, the same as a page. `return` it or `abort` with it.
    """
    title = HTTPStatus(status).phrase
    if _is_person():
        response = Response(_PAGE.format(title=title, detail=detail), status, mimetype="text/html")
    else:
        body = {
            "type": "about:blank",
            "title": title,
            "status": status,
            "detail": detail,
            "code": code or CODES.get(status, "error"),
            **members,
        }
        if request.path.startswith("/v1/"):
            # Segment's and RudderStack's clients show `code` and `message`; the latter's take an answer without them for a lost network.
            body["message"] = detail
        response = Response(to_json(body, inf_nan_mode="constants"), status, mimetype="application/problem+json")
    response.headers.update(headers or {})
    return response


def _http(error: HTTPException) -> Response:
    made = error.get_response()
    # The body is replaced, what the protocol asks for stays: Allow, Retry-After, WWW-Authenticate.
    kept = {name: value for name, value in made.headers if name.lower() not in ("content-type", "content-length")}
    if made.status_code == 413:
        return problem(413, f"The body is larger than {request.max_content_length or 0:,} bytes.", headers=kept)
    return problem(made.status_code, error.description or made.status, headers=kept)


def _input(error: InputError) -> Response:
    return problem(400, str(error), field=error.field, code="bad_input")


def _database(error: Exception) -> Response:
    if isinstance(error, OperationalError | InterfaceError | PoolTimeout) or getattr(error, "connection_invalidated", False):
        log.warning("database unavailable", path=request.path, error=type(error).__name__, state=_state(error))
        return problem(503, "The database does not answer. Try again.", headers={"Retry-After": str(RETRY_AFTER)})
    return _unexpected(error)


def _unexpected(error: Exception) -> Response:
    log.error("unexpected error", method=request.method, path=request.path, endpoint=request.endpoint, exc_info=error)
    return problem(500, "Something went wrong here. It has been logged.")


def _state(error: Exception) -> str | None:
    return getattr(getattr(error, "orig", None), "sqlstate", None)


def _is_person() -> bool:
    return not request.path.startswith(FOR_PROGRAMS) and "text/html" in request.headers.get("Accept", "")


def _headers(settings: Settings) -> list[tuple[str, str]]:
    headers = [
        ("X-Content-Type-Options", "nosniff"),
        # Not no-referrer: over TLS the forgery check compares the referrer of the console's own forms.
        ("Referrer-Policy", "same-origin"),
        ("Content-Security-Policy", CONTENT_POLICY),
        ("Cross-Origin-Opener-Policy", "same-origin"),
    ]
    if settings.base_url.startswith("https://"):
        headers.append(("Strict-Transport-Security", "max-age=31536000; includeSubDomains"))
    return headers


_PAGE = Markup(
    '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    '<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex"><title>{title}</title>'
    "<h1>{title}</h1><p>{detail}</p></html>"
)
