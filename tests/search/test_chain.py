"""Chains, reverse chains and what they are combined with, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.builders.searching import ids, put, ref, search
from tests.conftest import BASE, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo


PEOPLE: list[dict[str, Any]] = [
    {"resourceType": "Organization", "id": "north", "name": "North Clinic"},
    {
        "resourceType": "Organization",
        "id": "south",
        "name": "South",
        "partOf": ref("Organization/north"),
    },
    {"resourceType": "Practitioner", "id": "ann", "name": [{"family": "Arden"}]},
    {"resourceType": "Practitioner", "id": "bob", "name": [{"family": "Boyle"}]},
    {
        "resourceType": "Patient",
        "id": "p1",
        "identifier": [{"system": "urn:mrn", "value": "1"}],
        "name": [{"family": "Miller"}],
        "gender": "female",
        "generalPractitioner": [ref("Practitioner/ann")],
        "managingOrganization": ref("Organization/south"),
    },
    {
        "resourceType": "Patient",
        "id": "p2",
        "identifier": [{"system": "urn:mrn", "value": "2"}],
        "name": [{"family": "Stone"}],
        "gender": "male",
        "generalPractitioner": [ref("Practitioner/bob"), ref("Practitioner/ann")],
    },
    {"resourceType": "Patient", "id": "gone", "name": [{"family": "Miller"}]},
    {
        "resourceType": "Group",
        "id": "herd",
        "type": "person",
        "actual": True,
        "code": {"text": "Miller"},
    },
    # Of another type under the id of a patient.
    {
        "resourceType": "Group",
        "id": "p1",
        "type": "person",
        "actual": True,
        "code": {"text": "Hands"},
        "member": [{"entity": ref("Practitioner/p1")}, {"entity": ref("Patient/p2")}],
    },
]
EVENTS: list[dict[str, Any]] = [
    {"resourceType": "Encounter", "id": "e1", "subject": ref("Patient/p1"), "status": "finished"},
    {
        "resourceType": "Encounter",
        "id": "e2",
        "subject": ref("Patient/p2/_history/1"),
        "status": "planned",
    },
    {"resourceType": "Encounter", "id": "e3", "subject": ref("Patient/gone"), "status": "finished"},
    {"resourceType": "Encounter", "id": "e4", "subject": ref("Group/herd"), "status": "finished"},
    {
        "resourceType": "Encounter",
        "id": "e5",
        "subject": ref(f"{BASE}/Patient/p1"),
        "status": "planned",
    },
    {
        "resourceType": "Encounter",
        "id": "e6",
        "subject": ref("http://elsewhere.example/Patient/p1"),
        "status": "planned",
    },
    {"resourceType": "Encounter", "id": "e7", "subject": ref("Group/p1"), "status": "cancelled"},
]
FINDINGS: list[dict[str, Any]] = [
    {
        "resourceType": "Observation",
        "id": f"o{n}",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
        "subject": ref(f"Patient/{patient}"),
        "encounter": ref(f"Encounter/{encounter}"),
        "performer": [ref("Practitioner/ann")],
    }
    for n, (code, patient, encounter) in enumerate(
        [("rare", "p1", "e1"), ("common", "p1", "e5"), ("common", "p2", "e2")]
    )
]
ORIGINS: list[dict[str, Any]] = [
    {
        "resourceType": "Provenance",
        "id": "origin",
        "target": [ref("Patient/p2"), ref("Group/p1")],
        "recorded": "2026-11-14T07:42:00Z",
        "agent": [{"who": ref("Practitioner/ann")}],
    }
]


PREPARED = [
    {**each, "class": {"code": "AMB"}} if each["resourceType"] == "Encounter" else each
    for each in [*PEOPLE, *EVENTS, *FINDINGS, *ORIGINS]
]


@pytest.fixture(
    scope="module",
    params=[
        pytest.param({}, id="from-the-end"),
        pytest.param({"max_chain_found": 1}, id="from-the-candidates"),
    ],
)
async def world(mongod: str, request: pytest.FixtureRequest) -> AsyncIterator[httpx.AsyncClient]:
    """The same resources, with chains driven from either side."""
    async with running(make_settings(mongod, **request.param)) as (_, client):
        await put(client, PREPARED)
        assert (await client.delete("/Patient/gone")).status_code == 204
        yield client


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("Encounter?patient.name=miller", "e1 e5", id="without-type"),
        pytest.param("Encounter?subject:Patient.name=miller", "e1 e5", id="with-type"),
        pytest.param("Encounter?subject.code:text=mill", "e4", id="types-that-have-it"),
        pytest.param("Encounter?patient.name=stone", "e2", id="versioned-reference"),
        pytest.param("Encounter?patient.identifier=urn:mrn|2", "e2", id="identifier"),
        pytest.param("Encounter?patient.identifier=urn:mrn|1,urn:mrn|2", "e1 e2 e5", id="or"),
        pytest.param("Encounter?patient.name:exact=miller", "", id="modifier-at-the-end"),
        pytest.param("Encounter?patient.name=nobody", "", id="nothing"),
        pytest.param("Encounter?patient.gender=female,male&status=planned", "e2 e5", id="and"),
        pytest.param("Encounter?patient.gender=female&patient.name=stone", "", id="two-chains"),
        pytest.param("Encounter?patient.gender:not=male", "e1 e5", id="not-at-the-end"),
        pytest.param("Encounter?patient._id=p1", "e1 e5", id="id-at-the-end"),
        pytest.param("Encounter?patient.general-practitioner.name=boyle", "e2", id="two-steps"),
        pytest.param(
            "Encounter?subject:Patient.general-practitioner:Practitioner.name=arden",
            "e1 e2 e5",
            id="two-steps-with-types",
        ),
        pytest.param(
            "Observation?encounter.patient.organization.partof.name=north", "o0 o1", id="four-steps"
        ),
        pytest.param("Patient?_has:Observation:patient:code=rare", "p1", id="has"),
        pytest.param("Patient?_has:Observation:patient:code=rare,common", "p1 p2", id="has-or"),
        pytest.param("Patient?_has:Observation:subject:code=common", "p1 p2", id="has-by-subject"),
        pytest.param("Patient?_has:Observation:patient:code=none", "", id="has-nothing"),
        pytest.param("Patient?_has:Encounter:patient:status=planned", "p1 p2", id="has-status"),
        pytest.param(
            "Patient?_has:Encounter:patient:_has:Observation:encounter:code=rare",
            "p1",
            id="has-nested",
        ),
        pytest.param(
            "Practitioner?_has:Patient:general-practitioner:_has:Observation:patient:code=rare",
            "ann",
            id="has-nested-twice",
        ),
        pytest.param(
            "Patient?_has:Observation:patient:encounter.status=finished", "p1", id="chain-in-has"
        ),
        pytest.param(
            "Encounter?patient._has:Observation:patient:code=rare", "e1 e5", id="has-in-chain"
        ),
        pytest.param(
            "Encounter?patient.general-practitioner._has:Patient:general-practitioner:name=stone",
            "e1 e2 e5",
            id="has-after-two-steps",
        ),
        pytest.param("Patient?_has:Observation:patient:code=common&name=stone", "p2", id="has-and"),
    ],
)
async def test_chain(world: httpx.AsyncClient, url: str, expected: str) -> None:
    bundle = await search(world, url)
    assert ids(bundle) == set(expected.split())
    assert bundle["total"] == len(expected.split())
    counted = await search(world, f"{url}&_summary=count")
    assert counted["total"] == len(expected.split())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("Encounter?subject:Patient.gender=female,male", "e1 e2 e5", id="chain"),
        pytest.param("Encounter?subject:Group.type=person", "e4 e7", id="chain-of-the-other"),
        pytest.param(
            "Encounter?subject:Patient.gender=female,male&status=cancelled",
            "",
            id="only-the-other-is-a-candidate",
        ),
        pytest.param("Patient?_has:Group:member:type=person", "p2", id="has-members"),
        pytest.param(
            "Patient?_has:Provenance:target:agent:Practitioner.name=arden,boyle",
            "p2",
            id="has-of-several",
        ),
    ],
)
async def test_an_id_that_two_types_share_is_not_mixed_up(
    world: httpx.AsyncClient, url: str, expected: str
) -> None:
    """There are Patient/p1 and Group/p1, and each chain means one of them."""
    assert ids(await search(world, url)) == set(expected.split())


async def test_pages_of_a_chain_hold_every_row_once(world: httpx.AsyncClient) -> None:
    url = "Encounter?patient.gender=female,male&_count=1&_total=accurate&_sort=_id"
    found: list[str] = []
    while url:
        bundle = await search(world, url)
        assert bundle["total"] == 3
        found += [entry["resource"]["id"] for entry in bundle["entry"]]
        url = next((each["url"] for each in bundle["link"] if each["relation"] == "next"), "")
    assert found == ["e1", "e2", "e5"]


async def test_links_keep_the_chain(world: httpx.AsyncClient) -> None:
    bundle = await search(world, "Patient?_has:Observation:patient:code=rare")
    assert bundle["link"][0]["url"].startswith(f"{BASE}/Patient?_has:Observation:patient:code=rare")


@pytest.mark.parametrize(
    ("url", "code"),
    [
        pytest.param("Encounter?patient.nonsense=1", "not-supported", id="unknown-end"),
        pytest.param("Encounter?status.name=1", "value", id="no-reference"),
        pytest.param("Provenance?target.name=x", "not-supported", id="any-type"),
        pytest.param("Encounter?patient._count=3", "not-supported", id="control-in-a-chain"),
        pytest.param("Patient?_has:Observation:performer:code=x&_has=1", "value", id="bare-has"),
        pytest.param("CarePlan?instantiates-canonical.name=x", "value", id="canonical"),
    ],
)
async def test_chain_that_leads_nowhere_is_refused(
    world: httpx.AsyncClient, url: str, code: str
) -> None:
    assert_outcome(await world.get(url), 400, code)


async def test_lenient_chain_is_left_out_and_reported(world: httpx.AsyncClient) -> None:
    response = await world.get(
        "Practitioner?name=arden&nonsense.name=1", headers={"Prefer": "handling=lenient"}
    )
    bundle = response.json()
    assert ids(bundle) == {"ann"}
    assert bundle["entry"][-1]["search"]["mode"] == "outcome"
    assert "nonsense" not in bundle["link"][0]["url"]


async def test_conditional_writes_follow_chains(client: httpx.AsyncClient) -> None:
    await put(
        client,
        [
            {"resourceType": "Patient", "id": "cw", "identifier": [{"value": "cw-1"}]},
            {
                "resourceType": "Basic",
                "id": "cw",
                "code": {"text": "x"},
                "subject": ref("Patient/cw"),
            },
        ],
    )
    basic = {"resourceType": "Basic", "code": {"text": "y"}, "subject": ref("Patient/cw")}
    response = await client.put("/Basic?patient.identifier=cw-1", json=basic)
    assert response.status_code == 200, response.text
    assert response.json()["id"] == "cw"
    transaction = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [
            {
                "resource": {**basic, "author": ref("Patient?_has:Basic:patient:_id=cw")},
                "request": {"method": "POST", "url": "Basic"},
            }
        ],
    }
    assert (await client.post("", json=transaction)).status_code == 200


@pytest.mark.slow
async def test_what_would_run_for_minutes_is_refused_with_advice(mongod: str) -> None:
    async with running(make_settings(mongod, max_chain_found=2, max_chain_examined=3)) as (
        _,
        client,
    ):
        patients = [{"resourceType": "Patient", "id": f"p{n}", "gender": "other"} for n in range(5)]
        basics = [
            {
                "resourceType": "Basic",
                "id": f"b{n}",
                "code": {"text": "x"},
                "subject": ref(f"Patient/p{n}"),
            }
            for n in range(5)
        ]
        await put(client, [*patients, *basics])
        outcome = assert_outcome(await client.get("/Basic?patient.gender=other"), 422, "too-costly")
        assert "_lastUpdated" in outcome["issue"][0]["diagnostics"]
        # A conditional write must not miss any match, so it never looks through candidates.
        basic = {"resourceType": "Basic", "code": {"text": "y"}}
        response = await client.put("/Basic?patient.gender=other", json=basic)
        assert_outcome(response, 422, "too-costly")
        bundle = await search(client, "Basic?patient.gender=other&_id=b1,b2,b3")
        assert ids(bundle) == {"b1", "b2", "b3"}
