"""Whoever is to be told is told, whichever process learnt of it late and whoever the patient's practice is by then."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from app.runtime.mongo import Mongo
from app.store.store import Store
from app.subscriptions.sending.worker import Worker
from tests.builders.deliveries import create, make_due, rows, update, working
from tests.builders.practices import organization, patient, practitioner, put, ref, role
from tests.builders.receiver import Receiver, receiving
from tests.builders.subscriptions import classic, encounter, topic_based
from tests.conftest import Server, make_settings, running
from tests.processes import environment, started

pytestmark = pytest.mark.mongo

Pair = tuple[Server, httpx.AsyncClient]


@pytest.fixture
async def one(mongod: str) -> AsyncIterator[Mongo]:
    mongo = await Mongo.open(make_settings(mongod))
    yield mongo
    await mongo.close()


@asynccontextmanager
async def two_processes(mongo: Mongo) -> AsyncIterator[tuple[Store, Store, Worker, Worker]]:
    """Two server processes on the database, without loops: each learns of the other when it is told to look."""
    first, other = Store(mongo), Store(mongo)
    await first.prepare()
    async with (
        working(mongo, first, loops=False) as worker,
        working(mongo, other, loops=False) as late,
    ):
        yield first, other, worker, late


@pytest.mark.slow
async def test_a_subscription_is_told_what_another_process_recorded_before_it_knew_it(
    one: Mongo, receiver: Receiver
) -> None:
    async with two_processes(one) as (first, other, worker, late):
        before = await create(other, encounter())
        await late.drain()
        await asyncio.sleep(0.6)  # past what clocks may differ by
        stored = await create(first, classic("Encounter?", receiver.url))
        versions = [await create(other, encounter())]
        versions.append(await update(other, versions[0], status="finished"))
        await create(other, {**encounter(), "resourceType": "Basic", "code": {"text": "x"}})
        await late.drain()
        assert await rows(one) == []
        await late.run_once()
        third = await update(other, versions[1], status="onleave")
        await late.drain()
        told = [(row["focus"]["id"], row["focus"]["version"]) for row in await rows(one)]
        assert told == [(third.id, 1), (third.id, 2), (third.id, 3)]
        assert before.id not in {id_ for id_, _ in told}
        # Looking again, and further versions that count the same, tell nothing twice.
        await worker.run_once()
        await late.run_once()
        active = await first.read("Subscription", stored.id)
        assert active is not None
        await update(first, active, reason="Another reason")
        await late.run_once()
        assert len(await rows(one)) == 3
        await worker.drain()
        assert await late.outbox.pending_count() == 0


async def test_what_a_process_recorded_before_it_died_is_told_by_who_takes_over(
    one: Mongo, receiver: Receiver
) -> None:
    async with two_processes(one) as (first, other, worker, late):
        stored = await create(first, classic("Encounter?", receiver.url))
        told = await create(other, encounter())
        await late.drain()
        assert await rows(one) == []
        await worker._take_over(other.owner, one.now())
        await worker.drain()
        (row,) = await rows(one)
        assert (row["subscription"], row["focus"]["id"]) == (stored.id, told.id)


async def test_a_process_that_stops_tells_what_it_has_recorded(
    one: Mongo, receiver: Receiver
) -> None:
    async with two_processes(one) as (first, other, _, late):
        await create(first, classic("Encounter?", receiver.url))
        await create(other, encounter())
        await late.drain()
        await late.stop()
        assert len(await rows(one)) == 1


@pytest.fixture
async def hub(mongod: str) -> AsyncIterator[Pair]:
    """Two practices: doctor a at practice a, doctor b at practice b."""
    async with running(make_settings(mongod, egress_allow="127.0.0.1")) as (server, client):
        await put(
            client,
            organization("a"),
            organization("b"),
            practitioner("dr-a"),
            practitioner("dr-b"),
            role("role-a", "dr-a", "a"),
            role("role-b", "dr-b", "b"),
            patient("p", ref("PractitionerRole/role-a")),
        )
        yield server, client


async def subscribe(pair: Pair, receiver: Receiver, practice: str) -> str:
    body = topic_based(f"general-practitioner=Organization/{practice}", endpoint=receiver.url)
    answer = await pair[1].post("/Subscription", json=body)
    assert answer.status_code == 201, answer.text
    await pair[0].worker.drain()
    return str(answer.json()["id"])


@pytest.mark.slow
async def test_a_new_practice_is_told_what_the_old_one_could_not_be(
    hub: Pair, receiver: Receiver
) -> None:
    """The old practice's endpoint is down from the admission until the patient is somebody else's."""
    server, client = hub
    async with receiving() as old:
        await subscribe(hub, old, "a")
        to_b = await subscribe(hub, receiver, "b")
        old.answers([503] * 50)
        await put(client, {**encounter(patient="p"), "id": "e1"})
        await old.wait(2, events=False)
        await put(client, patient("p", ref("PractitionerRole/role-b")))
        old.answer = lambda _: 200
        younger = await subscribe(hub, receiver, "b")
        await make_due(server.mongo)
        (notice,) = await receiver.wait(1)
        await server.worker.drain()
    assert notice.focus.endswith("Encounter/e1")
    ledger = {row["subscription"]: row for row in await rows(server.mongo) if row["number"]}
    assert ledger[to_b]["state"] == "delivered"
    assert younger not in ledger
    states = sorted(row["state"] for row in ledger.values())
    assert states == ["delivered", "suppressed"]


async def test_a_new_practice_is_not_told_an_old_version_after_a_new_one(
    hub: Pair, receiver: Receiver
) -> None:
    server, client = hub
    async with receiving() as old:
        await subscribe(hub, old, "a")
        await subscribe(hub, receiver, "b")
        old.answers([503] * 50)
        admitted = {**encounter(patient="p", class_="EMER"), "id": "e1"}
        await put(client, admitted)
        await old.wait(2, events=False)
        await put(client, patient("p", ref("PractitionerRole/role-b")))
        await put(client, {**encounter(patient="p"), "id": "e1"})
        await receiver.wait(1)
        await server.worker.drain()
        await make_due(server.mongo)
        await server.worker.run_once()
    versions = [row["focus"]["version"] for row in await rows(server.mongo, state="delivered")]
    assert versions == [2]


@pytest.mark.processes
@pytest.mark.slow
async def test_a_subscription_that_one_server_has_answered_is_told_what_another_commits_at_once(
    mongod: str,
) -> None:
    settings = make_settings(mongod)
    named = {"mongodb_uri": mongod, "mongodb_database": settings.mongodb_database}
    env = environment(**named, egress_allow="127.0.0.1")
    async with receiving() as receiver, httpx.AsyncClient(timeout=30) as client:
        with ExitStack() as opened:
            here, there = (
                opened.enter_context(started("FHIR base: ", "serve", "--port", "0", env=env))[1]
                for _ in range(2)
            )
            expected: set[str] = set()
            for turn in range(20):
                url = f"{receiver.url}/t{turn}"
                asked: dict[str, Any] = classic(f"Encounter?patient=Patient/t{turn}", url)
                answer = await client.post(f"{here}/Subscription", json=asked)
                assert answer.status_code == 201, answer.text
                answer = await client.post(f"{there}/Encounter", json=encounter(patient=f"t{turn}"))
                assert answer.status_code == 201, answer.text
                expected.add(f"/t{turn}")
            received = await receiver.wait(20, events=False)
            assert {each.path for each in received} == expected
            assert len(received) == 20
