"""What a request handler needs of the installation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flask import Flask, current_app
from sqlalchemy import Connection, Engine
from werkzeug.routing import PathConverter

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


class ExternalId(PathConverter):
    """`<key:…>` in a route: an external id, which is any text, slashes at its ends included."""

    regex = ".+?"
    part_isolating = False


def teach_external_ids(app: Flask) -> None:
    app.url_map.converters["key"] = ExternalId


@contextmanager
def reading() -> Iterator[Connection]:
    """A connection for one page or answer that only reads: one snapshot, no writes, 15 seconds at most for each statement."""
    with here().engine.connect() as conn:
        conn.exec_driver_sql("set transaction isolation level repeatable read, read only")
        conn.exec_driver_sql("set local statement_timeout = '15s'")
        yield conn
