"""The reading API, /api/v1: JSON for programs with a bearer key. What it answers is described at /openapi.json.

Everything reads but holds, tasks, enrolling and the modes of campaigns. `read` keys read; `admin` keys read and steer; `write` keys post
events elsewhere and get 403 here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, TypeVar
from uuid import UUID

import structlog
from flask import Blueprint, Response, abort, current_app, g, request
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json
from sqlalchemy import Connection

from app.errors import InputError, StartError
from app.flow import access, consents, enrolling, erase, export, holding, retain, steering, suppressing
from app.flow.explain import explain, read_moment
from app.flow.publish import book
from app.flow.reading import accounts, campaigns, contacts, messages, responses, tasks, timeline
from app.flow.reading.paging import Page, clean, read_limit
from app.flow.tasks import change_task
from app.flow.versions import list_versions
from app.rules.definition import MODES
from app.rules.modes import OVERDUE
from app.rules.reasons import sentence
from app.web import public
from app.web.context import here, reading
from app.web.guards import too_fast
from app.web.openapi import PREFIX, Operation, Param, document
from app.web.problems import problem

log = structlog.get_logger("access")
blueprint = Blueprint("api", __name__)
OPERATIONS: dict[str, Operation] = {}
Model = TypeVar("Model", bound=BaseModel)

_PAGED = (Param("cursor", "Where to go on: `next` of the page before."), Param("limit", "Items of a page, 50 by default.", integer=True))
_OF_ACCOUNT = Param("account", "Only this account's.")
_OF_CONTACT = Param("contact", "Only this contact's.")
_OF_CAMPAIGN = Param("campaign", "Only this campaign's.")
_AS_OF = Param("at", "As of this moment of the past: what was known, recorded and in force then. ISO 8601; now if not given.")


def operation(
    method: str,
    path: str,
    summary: str,
    returns: str | None,
    *,
    query: tuple[Param, ...] = (),
    scope: str = "read",
    paged: bool = False,
    body: str | None = None,
    status: int = 200,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes the function a route and a line of the OpenAPI document. It gets a connection, then the path's ids."""

    def register(call: Callable[..., Any]) -> Callable[..., Any]:
        made = Operation(method, path, call.__name__, summary, scope, returns, (*query, *_PAGED) if paged else query, body, paged, status)
        OPERATIONS[f"api.{call.__name__}"] = replace(made, call=call)
        rule = PREFIX + path.replace("{", "<key:").replace("}", ">")
        blueprint.add_url_rule(rule, call.__name__, lambda **ids: _answer(**ids), methods=[method], merge_slashes=False)
        return call

    return register


@blueprint.before_request
def guard() -> Response | None:
    """Finds the key and checks its scope and the names of the query's parameters."""
    wanted = OPERATIONS.get(request.endpoint or "")
    if wanted is None:
        return None
    g.now = datetime.now(UTC)
    scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
    challenge = {"WWW-Authenticate": 'Bearer realm="nurture"'}
    if scheme.lower() != "bearer" or not presented:
        return problem(401, "Send an API key: Authorization: Bearer nk_…", headers=challenge)
    with here().engine.begin() as conn:
        key = access.find_key(conn, presented.strip(), g.now)
    if key is None:
        log.warning("key refused", endpoint=request.endpoint, problem="unknown or revoked", network=public.network())
        return problem(401, "The API key is unknown or revoked.", headers=challenge)
    if not key.allows(wanted.scope):
        log.warning("key refused", endpoint=request.endpoint, problem=f"its scope is {key.scope}", key=key.id, network=public.network())
        return problem(403, f"This key has the scope {key.scope}; the request needs {wanted.scope}.")
    if wait := current_app.extensions["paces"].api.wait(key.id):
        log.warning("key slowed down", key=key.id, network=public.network())
        return too_fast(wait)
    g.key = key
    known = {param.name for param in wanted.query}
    if unknown := sorted(set(request.args) - known):
        raise InputError(f"is not known here; there are: {', '.join(sorted(known)) or 'none'}", unknown[0])
    return None


@blueprint.get("/openapi.json")
def description() -> Response:
    return _json(document(list(OPERATIONS.values()), here().settings.base_url))


@operation(
    "GET",
    "/accounts",
    "Accounts",
    "AccountSummary",
    paged=True,
    query=(
        Param("search", "Part of a name or id, or a whole address of a contact."),
        Param("stage", "Only in this stage."),
        Param("band", "Only in this health band.", (*accounts.BANDS, "unknown")),
        Param("touch", "Only of this touch model."),
        Param("owner", "Only of the owner with this address."),
        Param("sort", "The order; by id (order of arrival) if not given.", ("id", "name", "health")),
    ),
)
def list_accounts(conn: Connection) -> Page:
    return accounts.accounts(
        conn, **_filters("search", "stage", "band", "touch", "owner"), sort=request.args.get("sort") or "id", **_page()
    )


@operation("GET", "/accounts/{account}", "One account: stage, milestones, health with its contributions, contacts", "Account")
def get_account(conn: Connection, account: str) -> dict[str, Any]:
    found = accounts.account(conn, account, g.now)
    return {**found, "milestones": accounts.milestones_of(book(conn), found, g.now)}


@operation(
    "GET",
    "/accounts/{account}/timeline",
    "What happened to an account, newest first",
    "TimelineEntry",
    paged=True,
    query=(Param("kinds", f"Some of {', '.join(timeline.KINDS)}, separated by commas."),),
)
def account_timeline(conn: Connection, account: str) -> Page:
    return timeline.timeline(conn, account, g.now, kinds=request.args.get("kinds"), **_page())


@operation("GET", "/accounts/{account}/health", "Every health score of an account, newest first", "Health", paged=True)
def account_health(conn: Connection, account: str) -> Page:
    return accounts.health_history(conn, account, **_page())


@operation(
    "GET",
    "/contacts",
    "Contacts",
    "ContactSummary",
    paged=True,
    query=(_OF_ACCOUNT, Param("search", "Part of an address, a name or an id.")),
)
def list_contacts(conn: Connection) -> Page:
    return contacts.contacts(conn, **_filters("account", "search"), **_page())


@operation("GET", "/contacts/{contact}", "One contact", "Contact")
def get_contact(conn: Connection, contact: str) -> dict[str, Any]:
    return contacts.contact(conn, contact, g.now)


@operation(
    "GET",
    "/contacts/{contact}/explain",
    "Why each message was or was not sent to a contact (an id, or an address): the gates in order, and the first that failed",
    "Explanation",
    query=(_OF_ACCOUNT, _OF_CAMPAIGN, _AS_OF),
)
def explain_contact(conn: Connection, contact: str) -> dict[str, Any]:
    return _explained(conn, contact, **_filters("account", "campaign"))


@operation(
    "GET",
    "/accounts/{account}/explain",
    "What became of an account in each campaign: the gates in order, and the first that failed",
    "Explanation",
    query=(_OF_CAMPAIGN, _AS_OF),
)
def explain_account(conn: Connection, account: str) -> dict[str, Any]:
    return _explained(conn, None, account=account, **_filters("campaign"))


@operation(
    "GET",
    "/enrollments",
    "Enrollments, the latest first",
    "Enrollment",
    paged=True,
    query=(
        _OF_CAMPAIGN,
        _OF_ACCOUNT,
        _OF_CONTACT,
        Param("state", "Only in this state.", campaigns.STATES),
        Param("step", "Only at this step."),
    ),
)
def list_enrollments(conn: Connection) -> Page:
    return campaigns.enrollments(conn, **_filters("campaign", "account", "contact", "state", "step"), **_page())


@operation(
    "GET",
    "/messages",
    "Messages, the latest first",
    "Message",
    paged=True,
    query=(
        Param("state", "Only in this state; waiting is due, claimed or in_dot.", ("waiting", *messages.STATES)),
        _OF_CAMPAIGN,
        _OF_ACCOUNT,
        _OF_CONTACT,
        Param("topic", "Only of this topic."),
        Param("enrollment", "Only of this enrollment."),
        Param("step", "Only of this step."),
    ),
)
def list_messages(conn: Connection) -> Page:
    return messages.messages(conn, **_filters("state", "campaign", "account", "contact", "topic", "enrollment", "step"), **_page())


@operation("GET", "/messages/{message}", "One message: what it showed, what became of it, who fetched its links", "MessageDetail")
def get_message(conn: Connection, message: str) -> dict[str, Any]:
    return messages.message(conn, message)


@operation(
    "GET",
    "/decisions",
    "The ledger, the latest first",
    "Decision",
    paged=True,
    query=(
        _OF_ACCOUNT,
        _OF_CONTACT,
        _OF_CAMPAIGN,
        Param("verdict", "Only this verdict.", campaigns.VERDICTS),
        Param("message", "Only about this message."),
        Param("enrollment", "Only about this enrollment."),
    ),
)
def list_decisions(conn: Connection) -> Page:
    found = campaigns.decisions(conn, **_filters("account", "contact", "campaign", "verdict", "message", "enrollment"), **_page())
    return Page([{**one, "text": sentence(one["reason"], one["evidence"])} for one in found.items], found.next)


@operation(
    "GET",
    "/surveys",
    "Answers to surveys, the latest first, with how the scores spread",
    "Surveys",
    query=(Param("survey", "Only of this kind.", tuple(responses.SCALES)), _OF_CAMPAIGN, _OF_ACCOUNT, _OF_CONTACT, *_PAGED),
)
def list_surveys(conn: Connection) -> dict[str, Any]:
    wanted = _filters("survey", "campaign", "account", "contact")
    found = responses.responses(conn, **wanted, **_page())
    return {"data": found.items, "next": found.next, "summary": responses.spread(conn, **wanted)}


@operation("GET", "/campaigns", "Campaigns with their numbers", "Campaigns")
def list_campaigns(conn: Connection) -> dict[str, Any]:
    return {"data": campaigns.campaigns(conn, g.now)}


@operation("GET", "/campaigns/{campaign}", "One campaign: definition, versions, who is at which step", "CampaignDetail")
def get_campaign(conn: Connection, campaign: str) -> dict[str, Any]:
    return campaigns.campaign(conn, campaign, g.now)


@operation("GET", "/campaigns/{campaign}/versions", "The versions of a campaign, the newest first", "Versions")
def list_campaign_versions(conn: Connection, campaign: str) -> dict[str, Any]:
    return {"data": list_versions(conn, campaign)}


@operation(
    "POST",
    "/campaigns/{campaign}/enroll",
    "Enroll accounts, contacts or whoever matches; or only say what would happen",
    "Enrolling",
    scope="admin",
    body="NewEnrollments",
)
def enroll(conn: Connection, campaign: str) -> dict[str, Any]:
    wanted = _body(NewEnrollments)
    whom = {"accounts": wanted.accounts, "contacts": wanted.contacts, "everybody": wanted.everybody}
    found = enrolling.preview(conn, campaign, g.now, **whom)
    requested = 0 if wanted.preview else enrolling.request(conn, found, "hand", g.now)[0]
    return {**found.plain(), "requested": requested}


@operation("GET", "/campaigns/{campaign}/mode", "The mode of a campaign, and what is overdue while it is paused", "Mode")
def get_mode(conn: Connection, campaign: str) -> dict[str, Any]:
    row = steering.find_campaign(conn, campaign)
    waiting = steering.overdue(conn, campaign, g.now)
    return {"campaign": row.key, "mode": row.mode, "since": row.mode_at, "overdue": [asdict(one) for one in waiting]}


@operation("POST", "/campaigns/{campaign}/mode", "Change the mode of a campaign", "ModeChanged", scope="admin", body="NewMode")
def set_mode(conn: Connection, campaign: str) -> dict[str, Any]:
    wanted = _body(NewMode)
    return _changed(conn, campaign, wanted.mode, was=wanted.was, choice=wanted.overdue, leave=wanted.exit)


@operation("POST", "/campaigns/{campaign}/pause", "Pause a campaign", "ModeChanged", scope="admin")
def pause(conn: Connection, campaign: str) -> dict[str, Any]:
    return _changed(conn, campaign, "paused")


@operation(
    "POST", "/campaigns/{campaign}/resume", "End the pause of a campaign, and say what becomes of what is overdue", "ModeChanged",
    scope="admin", body="Resumption",
)  # fmt: skip
def resume(conn: Connection, campaign: str) -> dict[str, Any]:
    return _changed(conn, campaign, "live", was="paused", choice=_body(Resumption).overdue)


@operation("GET", "/holds", "Holds in force", "Holds")
def list_holds(conn: Connection) -> dict[str, Any]:
    return {"data": holding.list_holds(conn, g.now)}


@operation(
    "POST", "/holds", "Hold all but transactional mail of an account or a contact", "Hold", scope="admin", body="NewHold", status=201
)
def create_hold(conn: Connection) -> dict[str, Any]:
    wanted = _body(NewHold)
    made = holding.hold(conn, wanted.reason, g.now, account=wanted.account, contact=wanted.contact, until=wanted.until)
    return {"id": made, "created_at": g.now, **wanted.model_dump()}


@operation("DELETE", "/holds/{hold}", "Release a hold", None, scope="admin", status=204)
def delete_hold(conn: Connection, hold: str) -> None:
    if not hold.isascii() or not hold.isdigit() or len(hold) > 18:
        abort(404)
    holding.release(conn, int(hold), g.now)


@operation(
    "GET",
    "/tasks",
    "Tasks of staff: open ones by the date they are due, others the latest first",
    "Task",
    paged=True,
    query=(
        Param("state", "Only in this state; open if not given.", tasks.STATES),
        Param("overdue", "Only open ones whose date has passed.", ("true", "false")),
        Param("assignee", f"Only of the person with this address; {tasks.NOBODY}: those nobody has."),
        _OF_ACCOUNT,
        _OF_CONTACT,
        _OF_CAMPAIGN,
    ),
)
def list_tasks(conn: Connection) -> Page:
    overdue = request.args.get("overdue") or "false"
    if overdue not in ("true", "false"):
        raise InputError("must be true or false", "overdue")
    wanted = _filters("state", "assignee", "account", "contact", "campaign")
    return tasks.tasks(conn, g.now, **wanted, overdue=overdue == "true", **_page())


@operation("GET", "/contacts/{contact}/consents", "What a contact said about mail and tracking, oldest first", "Consents")
def contact_consents(conn: Connection, contact: str) -> dict[str, Any]:
    return {"data": consents.read(conn, consents.people_of(conn, contacts.find_contact(conn, contact).id))}


@operation("GET", "/contacts/{contact}/export", "Everything that is known of a contact", "Export", scope="admin")
def export_contact(conn: Connection, contact: str) -> dict[str, Any]:
    return export.collect(conn, "contact", contact, g.now)


@operation("GET", "/accounts/{account}/export", "Everything that is known of an account", "Export", scope="admin")
def export_account(conn: Connection, account: str) -> dict[str, Any]:
    return export.collect(conn, "account", account, g.now)


@operation("POST", "/contacts/{contact}/erase", "Erase a contact; asked again, the receipt", "Erasure", scope="admin", status=202)
def erase_contact(conn: Connection, contact: str) -> dict[str, Any]:
    return _erase(conn, "contact", contact)


@operation(
    "POST", "/accounts/{account}/erase", "Erase an account and the people who belong to no other", "Erasure", scope="admin", status=202
)
def erase_account(conn: Connection, account: str) -> dict[str, Any]:
    return _erase(conn, "account", account)


@operation("GET", "/erasures/{erasure}", "The receipt of an erasure, or how far it is", "Erasure", scope="admin")
def get_erasure(conn: Connection, erasure: str) -> dict[str, Any]:
    try:
        return erase.receipt(conn, UUID(erasure)).plain()
    except ValueError:
        abort(404)


@operation(
    "GET",
    "/suppressions",
    "Addresses that must not be written to, the latest first",
    "Suppression",
    paged=True,
    query=(
        Param("email", "Only of this address."),
        Param("scope", "Only in this scope: all, a topic, or a reason that stops transactional mail, too."),
        Param("reason", "Only for this reason.", suppressing.REASONS),
    ),
)
def list_suppressions(conn: Connection) -> Page:
    wanted = _filters("email", "scope", "reason")
    return suppressing.suppressions(conn, search=wanted["email"], scope=wanted["scope"], reason=wanted["reason"], **_page())


@operation("POST", "/suppressions", "Put an address on the list", "Suppression", scope="admin", body="NewSuppression", status=201)
def add_suppression(conn: Connection) -> dict[str, Any]:
    wanted = _body(NewSuppression)
    return suppressing.add(conn, wanted.email, wanted.scope, wanted.reason, g.now, by=_who(), method="api", note=wanted.note)


@operation(
    "POST", "/suppressions/lift", "Take an address off the list, with the evidence why", "Lifted", scope="admin", body="LiftSuppression"
)
def lift_suppression(conn: Connection) -> dict[str, Any]:
    wanted = _body(LiftSuppression)
    lifted = suppressing.lift(conn, wanted.email, wanted.scope, g.now, by=_who(), method="api", evidence=wanted.evidence)
    return {"email": wanted.email, "lifted": lifted}


@operation("GET", "/retention", "What is kept how long, and what the last nights took away", "Retention")
def get_retention(conn: Connection) -> dict[str, Any]:
    return retain.state(conn, g.now)


@operation("GET", "/tasks/{task}", "One task", "Task")
def get_task(conn: Connection, task: str) -> dict[str, Any]:
    return tasks.task(conn, task, g.now)


@operation("POST", "/tasks/{task}", "Close a task, open it again, or give it to somebody", "Task", scope="admin", body="TaskChange")
def change_one_task(conn: Connection, task: str) -> dict[str, Any]:
    wanted = _body(TaskChange)
    whose = {"assignee": wanted.assignee} if "assignee" in wanted.model_fields_set else {}
    change_task(conn, task, g.now, state=wanted.state, outcome=wanted.outcome, **whose)
    return tasks.task(conn, task, g.now)


class TaskChange(BaseModel):
    model_config = ConfigDict(extra="forbid")

    state: str | None = None
    outcome: str | None = None
    assignee: str | None = None


class NewSuppression(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: str
    scope: str = "all"
    reason: str = "unsubscribed"
    note: Annotated[str, Field(max_length=500)] = ""


class LiftSuppression(BaseModel):
    model_config = ConfigDict(extra="forbid")

    email: str
    scope: str = "all"
    evidence: str


class NewMode(BaseModel):
    model_config = ConfigDict(extra="forbid")

    mode: Literal[MODES]  # type: ignore[valid-type]
    was: Literal[MODES] | None = None  # type: ignore[valid-type]
    overdue: Literal[OVERDUE] | None = None  # type: ignore[valid-type]
    exit: bool = False


class Resumption(BaseModel):
    model_config = ConfigDict(extra="forbid")

    overdue: Literal[OVERDUE] | None = None  # type: ignore[valid-type]


class NewHold(BaseModel):
    model_config = ConfigDict(extra="forbid")

    account: str | None = None
    contact: str | None = None
    reason: str
    until: AwareDatetime | None = None


class NewEnrollments(BaseModel):
    model_config = ConfigDict(extra="forbid")

    accounts: Annotated[list[str], Field(max_length=1000)] = []
    contacts: Annotated[list[str], Field(max_length=1000)] = []
    everybody: bool = False
    preview: bool = False


def _answer(**ids: str) -> Response:
    wanted = OPERATIONS[request.endpoint or ""]
    if wanted.method == "GET":
        with reading() as conn:
            found = wanted.call(conn, **ids)
    else:
        with here().engine.begin() as conn:
            found = wanted.call(conn, **ids)
        if ring := g.pop("ring", None):
            here().bells.advance(ring)
    if isinstance(found, Page):
        found = {"data": found.items, "next": found.next}
    return Response(status=wanted.status) if found is None else _json(found, wanted.status)


def _erase(conn: Connection, kind: str, key: str) -> dict[str, Any]:
    try:
        asked = erase.request(conn, kind, key, _who(), g.now)
    except StartError as error:
        abort(problem(503, str(error), headers={"Retry-After": "5"}))
    here().bells.tidy()
    return asked.plain()


def _who() -> str:
    return f"API key {g.key.name}"


def _changed(conn: Connection, campaign: str, mode: str, **said: Any) -> dict[str, Any]:
    done = steering.set_mode(conn, campaign, mode, g.now, by=f"key {g.key.name}", **said)
    g.ring = done.partitions
    return {name: value for name, value in asdict(done).items() if name != "partitions"}


def _explained(conn: Connection, contact: str | None, **wanted: str | None) -> dict[str, Any]:
    known = book(conn)
    return explain(conn, known, contact, now=g.now, at=read_moment(request.args.get("at"), known), **wanted).plain()


def _filters(*names: str) -> dict[str, str | None]:
    return {name: clean(request.args.get(name)) for name in names}


def _page() -> dict[str, Any]:
    return {"cursor": request.args.get("cursor"), "limit": read_limit(request.args.get("limit"))}


def _body(model: type[Model]) -> Model:
    try:
        return model.model_validate_json(request.get_data())
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InputError(first["msg"], ".".join(map(str, first["loc"])) or "body") from error


def _json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value, inf_nan_mode="null"), status, mimetype="application/json")
