"""From committed events to numbered deliveries.

    events              rows that the store writes with the data; here they become `done`
    deliveries          see ledger.py
    subscription_state  {_id: Subscription id, number: of its last event, ...}, {_id: sequence, number: its last turn}

A delivery is one inserted row: two unique indexes refuse a number given twice and an event counted twice. The rows of a
batch are inserted in order up to the first that is refused, so numbers have no gap. What is withheld has a row as well,
for operators and so that it stays withheld, and takes no number (docs/decisions/0024-rights-before-numbers.md).
Counters and events follow a moment later, in bulk: an event that is still pending when its process dies is recorded
again by another, and the rows that exist are refused again (docs/decisions/0004-order-and-numbers-of-notices.md).

Event rows follow the rules of app/runtime/leases.py, in bulk, since all that lies between a commit and its notices is
spent here: a row is born leased to the process that commits it and matched from memory; what was left behind is claimed
hundreds at a time, judged and leased by the database's clock, each claim counted in `attempts`. They differ in the end:
`done` needs no guard. The unique indexes refuse what a process that lost its lease records a second time, and what is
recorded is recorded, whoever says so. And no row is ever given up: what cannot be matched is set aside (unmatched.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from bson import ObjectId
from pymongo import ASCENDING, IndexModel
from pymongo.errors import PyMongoError

from app.runtime import collections
from app.runtime.batch_cache import moment
from app.runtime.mongo import Document, Mongo
from app.store.commit import EVENT_LEASE
from app.store.events import EVENTS, Event, event_rows
from app.subscriptions.ledger import sequence_numbers
from app.subscriptions.ledger.delivery_rows import Birth, Pair, subject
from app.subscriptions.ledger.ledger import Delivery, Ledger
from app.subscriptions.ledger.sequence_numbers import SUBSCRIPTION_STATE_COLLECTION, SequenceNumbers
from app.subscriptions.matching.event_matcher import SubscriptionMatch
from app.subscriptions.matching.judges import Failure
from app.subscriptions.matching.registration import Registration

_TRIES, _BACK_OFF = 50, 0.01
# So many rows are inserted at once: the first are sent while the next are being written.
_ROWS_AT_ONCE = 200
_RENEWED_AT_ONCE = 5_000
# Ids are made by processes' own clocks, which may be off by this much.
_SKEW = timedelta(seconds=60)


class ContentionError(Exception):
    """Other processes took the same numbers first, again and again; try later."""


class Withheld(NamedTuple):
    """A match that is no event of its Subscription, and why."""

    match: SubscriptionMatch
    reason: str


@dataclass(frozen=True, slots=True)
class Planned:
    """An event with the Subscriptions it concerns, the judges that could not decide, and from whom it is withheld."""

    event: Event
    matches: Sequence[SubscriptionMatch]
    failures: Sequence[Failure] = ()
    withheld: Sequence[Withheld] = ()
    # When its rights began to be judged.
    begun: float = field(default_factory=moment)


class Outbox:
    """The events' and counters' collections. `delivery_mode` returns the mode of a Subscription."""

    def __init__(
        self, mongo: Mongo, ledger: Ledger, owner: str, delivery_mode: Callable[[str], str]
    ) -> None:
        self._mongo = mongo
        self._ledger = ledger
        self._owner = owner
        self._delivery_mode = delivery_mode
        self._events = event_rows(mongo)
        self._states = mongo.collection(SUBSCRIPTION_STATE_COLLECTION)
        self.numbering = SequenceNumbers(mongo)
        self._done: list[Any] = []
        self._moved: dict[str, tuple[int, datetime | None]] = {}
        self._flushing = asyncio.Lock()

    async def prepare(self) -> None:
        """Create the indexes that are missing."""
        pending = {"state": "pending"}
        models = [
            IndexModel([("id", ASCENDING)], name="pending_id", partialFilterExpression=pending),
            IndexModel(
                [("at", ASCENDING)],
                name="subscription_at",
                partialFilterExpression={"type": "Subscription"},
            ),
        ]
        await collections.ensure(self._mongo, EVENTS, models)
        heartbeat = IndexModel([("heartbeat_at", ASCENDING)], name="heartbeat", sparse=True)
        await collections.ensure(self._mongo, SUBSCRIPTION_STATE_COLLECTION, [heartbeat])

    async def pending_before(self, events: Sequence[Event]) -> list[Document]:
        """Event rows of older versions of the same resources that no process has recorded yet, oldest first.

        They must be recorded first: numbers follow versions, also when the older one's process is slow or dead.
        """
        versions: dict[tuple[str, str], int] = {}
        for event in events:
            key = (event.type, event.resource_id)
            versions[key] = min(event.version, versions.get(key, event.version))
        ids = [key[1] for key, version in versions.items() if version > 1]
        if not ids:
            return []
        cursor = self._events.find({"state": "pending", "id": {"$in": ids}})
        rows = [
            row
            for row in await cursor.to_list(None)
            if row["version"] < versions.get((row["type"], row["id"]), 0)
        ]
        return sorted(rows, key=lambda row: row["version"])

    async def renew(self, ids: Sequence[Any]) -> None:
        """Begin the leases of events anew that wait for their turn in this process."""
        for begin in range(0, len(ids), _RENEWED_AT_ONCE):
            await self._events.update_many(
                {
                    "_id": {"$in": ids[begin : begin + _RENEWED_AT_ONCE]},
                    "state": "pending",
                    "owner": self._owner,
                },
                [{"$set": {"lease_until": {"$add": ["$$NOW", _milliseconds(EVENT_LEASE)]}}}],
            )

    async def claim_abandoned(self, limit: int, in_hand: Collection[Any] = ()) -> list[Document]:
        """Take over event rows whose lease has ended, oldest first, but for those that this process has in hand."""
        cursor = self._events.find(
            {"state": "pending", "lease_until": {"$lte": self._mongo.now()}}, {"_id": 1}
        )
        found = await cursor.sort("lease_until", ASCENDING).limit(limit).to_list(None)
        ids = [row["_id"] for row in found if row["_id"] not in in_hand]
        if not ids:
            return []
        await self._events.update_many(
            {
                "_id": {"$in": ids},
                "state": "pending",
                "$expr": {"$lte": ["$lease_until", "$$NOW"]},
            },
            [
                {
                    "$set": {
                        "owner": self._owner,
                        "lease_until": {"$add": ["$$NOW", _milliseconds(EVENT_LEASE)]},
                        "attempts": {"$add": ["$attempts", 1]},
                    }
                }
            ],
        )
        mine = self._events.find({"_id": {"$in": ids}, "state": "pending", "owner": self._owner})
        rows: list[Document] = await mine.sort("_id", ASCENDING).to_list(None)
        return rows

    async def record(
        self,
        batch: Sequence[Planned],
        admit: Callable[[Registration], bool],
        begin: Callable[[Delivery, Event], None],
        *,
        finishes: bool = True,
    ) -> list[Delivery]:
        """Number and insert the batch's deliveries; returns the rows that wait for their turn.

        Rows whose lane is free, as far as `admit` has room for them, are this process's to send (state `sending`,
        attempt 1): `begin` is called as soon as they are stored. Rows that another process has recorded are left out.
        `finishes`: the events are done with it.
        Raises ContentionError where other processes were faster too often.
        """
        pairs = list(_pairs(batch))
        waiting: list[Delivery] = []
        refusals = 0
        while pairs:
            await asyncio.sleep(refusals * _BACK_OFF)
            some = pairs[:_ROWS_AT_ONCE]
            documents = await self._documents(some, admit)
            try:
                refusal = await self._ledger.insert(documents)
            except PyMongoError:
                self.numbering.forget({each for pair in some for each in pair.counted_in})
                raise
            inserted = len(some) if refusal is None else refusal.index
            for pair, document in zip(some[:inserted], documents, strict=False):
                delivery = self._inserted(pair, document)
                if delivery.state == "sending":
                    begin(delivery, pair.event)
                elif delivery.state == "queued":
                    waiting.append(delivery)
            if refusal is not None and refusal.recorded:
                self.numbering.forget(some[inserted].counted_in)
                inserted += 1
            elif refusal is not None:
                self.numbering.refused()
                refusals += 1
                if refusals == _TRIES:
                    raise ContentionError
            pairs = pairs[inserted:]
        if finishes:
            self._done.extend(planned.event.id for planned in batch)
        return waiting

    async def _documents(
        self, pairs: Sequence[Pair], admit: Callable[[Registration], bool]
    ) -> list[Document]:
        known = await self.numbering.learn(each for pair in pairs for each in pair.counted_in)
        numbers = {name: each.number for name, each in known.items()}
        birth = Birth(self._owner, self._mongo.now(), self._delivery_mode, admit)
        taken: set[str] = set()
        documents = []
        for pair in pairs:
            if pair.withheld is not None:
                documents.append(birth.withheld(pair, pair.withheld))
                continue
            for name in pair.counted_in:
                numbers[name] += 1
            own = [numbers[name] for name in pair.counted_in]
            document = birth.row(pair, own, known[pair.sequence], behind=pair.lane in taken)
            taken.add(pair.lane)
            documents.append(document)
        return documents

    def _inserted(self, pair: Pair, document: Document) -> Delivery:
        if pair.withheld is not None:
            return Delivery.from_document(document)
        registration = pair.match.registration
        self.numbering.given(document)
        due = None
        if registration.channel.heartbeat is not None and registration.status == "active":
            # Each event postpones the next heartbeat.
            due = document["created_at"] + timedelta(seconds=registration.channel.heartbeat)
        self._moved[registration.id] = (document["number"], due)
        if "turn" in document:
            self._moved[pair.sequence] = (document["turn"], None)
        return Delivery.from_document(document)

    def finish(self, ids: Collection[Any]) -> None:
        """Mark events that concern no Subscription as done, with the next `flush`."""
        self._done.extend(ids)

    async def flush(self) -> None:
        """Write counters and events up to what was recorded, counters first: a done event is not recorded again."""
        async with self._flushing:
            moved, self._moved = self._moved, {}
            done, self._done = self._done, []
            try:
                if moved:
                    await sequence_numbers.advance(self._states, moved)
                if done:
                    await self._events.update_many(
                        {"_id": {"$in": done}, "state": "pending"}, {"$set": {"state": "done"}}
                    )
            except PyMongoError:
                self._moved = {**moved, **self._moved}
                self._done = done + self._done
                raise

    @property
    def behind(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._moved or self._done or self._flushing.locked())

    async def hand_back(self) -> None:
        """Flush, and end the leases of the events that this process holds; for an orderly stop."""
        await self.flush()
        await self._events.update_many(
            {"owner": self._owner, "state": "pending"}, {"$set": {"lease_until": self._mongo.now()}}
        )

    async def take_from(self, owner: str, at: datetime) -> None:
        """End the leases of the events of a process that is gone."""
        await self._events.update_many(
            {"owner": owner, "state": "pending", "lease_until": {"$gt": at}},
            {"$set": {"lease_until": at}},
        )

    async def committed_since(self, at: datetime, owner: str | None = None) -> list[Document]:
        """The rows of events that were committed since, of one process if given; none about Subscriptions."""
        which: Document = {
            "_id": {"$gte": ObjectId.from_datetime(at - _SKEW)},
            "at": {"$gte": at},
            "type": {"$ne": "Subscription"},
        }
        if owner is not None:
            which["owner"] = owner
        rows: list[Document] = await self._events.find(which).to_list(None)
        return rows

    async def subscriptions_since(self, at: datetime) -> dict[str, datetime]:
        """The Subscriptions of which a version was committed since, with the time of the first."""
        cursor = self._events.find(
            {"type": "Subscription", "at": {"$gte": at}}, {"_id": 0, "id": 1, "at": 1}
        )
        found: dict[str, datetime] = {}
        for row in await cursor.to_list(None):
            found[row["id"]] = min(row["at"], found.get(row["id"], row["at"]))
        return found

    async def row(self, event: Any) -> Document | None:
        """The row of an event; None where it is no longer kept."""
        found: Document | None = await self._events.find_one({"_id": event})
        return found

    async def pending_count(self) -> int:
        count: int = await self._events.count_documents({"state": "pending"})
        return count

    async def number(self, subscription: str) -> int:
        """The number of the Subscription's last event; 0 without one."""
        return (await self.numbering.read([subscription]))[subscription]


def _pairs(batch: Sequence[Planned]) -> Iterator[Pair]:
    for planned in batch:
        about = subject(planned.event)
        for match in planned.matches:
            yield Pair.of(planned.event, match, about)
        for match, reason in planned.withheld:
            yield Pair.of(planned.event, match, about, reason)


def _milliseconds(span: timedelta) -> int:
    return int(span.total_seconds() * 1000)
