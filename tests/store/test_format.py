"""The format of the database: who may use it, what brings it forward, and that this happens once, whatever dies."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
import pytest
from pymongo import MongoClient

from app.main import create_app
from app.runtime import cluster
from app.runtime.collections import UnusableDatabaseError
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store import format
from app.store.format import FORMAT, OLDEST, STEPS, Step
from tests.conftest import BASE, make_settings, running
from tests.processes import carerelay, environment, started, wait_for

pytestmark = [pytest.mark.mongo, pytest.mark.new_database]

PATIENT = {"resourceType": "Patient", "id": "p"}
OWN_STEPS = [step.name for step in STEPS]
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)


async def prepare(mongo: Mongo) -> None:
    await format.prepare(mongo, Settings())


async def marker(mongo: Mongo) -> dict[str, Any]:
    row: dict[str, Any] = await mongo.collection("settings").find_one({"_id": "format"})
    return row


async def mark(mongo: Mongo, **changes: Any) -> None:
    """Change the marker as another version would, or make it so."""
    await mongo.collection("settings").update_one({"_id": "format"}, {"$set": changes}, upsert=True)


async def unmarked(mongo: Mongo) -> None:
    """Data of a server from before there was a marker."""
    await mongo.collection("Patient").insert_one({"_id": "p", "v": 1, "text": "{}"})


def version(patch: pytest.MonkeyPatch, format_: int, oldest: int, *steps: Step) -> None:
    """This program as a later version of it, with more steps."""
    patch.setattr(format, "FORMAT", format_)
    patch.setattr(format, "OLDEST", oldest)
    patch.setattr(format, "STEPS", (*STEPS, *steps))


def counting(name: str, runs: list[str], work: Callable[[], Awaitable[None]] | None = None) -> Step:
    """A step that notes each of its runs when it is through."""

    async def run(mongo: Mongo, _: Settings) -> None:
        if work is not None:
            await work()
        runs.append(name)

    return Step(name, run)


@asynccontextmanager
async def clients(uri: str, count: int) -> AsyncIterator[list[Mongo]]:
    """Several on one new database, as processes would have them."""
    settings = make_settings(uri)
    opened = [await Mongo.open(settings) for _ in range(count)]
    yield opened
    for each in opened:
        await each.close()


# Which steps are taken


async def test_an_empty_database_is_in_the_format_of_whoever_comes_first(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    version(monkeypatch, 3, 2, counting("2", runs), counting("3", runs))
    await prepare(mongo)
    assert await marker(mongo) == {
        "_id": "format",
        "format": 3,
        "oldest": 2,
        "steps": [*OWN_STEPS, "2", "3"],
    }
    assert runs == []


async def test_a_database_without_a_marker_goes_forward_from_the_beginning_once(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    await unmarked(mongo)
    runs: list[str] = []
    version(monkeypatch, 3, OLDEST, counting("2", runs), counting("3", runs))
    await prepare(mongo)
    assert runs == ["2", "3"]
    after = await marker(mongo)
    expected = {"format": 3, "oldest": OLDEST, "steps": [*OWN_STEPS, "2", "3"]}
    assert after == {"_id": "format", **expected}
    await prepare(mongo)
    assert runs == ["2", "3"]
    version(monkeypatch, 4, OLDEST, counting("2", runs), counting("3", runs), counting("4", runs))
    await prepare(mongo)
    assert runs == ["2", "3", "4"]
    assert (await marker(mongo))["format"] == 4


async def test_consents_that_anybody_could_record_are_doubted_where_an_earlier_version_did_not(
    mongod: str,
) -> None:
    """It had its first start with authorization before: those of that time permitted as an authority's word."""
    before, after = LONG_AGO, LONG_AGO + timedelta(days=2)
    given = {"terms": ["status=active"], "at": before, "private": {"kept": "so"}}
    consents = [
        {"_id": "anybodys", **given},
        {"_id": "anybodys-changed", **given, "by": ["", "Organization/o"]},
        {"_id": "an-organizations", **given, "by": ["Organization/o"]},
        {"_id": "an-administrators", **given, "at": after, "by": [""]},
        {"_id": "over", **given, "terms": ["status=inactive"]},
    ]
    async with clients(mongod, 1) as (mongo,):
        await mongo.collection("Consent").insert_many(consents)
        mark = {"_id": "before-authorization", "at": before + timedelta(days=1), "is_listed": True}
        await mongo.collection("settings").insert_one(mark)
        await prepare(mongo)
        rows = await mongo.collection("Consent").find({}).to_list(None)
    assert all(row["private"]["kept"] == "so" for row in rows)
    doubted = {row["_id"] for row in rows if "unconfirmed" in row["private"]}
    assert doubted == {"anybodys", "anybodys-changed"}


@pytest.mark.slow
async def test_a_row_without_a_heartbeat_that_an_older_server_left_is_in_nobodys_way(
    mongod: str,
) -> None:
    settings = make_settings(mongod)
    mongo = await Mongo.open(settings)
    processes = mongo.collection("processes")
    later = datetime.now(UTC) + timedelta(hours=1)
    await processes.insert_many(
        [
            {"_id": "dead", "alive_until": LONG_AGO},
            {"_id": "dead-but-seen", "alive_until": LONG_AGO, "seen": LONG_AGO, "horizon": later},
        ]
    )
    async with running(settings) as (_, client):
        assert (await client.put("/Patient/p", json=PATIENT)).status_code == 201
        found = await client.get("/Patient", params={"_lastUpdated": "gt2020-01-01"})
        assert found.status_code == 200
        # The other may still commit, for all we know: it goes when it has been silent for long enough.
        assert await processes.count_documents({"_id": {"$regex": "^dead"}}) == 1
        assert (await marker(mongo))["format"] == FORMAT
    await mongo.close()


# Who may use it


async def test_an_older_server_refuses_before_it_writes_anything(mongo: Mongo) -> None:
    await mark(mongo, format=FORMAT + 2, oldest=FORMAT + 1, steps=[])
    before = await marker(mongo)
    with pytest.raises(UnusableDatabaseError, match=rf"format {FORMAT + 1} and later.*{FORMAT}\."):
        await prepare(mongo)
    assert await marker(mongo) == before


@pytest.mark.parametrize("arguments", [(), ("--workers", "2")], ids=["one", "workers"])
@pytest.mark.processes
async def test_the_command_says_why_it_does_not_serve(
    mongod: str, arguments: tuple[str, ...]
) -> None:
    async with clients(mongod, 1) as (mongo,):
        await mark(mongo, format=FORMAT + 2, oldest=FORMAT + 1, steps=[])
        at = ("--mongodb-uri", mongod)
        done = await asyncio.to_thread(
            carerelay, "serve", "--port", "0", *at, *arguments, mongodb_database=mongo.db.name
        )
        assert done.returncode == 1, done.stdout
        said = done.stdout + done.stderr
        assert f"for servers of format {FORMAT + 1} and later" in said
        assert "Traceback" not in said
        assert "FHIR base" not in said
        assert await mongo.db.list_collection_names() == ["settings"]


@pytest.mark.parametrize(
    "arguments", [("clients", "list"), ("keys", "list"), ("audit", "verify")], ids=" ".join
)
@pytest.mark.processes
async def test_commands_on_the_database_ask_as_a_server_does(
    mongod: str, arguments: tuple[str, ...], tmp_path: Any
) -> None:
    async with clients(mongod, 1) as (mongo,):
        settings = {
            "mongodb_uri": mongod,
            "mongodb_database": mongo.db.name,
            "data": str(tmp_path),
        }
        await unmarked(mongo)
        done = await asyncio.to_thread(carerelay, *arguments, **settings)
        # Where nothing was ever recorded nobody can tell whether it was cut off.
        assert done.returncode == int(arguments == ("audit", "verify")), done.stdout + done.stderr
        assert "Use a later version" not in done.stdout
        assert (await marker(mongo))["format"] == FORMAT
        await mark(mongo, oldest=FORMAT + 1)
        done = await asyncio.to_thread(carerelay, *arguments, **settings)
        assert done.returncode == 1
        assert "Use a later version" in done.stdout
        assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
async def test_a_rolling_upgrade_goes_on(mongod: str) -> None:
    """A newer server has brought the database forward, and still gets along with this one."""
    settings = make_settings(mongod)
    async with running(settings) as (first, _):
        steps = [*OWN_STEPS, f"{FORMAT + 1}: of a newer server"]
        await mark(first.mongo, format=FORMAT + 1, steps=steps)
        async with running(settings) as (second, client):
            after = await marker(first.mongo)
            expected = {"format": FORMAT + 1, "oldest": OLDEST, "steps": steps}
            assert after == {"_id": "format", **expected}
            assert (await client.put("/Patient/p", json=PATIENT)).status_code == 201
            assert (await client.get("http://x/readyz")).status_code == 200
            # What the newer one wants for an index, this one does not put back.
            assert not second.mongo.replaces_indexes

            async def both_know() -> bool:
                return not first.mongo.replaces_indexes

            await until(both_know)


# Steps are taken once


@pytest.mark.slow
async def test_of_many_that_start_at_once_one_takes_the_steps(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    slow = counting("2", runs, lambda: asyncio.sleep(0.3))
    version(monkeypatch, 2, OLDEST, slow, counting("3", runs))
    async with clients(mongod, 8) as opened:
        await unmarked(opened[0])
        await asyncio.gather(*(prepare(each) for each in opened))
        assert runs == ["2", "3"]
        row = await marker(opened[0])
        assert row["format"] == 2
        assert row.keys() == {"_id", "format", "oldest", "steps"}


@pytest.mark.slow
async def test_of_many_that_start_at_once_on_nothing_all_agree(mongod: str) -> None:
    for _ in range(5):
        async with clients(mongod, 8) as opened:
            await asyncio.gather(*(prepare(each) for each in opened))
            assert await marker(opened[0]) == {
                "_id": "format",
                "format": FORMAT,
                "oldest": OLDEST,
                "steps": OWN_STEPS,
            }


# `carerelay` of the next version. Its step counts in the database how often it was begun and how often it ended.
NEXT_VERSION = """
import asyncio, sys
from datetime import timedelta
from app.store import format

async def step(mongo, settings):
    rows = mongo.collection("step")
    begun = await rows.find_one_and_update(
        {"_id": "runs"}, {"$inc": {"begun": 1}}, upsert=True, return_document=True
    )
    print("begun:", begun["begun"], flush=True)
    if begun["begun"] == 1 and ONLY_BEGINS:
        await asyncio.sleep(100)
    if FAILS:
        raise ValueError("Annabelle Lindqvist")
    await asyncio.sleep(0.5)
    await rows.update_one({"_id": "runs"}, {"$inc": {"ended": 1}})

format.FORMAT, format.LEASE = 2, timedelta(seconds=2)
format.STEPS = (*format.STEPS, format.Step("2: of the next version", step))
from app.cli import main
main()
"""


def next_version(*, only_begins: bool = False, fails: bool = False) -> tuple[str, ...]:
    code = NEXT_VERSION.replace("ONLY_BEGINS", str(only_begins)).replace("FAILS", str(fails))
    return (sys.executable, "-c", code)


def on(database: Mongo, uri: str) -> dict[str, Any]:
    return {"env": environment(mongodb_uri=uri, mongodb_database=database.db.name)}


@pytest.mark.processes
async def test_of_processes_that_start_at_once_one_takes_the_step(mongod: str) -> None:
    async with clients(mongod, 1) as (mongo,):
        await unmarked(mongo)

        def serve(_: int) -> int:
            arguments = ("serve", "--port", "0")
            with started(
                "FHIR base: ", *arguments, command=next_version(), **on(mongo, mongod)
            ) as (_process, base):
                return wait_for(f"{base.removesuffix('/fhir')}/readyz").status_code

        with ThreadPoolExecutor(3) as pool:
            loop = asyncio.get_running_loop()
            found = await asyncio.gather(*(loop.run_in_executor(pool, serve, n) for n in range(3)))
        assert found == [200, 200, 200]
        assert await mongo.collection("step").find_one() == {"_id": "runs", "begun": 1, "ended": 1}


@pytest.mark.processes
async def test_a_step_whose_process_is_killed_is_taken_again_by_the_next(mongod: str) -> None:
    async with clients(mongod, 1) as (mongo,):
        await unmarked(mongo)

        def kill_one_and_start_another() -> int:
            options = on(mongo, mongod)
            serve = ("serve", "--port", "0")
            killed = next_version(only_begins=True)
            with started("begun: ", *serve, command=killed, **options) as (process, _):
                process.kill()
                process.wait()
            with started("FHIR base: ", *serve, command=next_version(), **options) as (_, base):
                return wait_for(f"{base.removesuffix('/fhir')}/readyz").status_code

        assert await asyncio.to_thread(kill_one_and_start_another) == 200
        assert await mongo.collection("step").find_one() == {"_id": "runs", "begun": 2, "ended": 1}
        row = await marker(mongo)
        assert row["format"] == 2
        assert row["steps"] == [*OWN_STEPS, "2: of the next version"]


@pytest.mark.processes
async def test_a_step_that_fails_keeps_the_server_from_starting_and_is_not_recorded(
    mongod: str,
) -> None:
    async with clients(mongod, 1) as (mongo,):
        await unmarked(mongo)
        serve = partial(
            subprocess.run,
            [*next_version(fails=True), "serve", "--port", "0"],
            **on(mongo, mongod),
            capture_output=True,
            text=True,
            timeout=60,
        )
        done = await asyncio.to_thread(serve)
        assert done.returncode == 1
        assert "the step '2: of the next version' has failed with ValueError" in done.stdout
        assert "in step" in done.stderr, "the log says where"
        assert "Annabelle" not in done.stdout + done.stderr
        row = await marker(mongo)
        assert row == {"_id": "format", "format": 0, "oldest": OLDEST, "steps": OWN_STEPS}


async def test_after_a_failure_the_next_start_goes_on_where_it_was(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        if not runs[1:]:
            runs.append("tried")
            raise ValueError

    await unmarked(mongo)
    runs: list[str] = []
    version(monkeypatch, 2, OLDEST, counting("2", runs), counting("3", runs, fail))
    with pytest.raises(UnusableDatabaseError, match="ValueError"):
        await prepare(mongo)
    await prepare(mongo)
    assert runs == ["2", "tried", "3"]


@pytest.mark.slow
async def test_a_process_that_has_lost_its_lease_leaves_off_and_records_nothing(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has stalled, and another has taken over."""
    reached, runs = asyncio.Event(), list[str]()

    async def stall() -> None:
        if not reached.is_set():
            reached.set()
            await asyncio.sleep(100)

    monkeypatch.setattr(format, "LEASE", timedelta(seconds=0.6))
    version(monkeypatch, 2, OLDEST, counting("2", runs, stall))
    await unmarked(mongo)
    stalled = asyncio.create_task(prepare(mongo))
    await reached.wait()
    later = mongo.now() + timedelta(seconds=1)
    await mark(mongo, owner="another", lease_until=later)
    await asyncio.sleep(0.6)
    assert runs == []
    row = await marker(mongo)
    assert (row["owner"], row["format"], row["steps"]) == ("another", 0, OWN_STEPS)
    # The other dies in its turn.
    await asyncio.wait_for(stalled, 10)
    assert runs == ["2"]
    assert (await marker(mongo)).keys() == {"_id", "format", "oldest", "steps"}


@pytest.mark.slow
async def test_a_step_that_ends_after_its_lease_is_not_recorded(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[list[str]] = []

    async def stall() -> None:
        recorded.append((await marker(mongo))["steps"])
        if not runs:
            await mark(mongo, owner="another", lease_until=mongo.now() + timedelta(seconds=0.5))

    runs: list[str] = []
    version(monkeypatch, 2, OLDEST, counting("2", runs, stall))
    await unmarked(mongo)
    await prepare(mongo)
    assert runs == ["2", "2"]
    assert recorded == [OWN_STEPS, OWN_STEPS]


@pytest.mark.slow
async def test_a_lease_is_renewed_for_as_long_as_a_step_takes(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    monkeypatch.setattr(format, "LEASE", timedelta(seconds=0.6))
    version(monkeypatch, 2, OLDEST, counting("2", runs, lambda: asyncio.sleep(2)))
    async with clients(mongod, 3) as opened:
        await unmarked(opened[0])
        await asyncio.gather(*(prepare(each) for each in opened))
        assert runs == ["2"]


@pytest.mark.slow
async def test_who_waits_for_too_long_says_so(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await unmarked(mongo)
    until = mongo.now() + timedelta(minutes=1)
    await mark(mongo, format=0, oldest=OLDEST, steps=[], owner="another", lease_until=until)
    monkeypatch.setattr(format, "PATIENCE", 0.3)
    with pytest.raises(UnusableDatabaseError, match="Another process"):
        await prepare(mongo)
    [line] = [record for record in caplog.records if record.name == "app.store.format"]
    assert "waits" in line.getMessage()


# Contraction: older servers are shut out


async def older(mongo: Mongo, **row: Any) -> None:
    """The row of a process of an older format that is alive."""
    seen = mongo.now()
    told = {
        "_id": "older",
        "format": OLDEST,
        "seen": seen,
        "horizon": seen,
        "parameters": "",
        **row,
    }
    await mongo.collection("processes").replace_one({"_id": "older"}, told, upsert=True)


@pytest.mark.slow
async def test_older_servers_are_not_shut_out_while_they_run(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one waits for them to be replaced, and says so; what they hold up is not begun."""
    runs: list[str] = []
    await prepare(mongo)
    await older(mongo)
    version(monkeypatch, FORMAT, OLDEST + 1, counting("2", runs))
    starting = asyncio.create_task(prepare(mongo))
    await asyncio.sleep(0.5)
    assert not starting.done()
    assert ((await marker(mongo))["oldest"], runs) == (OLDEST, [])
    await mongo.collection("processes").delete_one({"_id": "older"})
    await asyncio.wait_for(starting, 10)
    row = await marker(mongo)
    assert (row["format"], row["oldest"], runs) == (FORMAT, OLDEST + 1, ["2"])


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"format": OLDEST + 1}, id="as-new"),
        pytest.param({"refused": True}, id="stopped-writing"),
        pytest.param({"seen": LONG_AGO}, id="dead"),
    ],
)
async def test_nobody_waits_for_who_cannot_write_the_old_way(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch, row: dict[str, Any]
) -> None:
    await prepare(mongo)
    await older(mongo, **row)
    version(monkeypatch, OLDEST + 1, OLDEST + 1)
    await asyncio.wait_for(prepare(mongo), 10)
    assert (await marker(mongo))["oldest"] == OLDEST + 1


@pytest.mark.parametrize("format_", [{"format": OLDEST}, {}], ids=["older", "before-the-marker"])
async def test_older_servers_that_stay_are_named(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch, format_: dict[str, int]
) -> None:
    if format_:
        await prepare(mongo)
        await older(mongo)
    else:
        await older(mongo)
        await mongo.collection("processes").update_one({}, {"$unset": {"format": ""}})
    version(monkeypatch, OLDEST + 1, OLDEST + 1)
    # For as long as a silent one counts as running.
    monkeypatch.setattr(
        format, "PATIENCE_WITH_OLDER", -(await cluster.silence(mongo)).total_seconds()
    )
    with pytest.raises(UnusableDatabaseError, match=r"still use the database \(older\)"):
        await prepare(mongo)
    assert (await marker(mongo))["oldest"] == OLDEST


@pytest.mark.slow
async def test_an_older_server_that_starts_at_that_moment_is_waited_for(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has found that it may, and its row comes when `oldest` is raised already."""
    write = format._write

    async def raising(mongo: Mongo, owner: str, change: dict[str, Any]) -> None:
        await write(mongo, owner, change)
        if "oldest" in change.get("$max", {}):
            await older(mongo)

    runs: list[str] = []
    await prepare(mongo)
    version(monkeypatch, OLDEST + 1, OLDEST + 1, counting("2", runs))
    monkeypatch.setattr(format, "_write", raising)
    starting = asyncio.create_task(prepare(mongo))
    await asyncio.sleep(0.5)
    assert ((await marker(mongo))["oldest"], runs) == (OLDEST + 1, [])
    await older(mongo, refused=True)
    await asyncio.wait_for(starting, 10)
    assert runs == ["2"]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(20):
        while not await condition():  # noqa: ASYNC110 - what is waited for is in the database
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_server_that_becomes_too_old_writes_nothing_more_and_is_not_ready(
    mongod: str,
) -> None:
    ended: list[str] = []
    settings = make_settings(mongod)
    app = create_app(settings, lambda: ended.append("ended"))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app)
        client = await stack.enter_async_context(
            httpx.AsyncClient(transport=transport, base_url=BASE)
        )
        mongo: Mongo = app.state.services.mongo
        assert (await client.put("/Patient/p", json=PATIENT)).status_code == 201
        ready = await client.get("http://x/readyz")
        assert (ready.status_code, ready.json()["format"]) == (200, "ok")
        await mark(mongo, format=FORMAT + 1, oldest=FORMAT + 1)

        async def has_stopped() -> bool:
            row = await mongo.collection("processes").find_one({})
            return bool(row["refused"])

        await until(has_stopped)
        assert ended == ["ended"]
        refused = await client.put("/Patient/p", json={**PATIENT, "active": True})
        assert refused.status_code == 503
        reason = f"for servers of format {FORMAT + 1} and later"
        assert reason in refused.json()["issue"][0]["diagnostics"]
        ready = await client.get("http://x/readyz")
        assert ready.status_code == 503
        assert reason in ready.json()["format"]["reason"]
        assert await mongo.collection("versions").count_documents({"_id.t": "Patient"}) == 1


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.processes
async def test_a_process_that_becomes_too_old_ends(mongod: str, workers: int) -> None:
    async with clients(mongod, 1) as (mongo,):

        def serve() -> int:
            arguments = ("serve", "--port", "0", "--workers", str(workers))
            with started("FHIR base: ", *arguments, **on(mongo, mongod)) as (process, base):
                ready = f"{base.removesuffix('/fhir')}/readyz"
                assert wait_for(ready).status_code == 200
                with MongoClient[dict[str, Any]](mongod) as client:
                    settings = client[mongo.db.name]["settings"]
                    settings.update_one({"_id": "format"}, {"$set": {"oldest": FORMAT + 1}})
                return process.wait(30)

        # Workers are ended by their supervisor, which was asked to end.
        assert await asyncio.to_thread(serve) == (1 if workers == 1 else 0)


@pytest.mark.slow
async def test_a_write_under_way_is_not_committed_any_more(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(mongod)
    async with running(settings) as (server, client):
        insert = type(server.mongo.collection("versions")).insert_many
        stalls = asyncio.Event()

        async def stalling(collection: Any, *arguments: Any, **options: Any) -> Any:
            if collection.name == "versions":
                stalls.set()
                await server.store.cluster.refused.wait()
            return await insert(collection, *arguments, **options)

        monkeypatch.setattr(type(server.mongo.collection("versions")), "insert_many", stalling)
        writing = asyncio.create_task(client.put("/Patient/p", json=PATIENT))
        await asyncio.wait_for(stalls.wait(), 10)
        await mark(server.mongo, oldest=FORMAT + 1)
        assert (await writing).status_code == 503
        monkeypatch.undo()
        assert await server.mongo.collection("versions").count_documents({"_id.t": "Patient"}) == 0
