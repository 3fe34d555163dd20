"""`_include` and `_revinclude` over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.builders.searching import ids, put, ref, search
from tests.conftest import BASE, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

RESOURCES: list[dict[str, Any]] = [
    {"resourceType": "Organization", "id": "o1", "name": "One", "partOf": ref("Organization/o2")},
    {"resourceType": "Organization", "id": "o2", "name": "Two", "partOf": ref("Organization/o3")},
    # The circle: what the loop guard is for.
    {"resourceType": "Organization", "id": "o3", "name": "Three", "partOf": ref("Organization/o1")},
    {"resourceType": "Practitioner", "id": "doc", "name": [{"family": "Arden"}]},
    {
        "resourceType": "Patient",
        "id": "p1",
        "generalPractitioner": [ref("Practitioner/doc"), ref("Organization/o1")],
        "managingOrganization": ref("Organization/o1"),
        "link": [{"other": ref("Patient/p2"), "type": "seealso"}],
    },
    {"resourceType": "Patient", "id": "p2"},
    {"resourceType": "Patient", "id": "gone"},
    {
        "resourceType": "PlanDefinition",
        "id": "pd1",
        "status": "active",
        "url": "http://plans.example/asthma",
        "version": "1",
    },
    {
        "resourceType": "PlanDefinition",
        "id": "pd2",
        "status": "active",
        "url": "http://plans.example/asthma",
        "version": "2",
    },
    {
        "resourceType": "Group",
        "id": "g1",
        "type": "person",
        "actual": True,
        "member": [{"entity": ref("Patient/p1")}, {"entity": ref("Patient/p2")}],
    },
    *(
        {
            "resourceType": "CarePlan",
            "id": f"c{n}",
            "status": "active",
            "intent": "plan",
            "instantiatesCanonical": [canonical],
            "subject": ref(subject),
            "author": ref("Practitioner/doc"),
            "contributor": [{"reference": "#local"}],
            "contained": [{"resourceType": "Practitioner", "id": "local"}],
        }
        for n, (subject, canonical) in enumerate(
            [
                ("Patient/p1/_history/1", "http://plans.example/asthma|2"),
                (f"{BASE}/Patient/p1", "http://plans.example/asthma"),
                ("Patient/gone", "http://plans.example/other"),
                ("http://elsewhere.example/Patient/p2", "http://plans.example/asthma|9"),
            ],
            1,
        )
    ),
    {
        "resourceType": "Provenance",
        "id": "v1",
        "target": [ref("CarePlan/c1/_history/1")],
        "recorded": "2026-05-14T10:00:00Z",
        "agent": [{"who": ref("Practitioner/doc")}],
    },
]


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[httpx.AsyncClient]:
    async with running(make_settings(mongod)) as (_, client):
        await put(client, RESOURCES)
        assert (await client.delete("/Patient/gone")).status_code == 204
        yield client


@pytest.mark.parametrize(
    ("url", "included"),
    [
        pytest.param("CarePlan?_id=c1&_include=CarePlan:subject", "p1", id="versioned"),
        pytest.param("CarePlan?_id=c2&_include=CarePlan:patient", "p1", id="own-base"),
        pytest.param("CarePlan?_id=c1,c2&_include=CarePlan:patient", "p1", id="not-repeated"),
        pytest.param("CarePlan?_id=c3&_include=CarePlan:subject", "", id="deleted"),
        pytest.param("CarePlan?_id=c4&_include=CarePlan:subject", "", id="elsewhere"),
        pytest.param("CarePlan?_id=c1&_include=CarePlan:subject:Group", "", id="other-type"),
        pytest.param(
            "Patient?_id=p1&_include=Patient:general-practitioner:Organization", "o1", id="type"
        ),
        pytest.param(
            "Patient?_id=p1&_include=Patient:general-practitioner", "doc o1", id="all-types"
        ),
        pytest.param(
            "CarePlan?_id=c1&_include=CarePlan:subject&_include=CarePlan:instantiates-canonical",
            "p1 pd2",
            id="two",
        ),
        pytest.param(
            "CarePlan?_id=c2&_include=CarePlan:instantiates-canonical", "pd1 pd2", id="canonical"
        ),
        pytest.param(
            "CarePlan?_id=c4&_include=CarePlan:instantiates-canonical", "", id="canonical-version"
        ),
        pytest.param("CarePlan?_id=c1&_include=*", "p1 pd2", id="all"),
        pytest.param("Patient?_id=p1&_include=Patient:*", "doc o1 p2", id="all-of-a-type"),
        pytest.param("Group?_id=g1&_include=Group:member", "p1 p2", id="members"),
        pytest.param("CarePlan?_id=c1&_revinclude=Provenance:target", "v1", id="reverse"),
        pytest.param("CarePlan?_id=c2&_revinclude=Provenance:target", "", id="reverse-nothing"),
        pytest.param("Patient?_id=p1&_revinclude=CarePlan:subject", "c1 c2", id="reverse-several"),
        pytest.param("Patient?_id=p1&_revinclude=Group:member", "g1", id="reverse-members"),
        pytest.param("Patient?_id=p1&_revinclude=*", "c1 c2 g1", id="reverse-all"),
        pytest.param(
            "PlanDefinition?_id=pd2&_revinclude=CarePlan:instantiates-canonical",
            "c1 c2 c4",
            id="reverse-canonical",
        ),
        pytest.param(
            "CarePlan?_id=c1&_include=CarePlan:subject&_include:iterate=Patient:organization",
            "p1 o1",
            id="iterate",
        ),
        pytest.param("Organization?_id=o1&_include=Organization:partof", "o2", id="itself-once"),
        pytest.param(
            "Organization?_id=o1&_include:iterate=Organization:partof", "o2 o3", id="circle"
        ),
        pytest.param(
            "Organization?_id=o1&_revinclude:iterate=Organization:partof", "o2 o3", id="back-circle"
        ),
        pytest.param("Organization?_id=o1,o2&_include=*", "o3", id="matches-are-not-included"),
        pytest.param(
            "Patient?_id=p1&_revinclude=CarePlan:subject&_revinclude:iterate=Provenance:target",
            "c1 c2 v1",
            id="reverse-iterate",
        ),
        pytest.param(
            "CarePlan?_id=c1&_include:iterate=Patient:organization", "", id="iterate-without-start"
        ),
    ],
)
async def test_include(world: httpx.AsyncClient, url: str, included: str) -> None:
    bundle = await search(world, url)
    assert ids(bundle, "include") == set(included.split())
    assert bundle["total"] == len(ids(bundle))
    for entry in bundle["entry"]:
        resource = entry["resource"]
        assert entry["fullUrl"] == f"{BASE}/{resource['resourceType']}/{resource['id']}"


async def test_each_page_stands_alone(world: httpx.AsyncClient) -> None:
    url = "CarePlan?patient=p1&_include=CarePlan:subject&_count=1&_sort=_id"
    seen: list[str] = []
    while url:
        bundle = await search(world, url)
        assert ids(bundle, "include") == {"p1"}
        seen += ids(bundle)
        url = next((each["url"] for each in bundle["link"] if each["relation"] == "next"), "")
    assert seen == ["c1", "c2"]


async def test_a_count_includes_nothing(world: httpx.AsyncClient) -> None:
    bundle = await search(world, "CarePlan?_include=CarePlan:subject&_summary=count")
    assert bundle["total"] == 4
    assert "entry" not in bundle


async def test_search_over_several_types_includes(world: httpx.AsyncClient) -> None:
    bundle = await search(world, "?_type=CarePlan,Patient&_id=c1,p1&_include=CarePlan:subject")
    assert ids(bundle) == {"c1", "p1"}
    assert ids(bundle, "include") == set()
    bundle = await search(world, "?_type=CarePlan,Patient&_id=c1&_include=CarePlan:subject")
    assert ids(bundle, "include") == {"p1"}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("_include=CarePlan:status", "value", id="no-reference"),
        pytest.param("_include:iterate=Bundle:message", "value", id="content-and-no-reference"),
        pytest.param("_include=CarePlan:banana", "not-supported", id="unknown"),
        pytest.param("_include=Banana:subject", "not-supported", id="unknown-type"),
        pytest.param("_include=CarePlan", "value", id="short"),
        pytest.param("_include=Patient:organization", "value", id="does-not-start-here"),
        pytest.param("_revinclude=Patient:organization", "value", id="does-not-lead-here"),
        pytest.param("_include:recurse=CarePlan:subject", "not-supported", id="modifier"),
    ],
)
async def test_inclusion_that_cannot_be_is_refused(
    world: httpx.AsyncClient, text: str, code: str
) -> None:
    assert_outcome(await world.get(f"/CarePlan?{text}"), 400, code)


@pytest.mark.slow
async def test_what_does_not_fit_makes_pages_smaller_or_is_told(mongod: str) -> None:
    async with running(make_settings(mongod, max_included=2)) as (_, client):
        patients = [{"resourceType": "Patient", "id": f"q{n}"} for n in range(1, 5)]
        about = {"resourceType": "CarePlan", "status": "active", "intent": "plan"}
        plans = [
            {**about, "id": f"q{n}-{number}", "subject": ref(f"Patient/q{n}")}
            for n, count in ((1, 1), (2, 2), (4, 1))
            for number in range(count)
        ]
        await put(client, [*patients, *plans])
        for asked in ("Patient?", "?_type=Patient&"):
            query = "_id=q1,q2,q3,q4&_sort=_id&_count=4&_revinclude=CarePlan:subject"
            url: str | None = f"{BASE}/{asked}{query}"
            pages = []
            while url:
                page = (await client.get(url)).json()
                assert {each["search"]["mode"] for each in page["entry"]} <= {"match", "include"}
                pages.append((ids(page), ids(page, "include")))
                url = next((e["url"] for e in page["link"] if e["relation"] == "next"), None)
            assert pages == [
                ({"q1"}, {"q1-0"}),
                ({"q2"}, {"q2-0", "q2-1"}),
                ({"q3", "q4"}, {"q4-0"}),
            ]
        # A single match that brings too much.
        await put(client, RESOURCES)
        bundle = await search(client, "Patient?_id=p1&_revinclude=CarePlan:subject")
        assert ids(bundle, "include") == {"c1", "c2"}
        assert ids(bundle) == {"p1"}
        bundle = await search(client, "Patient?_id=p1,q1&_sort=-_id&_revinclude=*")
        assert ids(bundle) == {"q1"}
        bundle = (await client.get(bundle["link"][1]["url"])).json()
        assert ids(bundle) == {"p1"}
        assert len(ids(bundle, "include")) == 2
        outcome = bundle["entry"][-1]
        assert outcome["search"]["mode"] == "outcome"
        assert outcome["resource"]["issue"][0]["code"] == "too-costly"


async def test_the_capability_statement_tells_what_can_be_included(
    client: httpx.AsyncClient,
) -> None:
    (rest,) = (await client.get("/metadata")).json()["rest"]
    patient = next(each for each in rest["resource"] if each["type"] == "Patient")
    assert {"*", "Patient:organization"} <= set(patient["searchInclude"])
    assert {"*", "CarePlan:subject", "Group:member", "Provenance:target"} <= set(
        patient["searchRevInclude"]
    )
    assert "Encounter:location" not in patient["searchRevInclude"]
    bundle = next(each for each in rest["resource"] if each["type"] == "Bundle")
    assert bundle["searchInclude"] == ["*"]  # its parameters lead to what it contains
