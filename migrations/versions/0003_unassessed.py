"""Accounts that wait for their assessment have a table of their own; messages rely on the keys of their enrollment"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)
FREED = {"account": "account", "campaign": "campaign", "version": "campaign_version"}


def upgrade() -> None:
    op.create_table(
        "unassessed",
        sa.Column("account_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last_event_at", TIME, nullable=False),
        sa.Column("assess_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_unassessed")),
    )
    op.create_index("ix_unassessed_assess", "unassessed", ["assess_at"])
    for column in FREED:
        op.drop_constraint(f"fk_message_{column}_id", "message", type_="foreignkey")
    # Counts for pages that are written from now on; nothing is rewritten.
    op.execute("alter table account set (fillfactor = 90)")
    op.execute("alter table contact set (fillfactor = 90)")


def downgrade() -> None:
    op.execute("alter table contact reset (fillfactor)")
    op.execute("alter table account reset (fillfactor)")
    for column, table in FREED.items():
        # Not looked up for the rows that are there: their enrollments have the same keys.
        op.execute(
            f"alter table message add constraint fk_message_{column}_id foreign key ({column}_id) references {table} (id)"
            f"{' on delete cascade' if column == 'account' else ''} not valid"
        )
    op.execute(
        "update account a set last_event_at = greatest(a.last_event_at, u.last_event_at), assess_at = least(a.assess_at, u.assess_at) "
        "from unassessed u where u.account_id = a.id"
    )
    op.drop_table("unassessed")
