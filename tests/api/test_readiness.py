"""Ready means ready: `/readyz` says 503, what fails and since when; and nobody else's trouble makes it say so."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.errors import ConnectionFailure

from app.fhir.instants import moment
from app.runtime import loops, transactions
from app.runtime.cluster import Cluster
from app.runtime.embedded_mongod import EmbeddedMongo
from app.runtime.loops import Loop
from app.store.events import event_rows
from app.subscriptions.ledger.event_intake import EventIntake
from app.subscriptions.ledger.ledger import delivery_rows
from app.subscriptions.ledger.unmatched import Selected
from app.subscriptions.matching.event_matcher import EventMatcher
from app.subscriptions.sending.worker import Worker
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import classic, encounter
from tests.conftest import Server, make_settings, running

ROOT = "http://carerelay.test"
PAGE = f"{ROOT}/readyz"
CHECKS = ["database", "commits", "format", "loops", "events", "deliveries"]
SOON = {"ready_event_age": 0.3, "ready_delivery_age": 0.3}
READY = dict.fromkeys(CHECKS, "ok")


async def told(client: httpx.AsyncClient) -> dict[str, Any]:
    """What the checks say; the status says the same."""
    began = time.monotonic()
    answer = await client.get(PAGE)
    assert time.monotonic() - began < 5, "a probe gets its answer in time, whatever hangs"
    checks: dict[str, Any] = answer.json()
    assert list(checks) == CHECKS
    assert answer.status_code == (200 if checks == READY else 503)
    return checks


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 20) -> None:
    async with asyncio.timeout(seconds):
        while not await holds():  # noqa: ASYNC110 - as whoever probes a server does
            await asyncio.sleep(0.05)


async def failing(client: httpx.AsyncClient, check: str) -> Any:
    """What a check says, once it fails."""

    async def fails() -> bool:
        return bool((await told(client))[check] != "ok")

    await until(fails)
    return (await told(client))[check]


async def is_ready(client: httpx.AsyncClient) -> bool:
    return bool(await told(client) == READY)


def seconds_since(said: dict[str, str], server: Server) -> float:
    return (server.mongo.now() - moment(said["since"])).total_seconds()


async def test_a_server_that_does_its_work_is_ready(mongod: str, receiver: Receiver) -> None:
    async with running(make_settings(mongod)) as (server, client):
        await subscribe(server, client, receiver)
        (await client.put("/Encounter/e1", json=encounter(id="e1"))).raise_for_status()
        await receiver.wait(1, events=False)
        await server.worker.drain()
        assert await told(client) == READY


async def subscribe(server: Server, client: httpx.AsyncClient, receiver: Receiver) -> None:
    asked = {**classic("Encounter?status=in-progress", receiver.url), "id": "s1"}
    (await client.put("/Subscription/s1", json=asked)).raise_for_status()
    await server.worker.drain()


@pytest.mark.slow
async def test_while_nothing_is_matched_it_is_not_ready(
    mongod: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(make_settings(mongod, **SOON)) as (server, client):
        await subscribe(server, client, receiver)

        async def broken(*_: object) -> None:
            raise ConnectionFailure("away")

        with monkeypatch.context() as patched:
            patched.setattr(EventMatcher, "match", broken)
            (await client.put("/Encounter/e1", json=encounter(id="e1"))).raise_for_status()
            said = await failing(client, "events")
            assert said["reason"] == "not matched"
            assert 0.3 <= seconds_since(said, server) < 30
            page = (await client.get(f"{ROOT}/metrics")).text
            assert re.search("^carerelay_pending_events [1-9]", page, re.MULTILINE)
        await receiver.wait(1, events=False)
        await until(lambda: is_ready(client))


@pytest.mark.slow
async def test_while_every_event_is_set_aside_it_is_not_ready(
    mongod: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(make_settings(mongod, **SOON)) as (server, client):
        await subscribe(server, client, receiver)

        async def broken(*_: Any, **__: Any) -> None:
            raise ValueError

        with monkeypatch.context() as patched:
            patched.setattr(EventMatcher, "match", broken)
            for number in range(3):
                stay = encounter(id=f"e{number}")
                (await client.put(f"/Encounter/e{number}", json=stay)).raise_for_status()
            said = await failing(client, "events")
            assert said["reason"] == "not matched"
        await server.worker.rematching.replay(Selected())
        await receiver.wait(3, events=False)
        await until(lambda: is_ready(client))


@pytest.mark.slow
async def test_one_record_that_fails_while_others_are_matched_is_its_own_trouble(
    mongod: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(make_settings(mongod, **SOON)) as (server, client):
        await subscribe(server, client, receiver)
        record = EventIntake._record

        async def odd(intake: EventIntake, events: Any) -> None:
            if any(event.resource_id == "odd" for event in events):
                raise ValueError
            await record(intake, events)

        monkeypatch.setattr(EventIntake, "_record", odd)
        (await client.put("/Encounter/odd", json=encounter(id="odd"))).raise_for_status()
        (await client.put("/Encounter/e1", json=encounter(id="e1"))).raise_for_status()
        await receiver.wait(1, events=False)
        (odd_one,) = await event_rows(server.mongo).find({"id": "odd"}).to_list(None)

        async def waited() -> bool:
            return bool(server.mongo.now() - odd_one["at"] > timedelta(seconds=1.5))

        await until(waited)
        assert await server.worker.unmatched.count() == 1
        await until(lambda: is_ready(client))


@pytest.mark.slow
async def test_a_row_that_is_due_and_that_nobody_begins_makes_it_not_ready(
    mongod: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(make_settings(mongod, **SOON)) as (server, client):
        await subscribe(server, client, receiver)
        receiver.answers([503])
        with monkeypatch.context() as patched:

            async def idle(_: object) -> None:
                """A sweep that finds nothing to do."""

            def blind(*_: object) -> None:
                """Nobody looks when a retry is due."""

            patched.setattr(Worker, "_sweep", idle)
            patched.setattr(Worker, "_look_at", blind)
            (await client.put("/Encounter/e1", json=encounter(id="e1"))).raise_for_status()
            await receiver.wait(1, events=False)
            await server.worker.drain()
            due = {"next_at": server.mongo.now() - timedelta(seconds=40)}
            await delivery_rows(server.mongo).update_one({"open": True}, {"$set": due})
            said = await failing(client, "deliveries")
            assert said["reason"] == "due and not begun"
            assert 40 <= seconds_since(said, server) < 70
        await receiver.wait(2, events=False)
        await until(lambda: is_ready(client))


@pytest.mark.slow
@pytest.mark.parametrize("status", [None, 503], ids=["hangs", "fails"])
async def test_an_endpoint_that_is_of_no_use_does_not_make_it_unready(
    mongod: str, receiver: Receiver, status: int | None
) -> None:
    settings = make_settings(mongod, ready_delivery_age=2, delivery_timeout=0.3)
    async with running(settings) as (server, client):
        await subscribe(server, client, receiver)
        receiver.answer = lambda _: status
        for number in range(12):
            stay = encounter(id=f"e{number}", patient=f"p{number}")
            (await client.put(f"/Encounter/e{number}", json=stay)).raise_for_status()
        await receiver.wait(4, events=False)  # it has been tried
        now = server.mongo.now()

        async def waited() -> bool:
            assert await told(client) == READY
            return server.mongo.now() - now > timedelta(seconds=3.5)

        await until(waited)
        assert await server.worker.ledger.open_count() == 12


@pytest.mark.slow
async def test_no_write_that_gets_through_makes_it_unready(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The heartbeat's write hangs, as it does where a primary has lost its majority."""
    monkeypatch.setattr("app.api.readiness.TAKE_OVER_AFTER", timedelta(seconds=0.7))
    async with running(make_settings(mongod)) as (server, client):
        assert await told(client) == READY
        with monkeypatch.context() as patched:
            goes_on = asyncio.Event()
            beat = Cluster.beat

            async def hanging(cluster: Cluster) -> None:
                await goes_on.wait()
                await beat(cluster)

            patched.setattr(Cluster, "beat", hanging)
            said = await failing(client, "database")
            assert said["reason"] == "no write is acknowledged"
            assert 0.7 <= seconds_since(said, server) < 30
            assert (await client.get("http://carerelay.test/healthz")).status_code == 200
        goes_on.set()
        await until(lambda: is_ready(client))


@pytest.mark.processes
@pytest.mark.slow
async def test_a_database_that_stands_still_is_noticed_and_the_probes_are_answered(
    tmp_path: Path,
) -> None:
    """A real one, stopped in the midst of everything: connections stay open, and nothing comes back."""
    with EmbeddedMongo(tmp_path) as embedded:
        async with running(make_settings(embedded.uri)) as (server, client):
            assert await told(client) == READY
            os.kill(embedded.process.pid, signal.SIGSTOP)
            try:
                said = await failing(client, "database")
                assert said["reason"] == "no write is acknowledged"
                assert 5 <= seconds_since(said, server) < 15
                metrics = await client.get("http://carerelay.test/metrics")
                assert "carerelay_database_up 0.0" in metrics.text
            finally:
                os.kill(embedded.process.pid, signal.SIGCONT)
            await until(lambda: is_ready(client))
            patient = {"resourceType": "Patient", "id": "p1"}
            assert (await client.put("/Patient/p1", json=patient)).status_code == 201


@pytest.mark.slow
async def test_a_heartbeat_that_fails_is_told_at_once(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(make_settings(mongod)) as (_, client):

        async def away(_: Cluster) -> None:
            raise ConnectionFailure("away")

        with monkeypatch.context() as patched:
            patched.setattr(Cluster, "beat", away)
            await failing(client, "database")
        await until(lambda: is_ready(client))


@pytest.mark.slow
async def test_commits_that_wait_without_end_make_it_unready(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.api.readiness._COMMITS_STALLED", 0.3)
    async with running(make_settings(mongod)) as (_, client):
        goes_on = asyncio.Event()
        attempt = transactions.attempt

        async def hanging(*arguments: Any) -> Any:
            await goes_on.wait()
            return await attempt(*arguments)

        monkeypatch.setattr(transactions, "attempt", hanging)
        body = {"resourceType": "Patient", "id": "p1"}
        writing = asyncio.create_task(client.put("/Patient/p1", json=body))
        said = await failing(client, "commits")
        assert said["reason"] == "none gets through"
        goes_on.set()
        assert (await writing).status_code == 201
        assert await is_ready(client)


@pytest.mark.slow
async def test_a_loop_that_has_ended_is_named(mongod: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(make_settings(mongod)) as (server, client):
        sweep = next(loop for loop in server.worker.loops if loop.name == "sweep")
        assert sweep._task is not None
        sweep._task.cancel()
        said = await failing(client, "loops")
        assert set(said) == {"sweep"}
        assert said["sweep"]["reason"] == "ended"


@pytest.mark.slow
async def test_every_loop_of_a_server_is_looked_at(mongod: str) -> None:
    """Each task that never ends by itself is one of the loops, but for those that wait for a signal."""
    settings = make_settings(mongod, auth="smart")
    before = asyncio.all_tasks()
    async with running(settings) as (server, _):
        # What the start has recorded, and the timers that it has set, are on their way for a moment.
        await server.engine.drain()
        await server.worker.drain()
        tasks = asyncio.all_tasks() - before
        parts = [
            server.store.cluster,
            server.clock,
            server.audit,
            server.worker,
            *server.engine.parts,
        ]
        watched = loops.loops_of([*parts, server.reindexing, server.exports])
        looked_at = {name_of(each._task) for each in watched if each._task is not None}
        ours = {name_of(task) for task in tasks if is_ours(task)}
    assert ours - looked_at == {"_end_when_refused"}
    assert len(looked_at) > 12


def name_of(task: asyncio.Task[Any]) -> str:
    coroutine: Any = task.get_coro()
    return str(coroutine.__qualname__)


def is_ours(task: asyncio.Task[Any]) -> bool:
    coroutine: Any = task.get_coro()
    return "/app/" in getattr(coroutine, "cr_code", is_ours.__code__).co_filename


# A loop by itself


async def run(loop: Loop, error: Exception | None = None) -> None:
    with pytest.raises(type(error)) if error else loop.step():
        if error:
            with loop.step():
                raise error


@pytest.fixture
def now() -> list[float]:
    """The time of a clock that the test moves."""
    return [1000.0]


def loop_at(now: list[float], *, may_hang: bool = False, lasting: bool = False) -> Loop:
    return Loop("x", patience=30, clock=lambda: now[0], may_hang=may_hang, lasting=lasting)


async def test_a_failure_is_no_trouble_and_failures_for_long_are(now: list[float]) -> None:
    loop = loop_at(now)
    await run(loop, ValueError())
    assert loop.trouble() is None
    now[0] += 29
    await run(loop, ValueError())
    assert loop.trouble() is None
    now[0] += 2
    await run(loop, ValueError())
    assert loop.trouble() == loops.Trouble("failing", 31)
    await run(loop)
    assert loop.trouble() is None


async def test_failures_that_another_process_has_made_good_are_forgotten(now: list[float]) -> None:
    loop = loop_at(now)
    for _ in range(2):
        await run(loop, ValueError())
        now[0] += 31
    assert loop.trouble() is None


async def test_a_step_that_does_not_end_is_trouble(now: list[float]) -> None:
    loop, patient = loop_at(now), loop_at(now, may_hang=True)
    with loop.step(), patient.step():
        now[0] += 31
        assert loop.trouble() == loops.Trouble("hanging", 31)
        assert patient.trouble() is None
    assert loop.trouble() is None


async def test_a_lasting_step_is_the_good_sign(now: list[float]) -> None:
    loop = loop_at(now, lasting=True)
    for _ in range(4):
        await run(loop, ValueError())
        now[0] += 10
    await run(loop, ValueError())
    assert loop.trouble() == loops.Trouble("failing", 40)
    with loop.step():
        now[0] += 31
        assert loop.trouble() is None
    # It ended well, if not by itself.
    with pytest.raises(ValueError), loop.step():  # noqa: PT011, PT012
        now[0] += 31
        raise ValueError
    assert loop.trouble() is None
