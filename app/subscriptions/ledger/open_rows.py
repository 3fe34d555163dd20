"""What is open in the outbox and in the ledger: how many rows, and since when.

Each question costs MongoDB a look at every open row. Whoever asks often keeps the answer for a while
(app/api/measured.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

from app.runtime.mongo import Document, Mongo
from app.store.events import event_rows
from app.subscriptions.ledger.ledger import delivery_rows

# The indexes of open rows alone, which are no part of what a planner would choose for sure.
_OF_PENDING = "state_1_lease_until_1"
_OF_OPEN = "open_1_lane_1_number_1"
# Of so many events that one process holds, the oldest is looked for, and so many later ones are looked at.
_MOST = 10_000


# The time of a raised event is that of its cause, which may be long ago: it says nothing of how long it has waited.
_COMMITTED_AT: Document = {"$cond": [{"$gt": ["$key", None]}, None, "$at"]}
STATES = ("queued", "sending", "retrying")


class Open(NamedTuple):
    """The number of rows, and when the oldest was made."""

    rows: int
    oldest: datetime


async def deliveries(mongo: Mongo) -> Mapping[str, Open]:
    """The open deliveries by their state."""
    pipeline: list[Document] = [
        {"$match": {"open": True}},
        {"$group": {"_id": "$state", "count": {"$sum": 1}, "oldest": {"$min": "$created_at"}}},
    ]
    rows = await mongo.aggregate(delivery_rows(mongo), pipeline, hint=_OF_OPEN)
    return {row["_id"]: Open(row["count"], row["oldest"]) for row in rows}


async def events(mongo: Mongo) -> Open | None:
    """The events that no process has matched yet; None where there is none."""
    pipeline: list[Document] = [
        {"$match": {"state": "pending"}},
        {"$group": {"_id": None, "count": {"$sum": 1}, "oldest": {"$min": _COMMITTED_AT}}},
    ]
    rows = await mongo.aggregate(event_rows(mongo), pipeline, hint=_OF_PENDING)
    return Open(rows[0]["count"], rows[0]["oldest"] or mongo.now()) if rows else None


async def stuck_since(mongo: Mongo, owner: str, before: datetime) -> datetime | None:
    """Since when a process has matched none of its events; None where its oldest is younger than `before`.

    One event that fails while later ones are matched is a record's own trouble, and no sign that matching stands still.
    """
    own: Document = {"owner": owner, "state": "pending", "key": {"$exists": False}}
    pipeline: list[Document] = [
        {"$match": own},
        {"$limit": _MOST},
        {"$sort": {"_id": 1}},
        {"$limit": 1},
        {"$project": {"at": 1}},
    ]
    found = await mongo.aggregate(event_rows(mongo), pipeline, hint=_OF_PENDING)
    if not found or found[0]["at"] > before:
        return None
    later: list[Document] = [
        {"$match": {"_id": {"$gt": found[0]["_id"]}}},
        {"$sort": {"_id": 1}},
        {"$limit": _MOST},
        {"$match": {"owner": owner, "state": "done"}},
        {"$limit": 1},
    ]
    matched = await mongo.aggregate(event_rows(mongo), later)
    since: datetime = found[0]["at"]
    return None if matched else since
