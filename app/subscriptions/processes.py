"""Which server processes are alive: each says so in a row of its own, and what a dead one held is taken over.

    processes  {_id: owner, alive_until}

A process that stops saying so for `SILENCE` counts as dead, though it may only be slow: what it held may then be sent
twice, never lost, and its late settlements change nothing.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from app.mongo import Document, Mongo

BEAT_EVERY = 1.0
SILENCE = timedelta(seconds=5)
# After a gap in our own beats (a pause, a database that was away) others get this long to be heard of again.
_GRACE = 2 * SILENCE.total_seconds()

# Told of a dead process and the time of the database's clock: makes free what it held.
TakeOver = Callable[[str, datetime], Awaitable[None]]


class Processes:
    """This process's own row, and a watch over the others'."""

    def __init__(
        self, mongo: Mongo, owner: str, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._mongo = mongo
        self._owner = owner
        self._clock = clock
        self._rows = mongo.collection("processes")
        self._beaten_at = -_GRACE
        self._patient_until = 0.0
        # Whether no other process is about, as far as could be seen a moment ago.
        self.alone = False

    async def beat(self, take_over: TakeOver) -> list[str]:
        """Say that this process is alive and take over what dead ones held; returns their names."""
        if self._clock() - self._beaten_at < BEAT_EVERY:
            return []
        silence = int(SILENCE.total_seconds() * 1000)
        await self._rows.update_one(
            {"_id": self._owner},
            [{"$set": {"alive_until": {"$add": ["$$NOW", silence]}}}],
            upsert=True,
        )
        begun = self._clock()
        if begun - self._beaten_at > SILENCE.total_seconds():
            self._patient_until = begun + (_GRACE if self._beaten_at > 0 else 0.0)
        self._beaten_at = begun
        others: list[Document] = await self._mongo.aggregate(
            self._rows,
            [
                {"$match": {"_id": {"$ne": self._owner}}},
                {"$project": {"dead": {"$lt": ["$alive_until", "$$NOW"]}}},
            ],
        )
        self.alone = not others
        dead = [row["_id"] for row in others if row["dead"]]
        if begun < self._patient_until:
            return []
        for owner in dead:
            await take_over(owner, self._mongo.now())
            await self._rows.delete_one({"_id": owner, "$expr": {"$lt": ["$alive_until", "$$NOW"]}})
        return dead

    async def leave(self) -> None:
        """Say that this process ends; it holds nothing any more."""
        await self._rows.delete_one({"_id": self._owner})
