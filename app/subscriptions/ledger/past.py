"""The past events of one Subscription: its delivery rows by number, and sending them again."""

from __future__ import annotations

from dataclasses import dataclass

from pymongo import ASCENDING

from app.runtime.mongo import Document, Mongo
from app.subscriptions.ledger.ledger import Delivery


@dataclass(frozen=True, slots=True)
class Span:
    """Numbers from `first` to `last`, both included; None for no bound."""

    first: int | None = None
    last: int | None = None

    def condition(self) -> Document:
        bounds = {"$gte": self.first, "$lte": self.last}
        given = {operator: bound for operator, bound in bounds.items() if bound is not None}
        return {"number": given} if given else {}


async def first_kept(mongo: Mongo, subscription: str, count: int) -> int:
    """The number of the first event that is still kept; `count` + 1 where none is."""
    cursor = mongo.collection("deliveries").find({"subscription": subscription}, {"number": 1})
    rows = await cursor.sort("number", ASCENDING).limit(1).to_list(None)
    return int(rows[0]["number"]) if rows else count + 1


async def rows(mongo: Mongo, subscription: str, span: Span, limit: int) -> list[Delivery]:
    """The rows of a span in the order of their numbers, at most `limit`."""
    cursor = mongo.collection("deliveries").find(
        {"subscription": subscription, **span.condition()}, {"attempts": 0}
    )
    documents = await cursor.sort("number", ASCENDING).limit(limit).to_list(None)
    # What a settled row has no more.
    return [
        Delivery.from_document({"owner": "", "next_at": document["created_at"], **document})
        for document in documents
    ]


async def reopen(mongo: Mongo, subscription: str, condition: Document) -> int:
    """Let settled rows be sent again, with a window of their own; returns how many.

    They keep their number, their notice id and what is known of their attempts. What comes of them is published anew
    (app/proof).
    """
    now = mongo.now()
    result = await mongo.collection("deliveries").update_many(
        {**condition, "subscription": subscription, "open": {"$exists": False}},
        {
            "$set": {
                "open": True,
                "state": "queued",
                "owner": "",
                "next_at": now,
                "first_at": None,
                "publish": now,
            },
            "$unset": {"reason": ""},
        },
    )
    return int(result.modified_count)
