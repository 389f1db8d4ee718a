"""A database full of customers with a past, for looking at pages and for measuring queries. Deterministic: one seed, one database."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import Connection, text

from app import models
from app.config import CODE
from app.db import insert_rows
from app.flow.publish import publish
from app.rules.facts import hash_id, partition_of

WORDS = [
    "Acorn",
    "Birch",
    "Cedar",
    "Dune",
    "Ember",
    "Fjord",
    "Grove",
    "Harbor",
    "Iris",
    "Juniper",
    "Kelp",
    "Larch",
    "Meadow",
    "North",
    "Oak",
    "Pine",
    "Quarry",
    "River",
    "Stone",
    "Tide",
]
KINDS = [
    "Analytics",
    "Bakery",
    "Clinics",
    "Design",
    "Energy",
    "Foods",
    "Group",
    "Health",
    "Insurance",
    "Labs",
    "Logistics",
    "Media",
    "Partners",
    "Robotics",
    "Systems",
]
NAMES = [
    "Ada",
    "Björn",
    "Chloé",
    "Dmitri",
    "Elif",
    "Farid",
    "Grace",
    "Hana",
    "Ines",
    "Jürgen",
    "Kofi",
    "Lena",
    "Mateo",
    "Noor",
    "Olga",
    "Priya",
    "Quinn",
    "Rosa",
    "Sven",
    "Tomás",
    "محمد",
    "美咲",
]
SURNAMES = [
    "Ahmed",
    "Berg",
    "Costa",
    "Dubois",
    "Eriksen",
    "Fischer",
    "García",
    "Haddad",
    "Ito",
    "Jansen",
    "Kowalski",
    "Li",
    "Müller",
    "Nguyen",
    "O'Brien",
    "Petrov",
    "Rossi",
    "Sato",
]
COMMENTS = [
    "Setting up was quick, and the first report convinced my boss.",
    "Good, but <b>exports</b> are slow & the CSV has odd headers.",
    "We gave up connecting the data warehouse after two days.\nNobody answered our ticket.",
    "يعمل بشكل رائع 🎉",
    None,
    None,
]
MEASURES = [
    ("engagement", "sign_ins", "Sign-ins in 30 days", "usage.logins.last_30d", 0.2, 20),
    ("engagement", "reports", "Reports viewed in 30 days", "usage.reports.last_30d", 0.2, 30),
    ("product", "milestones", "Milestones reached", "milestones.share", 0.3, 1),
    ("relationship", "nps", "Latest recommendation score", "survey.nps", 0.3, 10),
]


def seed(conn: Connection, now: datetime, accounts: int = 60) -> list[str]:
    """Publishes the shipped campaigns and writes `accounts` accounts with contacts, mail, answers, scores and decisions.

    Returns the accounts' keys.
    """
    publish(conn, CODE / "campaigns", now - timedelta(days=60))
    rng = random.Random(7)
    keys = [f"acct-{number:05d}" if number % 17 else f"region/eu #{number} ü" for number in range(accounts)]
    ids = _accounts(conn, rng, keys, now)
    contacts = _contacts(conn, rng, keys, ids, now)
    _health(conn, rng, ids, now)
    _mail(conn, rng, keys, ids, contacts, now)
    _events(conn, rng, keys, contacts, now)
    return keys


def _accounts(conn: Connection, rng: random.Random, keys: Sequence[str], now: datetime) -> list[int]:
    rows = []
    for number, key in enumerate(keys):
        created = now - timedelta(days=rng.uniform(1, 58))
        stage = rng.choices(["onboarding", "adoption", "renewal"], [5, 4, 1])[0]
        rows.append(
            {
                "external_id": key,
                "partition": partition_of(key, 64),
                "name": f"{rng.choice(WORDS)} {rng.choice(KINDS)}" + (" 株式会社" if number % 23 == 5 else ""),
                "touch": rng.choice(["high", "mid", "smb", "smb"]),
                "timezone": rng.choice(["Europe/Berlin", "America/New_York", None]),
                "owner_name": rng.choice(["Mara Voss", "Ben Okafor", None]),
                "owner_email": "csm@example.com",
                "seats": rng.choice([5, 20, 80, None]),
                "customer_since": created,
                "renewal_date": created + timedelta(days=365),
                "revenue": rng.choice([1200.0, 9600.0, None]),
                "traits": {"plan": rng.choice(["team", "business", "free"]), "industry": rng.choice(["retail", "health"])},
                "stage": stage,
                "stage_entered_at": created if stage == "onboarding" else now - timedelta(days=rng.uniform(0, 5)),
                "created_at": created,
                "last_event_at": now - timedelta(hours=rng.expovariate(1 / 20)),
            }
        )
    ids = [row.id for row in insert_rows(conn, models.account, rows, returning=("id",))]
    history, milestones = [], []
    for account_id, row in zip(ids, rows, strict=True):
        left = None if row["stage"] == "onboarding" else row["stage_entered_at"]
        history.append(
            {"account_id": account_id, "stage": "onboarding", "entered_at": row["created_at"], "left_at": left, "reason": "first"}
        )
        if left:
            entered = {"account_id": account_id, "stage": row["stage"], "entered_at": left, "left_at": None, "reason": "exit_when"}
            history.append(entered)
        setup = row["created_at"] + timedelta(days=rng.uniform(0.1, 10))
        due = row["created_at"] + timedelta(days=7)
        reached, overdue = setup if setup < now else None, due if due < now and setup > due else None
        if reached or overdue:
            milestones.append({"account_id": account_id, "name": "setup_completed", "reached_at": reached, "overdue_at": overdue})
        if left:
            milestones.append({"account_id": account_id, "name": "report_shared", "reached_at": left, "overdue_at": None})
            milestones.append({"account_id": account_id, "name": "first_value", "reached_at": left, "overdue_at": None})
    insert_rows(conn, models.stage_history, history)
    insert_rows(conn, models.milestone, milestones)
    return ids


def _contacts(
    conn: Connection, rng: random.Random, keys: Sequence[str], ids: Sequence[int], now: datetime
) -> dict[int, list[tuple[int, str, str | None, str]]]:
    rows, owners = [], []
    for number, account_id in enumerate(ids):
        for index in range(rng.choice([1, 2, 3, 3])):
            first, last = rng.choice(NAMES), rng.choice(SURNAMES)
            address = f"user{number}.{index}@customer{number}.example" if rng.random() > 0.06 else None
            key = f"u-{number}-{index}"
            created = now - timedelta(days=rng.uniform(1, 58))
            rows.append(
                {
                    "external_id": key,
                    "address": address,
                    "person": address,
                    "first_name": first,
                    "last_name": last,
                    "traits": {"title": rng.choice(["COO", "Analyst", "Head of data"])},
                    "created_at": created,
                    "last_seen_at": now - timedelta(days=rng.expovariate(1 / 6)),
                }
            )
            owners.append((account_id, key, address, first, ["admin", "champion", "user"][index]))
    found = insert_rows(conn, models.contact, rows, returning=("id",))
    contacts: dict[int, list[tuple[int, str, str | None, str]]] = {}
    memberships, suppressions = [], []
    for row, (account_id, key, address, first, role), made in zip(found, owners, rows, strict=True):
        contacts.setdefault(account_id, []).append((row.id, key, address, first))
        memberships.append({"account_id": account_id, "contact_id": row.id, "roles": [role], "joined_at": made["created_at"]})
        if address and rng.random() < 0.05:
            scope = rng.choice(["all", "product", "survey"])
            closed = {"person": address, "scope": scope, "reason": "unsubscribed", "created_at": now - timedelta(days=3)}
            suppressions.append(closed)
    insert_rows(conn, models.membership, memberships)
    insert_rows(conn, models.suppression, suppressions)
    insert_rows(
        conn, models.hold, [{"account_id": one, "reason": "Open ticket 4711", "created_at": now - timedelta(days=1)} for one in ids[:1]]
    )
    return contacts


def _health(conn: Connection, rng: random.Random, ids: Sequence[int], now: datetime) -> None:
    rows, current = [], []
    for account_id in ids:
        level, slope = rng.uniform(35, 95), rng.choice([-1.2, -0.2, 0, 0.3, 0.6])
        if rng.random() < 0.07:
            known = {"account_id": account_id, "at": now, "score": None, "band": None, "coverage": 0.3, "contributions": []}
            rows.append({**known, "model": "onboarding:0", "known": {}, "cause": "daily"})
            continue
        for week in range(8, -1, -1):
            wanted = min(99.0, max(4.0, level + slope * (8 - week) * 4 + rng.uniform(-3, 3)))
            contributions, score = _contributions(rng, wanted)
            band = "green" if score >= 80 else "yellow" if score >= 60 else "red"
            rows.append(
                {
                    "account_id": account_id,
                    "at": now - timedelta(days=7 * week, hours=2),
                    "score": score,
                    "band": band,
                    "coverage": 0.9,
                    "contributions": contributions,
                    "model": "onboarding:0",
                    "known": {},
                    "cause": "daily",
                }
            )
        current.append({"id": account_id, "health_score": score, "health_band": band, "health_at": now - timedelta(hours=2)})
    insert_rows(conn, models.health_score, rows)
    from app.db import update_rows

    update_rows(conn, models.account, current)


def _contributions(rng: random.Random, wanted: float) -> tuple[list[dict], float]:
    made = []
    for group, measure, label, metric, weight, best in MEASURES:
        points = min(100.0, max(0.0, wanted + rng.uniform(-25, 25)))
        value = round(best * points / 100, 2)
        part = {"group": group, "measure": measure, "label": label, "metric": metric, "value": value}
        made.append({**part, "points": points, "weight": weight, "contribution": points * weight})
    return made, sum(one["contribution"] for one in made)


def _mail(conn: Connection, rng: random.Random, keys: Sequence[str], ids: Sequence[int], contacts: dict, now: datetime) -> None:
    campaigns = {row.key: row for row in conn.execute(text("select id, key, version_id from campaign"))}
    first, survey = campaigns["onboarding/first-value"], campaigns["onboarding/onboarding-survey"]
    names = dict(conn.execute(text("select id, name from account")).all())
    enrollments, messages, decisions, hits, responses, deliveries = [], [], [], [], [], []
    for key, account_id in zip(keys, ids, strict=True):
        if rng.random() < 0.2:
            continue
        entered = now - timedelta(days=rng.uniform(0.2, 25))
        enrollment = hash_id("seed", key)
        state = rng.choices(["active", "finished", "exited"], [5, 3, 2])[0]
        row = _enrollment(enrollment, first, account_id, key, entered, state, rng, now)
        enrollments.append(row)
        decisions.append(_decision(first, account_id, None, enrollment, None, entered, "trigger", "yes", "enrolled", None))
        contact_id, contact_key, address, name = contacts[account_id][0]
        if not address:
            decisions.append(
                _decision(first, account_id, contact_id, enrollment, None, entered, "recipient", "no", "no_address", "welcome")
            )
            continue
        steps = ["welcome", "share"] if row["step_id"] != "welcome" else ["welcome"]
        for index, step in enumerate(steps):
            at = entered + timedelta(days=5 * index)
            if at > now:
                continue
            message, outcome = _message(first, enrollment, step, account_id, key, names[account_id], contact_id, contact_key, address, name)
            outcome = rng.choices(["sent", "skipped", "unknown", "due"], [90, 5, 1, 4])[0]
            message |= {"created_at": at, "due_at": at, "expires_at": at + timedelta(days=3), "state": outcome, "reason": None}
            message |= {"settled_at": None if outcome == "due" else at + timedelta(seconds=3)}
            if outcome == "skipped":
                message["reason"] = rng.choice(["topic_opted_out", "missing_value", "survey_quarantine", "expired"])
                gone = _decision(first, account_id, contact_id, enrollment, message["id"], at, "suppression", "no", message["reason"], step)
                decisions.append(gone)
            elif outcome == "unknown":
                message["reason"] = "no_answer"
            elif outcome == "due":
                message["due_at"], message["reason"] = now + timedelta(hours=5), "window_closed"
            messages.append(message)
            decisions.append(_decision(first, account_id, contact_id, enrollment, message["id"], at, "recipient", "yes", "queued", step))
            if outcome == "sent":
                sent = {"message_id": message["id"], "kind": "sent", "at": message["settled_at"], "detail": {"code": 250}, "key": "1"}
                deliveries.append(sent)
                if rng.random() < 0.4:
                    hits.append(_hit(message["id"], message["settled_at"] + timedelta(hours=rng.uniform(0.1, 30)), rng))
        if rng.random() < 0.35:
            asked = min(now - timedelta(hours=1), entered + timedelta(days=9))
            survey_enrollment = uuid4()
            enrollments.append(_enrollment(survey_enrollment, survey, account_id, key, asked, "finished", rng, now))
            message, _ = _message(
                survey, survey_enrollment, "ask", account_id, key, names[account_id], contact_id, contact_key, address, name
            )
            message |= {"created_at": asked, "due_at": asked, "expires_at": asked + timedelta(days=3), "state": "sent", "reason": None}
            message |= {"settled_at": asked, "kind": "survey", "subject": "One question about your first weeks"}
            messages.append(message)
            answer = {"message_id": message["id"], "account_id": account_id, "contact_id": contact_id, "campaign_id": survey.id}
            answer |= {"survey": "nps", "question": "How likely are you to recommend us to a colleague?"}
            score = rng.choices(range(11), [1, 1, 1, 1, 1, 2, 3, 5, 7, 8, 9])[0]
            answer |= {
                "score": score,
                "comment": rng.choice(COMMENTS),
                "answered_at": min(now, asked + timedelta(hours=rng.uniform(1, 90))),
            }
            responses.append(answer)
    insert_rows(conn, models.enrollment, enrollments)
    insert_rows(conn, models.task, [_task(first, row, now, number) for number, row in enumerate(enrollments[::5])])
    insert_rows(conn, models.message, messages)
    insert_rows(conn, models.decision, decisions)
    insert_rows(conn, models.delivery_event, deliveries)
    insert_rows(conn, models.hit, hits)
    insert_rows(conn, models.response, responses)


def _enrollment(ident: UUID, campaign, account_id: int, key: str, entered: datetime, state: str, rng: random.Random, now: datetime) -> dict:
    active = state == "active"
    return {
        "id": ident,
        "campaign_id": campaign.id,
        "version_id": campaign.version_id,
        "account_id": account_id,
        "partition": partition_of(key, 64),
        "state": state,
        "step_id": rng.choice(["welcome", "setup", "breathe", "shared"]) if active else None,
        "entry": {"name": "workspace_created", "properties": {}, "message_id": f"seed:{key}"},
        "entered_at": entered,
        "due_at": now + timedelta(hours=rng.uniform(1, 90)) if active else None,
        "goal_at": entered + timedelta(days=2) if state == "exited" else None,
        "ended_at": None if active else min(now, entered + timedelta(days=3)),
        "end_reason": None if active else "goal_met" if state == "exited" else "finished",
    }


def _task(campaign, enrollment: dict, now: datetime, number: int) -> dict:
    """Open and due, overdue, done, and one of a shadow, in turn."""
    state = ("open", "open", "done", "shadow")[number % 4]
    return {
        "id": hash_id("task", enrollment["id"]),
        "enrollment_id": enrollment["id"],
        "campaign_id": campaign.id,
        "version_id": campaign.version_id,
        "step_id": "call",
        "occurrence": 1,
        "account_id": enrollment["account_id"],
        "title": f"Call them, number {number}",
        "note": "They have not started.\nAsk why.",
        "assignee": None if number % 3 == 0 else "olu@example.com",
        "assignee_name": None if number % 3 == 0 else "Olu Owner",
        "created_at": now - timedelta(days=3),
        "due_at": now + timedelta(days=2 if number % 4 == 0 else -1),
        "state": state,
        "outcome": "They are on it" if state == "done" else None,
        "closed_at": now - timedelta(hours=5) if state == "done" else None,
    }


def _message(campaign, enrollment: UUID, step: str, account_id: int, key: str, company, contact_id, contact_key, address, name):
    values = {"account": {"id": key, "name": company}, "contact": {"id": contact_key, "first_name": name, "email": address}}
    message = {
        "id": hash_id("seed", enrollment, step),
        "enrollment_id": enrollment,
        "campaign_id": campaign.id,
        "version_id": campaign.version_id,
        "step_id": step,
        "occurrence": 1,
        "account_id": account_id,
        "contact_id": contact_id,
        "partition": partition_of(key, 64),
        "kind": "email",
        "topic": "product",
        "priority": 50,
        "attempts": 1,
        "person": address,
        "subject": f"{name}, your first report in ten minutes",
        "message_header": f"<{hash_id('header', enrollment, step).hex}@mail.example.com>",
        "values": values,
        "links": ["https://app.example.com/start"],
    }
    return message, None


def _decision(campaign, account_id, contact_id, enrollment, message, at, gate, verdict, reason, step) -> dict:
    return {
        "at": at,
        "account_id": account_id,
        "contact_id": contact_id,
        "campaign_id": campaign.id,
        "version_id": campaign.version_id,
        "enrollment_id": enrollment,
        "message_id": message,
        "step_id": step,
        "gate": gate,
        "verdict": verdict,
        "reason": reason,
        "evidence": {},
    }


def _hit(message: UUID, at: datetime, rng: random.Random) -> dict:
    human = rng.random() < 0.8
    return {
        "message_id": message,
        "kind": "click",
        "link": 0,
        "at": at,
        "network": "192.0.2.0/24",
        "user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
        "signals": {} if human else {"burst": 80, "no_image": 10},
        "score": 0 if human else 90,
        "verdict": "human" if human else "scanner",
        "settled_at": at,
    }


def _events(conn: Connection, rng: random.Random, keys: Sequence[str], contacts: dict, now: datetime) -> None:
    people = list(contacts.values())
    rows = []
    for number, key in enumerate(keys):
        for index in range(25 if len(keys) <= 1000 else 5):
            at = now - timedelta(hours=rng.expovariate(1 / 120))
            name = rng.choice(["logged_in", "report_viewed", "feature_used", "logged_in", "workspace_created"])
            rows.append(
                {
                    "source_id": 1,
                    "message_id": f"seed-{number}-{index}",
                    "kind": "track",
                    "name": name,
                    "account_key": key,
                    "contact_key": people[number][0][1],
                    "properties": {"feature": "reports", "rows": rng.randint(1, 900)} if name == "feature_used" else {},
                    "occurred_at": at,
                    "received_at": at,
                }
            )
    insert_rows(conn, models.event, rows)
