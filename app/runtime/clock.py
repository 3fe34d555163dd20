"""The calendar: what time it is for everything that happens by it, such as timers and deadlines.

    clock   {_id: "calendar", ahead: seconds, at}

It is the database's clock, which an operator may put forward for tests and demonstrations (`carerelay clock`). How far
it is ahead lies in the database, so that it holds for all processes, each of which looks every second, and after the
next start. Leases, pauses between tries, tokens, times of change and the audit are by the database's clock itself.
docs/clock.md
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from pymongo.errors import PyMongoError

from app.runtime import collections
from app.runtime.loops import LONG_PATIENCE, Loop, Loops
from app.runtime.mongo import Mongo

log = logging.getLogger(__name__)

COLLECTION = "clock"
_ROW = "calendar"
_LOOK_EVERY = 1.0


class Clock:
    """The time by the calendar; `moved` are told when it was moved, by whomever."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._rows = mongo.collection(COLLECTION)
        # As it lies in the database, and what this process has added for itself.
        self._shared = timedelta()
        self._own = timedelta()
        self.moved: list[Callable[[], None]] = []
        self.loops = Loops(Loop("clock", patience=LONG_PATIENCE))

    async def start(self) -> None:
        """Read how far the calendar is ahead, and go on looking."""
        await collections.ensure(self._mongo, COLLECTION)
        await self.look()
        self.loops["clock"].start(self._follow())

    async def stop(self) -> None:
        await self.loops.end()

    @property
    def ahead(self) -> timedelta:
        """How much later it is by the calendar than by the database's clock."""
        return self._shared + self._own

    def now(self) -> datetime:
        """Aware, UTC, whole milliseconds."""
        return self._mongo.now() + self.ahead

    def advance(self, span: timedelta) -> datetime:
        """Put the calendar forward in this process alone, until it ends; returns what time it is now."""
        self._own += span
        self._tell()
        return self.now()

    async def put_ahead(self, span: timedelta) -> datetime:
        """Let the calendar of all processes be ahead by so much; returns what time it is now.

        Raises OverflowError where it has no such time.
        """
        _ = self._mongo.now() + span
        row = {"ahead": span.total_seconds(), "at": self._mongo.now()}
        await self._rows.update_one({"_id": _ROW}, {"$set": row}, upsert=True)
        self._own = timedelta()
        self._take(span)
        return self.now()

    async def look(self) -> None:
        """Take over how far the calendar is ahead."""
        row = await self._rows.find_one({"_id": _ROW})
        self._take(timedelta(seconds=row["ahead"]) if row is not None else timedelta())

    def _take(self, span: timedelta) -> None:
        if span == self._shared:
            return
        self._shared = span
        seconds = int(span.total_seconds())
        log.warning("the calendar was moved", extra={"action": "clock", "count": seconds})
        self._tell()

    def _tell(self) -> None:
        for tell in self.moved:
            tell()

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_EVERY)
            try:
                with self.loops["clock"].step():
                    await self.look()
            except PyMongoError as error:
                told = {"action": "clock", "error": type(error).__name__}
                log.warning("cannot read how far the calendar is ahead", extra=told)
