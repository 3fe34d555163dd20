"""How many Subscriptions a client may have: counted by client, however they are written."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.builders.access_world import world as a_world
from tests.builders.subscriptions import topic_based
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

MOST = 3


def subscription(id_: str, **more: Any) -> dict[str, Any]:
    return {**topic_based(), "id": id_, **more}


async def test_a_client_has_so_many_subscriptions(mongod: str) -> None:
    async with a_world(mongod, max_subscriptions_per_client=MOST) as world:
        await world.put("north", *(subscription(f"n{number}") for number in range(MOST)))
        refused = await world.ask("north", "PUT", "/Subscription/n3", subscription("n3"))
        outcome = assert_outcome(refused, 403, "too-costly")
        assert f"may have {MOST} Subscriptions" in outcome["issue"][0]["diagnostics"]
        # Others have their own, and so has an administrator; what is there can be changed, and off counts for nothing.
        await world.put("south", subscription("s0"))
        await world.put("admin", *(subscription(f"a{number}") for number in range(MOST + 1)))
        await world.put(
            "north", subscription("n0", reason="Others"), subscription("n4", status="off")
        )
        await world.put("north", subscription("n1", status="off"), subscription("n3"))
        assert (
            await world.ask("north", "PUT", "/Subscription/n1", subscription("n1"))
        ).status_code == 403


async def test_a_transaction_brings_no_more(mongod: str) -> None:
    async with a_world(mongod, max_subscriptions_per_client=MOST) as world:
        assert (await world.ask("north", "POST", "", bundle(MOST + 1))).status_code == 403
        assert await world.found("north", "/Subscription") == []
        assert (await world.ask("north", "POST", "", bundle(MOST))).status_code == 200


async def test_writes_at_the_same_moment_bring_no_more(mongod: str) -> None:
    async with a_world(mongod, max_subscriptions_per_client=MOST) as world:
        posts = (world.ask("north", "POST", "/Subscription", topic_based()) for _ in range(12))
        answers = await asyncio.gather(*posts)
        assert sorted(each.status_code for each in answers) == [201] * MOST + [403] * (12 - MOST)
        assert len(await world.found("north", "/Subscription")) == MOST


def bundle(count: int) -> dict[str, Any]:
    request = {"method": "POST", "url": "Subscription"}
    entries = [{"resource": topic_based(), "request": request} for _ in range(count)]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}
