"""Health risk assessments fall due 90 days after an enrolment, then every year (42 CFR 422.101(f))."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import date, timedelta
from typing import Any

import httpx
import pytest

from app.authentication.caller import SERVER
from app.automation import follow_up_tasks
from app.context import Context
from app.coordination.case_management import health_risk_assessments
from app.coordination.case_management.health_risk_assessments import Assessment, due_since
from app.fhir.instants import a_year_after
from app.fhir.time_zones import TIME_ZONE
from tests.builders.members import Member, Resource, codes, concept
from tests.builders.reactions import make_due
from tests.conftest import Server, make_settings, running


@pytest.fixture(scope="module")
async def hub(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server of its own, because its calendar is put forward."""
    async with running(make_settings(mongod)) as pair:
        yield pair


@pytest.fixture
async def member(hub: tuple[Server, httpx.AsyncClient]) -> Member:
    return await Member.new(*hub)


async def due(member: Member) -> list[Resource]:
    return await member.tasks("task-code", "hra-due")


def until(task: Resource) -> str:
    end: str = task["restriction"]["period"]["end"]
    return end


@pytest.mark.slow
async def test_an_enrolment_asks_for_an_assessment_within_90_days(member: Member) -> None:
    manager = {"reference": "Practitioner/imogen"}
    episode = await member.enrol(careManager=manager)
    (task,) = await due(member)
    assert (task["status"], task["priority"]) == ("requested", "routine")
    assert task["restriction"]["period"] == {"start": member.day(), "end": member.day(90)}
    assert task["focus"] == {"reference": f"EpisodeOfCare/{episode['id']}"}
    assert task["owner"] == manager


@pytest.mark.parametrize("name", ["Mars/Base", "america/new_york", "America", "../../etc/passwd"])
async def test_a_time_zone_that_there_is_not_counts_as_none(member: Member, name: str) -> None:
    stated = {"url": TIME_ZONE, "valueCode": name}
    await member.put({"resourceType": "Patient", "extension": [stated]}, member.id)
    await member.enrol()
    assert len(await member.tasks("task-code", "hra-due")) == 1


async def test_an_enrolment_in_something_else_asks_for_nothing(member: Member) -> None:
    await member.enrol(type=[concept("episode-type", "home-care")])
    assert await due(member) == []


async def test_an_assessment_closes_the_task_and_opens_the_yearly_one(member: Member) -> None:
    await member.enrol()
    assessment = await member.assess(days=20)
    first, yearly = await due(member)
    assert first["status"] == "completed"
    assert codes(first["statusReason"]) == ["assessed"]
    (output,) = first["output"]
    assert output["valueReference"] == {"reference": f"QuestionnaireResponse/{assessment['id']}"}
    assert yearly["status"] == "requested"
    assert until(yearly) == a_year_after(member.date(20)).isoformat()


@pytest.mark.slow
async def test_an_assessment_that_is_not_done_in_time_is_overdue_and_urgent(member: Member) -> None:
    await member.enrol()
    await member.days_pass(90)
    (task,) = await due(member)
    assert (task["priority"], "businessStatus" in task) == ("routine", False)
    await member.days_pass(2)
    (task,) = await due(member)
    assert (task["status"], task["priority"]) == ("requested", "urgent")
    assert codes(task["businessStatus"]) == ["overdue"]
    await member.assess()
    late, _ = await due(member)
    assert (late["status"], late["priority"]) == ("completed", "routine")


@pytest.mark.slow
async def test_every_year_another_assessment_falls_due(member: Member) -> None:
    await member.enrol()
    await member.assess("first", days=30)
    await member.days_pass(400)
    _, second = await due(member)
    assert codes(second["businessStatus"]) == ["overdue"]
    await member.assess("second")
    tasks = await due(member)
    assert [task["status"] for task in tasks] == ["completed", "completed", "requested"]
    assert until(tasks[-1]) == a_year_after(member.date()).isoformat()


async def test_an_enrolment_that_ends_cancels_what_is_open(member: Member) -> None:
    await member.enrol()
    await member.finish()
    (task,) = await due(member)
    assert task["status"] == "cancelled"
    assert codes(task["statusReason"]) == ["enrolment-ended"]
    await member.days_pass(200)
    assert [each["status"] for each in await due(member)] == ["cancelled"]


async def test_a_deleted_enrolment_cancels_and_a_corrected_end_reopens(member: Member) -> None:
    episode = await member.enrol()
    await member.delete(episode)
    assert [each["status"] for each in await due(member)] == ["cancelled"]
    await member.enrol()
    (task,) = await due(member)
    assert task["status"] == "requested"
    assert "statusReason" not in task


async def test_an_assessment_entered_in_error_no_longer_counts(member: Member) -> None:
    await member.enrol()
    await member.assess()
    await member.assess(status="entered-in-error")
    first, yearly = await due(member)
    assert (first["status"], yearly["status"]) == ("requested", "cancelled")
    assert "output" not in first
    assert codes(yearly["statusReason"]) == ["no-longer-due"]


@pytest.mark.parametrize(
    ("changes", "counts"),
    [
        pytest.param({}, True, id="completed"),
        pytest.param({"status": "amended"}, True, id="amended"),
        pytest.param({"status": "in-progress"}, False, id="not-finished"),
        pytest.param({"questionnaire": "http://example.org/phq-9"}, False, id="another-form"),
        pytest.param(
            {
                "questionnaire": "http://example.org/ours",
                "meta": {
                    "tag": concept("assessment-kind", "health-risk-assessment")["coding"],
                },
            },
            True,
            id="tagged",
        ),
    ],
)
async def test_only_completed_health_risk_assessments_count(
    member: Member, changes: dict[str, Any], counts: bool
) -> None:
    await member.enrol()
    await member.assess(**changes)
    assert ("completed" in [task["status"] for task in await due(member)]) is counts


async def test_an_assessment_shortly_before_the_enrolment_is_its_first(member: Member) -> None:
    await member.assess(days=-30)
    await member.enrol()
    (task,) = await due(member)
    assert until(task) == a_year_after(member.date(-30)).isoformat()


async def test_what_people_close_stays_closed_and_is_asked_again_next_year(member: Member) -> None:
    await member.enrol()
    (task,) = await due(member)
    refused = {**task, "status": "rejected", "statusReason": {"text": "Does not want to"}}
    response = await member.client.put(f"/Task/{task['id']}", json=refused)
    assert response.status_code == 200
    await member.server.engine.drain()
    first, second = await due(member)
    assert (first["status"], first["statusReason"]) == ("rejected", {"text": "Does not want to"})
    assert (second["status"], until(second)) == (
        "requested",
        a_year_after(member.date(90)).isoformat(),
    )
    await member.assess()
    tasks = await due(member)
    assert [task["status"] for task in tasks] == ["rejected", "requested", "cancelled"]
    assert tasks[0]["statusReason"] == {"text": "Does not want to"}
    assert until(tasks[1]) == a_year_after(member.date()).isoformat()


@pytest.mark.slow
async def test_what_people_write_into_a_task_is_kept(member: Member) -> None:
    await member.enrol()
    (task,) = await due(member)
    taken = {**task, "status": "in-progress", "note": [{"text": "Called twice"}]}
    await member.client.put(f"/Task/{task['id']}", json=taken)
    await member.days_pass(95)
    (task,) = await due(member)
    assert (task["status"], task["note"]) == ("in-progress", [{"text": "Called twice"}])
    assert codes(task["businessStatus"]) == ["overdue"]


async def test_nothing_is_written_twice(member: Member) -> None:
    """The same enrolment told again, and all reactions run again, change nothing."""
    episode = await member.enrol()
    before = await due(member)
    await member.put(
        {key: value for key, value in episode.items() if key not in ("id", "meta")}, "episode"
    )
    await member.days_pass(1)
    assert await due(member) == before


async def test_several_processes_at_once_make_one_task(member: Member) -> None:
    context = Context(member.server.services, SERVER, "http://carerelay.test/fhir")
    await member.enrol()
    await member.assess()
    patient = f"Patient/{member.id}"
    before = await due(member)
    await asyncio.gather(*(health_risk_assessments.settle(context, patient) for _ in range(5)))
    assert await due(member) == before


async def test_a_failure_on_the_way_is_made_good_later(
    member: Member, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The enrolment is stored; the Task follows once the reaction runs again."""

    async def fails(*arguments: object) -> bool:
        raise ConnectionError

    with monkeypatch.context() as broken:
        broken.setattr(follow_up_tasks, "amend", fails)
        await member.enrol()
    assert await due(member) == []
    server = member.server
    await make_due(server.mongo)
    await server.engine.reactions.sweep()
    await server.engine.drain()
    assert [task["status"] for task in await due(member)] == ["requested"]


async def test_an_enrolment_moved_to_another_patient_takes_its_task_along(
    hub: tuple[Server, httpx.AsyncClient], member: Member
) -> None:
    other = await Member.new(*hub)
    await member.enrol()
    await member.enrol(patient=other.patient)
    assert [task["status"] for task in await due(member)] == ["cancelled"]
    assert [task["status"] for task in await due(other)] == ["requested"]


async def test_an_enrolment_without_a_beginning_is_put_into_the_review_queue(
    member: Member,
) -> None:
    episode = await member.enrol(period={"end": member.day(500)})
    assert await due(member) == []
    (task,) = await member.found("Task", code="no-enrolment-date")
    assert task["focus"] == {"reference": f"EpisodeOfCare/{episode['id']}"}


def test_a_year_after_a_leap_day_is_the_28th_of_february() -> None:
    assert a_year_after(date(2028, 2, 29)) == date(2029, 2, 28)
    assert a_year_after(date(2027, 2, 28)) == date(2028, 2, 28)


def test_each_assessment_fulfils_what_was_due_when_it_was_made() -> None:
    start = date(2026, 1, 1)
    made = [
        Assessment(f"QuestionnaireResponse/{name}", start + timedelta(days=days))
        for name, days in (("a", 30), ("b", 380))
    ]
    found = due_since("Patient/p e", start, made, ())
    assert [each.until for each in found] == [
        start + timedelta(days=90),
        date(2027, 1, 31),
        date(2028, 1, 16),
    ]
    assert [each.assessment for each in found] == [*made, None]
    assert len({each.task_id for each in found}) == 3
