"""What a request handler needs of the installation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

from flask import Flask, current_app, request
from sqlalchemy import Connection, Engine
from werkzeug.routing import IntegerConverter, Map, PathConverter

from app.config import Settings
from app.queue import Bells
from app.rules.networks import Networks


@dataclass(frozen=True, slots=True)
class Installation:
    settings: Settings
    engine: Engine
    bells: Bells
    partitions: int
    scanners: Networks = Networks()  # the operator's list of scanners and data centres
    proxies: Networks = Networks()  # whose X-Forwarded-For is believed


def here() -> Installation:
    """The installation this application serves."""
    return current_app.extensions["nurture"]


def asked_host() -> str:
    """The name or number that the request was made to, in small letters, without a port; empty when it is none."""
    try:
        return (urlsplit(f"//{request.host}").hostname or "").rstrip(".")
    except ValueError:
        return ""


class ExternalId(PathConverter):
    """`<key:…>` in a route: an external id, which is any text, slashes at its ends included."""

    regex = ".+?"
    part_isolating = False


class RowNumber(IntegerConverter):
    """`<bigint:…>` in a route: the number of a row, as large as PostgreSQL's can be. What is larger is no such address."""

    def __init__(self, url_map: Map):
        super().__init__(url_map, max=2**63 - 1)


def teach_ids(app: Flask) -> None:
    """The kinds of ids in routes; before any blueprint is registered."""
    app.url_map.converters |= {"key": ExternalId, "bigint": RowNumber}


@contextmanager
def reading() -> Iterator[Connection]:
    """A connection for one page or answer that only reads: one snapshot, no writes, 15 seconds at most for each statement."""
    with here().engine.connect() as conn:
        conn.exec_driver_sql("set transaction isolation level repeatable read, read only")
        conn.exec_driver_sql("set local statement_timeout = '15s'")
        yield conn
