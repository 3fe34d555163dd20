"""Deliveries as servers of format 1 kept them: taken over when the database goes to format 2, and beside it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from app.runtime.mongo import Document, Mongo
from app.settings import Settings
from app.store import format
from app.store.store import Store
from app.subscriptions.ledger.ledger import BEHIND, WAITING
from tests.builders.deliveries import create, rows, working
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import encounter, topic_based

pytestmark = [pytest.mark.mongo, pytest.mark.slow]


async def as_format_1(mongo: Mongo, row: Document, number: int, **changes: Any) -> None:
    """A copy of a row in the old shape: whatever it waits for, it has a time at which to look again."""
    other = {**row, "_id": f"old-{number}", "event": f"e{number}", "number": number}
    other |= {"next_at": mongo.now() - timedelta(seconds=1), "owner": "", "attempt": 0}
    other |= {"attempts": [], "first_at": None, "state": "queued", "open": True, **changes}
    await mongo.collection("deliveries").insert_one(other)


async def test_what_an_older_server_left_is_brought_forward_and_sent(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    deliveries = mongo.collection("deliveries")
    async with working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url))
        await worker.run_once()
        await create(store, encounter(patient="p1"))
        await worker.drain()
    (row,) = await rows(mongo)
    for index in ("next_at_1_subscription_1_state_1_number_1", "open_1_lane_1_number_1"):
        await deliveries.drop_index(index)
    open_rows: Any = {"partialFilterExpression": {"open": True}}
    await deliveries.create_index([("next_at", 1)], **open_rows)
    await deliveries.create_index([("lane", 1), ("number", 1)], **open_rows)
    # Two of one lane, of which the second waits for the first; one that was settled with a time; one that is sent.
    await as_format_1(mongo, row, 2)
    await as_format_1(mongo, row, 3)
    await as_format_1(mongo, row, 4, state="suppressed", reason="x", lane="s|q")
    await deliveries.update_one({"_id": "old-4"}, {"$unset": {"open": ""}})
    await mongo.collection("settings").update_one(
        {"_id": "format"},
        {"$set": {"format": 1, "oldest": 1, "steps": [format.STEPS[0].name]}},
        upsert=True,
    )
    await format.prepare(mongo, Settings())
    marker = await mongo.collection("settings").find_one({"_id": "format"})
    assert (marker["format"], marker["oldest"]) == (format.FORMAT, 1)
    assert "next_at" not in (await deliveries.find_one({"_id": "old-4"}))
    indexes = await deliveries.index_information()
    assert not indexes.keys() & {"next_at_1", "lane_1_number_1"}
    async with working(mongo, store, loops=False) as worker:
        for _ in range(3):
            await worker.run_once()
    assert [each.number for each in receiver.events] == [1, 2, 3]


def test_what_waits_is_due_for_an_older_server(mongo: Mongo) -> None:
    """It takes the first of a lane and puts the others off, as it does its own: so the way back loses nothing."""
    assert mongo.now() > BEHIND > WAITING
