"""Doorbells over RQ: a job says "look at partition 7" or "there is mail to send", never what to do. (First cut.)"""

from __future__ import annotations

from collections.abc import Iterable


class Bells:
    """Rings. A ring that is lost costs at most the second until the next tick, so a Redis that is down never raises here."""

    def __init__(self, url: str | None):
        self.url = url

    def advance(self, partitions: Iterable[int]) -> None: ...

    def deliver(self) -> None: ...

    def assess(self) -> None: ...
