"""Pages about customers: overview, accounts, one account, one contact."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from flask import g, redirect, render_template, request, url_for
from sqlalchemy import Connection
from werkzeug import Response

from app.errors import InputError
from app.flow import consents, holding
from app.flow.channels import find_disabled
from app.flow.explain import explain, read_moment
from app.flow.reading import accounts, campaigns, contacts, messages, overview, responses, timeline
from app.flow.reading import tasks as tasks_of
from app.flow.reading.paging import clean
from app.rules.book import Book
from app.web.console import blueprint, charts, known_book, words
from app.web.context import here, reading


@blueprint.get("", endpoint="overview")
@blueprint.get("/", endpoint="overview")
def overview_page() -> str:
    with reading() as conn:
        known = known_book(conn)
        customers = overview.customers(conn)
        days = overview.mail_by_day(conn, g.now)
        return render_template(
            "console/overview.html",
            customers=customers,
            stages=_stages(known, customers["stages"]),
            bands=[(band, customers["bands"].get(band, 0)) for band in ("green", "yellow", "red", None)],
            days=days,
            mail_chart=charts.columns(
                "Mail sent on each of the last 7 days",
                [f"{day['day']:%a}" for day in days],
                [day["sent"] for day in days],
                inner=[day["clicked"] for day in days],
            ),
            trouble=overview.trouble(conn),
            disabled=find_disabled(conn),
            attention=accounts.attention(conn, g.now),
            answers=responses.responses(conn, limit=5).items,
            campaigns=[one for one in campaigns.campaigns(conn, g.now) if one["mode"] != "archived"],
        )


@blueprint.get("/accounts", endpoint="accounts")
def accounts_page() -> str:
    wanted = {name: clean(request.args.get(name)) for name in ("search", "stage", "band", "touch", "owner")}
    sort = request.args.get("sort") or "health"
    with reading() as conn:
        known = known_book(conn)
        return render_template(
            "console/accounts.html",
            page=accounts.accounts(conn, **wanted, sort=sort, cursor=request.args.get("cursor")),
            total=accounts.count_accounts(conn, **wanted),
            wanted=wanted,
            sort=sort,
            filtered=any(wanted.values()),
            stages=known.lifecycle.stages,
            labels=_labels(known),
        )


@blueprint.get("/accounts/<key:key>", endpoint="account", merge_slashes=False)
def account_page(key: str) -> str:
    show = clean(request.args.get("show"))
    with reading() as conn:
        known = known_book(conn)
        account = accounts.account(conn, key, g.now)
        scores = accounts.health_history(conn, key, limit=200, since=g.now - timedelta(days=90)).items
        points = [(one["at"], one["score"]) for one in reversed(scores) if one["score"] is not None]
        return render_template(
            "console/account.html",
            account=account,
            labels=_labels(known),
            milestones=accounts.milestones_of(known, account, g.now),
            groups=_groups(account["health"]["contributions"]),
            share=charts.share,
            history=charts.line("Health score of the last 90 days", points, g.now) if points else None,
            scores=scores,
            enrollments=campaigns.enrollments(conn, account=key, limit=50).items,
            tasks=_tasks(conn, key),
            timeline=timeline.timeline(conn, key, g.now, kinds=show, cursor=request.args.get("cursor"), limit=40),
            show=show,
            kinds=timeline.KINDS,
            older=bool(request.args.get("cursor")),
        )


@blueprint.get("/accounts/<key:key>/explain", endpoint="account_why", merge_slashes=False)
def account_why_page(key: str) -> str:
    with reading() as conn:
        known = known_book(conn)
        account = accounts.account(conn, key, g.now)
        asked = clean(request.args.get("at"))
        explanation = explain(conn, known, None, now=g.now, account=key, at=read_moment(asked, known))
        return render_template("console/account_why.html", account=account, explanation=explanation, asked_at=asked)


@blueprint.get("/contacts/<key:key>", endpoint="contact", merge_slashes=False)
def contact_page(key: str) -> str:
    with reading() as conn:
        known = known_book(conn)
        asked = clean(request.args.get("at"))
        return render_template(
            "console/contact.html",
            contact=contacts.contact(conn, key, g.now),
            messages=messages.messages(conn, contact=key, cursor=request.args.get("cursor"), limit=30),
            answers=responses.responses(conn, contact=key, limit=10).items,
            explanation=explain(conn, known, key, now=g.now, at=read_moment(asked, known)),
            consents=consents.read(conn, consents.people_of(conn, contacts.find_contact(conn, key).id))[::-1],
            asked_at=asked,
            labels=_labels(known),
        )


@blueprint.post("/holds")
def hold() -> Response:
    """Puts an account or contact on hold by hand, for some days or until released."""
    kind, key = request.form.get("kind", ""), request.form.get("key", "")
    days = request.form.get("days", "")
    if days not in ("", "7", "30", "90"):
        raise InputError("must be 7, 30, 90 or nothing", "days")
    until = g.now + timedelta(days=int(days)) if days else None
    reason = clean(request.form.get("reason")) or "by hand"
    with here().engine.begin() as conn:
        if kind == "account":
            holding.hold(conn, reason, g.now, account=key, until=until)
        else:
            holding.hold(conn, reason, g.now, contact=key, until=until)
    return _back(kind, key)


@blueprint.post("/holds/<bigint:hold_id>/release")
def release(hold_id: int) -> Response:
    with here().engine.begin() as conn:
        holding.release(conn, hold_id, g.now)
    return _back(request.form.get("kind", ""), request.form.get("key", ""))


def _tasks(conn: Connection, key: str) -> list[dict[str, Any]]:
    """The account's open tasks, then its last closed ones."""
    found = tasks_of.tasks(conn, g.now, account=key, limit=20).items
    closed = [one for one in tasks_of.tasks(conn, g.now, account=key, state="all", limit=20).items if one["state"] != "open"]
    return [*found, *closed[:5]]


def _back(kind: str, key: str) -> Response:
    page = "console.account" if kind == "account" else "console.contact"
    return redirect(url_for(page, key=key), 303)


def _labels(known: Book) -> dict[str, str]:
    """What people call stages, milestones and topics."""
    lifecycle = known.lifecycle
    named = {stage.name: stage.label for stage in lifecycle.stages} | {name: spec.label for name, spec in lifecycle.milestones.items()}
    return {name: text or words.words(name) for name, text in named.items()} | {
        name: topic.name for name, topic in lifecycle.topics.items()
    }


def _stages(known: Book, counts: dict[str | None, int]) -> list[tuple[str | None, str, int]]:
    listed = [(stage.name, stage.label or words.words(stage.name), counts.get(stage.name, 0)) for stage in known.lifecycle.stages]
    names = {name for name, *_ in listed}
    return listed + [(name, words.words(name) if name else "No stage yet", n) for name, n in counts.items() if name not in names]


def _groups(contributions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The contributions by group, each with its sum and the most it could have been."""
    groups: dict[str, dict[str, Any]] = {}
    for one in contributions:
        group = groups.setdefault(one["group"], {"name": words.words(one["group"]), "measures": [], "sum": 0.0, "most": 0.0})
        group["measures"].append(one)
        group["sum"] += one["contribution"]
        group["most"] += 100 * one["weight"]
    for group in groups.values():
        group["measures"].sort(key=lambda one: one["contribution"] - 100 * one["weight"])
    return list(groups.values())
