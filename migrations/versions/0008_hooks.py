"""Hooks: addresses at which mail providers tell what became of our mail, and what they told"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

JSON = postgresql.JSONB(none_as_null=True)
TIME = sa.DateTime(timezone=True)
UUID = postgresql.UUID(as_uuid=True)


def upgrade() -> None:
    op.create_table(
        "hook",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("transport", sa.Text()),
        sa.Column("options", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("secrets", sa.Text(), nullable=False),
        sa.Column("confirm_until", TIME),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hook")),
    )
    op.create_table(
        "hook_call",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("hook_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("raw", sa.Text(), nullable=False),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("reports", sa.Integer()),
        sa.Column("matched", sa.Integer()),
        sa.Column("message_id", UUID),
        sa.Column("processed_at", TIME),
        sa.ForeignKeyConstraint(["hook_id"], ["hook.id"], name=op.f("fk_hook_call_hook_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["message_id"], ["message.id"], name=op.f("fk_hook_call_message_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_hook_call")),
        sa.UniqueConstraint("hook_id", "key", name=op.f("uq_hook_call_hook_id_key")),
    )
    op.create_index("ix_hook_call_waiting", "hook_call", ["id"], postgresql_where=sa.text("state = 'waiting'"))
    op.create_index("ix_hook_call_refused", "hook_call", ["hook_id", "id"], postgresql_where=sa.text("state = 'refused'"))
    op.create_index("ix_hook_call_message", "hook_call", ["message_id"], postgresql_where=sa.text("message_id is not null"))
    op.create_index("ix_hook_call_received", "hook_call", ["received_at"])


def downgrade() -> None:
    op.drop_table("hook_call")
    op.drop_table("hook")
