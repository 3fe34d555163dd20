"""Practices on one host: what is wrong with one endpoint, Subscription or notice delays nobody beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from app.fhir.codes import SUBSCRIPTION_OWNER
from app.fhir.ids import new_id
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store.store import Store
from app.subscriptions.matching.registration import read
from app.subscriptions.sending.targets import Target, Targets
from app.subscriptions.topics import topic_store
from tests.builders.deliveries import create, rows, working
from tests.builders.receiver import Received, Receiver, receiving
from tests.builders.subscriptions import classic, encounter, topic_based
from tests.conftest import make_settings

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

# Long enough for a busy machine, and far below what a circuit, a retry or a timeout of a neighbour would take.
AT_ONCE = 8.0

HANGS = 60


@pytest.fixture
async def mongo(mongod: str) -> AsyncIterator[Mongo]:
    """A fresh database. What takes long here is time that has to pass, whichever the driver."""
    mongo = await Mongo.open(make_settings(mongod))
    yield mongo
    await mongo.close()


def answering(**by_path: int | None) -> Callable[[Received], int | None]:
    """Answers by the first part of the path; handshakes are accepted."""

    def answer(received: Received) -> int | None:
        if b'"handshake"' in received.body:
            return 200
        return by_path.get(received.path.split("/")[1], 200)

    return answer


def at(receiver: Receiver, path: str) -> list[Received]:
    return [each for each in receiver.events if each.path.startswith(f"/{path}")]


async def until_received(receiver: Receiver, path: str, count: int, seconds: float) -> None:
    async with asyncio.timeout(seconds):
        total = 0
        while len(at(receiver, path)) < count:
            total = len(await receiver.wait(max(total, len(receiver.events)) + 1))


@pytest.mark.parametrize(
    "neighbour", [pytest.param(503, id="answers-503"), pytest.param(None, id="hangs")]
)
async def test_a_broken_endpoint_delays_no_other_on_its_host(
    mongo: Mongo, store: Store, receiver: Receiver, neighbour: int | None
) -> None:
    """Also once its circuit is open, and though it has far more notices."""
    async with working(mongo, store) as worker:
        asked = "service-provider=Organization/"
        broken = topic_based(f"{asked}a", endpoint=f"{receiver.url}/a/hook", timeout=HANGS)
        await create(store, broken)
        await create(store, topic_based(f"{asked}b", endpoint=f"{receiver.url}/b/hook"))
        await worker.drain()
        receiver.answer = answering(a=neighbour)
        for number in range(40):
            await create(store, _stay("a", f"a{number}"))
        for number in range(6):
            await create(store, _stay("b", f"b{number}"))
            await until_received(receiver, "b", number + 1, AT_ONCE)
            await asyncio.sleep(0.3)  # so that the neighbour fails in between
        receiver.closing.set()
    assert len(at(receiver, "a")) < 40
    assert sorted(each.number for each in at(receiver, "b")) == [1, 2, 3, 4, 5, 6]


async def test_notices_that_are_refused_delay_no_others_of_their_endpoint(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """A dozen of one Subscription are answered 500 for ever; its others and its neighbour's go out at once."""

    def answer(received: Received) -> int:
        is_event = b'"handshake"' not in received.body
        return 500 if is_event and received.focus.rpartition("/")[2].startswith("poison") else 200

    receiver.answer = answer
    async with working(mongo, store) as worker:
        first = await create(
            store, topic_based("service-provider=Organization/a", endpoint=receiver.url)
        )
        await create(store, topic_based("service-provider=Organization/b", endpoint=receiver.url))
        await worker.drain()
        for number in range(12):
            await create(store, _stay("a", f"p{number}"), f"poison-{number}")
        for number in range(12):
            begun = time.perf_counter()
            for practice in ("a", "b"):
                id_ = f"good-{practice}-{number}"
                await create(store, _stay(practice, f"g{number}"), id_)
                async with asyncio.timeout(AT_ONCE):
                    while not any(each.focus.endswith(id_) for each in receiver.events):
                        await receiver.wait(len(receiver.events) + 1)
            await asyncio.sleep(max(0.0, 0.25 - (time.perf_counter() - begun)))
        states = [row["state"] for row in await rows(mongo, subscription=first.id)]
    assert states.count("delivered") == 12
    assert len(states) == 24


async def test_hundreds_of_practices_on_one_host(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """A third of them hang, a third answer 503: the others are told while the hanging ones still hang."""
    broken: dict[str, Any] = {}
    for index in range(0, 150, 3):
        broken |= {f"h{index}": None, f"h{index + 1}": 503}
    async with working(mongo, store) as worker:
        for index in range(150):
            asked = f"service-provider=Organization/h{index}"
            endpoint = f"{receiver.url}/h{index}/n"
            await create(store, topic_based(asked, endpoint=endpoint, timeout=HANGS))
        await worker.drain()
        receiver.answer = answering(**broken)
        well = [f"h{index}" for index in range(2, 150, 3)]
        async with asyncio.TaskGroup() as all_at_once:
            for index in range(150):
                all_at_once.create_task(create(store, _stay(f"h{index}", f"p{index}")))
        async with asyncio.timeout(HANGS / 2):  # who had to wait for those that hang is told later
            while not all(at(receiver, f"{name}/") for name in well):
                await receiver.wait(len(receiver.events) + 1)
        receiver.closing.set()


async def test_more_hang_on_a_host_than_it_has_connections(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """Forty practices with five notices each were fast and hang now: the others are told all the same."""
    hanging = [f"s{index}" for index in range(40)]
    async with working(mongo, store) as worker:
        for name in [*hanging, *(f"w{index}" for index in range(5))]:
            asked = f"service-provider=Organization/{name}"
            endpoint = f"{receiver.url}/{name}/n"
            await create(store, topic_based(asked, endpoint=endpoint, timeout=HANGS))
        await worker.drain()
        receiver.answer = answering(**dict.fromkeys(hanging))
        async with asyncio.TaskGroup() as all_at_once:
            for name in hanging:
                for number in range(5):
                    stay = _stay(name, f"{name}-{number}")
                    all_at_once.create_task(create(store, stay))
        for index in range(5):
            await create(store, _stay(f"w{index}", f"w{index}"))
        async with asyncio.timeout(HANGS / 2):
            while not all(at(receiver, f"w{index}/") for index in range(5)):
                await receiver.wait(len(receiver.events) + 1)
        receiver.closing.set()


async def test_a_host_that_takes_no_connections_is_left_alone_as_a_whole(
    mongo: Mongo, store: Store
) -> None:
    """Thirty practices on it: a few attempts tell for all, and all are told once it is back."""
    port = await _unused_port()
    async with working(mongo, store) as worker:
        for index in range(30):
            criteria = f"Encounter?service-provider=Organization/h{index}"
            await create(store, classic(criteria, f"http://127.0.0.1:{port}/h{index}"))
        await worker.drain()
        for index in range(30):
            await create(store, _stay(f"h{index}", f"p{index}"))
            await worker.drain()
        found = await rows(mongo)
        assert len(found) == 30
        assert sum(len(row["attempts"]) for row in found) < 15
        async with receiving(port) as back:
            await back.wait(30, events=False)
            await worker.drain()


async def _unused_port() -> int:
    server = await asyncio.start_server(lambda _, __: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


def _stay(practice: str, patient: str) -> dict[str, Any]:
    return encounter(patient=patient, serviceProvider={"reference": f"Organization/{practice}"})


def test_a_target_is_a_channel_with_a_full_endpoint_of_one_owner() -> None:
    """Those of one host share what there is to know of the host."""
    settings = Settings()
    catalogue = topic_store.load(settings)
    targets = Targets(lambda registration: registration.kept_for or "client")

    def target(endpoint: str, kept_for: str | None = None) -> Target:
        subscription = {**topic_based(endpoint=endpoint), "id": new_id()}
        if kept_for is not None:
            tag = {"system": SUBSCRIPTION_OWNER, "code": kept_for}
            subscription["meta"] = {"tag": [tag]}
        return targets.of(read(subscription, catalogue, settings))

    one = target("http://127.0.0.1:9/a")
    assert target("http://127.0.0.1:9/a") is one
    kept = target("http://127.0.0.1:9/a", "Organization/a")
    assert target("http://127.0.0.1:9/a", "Organization/a") is kept
    others = [
        kept,
        target("http://127.0.0.1:9/b"),
        target("http://127.0.0.1:9/a", "Organization/b"),
    ]
    assert one not in others
    assert all(each.origin is one.origin for each in others)
    assert target("http://127.0.0.1:10/a").origin is not one.origin
