"""Searches at the root, in compartments, by POST, by List and by place, over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from math import cos, radians
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from tests.builders.searching import ids, put, ref, search
from tests.conftest import BASE, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

CONCEPT = {"text": "x"}
RESOURCES: list[dict[str, Any]] = [
    {"resourceType": "Patient", "id": "p1", "name": [{"family": "Miller"}]},
    {"resourceType": "Patient", "id": "p2", "name": [{"family": "Stone"}]},
    # The same id in two types: a tie that a page may fall on.
    {"resourceType": "Practitioner", "id": "p1", "name": [{"family": "Miller"}]},
    {"resourceType": "Condition", "id": "c1", "subject": ref("Patient/p1"), "code": CONCEPT},
    {
        "resourceType": "Condition",
        "id": "c2",
        "subject": ref("Patient/p2"),
        "asserter": ref("Patient/p1"),
        "encounter": ref("Encounter/e1"),
    },
    {"resourceType": "Condition", "id": "c3", "subject": ref("Patient/p2")},
    {
        "resourceType": "Encounter",
        "id": "e1",
        "subject": ref("Patient/p1"),
        "status": "finished",
        "class": {"code": "AMB"},
        "participant": [{"individual": ref("Practitioner/p1")}],
    },
    {
        "resourceType": "Group",
        "id": "g1",
        "type": "person",
        "actual": True,
        "member": [{"entity": ref("Patient/p1")}],
    },
    {
        "resourceType": "List",
        "id": "l1",
        "status": "current",
        "mode": "changes",
        "entry": [
            {"item": ref("Condition/c1")},
            {"item": ref("Condition/c2/_history/1")},
            {"item": ref("Condition/c3"), "deleted": True},
            {"item": ref(f"{BASE}/Patient/p2")},
        ],
    },
    {"resourceType": "List", "id": "l2", "status": "current", "mode": "working"},
]
PLACES = {
    "here": (48.2, 16.37),
    "near": (48.2, 16.38),
    "far": (49.2, 16.37),
    "east": (0.0, 179.99),
    "west": (0.0, -179.99),
    "pole": (90.0, 0.0),
}


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[httpx.AsyncClient]:
    async with running(make_settings(mongod)) as (_, client):
        places = [
            {"resourceType": "Location", "id": name, "position": {"latitude": n, "longitude": e}}
            for name, (n, e) in PLACES.items()
        ]
        nowhere = {"resourceType": "Location", "id": "nowhere"}
        off = {
            "resourceType": "Location",
            "id": "off",
            "position": {"latitude": 99, "longitude": 1},
        }
        await put(client, [*RESOURCES, *places, nowhere, off])
        yield client


def keys(bundle: dict[str, Any]) -> list[str]:
    return [
        f"{entry['resource']['resourceType']}/{entry['resource']['id']}"
        for entry in bundle.get("entry", ())
        if entry["search"]["mode"] == "match"
    ]


async def pages(client: httpx.AsyncClient, url: str) -> list[str]:
    found: list[str] = []
    while url:
        bundle = await search(client, url)
        found += keys(bundle)
        url = next((each["url"] for each in bundle["link"] if each["relation"] == "next"), "")
    return found


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        pytest.param("?_type=Patient,Practitioner", "Patient/p1 Patient/p2 Practitioner/p1", id="type"),
        pytest.param("?_type=Patient&name=stone", "Patient/p2", id="one-type"),
        pytest.param("?_type=Patient,Practitioner&name=miller", "Patient/p1 Practitioner/p1", id="name"),
        pytest.param("?_id=p1", "Patient/p1 Practitioner/p1", id="all-types"),
        pytest.param("?_type=Condition,Encounter&patient.name=miller", "Condition/c1 Encounter/e1", id="chain"),
        pytest.param("?_type=Media,Device", "", id="nothing"),
        pytest.param("?_list=l1&_type=Patient,Condition", "Patient/p2 Condition/c1 Condition/c2", id="list"),
        pytest.param("Condition?_list=l1", "Condition/c1 Condition/c2", id="list-on-type"),
        pytest.param("Condition?_list=List/l1", "Condition/c1 Condition/c2", id="list-reference"),
        pytest.param("Condition?_list=l2", "", id="empty-list"),
        pytest.param("Condition?_list=none", "", id="no-list"),
        pytest.param("Condition?_list=l1,l2&patient=p2", "Condition/c2", id="lists-and"),
        pytest.param("Condition?_contained=false&patient=p1", "Condition/c1", id="not-contained"),
        pytest.param("Patient/p1/Condition", "Condition/c1 Condition/c2", id="compartment"),
        pytest.param("Patient/p1/Condition?patient=p2", "Condition/c2", id="compartment-and"),
        pytest.param("Patient/p1/Patient", "Patient/p1", id="itself"),
        pytest.param("Patient/p1/Group", "Group/g1", id="compartment-members"),
        pytest.param("Patient/none/Condition", "", id="compartment-of-nobody"),
        pytest.param("Encounter/e1/Condition", "Condition/c2", id="encounter"),
        pytest.param("Practitioner/p1/Encounter", "Encounter/e1", id="practitioner"),
        pytest.param(
            "Patient/p1/*",
            "Patient/p1 Condition/c1 Condition/c2 Encounter/e1 Group/g1",
            id="whole-compartment",
        ),
        pytest.param("Patient/p1/*?_type=Encounter,Group", "Encounter/e1 Group/g1", id="some-types"),
        pytest.param("Patient/p1/*?_id=c1", "Condition/c1", id="whole-compartment-and"),
    ],
)  # fmt: skip
async def test_search(world: httpx.AsyncClient, url: str, expected: str) -> None:
    bundle = await search(world, url)
    assert set(keys(bundle)) == set(expected.split())
    assert len(keys(bundle)) == len(expected.split()) == bundle["total"]
    separator = "&" if "?" in url else "?"
    assert (await search(world, f"{url}{separator}_count=0"))["total"] == bundle["total"]
    for sort in ("", "&_sort=_lastUpdated", "&_sort=-_id", "&_sort=_id"):
        whole = keys(await search(world, f"{url}{separator}_count=100{sort}"))
        assert await pages(world, f"{url}{separator}_count=1{sort}") == whole


async def test_newest_come_first_whatever_their_type(world: httpx.AsyncClient) -> None:
    bundle = await search(world, "?_type=Patient,Condition,Encounter&_count=100")
    times = [entry["resource"]["meta"]["lastUpdated"] for entry in bundle["entry"]]
    assert times == sorted(times, reverse=True)


async def test_links_of_a_system_search_show_what_was_used(world: httpx.AsyncClient) -> None:
    bundle = await search(world, "?_type=Patient&name=miller&_count=5000&_format=json")
    url = bundle["link"][0]["url"]
    assert url.partition("?")[0] == BASE
    assert parse_qs(urlsplit(url).query) == {
        "_type": ["Patient"],
        "name": ["miller"],
        "_count": ["1000"],
        "_format": ["json"],
    }
    bundle = await search(world, "Patient/p1/*?_count=1")
    assert all(each["url"].startswith(f"{BASE}/Patient/p1/*?") for each in bundle["link"])
    bundle = await search(world, "Patient/p1/Condition?_count=1")
    assert all(each["url"].startswith(f"{BASE}/Patient/p1/Condition?") for each in bundle["link"])


@pytest.mark.parametrize("path", ["/_search", "/_search/", "/Patient/_search"])
async def test_search_by_post(world: httpx.AsyncClient, path: str) -> None:
    types = {} if "Patient" in path else {"_type": "Patient"}
    response = await world.post(path, data={**types, "name": "stone"}, params={"_count": "3"})
    assert response.status_code == 200, response.text
    assert keys(response.json()) == ["Patient/p2"]


async def test_compartment_search_by_post(world: httpx.AsyncClient) -> None:
    response = await world.post("/Patient/p1/Condition/_search", data={"patient": "p2"})
    assert keys(response.json()) == ["Condition/c2"]
    response = await world.post("/Patient/p1/*/_search", data={"_id": "c1"})
    assert keys(response.json()) == ["Condition/c1"]


async def test_search_inside_a_batch(world: httpx.AsyncClient) -> None:
    urls = ["Patient/p1/Condition", "?_type=Patient&name=stone", "Condition?_list=l1"]
    entries = [{"request": {"method": "GET", "url": url}} for url in urls]
    response = await world.post(
        "", json={"resourceType": "Bundle", "type": "batch", "entry": entries}
    )
    totals = [entry["resource"]["total"] for entry in response.json()["entry"]]
    assert totals == [2, 1, 2]


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        pytest.param("?_type=Banana", 400, "not-supported", id="type"),
        pytest.param("?_type=Patient&_type=Group", 400, "invalid", id="type-twice"),
        pytest.param("?name=x", 400, "not-supported", id="not-of-all-types"),
        pytest.param("?_type=Patient,Group&birthdate=2026", 400, "not-supported", id="not-of-both"),
        pytest.param("?_type=Patient&_sort=name", 400, "not-supported", id="sort"),
        pytest.param("?_type=Patient&_cursor=abc", 410, "expired", id="cursor"),
        pytest.param("?_type=Patient&_include=Patient", 400, "value", id="include"),
        pytest.param("Condition?_list=$current-problems", 400, "not-supported", id="current-list"),
        pytest.param("?_type=Patient&_contained=both", 400, "not-supported", id="contained"),
        pytest.param("Patient/p1/*?_contained=true", 400, "not-supported", id="contained-in"),
        pytest.param("Condition?_containedType=inside", 400, "value", id="containedType"),
        pytest.param("Patient/p1/Location", 404, "not-supported", id="not-in-the-compartment"),
        pytest.param("Patient/p1/Banana", 404, "not-supported", id="unknown-type"),
        pytest.param("Group/g1/Patient", 404, "not-supported", id="no-compartment"),
        pytest.param("Group/g1/*", 404, "not-supported", id="no-compartment-for-all"),
        pytest.param("Patient/p1/*?code=x", 400, "not-supported", id="compartment-parameter"),
        pytest.param("Patient/p1/*?_type=Location", 400, "not-supported", id="compartment-type"),
        pytest.param("Patient/p1/Condition?banana=x", 400, "not-supported", id="unknown"),
        pytest.param("Location?near=1", 400, "value", id="near"),
        pytest.param("Location?near=1|2|3|furlong", 400, "value", id="near-unit"),
        pytest.param("Location?near:missing=true", 400, "not-supported", id="near-modifier"),
    ],
)
async def test_search_that_cannot_be_is_refused(
    world: httpx.AsyncClient, url: str, status: int, code: str
) -> None:
    assert_outcome(await world.get(f"/{url}" if url[0] != "?" else url), status, code)


async def test_post_takes_a_form_only(world: httpx.AsyncClient) -> None:
    response = await world.post("/_search", json={"name": "x"})
    assert_outcome(response, 415, "not-supported")


async def test_lenient_system_search_reports_once(world: httpx.AsyncClient) -> None:
    response = await world.get(
        "?_type=Patient,Group&banana=1&_id=p1", headers={"Prefer": "handling=lenient"}
    )
    bundle = response.json()
    assert keys(bundle) == ["Patient/p1"]
    assert "banana" not in bundle["link"][0]["url"]
    assert bundle["entry"][-1]["search"]["mode"] == "outcome"


# One degree of a great circle on MongoDB's sphere, in km.
DEGREE = radians(1) * 6378.1
NEAR = DEGREE * 0.01 * cos(radians(48.2))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("48.2|16.37|1|km", "here near", id="km"),
        pytest.param(f"48.2|16.37|{NEAR * 0.999}|km", "here", id="just-beyond"),
        pytest.param(f"48.2|16.37|{NEAR * 1.001}|km", "here near", id="just-within"),
        pytest.param("48.2|16.37|1000|m", "here near", id="metres"),
        pytest.param("48.2|16.37|0.5|[mi_i]", "here near", id="miles"),
        pytest.param("48.2|16.37|0|km", "here", id="exactly-there"),
        pytest.param("48.2|16.37|112", "here near far", id="km-by-default"),
        pytest.param("48.2|16.37", "here near", id="distance-by-default"),
        pytest.param("0|180|2|km", "east west", id="date-line"),
        pytest.param("89.99|120|3|km", "pole", id="pole"),
        pytest.param("48.2|16.37|1|km,0|180|2|km", "here near east west", id="or"),
        pytest.param("48.2|16.37|30000|km", "here near far east west pole", id="all-the-earth"),
    ],
)
async def test_near(world: httpx.AsyncClient, text: str, expected: str) -> None:
    bundle = await search(world, f"Location?near={text}")
    assert ids(bundle) == set(expected.split())


async def test_moved_and_deleted_places_are_not_found(client: httpx.AsyncClient) -> None:
    place = {
        "resourceType": "Location",
        "id": "moves",
        "position": {"latitude": 10, "longitude": 10},
    }
    await put(client, [place])
    assert ids(await search(client, "Location?near=10|10|1")) == {"moves"}
    await put(client, [{**place, "position": {"latitude": -10, "longitude": 10}}])
    assert ids(await search(client, "Location?near=10|10|1")) == set()
    assert ids(await search(client, "Location?near=-10|10|1")) == {"moves"}
    await client.delete("/Location/moves")
    assert ids(await search(client, "Location?near=-10|10|1")) == set()


async def test_a_snapshot_over_several_types_stays_as_it_was(client: httpx.AsyncClient) -> None:
    people = [
        {"resourceType": kind, "id": f"snap{n}"} for kind in ("Patient", "Person") for n in "12"
    ]
    await put(client, people)
    url = "?_type=Patient,Person&_id=snap1,snap2,snap3&_count=1&_snapshot=true"
    first = await search(client, url)
    await put(client, [{"resourceType": "Patient", "id": "snap3"}])
    await client.delete("/Person/snap1")
    following = next(each["url"] for each in first["link"] if each["relation"] == "next")
    found = [*keys(first), *await pages(client, following)]
    assert sorted(found) == ["Patient/snap1", "Patient/snap2", "Person/snap1", "Person/snap2"]


async def test_polling_over_several_types_tells_its_horizon(client: httpx.AsyncClient) -> None:
    await put(client, [{"resourceType": "Person", "id": "poll"}])
    bundle = await search(client, "?_type=Patient,Person&_lastUpdated=gt2020&_id=poll")
    assert bundle["meta"]["lastUpdated"]
