"""What becomes of rows after an attempt, and how that is written down: in bulk, guarded by who holds the row.

Rows that were delivered, nearly all, are written by one update that finds the record of each row's attempt in a list.
A bulk of single updates costs MongoDB twice as much for each row, since it plans each and notes each as one that may be
sent again, and the driver twice as much to send.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from pymongo import UpdateOne

from app.runtime.mongo import Collection, Document
from app.subscriptions.ledger.ledger import Delivery, State

# Of rows that are settled for good these say nothing any more.
_OF_OPEN_ROWS = ("open", "next_at", "owner", "claim")
# The answers that the records hold must fit into one command (16 MiB).
_AT_ONCE = 500


class Settlement(NamedTuple):
    """What becomes of a row after an attempt, or without one; `attempt` is the record of it that is kept.

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


async def settle(deliveries: Collection, settlements: Sequence[Settlement]) -> int:
    """Write down what came of attempts; one that lost its lease changes nothing. Returns how many had not."""
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
