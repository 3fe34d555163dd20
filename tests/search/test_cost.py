"""What one search may ask for: beyond its budget it is refused, by every way in, before anything is read."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.builders.subscriptions import classic, topic_based
from tests.conftest import Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


def many(count: int, between: str, each: str) -> str:
    return between.join(each.format(number) for number in range(count))


TOO_MUCH = [
    pytest.param("identifier:not=" + many(20_000, ",", "x{}"), id="values"),
    pytest.param(many(20_000, "&", "identifier:not=x{}"), id="parameters"),
    pytest.param("_filter=" + many(20_000, " or ", "identifier eq x{}"), id="filter-tests"),
    pytest.param("_filter=" + many(60, " and ", "identifier ne x{}"), id="filter-patterns"),
    pytest.param("_filter=" + many(99, " and ", "not (gender eq x{})"), id="filter-negations"),
    pytest.param("_content=" + many(100_000, " ", "wo{}"), id="words"),
    pytest.param("_text=" + many(100_000, ",", "wo{}"), id="words-as-values"),
    pytest.param("family=" + many(1_000, ",", "x{}"), id="beginnings"),
    pytest.param("family:contains=" + many(100, ",", "x{}"), id="patterns"),
    pytest.param("_list=" + many(100, ",", "x{}"), id="lists"),
    pytest.param("language:in=" + many(100, ",", "http://x.example/{}"), id="value-sets"),
    pytest.param(many(200, "&", "general-practitioner.name=x{}"), id="chains"),
    pytest.param(
        "_has:Observation:patient:" + many(200, "&_has:Observation:patient:", "code=x{}"), id="has"
    ),
    pytest.param("_elements=" + many(5_000, ",", "x{}"), id="elements"),
    pytest.param("_sort=" + many(9, ",", "birthdate"), id="sort-keys"),
    pytest.param(
        "_revinclude=*&_include=*&_include:iterate=*&_revinclude:iterate=*&_include=Patient:*",
        id="inclusions",
    ),
]


@pytest.mark.parametrize("asked", TOO_MUCH)
async def test_what_asks_for_too_much_is_refused(client: httpx.AsyncClient, asked: str) -> None:
    answer = await client.post("/Patient/_search", content=asked, headers=FORM)
    assert_outcome(answer, 422, "too-costly")


async def test_as_much_as_the_budget_is_answered(client: httpx.AsyncClient) -> None:
    asked = "_id=" + many(1_900, ",", "x{}")
    answer = await client.post("/Patient/_search", content=asked, headers=FORM)
    assert (answer.status_code, answer.json().get("entry")) == (200, None)


def dry_run(subscription: dict[str, Any]) -> dict[str, Any]:
    parameter = {"name": "subscription", "resource": subscription}
    return {"resourceType": "Parameters", "parameter": [parameter]}


@pytest.mark.processes
async def test_every_way_in_has_the_budget(client: httpx.AsyncClient) -> None:
    asked = "identifier:not=" + many(300, "&identifier:not=", "x{}")
    patient = {"resourceType": "Patient"}
    for answer in (
        await client.post("/Patient", json=patient, headers={"If-None-Exist": asked}),
        await client.put(f"/Patient?{asked}", json=patient),
        await client.delete(f"/Patient?{asked}"),
        await client.post("/_search", content=asked.replace("identifier", "_tag"), headers=FORM),
        await client.get("/Patient/p/*?" + asked.replace("identifier", "_tag")),
        await client.get(
            "/$export?" + many(60, "&", "_typeFilter=Patient?_id=x{}"),
            headers={"Prefer": "respond-async"},
        ),
        await client.post(
            "/Subscription/$dry-run", json=dry_run(classic("Patient?_id=" + "x," * 200_000))
        ),
    ):
        assert_outcome(answer, 422, "too-costly")
    entry = {"request": {"method": "GET", "url": f"Patient?{asked}"}}
    batch = {"resourceType": "Bundle", "type": "batch", "entry": [entry]}
    answer = await client.post("", json=batch)
    assert answer.json()["entry"][0]["response"]["status"].startswith("422")


async def test_every_type_can_be_searched_for_a_few_things(client: httpx.AsyncClient) -> None:
    answer = await client.get("/", params={"_tag": "a,b,c", "_security:not": "x", "_count": 1})
    assert answer.status_code == 200


async def test_an_operator_allows_more(mongod: str) -> None:
    asked = "identifier=" + many(3_000, ",", "x{}")
    async with running(make_settings(mongod, max_search_cost=4_000)) as (_, client):
        answer = await client.post("/Patient/_search", content=asked, headers=FORM)
        assert answer.status_code == 200


def valued(count: int) -> dict[str, Any]:
    codes = [{"code": f"c{number}"} for number in range(count)]
    include = [{"system": "http://codes.example/many", "concept": codes}]
    url = "http://sets.example/many"
    return {
        "resourceType": "ValueSet",
        "status": "active",
        "url": url,
        "compose": {"include": include},
    }


async def test_a_large_value_set_is_worked_out_once_and_not_for_each_repetition(
    server: Server, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (await client.post("/ValueSet", json=valued(12_000))).status_code == 201
    read: list[str] = []
    search = type(server.store).search

    async def counted(self: Any, resource_type: str, *rest: Any, **more: Any) -> Any:
        read.append(resource_type)
        return await search(self, resource_type, *rest, **more)

    monkeypatch.setattr(type(server.store), "search", counted)
    criteria = "Condition?code:in=" + many(19, ",", "http://sets.example/many")
    answer = await client.post("/Subscription", json=classic(criteria))
    assert_outcome(answer, 422, "not-supported", "Subscription.criteria")
    assert read.count("ValueSet") == 1


@pytest.mark.processes
@pytest.mark.parametrize(
    "subscription",
    [
        pytest.param(classic("Patient?_id=" + "x," * 200_000 + "x"), id="text"),
        pytest.param(topic_based(*["patient=Patient/" + "x" * 1_000] * 500), id="filters"),
        pytest.param(
            classic("Patient?identifier=" + many(5_000, ",", "x{}")),
            id="values",
        ),
    ],
)
async def test_criteria_that_ask_for_too_much_are_refused(
    client: httpx.AsyncClient, subscription: dict[str, Any]
) -> None:
    answer = await client.post("/Subscription", json=subscription)
    assert_outcome(answer, 422, "too-costly", "Subscription.criteria")
