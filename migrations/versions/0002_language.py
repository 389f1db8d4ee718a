"""The whole campaign language: watches, caps, alerts, tasks, webhooks, people behind usage"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

JSON = postgresql.JSONB(none_as_null=True)
TIME = sa.DateTime(timezone=True)
UUID = postgresql.UUID(as_uuid=True)


def upgrade() -> None:
    # New columns are empty or have a constant default: neither rewrites a table.
    op.add_column("account", sa.Column("owner_timezone", sa.Text()))
    op.add_column("account", sa.Column("watched", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False))
    op.add_column("campaign", sa.Column("mode_at", TIME))
    op.create_table(
        "reservation",
        sa.Column("message_id", UUID, nullable=False),
        sa.Column("person", sa.Text(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("topic", sa.Text(), nullable=False),
        sa.Column("campaign_id", sa.BigInteger(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("shadow", sa.Boolean(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.ForeignKeyConstraint(["message_id"], ["message.id"], name=op.f("fk_reservation_message_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("message_id", name=op.f("pk_reservation")),
    )
    op.create_index("ix_reservation_person", "reservation", ["person", "at"])
    op.create_index("ix_reservation_account", "reservation", ["account_id", "at"])
    op.create_table(
        "usage_person",
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("metric", sa.Text(), nullable=False),
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("contact_key", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_usage_person_account_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("account_id", "metric", "day", "contact_key", name=op.f("pk_usage_person")),
    )
    op.create_table(
        "effect",
        sa.Column("id", UUID, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("enrollment_id", UUID, nullable=False),
        sa.Column("campaign_id", sa.BigInteger(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("step_id", sa.Text(), nullable=False),
        sa.Column("occurrence", sa.Integer(), nullable=False),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("contact_id", sa.BigInteger()),
        sa.Column("payload", JSON, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("due_at", TIME, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("claim", UUID),
        sa.Column("worker_id", UUID),
        sa.Column("claimed_at", TIME),
        sa.Column("attempts", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("settled_at", TIME),
        sa.Column("reply", sa.Text()),
        sa.ForeignKeyConstraint(["enrollment_id"], ["enrollment.id"], name=op.f("fk_effect_enrollment_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_effect_campaign_id")),
        sa.ForeignKeyConstraint(["version_id"], ["campaign_version.id"], name=op.f("fk_effect_version_id")),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_effect_account_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["contact_id"], ["contact.id"], name=op.f("fk_effect_contact_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_effect")),
    )
    columns = ["enrollment_id", "step_id", "occurrence", "contact_id"]
    op.create_index("uq_effect", "effect", columns, unique=True, postgresql_nulls_not_distinct=True)
    op.create_index("ix_effect_due", "effect", ["due_at"], postgresql_where=sa.text("state = 'due'"))
    op.create_index("ix_effect_claimed", "effect", ["worker_id"], postgresql_where=sa.text("state = 'claimed'"))
    op.create_index("ix_effect_account", "effect", ["account_id", "created_at"])
    op.create_table(
        "task",
        sa.Column("id", UUID, nullable=False),
        sa.Column("enrollment_id", UUID),
        sa.Column("campaign_id", sa.BigInteger()),
        sa.Column("version_id", sa.BigInteger()),
        sa.Column("step_id", sa.Text()),
        sa.Column("occurrence", sa.Integer()),
        sa.Column("account_id", sa.BigInteger(), nullable=False),
        sa.Column("contact_id", sa.BigInteger()),
        sa.Column("title", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), server_default=sa.text("''"), nullable=False),
        sa.Column("assignee", sa.Text()),
        sa.Column("assignee_name", sa.Text()),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("due_at", TIME),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("outcome", sa.Text()),
        sa.Column("closed_at", TIME),
        sa.ForeignKeyConstraint(["enrollment_id"], ["enrollment.id"], name=op.f("fk_task_enrollment_id"), ondelete="SET NULL"),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_task_campaign_id")),
        sa.ForeignKeyConstraint(["version_id"], ["campaign_version.id"], name=op.f("fk_task_version_id")),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_task_account_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["contact_id"], ["contact.id"], name=op.f("fk_task_contact_id"), ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task")),
    )
    op.create_index("ix_task_open", "task", ["due_at"], postgresql_where=sa.text("state = 'open'"))
    op.create_index("ix_task_account", "task", ["account_id", "created_at"])
    op.create_index("ix_task_assignee", "task", ["assignee", "due_at"], postgresql_where=sa.text("state = 'open'"))


def downgrade() -> None:
    op.drop_table("task")
    op.drop_table("effect")
    op.drop_table("usage_person")
    op.drop_table("reservation")
    op.drop_column("campaign", "mode_at")
    op.drop_column("account", "watched")
    op.drop_column("account", "owner_timezone")
