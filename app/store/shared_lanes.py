"""The step that puts open deliveries into the lanes that Subscriptions kept for one Endpoint share.

deliveries   of open rows of such Subscriptions, `lane`: `~<practice>~<Endpoint>~<matter>|<subject>` in place
             of `<Subscription>|<subject>`; `sequence`: what is before the bar; `turn`: their number in it

Servers up to format 3 had a lane for each Subscription and patient.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import msgspec
from pymongo import ASCENDING, DESCENDING, IndexModel, UpdateOne
from pymongo.errors import BulkWriteError

from app.runtime.mongo import Collection, Document

_KEPT = "_tag=http://carerelay.example/CodeSystem/subscription-origin|endpoint"
_OWNER = "http://carerelay.example/CodeSystem/subscription-owner"
_ENDPOINT = "http://carerelay.example/StructureDefinition/subscription-endpoint"
_HAS_TURN: Document = {"turn": {"$gte": 1}}
_AT_ONCE = 1_000
_DUPLICATE_KEY = 11000
# In the URLs of the topics that watch visits.
_VISITS = "/encounter-"

_decoder = msgspec.json.Decoder(dict[str, Any])


async def share(subscriptions: Collection, deliveries: Collection) -> None:
    """Give the open rows a turn each, such that those of one Subscription stay in the order of their numbers."""
    await deliveries.create_indexes(
        [
            IndexModel(
                [("sequence", ASCENDING), ("turn", ASCENDING)],
                unique=True,
                partialFilterExpression=_HAS_TURN,
            )
        ]
    )
    kept: dict[str, list[str]] = {}
    async for row in subscriptions.find({"terms": _KEPT, "deleted": None}, {"text": 1}):
        if (sequence := _sequence(_decoder.decode(row["text"]))) is not None:
            kept.setdefault(sequence, []).append(row["_id"])
    for sequence, ids in kept.items():
        await _share(deliveries, sequence, ids)


def _sequence(subscription: Mapping[str, Any]) -> str | None:
    tags = subscription.get("meta", {}).get("tag", ())
    owner = next((tag.get("code") for tag in tags if tag.get("system") == _OWNER), None)
    extensions = subscription.get("extension", ())
    endpoint = next(
        (each["valueReference"]["reference"] for each in extensions if each["url"] == _ENDPOINT),
        None,
    )
    matter = "visits" if _VISITS in str(subscription.get("criteria", "")) else "records"
    return f"~{owner}~{endpoint}~{matter}" if owner and endpoint else None


async def _share(deliveries: Collection, sequence: str, ids: list[str]) -> None:
    left: Document = {
        "subscription": {"$in": ids},
        "open": True,
        "turn": None,
        "number": {"$gte": 1},
    }
    fields = {"subscription": 1, "number": 1, "created_at": 1, "lane": 1}
    by_number = [("subscription", ASCENDING), ("number", ASCENDING)]
    while rows := await deliveries.find(left, fields).sort(by_number).to_list(None):
        last = await deliveries.find_one(
            {"sequence": sequence, **_HAS_TURN}, {"turn": 1}, sort=[("turn", DESCENDING)]
        )
        updates = list(_updates(rows, sequence, last["turn"] if last else 0))
        for begin in range(0, len(updates), _AT_ONCE):
            try:
                await deliveries.bulk_write(updates[begin : begin + _AT_ONCE])
            except BulkWriteError as error:
                # Another process takes the same step: what is left is looked at again.
                if error.details["writeErrors"][0]["code"] != _DUPLICATE_KEY:
                    raise
                break


def _updates(rows: Iterable[Document], sequence: str, last: int) -> Iterator[UpdateOne]:
    """The updates that give rows the next turns; `rows` come in the order of their Subscriptions' numbers."""
    # No row before one of its own Subscription with a smaller number, whatever the clocks of its makers said.
    latest: dict[str, Any] = {}
    timed = []
    for row in rows:
        at = max(row["created_at"], latest.get(row["subscription"], row["created_at"]))
        latest[row["subscription"]] = at
        timed.append((at, row["number"], row))
    for turn, (_, _, row) in enumerate(sorted(timed, key=lambda each: each[:2]), last + 1):
        subject = row["lane"].partition("|")[2]
        change = {"lane": f"{sequence}|{subject}", "sequence": sequence, "turn": turn}
        yield UpdateOne({"_id": row["_id"], "turn": None}, {"$set": change})
