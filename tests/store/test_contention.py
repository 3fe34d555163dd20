"""Nobody waits for another's conflict: other transactions, dead processes, commits whose outcome is not known."""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from app.errors import Unavailable
from app.runtime import cluster, transactions
from app.runtime.mongo import Mongo
from app.store.store import Store
from tests.builders.deliveries import create
from tests.builders.transactions import failing, failing_mongod, held
from tests.conftest import make_settings, running
from tests.processes import environment, started, until

pytestmark = pytest.mark.mongo

ORPHAN_ENTRIES = 3_000
LARGE_ENTRIES = 4_000
# What MongoDB answers where the majority has not confirmed a commit in time.
WRITE_CONCERN_FAILED = 64
# MongoDB's own limit for a transaction's life; the suite's database has a lower one.
DEFAULT_LIFETIME = 60


def patient(id_: str, family: str = "") -> dict[str, Any]:
    return {"resourceType": "Patient", "id": id_, "name": [{"family": family or id_}]}


def addressed(id_: str, family: str) -> dict[str, Any]:
    """As large as records of people who have moved a few times: judging thousands of them takes its time."""
    address = {"line": ["1 Main Street"], "city": "Springfield", "postalCode": "01101"}
    return {**patient(id_, family), "address": [address] * 10}


def transaction(count: int, family: str = "") -> dict[str, Any]:
    """A Bundle that puts so many Patients."""
    entries = [
        {
            "resource": addressed(f"p{n}", family),
            "request": {"method": "PUT", "url": f"Patient/p{n}"},
        }
        for n in range(count)
    ]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


@pytest.mark.slow
async def test_writes_beside_one_that_meets_another_transaction_do_not_wait(
    mongod: str, mongo: Mongo, store: Store
) -> None:
    """More of those that wait than there are places for batches, and for what goes on alone."""
    ids = [f"held{n}" for n in range(10)]
    await create(store, patient("first"), "first")
    async with held(mongod, mongo.db.name, *(("Patient", id_) for id_ in ids)):
        waiting = [asyncio.create_task(create(store, patient(id_), id_)) for id_ in ids]
        for n in range(100):
            async with asyncio.timeout(2):
                await create(store, patient(f"free{n}"), f"free{n}")
        assert not any(task.done() for task in waiting)
    async with asyncio.timeout(5):
        await asyncio.gather(*waiting)


async def test_a_batch_loses_no_unit_but_the_one_to_blame(
    mongod: str, mongo: Mongo, store: Store
) -> None:
    await create(store, patient("free0"), "free0")
    async with held(mongod, mongo.db.name, ("Patient", "held")):
        units = [
            asyncio.create_task(create(store, patient(id_), id_))
            for id_ in ("free1", "free2", "held", *(f"free{n}" for n in range(3, 60)))
        ]
        free = [task for n, task in enumerate(units) if n != 2]
        async with asyncio.timeout(5):
            await asyncio.gather(*free)
        assert not units[2].done()
    await units[2]


async def test_a_write_that_is_held_up_for_too_long_is_refused_and_not_stored(
    mongod: str, mongo: Mongo, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(store, patient("first"), "first")
    monkeypatch.setattr(cluster, "_OLDEST", timedelta(seconds=0.5))
    async with held(mongod, mongo.db.name, ("Patient", "held")):
        with pytest.raises(Unavailable):
            await create(store, patient("held"), "held")
    assert await store.read("Patient", "held") is None
    assert not list(store._commits._group.pending())


async def test_the_transactions_of_a_silent_process_end_with_the_take_over(
    mongod: str, mongo: Mongo, store: Store
) -> None:
    """Those of others go on."""
    await create(store, patient("first"), "first")
    async with held(mongod, mongo.db.name, ("Patient", "p1"), owner="dead"):
        async with held(mongod, mongo.db.name, ("Patient", "p2"), owner="alive"):
            await transactions.end_those_of(mongo, "dead")
            async with asyncio.timeout(5):
                await create(store, patient("p1"), "p1")
            second = asyncio.create_task(create(store, patient("p2"), "p2"))
            await create(store, patient("p3"), "p3")
            assert not second.done()
        await second


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A mongod of the module's own, that fails as it is told to."""
    with failing_mongod(tmp_path_factory.mktemp("faulty")) as mongo:
        yield mongo.uri


@pytest.mark.processes
async def test_where_transactions_of_others_may_not_be_ended_the_log_says_so(
    faulty: str, caplog: pytest.LogCaptureFixture
) -> None:
    mongo = await Mongo.open(make_settings(faulty))
    caplog.set_level(logging.WARNING)
    async with (
        held(faulty, mongo.db.name, ("Patient", "p1"), owner="dead"),
        failing(faulty, "killSessions", errorCode=13),
    ):
        await transactions.end_those_of(mongo, "dead")
    assert "not ended" in caplog.text
    await mongo.close()


@pytest.mark.processes
@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_a_commit_that_nobody_confirms_holds_up_no_other_write_and_is_known_in_the_end(
    faulty: str, driver: str
) -> None:
    """Until then polls wait for it, since it may be there; then its client is answered."""
    settings = make_settings(faulty, mongodb_driver=driver)
    async with running(settings) as (server, client):
        assert (await client.put("/Patient/p0", json=patient("p0"))).status_code == 201
        async with failing(faulty, "commitTransaction", errorCode=WRITE_CONCERN_FAILED):
            doubtful = [
                asyncio.create_task(client.put(f"/Patient/d{n}", json=patient(f"d{n}")))
                for n in range(3)
            ]
            group = server.store._commits._group

            async def are_in_doubt() -> bool:
                """Begun, and in no place."""
                return not group._in_flight and len(list(group.pending())) >= 3

            await until(are_in_doubt)
            horizon = await server.store.horizon()
        for answer in await asyncio.gather(*doubtful):
            assert answer.status_code == 201
            assert answer.headers["last-modified"]
        stored = [await server.store.read("Patient", f"d{n}") for n in range(3)]
        assert all(each and each.at > horizon for each in stored)
        assert (await client.put("/Patient/p1", json=patient("p1"))).status_code == 201
        assert await server.store.horizon() >= max(each.at for each in stored if each)


@pytest.fixture
def two_servers(mongod: str) -> Iterator[tuple[Any, str, str, MongoClient[dict[str, Any]]]]:
    """Two servers, where transactions live as long as MongoDB lets them: the first, the addresses, a client."""
    settings = make_settings(mongod)
    options: dict[str, Any] = {
        "env": environment(mongodb_uri=mongod, mongodb_database=settings.mongodb_database)
    }
    name = "transactionLifetimeLimitSeconds"
    with MongoClient[dict[str, Any]](mongod) as client, ExitStack() as opened:
        before = client.admin.command({"getParameter": 1, name: 1})[name]
        client.admin.command({"setParameter": 1, name: DEFAULT_LIFETIME})
        try:
            pairs = [
                opened.enter_context(started("FHIR base: ", "serve", "--port", "0", **options))
                for _ in range(2)
            ]
            yield pairs[0][0], pairs[0][1], pairs[1][1], client
        finally:
            client.admin.command({"setParameter": 1, name: before})


async def kill_in_a_transaction(
    process: Any, url: str, mongo: MongoClient[dict[str, Any]], http: httpx.AsyncClient
) -> None:
    """SIGKILL to a server that has written a part of a large transaction.

    It is stopped first and looked at: one that went through in that very moment is let go, and the next is sent.
    """
    asked: list[dict[str, Any]] = [
        {"$currentOp": {"idleSessions": True}},
        {"$match": {"transaction.timeOpenMicros": {"$gt": 20_000}}},
    ]

    async def is_writing() -> bool:
        return bool(list(mongo.admin.aggregate(asked)))

    async def is_idle() -> bool:
        return not any(operation["active"] for operation in mongo.admin.aggregate(asked))

    for number in range(10):
        bundle = transaction(ORPHAN_ENTRIES, f"orphan-{number}")
        sending = asyncio.create_task(http.post(url, json=bundle))
        await until(is_writing)
        process.send_signal(signal.SIGSTOP)
        try:
            await until(is_idle)  # the database has carried out what the server had sent
            if await is_writing():
                process.kill()
                process.wait()
                with pytest.raises(httpx.TransportError):
                    await sending
                return
        finally:
            process.send_signal(signal.SIGCONT)
        assert (await sending).is_success
    pytest.fail("each transaction was through already")


@pytest.mark.processes
@pytest.mark.slow
async def test_a_server_that_is_killed_in_a_transaction_holds_up_nobody(
    two_servers: tuple[Any, str, str, MongoClient[dict[str, Any]]],
) -> None:
    process, dying, url, mongo = two_servers
    took: list[float] = []
    async with httpx.AsyncClient(timeout=60) as http:
        for id_ in ("p0", "p1", "p2"):
            assert (await http.put(f"{url}/Patient/{id_}", json=patient(id_))).is_success

        async def put(id_: str) -> float:
            begun = time.monotonic()
            answer = await http.put(f"{url}/Patient/{id_}", json=patient(id_, "new"))
            assert answer.status_code in (200, 201), answer.text
            return time.monotonic() - begun

        await kill_in_a_transaction(process, dying, mongo, http)
        held_up = [asyncio.create_task(put(id_)) for id_ in ("p0", "p1", "p2")]
        number = 0
        while not all(task.done() for task in held_up):
            took.append(await put(f"other{number}"))
            number += 1
        waited = [await task for task in held_up]
    # The take-over comes after five seconds of silence and the second until the next look.
    assert max(waited) < 15
    assert sorted(took)[int(len(took) * 0.99)] <= 1.0


@pytest.mark.processes
@pytest.mark.slow
async def test_a_large_transaction_commits_while_another_server_writes_one_of_its_resources(
    two_servers: tuple[Any, str, str, MongoClient[dict[str, Any]]],
) -> None:
    _, url, other, _ = two_servers
    hot = f"p{LARGE_ENTRIES - 1}"
    answers: list[int] = []
    async with httpx.AsyncClient(timeout=90) as http:

        async def keep_writing() -> None:
            while not sending.done():
                body = patient(hot, f"single-{len(answers)}")
                answers.append((await http.put(f"{other}/Patient/{hot}", json=body)).status_code)
                await asyncio.sleep(0.3)

        sending = asyncio.create_task(http.post(url, json=transaction(LARGE_ENTRIES, "bundle")))
        writing = asyncio.create_task(keep_writing())
        answer = await sending
        await writing
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["entry"]) == LARGE_ENTRIES
        assert set(answers) <= {200, 201}
        # Neither has overwritten what it had not seen: each write is a version of its own.
        history = (await http.get(f"{url}/Patient/{hot}/_history?_count=1000")).json()
        assert history["total"] == len(answers) + 1
