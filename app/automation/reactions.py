"""What follows a commit: each event is handed to the reactions that its type concerns, at least once.

    events   {..., react_until?, react_owner?, react_attempt?, reacted?, react_failed?, react_error?, react_asked?}
             see app/store/store.py

`react_until` is there until all reactions to the event have run: the lease of whoever has it in hand
(app/runtime/leases.py), after a failure the time of the next try. An event is born leased to the process that commits
it, which reacts to it from memory; `reacted` counts the tries of others, and of that one once it has failed. What waits
in memory is renewed, and what has run is settled, many rows in one update. After the last try the row tells that it
failed, and stays, a dead letter (app/runtime/dead_letters.py).

Notices do not wait for reactions, nor these for notices. One resource's events are reacted to in the order of their
versions, as long as one process commits them.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import NamedTuple, TypedDict, TypeVar

from bson import ObjectId
from bson.errors import InvalidId
from pymongo import ASCENDING, IndexModel
from pymongo.errors import PyMongoError

from app.authorization.relations import patients_of
from app.authorization.subject_store import patients_named
from app.context import Context
from app.runtime import collections
from app.runtime.dead_letters import DeadLetter
from app.runtime.leases import NO_END, BackOff, Claim, Fields, Leases, LostError, is_nobodys_fault
from app.runtime.loops import LONG_PATIENCE, Loop, Loops
from app.runtime.mongo import Document, Mongo
from app.settings import Settings
from app.store.commit import EVENT_LEASE
from app.store.events import EVENTS, Event, event_rows, load_event
from app.store.store import Store

log = logging.getLogger(__name__)

T = TypeVar("T")

SWEEP_SECONDS = 5.0
# Notices go first: reactions gather for a moment, and few of them run beside what else the server does.
_GATHER_SECONDS = 0.25
_AT_ONCE = 2
_BATCH = 200
LEASE = timedelta(seconds=60)
BACK_OFF = BackOff(timedelta(seconds=2), timedelta(minutes=5), most=20)
_DEAD: Document = {"react_failed": True}
_NAMESPACE = uuid.UUID("4b0e1c3e-5d0c-5c57-9f55-6f6a1b6d2f10")

Run = Callable[[Context, Event], Awaitable[None]]
Sift = Callable[[Context, Sequence[Event]], Awaitable[Sequence[Event]]]


@dataclass(frozen=True, slots=True)
class Reaction:
    """Something to do after each commit of these types. `run` may be called again for the same event.

    The context of `run` is about the patients of the event, that of `sift` about those of all events.

    Events that were raised for a topic, without a change of state, go to those who name it alone, whatever type they
    are about. `is_wanted`: by the settings, which name more such topics by `topics_of`; events that nobody reacts to
    are not marked. `sift`: which of many events `run` has to look at, asked once for all of them where most are of no
    interest and only the database can tell.
    """

    name: str
    types: frozenset[str]
    run: Run
    topics: frozenset[str] = frozenset()
    is_wanted: Callable[[Settings], bool] = lambda _: True
    sift: Sift | None = None
    topics_of: Callable[[Settings], Iterable[str]] = lambda _: ()

    def concerns(self, event: Event) -> bool:
        return event.type in self.types if event.topic is None else event.topic in self.topics


def by_settings(reactions: Iterable[Reaction], settings: Settings) -> list[Reaction]:
    """Those that are wanted, each with all of its topics."""
    return [
        replace(each, topics=each.topics.union(each.topics_of(settings)))
        for each in reactions
        if each.is_wanted(settings)
    ]


def stable_id(*parts: str) -> str:
    """An id that is the same whenever it is made of the same parts."""
    return str(uuid.uuid5(_NAMESPACE, "\n".join(parts)))


class Row(TypedDict, total=False):
    """A row of `events`, as far as it is said here what has become of it."""

    _id: ObjectId
    react_until: datetime
    react_owner: str | None
    react_attempt: int
    reacted: int
    react_failed: bool
    react_error: str


class _Due(NamedTuple):
    """An event to react to, and the claim on its row."""

    event: Event
    claim: Claim[Row]


class Reactions:
    """Runs reactions; `context` is the server's own."""

    name = "reactions"

    def __init__(
        self,
        mongo: Mongo,
        store: Store,
        reactions: Sequence[Reaction],
        *,
        lease: timedelta = LEASE,
        back_off: BackOff = BACK_OFF,
    ) -> None:
        self._mongo = mongo
        self._store = store
        self._reactions = reactions
        self._events = event_rows(mongo)
        self._leases = Leases[Row](
            mongo,
            EVENTS,
            store.owner,
            lease=lease,
            back_off=back_off,
            fields=Fields("react_until", "react_owner", "react_attempt", "reacted"),
            # In the words of the index, which has no other rows.
            is_open={"react_until": {"$exists": True}},
            order=[("react_until", ASCENDING)],
        )
        self._queue: deque[_Due] = deque()
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._hurry = asyncio.Event()
        self.loops = Loops(Loop("reactions", patience=LONG_PATIENCE), Loop("reactions-sweep"))

    async def start(self, context: Context) -> None:
        waiting = IndexModel(
            [("react_until", ASCENDING)],
            name="react_until",
            partialFilterExpression={"react_until": {"$exists": True}},
        )
        failed = IndexModel(
            [("react_failed", ASCENDING), ("_id", ASCENDING)],
            name="react_failed",
            partialFilterExpression={"react_failed": True},
        )
        await collections.ensure(self._mongo, EVENTS, [waiting, failed])
        self._store.listeners.append(self._committed)
        self.loops["reactions"].start(self._run_loop(context))
        self.loops["reactions-sweep"].start(self._sweep_loop())

    async def stop(self) -> None:
        """Leave off; what has not run is free for others at once."""
        if self._committed in self._store.listeners:
            self._store.listeners.remove(self._committed)
        await self.loops.end()
        self._queue.clear()
        with suppress(PyMongoError):  # the leases then end by themselves
            await self._leases.hand_back()

    async def idle(self) -> None:
        """Return once all that was committed in this process has been reacted to, without waiting for more."""
        self._hurry.set()
        await self._idle.wait()
        self._hurry.clear()

    async def dead(self, limit: int, *, unasked: bool = False) -> list[DeadLetter]:
        """The events whose reactions were given up."""
        which = _DEAD | ({"react_asked": None} if unasked else {})
        rows = await self._events.find(which).sort("_id").limit(limit).to_list(None)
        return [
            DeadLetter(
                self.name,
                str(row["_id"]),
                f"version {row['version']}",
                row["react_error"],
                row["at"],
                f"{row['type']}/{row['id']}",
            )
            for row in rows
        ]

    async def asked(self, letter: DeadLetter) -> None:
        which = {"_id": ObjectId(letter.id), **_DEAD}
        await self._events.update_one(which, {"$set": {"react_asked": True}})

    async def is_done(self, row_id: str) -> bool:
        waiting = {"$or": [_DEAD, {"react_until": {"$exists": True}}]}
        return await self._events.find_one({"_id": ObjectId(row_id), **waiting}) is None

    async def run_again(self, row_id: str | None = None) -> int:
        """React anew to what was given up, one event or all, with all tries."""
        try:
            which = _DEAD | ({"_id": ObjectId(row_id)} if row_id is not None else {})
        except InvalidId:
            return 0
        gone = ["react_failed", "react_error", "react_asked", "react_owner"]
        anew = [{"$set": {"react_until": "$$NOW", "reacted": 0}}, {"$unset": gone}]
        found = await self._events.update_many(which, anew)
        return int(found.modified_count)

    def _committed(self, events: list[Event]) -> None:
        self._take(
            [
                _Due(event, self._leases.born({"_id": event.id}, self._left(event)))
                for event in events
                if any(reaction.concerns(event) for reaction in self._reactions)
            ]
        )

    def _left(self, event: Event) -> timedelta:
        """What is left at least of the lease that the event was committed with."""
        return min(EVENT_LEASE, EVENT_LEASE - (self._mongo.now() - event.at))

    def _take(self, dues: Sequence[_Due]) -> None:
        if dues:
            for due in dues:
                self._leases.hold(due.claim)
            self._queue.extend(dues)
            self._idle.clear()
            self._arrived.set()

    async def _run_loop(self, context: Context) -> None:
        while True:
            await self._arrived.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(_GATHER_SECONDS):
                    await self._hurry.wait()
            self._arrived.clear()
            # What arrives meanwhile gathers anew: most of the cost is what is asked once for each batch.
            for _ in range(0, len(self._queue), _BATCH):
                count = min(len(self._queue), _BATCH)
                with self.loops["reactions"].step():
                    await self._react(context, [self._queue.popleft() for _ in range(count)])
            if not self._queue:
                self._idle.set()

    async def _react(self, context: Context, batch: Sequence[_Due]) -> None:
        """React to a batch: resources side by side, each one's events in order."""
        by_resource: dict[tuple[str, str], list[_Due]] = {}
        for due in batch:
            by_resource.setdefault((due.event.type, due.event.resource_id), []).append(due)
        room = asyncio.Semaphore(_AT_ONCE)
        subjects = _Subjects(context.settings.base_url.rstrip("/"))
        spared = await self._spared(context, [due.event for due in batch], subjects)

        async def in_order(dues: Sequence[_Due]) -> list[Claim[Row]]:
            async with room:
                return [
                    due.claim for due in dues if await self._all_ran(context, due, subjects, spared)
                ]

        done = await asyncio.gather(*(in_order(dues) for dues in by_resource.values()))
        try:
            await self._leases.settle_many([claim for claims in done for claim in claims])
        except PyMongoError as error:  # they run again, which changes nothing
            _warn("settle", error)

    async def _spared(
        self, context: Context, batch: Sequence[Event], subjects: _Subjects
    ) -> set[tuple[str, ObjectId]]:
        """The reactions and events, by name and id, that do not concern each other after all."""
        spared: set[tuple[str, ObjectId]] = set()
        for reaction in self._reactions:
            events = [event for event in batch if reaction.concerns(event)]
            if reaction.sift is None or not events:
                continue
            try:
                found = await reaction.sift(subjects.about(context, *events), events)
                wanted = {event.id for event in found}
            except Exception as error:  # each event is then looked at, and fails for itself
                _warn(f"sift {reaction.name}", error)
                continue
            spared |= {(reaction.name, event.id) for event in events if event.id not in wanted}
        return spared

    async def _all_ran(
        self,
        context: Context,
        due: _Due,
        subjects: _Subjects,
        spared: Collection[tuple[str, ObjectId]],
    ) -> bool:
        """False where one failed, which stops no other, or where the event is another process's by now."""
        event = due.event
        failures: list[Exception] = []
        own: Context | None = None
        try:
            async with self._leases.guarded(due.claim):
                for reaction in self._reactions:
                    if not reaction.concerns(event) or (reaction.name, event.id) in spared:
                        continue
                    try:
                        own = own or subjects.about(context, event)
                        await reaction.run(own, event)
                    except Exception as error:
                        _tell_failure(reaction, event, error)
                        failures.append(error)
                        if is_nobodys_fault(error):
                            break
        except LostError:
            return False
        if failures:
            # Where the database went away after one had failed, that one decides.
            await self._put_off(due.claim, failures[0])
        return not failures

    async def _put_off(self, claim: Claim[Row], error: Exception) -> None:
        """Try again later, further apart each time; after the last try the row tells that it failed."""
        try:
            await self._leases.failed(claim, error, _failed(type(error).__name__))
        except PyMongoError as failure:  # the lease then ends by itself
            _warn("put off", failure)

    async def _sweep_loop(self) -> None:
        while True:
            try:
                with self.loops["reactions-sweep"].step():
                    await self.sweep()
            except PyMongoError as error:
                _warn("sweep", error)
            await asyncio.sleep(SWEEP_SECONDS)

    async def sweep(self) -> None:
        """Take over events whose reactions failed or whose process is gone."""
        for _ in range(_BATCH):
            claim = await self._leases.claim()
            if claim is None:
                return
            if self._leases.is_spent(claim):
                await self._leases.give_up(claim, NO_END, _failed(NO_END))
                continue
            try:
                event = await load_event(self._store, dict(claim.row))
            except Exception as error:
                _warn("load", error)
                await self._put_off(claim, error)
                continue
            self._take([_Due(event, claim)])


def _tell_failure(reaction: Reaction, event: Event, error: Exception) -> None:
    tell = log.warning if is_nobodys_fault(error) else log.exception
    tell(
        "reaction failed",
        extra={
            "action": reaction.name,
            "resource_type": event.type,
            "id": event.resource_id,
            "version_id": event.version,
            "error": type(error).__name__,
        },
    )


class _Subjects:
    """The patients that each event of a batch is about, before it and after; asked for once, used by many reactions."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url
        self._known: dict[ObjectId, frozenset[str]] = {}

    def about(self, context: Context, *events: Event) -> Context:
        """The context as far as it is about the patients of these events."""
        patients = frozenset[str]().union(*(self._of(event) for event in events))
        return context.about(patients, *(f"{event.type}/{event.resource_id}" for event in events))

    def _of(self, event: Event) -> frozenset[str]:
        found = self._known.get(event.id)
        if found is None:
            found = frozenset()
            if event.fields is not None:
                row = {"_id": event.resource_id, "terms": event.fields["terms"]}
                found = patients_of(event.type, row, self._base_url)
            if event.previous is not None:
                found |= patients_named(event.type, event.previous, self._base_url)
            self._known[event.id] = found
        return found


async def for_each(run: Callable[[T], Awaitable[None]], several: Iterable[T]) -> None:
    """Run for several, one after another; what fails for one keeps no other from its turn. Raises the first failure."""
    failures: list[Exception] = []
    for each in several:
        try:
            await run(each)
        except Exception as error:
            failures.append(error)
            if is_nobodys_fault(error):
                break
    if failures:
        raise failures[0]


def _failed(error: str) -> Document:
    return {"react_failed": True, "react_error": error}


def _warn(action: str, error: Exception) -> None:
    log.warning("reactions", extra={"action": action, "error": type(error).__name__})
