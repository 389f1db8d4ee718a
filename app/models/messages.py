"""Messages: rows before they are emails; what became of them; who must not be written to; what people answered."""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from app.models.base import Json, Time, Uuid, metadata, serial

message = Table(
    "message",
    metadata,
    # One email to one contact for one step of one enrollment. The id is a hash of those four (invariant 3).
    Column("id", Uuid, primary_key=True),
    Column("enrollment_id", Uuid, ForeignKey("enrollment.id", ondelete="CASCADE"), nullable=False),
    # Campaign, version and account are the enrollment's, which has the keys: three more would cost a third of the insert.
    Column("campaign_id", BigInteger, nullable=False),
    Column("version_id", BigInteger, nullable=False),
    Column("step_id", Text, nullable=False),
    Column("occurrence", Integer, nullable=False),
    Column("account_id", BigInteger, nullable=False),
    Column("contact_id", BigInteger, ForeignKey("contact.id", ondelete="CASCADE"), nullable=False),
    Column("partition", SmallInteger, nullable=False),
    Column("kind", Text, nullable=False),  # email | survey
    Column("topic", Text, nullable=False),  # "transactional" has no opt-out
    Column("priority", SmallInteger, nullable=False),
    Column("created_at", Time, nullable=False),
    Column("due_at", Time, nullable=False),
    Column("expires_at", Time, nullable=False),
    # due → claimed → in_dot → sent | unknown, or due | skipped; unknown → sent, or due once more; ghosted and shadow are settled when made.
    Column("state", Text, nullable=False),
    Column("reason", Text),  # why it was skipped, or waits
    Column("claim", Uuid),  # the fencing token of the claim
    Column("worker_id", Uuid),
    Column("claimed_at", Time),
    Column("dot_at", Time),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("settled_at", Time),
    Column("person", Text),  # the address it went to, normalised
    Column("message_header", Text),  # Message-ID, made once and reused on every retry (M-01)
    Column("subject", Text),
    Column("values", Json),  # what it was rendered with: only the paths its template reads
    Column("links", Json),  # destinations after rendering, by index
    Column("reply", Text),  # the relay's last reply
    Column("transport", Text, nullable=False, server_default=text("'default'")),  # what carries it, as lifecycle.yaml said
    Column("tried_at", Time),  # the first attempt that was put off: how long it is tried counts from here
    Column("unknown_until", Time),  # evidence of an unknown outcome is waited for until then
    Column("resends", SmallInteger, nullable=False, server_default=text("0")),  # how often it was sent again after an unknown outcome
    UniqueConstraint("enrollment_id", "step_id", "occurrence", "contact_id"),
    Index("ix_message_due", "transport", text("priority desc"), "due_at", postgresql_where=text("state = 'due'")),
    Index("ix_message_due_at", "due_at", postgresql_where=text("state = 'due'")),
    Index("ix_message_unknown", "created_at", postgresql_where=text("state = 'unknown'")),
    Index("ix_message_claimed", "worker_id", postgresql_where=text("state in ('claimed', 'in_dot')")),
    Index("ix_message_contact", "contact_id", "created_at"),
    Index("ix_message_account", "account_id", "created_at"),
    Index("ix_message_campaign", "campaign_id", "state"),
    Index("ix_message_created", "created_at"),
)

reservation = Table(
    "reservation",
    metadata,
    # The place a message takes under the caps, and as the one that its person gets of a step; given back when it is not sent after all.
    Column("message_id", Uuid, ForeignKey("message.id", ondelete="CASCADE"), primary_key=True),
    Column("person", Text, nullable=False),
    Column("account_id", BigInteger, nullable=False),
    Column("topic", Text, nullable=False),
    Column("campaign_id", BigInteger, nullable=False),
    Column("step_id", Text, nullable=False),
    Column("shadow", Boolean, nullable=False),  # shadow and live are counted apart
    Column("at", Time, nullable=False),
    Index("ix_reservation_person", "person", "at"),
    Index("ix_reservation_account", "account_id", "at"),
)

outbox = Table(
    "outbox",
    metadata,
    # Mail of an installation without a relay: read at /dev/outbox.
    serial(),
    Column("message_id", Uuid, nullable=False, unique=True),
    Column("sender", Text, nullable=False),
    Column("recipient", Text, nullable=False),
    Column("raw", LargeBinary, nullable=False),
    Column("captured_at", Time, nullable=False),
)

delivery_event = Table(
    "delivery_event",
    metadata,
    # What became of a message: sent, deferred, bounced, opened, replied, …; facts, any order.
    serial(),
    Column("message_id", Uuid, ForeignKey("message.id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),
    Column("at", Time, nullable=False),
    Column("detail", Json, nullable=False, server_default=text("'{}'::jsonb")),
    Column("key", Text, nullable=False),  # what makes it one fact, such as attempt:3
    UniqueConstraint("message_id", "kind", "key"),
    Index("ix_delivery_event_at", "at", postgresql_using="brin"),
    Index("ix_delivery_event_bad", "at", postgresql_where=text("kind in ('bounced', 'complained', 'rejected')")),
)

dkim_key = Table(
    "dkim_key",
    metadata,
    # A key that signs the mail of a domain. One of each algorithm is active; a retired one has lost its private half.
    serial(),
    Column("domain", Text, nullable=False),  # as in addresses: A-labels, small letters
    Column("selector", Text, nullable=False),
    Column("algorithm", Text, nullable=False),  # rsa | ed25519
    Column("bits", Integer, nullable=False),
    Column("sealed", Text),  # the private key, sealed (flow.seals)
    Column("record", Text, nullable=False),  # the value of the TXT record at selector._domainkey.domain
    Column("active", Boolean, nullable=False, server_default=text("false")),
    Column("created_at", Time, nullable=False),
    Column("retired_at", Time),
    UniqueConstraint("domain", "selector"),
    Index("uq_dkim_key_active", "domain", "algorithm", unique=True, postgresql_where=text("active")),
)

brake = Table(
    "brake",
    metadata,
    # Mail that was stopped because too many complained or bounced, or a warning of it. In force until somebody releases it.
    serial(),
    Column("kind", Text, nullable=False),  # complaints | bounces
    Column("action", Text, nullable=False),  # warn | pause
    Column("domain", Text),  # the sending domain, of complaints
    Column("provider", Text),  # the mailbox provider whose people complained; None: all together
    Column("campaign_id", BigInteger, ForeignKey("campaign.id")),  # of bounces
    Column("numbers", Json, nullable=False),  # what was counted, over which time, and the limit
    Column("set_at", Time, nullable=False),
    Column("told_at", Time),  # when the operators were told; None: still to be tried
    Column("released_at", Time),
    Column("released_by", Text),
    Index(
        "uq_brake_active",
        "kind",
        "action",
        "domain",
        "provider",
        "campaign_id",
        unique=True,
        postgresql_where=text("released_at is null"),
        postgresql_nulls_not_distinct=True,
    ),
)

hit = Table(
    "hit",
    metadata,
    # Evidence: somebody or something fetched a link of a message. Never deleted by a verdict, which may change.
    serial(),
    Column("message_id", Uuid, ForeignKey("message.id", ondelete="CASCADE"), nullable=False),
    Column("kind", Text, nullable=False),  # click | open | survey | unsubscribe | preferences | view | honeypot
    Column("link", Integer),
    Column("at", Time, nullable=False),
    Column("network", Text),  # truncated: IPv4 /24, IPv6 /48 (T-06)
    Column("user_agent", Text),
    Column("signals", Json, nullable=False),  # {signal: weight}
    Column("score", SmallInteger, nullable=False),
    Column("verdict", Text, nullable=False),  # human | suspected | scanner | machine | proxy
    Column("settle_at", Time),  # a click is judged for good then
    Column("settled_at", Time),
    Column("review_at", Time),  # and looked at once more then
    Index("ix_hit_message", "message_id", "at"),
    Index("ix_hit_review", "review_at", postgresql_where=text("review_at is not null")),
    Index("ix_hit_settle", "settle_at", postgresql_where=text("settled_at is null and settle_at is not null")),
    Index("ix_hit_network", "network", "at"),
)

suppression = Table(
    "suppression",
    metadata,
    # An address we must not write to. Scope `all` or a topic.
    serial(),
    Column("person", Text, nullable=False),
    Column("scope", Text, nullable=False),
    Column("reason", Text, nullable=False),  # unsubscribed | bounced | soft_limit | complained | manual
    Column("evidence", Json, nullable=False, server_default=text("'{}'::jsonb")),
    Column("created_at", Time, nullable=False),
    Column("lifted_at", Time),
    Index("uq_suppression_active", "person", "scope", unique=True, postgresql_where=text("lifted_at is null")),
)

consent = Table(
    "consent",
    metadata,
    # The consent log (P-05). Append-only: a trigger refuses changes, and deletes but an erasure's.
    serial(),
    Column("person", Text, nullable=False),
    Column("purpose", Text, nullable=False),  # a topic, `all`, pause, open_tracking or click_tracking
    Column("granted", Boolean, nullable=False),
    Column("at", Time, nullable=False),
    Column("method", Text, nullable=False),  # one_click | page | operator | import | api
    Column("source", Text),  # where it was said: the page and the version of its form, a file, a program
    Column("wording", Text),  # the hash of what the person was shown, see `wording`
    Column("network", Text),  # truncated: IPv4 /24, IPv6 /48
    Column("actor", Text),  # contact, operator, or who used the API
    Column("evidence", Json, nullable=False, server_default=text("'{}'::jsonb")),
    Index("ix_consent_person", "person", "at"),
)

wording = Table(
    "wording",
    metadata,
    # The exact words that people were shown when they chose, by hash: what a line of the consent log refers to.
    Column("hash", Text, primary_key=True),
    Column("locale", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("first_at", Time, nullable=False),
)

response = Table(
    "response",
    metadata,
    # The counted answer of one message to one question; `response_revision` keeps the earlier ones.
    serial(),
    Column("message_id", Uuid, ForeignKey("message.id", ondelete="CASCADE"), nullable=False),
    Column("account_id", BigInteger, ForeignKey("account.id", ondelete="CASCADE"), nullable=False),
    Column("contact_id", BigInteger, ForeignKey("contact.id", ondelete="CASCADE"), nullable=False),
    Column("campaign_id", BigInteger, ForeignKey("campaign.id"), nullable=False),
    Column("survey", Text, nullable=False),  # nps | csat | ces
    Column("question", Text, nullable=False),
    Column("score", SmallInteger, nullable=False),
    Column("comment", Text),
    Column("answered_at", Time, nullable=False),
    Column("revision", Integer, nullable=False, server_default=text("1")),
    UniqueConstraint("message_id", "question"),
    Index("ix_response_account", "account_id", "answered_at"),
    Index("ix_response_campaign", "campaign_id", "answered_at"),
)

response_revision = Table(
    "response_revision",
    metadata,
    Column("response_id", BigInteger, ForeignKey("response.id", ondelete="CASCADE"), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("score", SmallInteger, nullable=False),
    Column("comment", Text),
    Column("answered_at", Time, nullable=False),
)

inbound_mail = Table(
    "inbound_mail",
    metadata,
    # Mail that came in, as bytes, each once (I-07); and, when it has been read, what it was taken for.
    serial(),
    Column("hash", LargeBinary, nullable=False, unique=True),  # SHA-256 of the raw bytes
    Column("raw", LargeBinary, nullable=False),
    Column("size", Integer, nullable=False),  # of the mail; `raw` may be its beginning only
    Column("via", Text, nullable=False),  # http | imap
    Column("place", Text),  # where in the mailbox: UIDVALIDITY:UID
    Column("sender", Text),  # of the envelope, as far as it was told; '' is the null sender
    Column("recipient", Text),
    Column("received_at", Time, nullable=False),
    Column("state", Text, nullable=False),  # waiting → done | failed
    Column("attempts", SmallInteger, nullable=False, server_default=text("0")),
    Column("kind", Text),  # bounce | delay | delivery | complaint | feedback | unsubscribe | auto_reply | reply | other | unreadable
    Column("problem", Text),  # forged | no_message | never_sent: why it was not acted on
    Column("message_id", Uuid, ForeignKey("message.id", ondelete="CASCADE")),  # the one it is about; its erasure takes the mail along
    Column("author", Text),  # From, normalised
    Column("subject", Text),
    Column("text", Text),  # the answer, or the diagnostic
    Column("detail", Json, nullable=False, server_default=text("'{}'::jsonb")),  # {reports: […], notes: […]}
    Column("processed_at", Time),
    Index("ix_inbound_mail_waiting", "id", postgresql_where=text("state = 'waiting'")),
    Index("ix_inbound_mail_received", "received_at", "id"),
    Index("ix_inbound_mail_message", "message_id", postgresql_where=text("message_id is not null")),
)

mailbox = Table(
    "mailbox",
    metadata,
    # How far each IMAP folder has been read. `name` is its address without the password.
    Column("name", Text, primary_key=True),
    Column("uidvalidity", BigInteger),
    Column("last_uid", BigInteger, nullable=False, server_default=text("0")),
    Column("due_at", Time),  # the next look; null: the settings name it no more
    Column("leased_until", Time),  # somebody is looking
    Column("read_at", Time),  # the last look that went well
    Column("error", Text),  # why the last one did not
)
