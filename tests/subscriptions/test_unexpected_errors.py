"""Errors of the server itself while it sends: settled like any failure, and nobody else's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from pymongo.errors import AutoReconnect

from app.runtime.mongo import Mongo
from app.store.store import Store
from app.subscriptions.ledger.ledger import SECOND_LOOK
from app.subscriptions.sending.attempt import Attempts
from app.subscriptions.sending.retry import RetryPolicy
from tests.builders.deliveries import create, make_due, rows, status_of, working
from tests.builders.receiver import Receiver, receiving
from tests.builders.subscriptions import classic, encounter, topic_based
from tests.conftest import make_settings

pytestmark = [pytest.mark.mongo, pytest.mark.slow]


@pytest.fixture
async def mongo(mongod: str) -> AsyncIterator[Mongo]:
    """A fresh database. What takes long here is time that has to pass, whichever the driver."""
    mongo = await Mongo.open(make_settings(mongod))
    yield mongo
    await mongo.close()


async def break_secrets(mongo: Mongo, subscription: str) -> None:
    """The key that sealed its headers is gone."""
    await mongo.collection("Subscription").update_one(
        {"_id": subscription},
        {"$set": {"private.headers": ["sealed:nobody can open this"]}},
    )


async def test_a_subscription_whose_secrets_cannot_be_opened_fails_alone(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """Its attempts are on record with the type of the error, by the policy, until its window is over."""
    async with working(mongo, store, loops=False, policy=RetryPolicy(window=3600)) as worker:
        broken = await create(store, classic("Encounter?", receiver.url + "/broken"))
        well = await create(store, classic("Encounter?", receiver.url + "/well"))
        await worker.run_once()
        await break_secrets(mongo, broken.id)
    async with working(mongo, store, loops=False, policy=RetryPolicy(window=3600)) as worker:
        await create(store, encounter())
        await worker.drain()
        assert [each.path for each in receiver.requests] == ["/well"]
        (row,) = await rows(mongo, subscription=broken.id)
        assert (row["state"], row["open"]) == ("retrying", True)
        (attempt,) = row["attempts"]
        assert (attempt["status"], attempt["answer"]) == (None, "")
        assert attempt["reason"].startswith("error of the server: ")
        assert "nobody" not in str(row)
        over = {"first_at": mongo.now() - timedelta(seconds=3601)}
        await mongo.collection("deliveries").update_one({"_id": row["_id"]}, {"$set": over})
        await make_due(mongo)
        await worker.run_once()
        status, error = await status_of(store, broken.id)
        assert status == "error"
        assert error is not None
        assert error.startswith("The notice could not be sent: ")
        assert (await status_of(store, well.id))[0] == "active"
    (row,) = await rows(mongo, subscription=broken.id)
    assert row["open"]


async def test_of_several_in_one_notice_only_that_at_fault_is_kept_back(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """The stored version of one of them cannot be read."""
    receiver.answers([503])
    async with working(mongo, store, loops=False) as worker:
        subscription = topic_based(endpoint=receiver.url, max_count=5, content="full-resource")
        await create(store, subscription)
        await worker.run_once()
        stays = [await create(store, encounter(patient=f"p{n}")) for n in range(3)]
        await worker.drain()
    await mongo.collection("versions").update_one(
        {"_id.i": stays[1].id}, {"$set": {"text": '{"resourceType": '}}
    )
    async with working(mongo, store, loops=False) as worker:
        await make_due(mongo)
        await worker.run_once()
    states = [row["state"] for row in await rows(mongo)]
    assert states == ["delivered", "retrying", "delivered"]


async def test_without_the_database_nothing_is_sent_and_what_waits_is_tried_a_moment_later(
    mongo: Mongo, store: Store, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That counts as no attempt."""

    async def away(*_: object) -> object:
        raise AutoReconnect("no primary")

    async with working(mongo, store, loops=False) as worker:
        await create(store, classic("Encounter?", receiver.url))
        await worker.run_once()
        with monkeypatch.context() as patch:
            patch.setattr(Attempts, "make", away)
            await create(store, encounter())
            async with asyncio.timeout(5):
                await worker.drain()
        (row,) = await rows(mongo)
        assert (row["state"], row["attempt"], row["attempts"]) == ("queued", 0, [])
        assert mongo.now() < row["next_at"] <= mongo.now() + SECOND_LOOK
        assert receiver.requests == []
        await make_due(mongo)
        await worker.run_once()
        await worker.drain()
    (row,) = await rows(mongo)
    assert (row["state"], row["attempt"]) == ("delivered", 1)
    assert len(receiver.requests) == 1


@asynccontextmanager
async def answering(head: bytes, *, then: str) -> AsyncIterator[str]:
    """An endpoint that sends a head and the beginning of a body, and then breaks off or does not end."""
    ending = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(head + b"\r\nContent-Length: 1000000\r\n\r\nbegin")
        await writer.drain()
        if then == "hangs":
            await ending.wait()
        writer.transport.abort()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ending.set()


@pytest.mark.parametrize("then", ["hangs", "breaks off"])
@pytest.mark.parametrize(("status", "state"), [(200, "delivered"), (503, "retrying")])
async def test_the_head_of_an_answer_counts(
    mongo: Mongo, store: Store, then: str, status: int, state: str
) -> None:
    """Though its body never ends."""
    head = f"HTTP/1.1 {status} Said".encode()
    async with (
        answering(head, then=then) as url,
        working(mongo, store, loops=False) as worker,
    ):
        await create(store, classic(endpoint=url))
        await worker.run_once()
        await create(store, encounter())
        await worker.drain()
    (row,) = await rows(mongo)
    (attempt,) = row["attempts"]
    assert (row["state"], attempt["status"]) == (state, status)
    assert attempt["answer"] == ("begin" if then == "hangs" else attempt["answer"])


async def test_an_endpoint_that_hangs_holds_up_no_others_heartbeat(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    async with receiving() as hanging, working(mongo, store) as worker:
        stuck = await create(store, topic_based(endpoint=hanging.url, heartbeat=5, timeout=60))
        well = await create(store, topic_based(endpoint=receiver.url, heartbeat=5, timeout=60))
        await worker.drain()
        hanging.answer = lambda _: None
        states = mongo.collection("subscription_state")
        for beats in (1, 2, 3):
            past = {"heartbeat_at": mongo.now() - timedelta(seconds=1)}
            due = {"_id": {"$in": [stuck.id, well.id]}}
            await states.update_many(due, {"$set": past})
            async with asyncio.timeout(4):
                while [each.kind for each in receiver.requests].count("heartbeat") < beats:
                    await receiver.wait(len(receiver.requests) + 1, events=False)
        assert [each.kind for each in hanging.requests] == ["handshake", "heartbeat"]
        hanging.closing.set()


async def test_a_heartbeat_that_cannot_be_made_holds_up_no_other(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """The secrets of one Subscription cannot be opened."""
    async with working(mongo, store, loops=False) as worker:
        broken = await create(store, topic_based(endpoint=receiver.url, heartbeat=5), "a-broken")
        well = await create(store, topic_based(endpoint=receiver.url, heartbeat=5), "b-well")
        await worker.run_once()
        await worker.run_once()
        await break_secrets(mongo, broken.id)
    async with working(mongo, store, loops=False) as worker:
        past = {"heartbeat_at": mongo.now() - timedelta(seconds=1)}
        states = mongo.collection("subscription_state")
        await states.update_many({}, {"$set": past})
        for _ in range(2):
            await worker.run_once()
        assert (await states.find_one({"_id": broken.id}))["heartbeat_at"] > mongo.now()
    beats = [each for each in receiver.requests if each.kind == "heartbeat"]
    assert [each.parameter("subscription")["reference"] for each in beats] == [
        f"http://carerelay.test/fhir/Subscription/{well.id}"
    ]


async def test_a_settlement_that_cannot_be_written_holds_up_no_other(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    """Its row is settled without what cannot be stored."""
    async with working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url))
        await worker.run_once()
        receiver.answer = lambda _: 503
        for number in range(3):
            await create(store, encounter(patient=f"p{number}"))
        await worker._intake.take_in()
        while not worker._sender.idle and not worker._sender._settling._settlements:
            await worker._sender.wait()
        await asyncio.sleep(0.2)
        settlements = worker._sender._settling._settlements
        assert len(settlements) == 3
        bad: Any = {**(settlements[1].attempt or {}), "answer": object()}
        settlements[1] = settlements[1]._replace(attempt=bad)
        await worker.drain()
    assert [row["state"] for row in await rows(mongo)] == ["retrying"] * 3
    reasons = [row["attempts"][0]["reason"] for row in await rows(mongo)]
    assert [reason.partition(":")[0] for reason in reasons].count("error of the server") == 1
