"""Pages about mail: campaigns, one campaign, messages, one message with its preview, responses."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import UUID

from flask import g, render_template, request
from werkzeug import Response

from app.flow.preview import preview
from app.flow.reading import campaigns, messages, responses
from app.flow.reading.paging import clean
from app.flow.steering import overdue
from app.rules import reasons
from app.rules.book import Version
from app.rules.definition import kind_of
from app.web import public
from app.web.console import blueprint, charts, known_book, steering, words
from app.web.context import reading

# what a mail may do inside the console: show itself.
PREVIEW_POLICY = "default-src 'none'; img-src https: data:; style-src 'unsafe-inline'; frame-ancestors 'self'; sandbox"
_ANSWER_TONES = {
    "nps": ["bad"] * 7 + ["warn"] * 2 + ["good"] * 2,
    "csat": ["bad", "bad", "warn", "good", "good"],
    "ces": ["bad", "bad", "bad", "warn", "good", "good", "good"],
}
_SURVEYS = {"nps": "Recommendation (NPS, 0–10)", "csat": "Satisfaction (CSAT, 1–5)", "ces": "Effort (CES, 1–7)"}


@blueprint.get("/campaigns", endpoint="campaigns")
def campaigns_page() -> str:
    with reading() as conn:
        known_book(conn)
        return render_template("console/campaigns.html", campaigns=campaigns.campaigns(conn, g.now))


@blueprint.get("/campaigns/<key:key>", endpoint="campaign", merge_slashes=False)
def campaign_page(key: str) -> str:
    step, state = clean(request.args.get("step")), clean(request.args.get("state"))
    with reading() as conn:
        known = known_book(conn)
        campaign = campaigns.campaign(conn, key, g.now)
        standing = known.standings.get(key)
        version = known.versions.get(standing.version) if standing else None
        return render_template(
            "console/campaign.html",
            campaign=campaign,
            version=version,
            outline=outline(version, campaign["steps"]) if version else [],
            enrollments=campaigns.enrollments(
                conn, campaign=key, step=step, state=state or ("active" if step else None), cursor=request.args.get("cursor"), limit=30
            ),
            step=step,
            state=state,
            states=campaigns.STATES,
            spread=responses.spread(conn, campaign=key),
            spread_chart=spread_chart,
            overdue=overdue(conn, key, g.now),
            buttons=steering.BUTTONS[campaign["mode"]],
            choices=steering.CHOICES,
            undo=steering.undo_of(campaign),
        )


@blueprint.get("/messages", endpoint="messages")
def messages_page() -> str:
    wanted = {name: clean(request.args.get(name)) for name in ("state", "campaign", "account", "contact", "step")}
    with reading() as conn:
        known_book(conn)
        return render_template(
            "console/messages.html",
            page=messages.messages(conn, **wanted, cursor=request.args.get("cursor")),
            wanted=wanted,
            filtered=any(wanted.values()),
            states=("waiting", "sent", "unknown", "skipped", "ghosted", "shadow"),
            campaigns=campaigns.campaigns(conn, g.now),
        )


@blueprint.get("/messages/<uuid:message_id>", endpoint="message")
def message_page(message_id: UUID) -> str:
    with reading() as conn:
        known_book(conn)
        message = messages.message(conn, str(message_id))
        shown = preview(conn, message_id, public.links())
        decisions = campaigns.decisions(conn, message=str(message_id), limit=100).items
        return render_template("console/message.html", message=message, preview=shown, decisions=decisions)


@blueprint.get("/messages/<uuid:message_id>/preview", endpoint="preview")
def preview_page(message_id: UUID) -> Response:
    """The mail's HTML for the sandboxed frame. Its links go nowhere and its pixel is gone: looking here leaves no trace."""
    with reading() as conn:
        shown = preview(conn, message_id, public.links())
    response = Response(shown.html if shown else "", mimetype="text/html")
    response.headers["Content-Security-Policy"] = PREVIEW_POLICY
    response.headers["X-Frame-Options"] = "SAMEORIGIN"
    return response


@blueprint.get("/responses", endpoint="responses")
def responses_page() -> str:
    wanted = {name: clean(request.args.get(name)) for name in ("survey", "campaign", "account", "contact")}
    days = request.args.get("days")
    since = g.now - timedelta(days=int(days)) if days in ("30", "90", "365") else None
    with reading() as conn:
        known_book(conn)
        return render_template(
            "console/responses.html",
            page=responses.responses(conn, **wanted, cursor=request.args.get("cursor")),
            spread=responses.spread(conn, campaign=wanted["campaign"], since=since),
            spread_chart=spread_chart,
            surveys=_SURVEYS,
            wanted=wanted,
            days=days,
            filtered=any(wanted.values()),
        )


def spread_chart(one: dict[str, Any]) -> str:
    """How the scores of one survey spread, as columns."""
    counts = one["counts"]
    return charts.columns(
        f"Answers by score, {_SURVEYS[one['survey']]}", [str(s) for s in counts], list(counts.values()), tones=_ANSWER_TONES[one["survey"]]
    )


def outline(version: Version, counts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The steps in reading order: {depth, id, kind, text, here, sent, …}; lines without an id are the arms of a branch."""
    by_step = {one["step"]: one for one in counts}
    lines: list[dict[str, Any]] = []
    _lines(version.campaign.steps, 0, lines, by_step)
    for step, left in by_step.items():  # of earlier versions
        lines.append({"depth": 0, "id": step, "kind": "gone", "text": "only in an earlier version", **left})
    return lines


def _lines(steps: list[Any], depth: int, lines: list[dict[str, Any]], counts: dict[str, Any]) -> None:
    for step in steps:
        kind = kind_of(step)
        lines.append({"depth": depth, "id": step.id, "kind": kind, "text": step_text(kind, step), **counts.pop(step.id, {})})
        if kind == "wait_for" and step.on_timeout:
            lines.append({"depth": depth + 1, "id": None, "kind": "arm", "text": "if it did not come in time"})
            _lines(step.on_timeout, depth + 1, lines, counts)
        elif kind == "branch":
            for arm in step.branch:
                lines.append({"depth": depth + 1, "id": None, "kind": "arm", "text": f"if {arm.when}" if arm.when else "otherwise"})
                _lines(arm.steps or arm.otherwise or [], depth + 1, lines, counts)


def step_text(kind: str | None, step: Any) -> str:
    """One step in a few words."""
    if kind in ("email", "survey"):
        return step.subject
    if kind == "wait":
        spec = step.wait
        if spec.span:
            return f"for {reasons.span(spec.span)}"
        if spec.days is not None:
            return f"{spec.days} days" + (f", then at {spec.at:%H:%M}" if spec.at else "")
        return f"until {spec.until}" + (f" {spec.offset.days:+d} days" if spec.offset else "")
    if kind == "wait_for":
        spec = step.wait_for
        what = next(f"{words.words(name).lower()} {getattr(spec, name)}" for name in _AWAITED if getattr(spec, name) is not None)
        return f"{what}{f' where {spec.where}' if spec.where else ''}, {reasons.span(spec.timeout)} at most"
    if kind == "exit":
        return step.exit
    return "by what is true then"


_AWAITED = ("milestone", "stage", "health", "event", "survey", "click", "reply")
