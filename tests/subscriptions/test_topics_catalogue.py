"""The topics that are not on stays: what each tells, through the door, to a practice that listens for all of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.fhir import codes
from app.fhir.definitions import PROFILES
from app.settings import Settings
from app.subscriptions.topics import topic_store
from tests.builders.practices import ref
from tests.builders.subscriptions import ENDPOINT, encounter, topic_based
from tests.builders.topic_listener import FEED, OURS, Listener, listening
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

TOPICS = (
    "careplan-annual-review",
    "careplan-change",
    "careteam-change",
    "case-management-status",
    "condition-new",
    "letter",
    "referral",
)
STAYS = ("admission", "cancelled", "discharge", "snf-admission", "transfer")
PATIENT = {"reference": "Patient/p1"}


@pytest.fixture(scope="module")
async def practice(mongod: str) -> AsyncIterator[Listener]:
    async with listening(mongod) as listener:
        for slug in TOPICS:
            await listener.listen(slug)
        yield listener


@pytest.fixture(scope="module")
async def door(mongod: str) -> AsyncIterator[Listener]:
    """A server where nobody listens yet: tests use patients of their own."""
    async with listening(mongod, plan_quiet_period=3600) as listener:
        yield listener


def test_all_topics_of_the_catalogue_are_there() -> None:
    known = topic_store.load(Settings()).by_url
    slugs = [*TOPICS, *(f"encounter-{each}" for each in STAYS)]
    assert sorted(known) == sorted([FEED, *(OURS + slug for slug in slugs)])


def test_every_topic_and_trigger_is_in_the_docs() -> None:
    text = (Path(__file__).parents[2] / "docs" / "topics.md").read_text()
    for topic in topic_store.load(Settings()).by_url.values():
        row = next(
            line for line in text.splitlines() if line.startswith(f"| `{topic.resource['id']}`")
        )
        for coding in topic.codings():
            assert f"`{coding['code']}`" in row
        for filters in topic.filters.values():
            for key in filters.keys() - {"_id"}:
                assert f"`{key}`" in row


def test_trigger_codes_are_those_of_the_code_systems() -> None:
    found: dict[str, dict[str, str]] = {}
    for path in (PROFILES / "topics").glob("*.json"):
        for trigger in json.loads(path.read_text())["resourceTrigger"]:
            for extension in trigger.get("extension", ()):
                coding = extension.get("valueCoding")
                if coding and coding["system"].startswith(codes.CODE_SYSTEM):
                    found.setdefault(coding["system"], {})[coding["code"]] = coding["display"]
    expected = {codes.CODE_SYSTEM + name: known for name, known in codes.TOPIC_TRIGGERS.items()}
    expected |= {
        codes.CARE_PLAN_CHANGE: codes.CARE_PLAN_CHANGES,
        codes.CARE_PLAN_REVIEW: codes.CARE_PLAN_REVIEWS,
    }
    assert found == expected


def member(who: str, role: str = "pcp", **period: str) -> dict[str, Any]:
    found: dict[str, Any] = {"member": {"reference": f"Practitioner/{who}"}}
    found["role"] = [{"coding": [{"system": "urn:roles", "code": role}]}]
    return {**found, "period": period} if period else found


def team(*participants: dict[str, Any], status: str = "active", **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"resourceType": "CareTeam", "status": status, "subject": PATIENT}
    return (
        {**found, "participant": list(participants), **more} if participants else {**found, **more}
    )


def condition(clinical: str | None, verified: str = "confirmed", **more: Any) -> dict[str, Any]:
    base = "http://terminology.hl7.org/CodeSystem/condition-"
    found: dict[str, Any] = {"resourceType": "Condition", "subject": PATIENT, **more}
    if clinical:
        found["clinicalStatus"] = {"coding": [{"system": base + "clinical", "code": clinical}]}
    found["verificationStatus"] = {"coding": [{"system": base + "ver-status", "code": verified}]}
    return found


def episode(status: str, **more: Any) -> dict[str, Any]:
    return {"resourceType": "EpisodeOfCare", "status": status, "patient": PATIENT, **more}


def request(status: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "ServiceRequest",
        "status": status,
        "intent": "order",
        "subject": PATIENT,
        "code": {"text": "case management"},
        **more,
    }


def task(status: str, focus: str = "ServiceRequest/r1", **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "Task",
        "status": status,
        "intent": "order",
        "focus": {"reference": focus},
        "for": PATIENT,
        **more,
    }


REVIEW = {"coding": [{"system": codes.REVIEW_REASON, "code": "re-enrolment"}]}
TEXT: dict[str, Any] = {
    "text": {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">x</div>'}
}
ADDED, REMOVED, ENDED = (
    f"careteam-change:participant-{each}" for each in ("added", "removed", "ended")
)
CASE, NEW, REFERRAL = "case-management-status:", "condition-new:", "referral:"


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(
            [(team(), None), (team(member("a")), ADDED), (team(member("a")), None),
             (team(member("a"), name="Team"), None), (team(member("a"), **TEXT), None)],
            id="team-somebody-joins",
        ),
        pytest.param(
            [(team(member("a"), member("b")), ADDED), (team(member("b"), member("a")), None),
             (team(member("b")), REMOVED)],
            id="team-order-does-not-matter",
        ),
        pytest.param([(team(member("a")), ADDED), (team(member("b")), ADDED)], id="team-one-for-another"),
        pytest.param(
            [(team(member("a")), ADDED), (team(member("a"), member("a", "manager")), ADDED),
             (team(member("a", "manager")), REMOVED)],
            id="team-roles",
        ),
        pytest.param(
            [(team(member("a", start="2026-01-01")), ADDED),
             (team(member("a", start="2026-01-01", end="2026-11-30")), ENDED),
             (team(member("a", start="2026-01-01", end="2026-11-30"), name="x"), None),
             (team(member("a", start="2026-01-01", end="2026-12-31")), ENDED),
             (team(member("a", start="2026-01-01")), None)],
            id="team-period-ends",
        ),
        pytest.param(
            [(team(member("a")), ADDED), (team(member("a"), status="inactive"), REMOVED),
             (team(member("a")), ADDED), (None, None)],
            id="team-becomes-inactive",
        ),
        pytest.param(
            [(condition("active"), f"{NEW}recorded"), (condition("active", **TEXT), None)],
            id="condition-active",
        ),
        pytest.param(
            [(condition("active", "provisional"), f"{NEW}recorded"), (condition("active"), f"{NEW}confirmed"),
             (condition("resolved"), None)],
            id="condition-confirmed-later",
        ),
        pytest.param([(condition("resolved"), None), (condition("active"), None)], id="condition-of-the-past"),
        pytest.param([(condition(None), f"{NEW}recorded")], id="condition-without-clinical-status"),
        pytest.param([(condition("active", "refuted"), None)], id="condition-refuted"),
        pytest.param(
            [(episode("planned"), f"{CASE}planned"), (episode("active"), f"{CASE}started"),
             (episode("active", period={"start": "2026-11-01"}), None), (episode("onhold"), f"{CASE}held"),
             (episode("active"), f"{CASE}resumed"), (episode("finished"), f"{CASE}ended"),
             (episode("finished", **TEXT), None)],
            id="case-management",
        ),
        pytest.param(
            [(episode("active"), f"{CASE}started"), (episode("entered-in-error"), f"{CASE}retracted")],
            id="case-management-in-error",
        ),
        pytest.param([(episode("cancelled"), f"{CASE}ended")], id="case-management-declined"),
        pytest.param(
            [(request("draft"), None), (request("active"), f"{REFERRAL}requested"),
             (request("active", priority="urgent"), None), (request("completed"), f"{REFERRAL}request-status")],
            id="referral",
        ),
        pytest.param(
            [(request("active"), f"{REFERRAL}requested"), (request("revoked"), f"{REFERRAL}request-status")],
            id="referral-revoked",
        ),
        pytest.param([(request("completed"), None)], id="referral-of-the-past"),
        pytest.param(
            [(task("draft"), None), (task("requested"), f"{REFERRAL}task-given"),
             (task("accepted"), f"{REFERRAL}task-status"), (task("accepted", priority="asap"), None),
             (task("completed"), f"{REFERRAL}task-status")],
            id="task-of-a-referral",
        ),
        pytest.param([(task("requested", "Encounter/e1"), None)], id="task-about-something-else"),
        pytest.param(
            [(task("requested", code=REVIEW), None), (task("completed", code=REVIEW), None)],
            id="task-of-the-review-queue",
        ),
        pytest.param(
            [({"resourceType": "CarePlan", "status": "active", "intent": "plan", "subject": PATIENT}, None),
             ({"resourceType": "CarePlan", "status": "revoked", "intent": "plan", "subject": PATIENT}, None)],
            id="care-plan-is-told-by-the-server-only",
        ),
    ],
)  # fmt: skip
async def test_what_the_steps_tell(
    practice: Listener,
    request: pytest.FixtureRequest,
    steps: list[tuple[dict[str, Any] | None, str | None]],
) -> None:
    id_ = request.node.callspec.id
    kind = (steps[0][0] or {})["resourceType"]
    for resource, expected in steps:
        version = None if resource is None else {**resource, "id": id_}
        told = await practice.told(version, f"{kind}/{id_}")
        # The server tells of care plans by itself.
        told = [each for each in told if not each.startswith("careplan-")]
        assert told == ([expected] if expected else []), resource


async def test_a_raised_event_is_told_with_its_trigger_by_its_filters(door: Listener) -> None:
    await door.put({"resourceType": "Goal", "id": "g1", "lifecycleStatus": "active",
                        "description": {"text": "walk"}, "subject": PATIENT})  # fmt: skip
    plan = {"resourceType": "CarePlan", "id": "c1", "status": "active", "intent": "plan",
            "subject": PATIENT, "goal": [{"reference": "Goal/g1"}]}  # fmt: skip
    await door.listen("careplan-change", "patient=p1", "trigger=goals")
    await door.listen("careplan-change", "patient=p2")
    await door.listen("careplan-change", "trigger=team")
    await door.put(plan)
    await door.server.worker.drain()
    before = len(door.receiver.events)
    trigger = {"system": codes.CARE_PLAN_CHANGE, "code": "goals"}
    for _ in range(2):
        await door.server.store.raise_event(
            ("CarePlan", "c1", 1), OURS + "careplan-change", key="k", at=door.server.clock.now(),
            trigger=trigger,
        )  # fmt: skip
    await door.server.worker.drain()
    (notice,) = door.receiver.events[before:]
    assert notice.focus.endswith("CarePlan/c1")
    parts = notice.parameter("notification-event")
    assert {"name": "trigger", "valueCoding": trigger} in parts
    along = [p["valueReference"]["reference"] for p in parts if p["name"] == "additional-context"]
    assert [each.split("/fhir/")[-1] for each in along] == ["Patient/p1", "Goal/g1"]


@pytest.mark.parametrize(
    "filters",
    [
        pytest.param([], id="no-patient"),
        pytest.param(["Encounter?trigger=feed-event"], id="no-patient-in-the-filter"),
        pytest.param(["Encounter?patient=p1,p2"], id="two-patients"),
        pytest.param(["Encounter?patient=p1&patient=p2"], id="two-filters"),
        pytest.param(["Encounter?patient=p1", "Observation?patient=p2"], id="one-each"),
        pytest.param(["Encounter?patient=p1", "Observation?category=laboratory"], id="one-type-without"),
        pytest.param(["Encounter?patient:missing=true"], id="modifier"),
        pytest.param(["patient=p1", "Patient?_id=p1"], id="said-twice"),
    ],
)  # fmt: skip
async def test_the_feed_is_about_exactly_one_patient(
    practice: Listener, filters: list[str]
) -> None:
    subscription = {**topic_based(*filters, endpoint=ENDPOINT), "criteria": FEED}
    answer = await practice.client.post("Subscription", json=subscription)
    assert answer.status_code == 422, answer.text
    assert_outcome(answer, 422, answer.json()["issue"][0]["code"])


async def test_the_feed_tells_of_the_patients_data_of_the_types_that_were_asked_for(
    door: Listener,
) -> None:
    code = {"text": "x"}
    lab = [{"coding": [{"system": "http://terminology.hl7.org/CodeSystem/observation-category",
                        "code": "laboratory"}]}]  # fmt: skip
    result = {"resourceType": "Observation", "status": "final", "code": code, "subject": PATIENT}
    other = {**encounter(patient="p2"), "id": "other"}
    stay = {**encounter("planned"), "id": "stay"}
    told = ["patient-data-feed:feed-event"]
    await door.listen(
        "patient-data-feed",
        "Encounter?patient=Patient/p1&trigger=feed-event",
        "Observation?patient=p1&category=laboratory",
    )
    steps: list[tuple[dict[str, Any] | None, str, list[str]]] = [
        (stay, "Encounter/stay", told),
        ({**stay, "status": "in-progress"}, "Encounter/stay", ["patient-data-feed:feed-event+A01"]),
        ({**stay, "status": "in-progress", **TEXT}, "Encounter/stay", []),
        (other, "Encounter/other", []),
        ({**result, "id": "lab", "category": lab}, "Observation/lab", told),
        ({**result, "id": "vital"}, "Observation/vital", []),
        ({**team(member("a")), "id": "t"}, "CareTeam/t", []),
        (None, "Encounter/stay", ["patient-data-feed:feed-event+A11"]),
    ]
    for resource, focus, expected in steps:
        assert await door.told(resource, focus) == expected, focus


async def test_the_feed_tells_all_codes_that_apply_and_filters_by_each(door: Listener) -> None:
    """US Core, Patient Data Feed: codes of HL7's table 0003 beside `feed-event`."""
    for name in ("fa", "fb"):
        await door.put({"resourceType": "Organization", "id": name, "name": name})
    left = {"period": {"start": "2026-01-01", "end": "2026-01-03"},
            "hospitalization": {"dischargeDisposition": {"text": "Home"}}}  # fmt: skip
    here, there = ({"serviceProvider": ref(f"Organization/{name}")} for name in ("fa", "fb"))
    steps: list[tuple[str, str, dict[str, Any], str]] = [
        ("planned", "EMER", here, ""),
        ("in-progress", "EMER", here, "+A04"),
        ("in-progress", "IMP", here, "+A06"),
        ("in-progress", "IMP", there, "+A02"),
        ("in-progress", "IMP", {**there, **left}, "+A03"),
        ("finished", "IMP", {**there, **left}, ""),
        ("in-progress", "IMP", there, "+A13"),
        ("in-progress", "EMER", there, "+A07"),
        ("entered-in-error", "EMER", there, "+A11"),
    ]
    asked = "Encounter?patient=Patient/p8"
    await door.listen("patient-data-feed", asked)
    await door.listen("patient-data-feed", f"{asked}&trigger=A03,A13")
    for status, class_, more, codes_ in steps:
        stay = {**encounter(status, class_, "p8", **more), "id": "e8"}
        expected = [f"patient-data-feed:feed-event{codes_}"]
        times = 2 if codes_ in ("+A03", "+A13") else 1
        assert await door.told(stay, "Encounter/e8") == expected * times, (status, class_)
    draft = {**topic_based(f"{asked}&trigger=A03", endpoint=ENDPOINT), "criteria": FEED}
    body = {
        "resourceType": "Parameters",
        "parameter": [{"name": "subscription", "resource": draft}],
    }
    answer = await door.client.post("Subscription/$dry-run", json=body)
    (event,) = [each["part"] for each in answer.json()["parameter"] if each["name"] == "event"]
    told = [part["valueCoding"]["code"] for part in event if part["name"] == "trigger"]
    assert told == ["feed-event", "A03"]
    wrong = {**topic_based("Encounter?patient=p8&trigger=A99", endpoint=ENDPOINT), "criteria": FEED}
    refused = await door.client.post("Subscription", json=wrong)
    assert_outcome(refused, 422, "code-invalid")


async def test_the_feed_without_types_is_of_all(door: Listener) -> None:
    await door.listen("patient-data-feed", "patient=Patient/p7")
    told = []
    other: dict[str, Any] = {"subject": {"reference": "Patient/p7"}}
    resources = (
        {"resourceType": "Patient"},
        team(member("a"), **other),
        condition("active", **other),
    )
    for resource in resources:
        id_ = "p7" if resource["resourceType"] == "Patient" else "x"
        told += await door.told({**resource, "id": id_}, f"{resource['resourceType']}/{id_}")
    assert told == ["patient-data-feed:feed-event"] * 3


async def test_what_travels_along_with_a_discharge(door: Listener) -> None:
    """The summary that refers to the stay, and participants but for relatives."""
    await door.listen("encounter-discharge", content="full-resource")
    await door.put({"resourceType": "Patient", "id": "p9"})
    await door.put({"resourceType": "PractitionerRole", "id": "role"})
    await door.put(
        {"resourceType": "RelatedPerson", "id": "kin", "patient": {"reference": "Patient/p9"}}
    )
    await door.put(
        {"resourceType": "DocumentReference", "id": "summary", "status": "current",
         "subject": {"reference": "Patient/p9"},
         "context": {"encounter": [{"reference": "Encounter/e9"}]},
         "content": [{"attachment": {"url": "Binary/1"}}]}
    )  # fmt: skip
    people = [
        {"individual": {"reference": each}}
        for each in ("PractitionerRole/role", "RelatedPerson/kin")
    ]
    stay = {**encounter("finished", patient="p9", participant=people), "id": "e9"}
    assert await door.told(stay, "Encounter/e9") == ["encounter-discharge:A03"]
    types = [
        each["resource"]["resourceType"] for each in door.receiver.events[-1].json["entry"][1:]
    ]
    assert sorted(types) == ["DocumentReference", "Encounter", "Patient", "PractitionerRole"]
