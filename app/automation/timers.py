"""What is to happen later: rows with a time, taken by any process when it has come, at least once.

    timers   {_id: "<kind>|<key>", kind, key, due, data, taken_until?, claim?, tries}

`due` is by the hub's clock, which tests may move; `taken_until` is a lease by the database's.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pymongo import ASCENDING, IndexModel
from pymongo.errors import PyMongoError

from app.context import Context
from app.runtime import background_tasks, collections
from app.runtime.clock import Clock
from app.runtime.mongo import Document, Mongo

log = logging.getLogger(__name__)

COLLECTION = "timers"
SWEEP_SECONDS = 5.0
_LEASE = timedelta(seconds=60)
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=1), timedelta(minutes=15)

Run = Callable[[Context, str, Mapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Timer:
    """A kind of timer. `run` gets its key and data, and may be called again for the same."""

    kind: str
    run: Run


class Timers:
    """The collection `timers` and the loop over it."""

    def __init__(self, mongo: Mongo, clock: Clock, kinds: Sequence[Timer]) -> None:
        self._mongo = mongo
        self._clock = clock
        self._kinds = {timer.kind: timer for timer in kinds}
        self._timers = mongo.collection(COLLECTION)
        self._changed = asyncio.Event()
        self._running = asyncio.Lock()
        self._loops: list[asyncio.Task[None]] = []

    async def start(self, context: Context) -> None:
        due = IndexModel([("due", ASCENDING)], name="due")
        await collections.ensure(self._mongo, COLLECTION, [due])
        self._clock.moved.append(self._changed.set)
        self._loops = [asyncio.create_task(self._loop(context))]

    async def stop(self) -> None:
        await background_tasks.end(self._loops)

    async def set(
        self, kind: str, key: str, due: datetime, data: Mapping[str, Any] | None = None
    ) -> None:
        """Let something happen at `due`, which takes the place of what was set for the same key."""
        await self._timers.replace_one(
            {"_id": f"{kind}|{key}"},
            {"kind": kind, "key": key, "due": due, "data": dict(data or {}), "tries": 0},
            upsert=True,
        )
        self._changed.set()

    async def cancel(self, kind: str, key: str) -> None:
        await self._timers.delete_one({"_id": f"{kind}|{key}"})

    async def due_of(self, kind: str, key: str) -> datetime | None:
        """When it will happen; None where nothing is set."""
        row = await self._timers.find_one({"_id": f"{kind}|{key}"}, {"due": 1})
        return None if row is None else row["due"]

    async def run_due(self, context: Context) -> int:
        """Run all whose time has come, one after another; returns how many."""
        async with self._running:
            count = 0
            while (row := await self._claim()) is not None:
                await self._run(context, row)
                count += 1
            return count

    async def _claim(self) -> Document | None:
        now = self._mongo.now()
        row: Document | None = await self._timers.find_one_and_update(
            {
                "due": {"$lte": self._clock.now()},
                "kind": {"$in": list(self._kinds)},
                "$or": [{"taken_until": {"$exists": False}}, {"taken_until": {"$lte": now}}],
            },
            {
                "$set": {"taken_until": now + _LEASE, "claim": uuid.uuid4().hex},
                "$inc": {"tries": 1},
            },
            sort=[("due", ASCENDING)],
            return_document=True,
        )
        return row

    async def _run(self, context: Context, row: Document) -> None:
        mine = {"_id": row["_id"], "claim": row["claim"]}
        try:
            await self._kinds[row["kind"]].run(context, row["key"], row["data"])
        except Exception as error:
            log.exception(
                "timer failed", extra={"action": row["kind"], "error": type(error).__name__}
            )
            pause = min(_FIRST_PAUSE * 2 ** min(row["tries"], 20), _LONGEST_PAUSE)
            await self._timers.update_one(
                mine, {"$set": {"taken_until": self._mongo.now() + pause}}
            )
            return
        # One that was set anew meanwhile has no claim and stays.
        await self._timers.delete_one(mine)

    async def _loop(self, context: Context) -> None:
        while True:
            pause = SWEEP_SECONDS
            try:
                await self.run_due(context)
                pause = min(pause, await self._seconds_to_next())
            except PyMongoError as error:
                log.warning("timers", extra={"action": "run", "error": type(error).__name__})
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                continue
            self._changed.clear()

    async def _seconds_to_next(self) -> float:
        row = await self._timers.find_one(
            {"taken_until": {"$exists": False}}, {"due": 1}, sort=[("due", ASCENDING)]
        )
        if row is None:
            return SWEEP_SECONDS
        due: datetime = row["due"]
        return max(0.0, (due - self._clock.now()).total_seconds())
