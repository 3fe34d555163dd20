"""The server processes that share a database, and the time up to which no write of theirs can still commit.

A resource's time of change is set before its commit, so writes become visible out of their order in time. Who polls
with `_lastUpdated=gt<the last time seen>` would miss one that commits late. Answers to such questions therefore reach
only up to the commit horizon: the earliest write under way in any process, or now.

    processes  {_id: owner, seen, horizon, parameters}

A process knows its own writes exactly. Of the others it knows what they last said of themselves, twice a second: all
their later writes carry a later time. A row that was not renewed for `SILENCE` belongs to a process that is dead or
stalled; by then MongoDB has aborted its transactions (transactionLifetimeLimitSeconds, 60 by default), and `check_age`
keeps a process that wakes up from starting others with the old time.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from pymongo.errors import PyMongoError

from app import tasks
from app.errors import Unavailable
from app.mongo import Document, Mongo

SILENCE = timedelta(seconds=90)
_OLDEST_START = timedelta(seconds=20)
_BEAT = 0.5
_MILLISECOND = timedelta(milliseconds=1)


class Presence:
    """This process among the others. `pending` gives the times of the writes under way here."""

    def __init__(self, mongo: Mongo, owner: str, pending: Callable[[], Iterable[datetime]]) -> None:
        self._mongo = mongo
        self._owner = owner
        self._pending = pending
        self._processes = mongo.collection("processes")
        self._promised = datetime.min.replace(tzinfo=UTC)
        self._task: asyncio.Task[None] | None = None
        # What this process extracts, said to the others with every beat.
        self.parameters = ""

    async def start(self) -> None:
        """Be known to the others; before the first write."""
        await self.beat()
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Leave; nothing of this process can commit any more."""
        if self._task is not None:
            await tasks.end([self._task])
            self._task = None
        with contextlib.suppress(PyMongoError):  # the row then ages
            await self._processes.delete_one({"_id": self._owner})

    async def beat(self) -> None:
        """Renew this process's row."""
        row = {"seen": "$$NOW", "horizon": self._own_horizon(), "parameters": self.parameters}
        await self._processes.update_one({"_id": self._owner}, [{"$set": row}], upsert=True)

    def stamp(self) -> datetime:
        """The time for a write that begins now: later than every horizon this process has given."""
        return max(self._mongo.now(), self._promised + _MILLISECOND)

    async def horizon(self) -> datetime:
        """Every write with a time up to this one has committed or never will."""
        others = await self._others()
        horizons: list[datetime] = [row["horizon"] for row in others]
        return min([self._own_horizon(), *horizons])

    async def agree_on(self, parameters: str) -> bool:
        """Whether every process extracts these parameters."""
        return all(row["parameters"] == parameters for row in await self._others())

    def check_age(self, times: Iterable[datetime]) -> None:
        """Raises Unavailable where a transaction would begin with a time long past. Call it as one begins."""
        if self._mongo.now() - min(times) > _OLDEST_START:
            raise Unavailable("The write could not begin in time; try again")

    def _own_horizon(self) -> datetime:
        horizon = min([self._mongo.now(), *(at - _MILLISECOND for at in self._pending())])
        self._promised = max(self._promised, horizon)
        return horizon

    async def _others(self) -> list[Document]:
        oldest = {"$subtract": ["$$NOW", int(SILENCE.total_seconds() * 1000)]}
        alive = {"_id": {"$ne": self._owner}, "$expr": {"$gt": ["$seen", oldest]}}
        rows: list[Document] = await self._processes.find(alive).to_list(None)
        return rows

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_BEAT)
            with contextlib.suppress(PyMongoError):  # the next beat tries again
                await self.beat()
