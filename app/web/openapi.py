"""The reading API's description, OpenAPI 3.1: made from the same operations that make the routes, so that it cannot leave one out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from app.config import VERSION
from app.rules.definition import MODES
from app.rules.modes import OVERDUE
from app.rules.signals import SENTENCES, WEIGHTS

Schema = dict[str, Any]
PREFIX = "/api/v1"

TEXT: Schema = {"type": "string"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
TIME: Schema = {"type": "string", "format": "date-time"}
MAYBE_TIME: Schema = {"type": ["string", "null"], "format": "date-time"}
NUMBER: Schema = {"type": "number"}
MAYBE_NUMBER: Schema = {"type": ["number", "null"]}
COUNT: Schema = {"type": "integer", "minimum": 0}
MAYBE_COUNT: Schema = {"type": ["integer", "null"]}
FLAG: Schema = {"type": "boolean"}
THINGS: Schema = {"type": "object"}


@dataclass(frozen=True, slots=True)
class Param:
    """A query parameter. `choices` are all that it takes, if there are few."""

    name: str
    description: str
    choices: tuple[str, ...] = ()
    integer: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path below /api/v1. `paged` answers are {data, next}; `returns` names the schema (of one item, if paged)."""

    method: str
    path: str
    name: str
    summary: str
    scope: str
    returns: str | None
    query: tuple[Param, ...] = ()
    body: str | None = None
    paged: bool = False
    status: int = 200
    call: Callable[..., Any] | None = None


def document(operations: Sequence[Operation], base_url: str) -> dict[str, Any]:
    """The OpenAPI document of these operations."""
    paths: dict[str, Any] = {}
    for operation in operations:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _described(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Nurture",
            "version": VERSION,
            "description": "Reads what Nurture knows of accounts, contacts, campaigns and mail, puts customers on hold, enrolls them, "
            "changes the modes of campaigns, and steers the tasks of staff. Times are RFC 3339 in UTC. Lists answer `data` and `next`; "
            "pass `next` as `cursor` to go on. "
            "External ids may hold slashes; percent-encode everything else.",
        },
        "servers": [{"url": base_url + PREFIX}],
        "security": [{"key": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key: nurture keys create NAME --scope read"}
            },
            "schemas": SCHEMAS,
        },
    }


def _described(operation: Operation) -> dict[str, Any]:
    names = [part[1:-1] for part in operation.path.split("/") if part.startswith("{")]
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": f"Needs a key of scope {operation.scope}.",
        "parameters": [{"name": name, "in": "path", "required": True, "description": f"The {name}'s id.", "schema": TEXT} for name in names]
        + [_param(param) for param in operation.query],
        "responses": {str(operation.status): _answer(operation), "default": _PROBLEM},
    }
    if operation.body:
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": _ref(operation.body)}}}
    return found


def _param(param: Param) -> dict[str, Any]:
    schema: Schema = {"type": "integer"} if param.integer else {"type": "string"}
    if param.choices:
        schema["enum"] = list(param.choices)
    return {"name": param.name, "in": "query", "description": param.description, "schema": schema}


def _answer(operation: Operation) -> dict[str, Any]:
    if operation.returns is None:
        return {"description": "Done; no content."}
    schema = page_of(operation.returns) if operation.paged else _ref(operation.returns)
    return {"description": operation.summary, "content": {"application/json": {"schema": schema}}}


def page_of(name: str) -> Schema:
    """A page of a list."""
    return {
        "type": "object",
        "required": ["data", "next"],
        "properties": {
            "data": {"type": "array", "items": _ref(name)},
            "next": {**MAYBE_TEXT, "description": "The cursor of the next page."},
        },
    }


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _record(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    return {"type": "object", "required": list(required), "properties": {**required, **(optional or {})}}


def _many(schema: Schema) -> Schema:
    return {"type": "array", "items": schema}


_PROBLEM: dict[str, Any] = {
    "description": "Problem details (RFC 9457).",
    "content": {"application/problem+json": {"schema": _ref("Problem")}},
}
_BAND: Schema = {"type": ["string", "null"], "enum": ["green", "yellow", "red", None]}
_HOLD = {"id": COUNT, "reason": TEXT, "created_at": TIME, "until": MAYBE_TIME}
_SUMMARY: dict[str, Schema] = {
    "id": TEXT,
    "name": MAYBE_TEXT,
    "touch": MAYBE_TEXT,
    "stage": MAYBE_TEXT,
    "stage_entered_at": MAYBE_TIME,
    "owner": {"type": ["object", "null"], "properties": {"name": MAYBE_TEXT, "email": MAYBE_TEXT}},
    "timezone": MAYBE_TEXT,
    "seats": MAYBE_COUNT,
    "renewal_date": MAYBE_TIME,
    "created_at": TIME,
    "last_event_at": MAYBE_TIME,
}
_MODE: Schema = {"type": "string", "enum": list(MODES)}
_CHOICE: Schema = {"type": "string", "enum": list(OVERDUE)}
_HEALTH: dict[str, Schema] = {"score": MAYBE_NUMBER, "band": _BAND, "at": MAYBE_TIME}
_DECISION: dict[str, Schema] = {
    "at": MAYBE_TIME,
    "gate": TEXT,
    "verdict": {"type": "string", "enum": ["yes", "no", "wait"]},
    "reason": {**TEXT, "description": "A code; `text` says it in words."},
    "text": TEXT,
    "evidence": THINGS,
    "campaign": MAYBE_TEXT,
    "version": MAYBE_COUNT,
    "step": MAYBE_TEXT,
    "account": MAYBE_TEXT,
    "contact": MAYBE_TEXT,
}
_LINE: dict[str, Schema] = {
    "gate": TEXT,
    "verdict": {"type": "string", "enum": ["yes", "no", "wait", "not asked"]},
    "reason": {**TEXT, "description": "A code; `text` says it in words."},
    "text": TEXT,
    "at": MAYBE_TIME,
    "evidence": {
        **THINGS,
        "description": "What it saw: the values by path, and under `because` what a condition failed on or holds by, as a list of "
        "{what, was, is, wanted, by, unit}, or of {any: alternatives, the nearest first}.",
    },
    "step": MAYBE_TEXT,
    "version": {**MAYBE_COUNT, "description": "Of the campaign whose rule it was."},
    "stored": {**FLAG, "description": "False: worked out again by the same rules."},
}
_CONTACT: dict[str, Schema] = {
    "id": TEXT,
    "email": MAYBE_TEXT,
    "first_name": MAYBE_TEXT,
    "last_name": MAYBE_TEXT,
    "timezone": MAYBE_TEXT,
    "locale": MAYBE_TEXT,
    "created_at": TIME,
    "last_seen_at": MAYBE_TIME,
}
_CAMPAIGN: dict[str, Schema] = {
    "id": {**TEXT, "description": "The campaign's folder, such as onboarding/first-value."},
    "name": TEXT,
    "mode": {"type": "string", "enum": ["draft", "shadow", "live", "paused", "archived"]},
    "mode_at": {**MAYBE_TIME, "description": "Since when it is in this mode; null: since it was published."},
    "version": MAYBE_COUNT,
    "published_at": MAYBE_TIME,
    **{name: COUNT for name in ("active", "finished", "exited", "goals", "sent", "waiting", "skipped", "unknown", "clicked", "answered")},
    "opened": {**COUNT, "description": "Messages opened by a person, or by a mail provider as a person looked. No proof of anything."},
    "machine_opened": {**COUNT, "description": "Messages whose images only machines loaded, looked at or not."},
}
_HIT: dict[str, Schema] = {
    "kind": {"type": "string", "enum": ["click", "open", "survey", "unsubscribe", "preferences", "view", "honeypot"]},
    "link": MAYBE_COUNT,
    "at": TIME,
    "network": {**MAYBE_TEXT, "description": "Of the address, truncated to /24 or /48."},
    "user_agent": MAYBE_TEXT,
    "verdict": {"type": "string", "enum": ["human", "suspected", "scanner", "machine", "proxy"]},
    "score": {"type": "integer", "description": "The sum of the weights: 80 and more is a scanner, 40 to 79 suspected."},
    "signals": {
        "type": "object",
        "properties": {name: {"const": WEIGHTS[name], "description": f"{what.capitalize()}."} for name, what in SENTENCES.items()},
        "description": "Why: each signal with its weight.",
    },
    "settled_at": {**MAYBE_TIME, "description": "When it was judged first; null: within its minute still."},
}
_MESSAGE: dict[str, Schema] = {
    "id": {"type": "string", "format": "uuid"},
    "state": {"type": "string", "enum": ["due", "claimed", "in_dot", "sent", "unknown", "skipped", "ghosted", "shadow"]},
    "reason": MAYBE_TEXT,
    "kind": {"type": "string", "enum": ["email", "survey"]},
    "topic": TEXT,
    "priority": COUNT,
    "campaign": TEXT,
    "step": TEXT,
    "occurrence": COUNT,
    "enrollment": {"type": "string", "format": "uuid"},
    "account": TEXT,
    "contact": TEXT,
    "email": MAYBE_TEXT,
    "subject": MAYBE_TEXT,
    "created_at": TIME,
    "due_at": TIME,
    "expires_at": TIME,
    "settled_at": MAYBE_TIME,
    "clicked": FLAG,
    "answer": MAYBE_COUNT,
}
_RESPONSE: dict[str, Schema] = {
    "survey": {"type": "string", "enum": ["nps", "csat", "ces"]},
    "question": TEXT,
    "score": COUNT,
    "comment": MAYBE_TEXT,
    "answered_at": TIME,
    "revision": COUNT,
    "campaign": TEXT,
    "account": TEXT,
    "contact": TEXT,
    "message": {"type": "string", "format": "uuid"},
}

SCHEMAS: dict[str, Schema] = {
    "Problem": _record({"title": TEXT, "status": COUNT, "detail": TEXT}, {"type": TEXT, "code": TEXT, "field": MAYBE_TEXT}),
    "AccountSummary": _record({**_SUMMARY, "health": _record(_HEALTH)}, {"contacts": COUNT}),
    "Account": _record(
        {
            **_SUMMARY,
            "health": _ref("Health"),
            "customer_since": MAYBE_TIME,
            "revenue": MAYBE_NUMBER,
            "traits": THINGS,
            "stage_history": _many(_record({"stage": TEXT, "entered_at": TIME, "left_at": MAYBE_TIME, "reason": MAYBE_TEXT})),
            "milestones": _many(_ref("Milestone")),
            "contacts": _many(_ref("Member")),
            "holds": _many(_record(_HOLD)),
        }
    ),
    "Milestone": _record(
        {
            "name": TEXT,
            "label": TEXT,
            "state": {"type": "string", "enum": ["reached", "late", "overdue", "expected", "open"]},
            "reached_at": MAYBE_TIME,
            "overdue_at": MAYBE_TIME,
            "expected_at": MAYBE_TIME,
        }
    ),
    "Health": _record(
        {**_HEALTH, "coverage": MAYBE_NUMBER, "contributions": _many(_ref("Contribution")), "cause": MAYBE_TEXT, "model": MAYBE_TEXT}
    ),
    "Contribution": _record(
        {
            "group": TEXT,
            "measure": TEXT,
            "label": TEXT,
            "metric": TEXT,
            "value": NUMBER,
            "points": {**NUMBER, "description": "Where the value lies between worst (0) and best (100)."},
            "weight": {**NUMBER, "description": "The measure's share of the whole; all sum to 1."},
            "contribution": {**NUMBER, "description": "Points times weight; all sum to the score."},
        }
    ),
    "Member": _record(
        {
            "id": TEXT,
            "email": MAYBE_TEXT,
            "first_name": MAYBE_TEXT,
            "last_name": MAYBE_TEXT,
            "roles": _many(TEXT),
            "joined_at": TIME,
            "last_seen_at": MAYBE_TIME,
            "reachable": FLAG,
            "suppressed": _many(TEXT),
            "held": MAYBE_TEXT,
        }
    ),
    "TimelineEntry": _record(
        {"at": TIME, "kind": {"type": "string", "enum": ["event", "message", "response", "stage", "enrollment", "decision"]}}
    ),
    "ContactSummary": _record(_CONTACT),
    "Contact": _record(
        {
            **_CONTACT,
            "traits": THINGS,
            "accounts": _many(_record({"account": TEXT, "account_name": MAYBE_TEXT, "roles": _many(TEXT), "joined_at": TIME})),
            "suppressions": _many(_record({"scope": TEXT, "reason": TEXT, "created_at": TIME})),
            "holds": _many(_record(_HOLD)),
            "reachable": FLAG,
            "last_active_at": {**MAYBE_TIME, "description": "The day of the last open, where list_hygiene keeps it."},
        }
    ),
    "Consents": _record(
        {
            "data": _many(
                _record(
                    {
                        "person": TEXT,
                        "purpose": {**TEXT, "description": "A topic, all, pause, open_tracking or click_tracking."},
                        "granted": FLAG,
                        "at": TIME,
                        "method": TEXT,
                        "source": MAYBE_TEXT,
                        "wording": {**MAYBE_TEXT, "description": "A hash of the words that were shown."},
                        "locale": MAYBE_TEXT,
                        "words": MAYBE_TEXT,
                        "network": MAYBE_TEXT,
                        "actor": MAYBE_TEXT,
                        "evidence": THINGS,
                    }
                )
            )
        }
    ),
    "Export": {"type": "object", "description": "The profile and every list that nurture export writes as a file."},
    "Erasure": _record(
        {
            "id": TEXT,
            "kind": TEXT,
            "subject": {**TEXT, "description": "A keyed hash of the id."},
            "requested_at": TIME,
            "requested_by": TEXT,
            "finished_at": MAYBE_TIME,
            "counts": {**THINGS, "description": "Rows by table."},
            "notes": _many(TEXT),
        }
    ),
    "Suppression": _record(
        {
            "id": COUNT,
            "email": {**MAYBE_TEXT, "description": "Null where it was erased."},
            "erased": FLAG,
            "scope": TEXT,
            "reason": TEXT,
            "evidence": THINGS,
            "created_at": TIME,
        }
    ),
    "NewSuppression": {
        "type": "object",
        "required": ["email"],
        "additionalProperties": False,
        "properties": {
            "email": TEXT,
            "scope": {**TEXT, "description": "all, or a topic."},
            "reason": {"type": "string", "enum": ["unsubscribed", "manual", "complained", "bounced", "soft_limit"]},
            "note": {**TEXT, "maxLength": 500},
        },
    },
    "LiftSuppression": {
        "type": "object",
        "required": ["email", "evidence"],
        "additionalProperties": False,
        "properties": {"email": TEXT, "scope": TEXT, "evidence": {**TEXT, "description": "By what right: who asked for it, when, where."}},
    },
    "Lifted": _record({"email": TEXT, "lifted": _many(TEXT)}),
    "Retention": _record(
        {
            "kept": _many(_record({"name": TEXT, "what": TEXT, "setting": TEXT, "keeps": TEXT, "days": NUMBER})),
            "runs": _many(_record({"day": TEXT, "started_at": TIME, "finished_at": MAYBE_TIME, "counts": THINGS})),
            "due": FLAG,
        }
    ),
    "Explanation": _record(
        {
            "contacts": {**_many(TEXT), "description": "Empty where an account is explained."},
            "at": {**TIME, "description": "The moment that is explained."},
            "decisions": _many(_record({**_LINE, "account": MAYBE_TEXT, "contact": MAYBE_TEXT, "campaign": MAYBE_TEXT})),
            "notes": {**_many(_ref("Gate")), "description": "Decisions that belong to no account, and what can no longer be known."},
            "stories": _many(
                _record(
                    {
                        "account": TEXT,
                        "account_name": MAYBE_TEXT,
                        "contact": {**MAYBE_TEXT, "description": "Null: the account as a whole."},
                        "campaign": TEXT,
                        "campaign_name": TEXT,
                        "mode": TEXT,
                        "version": {**MAYBE_COUNT, "description": "The number of the version that counted."},
                        "summary": {**TEXT, "description": "The answer in a sentence."},
                        "gates": {**_many(_ref("Gate")), "description": "All gates in order, for the mail in question or for entering."},
                        "first_failed": {**MAYBE_TEXT, "description": "The first gate that said no or not yet."},
                        "of": {**MAYBE_TEXT, "description": "The step whose mail the gates are about; null: entering."},
                        "step": {**MAYBE_TEXT, "description": "Where the enrollment is."},
                        "due_at": MAYBE_TIME,
                        "entry": _many(_ref("Gate")),
                        "way": _many(_ref("Gate")),
                        "letters": _many(
                            _record(
                                {
                                    "step": TEXT,
                                    "state": TEXT,
                                    "text": TEXT,
                                    "subject": MAYBE_TEXT,
                                    "id": MAYBE_TEXT,
                                    "contact": MAYBE_TEXT,
                                    "at": MAYBE_TIME,
                                    "lines": _many(_ref("Gate")),
                                    "gates": _many(_ref("Gate")),
                                }
                            )
                        ),
                    }
                )
            ),
        }
    ),
    "Gate": _record(_LINE),
    "Enrollment": _record(
        {
            "id": {"type": "string", "format": "uuid"},
            "campaign": TEXT,
            "version": COUNT,
            "account": TEXT,
            "contact": MAYBE_TEXT,
            "state": {"type": "string", "enum": ["active", "finished", "exited"]},
            "step": MAYBE_TEXT,
            "occurrence": COUNT,
            "shadow": FLAG,
            "held_out": FLAG,
            "entered_by": MAYBE_TEXT,
            "entered_at": TIME,
            "due_at": MAYBE_TIME,
            "goal_at": MAYBE_TIME,
            "ended_at": MAYBE_TIME,
            "end_reason": MAYBE_TEXT,
        }
    ),
    "Message": _record(_MESSAGE),
    "MessageDetail": _record(
        {
            **_MESSAGE,
            "version": COUNT,
            "message_header": MAYBE_TEXT,
            "attempts": COUNT,
            "reply": MAYBE_TEXT,
            "values": {"type": ["object", "null"]},
            "links": {"type": ["array", "null"], "items": MAYBE_TEXT},
            "delivery_events": _many(_record({"kind": TEXT, "at": TIME, "detail": THINGS})),
            "hits": _many(_record(_HIT)),
            "responses": _many(_record({"survey": TEXT, "score": COUNT, "comment": MAYBE_TEXT, "answered_at": TIME})),
        }
    ),
    "Decision": _record({**_DECISION, "enrollment": MAYBE_TEXT, "message": MAYBE_TEXT}),
    "Surveys": _record(
        {
            "data": _many(_record(_RESPONSE)),
            "next": MAYBE_TEXT,
            "summary": _many(_record({"survey": TEXT, "counts": THINGS, "total": COUNT, "mean": MAYBE_NUMBER, "nps": MAYBE_NUMBER})),
        }
    ),
    "Campaign": _record(_CAMPAIGN),
    "CampaignDetail": _record(
        {
            **_CAMPAIGN,
            "definition": {"type": ["object", "null"]},
            "versions": _many(_ref("Version")),
            "steps": _many(_record({"step": TEXT, "here": COUNT, "sent": COUNT, "waiting": COUNT, "skipped": COUNT, "unknown": COUNT})),
        }
    ),
    "Version": _record(
        {
            "number": COUNT,
            "published_at": TIME,
            "hash": {**TEXT, "description": "Of everything that goes into it: the same content, the same version."},
            "current": {**FLAG, "description": "Whether new enrollments enter it."},
            "active": {**COUNT, "description": "Who is inside now."},
            "enrollments": {**COUNT, "description": "Who ever was."},
        }
    ),
    "Versions": _record({"data": _many(_ref("Version"))}),
    "Enrolling": _record(
        {
            "campaign": TEXT,
            "version": COUNT,
            "mode": TEXT,
            "entering": {**COUNT, "description": "How many would enter, by what is known now."},
            "refused": COUNT,
            "mails": {**COUNT, "description": "The mails that they would begin with."},
            "requested": {**COUNT, "description": "For how many it was asked; 0 for a preview. The ledger says what became of each."},
            "reasons": _many(_record({"gate": TEXT, "reason": TEXT, "text": TEXT, "count": COUNT})),
            "answers": {
                "description": "At most 1,000 who would enter, then at most 1,000 who would not.",
                **_many(
                    _record(
                        {
                            "account": TEXT,
                            "contact": MAYBE_TEXT,
                            "verdict": {"type": "string", "enum": ["yes", "no", "wait"]},
                            "gate": TEXT,
                            "reason": TEXT,
                            "text": TEXT,
                            "evidence": THINGS,
                            "held_out": FLAG,
                            "step": MAYBE_TEXT,
                            "due_at": MAYBE_TIME,
                            "mails": _many(_record({"step": TEXT, "contact": TEXT, "due_at": TIME})),
                        }
                    )
                ),
            },
        }
    ),
    "NewEnrollments": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "accounts": {**_many(TEXT), "maxItems": 1000, "description": "Ids; of a campaign that enrolls contacts, all their contacts."},
            "contacts": {**_many(TEXT), "maxItems": 1000, "description": "Ids; of a campaign that enrolls accounts, their accounts."},
            "everybody": {**FLAG, "description": "Instead of naming any: whoever matches now."},
            "preview": {**FLAG, "description": "Say what would happen, and do nothing."},
        },
    },
    "Mode": _record(
        {
            "campaign": TEXT,
            "mode": _MODE,
            "since": {**MAYBE_TIME, "description": "When it became that; null: when it was published."},
            "overdue": {
                "description": "What waits only because the campaign is paused, the longest overdue first.",
                **_many(
                    _record(
                        {
                            "what": {"type": "string", "enum": ["timer", "message", "alert", "webhook", "task"]},
                            "step": TEXT,
                            "count": COUNT,
                            "oldest": TIME,
                            "then": {**MAYBE_TEXT, "description": "Of a timer, the step that follows; null: the end."},
                        }
                    )
                ),
            },
        }
    ),
    "ModeChanged": _record(
        {
            "campaign": TEXT,
            "before": _MODE,
            "after": _MODE,
            "overdue": {"type": ["string", "null"], "enum": ["send", "skip", "exit", None]},
            "leaving": {**COUNT, "description": "Enrollments that leave."},
            "skipping": {**COUNT, "description": "Enrollments that go on without what was overdue."},
            "messages": {**COUNT, "description": "Messages that are due now, or were skipped."},
            "effects": {**COUNT, "description": "Alerts, webhooks and tasks that are due now, or were skipped."},
        }
    ),
    "NewMode": {
        "type": "object",
        "required": ["mode"],
        "additionalProperties": False,
        "properties": {
            "mode": _MODE,
            "was": {**_MODE, "description": "The mode you believe it is in: if it is not, nothing changes."},
            "overdue": {**_CHOICE, "description": "Out of a pause: what becomes of what is overdue. Must be said where anything is."},
            "exit": {**FLAG, "description": "With archived: everybody inside leaves; otherwise they finish."},
        },
    },
    "Resumption": {
        "type": "object",
        "additionalProperties": False,
        "properties": {"overdue": {**_CHOICE, "description": "What becomes of what is overdue. Must be said where anything is."}},
    },
    "Campaigns": _record({"data": _many(_ref("Campaign"))}),
    "Hold": _record({**_HOLD, "account": MAYBE_TEXT, "contact": MAYBE_TEXT}),
    "Holds": _record({"data": _many(_ref("Hold"))}),
    "Task": _record(
        {
            "id": {"type": "string", "format": "uuid"},
            "title": TEXT,
            "note": TEXT,
            "state": {"type": "string", "enum": ["open", "done", "dismissed"]},
            "overdue": FLAG,
            "outcome": {**MAYBE_TEXT, "description": "What came of it, if it is closed."},
            "assignee": {**MAYBE_TEXT, "description": "An address; null: nobody has it yet."},
            "assignee_name": MAYBE_TEXT,
            "account": TEXT,
            "account_name": MAYBE_TEXT,
            "contact": MAYBE_TEXT,
            "contact_name": MAYBE_TEXT,
            "campaign": {**MAYBE_TEXT, "description": "The campaign whose step made it; null: made by hand."},
            "campaign_name": MAYBE_TEXT,
            "step": MAYBE_TEXT,
            "enrollment": MAYBE_TEXT,
            "created_at": TIME,
            "due_at": MAYBE_TIME,
            "closed_at": MAYBE_TIME,
        }
    ),
    "TaskChange": {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "state": {"type": "string", "enum": ["open", "done", "dismissed"]},
            "outcome": {**TEXT, "maxLength": 4000, "description": "What came of it; only with a task that is or becomes closed."},
            "assignee": {**MAYBE_TEXT, "description": "Whose it is now; null: nobody's."},
        },
    },
    "NewHold": {
        "type": "object",
        "required": ["reason"],
        "additionalProperties": False,
        "properties": {
            "account": {**TEXT, "description": "The account's id; either this or contact."},
            "contact": {**TEXT, "description": "The contact's id."},
            "reason": {**TEXT, "minLength": 1, "maxLength": 200},
            "until": {**MAYBE_TIME, "description": "When it ends by itself; null holds until released."},
        },
    },
}
