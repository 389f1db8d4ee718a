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
    Column("mode_at", Time),  # since when; None: since it was published
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

campaign_change = Table(
    "campaign_change",
    metadata,
    # What was in force when: a row for every publication, rollback and change of a mode. Append-only; the latest is what `campaign` says.
    serial(),
    Column("campaign_id", BigInteger, ForeignKey("campaign.id"), nullable=False),
    Column("mode", Text, nullable=False),
    Column("version_id", BigInteger, ForeignKey("campaign_version.id"), nullable=False),
    Column("at", Time, nullable=False),
    Column("by", Text, nullable=False),  # publish, command, console, key NAME, or migration: as far as it was known
    Index("ix_campaign_change", "campaign_id", "at"),
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

effect = Table(
    "effect",
    metadata,
    # An alert or a webhook: a row before it is a request. The id is a hash of enrollment, step, occurrence and contact (invariant 3).
    Column("id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),  # alert | webhook
    Column("enrollment_id", Uuid, ForeignKey("enrollment.id", ondelete="CASCADE"), nullable=False),
    Column("campaign_id", BigInteger, ForeignKey("campaign.id"), nullable=False),
    Column("version_id", BigInteger, ForeignKey("campaign_version.id"), nullable=False),
    Column("step_id", Text, nullable=False),
    Column("occurrence", Integer, nullable=False),
    Column("account_id", BigInteger, ForeignKey("account.id", ondelete="CASCADE"), nullable=False),
    Column("contact_id", BigInteger, ForeignKey("contact.id", ondelete="CASCADE")),
    Column("payload", Json, nullable=False),  # to whom, and what, merge tags filled in
    Column("created_at", Time, nullable=False),
    Column("due_at", Time, nullable=False),
    Column("resumed_at", Time),  # when a pause ended that had held it up; it is given up a day after that
    # due → claimed → on_wire → done | unknown | failed, or due again; ghosted and shadow are settled when made. While the campaign is
    # paused it is frozen, and then due or skipped.
    Column("state", Text, nullable=False),
    Column("reason", Text),
    Column("claim", Uuid),
    Column("worker_id", Uuid),
    Column("claimed_at", Time),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("settled_at", Time),
    Column("reply", Text),
    Index("uq_effect", "enrollment_id", "step_id", "occurrence", "contact_id", unique=True, postgresql_nulls_not_distinct=True),
    Index("ix_effect_due", "due_at", postgresql_where=text("state = 'due'")),
    Index("ix_effect_claimed", "worker_id", postgresql_where=text("state in ('claimed', 'on_wire')")),
    Index("ix_effect_frozen", "campaign_id", postgresql_where=text("state = 'frozen'")),
    Index("ix_effect_account", "account_id", "created_at"),
)

task = Table(
    "task",
    metadata,
    # Something for a person to do. Made by a campaign's step (then the id is a hash, invariant 3) or by hand.
    Column("id", Uuid, primary_key=True),
    Column("enrollment_id", Uuid, ForeignKey("enrollment.id", ondelete="SET NULL")),
    Column("campaign_id", BigInteger, ForeignKey("campaign.id")),
    Column("version_id", BigInteger, ForeignKey("campaign_version.id")),
    Column("step_id", Text),
    Column("occurrence", Integer),
    Column("account_id", BigInteger, ForeignKey("account.id", ondelete="CASCADE"), nullable=False),
    Column("contact_id", BigInteger, ForeignKey("contact.id", ondelete="SET NULL")),
    Column("title", Text, nullable=False),
    Column("note", Text, nullable=False, server_default=text("''")),
    Column("assignee", Text),  # an address; None: nobody yet
    Column("assignee_name", Text),
    Column("created_at", Time, nullable=False),
    Column("due_at", Time),
    Column("state", Text, nullable=False),  # open | done | dismissed; ghosted, shadow, frozen and skipped are not anybody's to do
    Column("outcome", Text),
    Column("closed_at", Time),
    Index("ix_task_open", "due_at", postgresql_where=text("state = 'open'")),
    Index("ix_task_frozen", "campaign_id", postgresql_where=text("state = 'frozen'")),
    Index("ix_task_account", "account_id", "created_at"),
    Index("ix_task_assignee", "assignee", "due_at", postgresql_where=text("state = 'open'")),
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
