"""Order and numbers under many writers, several processes' worth of workers and an endpoint that fails at random."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import defaultdict

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from app.runtime.mongo import Mongo
from app.store.store import Store
from tests.builders.deliveries import create, rows, update, working
from tests.builders.receiver import Received, receiving
from tests.builders.subscriptions import classic, encounter
from tests.conftest import make_settings

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

WRITERS, VERSIONS = 10, 4


async def hurry(mongo: Mongo) -> None:
    """Let the time of retries come; what is being sent is left alone, or it would be sent twice."""
    await mongo.collection("deliveries").update_many(
        {"open": True, "state": {"$ne": "sending"}}, {"$set": {"next_at": mongo.now()}}
    )


@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 3),
    failures=st.floats(0.0, 0.5),
    patients=st.integers(1, 6),
)
@settings(
    max_examples=3,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_newer_versions_never_go_out_before_older_ones(
    mongod: str, seed: int, workers: int, failures: float, patients: int
) -> None:
    """Ten writers, each with an Encounter of its own that changes three times; any attempt may fail."""
    random_ = random.Random(seed)
    mongo = await Mongo.open(make_settings(mongod))
    stores = [Store(mongo) for _ in range(workers)]
    await stores[0].prepare()

    def answer(_: Received) -> int:
        return 503 if random_.random() < failures else 200

    async def write(number: int) -> None:
        store = stores[number % workers]
        patient = f"p{number % patients}"
        stored = await create(store, encounter(patient=patient), f"e{number}-{uuid.uuid4().hex}")
        for version in range(2, VERSIONS + 1):
            await asyncio.sleep(random_.random() * 0.01)
            stored = await update(store, stored, period={"start": f"2026-01-0{version}"})

    async with receiving() as receiver:
        running = [working(mongo, store) for store in stores]
        live = [await each.__aenter__() for each in running]
        try:
            await create(stores[0], classic("Encounter?", receiver.url, "application/fhir+json"))
            await live[0].drain()
            for worker in live[1:]:
                await worker.registry.refresh()
            receiver.answer = answer
            await asyncio.gather(*(write(number) for number in range(WRITERS)))
            receiver.answer = lambda _: 200
            async with asyncio.timeout(60):
                while any("open" in row for row in await rows(mongo)) or not all(
                    [await worker.outbox.pending_count() == 0 for worker in live]
                ):
                    await hurry(mongo)
                    await asyncio.sleep(0.1)
        finally:
            for each in running:
                await each.__aexit__(None, None, None)
    ledger = await rows(mongo)
    await mongo.client.drop_database(mongo.db.name)
    await mongo.close()
    assert [row["number"] for row in ledger] == list(range(1, WRITERS * VERSIONS + 1))
    versions: dict[str, list[int]] = defaultdict(list)
    for row in ledger:
        versions[row["focus"]["id"]].append(row["focus"]["version"])
    assert all(found == list(range(1, VERSIONS + 1)) for found in versions.values())
    sent: dict[str, list[int]] = defaultdict(list)
    for received in receiver.requests:
        sent[received.json["id"]].append(int(received.json["meta"]["versionId"]))
    for found in sent.values():
        assert found == sorted(found)
        assert set(found) == set(range(1, VERSIONS + 1))
