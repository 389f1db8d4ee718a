"""The RQ functions. Each looks for its work in the database and does it; none of them needs to be told anything twice, or at all.

The flow functions commit for themselves (a batch, a claim), so a job that dies in the middle has done what it has done.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from threading import Event
from uuid import UUID, uuid4

from sqlalchemy import Engine

from app.config import Settings, load
from app.db import connect
from app.errors import SettingError
from app.queue import Bells


def advance(partition: int) -> None:
    """Looks at one partition."""
    from app.flow.advance import run_partition

    here = workplace()
    run_partition(here.engine, here.bells, partition, clock)


def deliver() -> None:
    """Sends what is due."""
    from app.flow import deliver as flow

    here = workplace()
    flow.run(here.engine, here.settings, here.worker_id, clock, here.bells, stopping=here.stopping.is_set)


def assess() -> None:
    """Assesses the health of the accounts whose turn it is."""
    from app.flow.assess import assess_due

    here = workplace()
    assess_due(here.engine, clock, here.bells)


def settle() -> None:
    """Judges for good the clicks that are old enough."""
    from app.flow.track import settle_due

    here = workplace()
    settle_due(here.engine, clock, here.bells)


def recover() -> None:
    """Takes back what dead workers had claimed."""
    from app.flow import deliver as flow

    here = workplace()
    flow.recover(here.engine, clock, here.bells)


@dataclass(frozen=True, slots=True)
class Workplace:
    """What the jobs of one process share. `worker_id` is this process's; `stopping` is set when it is to end soon."""

    settings: Settings
    engine: Engine
    bells: Bells
    worker_id: UUID
    stopping: Event


@cache
def workplace() -> Workplace:
    """This process's, made at the first call from the settings of the environment. Raises SettingError."""
    settings = load()
    if not settings.database_url:
        raise SettingError("DATABASE_URL", "is needed to work; `nurture up` sets it for the workers it starts")
    return Workplace(settings, connect(settings.database_url), Bells(settings.redis_url), uuid4(), Event())


def clock() -> datetime:
    return datetime.now(UTC)
