"""They call us: everything that answers HTTP."""

from __future__ import annotations

from flask import Flask, Response, abort, redirect, url_for
from sqlalchemy import select

from app.config import Settings
from app.db import connect
from app.errors import SettingError
from app.models import installation
from app.queue import Bells
from app.rules.networks import Networks, read_networks
from app.web import api, console, events, guards, health, hooks, inbound, links, outbox, problems, surveys
from app.web.context import Installation, teach_ids


def build(settings: Settings) -> Flask:
    """The Flask application of `settings`, whose database is migrated already."""
    app = Flask("app.web", template_folder="templates", static_folder="static")
    app.config.update(SECRET_KEY=settings.secret_key, MAX_CONTENT_LENGTH=1024 * 1024)
    lists = (_scanners(settings), read_networks(settings.trusted_proxies))
    engine = connect(settings.database_url)
    with engine.connect() as conn:
        partitions = conn.execute(select(installation.c.partitions)).scalar_one()
    app.extensions["nurture"] = Installation(settings, engine, Bells(settings.redis_url), partitions, *lists)
    teach_ids(app)
    problems.install(app, settings)
    guards.install(app, settings)
    for module in (events, inbound, links, surveys, hooks, outbox, api, console, health):
        app.register_blueprint(module.blueprint)
    app.add_url_rule("/", "front", _front)
    return app


def _front() -> Response:
    """The way to the console, on its host."""
    if console.elsewhere():
        abort(404)
    return redirect(url_for("console.overview"))


def _scanners(settings: Settings) -> Networks:
    if settings.scanner_networks is None:
        return Networks()
    try:
        return read_networks(settings.scanner_networks.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise SettingError("NURTURE_SCANNER_NETWORKS", f"{settings.scanner_networks}: {error}") from error
