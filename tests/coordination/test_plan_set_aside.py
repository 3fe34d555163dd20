"""A notice about a care plan that cannot be made does not silence its plan for ever, nor other plans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from pymongo.errors import ConnectionFailure

from app.coordination.care_plans import plan_notices
from app.coordination.care_plans.plan_notices import MOST_TRIES
from tests.builders.care_plans import BASE, Desk, Pair, desk, plan, trigger, words
from tests.conftest import make_settings, running

pytestmark = pytest.mark.mongo

# More than the document may hold: it has the plan in it, and a text about it.
TOO_LONG = "A long story. " * 3_000


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[Pair]:
    settings = make_settings(mongod, base_url=BASE, test_clock=True, max_resource_bytes=65_536)
    async with running(settings) as pair:
        yield pair


async def try_again(at: Desk) -> None:
    """Whatever was put off is due."""
    past = at.server.mongo.now() - timedelta(seconds=1)
    await at.server.mongo.collection("timers").update_many(
        {"taken_until": {"$exists": True}}, {"$set": {"taken_until": past}}
    )
    await at.settle()


async def reviews(at: Desk) -> list[dict[str, Any]]:
    found = await at.get(f"/Task?focus={at.ref('CarePlan/plan')}")
    tasks = [entry["resource"] for entry in found.get("entry", ())]
    return [each for each in tasks if each["code"]["coding"][0]["code"] == "plan-not-told"]


@pytest.mark.slow
async def test_a_notice_that_cannot_be_made_is_set_aside_and_the_next_one_goes_out(
    at: Desk,
) -> None:
    await at.begin(description=TOO_LONG)
    assert at.receiver.events == []
    await at.put(plan(description="A short one."))
    for _ in range(MOST_TRIES - 2):
        await try_again(at)
    assert await reviews(at) == [], "it is tried for a while first"
    for _ in range(2):
        await try_again(at)
    (notice,) = at.receiver.events
    assert trigger(notice) == "created"
    (task,) = await reviews(at)
    assert task["status"] == "requested"
    row = await at.server.mongo.collection("plan_notices").find_one({"_id": at.ref("plan")})
    assert [each["number"] for each in row["set_aside"]] == [1]

    await at.put(plan("on-hold", description="A short one."))
    _, changed = await at.after(seconds=900)
    assert words(changed) == "The care plan is on-hold (was active)."
    assert len(await reviews(at)) == 1


@pytest.mark.slow
async def test_it_holds_up_no_other_plan(pair: Pair, at: Desk) -> None:
    await at.begin(description=TOO_LONG)
    async with desk(pair) as other:
        await other.begin()
        assert [trigger(each) for each in other.receiver.events] == ["created"]
    assert at.receiver.events == []


async def test_a_database_that_is_away_counts_as_no_try(
    at: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise ConnectionFailure("away")

    with monkeypatch.context() as patched:
        patched.setattr(plan_notices, "_send", away)
        await at.begin()
        for _ in range(MOST_TRIES + 2):
            await try_again(at)
        row = await at.server.mongo.collection("plan_notices").find_one({"_id": at.ref("plan")})
        assert "tries" not in row["pending"]
    await try_again(at)
    assert [trigger(each) for each in at.receiver.events] == ["created"]
    assert await reviews(at) == []
