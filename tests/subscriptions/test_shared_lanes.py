"""Subscriptions that are kept for one Endpoint: their notices about a patient go out in one order."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from typing import Any

import pytest

from app.fhir.codes import SUBSCRIPTION_ENDPOINT, SUBSCRIPTION_ORIGIN, SUBSCRIPTION_OWNER
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store import format
from app.store.store import Store
from app.subscriptions.ledger.ledger import BEHIND
from app.subscriptions.sending.worker import Worker
from tests.builders.deliveries import create, rows, update, working
from tests.builders.receiver import Received, Receiver, receiving
from tests.builders.subscriptions import ADMISSION, encounter, topic_based
from tests.conftest import make_settings
from tests.subscriptions.test_order import at_work, in_time, settled

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

# What the other driver does is no different here.
one_driver = pytest.mark.parametrize("mongo", ["pymongo"], indirect=True)
DISCHARGE = ADMISSION.replace("admission", "discharge")
CANCELLED = ADMISSION.replace("admission", "cancelled")
CONDITION = ADMISSION.replace("encounter-admission", "condition-new")
SEQUENCE = "~Organization/o~Endpoint/e~visits"


def kept(topic: str, url: str, **more: Any) -> dict[str, Any]:
    """As the server keeps it for the Endpoint of a practice."""
    tags = [
        {"system": SUBSCRIPTION_ORIGIN, "code": "endpoint"},
        {"system": SUBSCRIPTION_OWNER, "code": "Organization/o"},
    ]
    place = {"url": SUBSCRIPTION_ENDPOINT, "valueReference": {"reference": "Endpoint/e"}}
    made = topic_based(endpoint=url, **more)
    return made | {"criteria": topic, "meta": {"tag": tags}, "extension": [place]}


def of(received: Received) -> str:
    return str(received.parameter("subscription")["reference"].rpartition("/")[2])


async def test_no_topic_overtakes_another_whatever_fails_and_whoever_sends(mongod: str) -> None:
    """Visits that are taken back or end at once, written through two processes; every third attempt fails."""
    chance = random.Random(16)
    mongo = await Mongo.open(make_settings(mongod))
    stores = [Store(mongo) for _ in range(2)]
    await stores[0].prepare()
    topics = (ADMISSION, DISCHARGE, CANCELLED)

    async def visit(number: int) -> None:
        store = stores[number % 2]
        stored = await create(store, encounter(patient=f"p{number % 4}"), f"visit-{number}")
        end: dict[str, Any] = {"status": "cancelled"}
        if number % 3:
            end = {"status": "finished", "period": {"end": "2026-01-02T00:00:00Z"}}
        await update(store, stored, **end)

    async with receiving() as receiver, at_work(mongo, stores) as live:
        for topic in topics:
            await create(stores[0], kept(topic, receiver.url), topic.rpartition("-")[2])
        await in_time("the Subscriptions are active", live[0].drain())
        await live[1].registry.refresh()
        receiver.answer = lambda _: 503 if chance.random() < 0.3 else 200
        await in_time("all is written", asyncio.gather(*(visit(n) for n in range(12))))
        receiver.answer = lambda _: 200
        await settled(mongo, live, receiver)
    ledger = await rows(mongo)
    await mongo.close()
    for topic in topics:
        numbers = [row["number"] for row in ledger if row["topic"] == topic]
        assert numbers == list(range(1, len(numbers) + 1))
    assert sorted(row["turn"] for row in ledger) == list(range(1, 25))
    told: dict[str, list[bool]] = defaultdict(list)
    for received in receiver.events:
        told[received.focus].append(of(received) != "admission")
    assert len(told) == 12
    for steps in told.values():
        assert steps == sorted(steps), "the end was told before the admission"
        assert set(steps) == {False, True}
    by_patient: dict[str, list[int]] = defaultdict(list)
    place = {(row["subscription"], row["focus"]["id"]): row for row in ledger}
    for received in receiver.events:
        row = place[of(received), received.focus.rpartition("/")[2]]
        by_patient[row["lane"]].append(row["turn"])
    assert all(turns == sorted(turns) for turns in by_patient.values())


@one_driver
async def test_what_waits_behind_another_subscription_goes_on_when_that_one_ends(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    async with working(mongo, store) as worker:
        admission = await create(store, kept(ADMISSION, receiver.url), "admission")
        await create(store, kept(DISCHARGE, receiver.url), "discharge")
        await worker.drain()
        receiver.answer = lambda received: 503 if of(received) == "admission" else 200
        visit = await create(store, encounter())
        await update(store, visit, status="finished")
        await worker.drain()
        (waiting,) = await rows(mongo, subscription="discharge")
        assert (waiting["lane"], waiting["next_at"]) == (f"{SEQUENCE}|Patient/p1", BEHIND)
        current = await store.read("Subscription", admission.id)
        assert current is not None
        await update(store, current, status="off")
        await receiver.until(lambda: any(of(each) == "discharge" for each in receiver.events))


@one_driver
async def test_an_endpoint_that_refuses_diagnoses_is_told_of_visits(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    condition = {"resourceType": "Condition", "code": {"text": "Asthma"}}
    async with working(mongo, store) as worker:
        await create(store, kept(CONDITION, receiver.url), "condition")
        await create(store, kept(ADMISSION, receiver.url), "admission")
        await worker.drain()
        receiver.answer = lambda received: 422 if of(received) == "condition" else 200
        await create(store, {**condition, "subject": {"reference": "Patient/p1"}})
        await receiver.until(lambda: any(of(each) == "condition" for each in receiver.events))
        await create(store, encounter(patient="p1"))
        await receiver.until(lambda: any(of(each) == "admission" for each in receiver.events))
    open_rows = [row["subscription"] for row in await rows(mongo) if "open" in row]
    assert open_rows == ["condition"]


@one_driver
async def test_what_is_sent_together_is_of_one_subscription_and_overtakes_nothing(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """Two admissions with a discharge in between: a notice may hold both events, and does not."""
    async with working(mongo, store, loops=False) as worker:
        await create(store, kept(ADMISSION, receiver.url, max_count=5), "admission")
        await create(store, kept(DISCHARGE, receiver.url, max_count=5), "discharge")
        await worker.run_once()
        receiver.answer = lambda _: 503
        first = await create(store, encounter(), "first")
        await worker.drain()
        await update(store, first, status="finished")
        await create(store, encounter(), "second")
        await create(store, encounter(), "third")
        await worker.drain()
        receiver.answer = lambda _: 200
        seen = len(receiver.events)
        await until_settled(mongo, worker)
    taken = [(of(each), each.number) for each in receiver.events[seen:]]
    assert taken == [("admission", 1), ("discharge", 1), ("admission", 3)]


async def until_settled(mongo: Mongo, worker: Worker) -> None:
    """Run rounds until nothing is open; a circuit may have opened for a second."""
    due = {"open": True, "next_at": {"$gt": BEHIND}}
    async with asyncio.timeout(15):
        while await worker.ledger.open_count():
            await mongo.collection("deliveries").update_many(
                due, {"$set": {"next_at": mongo.now()}}
            )
            await worker.run_once()
            await asyncio.sleep(0.05)


@one_driver
async def test_what_a_server_of_format_3_left_open_takes_its_turn(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """Its lanes were those of single Subscriptions, all of which it had begun with."""
    deliveries = mongo.collection("deliveries")
    async with working(mongo, store, loops=False) as worker:
        await create(store, kept(ADMISSION, receiver.url), "admission")
        await create(store, kept(DISCHARGE, receiver.url), "discharge")
        await worker.run_once()
        receiver.answer = lambda _: 503
        for name in ("one", "two"):
            stored = await create(store, encounter(), name)
            await worker.drain()
            await update(store, stored, status="finished")
            await worker.drain()
    for row in await rows(mongo):
        await deliveries.update_one(
            {"_id": row["_id"]},
            {
                "$set": {"lane": f"{row['subscription']}|Patient/p1"},
                "$unset": {"sequence": "", "turn": ""},
            },
        )
    before = {
        "format": 3,
        "steps": [step.name for step in format.STEPS if "lanes" not in step.name],
    }
    await mongo.collection("settings").update_one(
        {"_id": "format"}, {"$set": {"oldest": 1, **before}}, upsert=True
    )
    await format.prepare(mongo, Settings())
    told = sorted(await rows(mongo), key=lambda row: row["turn"])
    expected = [("admission", 1), ("discharge", 1), ("admission", 2), ("discharge", 2)]
    assert [(row["subscription"], row["number"]) for row in told] == expected
    assert [row["turn"] for row in told] == [1, 2, 3, 4]
    assert {row["lane"] for row in told} == {f"{SEQUENCE}|Patient/p1"}
    receiver.answer = lambda _: 200
    seen = len(receiver.events)
    # As a process leaves it that dies before it has looked for the next of the lane.
    forgotten = {"$set": {"state": "queued", "next_at": BEHIND}}
    await deliveries.update_many({"open": True}, forgotten)
    async with working(mongo, store, loops=False) as worker:
        await until_settled(mongo, worker)
        await create(store, encounter(), "three")
        await worker.drain()
    assert [(of(each), each.number) for each in receiver.events[seen:]] == [
        *expected,
        ("admission", 3),
    ]
