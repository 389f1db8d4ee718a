"""The contact's rights: pauses, the whole consent log, erasure with tombstones, retention"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

JSON = postgresql.JSONB(none_as_null=True)
TIME = sa.DateTime(timezone=True)
UUID = postgresql.UUID(as_uuid=True)


def upgrade() -> None:
    # New columns are empty: none rewrites a table.
    op.add_column("account", sa.Column("pruned_at", TIME))
    op.add_column("account", sa.Column("erased_at", TIME))
    op.add_column("contact", sa.Column("last_active_at", TIME))
    op.add_column("contact", sa.Column("erased_at", TIME))
    op.add_column("hold", sa.Column("person", sa.Text()))
    op.create_index("ix_hold_person", "hold", ["person"], postgresql_where=sa.text("released_at is null"))
    for name in ("source", "wording", "network", "actor"):
        op.add_column("consent", sa.Column(name, sa.Text()))
    op.execute("update consent set network = evidence ->> 'network', actor = 'contact' where method in ('page', 'one_click')")
    op.create_table(
        "wording",
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("locale", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("first_at", TIME, nullable=False),
        sa.PrimaryKeyConstraint("hash", name=op.f("pk_wording")),
    )
    op.create_table(
        "erasure",
        sa.Column("id", UUID, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("subject", sa.Text(), nullable=False),
        sa.Column("target", JSON),
        sa.Column("requested_at", TIME, nullable=False),
        sa.Column("requested_by", sa.Text(), nullable=False),
        sa.Column("finished_at", TIME),
        sa.Column("counts", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.Column("notes", JSON, server_default=sa.text("'[]'::jsonb"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_erasure")),
    )
    unfinished = sa.text("finished_at is null")
    op.create_index("uq_erasure_running", "erasure", ["kind", "subject"], unique=True, postgresql_where=unfinished)
    op.create_index("ix_erasure_subject", "erasure", ["subject", "finished_at"])
    op.create_table(
        "tombstone",
        sa.Column("pseudonym", sa.Text(), nullable=False),
        sa.Column("erased_at", TIME, nullable=False),
        sa.Column("person", sa.Text()),
        sa.PrimaryKeyConstraint("pseudonym", name=op.f("pk_tombstone")),
    )
    op.create_index("ix_tombstone_person", "tombstone", ["person"], postgresql_where=sa.text("person is not null"))
    op.create_table(
        "retention_run",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("started_at", TIME, nullable=False),
        sa.Column("finished_at", TIME),
        sa.Column("counts", JSON, server_default=sa.text("'{}'::jsonb"), nullable=False),
        sa.PrimaryKeyConstraint("day", name=op.f("pk_retention_run")),
    )
    # P-05. An erasure says that it is one, for its own transaction only.
    op.execute("""
        create function consent_is_append_only() returns trigger language plpgsql as $$
        begin
            if tg_op = 'DELETE' and current_setting('nurture.erasing', true) = 'on' then
                return old;
            end if;
            raise exception 'the consent log is append-only' using errcode = 'restrict_violation';
        end $$""")
    op.execute("""
        create trigger consent_append_only before update or delete on consent
        for each row execute function consent_is_append_only()""")
    op.execute("""
        create trigger consent_no_truncate before truncate on consent
        for each statement execute function consent_is_append_only()""")


def downgrade() -> None:
    op.execute("drop trigger consent_append_only on consent")
    op.execute("drop trigger consent_no_truncate on consent")
    op.execute("drop function consent_is_append_only()")
    for table in ("retention_run", "tombstone", "erasure", "wording"):
        op.drop_table(table)
    for name in ("source", "wording", "network", "actor"):
        op.drop_column("consent", name)
    # A person's pause means nothing to the version before.
    op.execute("delete from hold where account_id is null and contact_id is null")
    op.drop_index("ix_hold_person", "hold")
    op.drop_column("hold", "person")
    op.drop_column("contact", "erased_at")
    op.drop_column("contact", "last_active_at")
    op.drop_column("account", "erased_at")
    op.drop_column("account", "pruned_at")
