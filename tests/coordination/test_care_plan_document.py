"""The copy of a care plan for the primary care practice: complete, self-contained, and readable without FHIR."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from lxml import etree

from app.coordination.care_plans import document_narrative as narrative
from app.fhir.json import decode, encode
from app.fhir.validation.models import model_issues
from app.fhir.validation.narrative import is_narrative
from tests.builders.care_plans import (
    BASE,
    Desk,
    Json,
    Pair,
    achieved,
    care_team,
    goal,
    participant,
    patient,
    plan,
    reference,
)
from tests.outcomes import assert_outcome, errors_in
from tests.shared_data import needs_shared, resources as shared_resources

pytestmark = pytest.mark.mongo
LOCAL_ROLE = "http://carerelay.example/CodeSystem/care-team-role"
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
CONFIDENTIALITY = "http://terminology.hl7.org/CodeSystem/v3-Confidentiality"


def concept(text: str, category: str = "") -> Json:
    coded = {"category": [{"coding": [{"code": category}]}]} if category else {}
    return {"code": {"text": text}, **coded}


ACTIVE_ALLERGY = {
    "coding": [
        {
            "system": "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical",
            "code": "active",
        }
    ]
}


def about(resource_type: str, id_: str, **more: Any) -> Json:
    name = "patient" if resource_type == "AllergyIntolerance" else "subject"
    return {"resourceType": resource_type, "id": id_, name: reference("Patient/ann"), **more}


@pytest.fixture
async def told(at: Desk) -> Desk:
    """A plan with everything that a document tells."""
    contact = {
        "coding": [{"system": LOCAL_ROLE, "code": "point-of-contact"}],
        "text": "Social worker",
    }
    await at.put(
        patient(),
        {"resourceType": "Practitioner", "id": "dr", "name": [{"text": "Dr Ada <Beck>"}]},
        {
            "resourceType": "Practitioner",
            "id": "sw",
            "name": [{"text": "Sam Wu LCSW"}],
            "telecom": [{"system": "phone", "value": "555-0107"}],
        },
        care_team(
            participant("Practitioner/dr", "Primary care physician"),
            {"member": reference("Practitioner/sw"), "role": [contact]},
        ),
        about("Condition", "hf", **concept("Heart failure", "problem-list-item")),
        about("Condition", "lone", **concept("Lives alone", "health-concern")),
        about("Condition", "drug", **concept("Opioid dependence", "problem-list-item"))
        | {"meta": {"security": [{"system": CONFIDENTIALITY, "code": "R"}]}},
        goal(
            "walk",
            "Walk twenty minutes a day",
            achievementStatus=achieved("in-progress"),
            expressedBy=reference("Patient/ann"),
            target=[
                {"measure": {"text": "Minutes"}, "detailString": "20", "dueDate": "2027-03-01"}
            ],
        ),
        about(
            "ServiceRequest",
            "pt",
            status="active",
            intent="order",
            reasonReference=[reference("Condition/hf")],
            performer=[reference("Practitioner/dr")],
            **concept("Physical therapy"),
        ),
        about("MedicationRequest", "med", status="active", intent="order")
        | {"medicationCodeableConcept": {"text": "Furosemide 40 mg"}},
        about("AllergyIntolerance", "all", clinicalStatus=ACTIVE_ALLERGY, **concept("Penicillin")),
        about(
            "Encounter",
            "stay",
            status="finished",
            period={"start": "2026-10-01", "end": "2026-10-05"},
        )
        | {"class": {"system": ACT_CODE, "code": "IMP", "display": "inpatient encounter"}},
        plan(
            addresses=[reference("Condition/hf"), reference("Condition/drug", "Opioid dependence")],
            activity=[{"reference": reference("ServiceRequest/pt")}],
            author=reference("Practitioner/dr"),
        ),
    )
    return at


async def summary(at: Desk) -> Json:
    return await at.get(f"{at.ref('CarePlan/plan')}/$summary")


def composition(document: Json) -> Json:
    found: Json = document["entry"][0]["resource"]
    return found


def section(document: Json, code: str) -> Json:
    found = [
        each
        for each in composition(document)["section"]
        if each["code"]["coding"][0]["code"] == code
    ]
    section: Json
    (section,) = found
    return section


def text(element: Json) -> str:
    """What a reader sees."""
    root = etree.fromstring(element["text"]["div"])
    return "\n".join(part.strip() for part in map(str, root.itertext()) if part.strip())


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        if isinstance(value.get("reference"), str):
            yield value["reference"]
        for child in value.values():
            yield from references(child)
    elif isinstance(value, list):
        for child in value:
            yield from references(child)


def assert_stands_alone(document: Json) -> None:
    """Valid, with a Composition first, narratives that are XHTML, and every reference resolved inside."""
    assert errors_in(document) == []
    assert model_issues(document) == []
    assert (document["type"], composition(document)["resourceType"]) == ("document", "Composition")
    inside = {entry["fullUrl"] for entry in document["entry"]}
    assert len(inside) == len(document["entry"])
    for entry in document["entry"]:
        base = entry["fullUrl"].rpartition("/")[0].rpartition("/")[0]
        outside = [
            each
            for each in references(entry["resource"])
            if not each.startswith("#") and f"{base}/{each}" not in inside
        ]
        assert outside == []
    for each in (composition(document), *composition(document)["section"]):
        assert is_narrative(each["text"]["div"])


async def test_a_document_stands_alone(told: Desk) -> None:
    document = await summary(told)
    assert_stands_alone(document)
    assert document["identifier"] == composition(document)["identifier"]
    assert composition(document)["type"]["coding"][0]["code"] == "18776-5"
    types = {entry["resource"]["resourceType"] for entry in document["entry"]}
    assert types >= {"CarePlan", "Patient", "CareTeam", "Practitioner", "Condition", "Goal"}


async def test_its_text_alone_says_who_and_whom_to_call(told: Desk) -> None:
    lines = text(composition(await summary(told))).splitlines()
    assert lines[:4] == [
        "Point of contact:",
        "Sam Wu LCSW (Social worker), 555-0107",
        "Patient:",
        "Ann Winter, born 1950-03-04",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "expected"),
    [
        pytest.param("85847-2", "Point of contact: Sam Wu LCSW (Social worker), 555-0107", id="contact"),
        pytest.param("85847-2", "Dr Ada <Beck> (Primary care physician)", id="team"),
        pytest.param("75310-3", "Heart failure", id="addressed"),
        pytest.param("75310-3", "Lives alone", id="health-concern"),
        pytest.param(
            "61146-7",
            "Walk twenty minutes a day; progress: active, in progress; target: Minutes 20 by 2027-03-01;"
            " wish of: the member",
            id="goal",
        ),
        pytest.param("62387-6", "Heart failure\nPhysical therapy; active; by: Dr Ada <Beck>", id="by-condition"),
        pytest.param("11450-4", "Heart failure", id="problem"),
        pytest.param("10160-0", "Furosemide 40 mg", id="medication"),
        pytest.param("48765-2", "Penicillin", id="allergy"),
        pytest.param("46240-8", "hospital stay; from 2026-10-01 to 2026-10-05", id="stay"),
    ],
)  # fmt: skip
async def test_each_section_reads_without_fhir(told: Desk, code: str, expected: str) -> None:
    assert expected in text(section(await summary(told), code))


async def test_what_is_not_known_is_said_to_be_so(told: Desk) -> None:
    part = section(await summary(told), "42348-3")
    assert "does not prove that there is nothing" in text(part)
    assert part["emptyReason"]["coding"][0]["code"] == "unavailable"


async def test_what_is_more_confidential_is_left_out_and_said_to_be(told: Desk) -> None:
    document = await summary(told)
    assert "Opioid" not in str(document)
    assert "Confidential entries that are left out: 1." in text(section(document, "11450-4"))
    addressed = document["entry"][1]["resource"]["addresses"][1]
    assert addressed["display"] == "(withheld: confidential)"


async def test_nothing_of_other_patients_comes_along(told: Desk) -> None:
    other = {"resourceType": "Patient", "id": "bob", "name": [{"text": "Bob Summer"}]}
    group = {"resourceType": "Group", "id": "panel", "type": "person", "actual": True}
    await told.put(other, group | {"member": [{"entity": reference("Patient/bob")}]})
    concern = about("Condition", "lone", **concept("Lives alone", "health-concern"))
    concern["subject"] = reference("Patient/bob")
    await told.put(
        patient() | {"link": [{"other": reference("Patient/bob"), "type": "seealso"}]},
        concern,
        plan(
            supportingInfo=[reference("Group/panel"), reference("Condition/lone")],
            contributor=[reference("Patient/bob")],
        ),
    )
    document = await summary(told)
    assert_stands_alone(document)
    urls = " ".join(entry["fullUrl"] for entry in document["entry"])
    assert not any(name in urls for name in ("Patient/bob", "Group/", "Condition/lone"))


async def test_a_stored_document_is_what_its_index_says(told: Desk) -> None:
    await told.after(seconds=900)
    found = await told.get(f"DocumentReference?related={told.ref('CarePlan/plan')}")
    (index,) = [entry["resource"] for entry in found["entry"]]
    bodies = []
    for attachment in (each["attachment"] for each in index["content"]):
        body = await told.client.get(attachment["url"].removeprefix(f"{BASE}/"))
        assert body.status_code == 200
        assert body.headers["content-type"].startswith(attachment["contentType"].split(";")[0])
        assert attachment["size"] == len(body.content)
        digest = hashlib.sha1(body.content, usedforsecurity=False).digest()
        assert attachment["hash"] == base64.b64encode(digest).decode()
        bodies.append(body)
    body, page, paper = bodies
    assert "Walk twenty minutes a day" in page.text
    assert paper.content.startswith(b"%PDF-")
    assert_stands_alone(body.json())
    assert index["masterIdentifier"] == body.json()["identifier"]
    assert (index["type"]["coding"][0]["code"], index["status"]) == ("18776-5", "current")


@pytest.mark.slow
async def test_a_document_never_changes(told: Desk) -> None:
    await told.after(seconds=900)
    search = f"DocumentReference?related={told.ref('CarePlan/plan')}"
    before = (await told.get(search))["entry"][0]["resource"]["content"][0]["attachment"]["url"]
    await told.put(goal("walk", "Walk an hour a day"), plan("on-hold"))
    await told.after(seconds=900)
    document = await told.get(before.removeprefix(f"{BASE}/"))
    assert document["meta"]["versionId"] == "1"
    assert "Walk twenty minutes a day" in text(section(document, "61146-7"))


async def test_summary_is_stored_only_on_demand(told: Desk) -> None:
    path = f"{told.ref('CarePlan/plan')}/$summary"
    document = await summary(told)
    assert (await told.client.get(f"Bundle/{document['id']}")).status_code == 404
    answer = await told.client.post(path, json=persist())
    assert answer.status_code == 201
    assert (await told.get(f"Bundle/{answer.json()['id']}"))["type"] == "document"
    assert_outcome(await told.client.get(f"{path}?persist=true"), 405, "not-supported")


def persist() -> Json:
    parameter = {"name": "persist", "valueBoolean": True}
    return {"resourceType": "Parameters", "parameter": [parameter]}


async def test_summary_of_what_is_not_there(at: Desk) -> None:
    assert_outcome(await at.client.get("CarePlan/unknown-plan/$summary"), 404, "not-found")
    await at.put(plan())
    await at.client.delete(at.ref("CarePlan/plan"))
    gone = await at.client.get(f"{at.ref('CarePlan/plan')}/$summary")
    assert_outcome(gone, 410, "deleted")


def test_markup_in_the_data_stays_text() -> None:
    line = narrative.items(["<script>alert(1)</script> & \x01 'x'"])
    assert is_narrative(narrative.div(line))
    assert etree.fromstring(line)[0].text == "<script>alert(1)</script> &   'x'"


async def test_no_text_turns_round_what_follows_it(at: Desk) -> None:
    """Else "100 mg" could be read as "001 mg" below a diagnosis that somebody else has written."""
    await at.put(plan(title="Care \u202eplan\u2066 for \x07winter"))
    url = f"{at.ref('CarePlan/plan')}/$summary"
    page = (await at.client.get(url, headers={"accept": "text/html"})).text
    assert "Care plan for  winter" in page
    composition = (await at.client.get(url)).json()["entry"][0]["resource"]
    assert not {"\u202e", "\u2066"} & set(composition["text"]["div"])


@pytest.mark.slow
@needs_shared
async def test_a_plan_as_others_send_it_yields_a_readable_copy(
    pair: Pair,
) -> None:
    """The example of the guide for multiple chronic conditions: every file of it that R4 lets in."""
    client: httpx.AsyncClient = pair[1]
    for pattern in ("*.json", "ig-resources/Patient-*.json", "ig-resources/Condition-*.json"):
        for _, resource in shared_resources(f"careplan-mcc/{pattern}"):
            if resource["resourceType"] != "Bundle" and "id" in resource:
                path = f"{resource['resourceType']}/{resource['id']}"
                headers = {"content-type": "application/fhir+json"}
                await client.put(path, content=encode(resource), headers=headers)
    answer = await client.get("CarePlan/careplan-for-bundle/$summary")
    assert answer.status_code == 200, answer.text
    document = decode(answer.content)
    assert_stands_alone(document)
    assert "Lower high BMI count by losing 10 lbs. in 1 year" in text(section(document, "61146-7"))
    concerns = text(section(document, "75310-3"))
    assert "Post-acute COVID-19 (disorder), Active, since 2022-06-01" in concerns
    done = text(section(document, "62387-6"))
    assert "Long Covid Clinic Referral" in done or "Long COVID" in done
    team = text(section(document, "85847-2")).splitlines()
    contact = "Julie Smith (Care coordinator (occupation), Texas Department of Community Health)"
    assert team[0] == f"Point of contact: {contact}, (210) 555 1222"
