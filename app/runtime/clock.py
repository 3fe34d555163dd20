"""What time it is for everything that happens by the calendar: the database's clock, which tests may put forward."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from app.runtime.mongo import Mongo


class Clock:
    """The time; `moved` are told when it was put forward."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._ahead = timedelta()
        self.moved: list[Callable[[], None]] = []

    def now(self) -> datetime:
        """Aware, UTC, whole milliseconds."""
        return self._mongo.now() + self._ahead

    def advance(self, span: timedelta) -> datetime:
        """Put the clock forward, in this process alone; returns what time it is now."""
        self._ahead += span
        for tell in self.moved:
            tell()
        return self.now()
