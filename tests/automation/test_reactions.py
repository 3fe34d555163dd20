"""Reactions are leased with their events: each runs in one process at a time, the next where that one dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from pymongo.errors import ConnectionFailure

from app.automation import reactions as module
from app.automation.reactions import Reaction, Reactions, for_each
from app.records.versions import Change
from app.runtime.leases import BackOff
from app.runtime.mongo import Mongo
from app.store import commit
from app.store.events import Event, load_event
from app.store.store import Store
from app.subscriptions.ledger.retention import Retention
from tests.builders.reactions import bare_context, make_due
from tests.conftest import make_settings

pytestmark = pytest.mark.mongo

CONTEXT = bare_context()
AT_ONCE = BackOff(timedelta(), timedelta(), most=3)


class Actor:
    """A reaction that counts; what it does is the test's."""

    def __init__(self, act: Callable[[], Awaitable[object]] | None = None) -> None:
        self.act = act
        self.done: list[str] = []
        self.begun = asyncio.Event()

    async def run(self, _: object, event: Event) -> None:
        self.begun.set()
        if self.act is not None:
            await self.act()
        self.done.append(f"{event.resource_id} {event.version}")


@asynccontextmanager
async def reacting(
    mongo: Mongo, actor: Actor, **options: Any
) -> AsyncIterator[tuple[Store, Reactions]]:
    """A process that reacts to Basics that it commits, and to those of others when it is told to sweep."""
    store = Store(mongo, reacting={"Basic"})
    await store.prepare()
    reactions = Reactions(
        mongo, store, [Reaction("act", frozenset({"Basic"}), actor.run)], **options
    )
    await reactions.start(CONTEXT)
    await reactions.loops["reactions-sweep"].end()  # it sweeps when the test says so
    yield store, reactions
    await reactions.stop()


async def put(store: Store, id_: str) -> None:
    basic = {"resourceType": "Basic", "id": id_, "code": {"text": "anything"}}
    previous = await store.read("Basic", id_)
    await store.commit([Change("update", "Basic", id_, basic, previous)])


async def rows(mongo: Mongo) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (
        await mongo.collection("events").find({}).sort("_id").to_list(None)
    )
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 3600], ids=["same-clock", "an-hour-ahead"])
async def test_slow_reactions_run_once(
    mongod: str, mongo: Mongo, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """Those that wait behind a slow one too; it takes twice as long as the leases that events are born with."""
    lease = timedelta(seconds=1)
    for each in (commit, module):
        monkeypatch.setattr(each, "EVENT_LEASE", lease)

    async def slowly() -> None:
        slow.act = None
        await asyncio.sleep(2 * lease.total_seconds())

    slow, other = Actor(slowly), Actor()
    elsewhere = await Mongo.open(make_settings(mongod, mongodb_database=mongo.db.name))
    assert elsewhere._clock_offset is not None
    elsewhere._clock_offset += ahead
    async with (
        reacting(mongo, slow, lease=lease) as (store, here),
        reacting(elsewhere, other, lease=lease) as (_, there),
    ):
        await put(store, "a")
        await put(store, "a")
        await slow.begun.wait()
        await put(store, "b")
        idle = asyncio.create_task(here.idle())
        while not idle.done():
            await there.sweep()
            await there.idle()
            await asyncio.sleep(0.02)
    assert (slow.done, other.done) == (["a 1", "a 2", "b 1"], [])
    assert not any("react_until" in row or "react_owner" in row for row in await rows(mongo))
    await elsewhere.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails", "is_done"),
    [
        pytest.param(False, False, id="done"),
        pytest.param(True, False, id="failed"),
        pytest.param(True, True, id="failed-when-it-is-done"),
    ],
)
async def test_who_lost_an_event_says_nothing_of_it(
    mongo: Mongo, fails: bool, is_done: bool
) -> None:
    """Neither that it is done nor that it failed, while another is at it and once that one is done."""
    go_on, go_on_there = asyncio.Event(), asyncio.Event()

    async def late() -> None:
        await go_on.wait()
        if fails:
            raise RuntimeError("planted")

    slow, other = Actor(late), Actor(go_on_there.wait)
    async with (
        reacting(mongo, slow) as (store, here),
        reacting(mongo, other) as (elsewhere, there),
    ):
        await put(store, "a")
        await slow.begun.wait()
        await make_due(mongo)
        await there.sweep()
        await other.begun.wait()
        if is_done:
            go_on_there.set()
            await there.idle()
        (before,) = await rows(mongo)
        assert before.get("react_owner") == (None if is_done else elsewhere.owner)
        assert ("react_until" in before) is not is_done
        go_on.set()
        await here.idle()
        assert await rows(mongo) == [before]
        go_on_there.set()
        await there.idle()
    assert other.done == ["a 1"]


async def test_an_event_whose_reactions_fail_again_and_again_is_given_up(mongo: Mongo) -> None:
    """It says so, and stays when others of its age go."""

    async def fail() -> None:
        raise RuntimeError("planted")

    actor = Actor(fail)
    async with reacting(mongo, actor, back_off=AT_ONCE) as (store, reactions):
        await put(store, "a")
        await reactions.idle()
        for tries in (1, 2, 3):
            (row,) = await rows(mongo)
            assert row["reacted"] == tries
            assert ("react_until" in row) is (tries < 3)
            await reactions.sweep()
            await reactions.idle()
    assert (row["react_failed"], row["react_error"]) == (True, "RuntimeError")
    await mongo.collection("events").update_one({}, {"$set": {"state": "done"}})
    retention = Retention(make_settings(""), mongo, lambda _: "active")
    assert await retention.clear(mongo.now() + timedelta(days=1000)) == (0, 0)
    await mongo.collection("events").update_one({}, {"$unset": {"react_failed": ""}})
    assert await retention.clear(mongo.now() + timedelta(days=1000)) == (1, 0)


async def test_an_event_that_kills_its_process_is_given_up(mongo: Mongo) -> None:
    actor = Actor()
    async with reacting(mongo, actor, back_off=AT_ONCE) as (store, reactions):
        dead = Store(mongo, reacting={"Basic"})
        await put(dead, "a")
        await mongo.collection("events").update_one({}, {"$set": {"reacted": 3}})
        await put(store, "b")
        await reactions.idle()
        await make_due(mongo)
        await reactions.sweep()
        await reactions.idle()
    assert [row.get("react_failed") for row in await rows(mongo)] == [True, None]
    assert actor.done == ["b 1"]


@pytest.mark.parametrize(
    ("error", "reacted"),
    [pytest.param(KeyError("planted"), 1, id="defect"), pytest.param(ConnectionFailure("x"), 0)],
)
async def test_an_event_that_cannot_be_read_holds_up_no_other(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch, error: Exception, reacted: int
) -> None:
    load, dead, actor = load_event, Store(mongo, reacting={"Basic"}), Actor()
    await dead.prepare()

    async def broken(store: Store, row: dict[str, Any]) -> Event:
        if row["id"] == "a":
            raise error
        return await load(store, row)

    monkeypatch.setattr(module, "load_event", broken)
    async with reacting(mongo, actor) as (_, reactions):
        await put(dead, "a")
        await put(dead, "b")
        await make_due(mongo)
        await reactions.sweep()
        await reactions.idle()
        row, _ = await rows(mongo)
    assert actor.done == ["b 1"]
    assert row["reacted"] == reacted
    assert row["react_until"] > mongo.now() - timedelta(seconds=1)
    assert row["react_owner"] is None


async def test_a_process_that_stops_gives_back_what_waits(mongo: Mongo) -> None:
    stuck, well = Actor(asyncio.Event().wait), Actor()
    async with reacting(mongo, well) as (_, there):
        async with reacting(mongo, stuck) as (store, _):
            await put(store, "a")
            await stuck.begun.wait()
            await put(store, "b")
        await there.sweep()
        await there.idle()
    assert well.done == ["a 1", "b 1"]


async def test_a_reaction_that_fails_keeps_no_other_from_its_turn(mongo: Mongo) -> None:
    async def fail() -> None:
        raise ValueError

    poor, well = Actor(fail), Actor()
    store = Store(mongo, reacting={"Basic"})
    await store.prepare()
    both = [
        Reaction(name, frozenset({"Basic"}), each.run)
        for name, each in (("poor", poor), ("well", well))
    ]
    reactions = Reactions(mongo, store, both, back_off=AT_ONCE)
    await reactions.start(CONTEXT)
    await reactions.loops["reactions-sweep"].end()
    await put(store, "a")
    await reactions.idle()
    assert (poor.done, well.done) == ([], ["a 1"])
    (row,) = await rows(mongo)
    assert row["reacted"] == 1, "and the one that failed is tried again"
    await reactions.stop()


async def test_what_fails_for_one_of_several_is_done_for_the_others() -> None:
    done: list[int] = []

    async def run(number: int) -> None:
        if number in (1, 2):
            raise ValueError(number)
        done.append(number)

    with pytest.raises(ValueError, match="1"):
        await for_each(run, range(4))
    assert done == [0, 3]


async def test_while_the_database_is_away_nothing_more_is_begun() -> None:
    begun: list[int] = []

    async def run(number: int) -> None:
        begun.append(number)
        raise ConnectionFailure

    with pytest.raises(ConnectionFailure):
        await for_each(run, range(4))
    assert begun == [0]
