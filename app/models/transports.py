"""What carries mail, with its limits, and how it stands with the providers of its recipients."""

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, Table, Text, text

from app.models.base import Json, Time, metadata

transport = Table(
    "transport",
    metadata,
    # An SMTP relay. `default` is the one of SMTP_URL and has no URL of its own; a row of it keeps its limits and its pause.
    Column("name", Text, primary_key=True),
    Column("url", Text),  # sealed (flow.seals): it holds a password
    Column("host", Text),  # what may be shown of the URL
    Column("connections", Integer, nullable=False, server_default=text("10")),  # of all workers together
    Column("rate", Float, nullable=False, server_default=text("100")),  # messages per second, of all workers together
    Column("letters", Integer, nullable=False, server_default=text("100")),  # messages per connection
    Column("idle", Float, nullable=False, server_default=text("60")),  # seconds after which an unused connection is closed
    Column("size", BigInteger, nullable=False, server_default=text("10000000")),  # octets of a message
    Column("reset", Boolean, nullable=False, server_default=text("true")),  # RSET between messages
    Column("timeouts", Json, nullable=False, server_default=text("'{}'::jsonb")),  # {phase: seconds}
    Column("providers", Json, nullable=False, server_default=text("'{}'::jsonb")),  # {provider: {rate, connections, domains}}
    Column("enabled", Boolean, nullable=False, server_default=text("true")),
    Column("paused_at", Time),
    Column("paused_until", Time),  # null while paused_at is set: until somebody resumes it
    Column("paused_reason", Text),  # operator | configuration | refused
    Column("paused_detail", Text),  # what the relay said, or who paused it and why
    Column("untold", Boolean, nullable=False, server_default=text("false")),  # operators are still to be told of the pause
    Column("strikes", Integer, nullable=False, server_default=text("0")),  # refusals of us as a sender, one after another
    Column("created_at", Time, nullable=False),
)

lane = Table(
    "lane",
    metadata,
    # How a transport stands with one provider, where that is not as usual.
    Column("transport", Text, primary_key=True),
    Column("provider", Text, primary_key=True),
    Column("strikes", Integer, nullable=False, server_default=text("0")),  # refusals of us, one after another
    Column("slow_until", Time),
    Column("paused_until", Time),
    Column("cause", Text),  # reputation | refused
    Column("reply", Text),
    Column("untold", Boolean, nullable=False, server_default=text("false")),
    Column("changed_at", Time, nullable=False),
    Index("ix_lane_untold", "transport", postgresql_where=text("untold")),
)
