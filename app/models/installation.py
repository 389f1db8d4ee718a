"""The installation itself: what is fixed when the database is made, its keys, its processes and its people."""

from sqlalchemy import Boolean, Column, Index, Integer, LargeBinary, SmallInteger, Table, Text, text

from app.models.base import Time, Uuid, metadata, serial

installation = Table(
    "installation",
    metadata,
    # One row. The number of partitions is fixed here: an account's partition is a hash modulo this number.
    Column("id", SmallInteger, primary_key=True, server_default=text("1")),
    Column("partitions", SmallInteger, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("brakes_at", Time),  # complaints and bounces are not counted again before
)

token_key = Table(
    "token_key",
    metadata,
    # Keys of the links in mails (email-standards 4.6). Old ones verify for life, so rows are never deleted.
    Column("kid", SmallInteger, primary_key=True, autoincrement=False),
    Column("secret", LargeBinary, nullable=False),
    Column("created_at", Time, nullable=False),
)

source = Table(
    "source",
    metadata,
    # Who posts events. `nurture` (id 0) is the engine itself. A write key belongs to a source and may be rotated without
    # losing the source's memory of what it has posted.
    Column("id", SmallInteger, primary_key=True, autoincrement=True),
    Column("name", Text, nullable=False, unique=True),
)

api_key = Table(
    "api_key",
    metadata,
    Column("id", Text, primary_key=True),
    Column("name", Text, nullable=False),
    Column("scope", Text, nullable=False),  # write | read | admin
    Column("hash", LargeBinary, nullable=False, unique=True),  # SHA-256 of the whole key
    Column("source_id", SmallInteger),
    Column("created_at", Time, nullable=False),
    Column("last_used_at", Time),
    Column("revoked_at", Time),
)

sign_in_link = Table(
    "sign_in_link",
    metadata,
    Column("hash", LargeBinary, primary_key=True),  # SHA-256 of the token in the link
    Column("created_at", Time, nullable=False),
    Column("expires_at", Time, nullable=False),
    Column("used_at", Time),
)

console_session = Table(
    "console_session",
    metadata,
    Column("hash", LargeBinary, primary_key=True),  # SHA-256 of the cookie's token
    Column("created_at", Time, nullable=False),
    Column("seen_at", Time, nullable=False),
    Column("user_agent", Text),
    Column("ended_at", Time),
)

worker = Table(
    "worker",
    metadata,
    # A process that claims messages. Dead is a lost heartbeat, by the database's clock, never an elapsed time of work.
    Column("id", Uuid, primary_key=True),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Time, nullable=False),
    Column("heartbeat_at", Time, nullable=False),
    Column("stopped_at", Time),
    Index(None, "heartbeat_at", postgresql_where=text("stopped_at is null")),
)

parked = Table(
    "parked",
    metadata,
    # An occurrence whose processing raised. Its account waits until it is retried (`nurture doctor`); the others go on.
    serial(),
    Column("partition", SmallInteger, nullable=False),
    Column("account_key", Text),
    Column("contact_key", Text),  # set when no account is known: then the contact waits
    Column("occurrence", Text, nullable=False),  # "event:<id>", "enrollment:<uuid>" or "account:<id>"
    Column("error", Text, nullable=False),
    Column("traceback", Text, nullable=False),
    Column("parked_at", Time, nullable=False),
    Column("retries", Integer, nullable=False, server_default=text("0")),
    Column("released_at", Time),
    Index(None, "partition", postgresql_where=text("released_at is null")),
)

doubled = Table(
    "doubled",
    metadata,
    # How many events were refused as already known, by source (shown by /metrics).
    Column("source_id", SmallInteger, primary_key=True, autoincrement=False),
    Column("refused", Integer, nullable=False),
)

setting = Table(
    "setting",
    metadata,
    # Small facts the engine must remember about itself, such as the sample customers having been loaded.
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("secret", Boolean, nullable=False, server_default=text("false")),
)
