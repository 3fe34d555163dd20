"""Search on a real MongoDB: the shared table, order and paging."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from app.errors import BadRequest
from app.fhir.json import decode_stored
from app.records.versions import Change
from app.runtime.mongo import Mongo
from app.search import page
from app.search.extract import extract
from app.search.query import Query, parse
from app.settings import Settings
from app.store.store import Store
from tests.builders.pages import link, walk
from tests.conftest import make_settings
from tests.search.search_table import BASE, ROWS

pytestmark = pytest.mark.mongo
SETTINGS = Settings()


def parsed(resource_type: str, text: str, *, lenient: bool = False) -> Query:
    """The query a URL's text asks for; `+` and `%` in the text stand for themselves."""
    pairs = [tuple(part.split("=", 1)) for part in text.split("&") if part]
    return parse(resource_type, pairs, lenient=lenient, settings=SETTINGS, base_url=BASE)  # type: ignore[arg-type]


async def create(store: Store, *resources: dict[str, Any]) -> None:
    await store.commit(
        [Change("create", each["resourceType"], each["id"], each, None) for each in resources]
    )


def _row_resource(name: str, resource_type: str, elements: dict[str, Any]) -> dict[str, Any]:
    return {"resourceType": resource_type, "id": name, **elements}


@dataclass
class Table:
    """A store with every resource of the shared table, and for each type what memory makes of them."""

    store: Store
    fields: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    async def of(self, resource_type: str) -> dict[str, dict[str, Any]]:
        if resource_type not in self.fields:
            rows = await self.store.find(resource_type, {"terms": "*"})
            self.fields[resource_type] = {
                row["_id"]: extract(resource_type, decode_stored(row["text"])) for row in rows
            }
        return self.fields[resource_type]


@pytest.fixture(scope="module")
async def table(mongod: str) -> AsyncIterator[Table]:
    mongo = await Mongo.open(make_settings(mongod))
    store = Store(mongo)
    await store.prepare()
    resources = [_row_resource(name, kind, elements) for name, kind, elements, _, _ in ROWS]
    for start in range(0, len(resources), 50):
        await create(store, *resources[start : start + 50])
    yield Table(store)
    await mongo.close()


@pytest.mark.parametrize(
    ("name", "resource_type", "elements", "text", "expected"),
    [pytest.param(*row, id=row[0]) for row in ROWS],
)
async def test_mongodb_and_memory_agree(
    table: Table, name: str, resource_type: str, elements: dict[str, Any], text: str, expected: bool
) -> None:
    """MongoDB finds the row's resource or not, and of all resources of the type exactly those memory finds."""
    query = parsed(resource_type, text)
    rows = await table.store.find(resource_type, query.filter)
    found = {row["_id"] for row in rows}
    fields = await table.of(resource_type)
    assert (elements.get("id", name) in found) is expected
    assert found == {each for each in fields if query.matches(fields[each])}
    assert all(query.matches(row) for row in rows), "stored fields match like extracted ones"


async def test_a_long_string_is_cut_in_its_term_and_found_nevertheless(store: Store) -> None:
    texts = {"short": "a" * 2000, "long": "a" * 2001, "longer": "a" * 5000}
    await create(
        store, *[_row_resource(id_, "ValueSet", {"description": texts[id_]}) for id_ in texts]
    )
    rows = await store.find("ValueSet", {})
    values = {
        row["_id"]: term.partition("=")[2]
        for row in rows
        for term in row["terms"]
        if term.startswith("description=")
    }
    assert values["short"] == texts["short"]
    for id_ in ("long", "longer"):
        assert values[id_].startswith("a" * 2000 + "\t")
        assert len(values[id_]) < 2050
    for query, expected in (
        ("description=aaa", {"short", "long", "longer"}),
        (f"description={texts['longer']}", {"short", "long", "longer"}),
        *((f"description:exact={text}", {id_}) for id_, text in texts.items()),
    ):
        found = await store.find("ValueSet", parsed("ValueSet", query).filter)
        assert {row["_id"] for row in found} == expected, query[:30]


async def search(store: Store, resource_type: str, text: str, **options: Any) -> dict[str, Any]:
    way = await walk(store, resource_type, text)
    bundle: dict[str, Any] = json.loads(
        await page.search_type(store, parsed(resource_type, text, **options), way)
    )
    return bundle


def ids(bundle: dict[str, Any]) -> list[str]:
    return [each["resource"]["id"] for each in bundle.get("entry", ())]


async def follow(store: Store, url: str) -> dict[str, Any]:
    parts = urlsplit(url)
    resource_type = parts.path.rpartition("/")[2]
    way = await walk(store, resource_type, parts.query)
    query = parse(
        resource_type,
        way.asked,
        lenient=False,
        settings=SETTINGS,
        base_url=BASE,
        begin=way.begin,
    )
    bundle: dict[str, Any] = json.loads(await page.search_type(store, query, way))
    return bundle


async def all_pages(store: Store, resource_type: str, text: str) -> list[list[str]]:
    bundle = await search(store, resource_type, text)
    pages = [ids(bundle)]
    while url := link(bundle, "next"):
        bundle = await follow(store, url)
        pages.append(ids(bundle))
    return pages


def encounter(number: int) -> dict[str, Any]:
    """Three of each date, and every seventh without one."""
    resource: dict[str, Any] = {
        "resourceType": "Encounter",
        "id": f"e{number:02}",
        "status": "finished" if number % 2 else "planned",
        "identifier": [{"value": f"i{(number * 7) % 5}"}, {"value": f"i{(number * 3) % 5}"}],
        "subject": {"reference": f"Patient/p{number % 2}"},
        "location": [
            {"period": {"start": f"2026-0{number % 4 + 1}"}},
            {"period": {"start": "2026-02"}},
        ],
    }
    if number % 7:
        resource["period"] = {"start": f"2026-01-{number // 3 + 1:02}"}
    if number % 5 == 0:
        del resource["identifier"], resource["location"]
    return resource


@pytest.fixture(scope="module", params=["pymongo", "motor"])
async def encounters(mongod: str, request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Those that nobody changes."""
    mongo = await Mongo.open(make_settings(mongod, mongodb_driver=request.param))
    store = Store(mongo)
    await store.prepare()
    await create(store, *[encounter(number) for number in range(30)])
    yield store
    await mongo.close()


@pytest.fixture
async def own_encounters(store: Store) -> Store:
    """Those that a test may change."""
    await create(store, *[encounter(number) for number in range(30)])
    return store


async def test_bundle_is_a_searchset_of_the_stored_texts(encounters: Store) -> None:
    bundle = await search(encounters, "Encounter", "_id=e07,e08&_sort=_id")
    assert bundle["resourceType"] == "Bundle"
    assert bundle["type"] == "searchset"
    assert bundle["total"] == 2
    assert bundle["entry"][0]["fullUrl"] == f"{BASE}/Encounter/e07"
    assert bundle["entry"][0]["search"] == {"mode": "match"}
    stored = await encounters.read("Encounter", "e07")
    assert stored is not None
    assert bundle["entry"][0]["resource"] == json.loads(stored.text)


async def test_empty_result_has_no_entries(encounters: Store) -> None:
    bundle = await search(encounters, "Encounter", "status=cancelled")
    assert bundle["total"] == 0
    assert "entry" not in bundle


async def test_deleted_resources_are_not_found(own_encounters: Store) -> None:
    previous = await own_encounters.read("Encounter", "e01")
    await own_encounters.commit([Change("delete", "Encounter", "e01", None, previous)])
    for text in ("_id=e01", "status:not=x", "subject:missing=true", "_lastUpdated=gt2020"):
        assert "e01" not in ids(await search(own_encounters, "Encounter", f"{text}&_count=100"))


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="default"),
        pytest.param("&_sort=date", id="date"),
        pytest.param("&_sort=-date", id="date-descending"),
        pytest.param("&_sort=_lastUpdated", id="last-updated"),
        pytest.param("&_sort=-_lastUpdated", id="last-updated-descending"),
        pytest.param("&_sort=-_id", id="id-descending"),
        pytest.param("&_sort=status,-date", id="two-keys"),
        pytest.param("&_sort=identifier", id="several-values"),
        pytest.param("&_sort=-identifier", id="several-values-descending"),
        pytest.param("&_sort=location-period,-identifier,_id", id="ranges"),
        pytest.param("&_sort=-location-period", id="ranges-descending"),
        pytest.param("&_sort=date&patient=p1", id="filtered"),
        pytest.param("&_sort=-date&status=finished,planned", id="several-terms"),
    ],
)
async def test_pages_hold_every_row_once_in_one_order(encounters: Store, text: str) -> None:
    whole = await all_pages(encounters, "Encounter", f"_count=100{text}")
    assert len(whole) == 1
    pages = await all_pages(encounters, "Encounter", f"_count=4{text}")
    assert [len(each) for each in pages[:-1]] == [4] * (len(pages) - 1)
    assert [each for rows in pages for each in rows] == whole[0]
    assert len(set(whole[0])) == len(whole[0])


def _starts(numbers: list[int]) -> list[str]:
    return [encounter(number).get("period", {}).get("start", "") for number in numbers]


async def test_sort_by_date_puts_rows_without_one_first(encounters: Store) -> None:
    (found,) = await all_pages(encounters, "Encounter", "_count=100&_sort=date")
    starts = _starts([int(each[1:]) for each in found])
    assert starts == sorted(starts)
    (backwards,) = await all_pages(encounters, "Encounter", "_count=100&_sort=-date")
    assert backwards == found[::-1]


async def test_sort_with_several_values_uses_least_ascending_and_greatest_descending(
    store: Store,
) -> None:
    for name, values in {"a": ["m"], "b": ["c", "x"], "c": ["d", "n"], "d": []}.items():
        identifiers = [{"value": value} for value in values]
        basic = {"resourceType": "Basic", "id": name, "identifier": identifiers}
        await create(store, basic if identifiers else {"resourceType": "Basic", "id": name})
    assert await all_pages(store, "Basic", "_sort=identifier") == [["d", "b", "c", "a"]]
    assert await all_pages(store, "Basic", "_sort=-identifier") == [["b", "c", "a", "d"]]
    assert await all_pages(store, "Basic", "_sort=identifier&_count=1") == [
        ["d"],
        ["b"],
        ["c"],
        ["a"],
    ]
    assert await all_pages(store, "Basic", "_sort=-identifier&_count=1") == [
        ["b"],
        ["c"],
        ["a"],
        ["d"],
    ]


async def test_total_comes_only_when_asked_for_or_when_the_page_is_the_result(
    encounters: Store,
) -> None:
    assert (await search(encounters, "Encounter", "_count=100"))["total"] == 30
    assert "total" not in await search(encounters, "Encounter", "_count=5")
    assert "total" not in await search(encounters, "Encounter", "_count=5&_total=none")
    assert (await search(encounters, "Encounter", "_count=5&_total=accurate"))["total"] == 30
    assert (await search(encounters, "Encounter", "_count=5&_total=estimate"))["total"] == 30


@pytest.mark.parametrize("text", ["_count=0", "_summary=count"])
async def test_count_only_gives_a_total_and_no_entries(encounters: Store, text: str) -> None:
    bundle = await search(encounters, "Encounter", f"status=finished&{text}")
    assert bundle["total"] == 15
    assert "entry" not in bundle
    assert link(bundle, "next") is None


async def test_links_show_what_was_used(encounters: Store) -> None:
    text = "status=finished&unknown=1&date=ge2026-01-01&_sort=-date&_count=5000&_format=json"
    bundle = await search(encounters, "Encounter", text, lenient=True)
    self_link = link(bundle, "self")
    assert self_link is not None
    assert dict(parse_qsl(urlsplit(self_link).query)) == {
        "status": "finished",
        "date": "ge2026-01-01",
        "_sort": "-date",
        "_count": "1000",
        "_format": "json",
    }


async def test_lenient_search_reports_what_it_left_out(encounters: Store) -> None:
    bundle = await search(encounters, "Encounter", "status=finished&unknown=1", lenient=True)
    *matches, outcome = bundle["entry"]
    assert len(matches) == 15
    assert outcome["search"] == {"mode": "outcome"}
    (issue,) = outcome["resource"]["issue"]
    assert issue["severity"] == "warning"
    assert "'unknown'" in issue["diagnostics"]


async def test_page_link_of_another_search_is_refused(encounters: Store) -> None:
    url = link(await search(encounters, "Encounter", "_count=5&status=finished"), "next")
    assert url is not None
    with pytest.raises(BadRequest, match="page link"):
        await follow(encounters, f"{url}&status=planned")


async def test_rows_that_stay_appear_once_while_others_write(own_encounters: Store) -> None:
    """A writer adds, moves and deletes rows of its own between all pages."""
    stop = asyncio.Event()

    async def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            name = f"w{number % 5}"
            previous = await own_encounters.read("Encounter", name)
            resource = {**encounter(number % 28 + 1), "id": name}
            if previous is None or previous.deleted:
                change = Change("create", "Encounter", name, resource, previous)
            elif number % 3:
                change = Change("update", "Encounter", name, resource, previous)
            else:
                change = Change("delete", "Encounter", name, None, previous)
            await own_encounters.commit([change])

    writer = asyncio.create_task(write())
    try:
        for _ in range(5):
            pages = await all_pages(own_encounters, "Encounter", "_count=3&_sort=date")
            found = [each for rows in pages for each in rows if each.startswith("e")]
            assert sorted(found) == [f"e{number:02}" for number in range(30)]
    finally:
        stop.set()
        await writer


async def test_a_page_deep_in_the_result_examines_no_more_than_the_first(store: Store) -> None:
    """With several terms asked for, too: that is what a single `$or` would get wrong."""
    await create(store, *[{**encounter(n % 28 + 1), "id": f"x{n:03}"} for n in range(200)])
    bundle = await search(store, "Encounter", "status=finished,planned&_count=10")
    for _ in range(15):
        url = link(bundle, "next")
        assert url is not None
        bundle = await follow(store, url)
    way = await walk(store, "Encounter", urlsplit(link(bundle, "self") or "").query)
    query = parse("Encounter", way.asked, lenient=False, settings=SETTINGS, begin=way.begin)
    examined = 0
    for each in page.filters(query):
        cursor = store._mongo.collection("Encounter").find(each)
        plan = await cursor.sort([("date", -1), ("_id", -1)]).limit(11).explain()
        examined += plan["executionStats"]["totalKeysExamined"]
    assert examined <= 60


async def test_rows_that_do_not_fit_into_one_answer_of_the_database_all_come(mongo: Mongo) -> None:
    text = "x" * (7 * 1024 * 1024)
    for name in ("a", "b", "c"):
        await mongo.collection("Basic").insert_one({"_id": name, "text": text})
    rows = await Store(mongo).find("Basic", {}, sort=[("_id", -1)], limit=10, naive=True)
    assert [row["_id"] for row in rows] == ["c", "b", "a"]
    assert all(row["text"] == text for row in rows)
