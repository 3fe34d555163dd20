"""From committed events to numbered deliveries, in one transaction for each batch.

    events              rows that the store writes with the data; here they become `done`
    deliveries          see ledger.py
    subscription_state  {_id: Subscription id, number: of its last event, ...}

The transaction marks the events done, moves each Subscription's counter and inserts the deliveries: no event is lost or
counted twice, and numbers have no gap (docs/decisions/0004-order-and-numbers-of-notices.md).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pymongo import ASCENDING, IndexModel, UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from app.identifiers import new_id
from app.mongo import Document, Mongo, Session
from app.store import EVENT_LEASE, Event
from app.subscriptions.ledger import LEASE_MARGIN, SECOND_LOOK, Delivery, Ledger
from app.subscriptions.registration import Registration
from app.subscriptions.registry import Match
from app.subscriptions.topics import references

# After another process has moved a counter, ours are read anew for this many seconds instead of remembered.
_SHARED_FOR = 10.0
_REMEMBERED = 100_000
# An event whose evaluation fails this often is left alone, for people to look at.
_MAX_ATTEMPTS = 20
_TRIES, _BACK_OFF = 50, 0.01


class ContentionError(Exception):
    """Other processes moved the same counters first, again and again; try later."""


class _MovedError(Exception):
    """Another process has recorded an event or moved a counter meanwhile."""


@dataclass(frozen=True, slots=True)
class Planned:
    """An event with the Subscriptions it concerns."""

    event: Event
    matches: Sequence[Match]


class Outbox:
    """The events' and counters' collections. `standing` says what is to be done for a Subscription."""

    def __init__(
        self, mongo: Mongo, ledger: Ledger, owner: str, standing: Callable[[str], str]
    ) -> None:
        self._mongo = mongo
        self._ledger = ledger
        self._owner = owner
        self._standing = standing
        self._events = mongo.collection("events")
        self._states = mongo.collection("subscription_state")
        self._deliveries = mongo.collection("deliveries")
        self._numbers: dict[str, int] = {}
        self._shared_until = 0.0

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
        present = await self._events.index_information()
        missing = [model for model in models if model.document["name"] not in present]
        if missing:
            await self._events.create_indexes(missing)
        if not await self._states.index_information():
            await self._states.create_indexes(
                [IndexModel([("heartbeat_at", ASCENDING)], name="heartbeat", sparse=True)]
            )

    async def pending_before(self, events: Sequence[Event]) -> list[Document]:
        """Event rows of older versions of the same resources that nobody has recorded yet, oldest first.

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

    async def claim_abandoned(self, limit: int) -> list[Document]:
        """Take over event rows whose lease has ended, oldest first."""
        cursor = self._events.find(
            {
                "state": "pending",
                "lease_until": {"$lte": self._mongo.now()},
                "attempts": {"$lt": _MAX_ATTEMPTS},
            },
            {"_id": 1},
        )
        found = await cursor.sort("lease_until", ASCENDING).limit(limit).to_list(None)
        if not found:
            return []
        ids = [row["_id"] for row in found]
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

    async def finish(self, ids: Sequence[Any]) -> None:
        """Mark events done that concern nobody."""
        await self._events.update_many(
            {"_id": {"$in": list(ids)}, "state": "pending"}, {"$set": _DONE}
        )

    async def record(
        self, batch: Sequence[Planned], admit: Callable[[Registration], bool]
    ) -> list[Delivery]:
        """Number and insert the batch's deliveries and mark its events done; returns the rows.

        Rows whose lane is free, as far as `admit` has room for them, are already this process's to send (state
        `sending`, attempt 1). Events that another process has recorded meanwhile are left out. Raises ContentionError
        where other processes were faster too often.
        """
        for tries in range(_TRIES):
            if not batch:
                return []
            await asyncio.sleep(tries * _BACK_OFF)
            subscriptions = {m.registration.id for p in batch for m in p.matches}
            numbers = await self._current_numbers(subscriptions)
            documents = await self._documents(batch, dict(numbers), admit)
            try:
                await self._write(batch, numbers, documents)
            except (_MovedError, DuplicateKeyError, BulkWriteError):
                self._shared_until = time.monotonic() + _SHARED_FOR
                self._numbers.clear()
                batch = await self._still_pending(batch)
                continue
            return [Delivery.from_document(document) for document in documents]
        raise ContentionError

    async def hand_back(self) -> None:
        """Let others take at once the events that this process holds; for an orderly stop."""
        await self._events.update_many(
            {"owner": self._owner, "state": "pending"}, {"$set": {"lease_until": self._mongo.now()}}
        )

    async def pending_count(self) -> int:
        count: int = await self._events.count_documents({"state": "pending"})
        return count

    async def number(self, subscription: str) -> int:
        """How many events the Subscription has seen."""
        return (await self._read_numbers([subscription]))[subscription]

    async def _current_numbers(self, subscriptions: Iterable[str]) -> dict[str, int]:
        wanted = list(subscriptions)
        if time.monotonic() < self._shared_until:
            return await self._read_numbers(wanted)
        if len(self._numbers) > _REMEMBERED:
            self._numbers.clear()
        unknown = [subscription for subscription in wanted if subscription not in self._numbers]
        if unknown:
            self._numbers.update(await self._read_numbers(unknown))
        return {subscription: self._numbers[subscription] for subscription in wanted}

    async def _read_numbers(self, subscriptions: Sequence[str]) -> dict[str, int]:
        cursor = self._states.find({"_id": {"$in": list(subscriptions)}}, {"number": 1})
        found = {row["_id"]: row["number"] for row in await cursor.to_list(None)}
        return {subscription: found.get(subscription, 0) for subscription in subscriptions}

    async def _documents(
        self,
        batch: Sequence[Planned],
        numbers: dict[str, int],
        admit: Callable[[Registration], bool],
    ) -> list[Document]:
        """The delivery rows; `numbers` is counted up on the way."""
        pairs = [(p.event, m, lane(p.event, m)) for p in batch for m in p.matches]
        if not pairs:
            return []
        busy = await self._ledger.busy_lanes({name for _, _, name in pairs})
        now = self._mongo.now()
        documents = []
        for event, match, name in pairs:
            registration = match.registration
            numbers[registration.id] += 1
            document = _row(event, match, name, numbers[registration.id])
            document["created_at"] = now
            standing = self._standing(registration.id)
            if standing in ("suppress", "gone"):
                document.update(state="suppressed", reason=f"Subscription is {registration.status}")
            else:
                document["open"] = True
                if standing == "hold" or name in busy:
                    document.update(state="queued", next_at=now + SECOND_LOOK)
                elif admit(registration):
                    document.update(self._leased(registration, now))
                else:
                    document.update(state="queued", next_at=now)
                busy.add(name)
            documents.append(document)
        return documents

    def _leased(self, registration: Registration, now: datetime) -> Document:
        lease = timedelta(seconds=registration.channel.timeout) + LEASE_MARGIN
        return {
            "state": "sending",
            "owner": self._owner,
            "attempt": 1,
            "next_at": now + lease,
            "first_at": now,
        }

    async def _write(
        self, batch: Sequence[Planned], numbers: dict[str, int], documents: Sequence[Document]
    ) -> None:
        ids = [planned.event.id for planned in batch]
        moved = {document["subscription"]: document["number"] for document in documents}
        counters = self._counters(batch, numbers, moved)

        async def transaction(session: Session) -> None:
            done = await self._events.update_many(
                {"_id": {"$in": ids}, "state": "pending"}, {"$set": _DONE}, session=session
            )
            if done.matched_count != len(ids):
                raise _MovedError
            if not documents:
                return
            result = await self._states.bulk_write(counters, ordered=False, session=session)
            if result.matched_count + result.upserted_count != len(counters):
                raise _MovedError
            await self._deliveries.insert_many(documents, ordered=False, session=session)

        await self._mongo.transaction(transaction)
        self._numbers.update(moved)

    def _counters(
        self, batch: Sequence[Planned], numbers: dict[str, int], moved: dict[str, int]
    ) -> list[UpdateOne]:
        """Move each counter, if it is still where it was read; traffic puts off the next heartbeat."""
        now = self._mongo.now()
        updates: dict[str, UpdateOne] = {}
        for registration in (match.registration for plan in batch for match in plan.matches):
            values: Document = {"number": moved[registration.id]}
            if registration.channel.heartbeat is not None and registration.status == "active":
                values["heartbeat_at"] = now + timedelta(seconds=registration.channel.heartbeat)
            number = numbers[registration.id]
            updates[registration.id] = UpdateOne(
                {"_id": registration.id, "number": number}, {"$set": values}, upsert=number == 0
            )
        return list(updates.values())

    async def _still_pending(self, batch: Sequence[Planned]) -> list[Planned]:
        ids = [planned.event.id for planned in batch]
        cursor = self._events.find({"_id": {"$in": ids}, "state": "pending"}, {"_id": 1})
        pending = {row["_id"] for row in await cursor.to_list(None)}
        return [planned for planned in batch if planned.event.id in pending]


_DONE: Document = {"state": "done"}


def lane(event: Event, match: Match) -> str:
    """What is kept in order: the notices about one patient to one Subscription, else those about one resource."""
    subject = f"{event.type}/{event.resource_id}"
    if event.type != "Patient" and event.fields is not None:
        subject = next(iter(references(event.type, event.fields, "patient")), subject)
    return f"{match.registration.id}|{subject}"


def _row(event: Event, match: Match, lane_name: str, number: int) -> Document:
    registration = match.registration
    return {
        "_id": new_id(),
        "subscription": registration.id,
        "event": event.id,
        "number": number,
        "lane": lane_name,
        "topic": registration.topic.url if registration.topic else None,
        "trigger": dict(match.trigger) if match.trigger else None,
        "focus": {
            "type": event.type,
            "id": event.resource_id,
            "version": event.version,
            "method": event.method,
            "at": event.at,
        },
        "owner": "",
        "attempt": 0,
        "next_at": event.at,
        "first_at": None,
        "attempts": [],
    }


def _milliseconds(span: timedelta) -> int:
    return int(span.total_seconds() * 1000)
