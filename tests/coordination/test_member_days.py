"""Whose work a Task is, why it is due, and when its last day is over where the member is, also if the clock jumps."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import httpx
import pytest

from app.fhir.time_zones import TIME_ZONE
from tests.builders.members import CODES, Member, Resource, codes
from tests.conftest import Server, make_settings, running

pytestmark = pytest.mark.mongo

CHICAGO, HONOLULU = "America/Chicago", "Pacific/Honolulu"


@pytest.fixture(scope="module")
async def hub(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server in Chicago, whose care management has a team."""
    settings = make_settings(mongod, time_zone=CHICAGO, task_owners="care-management=CareTeam/cm")
    async with running(settings) as pair:
        yield pair


@pytest.fixture
async def member(hub: tuple[Server, httpx.AsyncClient]) -> Member:
    return await Member.new(*hub)


async def due(member: Member) -> Resource:
    """The Task of the assessment that is due."""
    *_, last = await member.tasks("task-code", "hra-due")
    return last


async def test_a_task_stands_in_a_work_list_has_an_owner_and_says_why(member: Member) -> None:
    await member.enrol()
    task = await due(member)
    assert codes(task["performerType"]) == ["care-management"]
    assert task["owner"] == {"reference": "CareTeam/cm"}
    assert task["reasonCode"]["text"] == (
        f"The first is due within 90 days of the enrolment on {task['restriction']['period']['start']}"
    )
    listed = await member.found("Task", performer=f"{CODES}task-queue|care-management")
    assert [each["id"] for each in listed] == [task["id"]]
    await member.assess()
    assert (await due(member))["reasonCode"]["text"].startswith("It is due a year after the last")


async def test_a_care_manager_comes_before_the_owner_of_the_list(member: Member) -> None:
    manager = {"reference": "Practitioner/manager"}
    await member.enrol(careManager=manager)
    assert (await due(member))["owner"] == manager


async def test_a_review_says_what_caused_it(member: Member) -> None:
    await member.finish()
    stay = {"status": "in-progress", "class": {"code": "IMP"}, "subject": member.patient}
    await member.put(
        {"resourceType": "Encounter", **stay, "period": {"start": member.day()}}, "stay"
    )
    (task,) = await member.reviews()
    assert codes(task["reasonCode"]) == ["admitted"]
    assert task["owner"] == {"reference": "CareTeam/cm"}


@pytest.mark.parametrize(
    ("own", "zone"),
    [
        pytest.param({}, CHICAGO, id="the-servers"),
        pytest.param(
            {"address": [{"extension": [{"url": TIME_ZONE, "valueCode": HONOLULU}]}]},
            HONOLULU,
            id="of-the-address",
        ),
    ],
)
async def test_a_last_day_ends_at_midnight_where_the_member_is_also_if_the_clock_goes_back(
    member: Member, own: dict[str, Any], zone: str
) -> None:
    server = member.server
    await member.put({"resourceType": "Patient", **own}, member.id)
    await member.enrol()
    last = datetime.fromisoformat((await due(member))["restriction"]["period"]["end"])
    midnight = datetime.combine(last + timedelta(days=1), time(), ZoneInfo(zone))

    async def late_at(moment: datetime) -> bool:
        server.clock.advance(moment - server.clock.now())
        await server.engine.drain()
        return "businessStatus" in await due(member)

    before = server.clock.now()
    assert not await late_at(midnight - timedelta(minutes=1))
    assert await late_at(midnight + timedelta(minutes=1))
    assert not await late_at(before), "nothing is late by a clock that was ahead"
    assert await late_at(midnight + timedelta(minutes=1))
    server.clock.advance(before - server.clock.now())


async def test_a_time_is_the_day_that_it_is_where_the_member_is(member: Member) -> None:
    await member.enrol(period={"start": f"{member.day(1)}T03:00:00Z"})
    assert (await due(member))["restriction"]["period"]["start"] == member.day(0)


async def test_what_looks_again_and_again_survives_a_clock_that_was_ahead(
    hub: tuple[Server, httpx.AsyncClient],
) -> None:
    server = hub[0]
    kinds = (("publish-notices", "all"), ("unmatched-review", "all"))
    for span in (timedelta(days=400), -timedelta(days=400)):
        server.clock.advance(span)
        await server.engine.drain()
    for kind in kinds:
        set_for = await server.engine.timers.due_of(*kind)
        assert set_for is not None
        assert set_for - server.clock.now() <= timedelta(seconds=31)
