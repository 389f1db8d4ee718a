"""The database: engine, bulk statements, locks.

Everything talks SQLAlchemy Core over one `Connection`; there is no ORM. Transactions belong to the entry points
(`with engine.begin() as conn:`); a function that takes a `conn` never commits.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from psycopg.types.json import set_json_dumps, set_json_loads
from pydantic_core import from_json, to_json
from sqlalchemy import Connection, Engine, Table, create_engine, text
from sqlalchemy import event as events
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import InterfaceError, OperationalError

# Namespaces of the transaction-level advisory locks. Only those: session-level locks break behind pgbouncer.
LOCK_PARTITION = 1
LOCK_MIGRATION = 2
LOCK_CLAIMS = 3

_TRY_LOCK = text("select pg_try_advisory_xact_lock(:a, :b) as locked, set_config('idle_in_transaction_session_timeout', :idle, true)")

set_json_dumps(to_json)
set_json_loads(from_json)


def connect(url: str, *, pool_size: int = 5) -> Engine:
    """An engine for `url`. Opens no connection yet. Works behind pgbouncer in transaction mode (no prepared statements). Its times and days
    are UTC, whatever the server's zone."""
    engine = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=pool_size,
        pool_pre_ping=True,
        hide_parameters=True,  # an error's text goes to logs, which hold nothing of anybody
        json_serializer=lambda value: to_json(value).decode(),
        json_deserializer=from_json,
        connect_args={"prepare_threshold": None, "connect_timeout": 5, "application_name": "nurture"},
    )
    events.listen(engine, "connect", _in_utc)
    events.listen(engine, "handle_error", _is_away)
    return engine


def _in_utc(dbapi: Any, _record: Any) -> None:
    # The zone is one of the few settings that pgbouncer keeps for its client.
    dbapi.execute("set time zone 'UTC'")
    dbapi.commit()


def _is_away(context: ExceptionContext) -> None:
    # PostgreSQL has several classes for the end of a session, that of the frozen is an "internal error". All mean the same to whoever
    # called: nothing has happened, and it is nobody's occurrence's fault.
    if context.is_disconnect and not isinstance(context.sqlalchemy_exception, (OperationalError, InterfaceError)):
        raise OperationalError(context.statement, context.parameters, context.original_exception, connection_invalidated=True)


def insert_rows(
    conn: Connection,
    table: Table,
    rows: Sequence[Mapping[str, Any]],
    *,
    conflict: str = "",
    returning: Sequence[str] = (),
) -> list[Any]:
    """Inserts `rows` by one statement (`jsonb_to_recordset`), whatever their number.

    All rows have the keys of the first. `conflict` is the text after `on conflict`, such as `do nothing` or
    `(id) do update set name = excluded.name`; `returning` names columns. Values may be anything JSON can carry, datetimes and
    UUIDs included; bytes are not supported. Returns the returned rows, else an empty list.
    """
    if not rows:
        return []
    statement = _insert_statement(table, tuple(rows[0]), conflict, tuple(returning))
    result = conn.exec_driver_sql(statement, {"rows": to_json(rows).decode()})
    return list(result) if returning else []


def update_rows(conn: Connection, table: Table, rows: Sequence[Mapping[str, Any]], *, key: Iterable[str] = ("id",)) -> int:
    """Updates `rows` by one statement: each row's `key` columns find it, its other columns are set. Returns the rows changed."""
    if not rows:
        return 0
    statement = _update_statement(table, tuple(rows[0]), tuple(key))
    return conn.exec_driver_sql(statement, {"rows": to_json(rows).decode()}).rowcount


def lock(conn: Connection, namespace: int, number: int, *, wait_ms: int = 0, idle_ms: int = 30_000) -> bool:
    """Takes an advisory lock until the transaction ends. Waits `wait_ms` at most; False says that somebody else has it.

    Waiting past the limit aborts the transaction's savepoint only, so the caller may go on. A process that is stopped in the middle of the
    transaction loses its session to PostgreSQL's own clock when it has said nothing for `idle_ms`: nobody waits for the frozen.
    """
    if conn.execute(_TRY_LOCK, {"a": namespace, "b": number, "idle": str(idle_ms)}).one().locked:
        return True
    if not wait_ms:
        return False
    conn.exec_driver_sql("savepoint waiting_for_lock")
    conn.exec_driver_sql(f"set local lock_timeout = {int(wait_ms)}")
    try:
        conn.execute(text("select pg_advisory_xact_lock(:a, :b)"), {"a": namespace, "b": number})
    except Exception as error:
        if getattr(getattr(error, "orig", None), "sqlstate", None) != "55P03":
            raise
        conn.exec_driver_sql("rollback to savepoint waiting_for_lock")
        return False
    conn.exec_driver_sql("set local lock_timeout = 0")
    return True


def is_deadlock(error: BaseException) -> bool:
    """Whether PostgreSQL took this transaction back because it and another waited for each other: it may be begun again at once."""
    return getattr(getattr(error, "orig", None), "sqlstate", None) == "40P01"


@lru_cache(maxsize=512)
def _insert_statement(table: Table, columns: tuple[str, ...], conflict: str, returning: tuple[str, ...]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    statement = f'insert into "{table.name}" ({names}) select {names} from {_recordset(table, columns)}'
    if conflict:
        statement += f" on conflict {conflict}"
    if returning:
        statement += " returning " + ", ".join(f'"{name}"' for name in returning)
    return statement


@lru_cache(maxsize=512)
def _update_statement(table: Table, columns: tuple[str, ...], key: tuple[str, ...]) -> str:
    sets = ", ".join(f'"{name}" = r."{name}"' for name in columns if name not in key)
    match = " and ".join(f't."{name}" = r."{name}"' for name in key)
    return f'update "{table.name}" t set {sets} from {_recordset(table, columns)} where {match}'


def _recordset(table: Table, columns: tuple[str, ...]) -> str:
    typed = ", ".join(f'"{name}" {_type(table, name)}' for name in columns)
    return f"jsonb_to_recordset(%(rows)s::jsonb) as r({typed})"


@lru_cache(maxsize=1024)
def _type(table: Table, column: str) -> str:
    return table.columns[column].type.compile(postgresql.dialect())
