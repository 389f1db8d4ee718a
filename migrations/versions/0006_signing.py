"""Keys that sign mail, and brakes that stop it"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

JSON = postgresql.JSONB(none_as_null=True)
TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.create_table(
        "dkim_key",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("domain", sa.Text(), nullable=False),
        sa.Column("selector", sa.Text(), nullable=False),
        sa.Column("algorithm", sa.Text(), nullable=False),
        sa.Column("bits", sa.Integer(), nullable=False),
        sa.Column("sealed", sa.Text()),
        sa.Column("record", sa.Text(), nullable=False),
        sa.Column("active", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("retired_at", TIME),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_dkim_key")),
        sa.UniqueConstraint("domain", "selector", name=op.f("uq_dkim_key_domain_selector")),
    )
    op.create_index("uq_dkim_key_active", "dkim_key", ["domain", "algorithm"], unique=True, postgresql_where=sa.text("active"))
    op.create_table(
        "brake",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("domain", sa.Text()),
        sa.Column("provider", sa.Text()),
        sa.Column("campaign_id", sa.BigInteger()),
        sa.Column("numbers", JSON, nullable=False),
        sa.Column("set_at", TIME, nullable=False),
        sa.Column("told_at", TIME),
        sa.Column("released_at", TIME),
        sa.Column("released_by", sa.Text()),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_brake_campaign_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_brake")),
    )
    columns = ["kind", "action", "domain", "provider", "campaign_id"]
    where = sa.text("released_at is null")
    op.create_index("uq_brake_active", "brake", columns, unique=True, postgresql_where=where, postgresql_nulls_not_distinct=True)
    # Reads the table once and holds next to nothing: what bounced and what was complained about is rare.
    op.create_index(
        "ix_delivery_event_bad", "delivery_event", ["at"], postgresql_where=sa.text("kind in ('bounced', 'complained', 'rejected')")
    )
    op.add_column("installation", sa.Column("brakes_at", TIME))


def downgrade() -> None:
    op.drop_column("installation", "brakes_at")
    op.drop_index("ix_delivery_event_bad", "delivery_event")
    op.drop_table("brake")
    op.drop_table("dkim_key")
