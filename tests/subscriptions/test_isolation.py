"""Nobody's fault silences somebody else: of many Subscriptions some are broken in every way, and the others hear all.

Each broken one is whole when it is accepted; what it needs breaks afterwards.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from statistics import quantiles
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, example, given, settings, strategies as st

from app.records.versions import Change
from tests.builders.receiver import Received, Receiver, receiving
from tests.builders.subscriptions import ACT_CODE, classic, encounter, topic_based
from tests.conftest import Server, make_settings, running

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

HEALTHY, STAYS, VERSIONS = 4, 6, 3
# Visits whose notices are timed, but for the first ones.
TIMED, WARM_UP = 300, 20
VALUE_SET = "http://isolation.example/ValueSet/{}"
TOPIC = "http://isolation.example/SubscriptionTopic/{}"
# An expression that wants one type raises on these.
TWO_TYPES = [{"text": "first"}, {"text": "second"}]


EVERY_VERSION = {"queryCriteria": {"current": "status=in-progress,finished"}}


class World:
    """One server and its receiver. Healthy endpoints are `/right-…`, the others `/wrong-…`, all on one host."""

    def __init__(self, server: Server, client: httpx.AsyncClient, receiver: Receiver) -> None:
        self.server, self.client, self.receiver = server, client, receiver
        self.names = 0
        self.answers: dict[str, int | None] = {}
        receiver.answer = self._answer

    def _answer(self, received: Received) -> int | None:
        is_handshake = b'"handshake"' in received.body or not received.body
        return 200 if is_handshake else self.answers.get(received.path, 200)

    def name(self) -> str:
        self.names += 1
        return f"wrong-{self.names}"

    def endpoint(self, name: str) -> str:
        return f"{self.receiver.url}/{name}"

    async def subscribe(self, subscription: dict[str, Any]) -> str:
        created = await self.client.post("/Subscription", json=subscription)
        assert created.status_code == 201, created.text
        await self.server.worker.drain()
        return str(created.json()["id"])

    async def put(self, path: str, resource: dict[str, Any]) -> None:
        answer = await self.client.put(path, json=resource)
        assert answer.status_code in (200, 201), answer.text

    async def put_topic(self, name: str, trigger: dict[str, Any]) -> str:
        """The URL of a topic with one trigger on Encounter."""
        url = TOPIC.format(name)
        interactions = {"supportedInteraction": ["create", "update"]}
        topic = {
            "resourceType": "SubscriptionTopic",
            "url": url,
            "status": "active",
            "resourceTrigger": [{"resource": "Encounter", **interactions, **trigger}],
        }
        root = str(self.client.base_url).removesuffix("fhir/")
        answer = await self.client.put(f"{root}admin/topics/{name}", json=topic)
        assert answer.status_code in (200, 201), answer.text
        return url

    async def put_value_set(self, name: str) -> str:
        """The URL of a value set of the classes of visits."""
        codes = [{"code": "IMP"}, {"code": "EMER"}]
        value_set = {
            "resourceType": "ValueSet",
            "id": name,
            "url": VALUE_SET.format(name),
            "status": "active",
            "compose": {"include": [{"system": ACT_CODE, "concept": codes}]},
        }
        await self.put(f"/ValueSet/{name}", value_set)
        return VALUE_SET.format(name)

    async def delete_value_set(self, name: str) -> None:
        """Delete it as an administrator may; here nobody can show that he is one."""
        stored = await self.server.store.read("ValueSet", name)
        await self.server.store.commit([Change("delete", "ValueSet", name, None, stored)])

    async def damage(self, subscription: str, change: dict[str, Any]) -> None:
        """Change a stored Subscription behind the server's back, and let the server read it anew."""
        rows = self.server.mongo.collection("Subscription")
        await rows.update_one({"_id": subscription}, {"$set": change, "$inc": {"v": 1}})
        await self.server.worker.registry.read([subscription])

    async def listen(self, name: str, topic: str, **channel: Any) -> str:
        asked = topic_based(endpoint=self.endpoint(name), content="full-resource", **channel)
        return await self.subscribe({**asked, "criteria": topic})


Breakage = Callable[[World], Awaitable[None]]


async def a_value_set_is_deleted(world: World) -> None:
    name = world.name()
    url = await world.put_value_set(name)
    await world.subscribe(classic(f"Encounter?class:in={url}", world.endpoint(name)))
    await world.delete_value_set(name)


async def the_value_set_of_a_topic_is_deleted(world: World) -> None:
    name = world.name()
    url = await world.put_value_set(name)
    topic = await world.put_topic(name, {"queryCriteria": {"current": f"class:in={url}"}})
    await world.listen(name, topic)
    await world.delete_value_set(name)


async def the_expression_of_a_topic_raises(world: World) -> None:
    name = world.name()
    expression = {"fhirPathCriteria": "%current.type.single().exists()"}
    await world.listen(name, await world.put_topic(name, expression))


def the_endpoint_answers(status: int | None) -> Breakage:
    async def breaks(world: World) -> None:
        name = world.name()
        await world.listen(name, await world.put_topic(name, EVERY_VERSION))
        world.answers[f"/{name}"] = status

    breaks.__name__ = f"the_endpoint_answers_{status}"
    return breaks


async def nobody_listens_at_the_endpoint(world: World) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    await moves(world, f"http://127.0.0.1:{port}/hook")


async def the_endpoint_speaks_no_tls(world: World) -> None:
    await moves(world, world.endpoint(world.name()).replace("http:", "https:"))


async def a_secret_cannot_be_opened(world: World) -> None:
    name = world.name()
    topic = await world.put_topic(name, EVERY_VERSION)
    subscription = await world.listen(name, topic, header=["Authorization: Bearer s3cret"])
    await world.damage(subscription, {"private.headers": ["damaged"]})


async def a_consent_cannot_be_read(world: World) -> None:
    """That of a patient of its own, whose visit cannot be judged."""
    name = world.name()
    consent = {
        "resourceType": "Consent",
        "id": name,
        "status": "active",
        "scope": {"coding": [{"code": "patient-privacy"}]},
        "category": [{"coding": [{"code": "IDSCL"}]}],
        "patient": {"reference": f"Patient/{name}"},
        "policyRule": {"text": "as agreed"},
    }
    await world.put(f"/Consent/{name}", consent)
    damaged = {"text": '{"resourceType":"Consent","provision":7}'}
    await world.server.mongo.collection("Consent").update_one({"_id": name}, {"$set": damaged})
    await world.put(f"/Encounter/{name}", {**encounter("planned", patient=name), "id": name})


async def moves(world: World, endpoint: str) -> None:
    """Where an active Subscription was told, somebody else is now."""
    name = world.name()
    subscription = await world.listen(name, await world.put_topic(name, EVERY_VERSION))
    found = await world.client.get(f"/Subscription/{subscription}")
    text = found.text.replace(world.endpoint(name), endpoint)
    await world.damage(subscription, {"text": text})


BREAKAGES: list[Breakage] = [
    a_value_set_is_deleted,
    the_value_set_of_a_topic_is_deleted,
    the_expression_of_a_topic_raises,
    *(the_endpoint_answers(status) for status in (503, 404, 401, 410, 422, 429, None)),
    nobody_listens_at_the_endpoint,
    the_endpoint_speaks_no_tls,
    a_secret_cannot_be_opened,
    a_consent_cannot_be_read,
]


async def stay(world: World, number: int) -> None:
    """A stay of one of three patients: it begins, is changed and ends."""
    id_ = f"stay-{number}"
    begun = {**encounter(patient=f"p{number % 3}"), "id": id_}
    await world.put(f"/Encounter/{id_}", begun)
    await world.put(f"/Encounter/{id_}", {**begun, "type": TWO_TYPES})
    await world.put(f"/Encounter/{id_}", {**begun, "status": "finished", "type": TWO_TYPES})


def healthy(receiver: Receiver) -> dict[str, list[Received]]:
    """The events that each healthy endpoint got."""
    found: dict[str, list[Received]] = {f"/right-{number}": [] for number in range(HEALTHY)}
    for received in receiver.events:
        if received.path in found:
            found[received.path].append(received)
    return found


@given(broken=st.lists(st.sampled_from(BREAKAGES), min_size=1, max_size=6, unique=True))
@example(broken=BREAKAGES)
@settings(
    max_examples=3,
    deadline=None,
    # What goes wrong depends on the moment: shrinking would only repeat it.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
async def test_the_others_hear_everything_once_in_order_and_without_a_gap(
    mongod: str, broken: list[Breakage]
) -> None:
    everything = VERSIONS * STAYS
    async with receiving() as receiver, running(make_settings(mongod)) as (server, client):
        world = World(server, client, receiver)
        topic = await world.put_topic("right", EVERY_VERSION)
        for number in range(HEALTHY):
            await world.listen(f"right-{number}", topic)
        for breaks in broken:
            await breaks(world)
        await asyncio.gather(*(stay(world, number) for number in range(STAYS)))
        await receiver.until(
            lambda: all(len(heard) >= everything for heard in healthy(receiver).values()),
            seconds=60,  # how fast is the next test's matter
        )
        heard_by = healthy(receiver)
        receiver.closing.set()  # who stops waits for endpoints that hang
    for endpoint, heard in heard_by.items():
        assert sorted(event.number for event in heard) == list(range(1, everything + 1)), endpoint
        versions: dict[str, list[str]] = defaultdict(list)
        for event in heard:
            focus = event.json["entry"][1]["resource"]
            versions[focus["id"]].append(focus["meta"]["versionId"])
        assert all(found == ["1", "2", "3"] for found in versions.values()), (endpoint, versions)


@pytest.mark.chaos
@pytest.mark.timeout(600)
async def test_the_others_are_told_as_soon_as_without_the_broken_ones(mongod: str) -> None:
    alone = await p99_of_healthy(mongod, [])
    beside = await p99_of_healthy(mongod, BREAKAGES)
    assert beside <= 1.2 * alone + 0.020, f"{beside * 1000:.1f} ms beside {alone * 1000:.1f} ms"


async def p99_of_healthy(mongod: str, broken: list[Breakage]) -> float:
    """Seconds from the beginning of a write until all healthy endpoints have heard, at twenty writes a second."""
    async with receiving() as receiver, running(make_settings(mongod)) as (server, client):
        world = World(server, client, receiver)
        topic = await world.put_topic("right", EVERY_VERSION)
        for number in range(HEALTHY):
            await world.listen(f"right-{number}", topic)
        for breaks in broken:
            await breaks(world)
        begun: dict[str, float] = {}
        for number in range(TIMED):
            id_ = f"timed-{number}"
            begun[id_] = time.perf_counter()
            body = {**encounter(patient=f"t{number}"), "id": id_, "type": TWO_TYPES}
            await world.put(f"/Encounter/{id_}", body)
            await asyncio.sleep(max(0.0, begun[id_] + 0.05 - time.perf_counter()))
        await receiver.until(
            lambda: all(len(heard) >= TIMED for heard in healthy(receiver).values()), 60
        )
        heard_of = {f"timed-{number}" for number in range(WARM_UP, TIMED)}
        waits = [
            event.at - begun[visit]
            for heard in healthy(receiver).values()
            for event in heard
            if (visit := event.focus.rpartition("Encounter/")[2]) in heard_of
        ]
    return quantiles(waits, n=100)[-1]


async def test_rows_that_cannot_be_read_are_nobody_elses_trouble(mongod: str) -> None:
    """Two Subscriptions and a topic were damaged in the database before the server began."""
    settings_ = make_settings(mongod)
    async with receiving() as receiver:
        async with running(settings_) as (server, client):
            world = World(server, client, receiver)
            topic = await world.put_topic("right", EVERY_VERSION)
            await world.put_topic("damaged", EVERY_VERSION)
            for number in range(HEALTHY):
                await world.listen(f"right-{number}", topic)
            for name, text in (("no-json", "garbage"), ("no-object", "[]")):
                subscription = await world.listen(name, topic)
                rows = server.mongo.collection("Subscription")
                await rows.update_one({"_id": subscription}, {"$set": {"text": text}})
            damaged = {"$set": {"text": "garbage", "url": "garbage"}}
            await server.mongo.collection("topics").update_one({"_id": "damaged"}, damaged)
        async with running(settings_) as (server, client):
            await stay(World(server, client, receiver), 1)
            await receiver.until(
                lambda: all(len(heard) >= VERSIONS for heard in healthy(receiver).values())
            )
            assert await server.worker.unmatched.count() == 0


async def test_an_expression_without_end_holds_nobody_up(mongod: str) -> None:
    """Matching its pattern takes the age of the world, for one record."""
    pattern = "%current.identifier.value.matches('^([A-Za-z0-9]+-?)+$').exists()"
    async with receiving() as receiver, running(make_settings(mongod)) as (server, client):
        world = World(server, client, receiver)
        await world.listen("right-0", await world.put_topic("right", EVERY_VERSION))
        await world.listen("wrong", await world.put_topic("slow", {"fhirPathCriteria": pattern}))
        visit = {**encounter(identifier=[{"value": "VN20260000000000000000000012345 (old)"}])}
        await world.put("/Encounter/visit", {**visit, "id": "visit"})
        await receiver.until(lambda: len(healthy(receiver)["/right-0"]) == 1)
        await server.worker.drain()
        (row,) = await server.mongo.collection("unmatched").find({}).to_list(None)
        assert (row["judge"], row["reason"]) == (TOPIC.format("slow"), "OutOfTimeError")
