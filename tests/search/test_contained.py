"""`_contained` and `_containedType`, and chains into contained resources, over HTTP.

https://hl7.org/fhir/R4/search.html#contained
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.search.extract import extract
from tests.conftest import BASE, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

MEDS = "http://meds.example"


def concept(code: str) -> dict[str, Any]:
    return {"coding": [{"system": MEDS, "code": code}]}


def medication(name: str, code: str, lot: str, expires: str) -> dict[str, Any]:
    return {
        "resourceType": "Medication",
        "id": name,
        "code": concept(code),
        "batch": {"lotNumber": lot, "expirationDate": expires},
        "manufacturer": {"reference": "Organization/maker"},
    }


RESOURCES: list[dict[str, Any]] = [
    {
        "resourceType": "MedicationRequest",
        "id": "mr1",
        "contained": [
            medication("m1", "abc", "lot1", "2026-03-01"),
            medication("m2", "xyz", "lot2", "2027-03-01"),
            {"resourceType": "Patient", "id": "pt", "name": [{"family": "Taylor"}]},
        ],
        "status": "active",
        "intent": "order",
        "medicationReference": {"reference": "#m1"},
        "supportingInformation": [{"reference": "#m2"}],
        "subject": {"reference": "#pt"},
    },
    {
        "resourceType": "MedicationDispense",
        "id": "md1",
        "contained": [medication("m1", "abc", "lot2", "2026-03-01")],
        "status": "completed",
        "medicationReference": {"reference": "#m1"},
    },
    medication("own", "abc", "lot9", "2026-03-01"),
    {
        "resourceType": "MedicationRequest",
        "id": "mr2",
        "status": "active",
        "intent": "order",
        "medicationReference": {"reference": "Medication/own"},
        "subject": {"reference": "Patient/elsewhere"},
    },
    {
        "resourceType": "MedicationRequest",
        "id": "mr3",
        "contained": [medication("m1", "other", "lot3", "2025-03-01")],
        "status": "active",
        "intent": "order",
        "medicationReference": {"reference": "#m1"},
        "subject": {"reference": "Patient/elsewhere"},
    },
]


@pytest.fixture(scope="module")
async def client(mongod: str) -> AsyncIterator[httpx.AsyncClient]:
    async with running(make_settings(mongod)) as (_, client):
        for each in RESOURCES:
            response = await client.put(f"/{each['resourceType']}/{each['id']}", json=each)
            assert response.status_code == 201, response.text
        yield client


async def found(client: httpx.AsyncClient, query: str) -> set[str]:
    """The fullUrls that a search finds, without the base."""
    response = await client.get(f"/{query}")
    assert response.status_code == 200, response.text
    entries = response.json().get("entry", [])
    return {entry["fullUrl"].removeprefix(f"{BASE}/") for entry in entries}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param("code=abc", "Medication/own", id="not-by-default"),
        pytest.param("code=abc&_contained=false", "Medication/own", id="false"),
        pytest.param(
            "code=abc&_contained=true", "MedicationRequest/mr1 MedicationDispense/md1", id="true"
        ),
        pytest.param(
            "code=abc&_contained=both",
            "MedicationRequest/mr1 MedicationDispense/md1 Medication/own",
            id="both",
        ),
        pytest.param(f"code={MEDS}|xyz&_contained=true", "MedicationRequest/mr1", id="system"),
        pytest.param(
            f"code={MEDS}|&_contained=true",
            "MedicationRequest/mr1 MedicationRequest/mr3 MedicationDispense/md1",
            id="any-of-system",
        ),
        pytest.param(
            "code=abc&lot-number=lot2&_contained=true", "MedicationDispense/md1", id="in-one"
        ),
        pytest.param("code:not=abc&_contained=true&lot-number=lot1", "", id="not-in-one"),
        pytest.param(
            "code:not=abc&_contained=true", "MedicationRequest/mr1 MedicationRequest/mr3", id="not"
        ),
        pytest.param("expiration-date=gt2027&_contained=true", "", id="after"),
        pytest.param("expiration-date=ge2027&_contained=true", "MedicationRequest/mr1", id="date"),
        pytest.param(
            "expiration-date=lt2027&code=xyz&_contained=true", "", id="date-and-code-in-one"
        ),
        pytest.param(
            "manufacturer=Organization/maker&code=other&_contained=true",
            "MedicationRequest/mr3",
            id="reference",
        ),
        pytest.param("_id=m2&_contained=true", "MedicationRequest/mr1", id="id"),
        pytest.param("ingredient:missing=false&_contained=true", "", id="missing"),
        pytest.param(
            "code=abc&_contained=true&_containedType=container",
            "MedicationRequest/mr1 MedicationDispense/md1",
            id="container",
        ),
        pytest.param(
            "code=abc&_contained=true&_containedType=contained",
            "MedicationRequest/mr1#m1 MedicationDispense/md1#m1",
            id="contained",
        ),
        pytest.param(
            "code=abc,xyz&_contained=both&_containedType=contained",
            "MedicationRequest/mr1#m1 MedicationRequest/mr1#m2 MedicationDispense/md1#m1 Medication/own",
            id="contained-and-own",
        ),
        pytest.param(
            "_contained=true&_count=100",
            "MedicationRequest/mr1 MedicationRequest/mr3 MedicationDispense/md1",
            id="all",
        ),
        pytest.param(
            "_contained=both&_containedType=container&_sort=_id",
            "MedicationRequest/mr1 MedicationRequest/mr3 MedicationDispense/md1 Medication/own",
            id="all-and-own",
        ),
    ],
)
async def test_contained_medications(client: httpx.AsyncClient, query: str, expected: str) -> None:
    assert await found(client, f"Medication?{query}") == set(expected.split())


async def test_a_string_of_a_contained_patient(client: httpx.AsyncClient) -> None:
    assert await found(client, "Patient?name=tay&_contained=true") == {"MedicationRequest/mr1"}
    assert await found(
        client, "Patient?name:exact=Taylor&_contained=true&_containedType=contained"
    ) == {"MedicationRequest/mr1#pt"}
    assert await found(client, "Patient?name=tay") == set()


async def test_contained_resources_come_as_they_are(client: httpx.AsyncClient) -> None:
    query = "Medication?code=xyz&_contained=true&_containedType=contained"
    bundle = (await client.get(f"/{query}")).json()
    (entry,) = bundle["entry"]
    assert entry["resource"] == RESOURCES[0]["contained"][1]
    assert entry["search"] == {"mode": "match"}
    assert bundle["total"] == 1
    assert (
        bundle["link"][0]["url"].endswith(
            "Medication?code=xyz&_count=50&_contained=true&_containedType=contained"
        )
        or "_containedType=contained" in bundle["link"][0]["url"]
    )


@pytest.mark.parametrize("shown", ["container", "contained"])
async def test_pages_show_each_once(client: httpx.AsyncClient, shown: str) -> None:
    place = f"/Medication?_contained=both&_containedType={shown}&_count=1"
    seen: list[str] = []
    while place:
        bundle = (await client.get(place)).json()
        seen += [entry["fullUrl"].removeprefix(f"{BASE}/") for entry in bundle["entry"]]
        place = next((each["url"] for each in bundle["link"] if each["relation"] == "next"), "")
    everything = await found(client, f"Medication?_contained=both&_containedType={shown}")
    assert sorted(seen) == sorted(everything)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        pytest.param("medication.code=abc", "mr1 mr2", id="token"),
        pytest.param("medication:Medication.code=abc", "mr1 mr2", id="typed"),
        pytest.param("medication.code=xyz", "", id="only-what-is-referred-to"),
        pytest.param("medication.code=nowhere", "", id="none"),
        pytest.param("subject:Patient.name=tay", "mr1", id="string"),
        pytest.param("patient.name=tay", "mr1", id="shared"),
        pytest.param("medication.code=abc&patient.name=tay", "mr1", id="two"),
    ],
)
async def test_chains_look_into_contained_resources(
    client: httpx.AsyncClient, query: str, expected: str
) -> None:
    names = {each.partition("/")[2] for each in await found(client, f"MedicationRequest?{query}")}
    assert names == set(expected.split())


@pytest.mark.slow
async def test_a_chain_that_leads_to_too_much_still_looks_inside(mongod: str) -> None:
    async with running(make_settings(mongod, max_chain_found=1)) as (_, client):
        others = [medication(f"other{number}", "abc", "l", "2026-01-01") for number in range(3)]
        for each in [*RESOURCES, *others]:
            await client.put(f"/{each['resourceType']}/{each['id']}", json=each)
        assert await found(client, "MedicationRequest?medication.code=abc&status=active") == {
            "MedicationRequest/mr1",
            "MedicationRequest/mr2",
        }


async def test_a_change_of_the_container_is_seen(client: httpx.AsyncClient) -> None:
    changing = {
        **RESOURCES[-1],
        "id": "changing",
        "contained": [medication("m1", "old", "l", "2026-01-01")],
    }
    await client.put("/MedicationRequest/changing", json=changing)
    assert await found(client, "Medication?code=old&_contained=true") == {
        "MedicationRequest/changing"
    }
    changing["contained"] = [medication("m1", "new", "l", "2026-01-01")]
    await client.put("/MedicationRequest/changing", json=changing)
    assert await found(client, "Medication?code=old&_contained=true") == set()
    await client.delete("/MedicationRequest/changing")
    assert await found(client, "Medication?code=new&_contained=true") == set()


@pytest.mark.parametrize(
    ("query", "code"),
    [
        pytest.param("Medication?_contained=maybe", "value", id="value"),
        pytest.param("Medication?_contained=true&_containedType=inner", "value", id="type"),
        pytest.param(
            "Medication?_contained=false&_containedType=inner", "value", id="type-without"
        ),
        pytest.param("Medication?_contained=true&_contained=both", "invalid", id="twice"),
        pytest.param("Medication?_contained=true&nonsense=1", "not-supported", id="unknown"),
        pytest.param("Medication?_contained=true&code:sounds=x", "not-supported", id="modifier"),
        pytest.param(
            "Medication?_contained=true&_lastUpdated=ge2026", "not-supported", id="last-updated"
        ),
        pytest.param("Medication?_contained=true&manufacturer.name=x", "not-supported", id="chain"),
        pytest.param(
            "Medication?_contained=true&_has:MedicationRequest:medication:status=active",
            "not-supported",
            id="has",
        ),
        pytest.param("Medication?_contained=true&_content=x", "not-supported", id="content"),
        pytest.param("Medication?_contained=true&_filter=code eq x", "not-supported", id="filter"),
        pytest.param("Medication?_contained=true&_sort=code", "not-supported", id="sort"),
        pytest.param(
            "Medication?_contained=true&_include=Medication:manufacturer",
            "not-supported",
            id="include",
        ),
        pytest.param("Group?_contained=true&member=Patient/1", "not-supported", id="rows"),
        pytest.param(
            "Medication?_contained=true&_containedType=contained&_total=accurate",
            "not-supported",
            id="total",
        ),
    ],
)
async def test_what_cannot_be_asked_is_refused(
    client: httpx.AsyncClient, query: str, code: str
) -> None:
    assert_outcome(await client.get(f"/{query}"), 400, code)


def test_only_what_contains_others_has_their_fields() -> None:
    plain = extract("MedicationRequest", RESOURCES[3])
    assert "contained" not in plain
    assert not any(term.startswith("~") for term in plain["terms"])
    fields = extract("MedicationRequest", RESOURCES[0])
    assert [each["type"] for each in fields["contained"]] == ["Medication", "Medication", "Patient"]
    assert "~Medication:code=abc" in fields["terms"]
    assert "~medication.Medication:code=abc" in fields["terms"]
    assert "~medication.Medication:code=xyz" not in fields["terms"]
