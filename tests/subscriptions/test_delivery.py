"""From commit to receipt on a real database and a real endpoint, in one process and in several."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from statistics import median
from typing import Any

import pytest

from app.records.versions import Change
from app.runtime.leases import BackOff
from app.runtime.mongo import Mongo
from app.store.store import Store
from app.subscriptions.channels.protocol import NOTICE_ID_HEADER, REFUSED
from app.subscriptions.sending import lifecycle, worker as worker_module
from app.subscriptions.sending.retry import RetryPolicy
from tests.builders.deliveries import create, make_due, rows, status_of, update, working
from tests.builders.receiver import Receiver, receiving
from tests.builders.subscriptions import classic, encounter, topic_based

pytestmark = [pytest.mark.mongo, pytest.mark.slow]


async def test_a_topic_based_subscription_from_handshake_to_notice(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    async with working(mongo, store) as worker:
        subscription = topic_based(
            "patient=p1", endpoint=receiver.url + "/hook?k=v", header=["Authorization: Bearer s3"]
        )
        stored = await create(store, subscription)
        assert (await status_of(store, stored.id))[0] == "requested"
        (handshake,) = await receiver.wait(1, events=False)
        assert handshake.kind == "handshake"
        assert handshake.parameter("status") == "requested"
        await worker.drain()
        assert await status_of(store, stored.id) == ("active", None)

        admitted = await create(store, encounter(patient="p1"))
        await create(store, encounter(patient="p2"))
        await create(store, encounter(status="planned", patient="p1"))
        (notice,) = await receiver.wait(1)
        await worker.drain()
    assert len(receiver.events) == 1
    assert (notice.method, notice.path) == ("POST", "/hook?k=v")
    assert notice.headers["authorization"] == "Bearer s3"
    assert notice.headers["content-type"] == "application/fhir+json"
    assert notice.focus == f"http://carerelay.test/fhir/Encounter/{admitted.id}"
    assert notice.number == 1
    (row,) = await rows(mongo)
    assert notice.headers[NOTICE_ID_HEADER.lower()] == row["_id"] == notice.json["id"]
    assert (row["state"], row["attempt"], row["number"]) == ("delivered", 1, 1)
    assert "open" not in row
    (attempt,) = row["attempts"]
    assert (attempt["status"], attempt["answer"]) == (200, "taken")
    assert len(attempt["sha256"]) == 64
    assert await worker.outbox.pending_count() == 0


@pytest.mark.parametrize(
    ("payload", "method", "path"),
    [
        pytest.param(None, "POST", "/base", id="empty"),
        pytest.param("application/fhir+json", "PUT", "/base/Encounter/", id="payload"),
    ],
)
async def test_a_classic_subscription(
    mongo: Mongo,
    store: Store,
    receiver: Receiver,
    payload: str | None,
    method: str,
    path: str,
) -> None:
    """No handshake; notices while the criteria match, none on a deletion or when they no longer match."""
    async with working(mongo, store) as worker:
        stored = await create(store, classic(endpoint=receiver.url + "/base", payload=payload))
        await worker.drain()
        assert await status_of(store, stored.id) == ("active", None)
        first = await create(store, encounter())
        second = await update(store, first, period={"start": "2026-11-21"})
        third = await update(store, second, status="finished")
        await store.commit([Change("delete", "Encounter", third.id, None, third)])
        await worker.drain()
    assert len(receiver.requests) == 2
    for received, version in zip(receiver.requests, (first, second), strict=True):
        assert received.method == method
        assert received.path == path + (first.id if payload else "")
        assert received.body.decode() == (version.text if payload else "")


async def test_whole_resources_are_those_of_the_event(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """A retry sends the version that the notice is about, not the one there is by then."""
    patient = await create(store, {"resourceType": "Patient"}, "p1")
    receiver.answers([503])
    async with working(mongo, store, loops=False) as worker:
        await create(store, topic_based(content="full-resource", endpoint=receiver.url))
        await worker.run_once()
        first = await create(store, encounter())
        await worker.run_once()
        await update(store, first, status="finished")
        await make_due(mongo)
        await worker.run_once()
    failed, repeated = receiver.events
    entry = repeated.json["entry"]
    assert entry[1]["resource"] == first.resource()
    assert entry[2]["resource"] == patient.resource()
    assert failed.body == repeated.body
    assert failed.headers[NOTICE_ID_HEADER.lower()] == repeated.headers[NOTICE_ID_HEADER.lower()]


async def test_events_during_the_handshake_are_held_and_then_sent(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    async with working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url))
        await create(store, encounter())
        await worker.drain()
        assert [r.kind for r in receiver.requests] == ["handshake", "event-notification"]


async def test_a_refused_handshake_ends_in_error_until_the_client_asks_again(
    mongo: Mongo, store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes meanwhile is numbered, and sent once the Subscription is active."""
    monkeypatch.setattr(lifecycle, "_BACK_OFF", BackOff(timedelta(), timedelta(), most=1))
    receiver.answer = lambda _: 500
    async with working(mongo, store) as worker:
        stored = await create(store, topic_based(endpoint=receiver.url))
        await worker.drain()
        status, error = await status_of(store, stored.id)
        assert status == "error"
        assert error == REFUSED
        await create(store, encounter(patient="waits"))
        await worker.drain()
        assert len(receiver.requests) == 1
        (row,) = await rows(mongo)
        assert (row["state"], row["open"]) == ("queued", True)

        receiver.answer = lambda _: 200
        current = await store.read("Subscription", stored.id)
        assert current is not None
        await update(store, current, status="requested")
        await worker.drain()
        assert (await status_of(store, stored.id))[0] == "active"
        assert receiver.requests[1].parameter("events-since-subscription-start") == "1"
        await create(store, encounter(patient="seen"))
        await worker.drain()
    assert [r.number for r in receiver.events] == [1, 2]
    assert [row["state"] for row in await rows(mongo)] == ["delivered", "delivered"]


async def test_a_refused_handshake_is_sent_again(
    mongo: Mongo, store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifecycle, "_BACK_OFF", BackOff(timedelta(), timedelta(), most=3))
    statuses = [503, 404]
    receiver.answer = lambda _: statuses.pop(0) if statuses else 200
    async with working(mongo, store, loops=False) as worker:
        stored = await create(store, topic_based(endpoint=receiver.url))
        await worker.drain()
        for _ in range(2):
            assert await status_of(store, stored.id) == ("requested", None)
            await worker.run_once()
        assert await status_of(store, stored.id) == ("active", None)
    assert [each.kind for each in receiver.requests] == ["handshake"] * 3


async def test_a_failing_endpoint_is_tried_again_until_it_answers(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    receiver.answers([500, 429, 503])
    async with working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url))
        await create(store, encounter())
        await worker.drain()
        for _ in range(3):
            (row,) = await rows(mongo)
            assert row["state"] == "retrying"
            await make_due(mongo)
            await worker.run_once()
    (row,) = await rows(mongo)
    assert (row["state"], row["attempt"]) == ("delivered", 4)
    assert [attempt["status"] for attempt in row["attempts"]] == [500, 429, 503, 200]
    assert len({received.body for received in receiver.events}) == 1


async def test_the_first_retry_comes_within_a_second_by_itself(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    receiver.answers([503])
    slowest = RetryPolicy(window=3600, jitter=lambda: 1.0)
    async with working(mongo, store, policy=slowest):
        await create(store, topic_based(endpoint=receiver.url))
        await create(store, encounter())
        first, second = await receiver.wait(2)
    assert second.at - first.at < 1.5  # 0.9 where nothing else is running


async def test_a_retry_does_not_wait_for_the_next_sweep(
    mongo: Mongo, store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "SWEEP_EVERY", 60)
    receiver.answers([503])
    async with working(mongo, store, policy=RetryPolicy(window=3600)):
        await create(store, topic_based(endpoint=receiver.url))
        await create(store, encounter())
        await receiver.wait(2)


async def test_an_endpoint_that_is_gone_ends_the_subscription(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """What waits is settled, and no event counts any more."""
    receiver.answers([410], then=200)
    async with working(mongo, store, loops=False) as worker:
        stored = await create(store, topic_based(endpoint=receiver.url))
        await worker.run_once()
        await create(store, encounter())
        await worker.drain()
        assert await status_of(store, stored.id) == ("off", REFUSED)
        await create(store, encounter())
        await worker.run_once()
    assert len(receiver.events) == 1
    assert [(row["state"], row["number"]) for row in await rows(mongo)] == [("dead", 1)]


async def test_an_exhausted_window_ends_in_error(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    receiver.answers([], then=503)
    async with working(mongo, store, loops=False, policy=RetryPolicy(window=0.0)) as worker:
        stored = await create(store, topic_based(endpoint=receiver.url))
        await worker.run_once()
        await create(store, encounter())
        await worker.drain()
        assert await status_of(store, stored.id) == ("error", REFUSED)
    (row,) = await rows(mongo)
    assert (row["state"], row["open"]) == ("retrying", True)


async def test_nothing_leaves_for_an_ended_or_deleted_subscription(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    async with working(mongo, store, loops=False) as worker:
        deleted = await create(store, topic_based(endpoint=receiver.url))
        off = await create(store, topic_based(endpoint=receiver.url))
        await worker.run_once()
        soon = (mongo.now() + timedelta(milliseconds=400)).isoformat()
        ended = await create(store, {**topic_based(endpoint=receiver.url), "end": soon})
        await worker.run_once()
        for stored in (deleted, off):
            current = await store.read("Subscription", stored.id)
            assert current is not None
            if stored is deleted:
                await store.commit([Change("delete", "Subscription", stored.id, None, current)])
            else:
                await update(store, current, status="off")
        await asyncio.sleep(0.5)
        await create(store, encounter())
        await worker.run_once()
        assert (await status_of(store, ended.id))[0] == "off"
    assert not receiver.events
    assert not await rows(mongo)


async def test_a_lane_waits_while_its_first_is_retried_and_others_do_not(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    receiver.answers([503])
    async with working(mongo, store, loops=False) as worker:
        await create(store, classic("Encounter?", receiver.url, "application/fhir+json"))
        await worker.run_once()
        first = await create(store, encounter(patient="p1"))
        await worker.run_once()
        second = await update(store, first, status="finished")
        other = await create(store, encounter(patient="p2"))
        await worker.run_once()
        assert [r.json["id"] for r in receiver.requests] == [first.id, other.id]
        await make_due(mongo)
        await worker.run_once()
    versions = [(r.json["id"], r.json["meta"]["versionId"]) for r in receiver.requests]
    assert versions == [(first.id, "1"), (other.id, "1"), (first.id, "1"), (first.id, "2")]
    assert second.version == 2
    assert await worker.ledger.open_count() == 0


async def test_numbers_are_contiguous_over_processes_and_nothing_is_lost_or_doubled(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """Three processes' worth of stores and workers on one database, one hot subscription."""
    stores = [store, Store(mongo), Store(mongo)]
    async with (
        working(mongo, stores[0]) as first,
        working(mongo, stores[1]) as second,
        working(mongo, stores[2]) as third,
    ):
        await create(store, topic_based(endpoint=receiver.url))
        await first.drain()
        for worker in (second, third):
            await worker.registry.refresh()
        created = await asyncio.gather(
            *(create(stores[i % 3], encounter(patient=f"p{i}")) for i in range(60))
        )
        await receiver.wait(60)
        for worker in (first, second, third):
            await worker.drain()
    assert sorted(r.number for r in receiver.events) == list(range(1, 61))
    assert {r.focus.rpartition("/")[2] for r in receiver.events} == {s.id for s in created}


async def test_versions_from_different_processes_keep_their_order(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """The newer version's process is faster; the older one, still unrecorded elsewhere, goes out first."""
    elsewhere = Store(mongo)  # a process that has committed and not come to record it
    async with working(mongo, store, loops=False) as worker:
        await create(store, classic("Encounter?", receiver.url, "application/fhir+json"))
        await worker.run_once()
        first = await create(elsewhere, encounter())
        second = await update(elsewhere, first, status="onleave")
        await update(store, second, status="finished")
        await worker.run_once()
    assert [r.json["meta"]["versionId"] for r in receiver.requests] == ["1", "2", "3"]
    assert [row["number"] for row in await rows(mongo)] == [1, 2, 3]


async def test_what_a_dead_process_committed_is_taken_over(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    dead = Store(mongo)  # commits, and never records
    async with working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url))
        await worker.run_once()
        stay = await create(dead, encounter())
        await worker.run_once()
        assert not receiver.events
        await make_due(mongo)
        await worker.run_once()
    (notice,) = receiver.events
    assert notice.focus.endswith(stay.id)


async def test_what_a_dead_process_was_sending_is_sent_again(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """Killed between the record and the settlement: the lease ends, another takes the row with the next attempt."""
    async with working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url))
        await worker.run_once()
        await create(store, encounter())
        await worker.drain()
        await mongo.collection("deliveries").update_many(
            {},
            {
                "$set": {
                    "state": "sending",
                    "open": True,
                    "owner": "dead",
                    "next_at": mongo.now() + timedelta(seconds=60),
                }
            },
        )
        await worker.run_once()
        assert len(receiver.events) == 1
        await make_due(mongo)
        await worker.run_once()
    assert len(receiver.events) == 2
    (row,) = await rows(mongo)
    assert (row["state"], row["attempt"]) == ("delivered", 2)
    assert "owner" not in row


async def test_a_requested_subscription_of_a_dead_process_is_proven_by_another(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    stored = await create(Store(mongo), topic_based(endpoint=receiver.url))
    async with working(mongo, store, loops=False) as worker:
        await worker.run_once()
        await worker.run_once()
    assert (await status_of(store, stored.id))[0] == "active"
    assert len(receiver.requests) == 1


async def test_another_process_learns_of_a_subscription_within_a_second(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    elsewhere = Store(mongo)
    async with working(mongo, store) as here, working(mongo, elsewhere) as there:
        await create(store, topic_based(endpoint=receiver.url))
        await here.drain()
        asked = time.perf_counter()
        while len(there.registry) == 0:
            await there.run_once()
        assert time.perf_counter() - asked < 3
        await create(elsewhere, encounter())
        await receiver.wait(1)


async def test_a_heartbeat_is_sent_when_nothing_happens(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    async with working(mongo, store, loops=False) as worker:
        stored = await create(store, topic_based(endpoint=receiver.url, heartbeat=60))
        await worker.run_once()
        await worker.run_once()
        assert [r.kind for r in receiver.requests] == ["handshake"]
        await mongo.collection("subscription_state").update_one(
            {"_id": stored.id}, {"$set": {"heartbeat_at": mongo.now() - timedelta(seconds=1)}}
        )
        await worker.run_once()
        await worker.run_once()
    assert [r.kind for r in receiver.requests] == ["handshake", "heartbeat"]
    assert receiver.requests[-1].parameter("status") == "active"


async def test_a_hanging_endpoint_delays_nobody_else(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    async with receiving() as hanging, working(mongo, store) as worker:
        await create(store, topic_based(endpoint=hanging.url, timeout=2))
        await create(store, topic_based(endpoint=receiver.url))
        await worker.drain()
        hanging.answer = lambda _: None
        begun = time.perf_counter()
        for number in range(20):
            await create(store, encounter(patient=f"p{number}"))
        await receiver.wait(20)
        assert time.perf_counter() - begun < 3
        hanging.closing.set()  # or the worker's end waits for its attempts


async def test_the_first_attempt_leaves_within_milliseconds_of_the_commit(
    mongo: Mongo, store: Store, receiver: Receiver, record_property: Any
) -> None:
    waits = []
    async with working(mongo, store) as worker:
        await create(store, topic_based(endpoint=receiver.url))
        await worker.drain()
        for number in range(40):
            await create(store, encounter(patient=f"p{number}"))
            committed = time.perf_counter()
            received = await receiver.wait(number + 1)
            waits.append((received[-1].at - committed) * 1000)
    record_property("commit_to_receipt_ms_p50", round(median(waits), 2))
    assert median(waits) < 50
