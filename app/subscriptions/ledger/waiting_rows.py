"""Rows that wait for their Subscription, and what became of others of it.

They are found by Subscription, without a look at each: what waits for an endpoint that is down for days costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from pymongo import ASCENDING, DESCENDING

from app.runtime.mongo import Document, Mongo
from app.subscriptions.ledger.lanes import ORDERS, Order, by_order, range_of
from app.subscriptions.ledger.ledger import BEHIND, WAITING, Delivery, delivery_rows

# Subscriptions whose rows are read by one command, and rows that are written by one.
_AT_ONCE, _ROWS_AT_ONCE = 50, 1000
# A `next_at` that is no mark.
_A_TIME: Document = {"$gt": BEHIND}


class WaitingRows:
    """Reads and changes the waiting rows of `deliveries`."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._deliveries = delivery_rows(mongo)

    async def subscriptions(self) -> dict[str, bool]:
        """The Subscriptions with rows that wait for them: whether one of these was never attempted.

        One step in the index for each of them, however many rows there are.
        """
        pipeline: list[Document] = [
            {"$match": {"next_at": WAITING}},
            {"$sort": {"next_at": 1, "subscription": 1, "state": 1, "number": 1}},
            {"$group": {"_id": "$subscription", "state": {"$first": "$state"}}},
        ]
        found = await self._mongo.aggregate(self._deliveries, pipeline)
        return {row["_id"]: row["state"] == "queued" for row in found}

    async def first(self, shares: Mapping[str, int]) -> list[Delivery]:
        """The first waiting rows of Subscriptions, of each at most its share: new ones before failed ones."""
        names = list(shares)
        found: list[Delivery] = []
        for begin in range(0, len(names), _AT_ONCE):
            first, *others = [_first(id_, shares[id_]) for id_ in names[begin : begin + _AT_ONCE]]
            union = [{"$unionWith": {"coll": "deliveries", "pipeline": each}} for each in others]
            rows = await self._mongo.aggregate(self._deliveries, [*first, *union])
            found += [Delivery.from_document(row) for row in rows]
        return found

    async def newest(self, subscription: str) -> list[Delivery]:
        """The newest of a Subscription's waiting rows that were never attempted, if there is any."""
        row = await self._deliveries.find_one(
            {"next_at": WAITING, "subscription": subscription, "state": "queued"},
            sort=[("number", DESCENDING)],
        )
        return [] if row is None else [Delivery.from_document(row)]

    async def oldest_failed(self, subscription: str) -> Delivery | None:
        """The first of a Subscription's rows that have failed and wait for their target to answer again."""
        row = await self._deliveries.find_one(
            {"next_at": WAITING, "subscription": subscription, "state": "retrying"},
            sort=[("number", ASCENDING)],
        )
        return None if row is None else Delivery.from_document(row)

    async def taken_since(self, delivery: Delivery, since: datetime) -> bool:
        """Whether a later notice of the same Subscription was delivered since then."""
        later = {"subscription": delivery.subscription, "number": {"$gt": delivery.number}}
        taken = {"state": "delivered", "attempts.at": {"$gte": since}}
        return await self._deliveries.find_one({**later, **taken}, {"_id": 1}) is not None

    async def release(self, subscription: str, sequences: Collection[str]) -> None:
        """Let the rows of a Subscription that has become active go out, the oldest first, with a new window each.

        `sequences` are those that its rows are in.
        """
        failed = {"subscription": subscription, "state": "retrying"}
        await self._deliveries.update_many(
            {"$or": [{"next_at": mark, **failed} for mark in (WAITING, BEHIND, _A_TIME)]},
            {
                "$set": {"state": "queued", "next_at": WAITING, "first_at": None},
                "$unset": {"rejected_at": ""},
            },
        )
        await self.find_forgotten(sequences)

    async def hasten(self, subscription: str) -> None:
        """Let the retries of a Subscription go out now."""
        await self._deliveries.update_many(
            {"next_at": _A_TIME, "subscription": subscription, "state": "retrying"},
            {"$set": {"next_at": WAITING}},
        )

    async def find_forgotten(self, sequences: Collection[str] | None = None) -> int:
        """Let the first row of each lane go out that still waits for one before it; returns how many.

        Who settles a row looks for the next of its lane, unless it dies in between. `sequences`: only in their lanes.
        """
        which: list[tuple[Order, Document]] = [(order, {"lane": order.lanes}) for order in ORDERS]
        if sequences is not None:
            which = [
                (order, {"$or": [{"lane": range_of(each)} for each in names]})
                for order, names in by_order(sequences)
            ]
        ids: list[str] = []
        for order, lanes in which:
            pipeline: list[Document] = [
                {"$match": {**order.open_rows, **lanes}},
                {"$sort": {"lane": 1, order.field: 1}},
                {
                    "$group": {
                        "_id": "$lane",
                        "id": {"$first": "$_id"},
                        "at": {"$first": "$next_at"},
                    }
                },
                {"$match": {"at": BEHIND}},
            ]
            ids += [row["id"] for row in await self._mongo.aggregate(self._deliveries, pipeline)]
        for begin in range(0, len(ids), _ROWS_AT_ONCE):
            some = ids[begin : begin + _ROWS_AT_ONCE]
            await self._deliveries.update_many(
                {"_id": {"$in": some}, "next_at": BEHIND}, {"$set": {"next_at": WAITING}}
            )
        return len(ids)

    async def older_than(self, id_: str) -> Collection[str]:
        """The Subscriptions with open rows whose id is smaller."""
        found: list[str] = await self._deliveries.distinct(
            "subscription", {"_id": {"$lt": id_}, "open": True}
        )
        return found


def _first(subscription: str, count: int) -> list[Document]:
    """The pipeline that finds the first waiting rows of a Subscription."""
    return [
        {"$match": {"next_at": WAITING, "subscription": subscription}},
        {"$sort": {"next_at": 1, "subscription": 1, "state": 1, "number": 1}},
        {"$limit": count},
    ]
