"""The settlement of rows after an attempt: written in bulk, guarded by the row's owner and attempt.

Rows that were delivered, nearly all, are written by one update that finds the record of each row's attempt in a list. A
bulk of single updates costs MongoDB twice as much for each row, since it plans each and records each as a retryable
write, and the driver twice as much to send.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from pymongo import UpdateOne

from app.runtime.mongo import Collection as MongoCollection, Document
from app.subscriptions.ledger.ledger import MISSED_NEW, OF_OPEN_ROWS, PUBLISH_NOW, Delivery, State

# The answers that the records hold must fit into one command (16 MiB).
_AT_ONCE = 500


class Settlement(NamedTuple):
    """The new state of a row after an attempt, or without one; `attempt` is the record of it to store.

    With a time of its next attempt the row stays open. Without a record its attempt was never made, and does not count.
    `rejected_at`: since when it has been rejected at each attempt. `is_missed`: it ends with its Subscription, and
    somebody may still be to be told (missed_rows.py).
    """

    delivery: Delivery
    state: State
    next_at: datetime | None = None
    attempt: Document | None = None
    reason: str = ""
    rejected_at: datetime | None = None
    is_missed: bool = False

    @property
    def is_final(self) -> bool:
        return self.next_at is None


def put_back(delivery: Delivery, next_at: datetime) -> Settlement:
    """The settlement of a claimed row whose attempt is not to be made now: as if it had never been taken."""
    return Settlement(delivery, "queued" if delivery.attempt == 1 else "retrying", next_at)


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
    values = {
        "state": "delivered",
        "attempts": {"$concatArrays": ["$attempts", [record]]},
        "publish": PUBLISH_NOW,
    }
    return [{"$set": values}, {"$unset": list(OF_OPEN_ROWS)}]


def _settled(entry: Settlement) -> Document:
    values: Document = {"state": entry.state}
    if entry.reason:
        values["reason"] = entry.reason
    if entry.is_missed:
        values["missed"] = MISSED_NEW
    update: Document = {"$set": values}
    if entry.is_final:
        update["$unset"] = dict.fromkeys(OF_OPEN_ROWS, "")
        # At once; or by itself, where it was not looked at yet.
        update["$min"] = {"publish": entry.delivery.created_at}
    else:
        values["next_at"] = entry.next_at
    if entry.attempt is not None:
        update["$push"] = {"attempts": entry.attempt}
        if not entry.is_final and entry.rejected_at != entry.delivery.rejected_at:
            values["rejected_at"] = entry.rejected_at
    elif not entry.is_final:
        update["$inc"] = {"attempt": -1}
        if entry.delivery.attempt == 1:
            values["first_at"] = None
    return update
