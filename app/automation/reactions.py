"""What follows a commit: each event is handed to the reactions that its type concerns, at least once.

    events   {..., react_until, reacted}   see app/store/store.py

`react_until` is there until all reactions to the event have run: first it is the lease of the process that committed
it, after a failure the time of the next try. Notices do not wait for reactions, nor these for notices. One resource's
events are reacted to in the order of their versions, as long as one process commits them.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from bson import ObjectId
from pymongo import ASCENDING, IndexModel
from pymongo.errors import PyMongoError

from app.context import Context
from app.runtime import background_tasks, collections
from app.runtime.mongo import Document, Mongo
from app.settings import Settings
from app.store.events import EVENTS, Event, event_rows, load_event
from app.store.store import Store

log = logging.getLogger(__name__)

SWEEP_SECONDS = 5.0
# Notices go first: reactions gather for a moment, and few of them run beside what else the server does.
_GATHER_SECONDS = 0.25
_AT_ONCE = 2
_BATCH = 200
_LEASE = timedelta(seconds=60)
_MOST_TRIES = 20
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=1), timedelta(minutes=5)
_NAMESPACE = uuid.UUID("4b0e1c3e-5d0c-5c57-9f55-6f6a1b6d2f10")

Run = Callable[[Context, Event], Awaitable[None]]
Sift = Callable[[Context, Sequence[Event]], Awaitable[Sequence[Event]]]


@dataclass(frozen=True, slots=True)
class Reaction:
    """Something to do after each commit of these types. `run` may be called again for the same event.

    Events that were raised for a topic, without a change of state, go to those who name it alone. `is_wanted`: by the
    settings; events that nobody reacts to are not marked. `sift`: which of many events `run` has to look at, asked once
    for all of them where most are of no interest and only the database can tell.
    """

    name: str
    types: frozenset[str]
    run: Run
    topics: frozenset[str] = frozenset()
    is_wanted: Callable[[Settings], bool] = lambda _: True
    sift: Sift | None = None

    def concerns(self, event: Event) -> bool:
        wanted = event.topic is None or event.topic in self.topics
        return wanted and event.type in self.types


def stable_id(*parts: str) -> str:
    """An id that is the same whenever it is made of the same parts."""
    return str(uuid.uuid5(_NAMESPACE, "\n".join(parts)))


class Reactions:
    """Runs reactions; `context` is the server's own."""

    def __init__(self, mongo: Mongo, store: Store, reactions: Sequence[Reaction]) -> None:
        self._mongo = mongo
        self._store = store
        self._reactions = reactions
        self._events = event_rows(mongo)
        self._queue: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    async def start(self, context: Context) -> None:
        waiting = IndexModel(
            [("react_until", ASCENDING)],
            name="react_until",
            partialFilterExpression={"react_until": {"$exists": True}},
        )
        await collections.ensure(self._mongo, EVENTS, [waiting])
        self._store.listeners.append(self._committed)
        self._loops = [
            asyncio.create_task(self._run_loop(context)),
            asyncio.create_task(self._sweep_loop()),
        ]

    async def stop(self) -> None:
        if self._committed in self._store.listeners:
            self._store.listeners.remove(self._committed)
        await background_tasks.end(self._loops)

    async def idle(self) -> None:
        """Return once all that was committed in this process has been reacted to, without waiting for more."""
        self._hurry.set()
        await self._idle.wait()
        self._hurry.clear()

    def _committed(self, events: list[Event]) -> None:
        mine = [event for event in events if any(r.concerns(event) for r in self._reactions)]
        if mine:
            self._take(mine)

    def _take(self, events: Sequence[Event]) -> None:
        self._queue.extend(events)
        self._idle.clear()
        self._arrived.set()

    async def _run_loop(self, context: Context) -> None:
        while True:
            await self._arrived.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(_GATHER_SECONDS):
                    await self._hurry.wait()
            self._arrived.clear()
            while self._queue:
                count = min(len(self._queue), _BATCH)
                await self._react(context, [self._queue.popleft() for _ in range(count)])
            self._idle.set()

    async def _react(self, context: Context, batch: Sequence[Event]) -> None:
        """React to a batch: resources side by side, each one's events in order."""
        by_resource: dict[tuple[str, str], list[Event]] = {}
        for event in batch:
            by_resource.setdefault((event.type, event.resource_id), []).append(event)
        room = asyncio.Semaphore(_AT_ONCE)
        spared = await self._spared(context, batch)

        async def in_order(events: Sequence[Event]) -> list[Event]:
            async with room:
                return [event for event in events if await self._all_ran(context, event, spared)]

        done = await asyncio.gather(*(in_order(events) for events in by_resource.values()))
        ids = [event.id for events in done for event in events]
        try:
            await self._events.update_many({"_id": {"$in": ids}}, {"$unset": {"react_until": ""}})
        except PyMongoError as error:  # they run again, which changes nothing
            _warn("settle", error)

    async def _spared(self, context: Context, batch: Sequence[Event]) -> set[tuple[str, ObjectId]]:
        """The reactions and events, by name and id, that do not concern each other after all."""
        spared: set[tuple[str, ObjectId]] = set()
        for reaction in self._reactions:
            events = [event for event in batch if reaction.concerns(event)]
            if reaction.sift is None or not events:
                continue
            try:
                wanted = {event.id for event in await reaction.sift(context, events)}
            except Exception as error:  # each event is then looked at, and fails for itself
                _warn(f"sift {reaction.name}", error)
                continue
            spared |= {(reaction.name, event.id) for event in events if event.id not in wanted}
        return spared

    async def _all_ran(
        self, context: Context, event: Event, spared: Collection[tuple[str, ObjectId]]
    ) -> bool:
        for reaction in self._reactions:
            if not reaction.concerns(event) or (reaction.name, event.id) in spared:
                continue
            try:
                await reaction.run(context, event)
            except Exception as error:
                log.exception(
                    "reaction failed",
                    extra={
                        "action": reaction.name,
                        "resource_type": event.type,
                        "id": event.resource_id,
                        "version_id": event.version,
                        "error": type(error).__name__,
                    },
                )
                await self._put_off(event)
                return False
        return True

    async def _put_off(self, event: Event) -> None:
        """Try again later, further apart each time; after the last try the row tells that it failed."""
        try:
            row = await self._events.find_one_and_update(
                {"_id": event.id}, {"$inc": {"reacted": 1}}, {"reacted": 1}
            )
            tries = (row or {}).get("reacted", 0) + 1
            if tries >= _MOST_TRIES:
                change: Document = {"$unset": {"react_until": ""}, "$set": {"react_failed": True}}
            else:
                pause = min(_FIRST_PAUSE * 2**tries, _LONGEST_PAUSE)
                change = {"$set": {"react_until": self._mongo.now() + pause}}
            await self._events.update_one({"_id": event.id}, change)
        except PyMongoError as error:
            _warn("put off", error)

    async def _sweep_loop(self) -> None:
        while True:
            try:
                await self.sweep()
            except PyMongoError as error:
                _warn("sweep", error)
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Take over events whose reactions failed or whose process is gone."""
        for _ in range(_BATCH):
            row = await self._events.find_one_and_update(
                {"react_until": {"$lte": self._mongo.now()}},
                {"$set": {"react_until": self._mongo.now() + _LEASE}},
                sort=[("react_until", ASCENDING)],
            )
            if row is None:
                return
            self._take([await load_event(self._store, row)])


def _warn(action: str, error: Exception) -> None:
    log.warning("reactions", extra={"action": action, "error": type(error).__name__})
