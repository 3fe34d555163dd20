"""What goes in comes out: the official R4 examples and twenty Synthea patients, through HTTP and MongoDB."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import httpx
import pytest
from lxml import etree

from app.fhir import json as fhir_json, xml
from app.fhir.definitions import SUPPORTED_TYPES
from tests.conftest import make_settings, running
from tests.shared_data import EMPTY_NARRATIVES, needs_shared, resources, with_nulls

pytestmark = [pytest.mark.slow, pytest.mark.processes]

Resource = dict[str, Any]

XML = {"accept": "application/fhir+xml"}
JSON = {"content-type": "application/fhir+json"}
AT_ONCE = 8
# A Subscription is stored as the server means to serve it, and only where it can; headers of an Endpoint come back
# masked. Their own tests look at them.
NOT_ORDINARY = {"Subscription", "Endpoint"}
# Published with errors, which https://hl7.org/fhir/R4/ itself lists as such or R4's definitions show.
INVALID = EMPTY_NARRATIVES | {"Questionnaire-qs1.json"}


def content(resource: Resource) -> Resource:
    """Everything but what the server sets: the id, and the version and time in meta."""
    kept = {name: value for name, value in resource.items() if name not in ("id", "meta")}
    meta = {
        name: value
        for name, value in resource.get("meta", {}).items()
        if name not in ("versionId", "lastUpdated")
    }
    return {**kept, "meta": meta} if meta else kept


def exact(value: Any) -> Any:
    """The value with every decimal as its digits: `1.0` and `1.00` are two values."""
    if isinstance(value, Decimal):
        return ("decimal", str(value))
    if isinstance(value, dict):
        return {name: exact(child) for name, child in value.items()}
    if isinstance(value, list):
        return [exact(child) for child in value]
    return value


def canonical(value: Any) -> Any:
    """The value with narratives as canonical XML: XML may spell `&quot;` as `"`, and an empty element in two ways."""
    if isinstance(value, dict):
        return {
            name: etree.canonicalize(child, with_comments=True)
            if name == "div" and isinstance(child, str)
            else canonical(child)
            for name, child in value.items()
        }
    return [canonical(child) for child in value] if isinstance(value, list) else value


@needs_shared
async def test_every_official_example_comes_back_with_not_one_value_changed(
    client: httpx.AsyncClient,
) -> None:
    places = asyncio.Semaphore(AT_ONCE)
    examples = [
        (name, resource)
        for name, resource in resources("r4-examples/*.json")
        if resource["resourceType"] in set(SUPPORTED_TYPES) - NOT_ORDINARY and name not in INVALID
    ]
    assert len(examples) > 700

    async def round_trip(name: str, resource: Resource) -> str | None:
        async with places:
            url = f"/{resource['resourceType']}"
            body = fhir_json.encode(resource)
            created = await client.post(url, content=body, headers=JSON)
            if created.status_code != 201:
                return f"{name}: {created.status_code} {created.text[:300]}"
            path = f"{url}/{fhir_json.decode(created.content)['id']}"
            as_resource = {"accept": "application/fhir+json"}  # a Binary is its content otherwise
            read = fhir_json.decode((await client.get(path, headers=as_resource)).content)
            if exact(content(read)) != exact(content(resource)):
                return f"{name}: JSON differs"
            in_xml = xml.decode((await client.get(path, headers=XML)).content)
            return (
                None
                if exact(canonical(in_xml)) == exact(canonical(with_nulls(read)))
                else f"{name}: XML differs"
            )

    results = await asyncio.gather(*(round_trip(*example) for example in examples))
    assert [result for result in results if result is not None] == []


# Synthea


def synthea() -> list[tuple[str, Resource]]:
    """The Bundles, those first that the others refer to."""
    return sorted(
        resources("synthea-20/*.bz2"), key=lambda each: (each[1]["type"] != "batch", each[0])
    )


def references(value: Any) -> list[str]:
    if isinstance(value, list):
        return [found for child in value for found in references(child)]
    if isinstance(value, dict):
        own = [value["reference"]] if isinstance(value.get("reference"), str) else []
        return own + [found for child in value.values() for found in references(child)]
    return []


def without_references(value: Any) -> Any:
    if isinstance(value, list):
        return [without_references(child) for child in value]
    if isinstance(value, dict):
        return {k: without_references(v) for k, v in value.items() if k != "reference"}
    return value


@needs_shared
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_all_synthea_patients_load_as_the_transactions_and_batches_they_are(
    mongod: str,
) -> None:
    sent: Counter[str] = Counter()
    async with running(make_settings(mongod)) as (_, client):
        bundles = synthea()
        assert Counter(b["type"] for _, b in bundles) == {"batch": 2, "transaction": 20}
        for name, bundle in bundles:
            body = fhir_json.encode(bundle)
            response = await client.post("", content=body, headers=JSON, timeout=120)
            assert response.status_code == 200, (name, response.text[:1000])
            answer = fhir_json.decode(response.content)
            assert answer["type"] == f"{bundle['type']}-response"
            check_answers(name, bundle["entry"], answer["entry"])
            sent.update(entry["resource"]["resourceType"] for entry in bundle["entry"])
        for resource_type, count in sent.items():
            found = (await client.get(f"/{resource_type}?_summary=count")).json()["total"]
            assert found == count, resource_type


def check_answers(name: str, entries: Sequence[Any], answers: Sequence[Any]) -> None:
    """Each entry was created, as it was sent, its references leading to resources of this server."""
    assert len(answers) == len(entries), name
    for entry, answer in zip(entries, answers, strict=True):
        assert answer["response"]["status"] == "201", (name, answer["response"])
        sent, stored = content(entry["resource"]), content(answer["resource"])
        assert exact(without_references(stored)) == exact(without_references(sent)), name
        for reference in references(stored):
            assert reference.startswith("#") or reference.split("/")[0] in SUPPORTED_TYPES, (
                name,
                reference,
            )


# Large Bundles


def large(entries: int, kind: str = "transaction") -> Resource:
    """A patient and many Observations about it."""
    urn = f"urn:uuid:{uuid.uuid4()}"
    about = [
        {
            "fullUrl": f"urn:uuid:{uuid.uuid4()}",
            "resource": {
                "resourceType": "Observation",
                "status": "final",
                "code": {"coding": [{"system": "http://loinc.org", "code": "8867-4"}]},
                "subject": {"reference": urn},
                "effectiveDateTime": "2026-05-14T10:00:00Z",
                "valueQuantity": {"value": number, "unit": "/min"},
            },
            "request": {"method": "POST", "url": "Observation"},
        }
        for number in range(entries - 1)
    ]
    patient = {
        "fullUrl": urn,
        "resource": {"resourceType": "Patient"},
        "request": {"method": "POST", "url": "Patient"},
    }
    return {"resourceType": "Bundle", "type": kind, "entry": [*about, patient]}


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_transaction_of_five_thousand_entries_works(client: httpx.AsyncClient) -> None:
    response = await client.post("", json=large(5000), timeout=120)
    assert response.status_code == 200, response.text[:500]
    answers = response.json()["entry"]
    assert {answer["response"]["status"] for answer in answers} == {"201"}
    patient = answers[-1]["resource"]["id"]
    assert {a["resource"]["subject"]["reference"] for a in answers[:-1]} == {f"Patient/{patient}"}
    found = await client.get("/Observation", params={"patient": patient, "_summary": "count"})
    assert found.json()["total"] == 4999


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_of_a_large_transaction_that_fails_at_its_end_nothing_is_stored(
    client: httpx.AsyncClient,
) -> None:
    bundle = large(2000)
    id_ = f"t-{uuid.uuid4()}"
    bundle["entry"][-1] |= {"request": {"method": "PUT", "url": f"Patient/{id_}"}}
    bundle["entry"][-1]["resource"] |= {"id": id_, "gender": "banana"}
    response = await client.post("", json=bundle, timeout=120)
    assert response.status_code == 422, response.text[:500]
    assert response.json()["issue"][0]["expression"] == ["Bundle.entry[1999].resource.gender"]
    found = await client.get("/Observation", params={"patient": id_, "_summary": "count"})
    assert found.json()["total"] == 0
