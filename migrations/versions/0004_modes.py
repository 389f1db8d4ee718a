"""What a pause holds up, and what is on the wire"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0002"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    # A new column without a default rewrites nothing, and the partial indexes begin empty.
    op.add_column("effect", sa.Column("resumed_at", TIME))
    op.create_index("ix_effect_frozen", "effect", ["campaign_id"], postgresql_where=sa.text("state = 'frozen'"))
    op.create_index("ix_task_frozen", "task", ["campaign_id"], postgresql_where=sa.text("state = 'frozen'"))
    # What an older worker had claimed may be on the wire: it stays so for whoever recovers it.
    op.execute("update effect set state = 'on_wire' where state = 'claimed'")
    op.drop_index("ix_effect_claimed", "effect")
    op.create_index("ix_effect_claimed", "effect", ["worker_id"], postgresql_where=sa.text("state in ('claimed', 'on_wire')"))


def downgrade() -> None:
    # An older engine knows neither state: what waits for the end of a pause goes on, what was skipped is settled.
    op.drop_index("ix_effect_claimed", "effect")
    op.create_index("ix_effect_claimed", "effect", ["worker_id"], postgresql_where=sa.text("state = 'claimed'"))
    op.execute("update effect set state = 'claimed' where state = 'on_wire'")
    op.execute("update effect set state = 'due' where state = 'frozen'")
    op.execute("update effect set state = 'failed' where state = 'skipped'")
    op.execute("update task set state = 'open' where state = 'frozen'")
    op.execute("update task set state = 'dismissed' where state = 'skipped'")
    op.drop_index("ix_task_frozen", "task")
    op.drop_index("ix_effect_frozen", "effect")
    op.drop_column("effect", "resumed_at")
