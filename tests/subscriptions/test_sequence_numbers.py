"""The numbers of a Subscription's events go on where another process has left them, and are kept beside the rows."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from bson import ObjectId

from app.runtime.mongo import Mongo
from app.subscriptions.ledger.sequence_numbers import SequenceNumbers, advance

pytestmark = pytest.mark.mongo

DUE = datetime(2026, 11, 21, 15, 0, tzinfo=UTC)
# What the other driver does is no different here.
one_driver = pytest.mark.parametrize("mongo", ["pymongo"], indirect=True)


@one_driver
async def test_numbers_are_read_anew_for_a_while_once_another_process_was_faster(
    mongo: Mongo,
) -> None:
    now = [100.0]
    numbers = SequenceNumbers(mongo, clock=lambda: now[0])

    async def told(number: int) -> int:
        """The last number that is known, once another process has given this one."""
        row = {"_id": f"r{number}", "subscription": "s", "event": ObjectId(), "lane": "s|"}
        row["number"] = number
        await mongo.collection("deliveries").insert_one(row)
        return (await numbers.learn(["s"]))["s"].number

    assert await told(1) == 1
    assert await told(2) == 1, "what is known is not read for each event"
    assert not numbers.shared
    numbers.refused()
    assert numbers.shared
    assert [await told(3), await told(4)] == [3, 4]
    now[0] += 3600
    assert not numbers.shared
    assert [await told(5), await told(6)] == [4, 4]


@one_driver
async def test_a_counter_never_goes_back_and_a_heartbeat_is_put_off_where_there_are_any(
    mongo: Mongo,
) -> None:
    states = mongo.collection("subscription_state")

    async def kept() -> dict[str, tuple[int, datetime | None]]:
        rows = await states.find({}).to_list(None)
        return {row["_id"]: (row["number"], row.get("heartbeat_at")) for row in rows}

    await advance(states, {"quiet": (3, None), "beating": (5, DUE)})
    assert await kept() == {"quiet": (3, None), "beating": (5, DUE)}
    assert not await states.find_one({"_id": "quiet", "heartbeat_at": {"$exists": True}})
    await advance(states, {"quiet": (2, None), "beating": (4, None)})
    assert await kept() == {"quiet": (3, None), "beating": (5, DUE)}
    await advance(states, {"quiet": (4, None)})
    assert (await kept())["quiet"] == (4, None)
