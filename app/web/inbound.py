"""Mail that comes in, handed over by a mail server: one raw mail to a call, kept as it is and read later by a worker (I-06).

2xx means kept. When we are broken the answer is 503, so that the mail server keeps the mail and tries again.
"""

from __future__ import annotations

from datetime import UTC, datetime

from flask import Blueprint, Response, abort, request
from pydantic_core import to_json

from app.flow.access import find_key
from app.flow.inbound import LIMIT, take
from app.web.context import here
from app.web.problems import problem

blueprint = Blueprint("inbound", __name__)


@blueprint.post("/inbound/<endpoint>")
def hand_in(endpoint: str) -> Response:
    """Takes the mail that is the body, whatever its type says. The envelope may stand in `X-Envelope-From` and `X-Envelope-To`.

    `endpoint` is the id of a key of scope `inbound`; the key itself is the bearer token, or the password of basic authentication.
    """
    request.max_content_length = LIMIT
    now = datetime.now(UTC)
    with here().engine.begin() as conn:
        key = find_key(conn, _presented(), now)
    if key is None or key.id != endpoint or not key.allows("inbound"):
        challenge = {"WWW-Authenticate": 'Bearer realm="inbound"'}
        abort(problem(401, "A key of scope inbound is needed, and the address that was shown with it.", headers=challenge))
    raw = request.get_data(cache=False)
    if not raw.strip():
        abort(problem(400, "The body must be the mail as it came.", code="empty"))
    with here().engine.begin() as conn:
        envelope = {"sender": request.headers.get("X-Envelope-From"), "recipient": request.headers.get("X-Envelope-To")}
        made = take(conn, raw, datetime.now(UTC), via="http", **envelope)
    here().bells.inbound()
    return Response(to_json({"id": made, "known": made is None}), 200, mimetype="application/json")


def _presented() -> str:
    given = request.authorization
    if given is None:
        return ""
    return (given.token if given.type == "bearer" else given.password or given.username) or ""
