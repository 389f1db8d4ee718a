"""Hits are looked at a second time when their ten minutes are over"""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("hit", sa.Column("review_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index("ix_hit_review", "hit", ["review_at"], postgresql_where=sa.text("review_at is not null"))


def downgrade() -> None:
    op.drop_index("ix_hit_review", table_name="hit")
    op.drop_column("hit", "review_at")
