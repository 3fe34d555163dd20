"""Reactions and timers: at least once, in any process, and never in the way of a write or a notice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app import main
from app.automation import review_tasks
from app.automation.reactions import Reaction, stable_id
from app.automation.timers import Timer
from app.context import Context
from app.store.events import Event
from tests.builders.reactions import make_due
from tests.builders.receiver import receiving
from tests.builders.subscriptions import ADMISSION, encounter, topic_based
from tests.conftest import Server, make_settings, running


class Recorder:
    """What reactions and timers saw; it fails as often as `failures` says."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self.rung: list[str] = []
        self.failures = 0
        self.reached = asyncio.Event()

    async def react(self, context: Context, event: Event) -> None:
        self.reached.set()
        if self.failures:
            self.failures -= 1
            raise RuntimeError("planted")
        self.seen.append((event.method, event.resource_id, event.version))

    async def ring(self, context: Context, key: str, data: Mapping[str, Any]) -> None:
        if self.failures:
            self.failures -= 1
            raise RuntimeError("planted")
        self.rung.append(f"{key} {data['of']}")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    reaction = Reaction("record", frozenset({"Basic"}), recorder.react)
    monkeypatch.setattr(main, "REACTIONS", (reaction,))
    monkeypatch.setattr(main, "TIMERS", (Timer("ring", recorder.ring),))
    return recorder


@pytest.fixture
async def pair(mongod: str, recorder: Recorder) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    async with running(make_settings(mongod, test_clock=True)) as pair:
        await pair[0].engine.drain()
        recorder.seen.clear()
        yield pair


BASIC = {"resourceType": "Basic", "id": "b1", "code": {"text": "anything"}}


async def test_every_version_is_reacted_to_in_order(
    pair: tuple[Server, httpx.AsyncClient], recorder: Recorder
) -> None:
    server, client = pair
    await client.put("/Basic/b1", json=BASIC)
    await client.put("/Basic/b1", json={**BASIC, "code": {"text": "else"}})
    await client.delete("/Basic/b1")
    await server.engine.drain()
    assert recorder.seen == [("update", "b1", 1), ("update", "b1", 2), ("delete", "b1", 3)]
    events = server.mongo.collection("events")
    assert await events.count_documents({"react_until": {"$exists": True}}) == 0


async def test_a_reaction_that_failed_is_tried_again(
    pair: tuple[Server, httpx.AsyncClient], recorder: Recorder
) -> None:
    server, client = pair
    recorder.failures = 1
    await client.put("/Basic/b1", json=BASIC)
    await server.engine.drain()
    assert recorder.seen == []
    await make_due(server.mongo)
    await server.engine.reactions.sweep()
    await server.engine.drain()
    assert recorder.seen == [("update", "b1", 1)]


@pytest.mark.slow
async def test_another_process_reacts_for_one_that_died(mongod: str, recorder: Recorder) -> None:
    settings = make_settings(mongod)
    async with running(settings) as (server, client):
        await server.engine.drain()
        recorder.seen.clear()
        await server.engine.reactions.stop()  # as if it had died after the commit
        await client.put("/Basic/b1", json=BASIC)
        assert recorder.seen == []
        await make_due(server.mongo)
    async with running(settings) as (server, _):
        await server.engine.reactions.sweep()
        await server.engine.drain()
        assert ("update", "b1", 1) in recorder.seen


async def test_a_timer_rings_when_its_time_has_come_and_once(
    pair: tuple[Server, httpx.AsyncClient], recorder: Recorder
) -> None:
    server, client = pair
    due = server.clock.now() + timedelta(days=90)
    await server.engine.timers.set("ring", "a", due, {"of": "quarter"})
    await server.engine.timers.set("ring", "b", due + timedelta(days=1), {"of": "later"})
    await server.engine.drain()
    assert recorder.rung == []
    answer = await client.post(
        "http://carerelay.test/admin/clock", json={"advance": 90 * 24 * 3600}
    )
    assert answer.status_code == 200
    assert answer.json()["now"] > due.isoformat()[:19]
    await server.engine.drain()
    assert recorder.rung == ["a quarter"]
    assert await server.engine.timers.due_of("ring", "a") is None
    assert await server.engine.timers.due_of("ring", "b") == due + timedelta(days=1)


async def test_a_timer_set_anew_or_cancelled_does_not_ring(
    pair: tuple[Server, httpx.AsyncClient], recorder: Recorder
) -> None:
    server, _ = pair
    now = server.clock.now()
    await server.engine.timers.set("ring", "a", now + timedelta(hours=1), {"of": "first"})
    await server.engine.timers.set("ring", "a", now + timedelta(hours=3), {"of": "second"})
    await server.engine.timers.set("ring", "b", now + timedelta(hours=1), {"of": "cancelled"})
    await server.engine.timers.cancel("ring", "b")
    server.clock.advance(timedelta(hours=2))
    await server.engine.drain()
    assert recorder.rung == []
    server.clock.advance(timedelta(hours=2))
    await server.engine.drain()
    assert recorder.rung == ["a second"]


async def test_a_timer_that_failed_rings_again(
    pair: tuple[Server, httpx.AsyncClient], recorder: Recorder
) -> None:
    server, _ = pair
    recorder.failures = 1
    await server.engine.timers.set("ring", "a", server.clock.now(), {"of": "x"})
    await server.engine.drain()
    assert await server.engine.timers.due_of("ring", "a") is not None
    await server.mongo.collection("timers").update_many({}, {"$unset": {"taken_until": ""}})
    await server.engine.drain()
    assert recorder.rung == ["a x"]


async def test_the_calendar_stays_where_nobody_may_move_it(client: httpx.AsyncClient) -> None:
    answer = await client.post("http://carerelay.test/admin/clock", json={"advance": 1})
    assert answer.status_code == 403


@pytest.mark.parametrize("advance", [-1, "soon", None, True, 1e300])
async def test_a_span_that_is_none_is_refused(
    pair: tuple[Server, httpx.AsyncClient], advance: object
) -> None:
    answer = await pair[1].post("http://carerelay.test/admin/clock", json={"advance": advance})
    assert answer.status_code == 400


async def test_a_raised_event_is_told_once_to_those_who_listen_for_its_topic(
    pair: tuple[Server, httpx.AsyncClient],
) -> None:
    server, client = pair
    async with receiving() as receiver:
        for patient in ("p1", "p2"):
            body = topic_based(f"patient=Patient/{patient}", endpoint=receiver.url)
            assert (await client.post("/Subscription", json=body)).status_code == 201
        await server.worker.drain()
        await client.put("/Encounter/e1", json={**encounter("planned"), "id": "e1"})
        await server.worker.drain()
        assert [each.kind for each in receiver.requests] == ["handshake", "handshake"]
        trigger = {"system": "http://example.org/why", "code": "raised"}
        for first in (True, False):
            raised = await server.store.raise_event(
                ("Encounter", "e1", 1),
                ADMISSION,
                key="e1 once",
                at=server.clock.now(),
                trigger=trigger,
                context=("DocumentReference/d1",),
            )
            assert raised is first
        await server.worker.drain()
        (notice,) = receiver.requests[2:]
        assert notice.focus.endswith("/Encounter/e1")
        parts = {part["name"]: part for part in notice.parameter("notification-event")}
        assert parts["trigger"]["valueCoding"] == trigger
        along = [
            part["valueReference"]["reference"]
            for part in notice.parameter("notification-event")
            if part["name"] == "additional-context"
        ]
        assert [each.rpartition("fhir/")[2] for each in along] == [
            "Patient/p1",
            "DocumentReference/d1",
        ]


async def test_a_matter_comes_into_the_review_queue_once(
    pair: tuple[Server, httpx.AsyncClient],
) -> None:
    server, client = pair
    context = server.engine.context
    await review_tasks.ask(context, "no-pcp", "Encounter/e9", patient="Patient/p9")
    task_id = stable_id("review", "no-pcp", "Encounter/e9", "")
    task = (await client.get(f"/Task/{task_id}")).json()
    assert task["focus"] == {"reference": "Encounter/e9"}
    assert task["for"] == {"reference": "Patient/p9"}
    await client.put(f"/Task/{task_id}", json={**task, "status": "completed"})
    await review_tasks.ask(context, "no-pcp", "Encounter/e9", patient="Patient/p9")
    found = (await client.get("/Task", params={"subject": "Patient/p9"})).json()
    assert [entry["resource"]["status"] for entry in found["entry"]] == ["completed"]
