"""One process at a time works on a row: claimed, kept, settled, put off and given up by the database's clock."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, TypedDict

import pytest
from pymongo.errors import ConnectionFailure, OperationFailure

from app.errors import Unavailable
from app.runtime.leases import BackOff, Claim, Fields, Leases, LostError
from app.runtime.mongo import Mongo, boot_seconds
from tests.processes import environment

pytestmark = pytest.mark.mongo

# Long enough for whatever a test does while it lasts, and short enough to wait for its end.
LONG, SHORT = timedelta(seconds=60), timedelta(seconds=0.1)
DEAD = {"state": "dead"}


class Row(TypedDict, total=False):
    """A row of work."""

    _id: str
    state: str
    note: Any


class Error(Exception):
    """What work may end with."""


def leases(mongo: Mongo, owner: str, lease: timedelta = LONG, **options: Any) -> Leases[Row]:
    """A process that works on the rows of `work`."""
    options = {
        "back_off": BackOff(timedelta(), timedelta(), most=3),
        "is_open": {"state": "open"},
        "order": [("_id", 1)],
        **options,
    }
    return Leases[Row](mongo, "work", owner, lease=lease, **options)


async def put(mongo: Mongo, *ids: str, **values: Any) -> None:
    for id_ in ids:
        await mongo.collection("work").insert_one({"_id": id_, "state": "open", **values})


async def stored(mongo: Mongo, id_: str = "a") -> dict[str, Any]:
    row: dict[str, Any] | None = await mongo.collection("work").find_one({"_id": id_})
    assert row is not None
    return row


async def claimed(worker: Leases[Row], **options: Any) -> Claim[Row]:
    claim = await worker.claim(**options)
    assert claim is not None
    return claim


async def claimed_in_the_end(worker: Leases[Row]) -> Claim[Row]:
    """Once the lease of another has ended."""
    async with asyncio.timeout(10):
        while True:
            if (claim := await worker.claim()) is not None:
                return claim
            await asyncio.sleep(0.01)


def clock_off_by(mongo: Mongo, span: timedelta) -> None:
    """Let this process take the database's clock for another."""
    assert mongo._clock_offset is not None
    mongo._clock_offset += span.total_seconds()


async def server_time(mongo: Mongo) -> Any:
    return (await mongo.client.admin.command("hello"))["localTime"]


async def test_of_many_workers_one_gets_the_row(mongo: Mongo) -> None:
    await put(mongo, "a")
    workers = [leases(mongo, f"w{number}") for number in range(4)]
    claims = await asyncio.gather(*(worker.claim() for worker in workers * 5))
    (claim,) = [each for each in claims if each is not None]
    row = await stored(mongo)
    assert (row["owner"], row["attempt"], row["tries"]) == (claim.owner, 1, 1)
    assert claim.row["state"] == "open"


async def test_rows_are_claimed_in_their_order_and_only_open_ones(mongo: Mongo) -> None:
    await put(mongo, "b", "a", "c")
    await mongo.collection("work").update_one({"_id": "b"}, {"$set": {"state": "done"}})
    worker = leases(mongo, "here")
    assert [(await claimed(worker)).id for _ in range(2)] == ["a", "c"]
    assert await worker.claim() is None


async def test_a_row_of_an_older_server_is_free_and_its_first_attempt_is_the_first(
    mongo: Mongo,
) -> None:
    """It has no owner, no attempt, and no lease or one that is over."""
    over = {"inner": {"until": mongo.now() - timedelta(seconds=1), "other": 1}}
    await put(mongo, "a")
    await put(mongo, "b", **over)
    fields = Fields("inner.until", "inner.owner", "inner.attempt", "inner.tries")
    worker = leases(mongo, "here", fields=fields)
    for id_, more in (("a", {}), ("b", {"other": 1})):
        claim = await claimed(worker)
        assert (claim.id, claim.attempt, claim.tries) == (id_, 1, 1)
        inner = (await stored(mongo, id_))["inner"]
        assert inner.pop("until") > mongo.now() + LONG / 2
        assert inner == {"owner": "here", "attempt": 1, "tries": 1, **more}
        assert await worker.settle(claim, {"state": "done"})
        assert (await stored(mongo, id_))["inner"] == {"attempt": 1, "tries": 1, **more}


async def test_what_a_worker_writes_that_outlived_its_lease_changes_nothing(mongo: Mongo) -> None:
    await put(mongo, "a", "b")
    slow, other = leases(mongo, "slow", SHORT), leases(mongo, "other")
    late = [await claimed(slow), await claimed(slow)]
    taken = [await claimed_in_the_end(other) for _ in late]
    before = [await stored(mongo, each.id) for each in late]
    claim = late[0]
    assert not await slow.renew(claim)
    assert not await slow.progress(claim, {"note": "late"})
    assert not await slow.settle(claim, {"state": "done"})
    assert not await slow.release(claim)
    assert not await slow.failed(claim, Error(), DEAD)
    assert not await slow.give_up(claim, "Error", DEAD)
    assert not await slow.remove(claim)
    assert await slow.settle_many(late) == 0
    assert [await stored(mongo, each.id) for each in late] == before
    assert [await other.settle(each, {"state": "done"}) for each in taken] == [True, True]


async def test_the_same_process_is_another_worker_when_it_claims_again(mongo: Mongo) -> None:
    """The attempt tells them apart, also where the row was given back in between."""
    await put(mongo, "a")
    worker = leases(mongo, "here")
    first = await claimed(worker)
    assert await worker.release(first)
    second = await claimed(worker)
    assert not await worker.settle(first, {"state": "done"})
    assert await worker.settle(second, {"state": "done"})


async def test_a_lease_that_has_ended_is_still_the_owners_until_somebody_claims(
    mongo: Mongo,
) -> None:
    await put(mongo, "a")
    worker = leases(mongo, "slow", SHORT)
    claim = await claimed(worker)
    await asyncio.sleep(2 * SHORT.total_seconds())
    assert await worker.settle(claim, {"state": "done"})


@pytest.mark.slow
async def test_a_slow_worker_keeps_its_row(mongo: Mongo) -> None:
    """Twice as long as the lease."""
    lease = timedelta(seconds=1)
    await put(mongo, "a")
    slow, other = leases(mongo, "slow", lease), leases(mongo, "other", lease)
    claim = await claimed(slow)
    tried = 0
    async with slow.kept(claim):
        end = boot_seconds() + 2 * lease.total_seconds()
        while boot_seconds() < end:
            assert await other.claim() is None
            tried += 1
            await asyncio.sleep(0.02)
    assert tried > 10
    assert await slow.settle(claim, {"state": "done"})
    assert (await stored(mongo))["attempt"] == 1


async def test_many_rows_are_renewed_together(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each for itself would be a storm of updates where thousands wait for their turn."""
    ids = [f"r{number:02}" for number in range(20)]
    await put(mongo, *ids)
    worker = leases(mongo, "here", timedelta(seconds=1))
    claims = [await claimed(worker) for _ in ids]
    rounds: list[int] = []
    renewed, all_were = worker._renewed, asyncio.Event()

    async def counted(due: Any) -> Any:
        rounds.append(len(due))
        kept = await renewed(due)
        if sum(rounds) >= len(ids):
            all_were.set()
        return kept

    monkeypatch.setattr(worker, "_renewed", counted)
    for claim in claims:
        claim.look_at = boot_seconds()
        worker.hold(claim)
    async with asyncio.timeout(10):
        await all_were.wait()
    assert len(rounds) <= 2
    await worker.hand_back()


@pytest.mark.parametrize("swallowed", [0, 1])
async def test_work_is_cancelled_when_its_lease_is_lost(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch, swallowed: int
) -> None:
    """Also where the first cancellation gets lost on its way."""
    monkeypatch.setattr("app.runtime.leases._CANCEL_AGAIN", 0.05)
    await put(mongo, "a")
    worker = leases(mongo, "slow", timedelta(seconds=0.3))
    claim = await claimed(worker)

    async def work() -> None:
        async with worker.kept(claim):
            await mongo.collection("work").update_one({}, {"$set": {"state": "withdrawn"}})
            for _ in range(swallowed):
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
            await asyncio.sleep(60)

    async with asyncio.timeout(10):
        with pytest.raises(LostError):
            await work()
        await asyncio.sleep(0)  # nothing of the cancellation is left
    task = asyncio.current_task()
    assert task is not None
    assert not task.cancelling()
    assert (await stored(mongo))["state"] == "withdrawn"


@pytest.mark.slow
async def test_work_is_cancelled_when_its_lease_cannot_be_renewed(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process, which reaches the database, may have claimed it by then; and not a moment before."""
    await put(mongo, "a")
    worker = leases(mongo, "slow", timedelta(seconds=0.5))
    claim = await claimed(worker)
    ends = claim.until

    async def away(_: object) -> None:
        raise ConnectionFailure("planted")

    monkeypatch.setattr(worker, "_renewed", away)
    async with asyncio.timeout(10):
        with pytest.raises(LostError):
            async with worker.kept(claim):
                await asyncio.sleep(60)
    assert boot_seconds() >= ends


@pytest.mark.slow
async def test_a_renewal_that_hangs_ends_with_the_lease(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(mongo, "a")
    worker = leases(mongo, "slow", timedelta(seconds=0.5))
    claim = await claimed(worker)

    async def hang(_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(worker, "_renewed", hang)
    async with asyncio.timeout(10):
        with pytest.raises(LostError):
            async with worker.kept(claim):
                await asyncio.sleep(60)


@pytest.mark.slow
async def test_a_renewal_that_failed_is_tried_again(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(mongo, "a")
    worker = leases(mongo, "slow", timedelta(seconds=1))
    claim = await claimed(worker)
    renewed, failures, succeeded = worker._renewed, 2, asyncio.Event()

    async def at_first_away(due: Any) -> Any:
        nonlocal failures
        if failures:
            failures -= 1
            raise ConnectionFailure("planted")
        kept = await renewed(due)
        succeeded.set()
        return kept

    monkeypatch.setattr(worker, "_renewed", at_first_away)
    ends = claim.until
    async with worker.kept(claim), asyncio.timeout(10):
        await succeeded.wait()
    assert claim.until > ends
    assert await worker.settle(claim, {"state": "done"})


async def test_work_that_is_cancelled_from_outside_gives_its_row_back(mongo: Mongo) -> None:
    await put(mongo, "a")
    stopped, other = leases(mongo, "stopped"), leases(mongo, "other")
    claim = await claimed(stopped)
    begun = asyncio.Event()

    async def work() -> None:
        async with stopped.kept(claim):
            begun.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    again = await claimed(other)
    assert (again.attempt, again.tries) == (2, 1)


async def test_an_error_of_the_work_comes_through_and_the_row_stays_claimed(mongo: Mongo) -> None:
    await put(mongo, "a")
    worker = leases(mongo, "here")
    claim = await claimed(worker)
    with pytest.raises(Error):
        async with worker.kept(claim):
            raise Error
    assert await leases(mongo, "other").claim() is None
    assert await worker.failed(claim, Error(), DEAD)


async def test_a_row_that_is_claimed_again_by_its_own_process_is_lost_to_the_first_work(
    mongo: Mongo,
) -> None:
    """It stood still for longer than its lease, and found the row free when it woke."""
    await put(mongo, "a")
    worker = leases(mongo, "here")
    first = await claimed(worker)
    second: Claim[Row] | None = None

    async def work() -> None:
        nonlocal second
        async with worker.kept(first):
            past = {"$set": {"lease_until": mongo.now() - timedelta(seconds=1)}}
            await mongo.collection("work").update_one({}, past)
            second = await claimed(worker)
            worker.hold(second)
            await asyncio.sleep(60)

    for _ in range(2):  # the second time it does not even begin
        async with asyncio.timeout(10):
            with pytest.raises(LostError):
                await work()
    assert second is not None
    assert second.attempt == 2
    assert await worker.settle(second, {"state": "done"})


@pytest.mark.parametrize("hours", [-1, 1])
async def test_the_clock_of_the_process_decides_nothing(mongo: Mongo, hours: int) -> None:
    clock_off_by(mongo, timedelta(hours=hours))
    await put(mongo, "a")
    here, there = leases(mongo, "here"), leases(mongo, "there")
    claim = await claimed(here)
    assert await there.claim() is None
    for write in (here.renew, lambda each: here.progress(each, {})):
        assert await write(claim)
        assert await there.claim() is None
        until, now = (await stored(mongo))["lease_until"], await server_time(mongo)
        assert timedelta() < until.replace(tzinfo=None) - now.replace(tzinfo=None) <= LONG
    await mongo.collection("work").update_one(
        {}, [{"$set": {"lease_until": {"$subtract": ["$$NOW", 1]}}}]
    )
    taken = await claimed(there)
    assert await there.release(taken, LONG)
    assert await here.claim() is None
    assert await here.next_free() is None
    await mongo.collection("work").update_one({}, {"$unset": {"lease_until": ""}})
    again = await claimed(here)
    assert await here.release(again)
    assert await there.next_free() is not None
    await there.claim()


async def test_what_is_released_is_free_at_once_and_counts_no_try(mongo: Mongo) -> None:
    await put(mongo, "a")
    here, there = leases(mongo, "here"), leases(mongo, "there")
    for attempt in range(1, 6):
        claim = await claimed(here if attempt % 2 else there)
        assert (claim.attempt, claim.tries) == (attempt, 1)
        assert await (here if attempt % 2 else there).release(claim)
    assert (await stored(mongo))["owner"] is None


async def test_what_is_released_for_later_waits(mongo: Mongo) -> None:
    await put(mongo, "a")
    here = leases(mongo, "here")
    assert await here.release(await claimed(here), SHORT)
    assert await here.claim() is None
    assert (await claimed_in_the_end(here)).tries == 1


async def test_all_that_is_in_hand_is_handed_back(mongo: Mongo) -> None:
    await put(mongo, "a", "b")
    stopped, other = leases(mongo, "stopped"), leases(mongo, "other")
    for claim in [await claimed(stopped), await claimed(stopped)]:
        stopped.hold(claim)
    await stopped.hand_back()
    assert [(await claimed(other)).tries for _ in range(2)] == [1, 1]


async def test_after_the_last_try_a_row_is_a_dead_letter(
    mongo: Mongo, caplog: pytest.LogCaptureFixture
) -> None:
    await put(mongo, "a")
    worker = leases(mongo, "here")
    for tries in (1, 2, 3):
        claim = await claimed(worker)
        assert (claim.tries, worker.is_spent(claim)) == (tries, False)
        assert await worker.failed(claim, Error(), DEAD)
    assert await worker.claim() is None
    row = await stored(mongo)
    assert (row["state"], row["tries"]) == ("dead", 3)
    assert "lease_until" not in row
    (told,) = [each for each in caplog.records if each.message == "a row of work was given up"]
    assert (told.levelname, vars(told)["id"], vars(told)["error"]) == ("ERROR", "a", "Error")


async def test_work_that_kills_its_process_is_given_up(mongo: Mongo) -> None:
    """No end is ever told of; the claims are counted."""
    await put(mongo, "a")
    for tries in (1, 2, 3):
        mortal = leases(mongo, f"mortal-{tries}", SHORT)
        claim = await claimed_in_the_end(mortal)
        assert not mortal.is_spent(claim)
    heir = leases(mongo, "heir")
    claim = await claimed_in_the_end(heir)
    assert heir.is_spent(claim)
    assert await heir.give_up(claim, "NoEnd", DEAD)
    assert (await stored(mongo))["state"] == "dead"


async def test_tries_are_counted_from_the_last_progress_on(mongo: Mongo) -> None:
    await put(mongo, "a")
    worker = leases(mongo, "here")
    for _ in range(5):
        claim = await claimed(worker)
        assert claim.tries == 1
        assert await worker.progress(claim, {"note": {"$some": ["$state"]}})
        assert await worker.failed(claim, Error(), DEAD)
    row = await stored(mongo)
    assert row["note"] == {"$some": ["$state"]}, "what is written is no expression"
    assert row["attempt"] == 5


@pytest.mark.parametrize(
    "error",
    [
        pytest.param(ConnectionFailure("planted"), id="no-connection"),
        pytest.param(
            OperationFailure("x", 112, {"errorLabels": ["TransientTransactionError"]}),
            id="transient",
        ),
        pytest.param(Unavailable("planted"), id="unavailable"),
    ],
)
async def test_a_database_that_is_away_counts_no_try(
    mongo: Mongo, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("app.runtime.leases._DATABASE_AWAY", timedelta())
    await put(mongo, "a")
    worker = leases(mongo, "here")
    for failures in range(3):
        for _ in range(5):
            claim = await claimed(worker)
            assert claim.tries == failures + 1
            assert await worker.failed(claim, error, DEAD)
        if failures < 2:
            assert await worker.failed(await claimed(worker), Error(), DEAD)
    assert (await stored(mongo))["state"] == "open"


async def test_a_query_that_the_database_refuses_is_a_fault(mongo: Mongo) -> None:
    await put(mongo, "a")
    worker = leases(mongo, "here")
    assert await worker.failed(await claimed(worker), OperationFailure("x", 2), DEAD)
    assert (await claimed(worker)).tries == 2


async def test_rows_born_leased_are_their_processs_until_another_claims(mongo: Mongo) -> None:
    """They are inserted with a lease, without an owner: nobody has claimed them yet."""
    until = mongo.now() + LONG
    await put(mongo, "a", "b", "c", lease_until=until)
    here, there = leases(mongo, "here"), leases(mongo, "there")
    born = {id_: here.born({"_id": id_}, LONG) for id_ in "abc"}
    assert await there.claim() is None
    assert await here.renew(born["a"])
    assert await here.failed(born["a"], Error(), DEAD)
    assert (await claimed(there)).tries == 2
    await mongo.collection("work").update_one({"_id": "b"}, {"$unset": {"lease_until": ""}})
    assert (await claimed(there)).id == "b"
    assert await here.settle_many(list(born.values())) == 1
    assert "lease_until" not in await stored(mongo, "c")
    assert (await stored(mongo, "b"))["owner"] == "there"


async def test_what_a_process_held_that_is_gone_is_free_at_once(mongo: Mongo) -> None:
    await put(mongo, "a", "b")
    gone, other, heir = (leases(mongo, each) for each in ("gone", "other", "heir"))
    await claimed(gone)
    await claimed(other)
    await heir.take_from("gone")
    assert (await claimed(heir)).id == "a"
    assert await heir.claim() is None


CHILD = """
import asyncio, sys
from datetime import timedelta
from app.runtime.leases import BackOff, Leases
from app.runtime.mongo import Mongo
from app.settings import Settings

async def main(uri, database):
    mongo = await Mongo.open(Settings(mongodb_uri=uri, mongodb_database=database))
    back_off = BackOff(timedelta(), timedelta(), 3)
    leases = Leases(mongo, "work", "child", lease=timedelta(seconds=2), back_off=back_off)
    claim = await leases.claim()
    async with leases.kept(claim):
        print("claimed", flush=True)
        await asyncio.sleep(60)

asyncio.run(main(*sys.argv[1:]))
"""


@contextlib.contextmanager
def child(mongod: str, mongo: Mongo) -> Iterator[subprocess.Popen[str]]:
    """A process that works on the row; it is killed at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, mongod, mongo.db.name],
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "claimed\n"
            yield process
        finally:
            process.kill()


@pytest.mark.processes
async def test_the_row_of_a_killed_process_is_free_when_its_lease_ends(
    mongod: str, mongo: Mongo
) -> None:
    await put(mongo, "a")
    heir = leases(mongo, "heir")
    with child(mongod, mongo) as process:
        await asyncio.sleep(2.5)
        assert await heir.claim() is None, "it renews its lease for as long as it lives"
        process.kill()
        killed = time.monotonic()
        claim = await claimed_in_the_end(heir)
    assert time.monotonic() - killed < 3
    assert (claim.attempt, claim.tries) == (2, 2)


@pytest.mark.parametrize(
    ("tries", "seconds"),
    [(0, 2), (1, 2), (2, 4), (3, 8), (9, 512), (10, 900), (99, 900), (100, None), (10**6, None)],
)
def test_each_pause_is_twice_as_long_up_to_the_longest(tries: int, seconds: int | None) -> None:
    back_off = BackOff(timedelta(seconds=2), timedelta(minutes=15), most=100)
    pause = back_off.pause(tries)
    assert pause == (None if seconds is None else timedelta(seconds=seconds))
