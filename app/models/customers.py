"""Customers: accounts, their contacts and memberships, where they stand (stage, milestones, usage, health)."""

from sqlalchemy import BigInteger, Column, Date, Double, ForeignKey, Index, Integer, SmallInteger, Table, Text, text

from app.models.base import Json, Texts, Time, metadata, serial

account = Table(
    "account",
    metadata,
    serial(),
    Column("external_id", Text, nullable=False, unique=True),
    Column("partition", SmallInteger, nullable=False),
    Column("name", Text),
    Column("touch", Text),  # high | mid | smb
    Column("timezone", Text),
    Column("owner_name", Text),
    Column("owner_email", Text),
    Column("owner_timezone", Text),
    Column("seats", Integer),
    Column("customer_since", Time),  # the trait `created_at`
    Column("renewal_date", Time),
    Column("revenue", Double),
    Column("traits", Json, nullable=False, server_default=text("'{}'::jsonb")),
    # {trait: [occurred_at, message_id]}: an older fact never overwrites a newer one.
    Column("clocks", Json, nullable=False, server_default=text("'{}'::jsonb")),
    Column("stage", Text),
    Column("stage_entered_at", Time),
    Column("health_score", Double),
    Column("health_band", Text),
    Column("health_at", Time),
    Column("created_at", Time, nullable=False),
    Column("last_event_at", Time),  # as of the last assessment; `unassessed` may know of a later one
    # Candidates: triggers that matched but read a value that was never set, kept open for 30 minutes.
    Column("candidates", Json, nullable=False, server_default=text("'[]'::jsonb")),
    # What watches have told already, by the watch's key: {"date:account.renewal_date:-7776000": "2026-06-01T00:00:00+00:00", …}.
    Column("watched", Json, nullable=False, server_default=text("'{}'::jsonb")),
    # The account's own next timer: a milestone falls overdue, a candidate expires, a date is reached, a daily re-evaluation.
    Column("due_at", Time),
    Column("assess_at", Time),  # when its health is to be assessed next, if nothing happens before
    Column("pruned_at", Time),  # events from before this moment are not all stored any more
    Column("erased_at", Time),  # nothing but numbers is left of it
    Index("ix_account_due", "partition", "due_at", postgresql_where=text("due_at is not null")),
    Index("ix_account_assess", "assess_at", postgresql_where=text("assess_at is not null")),
    postgresql_with={"fillfactor": 90},  # room for the next state of a row beside it, so that most changes touch no index
)

unassessed = Table(
    "unassessed",
    metadata,
    # Accounts that something happened to, until their health is assessed. Apart from `account`, whose rows are wide and have indexes:
    # every event of an account that was quiet writes here. No foreign key, which would look every one of them up; whoever assesses
    # removes rows of accounts that are gone.
    Column("account_id", BigInteger, primary_key=True, autoincrement=False),
    Column("last_event_at", Time, nullable=False),  # received, to the hour
    Column("assess_at", Time, nullable=False),
    Index("ix_unassessed_assess", "assess_at"),
)

stage_history = Table(
    "stage_history",
    metadata,
    serial(),
    Column("account_id", BigInteger, ForeignKey("account.id", ondelete="CASCADE"), nullable=False),
    Column("stage", Text, nullable=False),
    Column("entered_at", Time, nullable=False),
    Column("left_at", Time),
    Column("reason", Text),
    Index("uq_stage_history_current", "account_id", unique=True, postgresql_where=text("left_at is null")),
    Index("ix_stage_history_account", "account_id", "entered_at"),
)

milestone = Table(
    "milestone",
    metadata,
    # Reached once, or overdue (and perhaps reached later).
    Column("account_id", BigInteger, ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("reached_at", Time),
    Column("overdue_at", Time),
)

usage_day = Table(
    "usage_day",
    metadata,
    Column("account_id", BigInteger, ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
    Column("metric", Text, primary_key=True),
    Column("day", Date, primary_key=True),  # UTC
    Column("count", Integer, nullable=False),
    Column("last_at", Time, nullable=False),
)

usage_person = Table(
    "usage_person",
    metadata,
    # Who it was, on which day: for metrics that count contacts.
    Column("account_id", BigInteger, ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
    Column("metric", Text, primary_key=True),
    Column("day", Date, primary_key=True),  # UTC
    Column("contact_key", Text, primary_key=True),
)

contact = Table(
    "contact",
    metadata,
    serial(),
    Column("external_id", Text, nullable=False, unique=True),
    Column("address", Text),  # as given
    Column("person", Text),  # the normalised address: contacts that share it are one person
    Column("first_name", Text),
    Column("last_name", Text),
    Column("timezone", Text),
    Column("locale", Text),
    Column("traits", Json, nullable=False, server_default=text("'{}'::jsonb")),
    Column("clocks", Json, nullable=False, server_default=text("'{}'::jsonb")),
    Column("created_at", Time, nullable=False),
    Column("last_seen_at", Time),  # kept to the day
    Column("last_active_at", Time),  # when mail was last opened, kept to the day: all that `list_hygiene` keeps (P-07)
    Column("erased_at", Time),  # nothing but numbers is left of it
    Index("ix_contact_person", "person", postgresql_where=text("person is not null")),
    postgresql_with={"fillfactor": 90},
)

contact_alias = Table(
    "contact_alias",
    metadata,
    Column("previous_key", Text, primary_key=True),
    Column("contact_key", Text, nullable=False),
    Column("at", Time, nullable=False),
)

membership = Table(
    "membership",
    metadata,
    Column("account_id", BigInteger, ForeignKey("account.id", ondelete="CASCADE"), primary_key=True),
    Column("contact_id", BigInteger, ForeignKey("contact.id", ondelete="CASCADE"), primary_key=True),
    Column("roles", Texts, nullable=False, server_default=text("'{}'")),
    Column("roles_clock", Json),  # [occurred_at, message_id]
    Column("joined_at", Time, nullable=False),
    Index("ix_membership_contact", "contact_id"),
)

hold = Table(
    "hold",
    metadata,
    # A reason to send nothing but transactional mail to an account, a contact or a person until a date or a release. A person's is the
    # pause that they asked for themselves.
    serial(),
    Column("account_id", BigInteger, ForeignKey("account.id", ondelete="CASCADE")),
    Column("contact_id", BigInteger, ForeignKey("contact.id", ondelete="CASCADE")),
    Column("person", Text),
    Column("reason", Text, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("until", Time),
    Column("released_at", Time),
    Index("ix_hold_account", "account_id", postgresql_where=text("released_at is null")),
    Index("ix_hold_contact", "contact_id", postgresql_where=text("released_at is null")),
    Index("ix_hold_person", "person", postgresql_where=text("released_at is null")),
)

health_score = Table(
    "health_score",
    metadata,
    # Append-only: each row carries its contributions (they sum to the score) and what was known.
    serial(),
    Column("account_id", BigInteger, ForeignKey("account.id", ondelete="CASCADE"), nullable=False),
    Column("at", Time, nullable=False),
    Column("score", Double),  # None: not enough is known (coverage under the minimum)
    Column("band", Text),
    Column("coverage", Double, nullable=False),
    Column("model", Text, nullable=False),  # stage and content hash of the model
    Column("contributions", Json, nullable=False),
    Column("known", Json, nullable=False),
    Column("cause", Text),
    Index("ix_health_score_account", "account_id", "at"),
)
