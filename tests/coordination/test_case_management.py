"""Case management: why an enrolment ended, what re-opens the question, lists of candidates, and the code lists."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.automation.follow_up_tasks import CLOSINGS, DESCRIPTIONS
from app.fhir import code_lists, codes as own
from app.fhir.validation.models import model_issues
from tests.builders.members import CODES, EXTENSIONS, Member, Resource, codes, concept
from tests.conftest import Server, make_settings, running
from tests.outcomes import assert_outcome, errors_in

RISK = "http://terminology.hl7.org/CodeSystem/risk-probability"
END_REASON = f"EpisodeOfCare.extension('{EXTENSIONS}episode-end-reason')"


@pytest.fixture(scope="module")
async def hub(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server of its own, because its calendar is put forward."""
    async with running(make_settings(mongod)) as pair:
        yield pair


@pytest.fixture
async def member(hub: tuple[Server, httpx.AsyncClient]) -> Member:
    return await Member.new(*hub)


def ended(reason: Any, **changes: Any) -> Resource:
    """A finished enrolment with this end reason, None for none."""
    extension = {"url": f"{EXTENSIONS}episode-end-reason", "valueCodeableConcept": reason}
    return {
        "resourceType": "EpisodeOfCare",
        "status": "finished",
        "type": [concept("episode-type", "case-management")],
        "patient": {"reference": "Patient/somebody"},
        **({"extension": [extension]} if reason else {}),
        **changes,
    }


async def stay(
    member: Member,
    status: str = "in-progress",
    class_: str = "IMP",
    name: str = "stay",
    **more: Any,
) -> Resource:
    """A stay in hospital that began today."""
    return await member.put(
        {
            "resourceType": "Encounter",
            "status": status,
            "class": {
                "system": "http://terminology.hl7.org/CodeSystem/v3-ActCode",
                "code": class_,
            },
            "subject": member.patient,
            "period": {"start": member.day()},
            **more,
        },
        name,
    )


async def risk(member: Member, level: str, days: int, name: str, **changes: Any) -> Resource:
    """A risk found so many days from today."""
    return await member.put(
        {
            "resourceType": "RiskAssessment",
            "status": "final",
            "subject": member.patient,
            "occurrenceDateTime": member.day(days),
            "prediction": [{"qualitativeRisk": concept(RISK, level)}],
            **changes,
        },
        name,
    )


async def tier(member: Member, code: str, days: int, name: str, **changes: Any) -> Resource:
    """A Flag that puts the member into a risk tier from so many days from today on."""
    return await member.put(
        {
            "resourceType": "Flag",
            "status": "active",
            "category": [concept("flag-category", "risk-tier")],
            "code": concept("risk-tier", code),
            "subject": member.patient,
            "period": {"start": member.day(days)},
            **changes,
        },
        name,
    )


def focus(tasks: list[Resource]) -> list[str]:
    return [task["focus"]["reference"] for task in tasks]


# Why an enrolment ended


@pytest.mark.parametrize("code", sorted(code_lists.codes(own.EPISODE_END_REASON)))
async def test_every_end_reason_of_the_list_is_accepted(
    hub: tuple[Server, httpx.AsyncClient], code: str
) -> None:
    response = await hub[1].post(
        "/EpisodeOfCare",
        json=ended(concept("episode-end-reason", code)),
        headers={"Prefer": "return=OperationOutcome"},
    )
    assert response.status_code == 201
    done, no_narrative = response.json()["issue"]
    assert (done["severity"], no_narrative["severity"]) == ("information", "warning")
    assert "dom-6" in no_narrative["diagnostics"]


@pytest.mark.parametrize(
    "reason",
    [
        pytest.param(concept("episode-end-reason", "bored"), id="unknown-code"),
        pytest.param(concept("http://example.org/reasons", "goals-met"), id="another-system"),
        pytest.param({"text": "goals met"}, id="text-alone"),
        pytest.param(
            {"coding": [{"system": f"{CODES}episode-end-reason", "display": "Goals met"}]},
            id="no-code",
        ),
    ],
)
async def test_an_end_reason_outside_of_the_list_is_refused(
    hub: tuple[Server, httpx.AsyncClient], reason: Resource
) -> None:
    response = await hub[1].post("/EpisodeOfCare", json=ended(reason))
    outcome = assert_outcome(response, 422, "code-invalid", END_REASON)
    assert "goals-met" in outcome["issue"][0]["diagnostics"]


async def test_two_end_reasons_are_refused(hub: tuple[Server, httpx.AsyncClient]) -> None:
    episode = ended(concept("episode-end-reason", "hospice"))
    response = await hub[1].post(
        "/EpisodeOfCare", json={**episode, "extension": episode["extension"] * 2}
    )
    assert_outcome(response, 422, "structure", END_REASON)


async def test_an_end_without_a_reason_is_accepted_with_a_warning_and_a_question(
    member: Member,
) -> None:
    episode = ended(None, patient=member.patient)
    response = await member.client.post(
        "/EpisodeOfCare", json=episode, headers={"Prefer": "return=OperationOutcome"}
    )
    assert response.status_code == 201
    issue, _ = response.json()["issue"]
    assert (issue["severity"], issue["expression"]) == ("warning", [END_REASON])
    await member.server.engine.drain()
    (task,) = await member.found("Task", code="no-end-reason")
    assert response.headers["location"].split("/_history")[0].endswith(focus([task])[0])


async def test_what_a_client_says_of_an_enrolment_is_stored_as_it_is(member: Member) -> None:
    episode = await member.finish()
    stored = (await member.client.get(f"/EpisodeOfCare/{episode['id']}")).json()
    assert stored == episode
    assert stored["meta"]["versionId"] == "1"


# What re-opens the question


async def test_an_admission_after_case_management_has_ended_asks_for_a_review(
    member: Member,
) -> None:
    await member.finish()
    encounter = await stay(member)
    (task,) = await member.reviews()
    assert (task["status"], task["intent"]) == ("requested", "order")
    assert task["focus"] == {"reference": f"Encounter/{encounter['id']}"}
    assert task["for"] == member.patient


async def test_a_discharge_is_a_transition_as_well(member: Member) -> None:
    await stay(member)
    await member.finish(days_ago=0)
    await stay(member, "finished", period={"start": member.day(-3), "end": member.day()})
    assert len(await member.reviews()) == 1


async def test_an_expected_end_is_no_discharge_and_the_real_one_is(member: Member) -> None:
    home: dict[str, Any] = {"hospitalization": {"dischargeDisposition": {"text": "home"}}}
    expected: dict[str, Any] = {"period": {"start": member.day(-3), "end": member.day(2)}, **home}
    await stay(member, **expected)
    await member.finish(days_ago=0)
    await stay(member, **expected, reasonCode=[{"text": "falls"}])
    assert await member.reviews() == []
    await stay(member, "finished", **expected)
    assert len(await member.reviews()) == 1


async def test_who_has_left_is_discharged_before_the_status_says_so(member: Member) -> None:
    left: dict[str, Any] = {"period": {"start": member.day(-3), "end": member.day(0)}}
    await stay(member)
    await member.finish(days_ago=0)
    await stay(member, **left)
    assert await member.reviews() == []
    await stay(member, **left, hospitalization={"dischargeDisposition": {"text": "home"}})
    assert len(await member.reviews()) == 1


@pytest.mark.parametrize(
    ("status", "class_"),
    [
        pytest.param("in-progress", "EMER", id="emergency"),
        pytest.param("in-progress", "OBSENC", id="observation"),
        pytest.param("in-progress", "AMB", id="outpatient"),
        pytest.param("planned", "IMP", id="planned"),
        pytest.param("cancelled", "IMP", id="cancelled"),
    ],
)
async def test_what_is_no_inpatient_stay_asks_nothing(
    member: Member, status: str, class_: str
) -> None:
    await member.finish()
    await stay(member, status, class_)
    assert await member.reviews() == []


async def test_an_emergency_that_becomes_a_stay_asks_when_it_does(member: Member) -> None:
    await member.finish()
    await stay(member, class_="EMER")
    await stay(member, class_="IMP")
    assert len(await member.reviews()) == 1


async def test_a_stay_told_of_months_later_or_from_before_the_end_asks_nothing(
    member: Member,
) -> None:
    await member.finish(days_ago=10)
    await stay(member, "finished", period={"start": member.day(-15), "end": member.day(-12)})
    await member.finish(days_ago=100)
    await stay(member, name="old", period={"start": member.day(-60)})
    assert await member.reviews() == []


async def test_while_a_question_is_open_no_second_one_is_asked(member: Member) -> None:
    await member.finish()
    await stay(member)
    await member.refer()
    (task,) = await member.reviews()
    await member.client.put(f"/Task/{task['id']}", json={**task, "status": "completed"})
    await stay(member, name="another")
    assert [each["status"] for each in await member.reviews()] == ["completed", "requested"]


async def test_the_same_cause_asks_once_also_after_the_answer(member: Member) -> None:
    await member.finish()
    await stay(member)
    (task,) = await member.reviews()
    await member.client.put(f"/Task/{task['id']}", json={**task, "status": "rejected"})
    await stay(member, "finished", period={"start": member.day(-1), "end": member.day()})
    assert [each["status"] for each in await member.reviews()] == ["rejected"]


async def test_many_causes_at_once_ask_once(member: Member) -> None:
    await member.finish()
    encounter = {
        "resourceType": "Encounter",
        "status": "in-progress",
        "class": {"code": "IMP"},
        "subject": member.patient,
        "period": {"start": member.day()},
    }
    await asyncio.gather(
        *(
            member.client.put(
                f"/Encounter/{member.id}-{n}", json={**encounter, "id": f"{member.id}-{n}"}
            )
            for n in range(10)
        )
    )
    await member.server.engine.drain()
    assert len(await member.reviews()) == 1


async def test_who_is_enrolled_is_not_asked_about(member: Member) -> None:
    await member.enrol()
    await stay(member)
    await member.refer()
    assert await member.reviews() == []


async def test_who_never_was_enrolled_is_asked_about_as_a_candidate_only(
    hub: tuple[Server, httpx.AsyncClient], member: Member
) -> None:
    candidate, former = member, await Member.new(*hub)
    last_month = {"start": member.day(-60), "end": member.day(-30)}
    await member.put(
        {
            "resourceType": "Group",
            "type": "person",
            "actual": True,
            "code": concept("group-kind", "case-management-candidates"),
            "member": [
                {"entity": candidate.patient},
                {"entity": former.patient, "period": last_month},
            ],
        },
        "candidates",
    )
    stranger = await Member.new(*hub)
    for each in (candidate, former, stranger):
        await stay(each)
    assert [len(await each.reviews()) for each in (candidate, former, stranger)] == [1, 0, 0]


async def test_a_referral_asks_about_anybody(member: Member) -> None:
    request = await member.refer()
    assert focus(await member.reviews()) == [f"ServiceRequest/{request['id']}"]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"status": "draft"}, id="draft"),
        pytest.param({"category": [concept("service-category", "transport")]}, id="another"),
        pytest.param({"authoredOn": "2020-01-01"}, id="of-long-ago"),
    ],
)
async def test_what_is_no_new_referral_asks_nothing(
    member: Member, changes: dict[str, Any]
) -> None:
    await member.refer(**changes)
    assert await member.reviews() == []


async def test_a_risk_that_rises_asks_for_a_review(member: Member) -> None:
    await member.finish()
    await risk(member, "moderate", -9, "first")
    assert await member.reviews() == []
    await risk(member, "moderate", -5, "second")
    assert await member.reviews() == []
    higher = await risk(member, "high", -1, "third")
    assert focus(await member.reviews()) == [f"RiskAssessment/{higher['id']}"]


async def test_a_risk_of_another_method_an_older_one_or_a_draft_is_no_rise(member: Member) -> None:
    await member.finish()
    await risk(member, "low", -5, "first")
    await risk(member, "high", -1, "other", method={"text": "another score"})
    await risk(member, "high", -8, "older")
    await risk(member, "high", -1, "draft", status="preliminary")
    assert await member.reviews() == []


async def test_a_risk_that_is_corrected_upwards_asks_for_a_review(member: Member) -> None:
    await member.finish()
    await risk(member, "low", -1, "risk")
    await risk(member, "high", -1, "risk", status="corrected")
    assert len(await member.reviews()) == 1


async def test_a_higher_risk_tier_asks_for_a_review(member: Member) -> None:
    await member.finish()
    await tier(member, "high", -9, "first")
    await tier(member, "low", -5, "second")
    assert await member.reviews() == []
    flag = await tier(member, "moderate", -1, "third")
    assert focus(await member.reviews()) == [f"Flag/{flag['id']}"]


@pytest.mark.parametrize(
    ("decisions", "asks"),
    [
        pytest.param([("active", "deny", -5)], False, id="refused"),
        pytest.param([("inactive", "permit", -5)], False, id="taken-back"),
        pytest.param([("active", "deny", -5), ("active", "permit", -1)], True, id="agreed-again"),
        pytest.param([("active", "permit", -5), ("active", "deny", -1)], False, id="refused-later"),
        pytest.param([("inactive", "deny", -5)], True, id="refusal-taken-back"),
        pytest.param([("draft", "deny", -5)], True, id="draft"),
    ],
)
async def test_who_has_opted_out_is_not_asked_about(
    member: Member, decisions: list[tuple[str, str, int]], asks: bool
) -> None:
    await member.finish()
    for decision in decisions:
        await member.decide(*decision)
    await stay(member)
    assert bool(await member.reviews()) is asks


@pytest.mark.parametrize(
    ("reason", "consents", "asks"),
    [
        pytest.param("opted-out", False, False, id="opted-out"),
        pytest.param("opted-out", True, True, id="opted-out-and-in-again"),
        pytest.param("deceased", True, False, id="deceased"),
        pytest.param("hospice", False, True, id="hospice"),
        pytest.param("unreachable", False, True, id="unreachable"),
    ],
)
async def test_the_end_reason_counts_where_no_consent_says_otherwise(
    member: Member, reason: str, consents: bool, asks: bool
) -> None:
    await member.finish(reason)
    if consents:
        await member.decide("active", "permit", -1)
    await member.refer()
    assert bool(await member.reviews()) is asks


async def test_who_has_died_is_not_asked_about(member: Member) -> None:
    await member.finish()
    await member.put({"resourceType": "Patient", "deceasedDateTime": member.day(-1)}, member.id)
    await stay(member, "finished")
    assert await member.reviews() == []


async def test_records_without_a_patient_of_ours_ask_nothing(member: Member) -> None:
    await stay(member, name="nobody", subject={"display": "Unknown"})
    await member.refer(subject={"reference": "Group/g"})
    await member.refer("elsewhere", subject={"reference": "http://elsewhere.example/Patient/1"})
    found = await member.client.get("/Task", params={"focus": f"Encounter/{member.id}-nobody"})
    reasons = [codes(entry["resource"]["code"]) for entry in found.json().get("entry", ())]
    assert ["re-enrolment"] not in reasons
    assert await member.reviews() == []


# Lists of candidates, refreshed every month


@pytest.mark.slow
async def test_candidates_refreshed_every_month_are_versions_of_one_group(member: Member) -> None:
    months = [range(2000), range(500, 2500), range(1000, 3000)]
    for month in months:
        await member.put(
            {
                "resourceType": "Group",
                "type": "person",
                "actual": True,
                "code": concept("group-kind", "case-management-candidates"),
                "quantity": len(month),
                "member": [{"entity": {"reference": f"Patient/{member.id}-{n}"}} for n in month],
            },
            "monthly",
        )
    group = f"/Group/{member.id}-monthly"
    history = (await member.client.get(f"{group}/_history")).json()
    assert [entry["resource"]["meta"]["versionId"] for entry in history["entry"]] == ["3", "2", "1"]
    first = (await member.client.get(f"{group}/_history/1")).json()
    assert [first["member"][n]["entity"]["reference"] for n in (0, -1)] == [
        f"Patient/{member.id}-0",
        f"Patient/{member.id}-1999",
    ]
    for number, is_candidate in ((0, False), (999, False), (1000, True), (2999, True)):
        found = await member.client.get(
            "/Group", params={"member": f"Patient/{member.id}-{number}", "_summary": "count"}
        )
        assert found.json()["total"] == int(is_candidate)


# The code lists


async def test_the_code_lists_are_published_with_a_value_set_each(
    hub: tuple[Server, httpx.AsyncClient],
) -> None:
    systems = code_lists.code_systems()
    for system in systems.values():
        stored = (await hub[1].get(f"/CodeSystem/{system['id']}")).json()
        assert {**stored, "meta": None} == {**system, "meta": None}
        found = await hub[1].get("/ValueSet", params={"url": system["valueSet"]})
        assert found.json()["total"] == 1
    found = await hub[1].get("/CodeSystem", params={"code": "goals-met"})
    assert [each["resource"]["id"] for each in found.json()["entry"]] == ["episode-end-reason"]


async def test_a_published_code_list_can_be_searched_by(member: Member) -> None:
    await member.enrol()
    value_set = "http://carerelay.example/ValueSet/episode-type"
    found = await member.found("EpisodeOfCare", **{"type:in": value_set})
    assert len(found) == 1


@pytest.mark.parametrize("system", code_lists.code_systems().values(), ids=lambda each: each["id"])
def test_a_code_list_is_valid_and_complete(system: Resource) -> None:
    assert errors_in(system) == []
    assert model_issues(json.loads(json.dumps(system))) == []
    assert system["url"] == own.CODE_SYSTEM + system["id"]
    assert system["count"] == len(system["concept"]) == len(code_lists.codes(system["url"]))


@pytest.mark.parametrize("value_set", code_lists.value_sets(), ids=lambda each: each["id"])
def test_a_value_set_is_valid(value_set: Resource) -> None:
    assert errors_in(value_set) == []
    assert model_issues(value_set) == []


@pytest.mark.parametrize(
    ("system", "used"),
    [
        pytest.param(own.REVIEW_REASON, own.REVIEW_REASONS, id="review-reason"),
        pytest.param(own.TASK_CODE, DESCRIPTIONS, id="task-code"),
        pytest.param(own.TASK_STATUS_REASON, CLOSINGS, id="task-status-reason"),
        pytest.param(own.RISK_TIER, own.RISK_TIERS, id="risk-tier"),
        pytest.param(own.EPISODE_TYPE, [own.CASE_MANAGEMENT], id="episode-type"),
        pytest.param(own.FLAG_CATEGORY, [own.CONTINUITY_OF_CARE, "risk-tier"], id="flag-category"),
    ],
)
def test_the_server_uses_the_codes_that_it_publishes(system: str, used: Any) -> None:
    concepts = code_lists.code_systems()[system]["concept"]
    assert {each["code"] for each in concepts} == set(used)
    if isinstance(used, dict):
        assert {each["code"]: each["display"] for each in concepts} == used
