"""Deliveries: one row for each event and Subscription, with every attempt that was made.

    deliveries {_id: notice id, subscription, event, number, lane, sequence?, turn?, topic, trigger,
                triggers_beside?: [...],
                focus: {type, id, version, method, at}, created_at,
                state, open?, owner, attempt, next_at, first_at, attempts: [...], missed?}

`number` counts the Subscription's events from 1. Below zero it is none: the row is no event of the Subscription, whose
owner may not see it, or from whom it is withheld. Nor is 0 one, in a row without a Subscription.

`open` is set until the row is settled for good. `next_at` is when the row may next be taken: the end of the lease while
it is being sent, the time of the next attempt while it is retried. A row that waits for something else than a time has
one of two marks there, and costs nothing while it waits: WAITING for its Subscription (its target answers again, its
endpoint is proven, it is in `error` no more), BEHIND another row of its lane. `rejected_at` is since when each attempt
was rejected. A lane is sent in the order of its numbers, one that several Subscriptions share in the order of its
turns (lanes.py): only its first open row may be taken.

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
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, NamedTuple

from pymongo import ASCENDING, IndexModel
from pymongo.errors import BulkWriteError

from app.runtime import collections
from app.runtime.mongo import Collection as MongoCollection, Document, Mongo
from app.subscriptions.ledger.lanes import HAS_TURN, by_order

DELIVERIES = "deliveries"

State = Literal["queued", "sending", "delivered", "retrying", "suppressed", "dead"]

# A lease outlasts the attempt it is for by this much: rows may wait for their turn at the endpoint. The rows of a dead
# process are found by its silence (app/runtime/cluster.py), long before.
LEASE_MARGIN = timedelta(seconds=120)
# How long a row waits that something of ours kept from being sent.
SECOND_LOOK = timedelta(seconds=5)
# Marks in `next_at`. They lie in the past: servers of format 1 take rows that have them for due (app/store/format.py).
WAITING = datetime(1970, 1, 1, tzinfo=UTC)
BEHIND = datetime(1970, 1, 2, tzinfo=UTC)
# Fields that a row loses when it is settled for good.
OF_OPEN_ROWS = ("open", "next_at", "owner", "claim", "rejected_at")
# Open rows but for those that some process is sending now; and the state of one of them whose lease is over.
_NOT_BEING_SENT: Document = {
    "open": True,
    "$or": [{"state": {"$ne": "sending"}}, {"$expr": {"$lte": ["$next_at", "$$NOW"]}}],
}
_NO_LONGER_SENT: Document = {"$cond": [{"$eq": ["$state", "sending"]}, "retrying", "$state"]}
# Of a row that is settled: proof that was looked for while it was open (app/proof) is made now.
PUBLISH_NOW: Document = {"$cond": [{"$gt": ["$publish", None]}, "$$NOW", "$$REMOVE"]}
# Of a Subscription's rows those that are events of it.
EVENTS_ONLY: Document = {"number": {"$gte": 1}}
# Of rows that a Subscription has missed (missed_rows.py): nobody has judged them yet, or others wait in their place.
MISSED_NEW, MISSED_ASKED = "new", "asked"
ANY_MISSED: Document = {"missed": {"$in": [MISSED_NEW, MISSED_ASKED]}}
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
    rejected_at: datetime | None = None
    # Its number in a sequence that several Subscriptions share.
    turn: int | None = None
    # The codings that apply beside `trigger`.
    triggers_beside: tuple[Mapping[str, str], ...] = ()

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
            document.get("next_at") or document["created_at"],  # a settled row has none
            document["first_at"],
            tuple(document.get("context", ())),
            document.get("rejected_at"),
            document.get("turn"),
            tuple(document.get("triggers_beside", ())),
        )

    @property
    def order(self) -> int:
        """What the rows of its lane are sent in the order of."""
        return self.number if self.turn is None else self.turn

    @property
    def triggers(self) -> tuple[Mapping[str, str], ...]:
        """The codings that the notice carries."""
        return (() if self.trigger is None else (self.trigger,)) + self.triggers_beside

    @property
    def is_waiting(self) -> bool:
        """Whether it waits for something else than a time."""
        return self.next_at <= BEHIND

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
            # `open` leads, so that the first row of a lane is found in one step however many there are.
            IndexModel(
                [(key, ASCENDING) for key in ("open", "lane", "number")],
                partialFilterExpression=open_rows,
            ),
            # The same for lanes that several Subscriptions share, and what keeps two from taking one turn.
            IndexModel(
                [(key, ASCENDING) for key in ("open", "lane", "turn")],
                partialFilterExpression=open_rows | HAS_TURN,
            ),
            IndexModel(
                [("sequence", ASCENDING), ("turn", ASCENDING)],
                unique=True,
                partialFilterExpression=HAS_TURN,
            ),
            # Those whose time has come; and those that wait, by Subscription, new ones before failed ones.
            IndexModel(
                [(key, ASCENDING) for key in ("next_at", "subscription", "state", "number")],
                partialFilterExpression={"next_at": {"$exists": True}},
            ),
            IndexModel(
                [(key, ASCENDING) for key in ("missed", "subscription", "_id")],
                partialFilterExpression={"missed": {"$exists": True}},
            ),
            IndexModel(
                [("event", ASCENDING)], partialFilterExpression={"missed": {"$exists": True}}
            ),
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

    async def oldest_due(self, before: datetime) -> datetime | None:
        """When the first open row's time came, if that is earlier than `before`: no sweep has looked at it since.

        What waits for its endpoint, its Subscription or another row of its lane has no time.
        """
        its_time = {"$gt": BEHIND, "$lt": before}
        found = await self._deliveries.find_one(
            {"open": True, "next_at": its_time}, {"next_at": 1}, sort=[("next_at", ASCENDING)]
        )
        return None if found is None else found["next_at"]

    async def due(self, limit: int) -> list[Delivery]:
        """Open rows whose time has come, oldest first."""
        its_time = {"$gt": BEHIND, "$lte": self._mongo.now()}
        cursor = self._deliveries.find({"open": True, "next_at": its_time})
        documents = await cursor.sort("next_at", ASCENDING).limit(limit).to_list(None)
        return [Delivery.from_document(document) for document in documents]

    async def heads(self, lanes: Collection[str]) -> list[Delivery]:
        """The first open row of each lane."""
        found: list[Delivery] = []
        for order, names in by_order(lanes):
            pipeline: list[Document] = [
                {"$match": {"lane": {"$in": names}, **order.open_rows}},
                {"$sort": {"lane": 1, order.field: 1}},
                {"$group": {"_id": "$lane", "head": {"$first": "$$ROOT"}}},
            ]
            rows = await self._mongo.aggregate(self._deliveries, pipeline)
            found += [Delivery.from_document(row["head"]) for row in rows]
        return found

    async def queued(self, lanes: Collection[str]) -> list[Delivery]:
        """The rows that wait in lanes, in the order in which they are sent."""
        waits = [{"state": "queued"}, {"next_at": {"$lte": BEHIND}}]
        cursor = self._deliveries.find(
            {"lane": {"$in": list(lanes)}, "open": True, "$or": waits}, {"attempts": 0}
        )
        documents = await cursor.sort([("lane", ASCENDING), ("number", ASCENDING)]).to_list(None)
        found = [Delivery.from_document(document) for document in documents]
        return sorted(found, key=lambda row: (row.lane, row.order))

    async def claim(self, ids: Sequence[str], lease: timedelta) -> list[Delivery]:
        """Take rows for sending, in one update; each counts its attempt. Rows that another has taken are left out.

        A process that knows the lane of a queued or waiting row to be free may take it at any time; others are taken
        when `next_at` has come, by the database's clock.
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
        milliseconds = int(lease.total_seconds() * 1000)
        result = await self._deliveries.update_one(
            delivery.held, [{"$set": {"next_at": {"$add": ["$$NOW", milliseconds]}}}]
        )
        return bool(result.matched_count)

    async def mark(self, ids: Iterable[str], mark: datetime) -> None:
        """Let rows wait, with one of the marks; one that is being sent only where its lease is over."""
        await self._deliveries.update_many(
            {"_id": {"$in": list(ids)}, **_NOT_BEING_SENT},
            [{"$set": {"next_at": mark, "state": _NO_LONGER_SENT}}],
        )

    async def close(self, subscription: str, reason: str) -> None:
        """Settle the open rows of a Subscription that takes no more notices, but for attempts under way.

        `dead` where an attempt was made, `suppressed` where none was; they are missed for now (missed_rows.py).
        """
        state = {"$cond": [{"$gt": ["$attempt", 0]}, "dead", "suppressed"]}
        changes = {"state": state, "missed": MISSED_NEW}
        await self._close({"subscription": subscription}, reason, changes)

    async def give_up(self, subscription: str, reason: str, before: str, at: datetime) -> int:
        """Settle those of a Subscription's open rows whose id is smaller, at a time; returns how many."""
        which = {"subscription": subscription, "_id": {"$lt": before}}
        return await self._close(which, reason, {"state": "dead", "given_up_at": at})

    async def _close(self, which: Document, reason: str, changes: Document) -> int:
        changes |= {"reason": {"$literal": reason}, "publish": PUBLISH_NOW}
        result = await self._deliveries.update_many(
            {**which, **_NOT_BEING_SENT}, [{"$set": changes}, {"$unset": list(OF_OPEN_ROWS)}]
        )
        return int(result.modified_count)

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
