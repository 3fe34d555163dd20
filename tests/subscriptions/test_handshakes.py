"""Who sends a handshake: one process at a time, the next where that one dies, and nobody for good."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from app.runtime.leases import BackOff
from app.runtime.mongo import Mongo
from app.store.store import Store
from app.subscriptions.channels import AttemptOutcome, Notice
from app.subscriptions.sending import lifecycle, worker as worker_module
from app.subscriptions.sending.worker import Worker
from tests.builders.deliveries import SETTINGS, create, status_of, update
from tests.builders.subscriptions import topic_based
from tests.builders.worker import make_worker
from tests.conftest import make_settings

pytestmark = pytest.mark.mongo
TAKEN = AttemptOutcome(200)


@pytest.fixture
async def mongo(mongod: str) -> AsyncIterator[Mongo]:
    """A fresh database. What takes long here is time that has to pass, whichever the driver."""
    mongo = await Mongo.open(make_settings(mongod))
    yield mongo
    await mongo.close()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops does not wait long for endpoints that never answer."""
    monkeypatch.setattr(worker_module, "_PATIENCE", 0.2)


class Endpoint:
    """A channel whose far side answers as the test says, and as late."""

    def __init__(self, answer: Callable[[], Awaitable[AttemptOutcome]]) -> None:
        self.answer = answer
        self.begun = asyncio.Event()
        self.asked = 0

    async def send(self, _: Notice) -> AttemptOutcome:
        self.asked += 1
        self.begun.set()
        return await self.answer()

    async def close(self) -> None:
        """Nothing is open."""


async def taken() -> AttemptOutcome:
    return TAKEN


async def never() -> AttemptOutcome:
    await asyncio.sleep(60)
    return TAKEN


@asynccontextmanager
async def working(mongo: Mongo, store: Store, endpoint: Endpoint) -> AsyncIterator[Worker]:
    """A process that does something only when it commits, and when it is told to."""
    worker = make_worker(SETTINGS, mongo, store, channels={"rest-hook": endpoint})
    await store.cluster.beat()
    await worker.start(loops=False)
    yield worker
    await worker.stop()


async def handshake(mongo: Mongo) -> dict[str, Any]:
    row = await mongo.collection("subscription_state").find_one({})
    found: dict[str, Any] = row["handshake"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 3600], ids=["same-clock", "an-hour-ahead"])
async def test_a_slow_handshake_is_sent_once(
    mongo: Mongo, store: Store, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """It takes twice as long as its lease."""
    monkeypatch.setattr(lifecycle, "_LEASE", timedelta(seconds=1))

    async def slowly() -> AttemptOutcome:
        await asyncio.sleep(2)
        return TAKEN

    slow, other = Endpoint(slowly), Endpoint(taken)
    elsewhere = Store(mongo)
    async with working(mongo, store, slow) as here, working(mongo, elsewhere, other) as there:
        stored = await create(store, topic_based())
        await slow.begun.wait()
        assert mongo._clock_offset is not None
        mongo._clock_offset += ahead
        sent = asyncio.create_task(here.drain())
        while not sent.done():
            await there.run_once()
            await asyncio.sleep(0.02)
        mongo._clock_offset -= ahead
        assert await status_of(store, stored.id) == ("active", None)
    assert (slow.asked, other.asked) == (1, 0)
    assert (await handshake(mongo))["attempt"] == 1


@pytest.mark.slow
async def test_who_lost_a_handshake_says_nothing_of_it(mongo: Mongo, store: Store) -> None:
    """Its endpoint refused, but another process has taken over, and that one is taken."""
    go_on = asyncio.Event()

    async def refused() -> AttemptOutcome:
        await go_on.wait()
        return AttemptOutcome(500)

    late, well = Endpoint(refused), Endpoint(never)
    elsewhere = Store(mongo)
    async with working(mongo, store, late) as here, working(mongo, elsewhere, well) as there:
        stored = await create(store, topic_based())
        await late.begun.wait()
        await there._lifecycle.take_from(store.owner)
        sending = asyncio.create_task(there.run_once())
        await well.begun.wait()
        go_on.set()
        await here.drain()
        assert await status_of(store, stored.id) == ("requested", None)
        sending.cancel()
    assert (late.asked, well.asked) == (1, 1)


@pytest.mark.slow
async def test_a_newer_version_begins_anew_beside_the_older(mongo: Mongo, store: Store) -> None:
    endpoint = Endpoint(never)
    async with working(mongo, store, endpoint) as worker:
        first = await create(store, topic_based())
        await endpoint.begun.wait()
        endpoint.answer = taken
        endpoint.begun.clear()
        await update(store, first, reason="Another")
        await endpoint.begun.wait()
        async with asyncio.timeout(10):
            while not (await handshake(mongo)).get("done"):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        assert (await status_of(store, first.id))[0] == "active"
        row = await handshake(mongo)
        assert (row["version"], row["attempt"], endpoint.asked) == (2, 2, 2)
        await worker.stop()
    assert await handshake(mongo) == {**row, "done": True}, "the older changes nothing"


@pytest.mark.slow
async def test_a_process_that_stops_leaves_its_handshake_to_others(
    mongo: Mongo, store: Store
) -> None:
    stuck, well = Endpoint(never), Endpoint(taken)
    elsewhere = Store(mongo)
    async with working(mongo, elsewhere, well) as there:
        async with working(mongo, store, stuck):
            stored = await create(store, topic_based())
            await stuck.begun.wait()
        await there.run_once()
        await there.run_once()
        assert (await status_of(store, stored.id))[0] == "active"


@pytest.mark.parametrize("killed", [False, True])
async def test_a_handshake_that_cannot_be_sent_ends_in_error(
    mongo: Mongo, store: Store, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """A defect of ours, or one that ends the process each time: the client sees that nothing came of it."""
    monkeypatch.setattr(lifecycle, "_BACK_OFF", BackOff(timedelta(), timedelta(), most=3))

    async def defect() -> AttemptOutcome:
        raise RuntimeError("planted")

    endpoint = Endpoint(defect)
    async with working(mongo, store, endpoint) as worker:
        stored = await create(store, topic_based())
        await worker.drain()
        if killed:
            dead = {"handshake.owner": "dead", "handshake.tries": 3}
            await mongo.collection("subscription_state").update_one({}, {"$set": dead})
        for _ in range(2):
            assert (await status_of(store, stored.id))[0] == "requested"
            await worker.run_once()
            if killed:
                break
        assert await status_of(store, stored.id) == ("error", "The handshake could not be sent")
    assert endpoint.asked == (1 if killed else 3)
    assert (await handshake(mongo))["done"]


async def test_a_handshake_of_an_older_server_is_gone_on_with(mongo: Mongo, store: Store) -> None:
    """That one has died in it, and kept no attempts."""
    stored = await create(store, topic_based())
    until = mongo.now() - timedelta(seconds=1)
    begun = {"version": stored.version, "owner": "old", "lease_until": until}
    await mongo.collection("subscription_state").insert_one(
        {"_id": stored.id, "number": 7, "handshake": begun}
    )
    endpoint = Endpoint(taken)
    async with working(mongo, store, endpoint) as worker:
        await worker.run_once()
        assert await status_of(store, stored.id) == ("active", None)
    assert endpoint.asked == 1
