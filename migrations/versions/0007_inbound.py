"""Mail that comes in: the raw mail with what it was taken for, and how far mailboxes have been read"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

JSON = postgresql.JSONB(none_as_null=True)
TIME = sa.DateTime(timezone=True)
UUID = postgresql.UUID(as_uuid=True)


def upgrade() -> None:
    op.create_table(
        "inbound_mail",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.Column("raw", sa.LargeBinary(), nullable=False),
        sa.Column("size", sa.Integer(), nullable=False),
        sa.Column("via", sa.Text(), nullable=False),
        sa.Column("place", sa.Text()),
        sa.Column("sender", sa.Text()),
        sa.Column("recipient", sa.Text()),
        sa.Column("received_at", TIME, nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempts", sa.SmallInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("kind", sa.Text()),
        sa.Column("problem", sa.Text()),
        sa.Column("message_id", UUID),
        sa.Column("author", sa.Text()),
        sa.Column("subject", sa.Text()),
        sa.Column("text", sa.Text()),
        sa.Column("detail", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("processed_at", TIME),
        sa.ForeignKeyConstraint(["message_id"], ["message.id"], name=op.f("fk_inbound_mail_message_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inbound_mail")),
        sa.UniqueConstraint("hash", name=op.f("uq_inbound_mail_hash")),
    )
    op.create_index("ix_inbound_mail_waiting", "inbound_mail", ["id"], postgresql_where=sa.text("state = 'waiting'"))
    op.create_index("ix_inbound_mail_received", "inbound_mail", ["received_at", "id"])
    op.create_index("ix_inbound_mail_message", "inbound_mail", ["message_id"], postgresql_where=sa.text("message_id is not null"))
    op.create_table(
        "mailbox",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("uidvalidity", sa.BigInteger()),
        sa.Column("last_uid", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("due_at", TIME),
        sa.Column("leased_until", TIME),
        sa.Column("read_at", TIME),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_mailbox")),
    )


def downgrade() -> None:
    op.drop_table("mailbox")
    op.drop_table("inbound_mail")
