"""Hooks: the addresses at which mail providers tell what became of our mail, and what they told there."""

from sqlalchemy import Column, ForeignKey, Index, Integer, Table, Text, UniqueConstraint, text

from app.models.base import Json, Time, Uuid, metadata, serial

hook = Table(
    "hook",
    metadata,
    Column("id", Text, primary_key=True),  # random, the end of its address (W-05)
    Column("provider", Text, nullable=False),
    Column("transport", Text),  # the name of the transport that the provider is behind
    Column("options", Json, nullable=False, server_default=text("'{}'::jsonb")),  # of SES: topics, versions, stand_in
    Column("secrets", Text, nullable=False),  # sealed; at most two
    Column("confirm_until", Time),  # of SES: until when subscriptions are confirmed
    Column("created_at", Time, nullable=False),
)

hook_call = Table(
    "hook_call",
    metadata,
    # One event that a provider told, or a call that was refused. For 30 days (P-11), and never less than two: that is how Mailgun's tokens
    # count once. Goes with its message, as it may name a person.
    serial(),
    Column("hook_id", Text, ForeignKey("hook.id", ondelete="CASCADE"), nullable=False),
    Column("key", Text, nullable=False),  # what makes it one event of its hook
    Column("kind", Text, nullable=False),  # the provider's word for what happened
    Column("raw", Text, nullable=False),  # its JSON, as it came
    Column("received_at", Time, nullable=False),
    Column("state", Text, nullable=False),  # waiting → done | failed; refused
    Column("reason", Text),  # why it was refused, or failed
    Column("reports", Integer),  # how many reports it makes; none where the event is unknown
    Column("matched", Integer),  # how many of them found their message
    Column("message_id", Uuid, ForeignKey("message.id", ondelete="CASCADE")),
    Column("processed_at", Time),
    UniqueConstraint("hook_id", "key"),
    Index("ix_hook_call_waiting", "id", postgresql_where=text("state = 'waiting'")),
    Index("ix_hook_call_refused", "hook_id", "id", postgresql_where=text("state = 'refused'")),
    Index("ix_hook_call_message", "message_id", postgresql_where=text("message_id is not null")),
    Index("ix_hook_call_received", "received_at"),
)
