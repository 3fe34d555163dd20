"""History of a type and of the whole server: _count, _since, _at, pages and deletions.

https://hl7.org/fhir/R4/http.html#history
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx
import pytest

from app.fhir import xml
from tests.conftest import make_settings, running
from tests.outcomes import assert_outcome

Entry = dict[str, Any]


def person(id_: str, text: str) -> dict[str, Any]:
    return {"resourceType": "Person", "id": id_, "name": [{"text": text}]}


async def put(client: httpx.AsyncClient, id_: str, text: str) -> str:
    """The moment of a new version."""
    response = await client.put(f"/Person/{id_}", json=person(id_, text))
    assert response.status_code in (200, 201), response.text
    moment: str = response.json()["meta"]["lastUpdated"]
    await asyncio.sleep(0.002)  # the next version gets a time of its own
    return moment


@pytest.fixture(scope="module")
async def story(mongod: str) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    """A server of its own with a short story, and when each step of it happened.

    a1: first version of a; b1: of b; a2: second of a; b2: b is deleted; c1: first of c.
    """
    async with running(make_settings(mongod)) as (_, client):
        times = {"a1": await put(client, "a", "1"), "b1": await put(client, "b", "1")}
        times["a2"] = await put(client, "a", "2")
        assert (await client.delete("/Person/b")).status_code == 204
        await asyncio.sleep(0.002)
        times["c1"] = await put(client, "c", "1")
        entries = (await client.get("/Person/_history")).json()["entry"]
        times["b2"] = next(
            e["response"]["lastModified"] for e in entries if e["request"]["method"] == "DELETE"
        )
        await client.post("/Patient", json={"resourceType": "Patient"})
        yield client, times


async def history(client: httpx.AsyncClient, path: str = "/Person", **query: Any) -> dict[str, Any]:
    response = await client.get(f"{path}/_history", params=query)
    assert response.status_code == 200, response.text
    bundle: dict[str, Any] = response.json()
    assert bundle["type"] == "history"
    return bundle


def steps(entries: Sequence[Entry]) -> list[str]:
    """What the entries are about, as a1 and so on."""
    return [
        entry["fullUrl"].rpartition("/")[2] + entry["response"]["etag"][3:-1] for entry in entries
    ]


async def test_history_of_a_type_lists_all_its_versions_newest_first(
    story: tuple[httpx.AsyncClient, dict[str, str]],
) -> None:
    client, times = story
    bundle = await history(client)
    assert bundle["total"] == 5
    assert steps(bundle["entry"]) == ["c1", "b2", "a2", "b1", "a1"]
    for entry, step in zip(bundle["entry"], steps(bundle["entry"]), strict=True):
        assert entry["response"]["lastModified"] == times[step]
        assert ("resource" in entry) is (entry["request"]["method"] != "DELETE")
        assert entry["request"]["url"] == f"Person/{step[0]}"


async def test_history_of_the_system_has_every_type(
    story: tuple[httpx.AsyncClient, dict[str, str]],
) -> None:
    client, _ = story
    bundle = await history(client, "", _count=1000)
    types = {entry["fullUrl"].split("/")[-2] for entry in bundle["entry"]}
    assert types >= {"Person", "Patient", "OperationDefinition"}
    moments = [entry["response"]["lastModified"] for entry in bundle["entry"]]
    assert moments == sorted(moments, reverse=True)
    assert bundle["total"] == len(bundle["entry"])


@pytest.mark.parametrize("path", ["/Person", "", "/Person/a"], ids=["type", "system", "instance"])
@pytest.mark.parametrize("count", [1, 2, 4])
async def test_pages_show_every_version_once(
    story: tuple[httpx.AsyncClient, dict[str, str]], path: str, count: int
) -> None:
    client, _ = story
    whole = await history(client, path, _count=1000)
    seen: list[Entry] = []
    url = f"{client.base_url}{path.removeprefix('/')}/_history".replace("//_", "/_")
    following: str | None = f"{url}?_count={count}"
    while following:
        page = (await client.get(following)).json()
        assert len(page["entry"]) <= count
        assert page["total"] == whole["total"]
        seen += page["entry"]
        following = next((x["url"] for x in page["link"] if x["relation"] == "next"), None)
    assert seen == whole["entry"]


@pytest.mark.slow
async def test_versions_written_while_paging_do_not_shift_the_pages(mongod: str) -> None:
    async with running(make_settings(mongod)) as (_, client):
        for number in range(4):
            await put(client, "a", str(number))
        first = await history(client, _count=2)
        await put(client, "a", "new")
        following = next(x["url"] for x in first["link"] if x["relation"] == "next")
        second = (await client.get(following)).json()
        assert steps([*first["entry"], *second["entry"]]) == ["a4", "a3", "a2", "a1"]


async def test_since_takes_the_versions_from_that_moment_on(
    story: tuple[httpx.AsyncClient, dict[str, str]],
) -> None:
    client, times = story
    bundle = await history(client, _since=times["a2"])
    assert steps(bundle["entry"]) == ["c1", "b2", "a2"]
    assert bundle["total"] == 3
    paged = await history(client, _since=times["a2"], _count=2)
    following = next(x["url"] for x in paged["link"] if x["relation"] == "next")
    assert steps((await client.get(following)).json()["entry"]) == ["a2"]


# `_at`: R4 asks for the versions that were current at some time during the period.


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        pytest.param("{a1}", ["a1"], id="the-first-moment"),
        pytest.param("{b1}", ["b1", "a1"], id="a-version-made-then-and-one-older"),
        pytest.param("{a2}", ["a2", "b1"], id="the-replaced-version-is-gone"),
        pytest.param("{b2}", ["b2", "a2"], id="a-deletion-is-the-current-state"),
        pytest.param("ge{b2}", ["c1", "b2", "a2"], id="from-then-on"),
        pytest.param("gt{b2}", ["c1", "b2", "a2"], id="after"),
        pytest.param("le{b1}", ["b1", "a1"], id="until"),
        pytest.param("lt{b1}", ["a1"], id="before"),
        pytest.param("{day}", ["c1", "b2", "a2", "b1", "a1"], id="a-whole-day"),
        pytest.param("{year}", ["c1", "b2", "a2", "b1", "a1"], id="a-whole-year"),
        pytest.param("2001", [], id="long-before"),
        pytest.param("9998-01-01", ["c1", "b2", "a2"], id="long-after-what-is-current-now"),
    ],
)
async def test_at(
    story: tuple[httpx.AsyncClient, dict[str, str]], asked: str, expected: list[str]
) -> None:
    client, times = story
    day = times["a1"][:10]
    bundle = await history(client, _at=asked.format(**times, day=day, year=day[:4]))
    assert steps(bundle.get("entry", [])) == expected
    assert "total" not in bundle
    of_one = await history(client, "/Person/a", _at=asked.format(**times, day=day, year=day[:4]))
    assert steps(of_one.get("entry", [])) == [step for step in expected if step[0] == "a"]


async def test_at_has_pages(story: tuple[httpx.AsyncClient, dict[str, str]]) -> None:
    client, times = story
    first = await history(client, _at=f"ge{times['b2']}", _count=2)
    assert steps(first["entry"]) == ["c1", "b2"]
    following = next(x["url"] for x in first["link"] if x["relation"] == "next")
    second = (await client.get(following)).json()
    assert steps(second["entry"]) == ["a2"]
    assert [x["relation"] for x in second["link"]] == ["self"]


async def test_at_and_since_together_must_both_hold(
    story: tuple[httpx.AsyncClient, dict[str, str]],
) -> None:
    client, times = story
    bundle = await history(client, _at=f"ge{times['b2']}", _since=times["b2"])
    assert steps(bundle["entry"]) == ["c1", "b2"]


@pytest.mark.parametrize(
    "query",
    [
        pytest.param({"_at": "monday"}, id="no-date"),
        pytest.param({"_at": "2024-13"}, id="no-month"),
        pytest.param({"_at": "ne2024"}, id="prefix-without-a-period"),
        pytest.param({"_at": "gt9999"}, id="after-the-end-of-time"),
        pytest.param({"_since": "2024-01-01"}, id="since-needs-an-instant"),
        pytest.param({"_since": "0001-01-01T00:00:00+14:00"}, id="before-the-calendar"),
        pytest.param({"_since": "9999-12-31T23:59:59-14:00"}, id="after-the-calendar"),
        pytest.param({"_count": "many"}, id="count"),
    ],
)
async def test_times_that_cannot_be_read_are_refused(
    client: httpx.AsyncClient, query: dict[str, str]
) -> None:
    assert_outcome(await client.get("/Person/_history", params=query), 400, "value")


async def test_count_is_bounded_and_zero_only_counts(
    story: tuple[httpx.AsyncClient, dict[str, str]],
) -> None:
    client, _ = story
    for query in ({"_count": "0"}, {"_summary": "count"}):
        bundle = await history(client, **query)
        assert (bundle["total"], "entry" in bundle) == (5, False)
    assert len((await history(client, _count="9" * 30))["entry"]) == 5


async def test_a_history_can_be_cut_down_and_be_xml(
    story: tuple[httpx.AsyncClient, dict[str, str]],
) -> None:
    client, _ = story
    bundle = await history(client, _elements="name", _count=1)
    assert bundle["entry"][0]["resource"]["meta"]["tag"][0]["code"] == "SUBSETTED"
    assert "_elements=name" in next(x["url"] for x in bundle["link"] if x["relation"] == "next")
    response = await client.get("/Person/_history", headers={"accept": "application/fhir+xml"})
    assert xml.decode(response.content) == json.loads(
        (await client.get("/Person/_history")).content
    )


async def test_of_a_transaction_all_versions_are_in_the_history(client: httpx.AsyncClient) -> None:
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [
            {
                "resource": {"resourceType": "Person"},
                "request": {"method": "POST", "url": "Person"},
            }
        ]
        * 3,
    }
    answer = (await client.post("", json=bundle)).json()
    for entry in answer["entry"]:
        path = f"/Person/{entry['resource']['id']}"
        (found,) = (await history(client, path))["entry"]
        assert found["resource"] == entry["resource"]
        assert (found["request"]["method"], found["request"]["url"]) == ("POST", "Person")
