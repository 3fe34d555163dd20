"""One row a process: what a silent one held is taken over within seconds, what it may still commit holds polls up."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.errors import Unavailable
from app.runtime.cluster import TAKE_OVER_AFTER, Cluster
from app.runtime.embedded_mongod import EmbeddedMongo
from app.runtime.mongo import Mongo
from app.runtime.reservations import MOST_KEYS
from app.settings import Settings
from app.store.store import Store
from tests.builders.deliveries import create, rows, working
from tests.builders.exporting import ASYNC
from tests.builders.receiver import receiving
from tests.builders.subscriptions import encounter, topic_based
from tests.conftest import make_settings
from tests.processes import environment, started, until

pytestmark = pytest.mark.mongo


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


def cluster(mongo: Mongo, owner: str, clock: Clock | None = None) -> Cluster:
    """A process without writes under way."""
    return Cluster(mongo, owner, lambda: (), clock or Clock())


async def nothing(*_: object) -> None:
    """Nobody dies here."""


async def silence(mongo: Mongo, owner: str, *, unheard_for: timedelta = timedelta(hours=1)) -> None:
    """Let a process have been silent for too long."""
    await mongo.collection("processes").update_one(
        {"_id": owner},
        {"$set": {"seen": mongo.now() - unheard_for}},
    )


async def test_a_silent_process_is_taken_over_once(mongo: Mongo) -> None:
    taken: list[str] = []

    async def take_over(owner: str, _: object) -> None:
        taken.append(owner)

    here, there = cluster(mongo, "here"), cluster(mongo, "there")
    await here.beat()
    assert here.alone
    await there.beat()
    await here.beat()
    assert not here.alone
    assert await here.take_over_silent(take_over) == []
    await silence(mongo, "there")
    assert await here.take_over_silent(take_over) == ["there"]
    assert await here.take_over_silent(take_over) == []
    assert taken == ["there"]
    await here.beat()
    assert here.alone


async def test_a_process_that_is_heard_again_can_be_taken_over_again(mongo: Mongo) -> None:
    here, there = cluster(mongo, "here"), cluster(mongo, "there")
    await here.beat()
    await there.beat()
    for _ in range(2):
        await silence(mongo, "there")
        assert await here.take_over_silent(nothing) == ["there"]
        await there.beat()
        assert await here.take_over_silent(nothing) == []


async def test_what_is_taken_over_still_holds_up_the_horizon(mongo: Mongo) -> None:
    """The process may only be slow, and commit yet; its row goes once it cannot any more."""
    at = mongo.now()
    here = cluster(mongo, "here")
    there = Cluster(mongo, "there", lambda: (at,), Clock())
    await here.beat()
    await there.beat()
    await silence(mongo, "there")
    assert await here.take_over_silent(nothing) == ["there"]
    assert await here.horizon() < at
    mark = {"$set": {"taken_over": mongo.now() - here.silence - timedelta(seconds=1)}}
    await mongo.collection("processes").update_one({"_id": "there"}, mark)
    assert await here.horizon() > at
    await here.take_over_silent(nothing)
    assert await mongo.collection("processes").distinct("_id") == ["here"]


async def test_a_silent_process_is_asked_what_it_extracts_until_it_cannot_commit(
    mongo: Mongo,
) -> None:
    here, there = cluster(mongo, "here"), cluster(mongo, "there")
    there.parameters = "others"
    await there.beat()
    await here.beat()
    await silence(mongo, "there")
    await here.take_over_silent(nothing)
    assert not await here.agree_on("")


async def test_a_database_whose_clock_was_put_forward_forgets_nobody(mongo: Mongo) -> None:
    """All rows look old then, for half a second."""
    here, there = cluster(mongo, "here"), cluster(mongo, "there")
    await here.beat()
    await there.beat()
    at = mongo.now()
    await silence(mongo, "there")
    assert await here.horizon() <= at
    assert not await here.agree_on("others")


async def test_a_database_whose_clock_was_put_back_leaves_no_dead_process_in_its_place(
    mongo: Mongo,
) -> None:
    """Its last heartbeat lies in the future then."""
    here = cluster(mongo, "here")
    await cluster(mongo, "there").beat()
    await here.beat()
    await silence(mongo, "there", unheard_for=timedelta(hours=-1))
    assert await here.take_over_silent(nothing) == ["there"]


async def test_after_a_gap_of_its_own_a_process_gives_others_time(mongo: Mongo) -> None:
    clock = Clock()
    here = cluster(mongo, "here", clock)
    await cluster(mongo, "there").beat()
    await here.beat()
    await silence(mongo, "there")
    clock.time += TAKE_OVER_AFTER.total_seconds() + 1
    await here.beat()
    assert await here.take_over_silent(nothing) == []
    clock.time += 2 * TAKE_OVER_AFTER.total_seconds()
    assert await here.take_over_silent(nothing) == ["there"]


async def test_a_write_that_was_delayed_too_long_is_not_committed(mongo: Mongo) -> None:
    """Others wait for it no longer; nor for those of a process that nobody has heard of meanwhile."""
    clock = Clock()
    here = cluster(mongo, "here", clock)
    here.check_may_commit([mongo.now()])
    with pytest.raises(Unavailable):
        here.check_may_commit([mongo.now(), mongo.now() - timedelta(seconds=30)])
    await here.start()
    try:
        here.check_may_commit([mongo.now()])
        clock.time += 30
        with pytest.raises(Unavailable):
            here.check_may_commit([mongo.now()])
    finally:
        await here.stop()


async def test_a_process_that_stalls_before_its_commit_gives_the_write_up(store: Store) -> None:
    """It has begun in time and would end too late: nothing of it is stored."""
    check = store.cluster.check_may_commit
    asked = 0

    def late(times: Any) -> None:
        nonlocal asked
        asked += 1
        check([at - timedelta(seconds=30) for at in times] if asked > 1 else times)

    store.cluster.check_may_commit = late  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await create(store, encounter(), "e1")
    assert asked == 2
    assert await store.read("Encounter", "e1") is None


@pytest.mark.slow
async def test_a_process_that_has_stalled_is_heard_of_before_it_writes_again(mongo: Mongo) -> None:
    """It may have been forgotten: others then give horizons that take no account of it."""
    clock = Clock()
    here, there = cluster(mongo, "here", clock), cluster(mongo, "there")
    await here.start()
    try:
        await mongo.collection("processes").delete_one({"_id": "here"})
        clock.time += 300
        given = await there.horizon()
        await here.be_heard()
        here.check_may_commit([here.stamp()])
        assert here.stamp() > given
        assert await mongo.collection("processes").distinct("_id") == ["here"]
    finally:
        await here.stop()


@pytest.mark.processes
async def test_the_silence_outlasts_the_transactions_that_the_database_allows(
    tmp_path: Path,
) -> None:
    with EmbeddedMongo(tmp_path) as own:  # what is set is set for all who use it
        mongo = await Mongo.open(make_settings(own.uri))
        await mongo.client.admin.command("setParameter", 1, transactionLifetimeLimitSeconds=300)
        here = cluster(mongo, "here")
        try:
            await here.start()
            # 20 s in which it may begin, 300 s, up to 60 s until MongoDB looks for it, and some room.
            assert here.silence > timedelta(seconds=20 + 300 + 60)
        finally:
            await here.stop()
            await mongo.close()


async def test_setting_this_machines_clock_changes_no_time(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mongo.now()
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert before <= mongo.now() < before + timedelta(minutes=1)


async def test_a_process_reserves_so_many_keys_and_no_more(mongo: Mongo) -> None:
    """What does not fit into the row that all read is written in competition, as before."""
    here, there = cluster(mongo, "here"), cluster(mongo, "there")
    keys = [f"Patient/p{number:05}" for number in range(MOST_KEYS + 1)]
    async with here.reserving(keys), asyncio.timeout(5), here.reserving(["Patient/one-more"]):
        await there.beat()
        row = await mongo.collection("processes").find_one({"_id": "here"})
        assert row is not None
        assert [each["keys"] for each in row["reserved"]] == [keys[:-1], []]
        for free in (keys[-1:], ["Patient/one-more"]):
            await there.reservations.give_way(free)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(there.reservations.give_way(keys[:1]), 0.05)


async def test_a_process_that_leaves_leaves_no_row(mongo: Mongo) -> None:
    here = cluster(mongo, "here")
    await here.start()
    assert await mongo.collection("processes").distinct("_id") == ["here"]
    await here.stop()
    assert await mongo.collection("processes").distinct("_id") == []


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
        await dead.cluster.beat()
        await silence(mongo, dead.owner)
        await store.cluster.take_over_silent(worker._take_over)
        while len(receiver.events) != 3:
            await worker.run_once()
    assert sorted(each.number for each in receiver.events) == [1, 1, 2]
    assert {row["state"] for row in await rows(mongo)} == {"delivered"}


ENTRIES = 1_500


@pytest.fixture
def two_servers(tmp_path: Path) -> Iterator[tuple[Any, str, str, Settings]]:
    """Two server processes on a mongod of their own, whose transactions are theirs: the first process, the addresses
    of both, where their data are.
    """
    with ExitStack() as opened:
        settings = make_settings(opened.enter_context(EmbeddedMongo(tmp_path)).uri)
        options: dict[str, Any] = {
            "env": environment(
                mongodb_uri=settings.mongodb_uri,
                mongodb_database=settings.mongodb_database,
                egress_allow="127.0.0.1",
            )
        }
        pairs = [
            opened.enter_context(started("FHIR base: ", "serve", "--port", "0", **options))
            for _ in range(2)
        ]
        yield pairs[0][0], pairs[0][1], pairs[1][1], settings


@asynccontextmanager
async def stopped(process: Any) -> AsyncIterator[None]:
    """A process that does nothing for a while, as on an overloaded machine."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.processes
@pytest.mark.slow
async def test_a_poller_sees_what_a_process_commits_after_it_was_taken_over(
    two_servers: tuple[Any, str, str, Settings],
) -> None:
    """It stalls in a transaction; others take it over, answer polls, and it commits after all."""
    process, slow_url, fast_url, settings = two_servers
    entries = [
        {
            "resource": {"resourceType": "Patient", "id": f"p{n}"},
            "request": {"method": "PUT", "url": f"Patient/p{n}"},
        }
        for n in range(ENTRIES)
    ]

    async def is_writing() -> bool:
        """A transaction has been open for a moment."""
        found = await mongo.client.admin.command({"currentOp": 1, "transaction": {"$exists": True}})
        spent = [each["transaction"].get("timeOpenMicros", 0) for each in found["inprog"]]
        return bool(max(spent, default=0) > 20_000)

    async def is_taken_over() -> bool:
        """Marked, or gone altogether."""
        heard: int = await processes.count_documents({"taken_over": {"$exists": False}})
        return heard < 2

    async def ask_for_export(since: str) -> str:
        """Where the state of an export of what was written since is told."""
        asked = {"_type": "Patient", "_since": since}
        answer = await client.get(f"{fast_url}/$export", params=asked, headers=ASYNC)
        return str(answer.headers["content-location"])

    async def exported(status: str) -> dict[str, Any]:
        """The manifest."""

        async def is_there() -> bool:
            return (await client.get(status)).status_code == 200

        await until(is_there)
        found: dict[str, Any] = (await client.get(status)).json()
        return found

    async with AsyncExitStack() as opened:
        client = await opened.enter_async_context(httpx.AsyncClient(timeout=60))
        mongo = await Mongo.open(settings)
        opened.push_async_callback(mongo.close)
        processes = mongo.collection("processes")
        begun = datetime.now(UTC).isoformat()
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
        sending = asyncio.create_task(client.post(slow_url, json=bundle))
        await until(is_writing)
        async with stopped(process):
            await until(is_taken_over)
            newest = {"_lastUpdated": f"gt{begun}"}
            first = (await client.get(f"{fast_url}/Patient", params=newest)).json()
            history = (await client.get(f"{fast_url}/_history", params={"_since": begun})).json()
            assert "entry" not in first
            assert "entry" not in history
            kick_off = await ask_for_export(begun)
        assert (await sending).status_code == 200

        since = first["meta"]["lastUpdated"]

        async def found() -> int:
            params = {"_lastUpdated": f"gt{since}", "_summary": "count"}
            total: int = (await client.get(f"{fast_url}/Patient", params=params)).json()["total"]
            return total

        async def is_past_horizon() -> bool:
            return await found() > 0

        await until(is_past_horizon)
        assert await found() == ENTRIES
        # Of patients alone: the horizon may be earlier than what the servers published when they started.
        newer = {"_since": history["meta"]["lastUpdated"]}
        later = await client.get(f"{fast_url}/Patient/_history", params=newer)
        assert later.json()["total"] == ENTRIES
        # The open transaction may have been another one: then the export began before the entries had their times.
        manifest = await exported(kick_off)
        next_one = await exported(await ask_for_export(manifest["transactionTime"]))
        files = [*manifest["output"], *next_one["output"]]
        assert sum(file["count"] for file in files) == ENTRIES
