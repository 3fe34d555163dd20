"""Order and numbers under many writers, several processes' worth of workers and an endpoint that fails at random."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies as st

from app.runtime.mongo import Mongo
from app.store.store import Store
from app.subscriptions.sending.worker import Worker
from tests.builders.deliveries import create, rows, update, working
from tests.builders.receiver import Received, Receiver, receiving
from tests.builders.subscriptions import classic, encounter
from tests.conftest import make_settings

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

WRITERS, VERSIONS = 10, 4
# How long nothing may move, and one example may take; a run that goes wrong is made twice.
STILL_SECONDS, MOST_SECONDS = 15.0, 40.0


async def hurry(mongo: Mongo) -> None:
    """Let the time of retries come; what is being sent is left alone, or it would be sent twice."""
    await mongo.collection("deliveries").update_many(
        {"open": True, "state": {"$ne": "sending"}}, {"$set": {"next_at": mongo.now()}}
    )


async def in_time(what: str, step: Awaitable[object]) -> None:
    try:
        async with asyncio.timeout(STILL_SECONDS):
            await step
    except TimeoutError:
        pytest.fail(f"{what}: not within {STILL_SECONDS:.0f} s")


@asynccontextmanager
async def at_work(mongo: Mongo, stores: Sequence[Store]) -> AsyncIterator[list[Worker]]:
    """A worker for each store; one that does not end must not keep the test from saying what was wrong."""
    stack = AsyncExitStack()
    try:
        yield [await stack.enter_async_context(working(mongo, store)) for store in stores]
    finally:
        await in_time("the workers stop", stack.aclose())


async def settled(mongo: Mongo, workers: Sequence[Worker], receiver: Receiver) -> None:
    """Return once every event is recorded and every notice is settled. Fails with what is left where nothing moves."""
    now = asyncio.get_running_loop().time
    begun = moved = now()
    seen: object = None
    while True:
        waiting = [row for row in await rows(mongo) if "open" in row]
        pending = [await worker.outbox.pending_count() for worker in workers]
        if not waiting and not any(pending):
            return
        found = (len(waiting), pending, len(receiver.requests))
        if found != seen:
            seen, moved = found, now()
        if now() - moved > STILL_SECONDS or now() - begun > MOST_SECONDS:
            pytest.fail(f"not recorded: {pending} events; not settled: {shown(waiting)}")
        await hurry(mongo)
        await asyncio.sleep(0.1)


def shown(ledger: Sequence[dict[str, Any]]) -> list[str]:
    """Rows by number, lane, version, state and attempt."""
    return [
        f"#{row['number']} {row['lane']} v{row['focus']['version']} {row['state']} {row['attempt']}"
        for row in ledger
    ]


@given(
    seed=st.integers(0, 2**32),
    workers=st.integers(1, 3),
    failures=st.floats(0.0, 0.5),
    patients=st.integers(1, 6),
)
@settings(
    max_examples=3,
    deadline=None,
    # What goes wrong depends on the moment: shrinking would only repeat it.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
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

    async with receiving() as receiver, at_work(mongo, stores) as live:
        await create(stores[0], classic("Encounter?", receiver.url, "application/fhir+json"))
        await in_time("the Subscription is active", live[0].drain())
        for worker in live[1:]:
            await worker.registry.refresh()
        receiver.answer = answer
        await in_time("all is written", asyncio.gather(*(write(n) for n in range(WRITERS))))
        receiver.answer = lambda _: 200
        await settled(mongo, live, receiver)
    ledger = await rows(mongo)
    await mongo.close()
    numbers = [row["number"] for row in ledger]
    assert numbers == list(range(1, WRITERS * VERSIONS + 1)), shown(ledger)
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
