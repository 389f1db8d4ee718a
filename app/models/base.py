"""What every table shares: one metadata, the column types, the naming of constraints."""

from __future__ import annotations

from sqlalchemy import BigInteger, Column, DateTime, Identity, MetaData, Text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, UUID

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

Time = DateTime(timezone=True)
Json = JSONB(none_as_null=True)
Uuid = UUID(as_uuid=True)
Texts = ARRAY(Text)


def serial() -> Column:
    """A bigint primary key that the database counts."""
    return Column("id", BigInteger, Identity(always=False), primary_key=True)
