"""Several events in one notice, as `backport-max-count` allows."""

from __future__ import annotations

from collections import deque
from datetime import UTC, datetime
from typing import Any

import pytest

from app.runtime.mongo import Mongo
from app.store.store import Store
from app.subscriptions.channels.protocol import NOTICE_ID_HEADER
from app.subscriptions.ledger.ledger import Delivery
from app.subscriptions.sending import batching
from tests.builders.deliveries import create, make_due, rows, update, working
from tests.builders.receiver import Received, receiving
from tests.builders.subscriptions import encounter, topic_based

AT = datetime(2026, 11, 21, 15, tzinfo=UTC)


def row(number: int, lane: str = "", subscription: str = "s") -> batching.DeliveryWithEvent:
    name = f"{subscription}|{lane or number}"
    delivery = Delivery(
        f"{subscription}{number}", subscription, None, number, name, None, None, {}, AT, "sending",
        "me", 1, AT, AT,
    )  # fmt: skip
    return delivery, None


@pytest.mark.parametrize(
    ("waiting", "most", "taken"),
    [
        pytest.param([row(1), row(2), row(3)], 1, [["s1"], ["s2"], ["s3"]], id="one-each"),
        pytest.param([row(1), row(2), row(3)], 2, [["s1", "s2"], ["s3"]], id="up-to-the-most"),
        pytest.param([row(1), row(3), row(4)], 9, [["s1"], ["s3", "s4"]], id="no-gaps"),
        pytest.param(
            [row(1), row(1, subscription="t"), row(2)], 9, [["s1", "s2"], ["t1"]], id="others-between"
        ),
        pytest.param(
            [row(1), row(2, "a"), row(3, "a")], 2, [["s1"], ["s2", "s3"]], id="a-lane-stays-together"
        ),
        pytest.param([row(5), row(4)], 9, [["s5"], ["s4"]], id="the-first-goes-first"),
    ],
)  # fmt: skip
def test_what_travels_together(
    waiting: list[batching.DeliveryWithEvent], most: int, taken: list[list[str]]
) -> None:
    queue = deque(waiting)
    found = []
    while queue:
        found.append([delivery.id for delivery, _ in batching.take(queue, most)])
    assert found == taken


def numbers(received: Received) -> list[str]:
    parameters = received.json["entry"][0]["resource"]["parameter"]
    return [
        part["valueString"]
        for parameter in parameters
        if parameter["name"] == "notification-event"
        for part in parameter["part"]
        if part["name"] == "event-number"
    ]


@pytest.mark.slow
@pytest.mark.mongo
@pytest.mark.parametrize("content", ["empty", "id-only", "full-resource"])
async def test_a_burst_comes_in_few_notices(mongo: Mongo, store: Store, content: str) -> None:
    async with receiving() as receiver, working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url, max_count=3, content=content))
        await worker.run_once()
        for number in range(5):
            await create(store, encounter(patient=f"p{number}"))
        await worker.drain()
    first, second = sorted(receiver.events, key=lambda each: each.number)
    assert [numbers(first), numbers(second)] == [["1", "2", "3"], ["4", "5"]]
    assert [first.number, second.number] == [3, 5]
    entries: Any = first.json["entry"]
    assert len(entries) == {"empty": 1, "id-only": 4, "full-resource": 7}[content]


@pytest.mark.mongo
async def test_events_of_one_patient_wait_for_the_first_and_then_go_together(
    mongo: Mongo, store: Store
) -> None:
    async with receiving() as receiver, working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url, max_count=3))
        await worker.run_once()
        for _ in range(5):
            await create(store, encounter(patient="p1"))
        await worker.drain()
    assert [numbers(each) for each in receiver.events] == [["1"], ["2", "3", "4"], ["5"]]


@pytest.mark.slow
@pytest.mark.mongo
async def test_a_failed_notice_is_repeated_as_it_was(mongo: Mongo, store: Store) -> None:
    async with receiving() as receiver, working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url, max_count=4))
        await worker.run_once()
        stay = await create(store, encounter(patient="p1"))
        await worker.drain()
        receiver.answers([503])
        planned = await update(store, stay, status="planned")
        await update(store, planned, status="in-progress")
        for number in range(2, 4):
            await create(store, encounter(patient=f"p{number}"))
        await worker.drain()
        assert [each["state"] for each in await rows(mongo)] == ["delivered", *["retrying"] * 3]
        await make_due(mongo)
        await worker.run_once()
    _, failed, repeated = receiver.events
    assert numbers(failed) == ["2", "3", "4"]
    assert failed.body == repeated.body
    assert failed.headers[NOTICE_ID_HEADER.lower()] == repeated.headers[NOTICE_ID_HEADER.lower()]
    assert [each["state"] for each in await rows(mongo)] == ["delivered"] * 4
    assert len((await rows(mongo))[1]["attempts"]) == 2


@pytest.mark.mongo
async def test_a_failed_notice_about_one_patient_keeps_its_order(
    mongo: Mongo, store: Store
) -> None:
    async with receiving() as receiver, working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url, max_count=9))
        await worker.run_once()
        receiver.answers([200, 503])
        for _ in range(3):
            await create(store, encounter(patient="p1"))
        await worker.drain()
        assert [each["state"] for each in await rows(mongo)] == ["delivered", "retrying", "queued"]
        await make_due(mongo)
        await worker.run_once()
    assert [numbers(each) for each in receiver.events] == [["1"], ["2", "3"], ["2", "3"]]
    assert receiver.events[1].body == receiver.events[2].body
    assert [each["state"] for each in await rows(mongo)] == ["delivered"] * 3


@pytest.mark.mongo
async def test_a_repeat_that_takes_more_along_has_another_id(mongo: Mongo, store: Store) -> None:
    """A notice's id is that of its events: where others have come to wait behind them, it is another notice."""
    async with receiving() as receiver, working(mongo, store, loops=False) as worker:
        await create(store, topic_based(endpoint=receiver.url, max_count=9))
        await worker.run_once()
        receiver.answers([503])
        await create(store, encounter(patient="p1"))
        await worker.drain()
        await create(store, encounter(patient="p1"))
        await worker.drain()
        await make_due(mongo)
        await worker.run_once()
    failed, repeated = receiver.events
    assert [numbers(failed), numbers(repeated)] == [["1"], ["1", "2"]]
    assert failed.json["id"] != repeated.json["id"]
    assert repeated.headers[NOTICE_ID_HEADER.lower()] == repeated.json["id"]
    first, second = await rows(mongo)
    assert failed.json["id"] == first["_id"]
    assert [first["state"], second["state"]] == ["delivered"] * 2
