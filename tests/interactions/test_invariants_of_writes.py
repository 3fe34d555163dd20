"""R4's invariants at the doors: errors refuse a write, and who asks is told warnings.

https://hl7.org/fhir/R4/validation.html
"""

from __future__ import annotations

import json
import uuid
from typing import Any

import httpx
import pytest

from tests.conftest import Server
from tests.outcomes import assert_outcome

PATIENT = {"reference": "Patient/p1"}
CARE_PLAN: dict[str, Any] = {
    "resourceType": "CarePlan",
    "status": "active",
    "intent": "plan",
    "subject": PATIENT,
}


def quantity(**parts: Any) -> dict[str, Any]:
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "Weight"},
        "valueQuantity": {"value": 70, **parts},
    }


@pytest.mark.parametrize(
    ("resource", "place", "key"),
    [
        pytest.param(
            {"resourceType": "Condition", "subject": PATIENT, "abatementString": "in May"},
            "Condition",
            "con-4",
            id="condition",
        ),
        pytest.param(
            {
                **CARE_PLAN,
                "activity": [
                    {"reference": {"reference": "Task/1"}, "detail": {"status": "completed"}}
                ],
            },
            "CarePlan.activity[0]",
            "cpl-3",
            id="backbone",
        ),
        pytest.param(quantity(code="kg"), "Observation.value", "qty-3", id="data-type"),
        pytest.param(
            {**CARE_PLAN, "author": {"reference": "#nobody"}},
            "CarePlan.author",
            "ref-1",
            id="reference",
        ),
    ],
)
async def test_what_breaks_an_invariant_is_refused_and_not_stored(
    client: httpx.AsyncClient, resource: dict[str, Any], place: str, key: str
) -> None:
    resource_type, new = resource["resourceType"], f"inv-{uuid.uuid4()}"
    body = {**resource, "id": new}
    refused = assert_outcome(
        await client.put(f"/{resource_type}/{new}", json=body), 422, "invariant", place
    )
    (issue,) = refused["issue"]
    assert issue["diagnostics"].startswith(f"{place}: {key}: ")
    entry = {"resource": body, "request": {"method": "PUT", "url": f"{resource_type}/{new}"}}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    inside = place.partition(".")[2]
    where = "Bundle.entry[0].resource" + (f".{inside}" if inside else "")
    answer = await client.post("", json=bundle)
    assert_outcome(answer, 422, "invariant", where)
    assert (await client.get(f"/{resource_type}/{new}")).status_code == 404
    told = (await client.post(f"/{resource_type}/$validate", json=body)).json()["issue"]
    assert any(key in each["diagnostics"] and each["severity"] == "error" for each in told)


async def test_a_patch_that_breaks_an_invariant_is_refused(client: httpx.AsyncClient) -> None:
    plan = (await client.post("/CarePlan", json=CARE_PLAN)).json()
    patch = [{"op": "add", "path": "/author", "value": {"reference": "#nobody"}}]
    headers = {"Content-Type": "application/json-patch+json"}
    answer = await client.patch(
        f"/CarePlan/{plan['id']}", content=json.dumps(patch), headers=headers
    )
    assert_outcome(answer, 422, "invariant", "CarePlan.author")
    assert (await client.get(f"/CarePlan/{plan['id']}")).json() == plan


async def test_warnings_are_told_to_who_asks(client: httpx.AsyncClient) -> None:
    value_set = {
        "resourceType": "ValueSet",
        "status": "draft",
        "name": "not a name",
        "url": f"urn:uuid:{uuid.uuid4()}",
    }
    asking = {"Prefer": "return=OperationOutcome"}
    created = await client.post("/ValueSet", json=value_set, headers=asking)
    assert created.status_code == 201
    issues = created.json()["issue"]
    assert issues[0] == {"severity": "information", "code": "informational", "diagnostics": "Done"}
    told = [(each["severity"], each["diagnostics"].split(": ")[1]) for each in issues[1:]]
    assert sorted(told) == [("warning", "dom-6"), ("warning", "vsd-0")]
    validated = (await client.post("/ValueSet/$validate", json=value_set)).json()["issue"]
    assert [each for each in validated if each["severity"] == "warning"] == issues[1:]

    entry = {"resource": value_set, "request": {"method": "POST", "url": "ValueSet"}}
    batch = {"resourceType": "Bundle", "type": "batch", "entry": [entry]}
    quiet = (await client.post("", json=batch)).json()["entry"][0]
    assert "outcome" not in quiet["response"]
    asked = (await client.post("", json=batch, headers=asking)).json()["entry"][0]
    assert asked["response"]["outcome"]["issue"] == issues


@pytest.mark.processes
async def test_a_large_body_is_judged_by_its_invariants_too(client: httpx.AsyncClient) -> None:
    """Above 256 KiB a body is decoded, and validated, in a process of its own."""
    note = [{"text": "x" * 1000} for _ in range(300)]
    body = {**CARE_PLAN, "note": note, "author": {"reference": "#nobody"}}
    assert_outcome(await client.post("/CarePlan", json=body), 422, "invariant", "CarePlan.author")
    told = (await client.post("/CarePlan/$validate", json=body)).json()["issue"]
    assert ["CarePlan.author"] in [each.get("expression") for each in told]


async def test_what_was_stored_before_is_read_and_mended(
    client: httpx.AsyncClient, server: Server
) -> None:
    """Reading judges nothing; the next write does, unless it changes labels alone."""
    plan = (await client.post("/CarePlan", json=CARE_PLAN)).json()
    broken = {**plan, "author": {"reference": "#nobody"}}
    rows = server.mongo.collection("CarePlan")
    await rows.update_one({"_id": plan["id"]}, {"$set": {"text": json.dumps(broken)}})
    read = await client.get(f"/CarePlan/{plan['id']}")
    assert read.json() == broken
    assert_outcome(
        await client.put(f"/CarePlan/{plan['id']}", json={**broken, "title": "Another"}),
        422,
        "invariant",
        "CarePlan.author",
    )
    label = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}
    given = {"name": "meta", "valueMeta": {"security": [label]}}
    body = {"resourceType": "Parameters", "parameter": [given]}
    labelled = await client.post(f"/CarePlan/{plan['id']}/$meta-add", json=body)
    assert labelled.status_code == 200, labelled.text
    assert (await client.get(f"/CarePlan/{plan['id']}")).json()["meta"]["security"] == [label]
    mended = await client.put(f"/CarePlan/{plan['id']}", json=plan)
    assert mended.status_code == 200
