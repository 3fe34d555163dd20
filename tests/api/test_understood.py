"""What a door does not understand of a request is refused by name, or left out where it narrows nothing and said so.

https://hl7.org/fhir/R4/http.html and https://hl7.org/fhir/R4/search.html#errors
"""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest

from tests.builders.pages import link
from tests.conftest import JSON, make_settings, running
from tests.outcomes import assert_outcome

FORM = {"content-type": "application/x-www-form-urlencoded"}
MERGE = {"content-type": "application/json-patch+json"}


def fresh() -> str:
    return f"t-{uuid.uuid4()}"


def parameters(*given: dict[str, Any]) -> dict[str, Any]:
    return {"resourceType": "Parameters", "parameter": list(given)}


def tagged() -> dict[str, Any]:
    return parameters({"name": "meta", "valueMeta": {"tag": [{"system": "urn:t", "code": "t"}]}})


async def new(client: httpx.AsyncClient, **elements: Any) -> str:
    """The address of a new Patient."""
    id_ = fresh()
    made = await client.put(
        f"/Patient/{id_}", json={"resourceType": "Patient", "id": id_, **elements}
    )
    assert made.status_code == 201, made.text
    return f"/Patient/{id_}"


def warned(bundle: dict[str, Any]) -> list[str]:
    """Which parameters the outcome entry of a searchset names."""
    return [
        path.removeprefix("http.")
        for entry in bundle.get("entry", ())
        if entry["search"]["mode"] == "outcome"
        for issue in entry["resource"]["issue"]
        if issue["severity"] == "warning"
        for path in issue["expression"]
    ]


# Parameters that narrow nothing


@pytest.mark.parametrize(
    ("place", "query", "name"),
    [
        pytest.param("/Patient", "_count=0&_totalMethod=count", "_totalMethod", id="fhirpy-count"),
        pytest.param("/Patient", "_=1764530000000&_count=1", "_", id="jquery"),
        pytest.param("", "_type=Patient&_t=1&_count=1", "_t", id="system"),
        pytest.param("{}/Encounter", "_dc=1", "_dc", id="compartment"),
        pytest.param("{}/*", "_dc=1", "_dc", id="whole-compartment"),
        pytest.param("/Medication", "_contained=true&_t=1", "_t", id="contained"),
        pytest.param("{}/$everything", "_dc=1", "_dc", id="everything"),
    ],
)
async def test_what_narrows_nothing_is_left_out_with_a_warning(
    client: httpx.AsyncClient, place: str, query: str, name: str
) -> None:
    answer = await client.get(f"{place.format(await new(client))}?{query}")
    assert answer.status_code == 200, answer.text
    assert warned(answer.json()) == [name]
    links = [link["url"] for link in answer.json()["link"]]
    assert not any(f"{name}=" in url for url in links)


@pytest.mark.parametrize("place", ["/Patient", "/Patient/_history"])
async def test_it_may_stand_beside_the_link_to_a_page(
    client: httpx.AsyncClient, place: str
) -> None:
    """Whatever the link has in it, clients add theirs to every address."""
    for _ in range(3):
        await new(client)
    first = (await client.get(f"{place}?_count=1&_dc=1")).json()
    answer = await client.get(f"{link(first, 'next')}&_dc=2")
    assert answer.status_code == 200, answer.text
    second = answer.json()
    assert second["entry"][0]["fullUrl"] != first["entry"][0]["fullUrl"]
    assert not any("_dc=" in each["url"] for each in second["link"])
    assert (await client.get(link(second, "next") or "")).status_code == 200


async def test_a_search_by_post_and_one_of_a_batch_leave_it_out_too(
    client: httpx.AsyncClient,
) -> None:
    posted = await client.post("/Patient/_search?_t=1", content="_dc=1&_count=1", headers=FORM)
    assert sorted(warned(posted.json())) == ["_dc", "_t"]
    entry = {"request": {"method": "GET", "url": "Patient?_totalMethod=count&_count=0"}}
    batch = {"resourceType": "Bundle", "type": "batch", "entry": [entry]}
    (answered,) = (await client.post("", json=batch)).json()["entry"]
    assert warned(answered["resource"]) == ["_totalMethod"]


@pytest.mark.parametrize(
    "place",
    ["", "/_history", "/_history/1", "/$meta", "/$pcp"],
    ids=["read", "history", "vread", "meta", "pcp"],
)
async def test_reads_that_have_no_place_for_a_warning_leave_it_out(
    client: httpx.AsyncClient, place: str
) -> None:
    url = await new(client) + place
    assert (await client.get(f"{url}?_dc=1")).json() == (await client.get(url)).json()


@pytest.mark.parametrize(
    ("method", "url"),
    [
        pytest.param("POST", "/Patient?_dc=1", id="create"),
        pytest.param("PUT", "/Patient?active=true&_dc=1", id="conditional-update"),
        pytest.param("DELETE", "/Patient?identifier=none&_t=1", id="conditional-delete"),
        pytest.param("POST", "?_=1", id="transaction"),
    ],
)
async def test_writes_leave_nothing_out(client: httpx.AsyncClient, method: str, url: str) -> None:
    body: dict[str, Any] = {"resourceType": "Patient"}
    if url.startswith("?"):
        body = {"resourceType": "Bundle", "type": "batch"}
    lenient = {"prefer": "handling=lenient"}
    answer = await client.request(method, url, json=body, headers=lenient)
    assert_outcome(answer, 400, "not-supported")


async def test_an_operator_adds_names_that_have_no_meaning_and_no_others(mongod: str) -> None:
    settings = make_settings(mongod, ignored_parameters="apikey, active,_filter")
    async with running(settings) as (_, client):
        await new(client, active=True)
        found = (await client.get("/Patient?apikey=x&active=false")).json()
        assert (found["total"], warned(found)) == (0, ["apikey"])
        filtered = (await client.get("/Patient?_filter=active eq false")).json()
        assert filtered["total"] == 0
        unknown = await client.get("/Patient?active=true&banana=1")
        assert_outcome(unknown, 400, "not-supported", "http.banana")


# Queries


@pytest.mark.parametrize(
    ("method", "place", "query", "named"),
    [
        pytest.param("GET", "{}", "identifier=1", "http.identifier", id="read"),
        pytest.param("GET", "{}/_history/1", "_since=2026", "http._since", id="vread"),
        pytest.param("GET", "/metadata", "banana=1", "http.banana", id="metadata"),
        pytest.param("GET", "/metadata", "mode=banana", "http.mode", id="mode"),
        pytest.param("PUT", "{}", "_cascade=delete", "http._cascade", id="update"),
        pytest.param("DELETE", "{}", "_cascade=delete", "http._cascade", id="delete"),
        pytest.param("PATCH", "{}", "active=true", "http.active", id="patch"),
        pytest.param("POST", "", "x=1", "http.x", id="batch"),
        pytest.param("GET", "{}/$everything", "banana=1", "banana", id="operation"),
        pytest.param("POST", "{}/$everything", "_count=1", "_count", id="beside-parameters"),
        pytest.param("GET", "{}/$pcp", "_cursor=x", "_cursor", id="operation-without-pages"),
    ],
)
async def test_a_query_that_is_not_understood_is_refused_by_name(
    client: httpx.AsyncClient, method: str, place: str, query: str, named: str
) -> None:
    url = await new(client)
    bodies: dict[str, Any] = {
        "PUT": {"resourceType": "Patient", "id": url.rpartition("/")[2], "active": True},
        "PATCH": [{"op": "add", "path": "/active", "value": True}],
        "POST": {"resourceType": "Parameters"},
    }
    body = bodies.get(method) if place else {"resourceType": "Bundle", "type": "batch"}
    headers = MERGE if method == "PATCH" else {}
    sent = await client.request(
        method, f"{place.format(url)}?{query}", json=body, headers=headers or None
    )
    assert_outcome(sent, 400, "not-supported", named)
    assert (await client.get(url)).headers["etag"] == 'W/"1"'


async def test_a_create_with_criteria_is_told_of_if_none_exist(client: httpx.AsyncClient) -> None:
    value = fresh()
    body = {"resourceType": "Patient", "identifier": [{"system": "urn:t", "value": value}]}
    query = f"identifier=urn:t|{value}"
    alone = await client.post(f"/Patient?{query}", json=body)
    outcome = assert_outcome(alone, 400, "not-supported", "http.identifier")
    assert "If-None-Exist" in outcome["issue"][0]["diagnostics"]
    entry = {"resource": body, "request": {"method": "POST", "url": f"Patient?{query}"}}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    told = assert_outcome(
        await client.post("", json=bundle), 400, "invalid", "Bundle.entry[0].request.url"
    )
    assert "If-None-Exist" in told["issue"][0]["diagnostics"]
    assert (await client.get(f"/Patient?{query}")).json()["total"] == 0


async def test_lenient_reads_leave_out_what_they_do_not_know(client: httpx.AsyncClient) -> None:
    url = await new(client)
    lenient = await client.get(f"{url}?banana=1", headers={"prefer": "handling=lenient"})
    assert lenient.status_code == 200
    assert lenient.headers["preference-applied"] == "handling=lenient"


@pytest.mark.parametrize(
    "criteria",
    [
        pytest.param("_format=json", id="format"),
        pytest.param("_count=1", id="count"),
        pytest.param("identifier=none&_sort=_id", id="sort"),
        pytest.param("_include=Patient:link", id="include"),
        pytest.param("identifier=none&_total=none", id="total"),
    ],
)
async def test_what_selects_nothing_is_no_criterion(
    client: httpx.AsyncClient, criteria: str
) -> None:
    """A conditional delete of `_count=1` would take whatever is there, and so would the others."""
    await new(client)
    deleted = await client.delete(f"/Patient?{criteria}")
    assert deleted.status_code == 400, deleted.text
    body = {"resourceType": "Patient"}
    created = await client.post("/Patient", json=body, headers={"if-none-exist": criteria})
    assert_outcome(created, 400, "not-supported")


async def test_the_shape_of_the_answer_is_no_criterion_either(client: httpx.AsyncClient) -> None:
    value = fresh()
    body = {"resourceType": "Patient", "identifier": [{"system": "urn:t", "value": value}]}
    for status in (201, 200):
        url = f"/Patient?identifier=urn:t|{value}&_format=xml&_pretty=false"
        made = await client.put(url, json=body)
        assert (made.status_code, made.headers["content-type"][:20]) == (
            status,
            "application/fhir+xml",
        )


async def test_a_history_takes_each_parameter_once(client: httpx.AsyncClient) -> None:
    url = await new(client)
    twice = await client.get(f"{url}/_history?_count=1&_count=2")
    assert_outcome(twice, 400, "invalid", "http._count")


# Headers


@pytest.mark.parametrize(
    ("method", "place", "header"),
    [
        pytest.param("GET", "/Patient", "If-Match", id="search"),
        pytest.param("GET", "{}/_history", "If-Match", id="history"),
        pytest.param("PUT", "{}", "If-None-Exist", id="update"),
        pytest.param("POST", "{}/$meta-add", "If-Match", id="operation"),
        pytest.param("POST", "{}/$meta-add", "If-None-Match", id="operation-none-match"),
        pytest.param("POST", "", "If-Match", id="batch"),
        pytest.param("PUT", "{}", "X-Provenance", id="provenance"),
    ],
)
async def test_a_condition_that_a_door_does_not_know_is_refused(
    client: httpx.AsyncClient, method: str, place: str, header: str
) -> None:
    url = await new(client)
    where = place.format(url)
    bodies = {"": {"resourceType": "Bundle", "type": "batch"}, url: (await client.get(url)).json()}
    body = None if method == "GET" else bodies.get(where, tagged())
    answer = await client.request(method, where, json=body, headers={header: 'W/"7"'})
    assert_outcome(answer, 400, "not-supported", f"http.{header}")
    assert (await client.get(url)).headers["etag"] == 'W/"1"'


async def test_a_body_of_another_character_set_is_refused(client: httpx.AsyncClient) -> None:
    latin = {"content-type": "application/fhir+json; charset=iso-8859-1"}
    body = '{"resourceType":"Patient","name":[{"family":"Müller"}]}'.encode("latin-1")
    assert_outcome(await client.post("/Patient", content=body, headers=latin), 415, "not-supported")


@pytest.mark.parametrize(
    ("sent", "applied"),
    [
        pytest.param(["return=minimal", "handling=lenient"], "return=minimal", id="two-lines"),
        pytest.param(["return=minimal, return=representation"], "return=minimal", id="first"),
        pytest.param(["return=banana, wait=10"], None, id="unknown"),
    ],
)
async def test_the_answer_says_which_preferences_it_follows(
    client: httpx.AsyncClient, sent: list[str], applied: str | None
) -> None:
    headers = [*(("prefer", each) for each in sent), *JSON.items()]
    body = '{"resourceType":"Patient"}'
    made = await client.post("/Patient", content=body, headers=headers)
    assert made.status_code == 201
    assert made.headers.get("preference-applied") == applied
    assert (made.content == b"") == (applied is not None)
