"""Endpoints that take no notices for a while: nothing that waits is lost, and waiting costs nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from app.records.versions import Change
from app.runtime.mongo import Mongo
from app.store.store import Store
from app.subscriptions.channels.protocol import REFUSED
from app.subscriptions.ledger.ledger import BEHIND, WAITING
from app.subscriptions.ledger.retention import EXPIRED
from app.subscriptions.sending import backlog
from app.subscriptions.sending.retry import LONGEST_RETRY_AFTER, RetryPolicy
from app.subscriptions.sending.worker import Worker
from tests.builders.deliveries import create, make_due, rows, status_of, update, working
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import encounter, topic_based
from tests.conftest import make_settings

pytestmark = [pytest.mark.mongo, pytest.mark.slow]
IMPATIENT = RetryPolicy(window=3600, jitter=lambda: 0.0, refusal_window=0.0)


@pytest.fixture
async def mongo(mongod: str) -> AsyncIterator[Mongo]:
    """A fresh database. What takes long here is time that has to pass, whichever the driver."""
    mongo = await Mongo.open(make_settings(mongod))
    yield mongo
    await mongo.close()


async def ask_again(store: Store, subscription: str) -> None:
    current = await store.read("Subscription", subscription)
    assert current is not None
    await update(store, current, status="requested")


async def admissions(store: Store, count: int, begin: int = 0) -> None:
    for number in range(begin, begin + count):
        await create(store, encounter(patient=f"p{number}"))


async def in_error(worker: Worker, store: Store, receiver: Receiver) -> str:
    """A Subscription that is in error, with one notice that waits."""
    stored = await create(store, topic_based(endpoint=receiver.url))
    await worker.drain()
    receiver.answers([], then=404)
    await admissions(store, 1)
    await worker.drain()
    assert await status_of(store, stored.id) == ("error", REFUSED)
    return stored.id


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_refusal_for_a_while_ends_nothing(
    mongo: Mongo, store: Store, receiver: Receiver, status: int
) -> None:
    """The endpoint is being deployed, or its token was changed."""
    receiver.answers([status, status])
    async with working(mongo, store) as worker:
        stored = await create(store, topic_based(endpoint=receiver.url))
        await worker.drain()
        await admissions(store, 1)
        await receiver.wait(3)
        await worker.drain()
        assert await status_of(store, stored.id) == ("active", None)
    (row,) = await rows(mongo)
    assert (row["state"], [each["status"] for each in row["attempts"]]) == (
        "delivered",
        [status, status, 200],
    )
    assert "rejected_at" not in row


async def test_what_waits_through_an_error_goes_out_once_the_client_asks_again(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """Those of before, the one that failed, and those that came while it was in error: the oldest first."""
    async with working(mongo, store, policy=IMPATIENT) as worker:
        id_ = await in_error(worker, store, receiver)
        await admissions(store, 19, begin=1)
        await worker.drain()
        waiting = await rows(mongo)
        assert [row["number"] for row in waiting] == list(range(1, 21))
        assert {row["state"] for row in waiting[1:]} == {"queued"}
        assert all(row["open"] for row in waiting)
        failed = len(receiver.events)
        receiver.answers([])
        await ask_again(store, id_)
        received = await receiver.wait(failed + 20)
        await worker.drain()
    told = [each.number for each in received[failed:]]
    assert sorted(told) == list(range(1, 21))
    assert 1 in told[:4], "the first of several lanes that are sent side by side"
    assert {row["state"] for row in await rows(mongo)} == {"delivered"}


@pytest.mark.parametrize("end", ["off", "deleted", "gone"])
async def test_the_end_of_a_subscription_settles_what_waits(
    mongo: Mongo, store: Store, receiver: Receiver, end: str
) -> None:
    async with working(mongo, store, policy=IMPATIENT) as worker:
        id_ = await in_error(worker, store, receiver)
        await admissions(store, 1, begin=1)
        await worker.drain()
        current = await store.read("Subscription", id_)
        assert current is not None
        if end == "off":
            await update(store, current, status="off")
        elif end == "deleted":
            await store.commit([Change("delete", "Subscription", id_, None, current)])
        else:
            receiver.answer = lambda _: 410
            await ask_again(store, id_)
            await worker.drain()
            answered = REFUSED
            assert await status_of(store, id_) == ("off", answered)
        await worker.drain()
    assert [row["state"] for row in await rows(mongo)] == ["dead", "suppressed"]
    assert not [row for row in await rows(mongo) if "open" in row]


async def test_what_waits_longer_than_rows_are_kept_is_given_up_and_still_to_be_seen(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    async with working(mongo, store, policy=IMPATIENT) as worker:
        await in_error(worker, store, receiver)
        retention = worker.retention
        for days, state in ((0.9, "retrying"), (1.1, "dead"), (1.9, "dead")):
            await retention.clear(mongo.now() + retention.deliveries * days)
            (row,) = await rows(mongo)
            assert (row["state"], "open" in row) == (state, state == "retrying"), days
        assert row["reason"] == EXPIRED
        await retention.clear(mongo.now() + retention.deliveries * 3)
    assert not await rows(mongo)


async def test_one_notice_that_is_never_taken_stops_nobody_else(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """When its window is over it is dead alone, since later ones were taken."""

    def answer(received: Any) -> int:
        is_event = b'"handshake"' not in received.body
        return 500 if is_event and received.number == 1 else 200

    receiver.answer = answer
    async with working(mongo, store, loops=False) as worker:
        stored = await create(store, topic_based(endpoint=receiver.url))
        await worker.run_once()
        await admissions(store, 1)
        await worker.drain()
        await admissions(store, 1, begin=1)
        await worker.drain()
        long_ago = {"first_at": mongo.now() - timedelta(seconds=3601)}
        await mongo.collection("deliveries").update_one({"number": 1}, {"$set": long_ago})
        await make_due(mongo)
        await worker.run_once()
        assert await status_of(store, stored.id) == ("active", None)
    poison, good = await rows(mongo)
    assert (poison["state"], good["state"]) == ("dead", "delivered")
    assert poison["reason"] == f"{REFUSED}, and later notices were taken"


async def test_an_endpoint_that_is_dead_for_the_whole_window_ends_in_error_whatever_is_tried(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """New notices are tried before those that have failed, whose window counts all the same."""
    receiver.answers([], then=503)
    async with working(mongo, store, loops=False) as worker:
        stored = await create(store, topic_based(endpoint=receiver.url))
        await worker.run_once()
        await admissions(store, 8)
        await worker.drain()
        await make_due(mongo)
        await worker.run_once()
        failed = {"attempt": {"$gt": 0}}
        long_ago = {"first_at": mongo.now() - timedelta(seconds=3601)}
        await mongo.collection("deliveries").update_many(failed, {"$set": long_ago})
        async with asyncio.timeout(20):
            while (await status_of(store, stored.id))[0] == "active":
                await worker.run_once()
                await asyncio.sleep(0.1)
    assert await status_of(store, stored.id) == ("error", REFUSED)
    assert all(row["open"] for row in await rows(mongo))


@pytest.mark.parametrize("wait", ["315360000", "999999999999999", "9" * 400])
async def test_a_wait_of_years_is_an_hour(
    mongo: Mongo, store: Store, receiver: Receiver, wait: str
) -> None:
    receiver.answers([503])
    receiver.headers = {"Retry-After": wait}
    async with working(mongo, store, loops=False) as worker:
        stored = await create(store, topic_based(endpoint=receiver.url))
        await worker.run_once()
        await admissions(store, 1)
        await worker.drain()
        (row,) = await rows(mongo)
        assert row["state"] == "retrying"
        later = row["next_at"] - row["attempts"][0]["at"]
        assert 3500 < later.total_seconds() <= LONGEST_RETRY_AFTER + 1
        assert await status_of(store, stored.id) == ("active", None)
        await make_due(mongo)
        await worker.run_once()
    assert [row["state"] for row in await rows(mongo)] == ["delivered"]


async def test_rows_that_wait_are_not_touched_and_all_go_out_in_the_end(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """Some of a dead endpoint's rows are each the first of their lane, others wait behind one."""
    receiver.answers([], then=503)
    async with working(mongo, store) as worker:
        await create(store, topic_based(endpoint=receiver.url))
        await worker.drain()
        await admissions(store, 20)
        for number in range(20):
            await create(store, encounter(patient=f"p{number}"))
        await worker.drain()
        await _until_marked(mongo, 40)
        before = await _updated(mongo)
        await receiver.wait(len(receiver.events) + 2)
        # A probe is a claim and a settlement.
        assert await _updated(mongo) - before < 20
        receiver.answers([])
        failed = len(receiver.events)
        await receiver.wait(failed + 40)
        await worker.drain()
    taken = [each.number for each in receiver.events[failed:]]
    assert sorted(taken) == list(range(1, 41))
    assert all(taken.index(n) < taken.index(n + 20) for n in range(1, 21)), "lanes keep their order"


async def _until_marked(mongo: Mongo, count: int) -> None:
    marks = {"open": True, "next_at": {"$in": [WAITING, BEHIND]}}
    async with asyncio.timeout(20):
        while await mongo.collection("deliveries").count_documents(marks) < count:  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def _updated(mongo: Mongo) -> int:
    """How often rows of the ledger were updated."""
    totals = (await mongo.client.admin.command("top"))["totals"]
    return int(totals[f"{mongo.db.name}.deliveries"]["update"]["count"])


@pytest.mark.parametrize("found_by", ["a take-over", "the time that has passed"])
async def test_a_row_that_was_forgotten_behind_another_is_found(
    mongo: Mongo,
    store: Store,
    receiver: Receiver,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    found_by: str,
) -> None:
    """Its process has settled the one before it, and died before it looked for the next."""
    if found_by != "a take-over":
        monkeypatch.setattr(backlog, "_FORGOTTEN_EVERY", 0.5)
    async with working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url))
        await worker.run_once()
        await admissions(store, 1)
        await worker.drain()
        (row,) = await rows(mongo)
        forgotten = {**row, "_id": "forgotten", "event": "e2", "number": 2, "state": "queued"}
        forgotten |= {"open": True, "next_at": BEHIND, "owner": "", "attempt": 0, "attempts": []}
        await mongo.collection("deliveries").insert_one(forgotten)
        if found_by == "a take-over":
            await worker.run_once()
            assert len(receiver.events) == 1
            await worker._take_over("dead", mongo.now())
            await worker.run_once()
        async with asyncio.timeout(10):
            while len(receiver.events) < 2:
                await worker.run_once()
    assert [each.number for each in receiver.events] == [1, 2]
    assert "forgotten rows" in caplog.messages


async def test_rows_of_a_subscription_that_another_process_has_just_made_are_not_closed(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """This process finds a row that is due before it has heard of its Subscription."""
    elsewhere = Store(mongo)
    receiver.answers([503])
    async with (
        working(mongo, store, loops=False) as here,
        working(mongo, elsewhere, loops=False) as there,
    ):
        await create(elsewhere, topic_based(endpoint=receiver.url))
        await there.drain()
        await admissions(elsewhere, 1)
        await there.drain()
        await make_due(mongo)
        await here._backlog.sweep()
        await here.drain()
    assert [row["state"] for row in await rows(mongo)] == ["delivered"]
