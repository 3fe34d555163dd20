"""Who says no to case management while enrolled: a person is asked to end the enrolment, which the server does not."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.builders.members import Member, Resource, codes
from tests.conftest import Server

pytestmark = pytest.mark.mongo


@pytest.fixture
async def member(server: Server, client: httpx.AsyncClient) -> Member:
    return await Member.new(server, client)


async def asked(member: Member) -> list[Resource]:
    """The questions whether the enrolment is to end, in the order they were asked."""
    code = "http://carerelay.example/CodeSystem/review-reason|opted-out-while-enrolled"
    found = await member.found("Task", code=code)
    return sorted(found, key=lambda task: task["authoredOn"])


def closings(tasks: list[Resource]) -> list[tuple[str, list[str]]]:
    return [(task["status"], codes(task.get("statusReason"))) for task in tasks]


@pytest.mark.parametrize(
    ("status", "kind"),
    [pytest.param("active", "deny", id="refused"), pytest.param("inactive", "permit", id="ended")],
)
async def test_who_opts_out_while_enrolled_is_somebodys_task_until_the_enrolment_ends(
    member: Member, status: str, kind: str
) -> None:
    episode = await member.enrol()
    assert await asked(member) == []
    await member.decide(status, kind)
    (task,) = await asked(member)
    assert task["status"] == "requested"
    assert task["focus"] == {"reference": f"EpisodeOfCare/{episode['id']}"}
    assert task["for"] == member.patient
    assert member.day() in task["reasonCode"]["text"]
    assert codes(task["performerType"]) == ["care-management"]
    stored = (await member.client.get(f"/EpisodeOfCare/{episode['id']}")).json()
    assert stored["status"] == "active", "the server ends no enrolment"
    await member.finish("opted-out", days_ago=0)
    assert closings(await asked(member)) == [("completed", ["enrolment-ended"])]


async def test_it_does_not_matter_which_becomes_known_first(member: Member) -> None:
    await member.decide("active", "deny")
    assert await asked(member) == []
    await member.enrol(status="planned")
    assert len(await asked(member)) == 1


async def test_a_refusal_that_is_taken_back_closes_it_and_a_new_one_asks_anew(
    member: Member,
) -> None:
    await member.enrol()
    await member.decide("active", "deny", -3)
    await member.decide("active", "permit", -2)
    assert closings(await asked(member)) == [("cancelled", ["no-longer-due"])]
    await member.decide("active", "deny", -1)
    assert [task["status"] for task in await asked(member)] == ["cancelled", "requested"]


async def test_what_a_person_has_closed_stays_closed(member: Member) -> None:
    await member.enrol()
    refusal = await member.decide("active", "deny")
    (task,) = await asked(member)
    await member.client.put(f"/Task/{task['id']}", json={**task, "status": "rejected"})
    edited: dict[str, Any] = {**refusal, "policy": [{"uri": "http://example.org/newer"}]}
    await member.put(edited, "consent0")
    assert [each["status"] for each in await asked(member)] == ["rejected"]


async def test_an_enrolment_of_another_kind_is_nobodys_matter(member: Member) -> None:
    await member.enrol(type=[{"text": "hospice"}])
    await member.decide("active", "deny")
    assert await asked(member) == []
