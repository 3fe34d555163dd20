"""Who knows which Subscriptions and topics, and when: after a start, and beside other processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from app.fhir.ids import new_id
from app.records.versions import Change, ResourceVersion
from app.runtime.mongo import Mongo
from app.search.extract import extract
from app.settings import Settings
from app.store.events import Event
from app.store.store import Store
from app.subscriptions.matching import registration, registration_cache
from app.subscriptions.matching.event_matcher import EventMatcher
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.sending.worker import Worker
from app.subscriptions.topics.topics import Topic
from tests.builders.receiver import receiving
from tests.builders.subscriptions import classic, encounter, topic_based
from tests.builders.worker import make_worker
from tests.conftest import make_settings

pytestmark = [pytest.mark.mongo, pytest.mark.slow]
SETTINGS = Settings(base_url="http://carerelay.test/fhir")
WITHIN = 1.0
TOPIC = {
    "resourceType": "SubscriptionTopic",
    "url": "http://hub.example/SubscriptionTopic/plans",
    "status": "active",
    "resourceTrigger": [{"resource": "CarePlan"}],
    "canFilterBy": [{"filterParameter": "patient"}],
}
PLAN = {
    "resourceType": "CarePlan",
    "status": "active",
    "intent": "plan",
    "subject": {"reference": "Patient/p1"},
}


async def no_codes(topic: Topic) -> None:
    """Topics of these tests ask for no value sets."""


@pytest.fixture
async def one(mongod: str) -> AsyncIterator[Mongo]:
    mongo = await Mongo.open(make_settings(mongod))
    yield mongo
    await mongo.close()


@asynccontextmanager
async def process(mongo: Mongo, *, loops: bool = True) -> AsyncIterator[tuple[Store, Worker]]:
    """A server process on the database: a store and a worker of its own."""
    store = Store(mongo)
    await store.prepare()
    worker = make_worker(SETTINGS, mongo, store)
    await (store.cluster.start() if loops else store.cluster.beat())
    await worker.start(loops=loops)
    try:
        yield store, worker
    finally:
        await worker.stop()
        await store.cluster.stop()


async def write(
    store: Store, resource: dict[str, Any], previous: ResourceVersion | None = None, **private: Any
) -> ResourceVersion:
    method: Any = "create" if previous is None else "update"
    id_ = new_id() if previous is None else previous.id
    kept = {"headers": [], **private} if resource["resourceType"] == "Subscription" else None
    change = Change(method, resource["resourceType"], id_, resource, previous, kept)
    return (await store.commit([change]))[0]


async def soon(holds: Callable[[], bool]) -> float:
    """Seconds until it holds."""
    begin = time.monotonic()
    while not holds():
        assert time.monotonic() - begin < 10, "it never did"
        await asyncio.sleep(0.01)
    return time.monotonic() - begin


def active(resource: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**resource, "status": "active", **more}


def event(resource: dict[str, Any], type_: str = "Encounter") -> Event:
    fields = extract(type_, {"id": "e1", **resource})
    return Event(None, type_, "e1", 1, "create", None, resource, fields)  # type: ignore[arg-type]


async def concerned(registry: SubscriptionRegistry, resource: dict[str, Any]) -> set[str]:
    found = await EventMatcher(registry).match(event(resource, resource["resourceType"]))
    return {match.registration.id for match in found.matches}


async def watched(
    store: Store, resource: dict[str, Any], registry: SubscriptionRegistry
) -> ResourceVersion:
    """Stored as the interactions would: with what the registry needs beside it."""
    read = registration.read(resource, registry.catalogue, SETTINGS)
    return await write(store, resource, watch=registration_cache.encode(read, SETTINGS))


async def test_what_lies_beside_a_subscription_registers_it_as_the_resource_would(
    one: Mongo,
) -> None:
    store = Store(one)
    registry = SubscriptionRegistry(SETTINGS, one, store)
    drafts = [
        topic_based("patient=p1", "class:not=EMER", heartbeat=60, timeout=5),
        topic_based("trigger=A01", content="full-resource"),
        classic("Encounter?patient.general-practitioner=Organization/o1&date=ge2026"),
        {**classic(payload="application/fhir+json"), "end": "2036-01-01T00:00:00Z"},
        {**classic(), "status": "off"},
    ]
    for draft in drafts:
        await watched(store, draft, registry)
    brief, whole = (
        SubscriptionRegistry(SETTINGS, one, store),
        SubscriptionRegistry(SETTINGS, one, store),
    )
    await brief.load()
    ids = [row["_id"] for row in await store.find("Subscription", {}, projection={"_id": 1})]
    await whole.read(ids)
    assert len(brief) == len(whole) == len(drafts)
    for each in ids:
        found = [registry.get(each) for registry in (brief, whole)]
        assert found[0] is not None
        assert found[1] is not None
        assert len({each.topic.digest if each.topic else "" for each in found if each}) == 1
        assert replace(found[0], topic=None) == replace(found[1], topic=None)
    assert {found.id for found in brief.requested()} == {found.id for found in whole.requested()}


@pytest.mark.parametrize(
    "beside",
    [
        pytest.param(None, id="nothing"),
        pytest.param("{}", id="something-else"),
        pytest.param("old", id="of-other-rules"),
    ],
)
async def test_what_is_missing_or_stale_is_read_from_the_resource_and_kept(
    one: Mongo, beside: str | None
) -> None:
    store = Store(one)
    registry = SubscriptionRegistry(SETTINGS, one, store)
    draft = active(topic_based("patient=p1"))
    fresh = registration_cache.encode(
        registration.read(draft, registry.catalogue, SETTINGS), SETTINGS
    )
    if beside == "old":
        beside = fresh.replace("subject=Patient/p1", "subject=Patient/p2").replace('["', '["0', 1)
    private = {} if beside is None else {"watch": beside}
    stored = await write(store, draft, None, **private)
    await registry.load()
    assert await concerned(registry, encounter(patient="p1")) == {stored.id}
    assert await concerned(registry, encounter(patient="p2")) == set()
    (row,) = await store.find("Subscription", {}, projection={"private": 1})
    assert row["private"] == {"headers": [], "watch": fresh}


async def test_what_is_known_already_is_not_read_again(
    one: Mongo, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where nothing lies beside it; only what another process has written since."""
    store = Store(one)
    registry = SubscriptionRegistry(SETTINGS, one, store)
    known, other = [await write(store, active(topic_based("patient=p1"))) for _ in range(2)]
    await registry.load()
    newer = await write(store, active(topic_based("patient=p2")), other)
    read: list[list[str]] = []
    reread = registry._reread

    async def noting(ids: list[str]) -> None:
        read.append(ids)
        await reread(ids)

    monkeypatch.setattr(registry, "_reread", noting)
    await registry.load()
    assert read == [[newer.id]]
    assert await registry.read([known.id, newer.id]) == [], "none of them is new"
    assert await concerned(registry, encounter(patient="p1")) == {known.id}
    assert await concerned(registry, encounter(patient="p2")) == {newer.id}


async def test_changes_are_known_to_other_processes_within_a_second(one: Mongo) -> None:
    async with process(one) as (store, _), process(one) as (_, other):
        await asyncio.sleep(0)
        registry = other.registry
        stored = await write(store, active(classic("Encounter?class=IMP")))
        assert await soon(lambda: registry.delivery_mode(stored.id) == "active") < WITHIN
        assert await concerned(registry, encounter()) == {stored.id}

        changed = active(classic("Encounter?class=EMER"))
        stored = await write(store, changed, stored)
        assert await soon(lambda: registry.get(stored.id).version == 2) < WITHIN  # type: ignore[union-attr]
        assert await concerned(registry, encounter()) == set()
        assert await concerned(registry, encounter(class_="EMER")) == {stored.id}

        stored = await write(store, {**changed, "status": "off"}, stored)
        assert await soon(lambda: registry.delivery_mode(stored.id) == "ended") < WITHIN
        assert await concerned(registry, encounter(class_="EMER")) == set()

        again = await write(store, active(classic("Encounter?class=EMER")))
        await soon(lambda: registry.delivery_mode(again.id) == "active")
        await store.commit([Change("delete", "Subscription", again.id, None, again)])
        assert await soon(lambda: registry.get(again.id) is None) < WITHIN
        assert await concerned(registry, encounter(class_="EMER")) == set()


async def test_without_a_change_stream_the_sweep_finds_them(one: Mongo) -> None:
    async with process(one, loops=False) as (store, _), process(one, loops=False) as (_, other):
        stored = await write(store, active(classic()))
        assert other.registry.get(stored.id) is None
        await other.registry.refresh()
        assert other.registry.get(stored.id) is not None
        await store.commit([Change("delete", "Subscription", stored.id, None, stored)])
        await other.registry.refresh()
        assert other.registry.get(stored.id) is None


async def test_one_whose_end_comes_stops_by_itself(one: Mongo) -> None:
    async with process(one) as (store, worker):
        end = one.now() + timedelta(seconds=0.4)
        stored = await write(store, active(classic("Encounter?class=IMP"), end=end.isoformat()))
        assert await concerned(worker.registry, encounter()) == {stored.id}
        assert await soon(lambda: worker.registry.delivery_mode(stored.id) == "ended") < WITHIN
        assert await concerned(worker.registry, encounter()) == set()
        found = worker.registry.get
        await soon(lambda: found(stored.id).status == "off")  # type: ignore[union-attr]


async def test_each_event_is_told_once_by_several_processes_also_when_one_dies(
    one: Mongo,
) -> None:
    """Events of a store that nobody listens to are those of a process that died after the commit."""
    dead = Store(one)
    async with (
        receiving() as receiver,
        process(one) as (first, one_worker),
        process(one) as (second, other_worker),
    ):
        subscription = active(topic_based("class=IMP", endpoint=receiver.url))
        stored = await write(first, subscription)
        await asyncio.sleep(0.3)
        for number in range(10):
            for store in (first, second, dead):
                await write(store, encounter(patient=f"p{number}"))
        past = one.now() - timedelta(seconds=1)
        await one.collection("events").update_many(
            {"owner": dead.owner}, {"$set": {"lease_until": past}}
        )
        await receiver.wait(30)
        await asyncio.gather(*(worker.drain() for worker in (one_worker, other_worker)))
        rows = await one.collection("deliveries").find({"subscription": stored.id}).to_list(None)
        assert sorted(row["number"] for row in rows) == list(range(1, 31))
        assert len({row["event"] for row in rows}) == 30
        assert len(receiver.events) == 30


async def test_a_topic_that_is_put_reaches_the_subscriptions_of_other_processes(
    one: Mongo,
) -> None:
    async with process(one, loops=False) as (store, first), process(one) as (_, other):
        await first.registry.topics.put("plans", TOPIC, no_codes)
        await first.registry.refresh()
        stored = await write(store, active(topic_based("patient=p1"), criteria=TOPIC["url"]))
        assert first.registry.get(stored.id) is not None
        # The other process may hear of the Subscription before it hears of its topic.
        await soon(lambda: other.registry.get(stored.id) is not None)
        assert await concerned(other.registry, PLAN) == {stored.id}

        trigger = {"resource": "CarePlan", "queryCriteria": {"current": "status=revoked"}}
        narrower = {**TOPIC, "resourceTrigger": [trigger]}
        await first.registry.topics.put("plans", narrower, no_codes)
        topic_url = str(TOPIC["url"])
        before = other.registry.catalogue.by_url[topic_url].digest
        took = await soon(lambda: other.registry.catalogue.by_url[topic_url].digest != before)
        assert took < 2 * WITHIN
        assert await concerned(other.registry, PLAN) == set()
        assert await concerned(other.registry, {**PLAN, "status": "revoked"}) == {stored.id}

        await one.collection("topics").delete_many({})
        await soon(lambda: other.registry.get(stored.id) is None)
        assert await concerned(other.registry, {**PLAN, "status": "revoked"}) == set()
        assert other.registry.delivery_mode(stored.id) == "errored", "its notices wait"


async def test_a_subscription_without_its_topic_waits_for_it(one: Mongo) -> None:
    async with process(one, loops=False) as (store, worker):
        stored = await write(store, active(topic_based(), criteria=TOPIC["url"]))
        assert worker.registry.get(stored.id) is None
        await worker.registry.topics.put("plans", TOPIC, no_codes)
        await worker.registry.refresh()
        assert await concerned(worker.registry, PLAN) == {stored.id}


async def test_a_deletion_may_be_told_by_a_topic_and_is_judged_by_what_went(
    one: Mongo,
) -> None:
    gone = {
        **TOPIC,
        "resourceTrigger": [{"resource": "CarePlan", "supportedInteraction": ["delete"]}],
    }
    async with receiving() as receiver, process(one) as (store, worker):
        await worker.registry.topics.put("plans", gone, no_codes)
        await worker.registry.refresh()
        for patient in ("p1", "p2"):
            draft = topic_based(f"patient={patient}", endpoint=receiver.url)
            await write(store, active(draft, criteria=TOPIC["url"]))
        await write(store, active(classic("CarePlan?", endpoint=receiver.url)))
        plan = await write(store, PLAN)
        await store.commit([Change("delete", "CarePlan", plan.id, None, plan)])
        await receiver.wait(1)
        await worker.drain()
        (notice,) = receiver.events
        assert notice.json["entry"][1]["request"]["method"] == "DELETE"
        rows = await one.collection("deliveries").find({"focus.method": "delete"}).to_list(None)
        assert [row["lane"].partition("|")[2] for row in rows] == ["Patient/p1"]
