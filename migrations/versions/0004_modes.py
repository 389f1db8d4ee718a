"""What a pause holds up, what was in force when, and what is on the wire"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

TIME = sa.DateTime(timezone=True)

# As far as it is known: every version has its time, and the latest change of the mode. Before that a campaign was live (or in shadow) if
# anybody entered it so, else a draft. A rollback has no time: it counts from now.
KNOWN = """
with earlier as (
    select c.id, coalesce((
        select case when bool_or(not e.shadow) then 'live' else 'shadow' end
        from enrollment e where e.campaign_id = c.id and e.entered_at < c.mode_at having count(*) > 0
    ), 'draft') as mode
    from campaign c where c.mode_at is not null
), known as (
    select v.campaign_id, case when c.mode_at is null or v.published_at >= c.mode_at then c.mode else e.mode end as mode,
        v.id as version_id, v.published_at as at, v.number as place
    from campaign_version v join campaign c on c.id = v.campaign_id left join earlier e on e.id = c.id
    union all
    select c.id, c.mode, v.id, c.mode_at, v.number from campaign c cross join lateral (
        select id, number from campaign_version v
        where v.campaign_id = c.id and v.published_at <= c.mode_at order by v.published_at desc, v.number desc limit 1
    ) v where c.mode_at is not null
), newest as (
    select distinct on (campaign_id) campaign_id, version_id, mode from known order by campaign_id, at desc, place desc
)
insert into campaign_change (campaign_id, mode, version_id, at, by)
select campaign_id, mode, version_id, at, 'migration' from (
    select campaign_id, mode, version_id, at, place from known
    union all
    select c.id, c.mode, c.version_id, now(), 2147483647 from campaign c join newest n on n.campaign_id = c.id
    where c.version_id is not null and c.version_id <> n.version_id
) found order by at, place"""


# What an account remembers of its people is called by the contact's row, which an alias does not change, and was by its id.
WATCHED = """
update account a set watched = found.watched from (
    select a.id, jsonb_object_agg(
        case when {to} is null then w.key else split_part(w.key, '@', 1) || '@' || {to} end, w.value
    ) as watched
    from account a cross join lateral jsonb_each(a.watched) w cross join lateral (
        select case when strpos(w.key, '@') > 0 then substr(w.key, strpos(w.key, '@') + 1) end as who
    ) k {found}
    where strpos(a.watched::text, '@') > 0 group by a.id
) found where found.id = a.id"""
BY_ROW = WATCHED.format(
    to="c.id::text",
    found="left join contact_alias s on s.previous_key = k.who left join contact c on c.external_id = coalesce(s.contact_key, k.who)",
)
BY_KEY = WATCHED.format(to="c.external_id", found="left join contact c on c.id::text = k.who")


def upgrade() -> None:
    # A new column without a default rewrites nothing, and the partial indexes begin empty.
    op.add_column("effect", sa.Column("resumed_at", TIME))
    op.create_index("ix_effect_frozen", "effect", ["campaign_id"], postgresql_where=sa.text("state = 'frozen'"))
    op.create_index("ix_task_frozen", "task", ["campaign_id"], postgresql_where=sa.text("state = 'frozen'"))
    op.create_table(
        "campaign_change",
        sa.Column("id", sa.BigInteger(), sa.Identity(always=False), nullable=False),
        sa.Column("campaign_id", sa.BigInteger(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("version_id", sa.BigInteger(), nullable=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("by", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["campaign_id"], ["campaign.id"], name=op.f("fk_campaign_change_campaign_id")),
        sa.ForeignKeyConstraint(["version_id"], ["campaign_version.id"], name=op.f("fk_campaign_change_version_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_campaign_change")),
    )
    op.create_index("ix_campaign_change", "campaign_change", ["campaign_id", "at"])
    op.execute(KNOWN)
    op.execute(BY_ROW)
    # What an older worker had claimed may be on the wire: it stays so for whoever recovers it.
    op.execute("update effect set state = 'on_wire' where state = 'claimed'")
    op.drop_index("ix_effect_claimed", "effect")
    op.create_index("ix_effect_claimed", "effect", ["worker_id"], postgresql_where=sa.text("state in ('claimed', 'on_wire')"))


def downgrade() -> None:
    # An older engine knows neither state: what waits for the end of a pause goes on, what was skipped is settled.
    op.drop_table("campaign_change")
    op.execute(BY_KEY)
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
