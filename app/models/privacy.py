"""Privacy: who was erased and what is left of them, and what the nightly retention took away."""

from sqlalchemy import Column, Date, Index, Table, Text, text

from app.models.base import Json, Time, Uuid, metadata

erasure = Table(
    "erasure",
    metadata,
    # One erasure of a contact or an account, resumable while it runs; afterwards its receipt, which names nobody.
    Column("id", Uuid, primary_key=True),
    Column("kind", Text, nullable=False),  # contact | account
    Column("subject", Text, nullable=False),  # a keyed hash of the external id
    Column("target", Json),  # whom, while it runs: ids, keys, addresses; None when it has finished
    Column("requested_at", Time, nullable=False),
    Column("requested_by", Text, nullable=False),
    Column("finished_at", Time),
    Column("counts", Json, nullable=False, server_default=text("'{}'::jsonb")),  # {table: rows}
    Column("notes", Json, nullable=False, server_default=text("'[]'::jsonb")),
    Index("uq_erasure_running", "kind", "subject", unique=True, postgresql_where=text("finished_at is null")),
    Index("ix_erasure_subject", "subject", "finished_at"),
)

tombstone = Table(
    "tombstone",
    metadata,
    # What is kept of an erased address: a keyed hash, under which its suppressions stand. `person` is the address, once it is known
    # again because somebody posted it anew; then its suppressions are its own again.
    Column("pseudonym", Text, primary_key=True),
    Column("erased_at", Time, nullable=False),
    Column("person", Text),
    Index("ix_tombstone_person", "person", postgresql_where=text("person is not null")),
)

retention_run = Table(
    "retention_run",
    metadata,
    # One night of pruning by age.
    Column("day", Date, primary_key=True),  # UTC
    Column("started_at", Time, nullable=False),
    Column("finished_at", Time),
    Column("counts", Json, nullable=False, server_default=text("'{}'::jsonb")),  # {what: rows}
)
