"""Campaigns: published versions (immutable), who is going through them, and the ledger of what was decided."""

from sqlalchemy import BigInteger, Boolean, Column, ForeignKey, Index, Integer, SmallInteger, Table, Text, UniqueConstraint, text

from app.models.base import Json, Texts, Time, Uuid, metadata, serial

lifecycle_version = Table(
    "lifecycle_version",
    metadata,
    # What `campaigns/lifecycle.yaml` said, by content hash. The newest is the one in force.
    serial(),
    Column("hash", Text, nullable=False, unique=True),
    Column("definition", Json, nullable=False),
    Column("published_at", Time, nullable=False),
)

campaign = Table(
    "campaign",
    metadata,
    serial(),
    Column("key", Text, nullable=False, unique=True),  # the folder, such as onboarding/first-value
    Column("name", Text, nullable=False),
    Column("mode", Text, nullable=False),  # draft | shadow | live | paused | archived
    Column("version_id", BigInteger),  # the one that new enrollments enter
)

campaign_version = Table(
    "campaign_version",
    metadata,
    serial(),
    Column("campaign_id", BigInteger, ForeignKey("campaign.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("hash", Text, nullable=False),
    Column("definition", Json, nullable=False),
    Column("published_at", Time, nullable=False),
    UniqueConstraint("campaign_id", "number"),
    UniqueConstraint("campaign_id", "hash"),
)

template = Table(
    "template",
    metadata,
    # A compiled mail of a version. `html`, `text` and `subject` are Jinja sources; nothing of a contact is in them.
    Column("version_id", BigInteger, ForeignKey("campaign_version.id"), primary_key=True),
    Column("step_id", Text, primary_key=True),
    Column("locale", Text, primary_key=True),  # "" is the default language
    Column("path", Text, nullable=False),
    Column("source", Text, nullable=False),
    Column("subject", Text, nullable=False),
    Column("html", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("links", Json, nullable=False),  # [{"url": Jinja source, "label": …, "track": bool}], by index
    Column("reads", Texts, nullable=False),  # the paths it reads, such as contact.first_name
)

enrollment = Table(
    "enrollment",
    metadata,
    # One account, or one contact of it, going through one version. The id is a hash of what makes it unique.
    Column("id", Uuid, primary_key=True),
    Column("campaign_id", BigInteger, ForeignKey("campaign.id"), nullable=False),
    Column("version_id", BigInteger, ForeignKey("campaign_version.id"), nullable=False),
    Column("account_id", BigInteger, ForeignKey("account.id", ondelete="CASCADE"), nullable=False),
    Column("contact_id", BigInteger, ForeignKey("contact.id", ondelete="CASCADE")),
    Column("partition", SmallInteger, nullable=False),
    Column("shadow", Boolean, nullable=False, server_default=text("false")),
    Column("held_out", Boolean, nullable=False, server_default=text("false")),
    Column("state", Text, nullable=False),  # active | finished | exited
    Column("step_id", Text),  # where it is; None when it has ended
    Column("occurrence", Integer, nullable=False, server_default=text("1")),  # of the step (repeat)
    Column("position", Json, nullable=False, server_default=text("'{}'::jsonb")),  # what the step must remember
    Column("entry", Json, nullable=False),  # the event it entered by: name, properties, occurred_at, message_id
    Column("entered_at", Time, nullable=False),
    Column("due_at", Time),
    Column("goal_at", Time),
    Column("ended_at", Time),
    Column("end_reason", Text),
    Index(
        "uq_enrollment_active",
        "campaign_id",
        "account_id",
        "contact_id",
        "shadow",
        unique=True,
        postgresql_where=text("state = 'active'"),
        postgresql_nulls_not_distinct=True,
    ),
    Index("ix_enrollment_due", "partition", "due_at", postgresql_where=text("state = 'active' and due_at is not null")),
    Index("ix_enrollment_account", "account_id"),
    Index("ix_enrollment_of", "account_id", postgresql_where=text("state = 'active'")),
    Index("ix_enrollment_version", "version_id", "state", "step_id"),
)

decision = Table(
    "decision",
    metadata,
    # The ledger: what was decided for whom, when, by which rule, with the evidence. Append-only, pruned by age.
    serial(),
    Column("at", Time, nullable=False),
    Column("account_id", BigInteger),
    Column("contact_id", BigInteger),
    Column("campaign_id", BigInteger),
    Column("version_id", BigInteger),
    Column("enrollment_id", Uuid),
    Column("message_id", Uuid),
    Column("step_id", Text),
    Column("gate", Text, nullable=False),  # trigger, audience, hold, recipient, … see docs/glossary.md
    Column("verdict", Text, nullable=False),  # yes | no | wait
    Column("reason", Text, nullable=False),  # a code
    Column("evidence", Json, nullable=False, server_default=text("'{}'::jsonb")),
    Index("ix_decision_account", "account_id", "at"),
    Index("ix_decision_contact", "contact_id", "at", postgresql_where=text("contact_id is not null")),
    Index("ix_decision_at", "at", postgresql_using="brin"),
)
