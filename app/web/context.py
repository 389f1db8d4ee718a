"""What a request handler needs of the installation."""

from __future__ import annotations

from dataclasses import dataclass

from flask import current_app
from sqlalchemy import Engine

from app.config import Settings
from app.queue import Bells


@dataclass(frozen=True, slots=True)
class Installation:
    settings: Settings
    engine: Engine
    bells: Bells
    partitions: int


def here() -> Installation:
    """The installation this application serves."""
    return current_app.extensions["nurture"]
