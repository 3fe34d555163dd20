"""What a dead process held is taken over within seconds; one that is only unheard is given time."""

from __future__ import annotations

from datetime import timedelta

import pytest

from app.mongo import Mongo
from app.store import Store
from app.subscriptions.processes import BEAT_EVERY, SILENCE, Processes
from tests.subscription_builders import encounter, topic_based
from tests.subscription_receiver import receiving
from tests.test_subscription_delivery import create, rows, working

pytestmark = pytest.mark.mongo


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


async def nothing(*_: object) -> None:
    """Nobody dies here."""


async def silence(mongo: Mongo, owner: str) -> None:
    """Let a process have been silent for too long."""
    await mongo.collection("processes").update_one(
        {"_id": owner},
        {"$set": {"alive_until": mongo.now() - timedelta(seconds=1)}},
        upsert=True,
    )


async def test_a_silent_process_is_taken_over_once(mongo: Mongo) -> None:
    taken: list[str] = []

    async def take_over(owner: str, _: object) -> None:
        taken.append(owner)

    clock = Clock()
    here = Processes(mongo, "here", clock)
    await here.beat(take_over)
    assert here.alone
    await Processes(mongo, "there", clock).beat(nothing)
    clock.time += BEAT_EVERY
    assert await here.beat(take_over) == []
    assert not here.alone
    await silence(mongo, "there")
    clock.time += BEAT_EVERY
    assert await here.beat(take_over) == ["there"]
    clock.time += BEAT_EVERY
    assert await here.beat(take_over) == []
    assert taken == ["there"]
    assert here.alone


async def test_after_a_gap_of_its_own_a_process_gives_others_time(mongo: Mongo) -> None:
    clock = Clock()
    here = Processes(mongo, "here", clock)
    await here.beat(nothing)
    await silence(mongo, "there")
    clock.time += SILENCE.total_seconds() + 1
    assert await here.beat(nothing) == []
    clock.time += BEAT_EVERY
    assert await here.beat(nothing) == []
    for _ in range(10):
        clock.time += BEAT_EVERY
        await here.beat(nothing)
    assert await mongo.collection("processes").distinct("_id") == ["here"]


async def test_what_a_silent_process_had_in_hand_is_sent_by_another(
    mongo: Mongo, store: Store
) -> None:
    """Its event, still unrecorded, and its row, under way with a lease of minutes."""
    dead = Store(mongo)
    async with receiving() as receiver, working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url))
        await worker.run_once()
        await create(store, encounter(patient="p1"))
        await worker.drain()
        await mongo.collection("deliveries").update_many(
            {},
            {
                "$set": {
                    "state": "sending",
                    "open": True,
                    "owner": dead.owner,
                    "next_at": mongo.now() + timedelta(minutes=2),
                }
            },
        )
        await create(dead, encounter(patient="p2"))
        await worker.run_once()
        assert len(receiver.events) == 1
        await silence(mongo, dead.owner)
        await worker.processes.beat(worker._take_over)
        while len(receiver.events) != 3:
            await worker.run_once()
            await worker.processes.beat(worker._take_over)
    assert sorted(each.number for each in receiver.events) == [1, 1, 2]
    assert {row["state"] for row in await rows(mongo)} == {"delivered"}
