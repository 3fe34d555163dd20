"""The calendar that an operator moves for tests and demonstrations: docs/clock.md."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from tests.builders.members import Member
from tests.conftest import Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

CLOCK = "http://carerelay.test/admin/clock"
DAY = 86_400
Pair = tuple[Server, httpx.AsyncClient]


@pytest.fixture(scope="module")
async def hub(mongod: str) -> AsyncIterator[Pair]:
    async with running(make_settings(mongod, test_clock=True)) as pair:
        yield pair


@pytest.fixture(autouse=True)
async def _true_time(hub: Pair) -> AsyncIterator[None]:
    yield
    assert (await hub[1].post(CLOCK, json={"reset": True})).is_success


async def ahead(client: httpx.AsyncClient) -> float:
    answer = await client.get(CLOCK)
    assert answer.status_code == 200, answer.text
    return float(answer.json()["ahead"])


async def test_it_moves_what_falls_due_and_not_what_has_happened(hub: Pair) -> None:
    server, client = hub
    member = await Member.new(*hub)
    await member.enrol()
    moved = await client.post(CLOCK, json={"advance": 100 * DAY})
    assert moved.status_code == 200, moved.text
    await server.engine.drain()
    (task, *_) = await member.tasks("task-code", "hra-due")
    assert task["priority"] == "urgent"
    changed = datetime.fromisoformat(task["meta"]["lastUpdated"])
    assert abs(changed - datetime.now(UTC)) < timedelta(minutes=5), "that is when it was written"


async def test_all_processes_have_it_at_once_and_after_the_next_start(hub: Pair) -> None:
    server, client = hub
    async with running(server.settings) as (other, second):
        assert await ahead(second) == 0
        await client.post(CLOCK, json={"advance": 30 * DAY})
        await other.clock.look()  # as it does every second
        assert await ahead(second) == 30 * DAY
        await second.post(CLOCK, json={"advance": DAY})
    async with running(server.settings) as (_, third):
        assert await ahead(third) == 31 * DAY
        page = (await third.get("http://carerelay.test/metrics")).text
        (told,) = re.findall(r"^carerelay_clock_ahead_seconds (.+)$", page, re.MULTILINE)
        assert float(told) == 31 * DAY


async def test_what_would_happen_until_a_date_is_told_and_does_not_happen(hub: Pair) -> None:
    server, client = hub
    member = await Member.new(*hub)
    await member.enrol()
    until = (server.clock.now() + timedelta(days=89)).date().isoformat()
    assert about(await due(client, until), member) == []
    until = (server.clock.now() + timedelta(days=92)).date().isoformat()
    (row,) = about(await due(client, until), member)
    assert row["what"] == "A health risk assessment is late"
    (task,) = await member.tasks("task-code", "hra-due")
    assert "businessStatus" not in task


async def test_nothing_that_looks_again_and_again_waits_for_a_time_that_was_put_back(
    hub: Pair,
) -> None:
    """Kept so long, Tasks and notices that nobody got would be looked at no more for 400 days."""
    server, client = hub
    await client.post(CLOCK, json={"advance": 400 * DAY})
    await server.engine.drain()
    await client.post(CLOCK, json={"reset": True})
    await server.engine.drain()
    rows = await server.mongo.collection("timers").find({"failed": None}).to_list(None)
    latest = server.clock.now() + timedelta(days=1, minutes=1)
    told = {row["kind"] for row in await due(client, "2999")}
    late = {row["kind"] for row in rows if row["due"] > latest}
    assert {"untold-review", "reroute", "care-plan-copies"} <= {row["kind"] for row in rows}
    assert late <= told


async def due(client: httpx.AsyncClient, until: str) -> list[dict[str, Any]]:
    answer = await client.get(CLOCK, params={"until": until})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["due"]
    return found


def about(rows: list[dict[str, Any]], member: Member) -> list[dict[str, Any]]:
    return [row for row in rows if row["about"] == f"Patient/{member.id}"]


async def test_what_a_plan_waits_for_names_the_plan(hub: Pair) -> None:
    member = await Member.new(*hub)
    plan = {
        "resourceType": "CarePlan",
        "status": "active",
        "intent": "plan",
        "subject": member.patient,
    }
    await member.put(plan, "plan")
    found = await due(hub[1], (hub[0].clock.now() + timedelta(days=1)).date().isoformat())
    assert ("A care plan's changes are told", f"CarePlan/{member.id}-plan") in {
        (row["what"], row["about"]) for row in found
    }


async def test_it_is_put_to_a_date_and_told_in_the_log(
    hub: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "app.runtime.clock"):
        answer = await hub[1].post(CLOCK, json={"to": "2090-03-01T08:00:00Z"})
    assert answer.json()["now"].startswith("2090-03-01T08:00:0")
    assert [record.message for record in caplog.records] == ["the calendar was moved"]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"advance": 1, "to": "2090"}, id="two-ways"),
        pytest.param({"to": "2020-01-01"}, id="past"),
        pytest.param({"to": "soon"}, id="no-date"),
        pytest.param({"to": 3}, id="no-text"),
        pytest.param({"advance": 1e12}, id="beyond-the-calendar"),
        pytest.param({"reset": False}, id="no-reset"),
    ],
)
async def test_what_is_no_time_to_come_is_refused(hub: Pair, body: dict[str, Any]) -> None:
    answer = await hub[1].post(CLOCK, json=body)
    assert answer.status_code == 400, answer.text
    assert await ahead(hub[1]) == 0


async def test_in_production_it_has_to_be_said_aloud(mongod: str) -> None:
    """A server that is open to others, and whose operator has left the setting on."""
    settings = make_settings(mongod, test_clock=True, host="192.0.2.1", allow_open=True)
    async with running(settings) as (_, client):
        refused = await client.post(CLOCK, json={"advance": DAY})
        assert_outcome(refused, 403, "business-rule")
        assert settings.mongodb_database not in refused.text
        for name in ("", "another"):
            body = {"advance": DAY, "production": name}
            assert (await client.post(CLOCK, json=body)).status_code == 403
        assert await ahead(client) == 0
        aloud = {"advance": DAY, "production": settings.mongodb_database}
        assert (await client.post(CLOCK, json=aloud)).status_code == 200
    # Back to the true time it goes without the setting too.
    quiet = settings.model_copy(update={"test_clock": False})
    async with running(quiet) as (_, client):
        assert await ahead(client) == DAY
        assert (await client.post(CLOCK, json={"advance": DAY})).status_code == 403
        assert (await client.post(CLOCK, json={"reset": True})).status_code == 200
        assert await ahead(client) == 0
