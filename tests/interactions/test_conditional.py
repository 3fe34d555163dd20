"""Conditional create, update, patch and delete. https://hl7.org/fhir/R4/http.html#ccreate and following"""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

import httpx
import pytest

from tests.conftest import make_settings, running
from tests.outcomes import assert_outcome

JSON_PATCH = {"content-type": "application/json-patch+json"}
DEACTIVATE = '[{"op": "replace", "path": "/active", "value": false}]'


def fresh() -> str:
    return f"t-{uuid.uuid4()}"


def patient(value: str, **changes: Any) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "active": True,
        "identifier": [{"system": "urn:test", "value": value}],
        **changes,
    }


def criteria(value: str) -> str:
    return f"identifier=urn:test|{value}"


async def found(client: httpx.AsyncClient, value: str) -> list[dict[str, Any]]:
    bundle = (await client.get(f"/Patient?{criteria(value)}")).json()
    return [entry["resource"] for entry in bundle.get("entry", [])]


async def test_conditional_create_creates_once(client: httpx.AsyncClient) -> None:
    value = fresh()
    headers = {"if-none-exist": criteria(value)}
    first = await client.post("/Patient", json=patient(value), headers=headers)
    assert first.status_code == 201
    again = await client.post("/Patient", json=patient(value, active=False), headers=headers)
    assert (again.status_code, again.headers["location"]) == (200, first.headers["location"])
    assert again.json() == first.json()
    await client.post("/Patient", json=patient(value))
    ambiguous = await client.post("/Patient", json=patient(value), headers=headers)
    assert_outcome(ambiguous, 412, "multiple-matches")
    assert len(await found(client, value)) == 2


@pytest.mark.parametrize("before", ["?", "Patient?", "/Patient?", "BASE/Patient?"])
async def test_if_none_exist_may_name_the_type_and_this_server(
    client: httpx.AsyncClient, before: str
) -> None:
    """As HAPI's client and HL7's own examples write it, in the header and in a Bundle."""
    value = fresh()
    before = before.replace("BASE", str(client.base_url).rstrip("/"))
    request = {"method": "POST", "url": "Patient", "ifNoneExist": before + criteria(value)}
    entry = {"resource": patient(value), "request": request}
    created = await client.post(
        "/Patient", json=patient(value), headers={"if-none-exist": before + criteria(value)}
    )
    assert created.status_code == 201
    for type_ in ("transaction", "batch"):
        bundle = {"resourceType": "Bundle", "type": type_, "entry": [entry]}
        (answer,) = (await client.post("", json=bundle)).json()["entry"]
        assert answer["response"]["status"] == "200"
        assert answer["response"]["location"] == created.headers["location"]
    assert len(await found(client, value)) == 1


@pytest.mark.parametrize(
    "before",
    ["Encounter?", "http://elsewhere.example/fhir/Patient?", "BASE/Encounter?", "BASEx/Patient?"],
)
async def test_if_none_exist_of_another_server_or_type_is_refused(
    client: httpx.AsyncClient, before: str
) -> None:
    value = fresh()
    before = before.replace("BASE", str(client.base_url).rstrip("/"))
    refused = await client.post(
        "/Patient", json=patient(value), headers={"if-none-exist": before + criteria(value)}
    )
    assert_outcome(refused, 400, "invalid", "http.If-None-Exist")
    assert await found(client, value) == []


async def test_a_question_mark_in_a_value_is_no_address(client: httpx.AsyncClient) -> None:
    value = f"urn:x?{fresh()}"
    headers = {"if-none-exist": f"identifier={value}"}
    assert (await client.post("/Patient", json=patient(value), headers=headers)).status_code == 201
    assert (await client.post("/Patient", json=patient(value), headers=headers)).status_code == 200


async def test_conditional_update_creates_updates_or_refuses(client: httpx.AsyncClient) -> None:
    value = fresh()
    url = f"/Patient?{criteria(value)}"
    created = await client.put(url, json=patient(value))
    assert created.status_code == 201
    id_ = created.json()["id"]
    updated = await client.put(url, json=patient(value, active=False))
    assert (updated.status_code, updated.json()["id"], updated.headers["etag"]) == (
        200,
        id_,
        'W/"2"',
    )
    same = await client.put(url, json=patient(value, id=id_, gender="other"))
    assert same.status_code == 200
    other = await client.put(url, json=patient(value, id="other"))
    assert_outcome(other, 400, "invalid", "Patient.id")
    stale = await client.put(url, json=patient(value), headers={"if-match": 'W/"1"'})
    assert_outcome(stale, 412, "conflict")
    await client.post("/Patient", json=patient(value))
    assert_outcome(await client.put(url, json=patient(value)), 412, "multiple-matches")


async def test_conditional_update_without_a_match_takes_the_bodys_id(
    client: httpx.AsyncClient,
) -> None:
    value, id_ = fresh(), fresh()
    created = await client.put(f"/Patient?{criteria(value)}", json=patient(value, id=id_))
    assert (created.status_code, created.json()["id"]) == (201, id_)
    taken = await client.put(f"/Patient?{criteria(fresh())}", json=patient(value, id=id_))
    assert_outcome(taken, 412, "conflict", "Patient.id")


async def twenty_at_once(client: httpx.AsyncClient, method: str, value: str) -> list[int]:
    """The statuses of twenty conditional writes with the same criteria, in order."""
    if method == "create":
        headers = {"if-none-exist": criteria(value)}
        requests = [
            client.post("/Patient", json=patient(value), headers=headers) for _ in range(20)
        ]
    else:
        requests = [
            client.put(f"/Patient?{criteria(value)}", json=patient(value, language=f"x-{n}"))
            for n in range(20)
        ]
    return sorted(answer.status_code for answer in await asyncio.gather(*requests))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["create", "update"])
async def test_twenty_at_once_with_the_same_criteria_leave_one_resource(
    client: httpx.AsyncClient, method: str
) -> None:
    for _ in range(3):
        value = fresh()
        assert await twenty_at_once(client, method, value) == [200] * 19 + [201]
        assert len(await found(client, value)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["create", "update"])
async def test_criteria_that_served_before_leave_one_resource_again(
    client: httpx.AsyncClient, method: str
) -> None:
    """What they once created is deleted: twenty at once find nothing, and still only one of them creates."""
    value = fresh()
    for _ in range(3):
        assert await twenty_at_once(client, method, value) == [200] * 19 + [201]
        (only,) = await found(client, value)
        assert (await client.delete(f"/Patient/{only['id']}")).status_code == 204


async def test_conditional_patch(client: httpx.AsyncClient) -> None:
    value = fresh()
    url = f"/Patient?{criteria(value)}"
    none = await client.patch(url, content=DEACTIVATE, headers=JSON_PATCH)
    assert_outcome(none, 404, "not-found")
    await client.post("/Patient", json=patient(value))
    patched = await client.patch(url, content=DEACTIVATE, headers=JSON_PATCH)
    assert (patched.status_code, patched.json()["active"]) == (200, False)
    await client.post("/Patient", json=patient(value))
    several = await client.patch(url, content=DEACTIVATE, headers=JSON_PATCH)
    assert_outcome(several, 412, "multiple-matches")


async def test_conditional_delete_of_one(client: httpx.AsyncClient) -> None:
    value = fresh()
    url = f"/Patient?{criteria(value)}"
    assert (await client.delete(url)).status_code == 204
    await client.post("/Patient", json=patient(value))
    assert (await client.delete(url)).status_code == 204
    assert await found(client, value) == []
    await client.post("/Patient", json=patient(value))
    await client.post("/Patient", json=patient(value))
    assert_outcome(await client.delete(url), 412, "multiple-matches")
    assert len(await found(client, value)) == 2


@pytest.mark.slow
async def test_conditional_delete_of_several_behind_the_setting(mongod: str) -> None:
    settings = make_settings(mongod, conditional_delete="multiple")
    async with running(settings) as (_, client):
        value = fresh()
        for _ in range(5):
            await client.post("/Patient", json=patient(value))
        assert (await client.delete(f"/Patient?{criteria(value)}")).status_code == 204
        assert await found(client, value) == []
        metadata = (await client.get("/metadata")).json()
        declared = {r["conditionalDelete"] for r in metadata["rest"][0]["resource"]}
        assert declared == {"multiple"}


@pytest.mark.parametrize(
    ("query", "code"),
    [
        pytest.param("", "required", id="no-criteria"),
        pytest.param("bogus=1", "not-supported", id="unknown-parameter"),
        pytest.param("birthdate=someday", "value", id="malformed-value"),
    ],
)
async def test_criteria_that_are_not_understood_are_refused_even_when_lenient(
    client: httpx.AsyncClient, query: str, code: str
) -> None:
    lenient = {"prefer": "handling=lenient"}
    assert_outcome(await client.delete(f"/Patient?{query}", headers=lenient), 400, code)
    update = await client.put(f"/Patient?{query}", json=patient("x"), headers=lenient)
    assert_outcome(update, 400, code)
