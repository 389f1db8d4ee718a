"""Nurture: an email nurture engine for customer success."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flask import Flask

    from app.config import Settings


def create_app(settings: Settings) -> Flask:
    """The web service: events API, links, surveys, reading API, console. Needs a migrated database."""
    from app.web import build

    return build(settings)
