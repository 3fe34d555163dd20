"""Deliveries: one row for each event and Subscription, with every attempt that was made.

    deliveries {_id: notice id, subscription, event, number, lane, topic, trigger,
                focus: {type, id, version, method, at}, created_at,
                state, open?, owner, attempt, next_at, first_at, attempts: [...]}

`open` is set until the row is settled for good. `next_at` is when the row may next be taken: the end of the lease while
it is being sent, the time of the next attempt while it is retried, the next check while it waits for its lane.
A lane (Subscription and patient) is sent in the order of its numbers: only its first open row may be taken.

Deliveries follow the rules of app/runtime/leases.py, in bulk: a claim takes a page of rows by the database's clock and
counts the attempt of each, settlements are guarded by owner and attempt, hundreds in one update, and `dead` is the dead
letter that `carerelay deliveries` and `$resend` know. They differ in two things. There is no heartbeat for each row: a
lease outlasts its attempt by two minutes, a row that waited long is renewed before its attempt, and a process that died
is found by its silence. And how often one is tried is a span of time (retry.py), not a number.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal, NamedTuple

from pymongo import ASCENDING, IndexModel, UpdateOne
from pymongo.errors import BulkWriteError

from app.runtime import collections
from app.runtime.mongo import Collection as MongoCollection, Document, Mongo

DELIVERIES = "deliveries"

State = Literal["queued", "sending", "delivered", "retrying", "suppressed", "dead"]

# A lease outlasts the attempt it is for by this much: rows may wait for their turn at the endpoint. The rows of a dead
# process are found by its silence (app/runtime/cluster.py), long before.
LEASE_MARGIN = timedelta(seconds=120)
# How long a row waits in its lane before a sweep checks whether it was forgotten there.
SECOND_LOOK = timedelta(seconds=5)
_DUPLICATE_KEY = 11000


class Delivery(NamedTuple):
    """One row as a sender needs it. `attempt` counts this attempt; `owner` and `attempt` guard its settlement."""

    id: str
    subscription: str
    event: Any
    number: int
    lane: str
    topic: str | None
    trigger: Mapping[str, str] | None
    focus: Mapping[str, Any]
    created_at: datetime
    state: State
    owner: str
    attempt: int
    next_at: datetime
    first_at: datetime | None
    # Relative references that the notice carries besides those of the topic.
    context: tuple[str, ...] = ()

    @classmethod
    def from_document(cls, document: Document) -> Delivery:
        return cls(
            document["_id"],
            document["subscription"],
            document["event"],
            document["number"],
            document["lane"],
            document["topic"],
            document["trigger"],
            document["focus"],
            document["created_at"],
            document["state"],
            document["owner"],
            document["attempt"],
            document["next_at"],
            document["first_at"],
            tuple(document.get("context", ())),
        )

    @property
    def held(self) -> Document:
        """The filter that finds the row while its owner holds it for this attempt."""
        return {
            "_id": self.id,
            "state": "sending",
            "owner": self.owner,
            "attempt": self.attempt,
        }


@dataclass(frozen=True, slots=True)
class Refusal:
    """The first row of an ordered insert that was refused.

    `recorded`: another process has recorded that event for that Subscription; else it has taken the number.
    """

    index: int
    recorded: bool


def delivery_rows(mongo: Mongo) -> MongoCollection:
    """The rows of the ledger, `deliveries`."""
    return mongo.collection(DELIVERIES)


class Ledger:
    """The deliveries' collection. `owner` names this process."""

    def __init__(self, mongo: Mongo, owner: str) -> None:
        self._mongo = mongo
        self.owner = owner
        self._deliveries = delivery_rows(mongo)

    async def prepare(self) -> None:
        """Create the indexes that are missing."""
        open_rows = {"open": True}
        models = [
            IndexModel([("subscription", ASCENDING), ("event", ASCENDING)], unique=True),
            IndexModel([("subscription", ASCENDING), ("number", ASCENDING)], unique=True),
            IndexModel(
                [("lane", ASCENDING), ("number", ASCENDING)], partialFilterExpression=open_rows
            ),
            IndexModel([("next_at", ASCENDING)], partialFilterExpression=open_rows),
            # For those who search the ledger: by what a notice was about, and what has failed.
            IndexModel([("focus.id", ASCENDING)]),
            IndexModel(
                [("state", ASCENDING), ("_id", ASCENDING)],
                partialFilterExpression={"state": "dead"},
            ),
        ]
        await collections.ensure(self._mongo, DELIVERIES, models)

    async def insert(self, documents: Sequence[Document]) -> Refusal | None:
        """Insert new rows in order, up to the first that a unique index refuses."""
        try:
            await self._deliveries.insert_many(documents)
        except BulkWriteError as error:
            failures = error.details["writeErrors"]
            if not failures or failures[0]["code"] != _DUPLICATE_KEY:
                raise
            failure = failures[0]
            return Refusal(failure["index"], "event" in failure["keyPattern"])
        return None

    async def due(self, limit: int, without: Collection[str] = ()) -> list[Delivery]:
        """Open rows whose time has come, oldest first, but for those of some Subscriptions."""
        filter_: Document = {"open": True, "next_at": {"$lte": self._mongo.now()}}
        if without:
            filter_["subscription"] = {"$nin": list(without)}
        cursor = self._deliveries.find(filter_)
        documents = await cursor.sort("next_at", ASCENDING).limit(limit).to_list(None)
        return [Delivery.from_document(document) for document in documents]

    async def heads(self, lanes: Collection[str]) -> list[Delivery]:
        """The first open row of each lane."""
        pipeline: list[Document] = [
            {"$match": {"lane": {"$in": list(lanes)}, "open": True}},
            {"$sort": {"lane": 1, "number": 1}},
            {"$group": {"_id": "$lane", "head": {"$first": "$$ROOT"}}},
        ]
        rows = await self._mongo.aggregate(self._deliveries, pipeline)
        return [Delivery.from_document(row["head"]) for row in rows]

    async def queued(self, lanes: Collection[str]) -> list[Delivery]:
        """The rows that wait in lanes, in the order of their numbers."""
        cursor = self._deliveries.find(
            {"lane": {"$in": list(lanes)}, "open": True, "state": "queued"}, {"attempts": 0}
        )
        documents = await cursor.sort([("lane", ASCENDING), ("number", ASCENDING)]).to_list(None)
        return [Delivery.from_document(document) for document in documents]

    async def claim(self, ids: Sequence[str], lease: timedelta) -> list[Delivery]:
        """Take rows for sending, in one update; each counts its attempt. Rows that another has taken are left out.

        A process that knows a queued row's lane to be free may take it at any time; others are taken when `next_at` has
        come, by the database's clock.
        """
        token = uuid.uuid4().hex
        # A number, not a string: in an update pipeline strings with a dollar sign would be expressions.
        milliseconds = int(lease.total_seconds() * 1000)
        await self._deliveries.update_many(
            {
                "_id": {"$in": list(ids)},
                "open": True,
                "$or": [{"state": "queued"}, {"$expr": {"$lte": ["$next_at", "$$NOW"]}}],
            },
            [
                {
                    "$set": {
                        "state": "sending",
                        "owner": self.owner,
                        "claim": token,
                        "attempt": {"$add": ["$attempt", 1]},
                        "next_at": {"$add": ["$$NOW", milliseconds]},
                        "first_at": {"$ifNull": ["$first_at", "$$NOW"]},
                    }
                }
            ],
        )
        cursor = self._deliveries.find({"_id": {"$in": list(ids)}, "claim": token})
        return [Delivery.from_document(document) for document in await cursor.to_list(None)]

    async def renew(self, delivery: Delivery, lease: timedelta) -> bool:
        """Extend the lease of a row that waited long for its turn; False where it has been lost."""
        result = await self._deliveries.update_one(
            delivery.held, {"$set": {"next_at": self._mongo.now() + lease}}
        )
        return bool(result.matched_count)

    async def postpone(self, ids: Iterable[str], until: datetime) -> None:
        """Set when waiting rows are checked again."""
        await self._deliveries.update_many(
            {"_id": {"$in": list(ids)}, "open": True, "state": {"$ne": "sending"}},
            {"$set": {"next_at": until}},
        )

    async def close(self, subscription: str, reason: str) -> None:
        """Settle the open rows of a Subscription that takes no more notices, but for attempts under way.

        `dead` where an attempt was made, `suppressed` where none was.
        """
        await self._deliveries.update_many(
            {"subscription": subscription, "open": True, "state": {"$ne": "sending"}},
            [
                {
                    "$set": {
                        "state": {"$cond": [{"$gt": ["$attempt", 0]}, "dead", "suppressed"]},
                        "reason": {"$literal": reason},
                    }
                },
                {"$unset": ["open", "next_at", "owner", "claim"]},
            ],
        )

    async def open_lanes(self, subscription: str) -> list[str]:
        """The lanes of a Subscription that have an open row."""
        lane = {"$gte": f"{subscription}|", "$lt": f"{subscription}}}"}
        lanes: list[str] = await self._deliveries.distinct("lane", {"lane": lane, "open": True})
        return lanes

    async def postpone_subscriptions(self, subscriptions: Collection[str], until: datetime) -> None:
        """Postpone the due rows of Subscriptions whose endpoint is not to be called before `until`."""
        await self._deliveries.update_many(
            {
                "open": True,
                "next_at": {"$lte": self._mongo.now()},
                "subscription": {"$in": list(subscriptions)},
                "state": {"$ne": "sending"},
            },
            {"$set": {"next_at": until}},
        )

    async def resume(self, subscriptions: Collection[str]) -> None:
        """Make the queued rows of Subscriptions due, whose endpoint answers again. Retries keep their own time."""
        await self._deliveries.update_many(
            {
                "open": True,
                "next_at": {"$gt": self._mongo.now()},
                "subscription": {"$in": list(subscriptions)},
                "state": "queued",
            },
            {"$set": {"next_at": self._mongo.now()}},
        )

    async def expedite(self, subscription: str) -> None:
        """Make all waiting rows of a Subscription due, retries too."""
        now = self._mongo.now()
        await self._deliveries.update_many(
            {
                "open": True,
                "next_at": {"$gt": now},
                "subscription": subscription,
                "state": {"$in": ["queued", "retrying"]},
            },
            {"$set": {"next_at": now}},
        )

    async def abandon(self, owner: str, but: Collection[str] = ()) -> int:
        """Make the rows that a process was sending due for any process, but for some; returns how many."""
        filter_: Document = {"open": True, "state": "sending", "owner": owner}
        if but:
            filter_["_id"] = {"$nin": list(but)}
        now = self._mongo.now()
        # The condition on `next_at` leads to the index of the open rows.
        result = await self._deliveries.update_many(
            {**filter_, "next_at": {"$gt": now}}, {"$set": {"state": "retrying", "next_at": now}}
        )
        return int(result.modified_count)

    async def open_count(self) -> int:
        """The number of rows that are not settled for good."""
        count: int = await self._deliveries.count_documents({"open": True})
        return count


# The settlement of rows after an attempt: written in bulk, guarded by the row's owner and attempt.
#
# Rows that were delivered, nearly all, are written by one update that finds the record of each row's attempt in a
# list. A bulk of single updates costs MongoDB twice as much for each row, since it plans each and records each as a
# retryable write, and the driver twice as much to send.

# Fields that a row loses when it is settled for good.
_OF_OPEN_ROWS = ("open", "next_at", "owner", "claim")
# The answers that the records hold must fit into one command (16 MiB).
_AT_ONCE = 500


class Settlement(NamedTuple):
    """The new state of a row after an attempt, or without one; `attempt` is the record of it to store.

    `queued` puts a row back whose attempt was never made: it does not count.
    """

    delivery: Delivery
    state: State
    next_at: datetime | None = None
    attempt: Document | None = None
    reason: str = ""

    @property
    def is_final(self) -> bool:
        return self.next_at is None


async def settle(deliveries: MongoCollection, settlements: Sequence[Settlement]) -> int:
    """Write settlements; one whose lease was lost changes nothing. Returns how many rows were settled."""
    delivered: dict[tuple[str, int], dict[str, Document | None]] = {}
    others = []
    for entry in settlements:
        delivery = entry.delivery
        if entry.state == "delivered":
            holder = (delivery.owner, delivery.attempt)
            delivered.setdefault(holder, {})[delivery.id] = entry.attempt
        else:
            others.append(UpdateOne(delivery.held, _settled(entry)))
    count = 0
    for (owner, attempt), records in delivered.items():
        ids = list(records)
        for begin in range(0, len(ids), _AT_ONCE):
            some = ids[begin : begin + _AT_ONCE]
            held = {"_id": {"$in": some}, "state": "sending", "owner": owner, "attempt": attempt}
            update = _delivered(some, [records[id_] for id_ in some])
            count += (await deliveries.update_many(held, update)).matched_count
    if others:
        count += (await deliveries.bulk_write(others, ordered=False)).matched_count
    return count


def _delivered(ids: Sequence[str], records: Sequence[Document | None]) -> list[Document]:
    """An update of all these rows; `records` are of their attempts, in the same order."""
    place = {"$indexOfArray": [{"$literal": ids}, "$_id"]}
    record = {"$arrayElemAt": [{"$literal": records}, place]}
    values = {"state": "delivered", "attempts": {"$concatArrays": ["$attempts", [record]]}}
    return [{"$set": values}, {"$unset": list(_OF_OPEN_ROWS)}]


def _settled(entry: Settlement) -> Document:
    values: Document = {"state": entry.state}
    if entry.reason:
        values["reason"] = entry.reason
    update: Document = {"$set": values}
    if not entry.is_final:
        values["next_at"] = entry.next_at
    else:
        update["$unset"] = dict.fromkeys(_OF_OPEN_ROWS, "")
    if entry.state == "queued":
        update["$inc"] = {"attempt": -1}
        if entry.delivery.attempt == 1:
            values["first_at"] = None
    if entry.attempt is not None:
        update["$push"] = {"attempts": entry.attempt}
    return update
