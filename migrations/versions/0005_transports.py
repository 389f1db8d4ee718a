"""Several transports with limits of their own; how long mail is tried; what becomes of unknown messages"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

JSON = postgresql.JSONB(none_as_null=True)
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "transport",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("url", sa.Text()),
        sa.Column("host", sa.Text()),
        sa.Column("connections", sa.Integer(), server_default=sa.text("10"), nullable=False),
        sa.Column("rate", sa.Float(), server_default=sa.text("100"), nullable=False),
        sa.Column("letters", sa.Integer(), server_default=sa.text("100"), nullable=False),
        sa.Column("idle", sa.Float(), server_default=sa.text("60"), nullable=False),
        sa.Column("size", sa.BigInteger(), server_default=sa.text("10000000"), nullable=False),
        sa.Column("reset", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("timeouts", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("providers", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("enabled", sa.Boolean(), server_default=sa.text("true"), nullable=False),
        sa.Column("paused_at", TIME),
        sa.Column("paused_until", TIME),
        sa.Column("paused_reason", sa.Text()),
        sa.Column("paused_detail", sa.Text()),
        sa.Column("untold", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("strikes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_transport")),
    )
    op.create_table(
        "lane",
        sa.Column("transport", sa.Text(), nullable=False),
        sa.Column("provider", sa.Text(), nullable=False),
        sa.Column("strikes", sa.Integer(), server_default=sa.text("0"), nullable=False),
        sa.Column("slow_until", TIME),
        sa.Column("paused_until", TIME),
        sa.Column("cause", sa.Text()),
        sa.Column("reply", sa.Text()),
        sa.Column("untold", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("changed_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("transport", "provider", name=op.f("pk_lane")),
    )
    op.create_index("ix_lane_untold", "lane", ["transport"], postgresql_where=sa.text("untold"))
    # New columns are empty or have a constant default: none rewrites the table.
    op.add_column("message", sa.Column("transport", sa.Text(), server_default=sa.text("'default'"), nullable=False))
    op.add_column("message", sa.Column("tried_at", TIME))
    op.add_column("message", sa.Column("unknown_until", TIME))
    op.add_column("message", sa.Column("resends", sa.SmallInteger(), server_default=sa.text("0"), nullable=False))
    # Each transport claims its own mail. The index holds what is due only, so it is made in one reading of the table.
    op.drop_index("ix_message_due", "message")
    op.create_index(
        "ix_message_due", "message", ["transport", sa.text("priority desc"), "due_at"], postgresql_where=sa.text("state = 'due'")
    )


def downgrade() -> None:
    op.drop_index("ix_message_due", "message")
    op.create_index("ix_message_due", "message", [sa.text("priority desc"), "due_at"], postgresql_where=sa.text("state = 'due'"))
    op.drop_column("message", "resends")
    op.drop_column("message", "unknown_until")
    op.drop_column("message", "tried_at")
    op.drop_column("message", "transport")
    op.drop_table("lane")
    op.drop_table("transport")
