"""Webhooks of mail providers: verified, stored, answered; what they say is heard by a worker (email-standards 3.3).

The answers are chosen by what providers make of them (W-06): 2xx for what is stored or was stored before, 401, 403 and 400 for what will
never be believed, and 503 whenever the fault is ours, so that it comes again.
"""

from __future__ import annotations

from datetime import UTC, datetime

import structlog
from flask import Blueprint, Response, abort, current_app, request
from pydantic_core import to_json

from app.errors import CallError, NotFound, Refused
from app.flow import hooks
from app.flow.seals import Sealed
from app.providers.hooks.call import Call, Item
from app.providers.hooks.sns import Certificates
from app.providers.outgoing import Caller
from app.web.context import here
from app.web.problems import problem

LIMIT = 1024 * 1024
CERTIFICATE_SECONDS = 5.0  # SNS waits for an answer for fifteen

blueprint = Blueprint("hooks", __name__, url_prefix="/hooks")
log = structlog.get_logger("web")


@blueprint.post("/<provider>/<hook_id>")
def take(provider: str, hook_id: str) -> Response:
    """One call of a provider. What it says is never looked at before it is verified."""
    request.max_content_length = LIMIT
    body = request.get_data(cache=False)
    known = _hook(provider, hook_id)
    call = Call(body, {name.lower(): value for name, value in request.headers.items()}, datetime.now(UTC))
    try:
        items = _verified(known, call)
    except Refused as refused:
        log.warning("webhook refused", provider=provider, hook=hook_id[:8], problem=refused.problem)
        with here().engine.begin() as conn:
            hooks.note_refusal(conn, known, call, refused)
        challenge = {"WWW-Authenticate": 'Basic realm="hook", charset="UTF-8"'} if refused.status == 401 else None
        return problem(refused.status, f"The call {refused.problem}.", code="refused", headers=challenge)
    with here().engine.begin() as conn:
        fresh = hooks.store(conn, known, items, call.at)
    if fresh:
        here().bells.hooks()
    return Response(to_json({"taken": fresh, "known": len(items) - fresh}), 200, mimetype="application/json")


def _hook(provider: str, hook_id: str) -> hooks.Hook:
    try:
        with here().engine.connect() as conn:
            found = hooks.find_hook(conn, here().settings, hook_id)
    except NotFound:
        found = None
    except Sealed as error:
        log.error("webhook cannot be verified", provider=provider, problem=error.problem)
        abort(problem(503, "The secret of this address cannot be read here.", headers={"Retry-After": "600"}))
    if found is None or found.provider != provider:
        abort(problem(404, "There is nothing at this address."))
    return found


def _verified(known: hooks.Hook, call: Call) -> list[Item]:
    """No connection of the database is held meanwhile: a certificate may have to be fetched."""
    extensions = current_app.extensions
    if "nurture-certificates" not in extensions:
        extensions["nurture-certificates"] = Certificates(Caller(here().settings.allow_hosts, seconds=CERTIFICATE_SECONDS))
    try:
        return hooks.verify(known, call, extensions["nurture-certificates"])
    except CallError as error:
        log.warning("webhook cannot be verified for now", provider=known.provider, problem=error.problem)
        abort(problem(503, "The signature cannot be checked for now. Try again.", headers={"Retry-After": "20"}))
