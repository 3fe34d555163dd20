"""Timers are due by the calendar and leased by the database: each rings in one process at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Any

import pytest

from app.automation.timers import SWEEP_SECONDS, Timer, Timers
from app.runtime.clock import Clock
from app.runtime.leases import BackOff
from app.runtime.mongo import Mongo
from tests.builders.reactions import bare_context
from tests.conftest import make_settings

pytestmark = pytest.mark.mongo

CONTEXT = bare_context()
AT_ONCE = BackOff(timedelta(), timedelta(), most=3)


class Bell:
    """A kind of timer that counts how often it rings at once; what it does is the test's."""

    def __init__(self, ring: Callable[[], Awaitable[object]] | None = None) -> None:
        self.ring = ring
        self.rung: list[Any] = []
        self.ringing = 0
        self.most_at_once = 0
        self.begun = asyncio.Event()

    async def run(self, _: object, key: str, data: Mapping[str, Any]) -> None:
        self.ringing += 1
        self.most_at_once = max(self.most_at_once, self.ringing)
        self.begun.set()
        try:
            if self.ring is not None:
                await self.ring()
            self.rung.append(data.get("of", key))
        finally:
            self.ringing -= 1


def timers(mongo: Mongo, bell: Bell, owner: str = "here", **options: Any) -> Timers:
    """Those of a process."""
    return Timers(mongo, Clock(mongo), [Timer("ring", bell.run)], owner, **options)


async def row(mongo: Mongo) -> dict[str, Any] | None:
    found: dict[str, Any] | None = await mongo.collection("timers").find_one({})
    return found


@pytest.mark.slow
@pytest.mark.parametrize("ahead", [0, 3600], ids=["same-clock", "an-hour-ahead"])
async def test_a_slow_timer_rings_once(mongod: str, mongo: Mongo, ahead: int) -> None:
    """Twice as long as its lease, beside a process that may take the time for another."""
    lease = timedelta(seconds=1)

    async def slowly() -> None:
        await asyncio.sleep(2 * lease.total_seconds())

    bell = Bell(slowly)
    elsewhere = await Mongo.open(
        make_settings(mongod, mongodb_database=mongo.db.name, mongodb_driver="pymongo")
    )
    assert elsewhere._clock_offset is not None
    elsewhere._clock_offset += ahead
    here = timers(mongo, bell, "here", lease=lease)
    there = timers(elsewhere, bell, "there", lease=lease)
    await here.set("ring", "a", mongo.now())
    ringing = asyncio.create_task(here.run_due(CONTEXT))
    await bell.begun.wait()
    taken = 0
    while not ringing.done():
        taken += await there.run_due(CONTEXT)
        await asyncio.sleep(0.02)
    assert (await ringing, taken, bell.rung, bell.most_at_once) == (1, 0, ["a"], 1)
    assert await row(mongo) is None
    await elsewhere.close()


async def test_what_a_timer_does_that_lost_its_lease_is_cancelled(mongo: Mongo) -> None:
    """Its process stood still, another rings: that one alone says what comes of it."""
    stuck, well = Bell(lambda: asyncio.sleep(60)), Bell()
    here = timers(mongo, stuck, "here", lease=timedelta(seconds=0.5))
    there = timers(mongo, well, "there")
    await here.set("ring", "a", mongo.now())
    ringing = asyncio.create_task(here.run_due(CONTEXT))
    await stuck.begun.wait()
    past = {"$set": {"taken_until": mongo.now() - timedelta(seconds=1)}}
    await mongo.collection("timers").update_one({}, past)
    assert await there.run_due(CONTEXT) == 1
    async with asyncio.timeout(10):
        await ringing
    assert (stuck.rung, well.rung) == ([], ["a"])
    assert await row(mongo) is None


async def test_a_timer_that_is_set_anew_while_it_rings_rings_once_more_and_later(
    mongo: Mongo,
) -> None:
    go_on = asyncio.Event()
    bell = Bell(go_on.wait)
    here, there = timers(mongo, bell, "here"), timers(mongo, bell, "there")
    await here.set("ring", "a", mongo.now(), {"of": "first", "gone": 1})
    ringing = asyncio.create_task(here.run_due(CONTEXT))
    await bell.begun.wait()
    await there.set("ring", "a", mongo.now(), {"of": "second"})
    assert await there.run_due(CONTEXT) == 0, "not twice at once"
    go_on.set()
    assert await ringing == 2
    assert bell.rung == ["first", "second"]
    assert bell.most_at_once == 1
    assert await row(mongo) is None


async def test_a_timer_that_sets_itself_anew_and_fails_keeps_its_new_time(mongo: Mongo) -> None:
    later = mongo.now() + timedelta(hours=1)

    async def fail() -> None:
        await here.set("ring", "a", later)
        raise RuntimeError("planted")

    here = timers(mongo, Bell(fail))
    await here.set("ring", "a", mongo.now())
    assert await here.run_due(CONTEXT) == 1
    found = await row(mongo)
    assert found is not None
    assert (found["due"], found["tries"], found["owner"]) == (later, 0, None)
    assert 3590 < await here._seconds_to_next() <= 3600


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True])
async def test_a_timer_that_is_cancelled_while_it_rings_rings_to_its_end(
    mongo: Mongo, fails: bool
) -> None:
    """Most often it is the timer that cancels itself; what it began it must not leave half done."""

    async def cancel() -> None:
        await here.cancel("ring", "a")
        assert await here.due_of("ring", "a") is None
        await asyncio.sleep(1)
        if fails:
            raise RuntimeError("planted")

    bell = Bell(cancel)
    here = timers(mongo, bell, lease=timedelta(seconds=0.5), back_off=AT_ONCE)
    await here.set("ring", "a", mongo.now())
    await here.run_due(CONTEXT)
    assert bell.rung == ([] if fails else ["a"])
    assert await row(mongo) is None


async def test_a_timer_that_fails_again_and_again_is_given_up(mongo: Mongo) -> None:
    async def fail() -> None:
        raise RuntimeError("planted")

    bell = Bell(fail)
    here = timers(mongo, bell, back_off=AT_ONCE)
    await here.set("ring", "a", mongo.now())
    assert await here.run_due(CONTEXT) == 3
    found = await row(mongo)
    assert found is not None
    assert found["failed"]["error"] == "RuntimeError"
    assert await here.due_of("ring", "a") is None
    bell.ring = None
    assert await here.run_due(CONTEXT) == 0
    await here.set("ring", "a", mongo.now())
    assert await here.run_due(CONTEXT) == 1
    assert await row(mongo) is None


async def test_a_timer_that_kills_its_process_is_given_up(mongo: Mongo) -> None:
    bell = Bell()
    here = timers(mongo, bell, back_off=AT_ONCE)
    await here.set("ring", "a", mongo.now())
    await mongo.collection("timers").update_one({}, {"$set": {"tries": 3}})
    await here.run_due(CONTEXT)
    found = await row(mongo)
    assert found is not None
    assert "failed" in found
    assert bell.rung == []


async def test_a_process_that_stops_gives_back_what_rings(mongo: Mongo) -> None:
    stopped, well = Bell(lambda: asyncio.sleep(60)), Bell()
    here, there = timers(mongo, stopped, "here"), timers(mongo, well, "there")
    await here.start(CONTEXT)
    await here.set("ring", "a", mongo.now())
    await stopped.begun.wait()
    await here.stop()
    assert await there.run_due(CONTEXT) == 1
    assert well.rung == ["a"]


async def test_a_timer_of_an_older_server_rings(mongo: Mongo) -> None:
    """It was taken there, and put off after a failure: `claim` guarded it."""
    old = {"kind": "ring", "key": "a", "due": mongo.now(), "data": {"of": "old"}, "tries": 1}
    until = mongo.now() - timedelta(seconds=1)
    await mongo.collection("timers").insert_one(
        {"_id": "ring|a", **old, "taken_until": until, "claim": "x"}
    )
    bell = Bell()
    assert await timers(mongo, bell).run_due(CONTEXT) == 1
    assert bell.rung == ["old"]
    assert await row(mongo) is None


async def test_timers_of_kinds_that_a_process_does_not_know_are_left_to_others(
    mongo: Mongo,
) -> None:
    """And nobody looks for them again and again."""
    here = timers(mongo, Bell())
    await here.set("newer", "a", mongo.now())
    assert await here.run_due(CONTEXT) == 0
    assert await here._seconds_to_next() == SWEEP_SECONDS


async def test_what_is_set_and_waits_keeps_its_time(mongo: Mongo) -> None:
    bell = Bell()
    here, there = timers(mongo, bell, "here"), timers(mongo, bell, "there")
    soon, later = mongo.now() + timedelta(minutes=1), mongo.now() + timedelta(hours=1)
    await here.set_unless_waiting("ring", "a", soon)
    before = await row(mongo)
    await there.set_unless_waiting("ring", "a", later)
    assert await row(mongo) == before


@pytest.mark.parametrize("off", [-3600, 3600], ids=["behind", "ahead"])
async def test_what_has_begun_to_ring_is_set_once_more_whatever_the_clocks_say(
    mongod: str, mongo: Mongo, off: int
) -> None:
    """What the ringing one has read may be older than what this is set for."""
    elsewhere = await Mongo.open(
        make_settings(mongod, mongodb_database=mongo.db.name, mongodb_driver="pymongo")
    )
    assert elsewhere._clock_offset is not None
    elsewhere._clock_offset += off
    go_on = asyncio.Event()
    bell = Bell(go_on.wait)
    here, there = timers(mongo, bell, "here"), timers(elsewhere, bell, "there")
    await here.set_unless_waiting("ring", "a", mongo.now())
    ringing = asyncio.create_task(here.run_due(CONTEXT))
    await bell.begun.wait()
    await there.set_unless_waiting("ring", "a", mongo.now())
    go_on.set()
    assert await ringing == 2
    assert bell.rung == ["a", "a"]
    assert await row(mongo) is None
    await elsewhere.close()


@pytest.mark.parametrize("ended", ["failed", "cancelled"])
async def test_what_was_given_up_or_cancelled_is_set_anew(mongo: Mongo, ended: str) -> None:
    bell = Bell()
    here = timers(mongo, bell)
    await here.set("ring", "a", mongo.now() + timedelta(hours=1))
    mark = {"at": mongo.now(), "error": "E"} if ended == "failed" else True
    await mongo.collection("timers").update_one({}, {"$set": {ended: mark}})
    await here.set_unless_waiting("ring", "a", mongo.now())
    assert await here.run_due(CONTEXT) == 1
    assert bell.rung == ["a"]
