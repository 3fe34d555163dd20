"""Create, read, vread, update, delete and history, through HTTP. https://hl7.org/fhir/R4/http.html"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

import httpx
import pytest

from tests.outcomes import assert_outcome


def encounter(**changes: Any) -> dict[str, Any]:
    """A small valid Encounter."""
    return {
        "resourceType": "Encounter",
        "status": "in-progress",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
        "subject": {"reference": "Patient/p1"},
        **changes,
    }


def fresh_id() -> str:
    return f"t-{uuid.uuid4()}"


async def test_create_answers_201_with_location_etag_and_the_stored_resource(
    client: httpx.AsyncClient,
) -> None:
    response = await client.post("/Encounter", json=encounter(id="ignored"))
    assert response.status_code == 201
    body = response.json()
    assert body["id"] != "ignored"
    assert body["meta"]["versionId"] == "1"
    assert response.headers["etag"] == 'W/"1"'
    base = str(client.base_url).rstrip("/")
    assert response.headers["location"] == f"{base}/Encounter/{body['id']}/_history/1"
    assert response.headers["last-modified"].endswith("GMT")
    read = await client.get(f"/Encounter/{body['id']}")
    assert read.status_code == 200
    assert read.json() == body


async def test_every_write_tells_which_version_it_answers_with(client: httpx.AsyncClient) -> None:
    """HAPI's client knows from Content-Location alone what it has updated. Location is for what was created."""
    place = f"/Encounter/{fresh_id()}"
    address = f"{str(client.base_url).rstrip('/')}{place}/_history/"
    body = encounter(id=place.rpartition("/")[2])
    patch = [{"op": "replace", "path": "/status", "value": "finished"}]
    as_patch = {"content-type": "application/json-patch+json"}
    minimal = {"prefer": "return=minimal"}
    for version, created, answer in (
        (1, True, await client.put(place, json=body)),
        (1, False, await client.put(place, json=body)),
        (2, False, await client.put(place, json=body | {"status": "onleave"}, headers=minimal)),
        (3, False, await client.patch(place, content=json.dumps(patch), headers=as_patch)),
    ):
        assert answer.headers["content-location"] == f"{address}{version}"
        assert answer.headers.get("location") == (f"{address}{version}" if created else None)
    bundle = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [{"resource": body, "request": {"method": "PUT", "url": place[1:]}}],
    }
    for type_ in ("transaction", "batch"):
        (entry,) = (await client.post("", json=bundle | {"type": type_})).json()["entry"]
        assert (entry["response"]["status"], entry["response"]["location"]) == (
            "200",
            f"{address}4",
        )
    (read,) = (
        await client.post(
            "",
            json=bundle | {"entry": [{"request": {"method": "GET", "url": place[1:]}}]},
        )
    ).json()["entry"]
    assert "location" not in read["response"]
    for answer in (await client.get(place), await client.delete(place)):
        assert not {"location", "content-location"} & answer.headers.keys()


@pytest.mark.parametrize("slash", ["", "/"])
async def test_a_trailing_slash_makes_no_difference(client: httpx.AsyncClient, slash: str) -> None:
    created = await client.post(f"/Encounter{slash}", json=encounter())
    assert created.status_code == 201
    read = await client.get(f"/Encounter/{created.json()['id']}{slash}")
    assert read.status_code == 200


async def test_decimals_and_unusual_text_come_back_as_sent(client: httpx.AsyncClient) -> None:
    text = (
        '{"resourceType":"Observation","status":"final","code":{"text":"\\u00e9 \\ud83d\\ude00"},'
        '"valueQuantity":{"value":1.50,"unit":"mg"}}'
    )
    created = await client.post(
        "/Observation", content=text, headers={"content-type": "application/fhir+json"}
    )
    assert created.status_code == 201
    read = await client.get(f"/Observation/{created.json()['id']}")
    assert '"value":1.50' in read.text
    assert read.json()["code"]["text"] == "é 😀"


async def test_update_of_a_free_id_creates_it_and_the_next_one_is_version_2(
    client: httpx.AsyncClient,
) -> None:
    url = f"/Encounter/{(id_ := fresh_id())}"
    first = await client.put(url, json=encounter(id=id_))
    assert (first.status_code, first.headers["etag"]) == (201, 'W/"1"')
    second = await client.put(url, json=encounter(id=id_, status="finished"))
    assert (second.status_code, second.headers["etag"]) == (200, 'W/"2"')
    assert (await client.get(f"{url}/_history/1")).json()["status"] == "in-progress"
    assert (await client.get(f"{url}/_history/2")).json()["status"] == "finished"
    assert_outcome(await client.get(f"{url}/_history/3"), 404, "not-found")
    assert_outcome(await client.get(f"{url}/_history/x"), 404, "not-found")


@pytest.mark.parametrize("body_id", [None, "other"])
async def test_update_needs_the_urls_id_in_the_body(
    client: httpx.AsyncClient, body_id: str | None
) -> None:
    url = f"/Encounter/{fresh_id()}"
    body = encounter(id=body_id) if body_id else encounter()
    assert_outcome(await client.put(url, json=body), 400, "invalid", "Encounter.id")
    assert_outcome(await client.get(url), 404, "not-found")


async def test_update_with_a_stale_if_match_returns_412_and_changes_nothing(
    client: httpx.AsyncClient,
) -> None:
    url = f"/Encounter/{(id_ := fresh_id())}"
    await client.put(url, json=encounter(id=id_))
    await client.put(url, json=encounter(id=id_, status="onleave"))
    stale = await client.put(
        url, json=encounter(id=id_, status="finished"), headers={"if-match": 'W/"1"'}
    )
    assert_outcome(stale, 412, "conflict")
    assert (await client.get(url)).json()["status"] == "onleave"


async def test_of_two_concurrent_updates_with_the_same_if_match_one_wins(
    client: httpx.AsyncClient,
) -> None:
    for _ in range(10):
        url = f"/Encounter/{(id_ := fresh_id())}"
        await client.put(url, json=encounter(id=id_))
        answers = await asyncio.gather(
            *(
                client.put(url, json=encounter(id=id_, status=s), headers={"if-match": 'W/"1"'})
                for s in ("finished", "onleave")
            )
        )
        assert sorted(answer.status_code for answer in answers) == [200, 412]
        winner = next(answer for answer in answers if answer.status_code == 200)
        assert (await client.get(url)).json() == winner.json()


@pytest.mark.slow
async def test_concurrent_updates_without_if_match_all_succeed_one_after_the_other(
    client: httpx.AsyncClient,
) -> None:
    url = f"/Encounter/{(id_ := fresh_id())}"
    answers = await asyncio.gather(
        *(client.put(url, json=encounter(id=id_, priority={"text": str(n)})) for n in range(20))
    )
    assert sorted(answer.status_code for answer in answers) == [200] * 19 + [201]
    versions = {int(answer.json()["meta"]["versionId"]) for answer in answers}
    assert versions == set(range(1, 21))


async def test_delete_is_idempotent_and_a_later_update_revives(client: httpx.AsyncClient) -> None:
    url = f"/Encounter/{(id_ := fresh_id())}"
    assert (await client.delete(url)).status_code == 204
    await client.put(url, json=encounter(id=id_))
    assert (await client.delete(url)).status_code == 204
    assert (await client.delete(url)).status_code == 204
    assert_outcome(await client.get(url), 410, "deleted")
    assert_outcome(await client.get(f"{url}/_history/2"), 410, "deleted")
    revived = await client.put(url, json=encounter(id=id_))
    assert (revived.status_code, revived.headers["etag"]) == (201, 'W/"3"')
    assert (await client.get(url)).status_code == 200


async def test_history_lists_every_version_newest_first_with_request_and_response(
    client: httpx.AsyncClient,
) -> None:
    url = f"/Encounter/{(id_ := fresh_id())}"
    await client.put(url, json=encounter(id=id_))
    await client.put(url, json=encounter(id=id_, status="finished"))
    await client.delete(url)
    bundle = (await client.get(f"{url}/_history")).json()
    assert (bundle["type"], bundle["total"]) == ("history", 3)
    requests = [
        (e["request"]["method"], e["response"]["status"], "resource" in e) for e in bundle["entry"]
    ]
    assert requests == [("DELETE", "204", False), ("PUT", "200", True), ("PUT", "201", True)]
    assert [e["response"]["etag"] for e in bundle["entry"]] == ['W/"3"', 'W/"2"', 'W/"1"']
    assert_outcome(await client.get(f"/Encounter/{fresh_id()}/_history"), 404, "not-found")


async def test_history_pages_meet_every_version_once(client: httpx.AsyncClient) -> None:
    url = f"/Encounter/{(id_ := fresh_id())}"
    for n in range(12):
        await client.put(url, json=encounter(id=id_, priority={"text": str(n)}))
    seen, next_url = [], f"{url}/_history?_count=5"
    while next_url:
        bundle = (await client.get(next_url)).json()
        assert bundle["total"] == 12
        seen += [entry["resource"]["meta"]["versionId"] for entry in bundle["entry"]]
        next_url = next((x["url"] for x in bundle["link"] if x["relation"] == "next"), "")
    assert seen == [str(v) for v in range(12, 0, -1)]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        pytest.param("_since=monday", 400, "value", id="since"),
        pytest.param("_count=-1", 400, "value", id="count"),
        pytest.param("_cursor=%F0", 410, "expired", id="cursor"),
        pytest.param("status=final", 400, "not-supported", id="unknown"),
    ],
)
async def test_history_refuses_what_it_does_not_understand(
    client: httpx.AsyncClient, query: str, status: int, code: str
) -> None:
    url = f"/Encounter/{(id_ := fresh_id())}"
    await client.put(url, json=encounter(id=id_))
    assert_outcome(await client.get(f"{url}/_history?{query}"), status, code)


async def test_conditional_read_answers_304(client: httpx.AsyncClient) -> None:
    created = await client.post("/Encounter", json=encounter())
    url = f"/Encounter/{created.json()['id']}"
    same = await client.get(url, headers={"if-none-match": created.headers["etag"]})
    assert (same.status_code, same.content) == (304, b"")
    since = {"if-modified-since": created.headers["last-modified"]}
    assert (await client.get(url, headers=since)).status_code == 304
    assert (await client.get(url, headers={"if-none-match": 'W/"9"'})).status_code == 200
    listed = [("if-none-match", 'W/"9", "1"'), ("if-none-match", 'W/"8"')]
    assert (await client.get(url, headers=listed)).status_code == 304
    version = await client.get(f"{url}/_history/1", headers={"if-none-match": 'W/"1"'})
    assert version.status_code == 304
    assert_outcome(await client.get(url, headers={"if-match": 'W/"9"'}), 412, "conflict")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        pytest.param({"if-match": 'W/"7", W/"1"'}, 200, id="one-of-a-list"),
        pytest.param({"if-match": 'W/"7","8"'}, 412, id="none-of-a-list"),
        pytest.param({"if-match": "*"}, 200, id="any"),
        pytest.param({"if-match": 'W/"1" W/"2"'}, 400, id="no-list"),
        pytest.param({"if-match": '*, W/"1"'}, 400, id="any-and-one"),
        pytest.param({"if-none-match": 'W/"7", W/"1"'}, 412, id="not-this"),
        pytest.param({"if-none-match": 'W/"7"'}, 200, id="not-another"),
        pytest.param({"if-unmodified-since": "Sat, 01 Jan 2000 00:00:00 GMT"}, 412, id="changed"),
        pytest.param({"if-unmodified-since": "Fri, 01 Jan 2999 00:00:00 GMT"}, 200, id="unchanged"),
        pytest.param({"if-unmodified-since": "yesterday"}, 400, id="no-date"),
    ],
)
async def test_the_conditions_of_a_write(
    client: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    url = f"/Encounter/{(id_ := fresh_id())}"
    await client.put(url, json=encounter(id=id_))
    changed = await client.put(url, json=encounter(id=id_, language="en"), headers=headers)
    assert changed.status_code == status, changed.text
    kept = (await client.get(url)).headers["etag"]
    assert kept == ('W/"2"' if status == 200 else 'W/"1"')


async def test_a_deletion_of_nothing_meets_no_version(client: httpx.AsyncClient) -> None:
    for url in ("/Encounter/none", "/Encounter?identifier=none-such"):
        answer = await client.delete(url, headers={"if-match": 'W/"1"'})
        assert_outcome(answer, 412, "conflict")


async def test_head_answers_like_get_without_a_body(client: httpx.AsyncClient) -> None:
    created = await client.post("/Encounter", json=encounter())
    url = f"/Encounter/{created.json()['id']}"
    get, head = await client.get(url), await client.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["etag"] == get.headers["etag"]
    assert head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize(
    ("method", "url", "status", "code"),
    [
        pytest.param("GET", "/Banana/1", 404, "not-supported", id="unknown-type"),
        pytest.param(
            "POST", "/MedicinalProductDefinition", 404, "not-supported", id="type-not-served"
        ),
        pytest.param("GET", "/Encounter/none-such", 404, "not-found", id="unknown-id"),
        pytest.param("POST", "/Encounter/1", 405, "not-supported", id="verb"),
        pytest.param("GET", "/Encounter/1/2/3/4/5", 404, "not-found", id="no-such-route"),
    ],
)
async def test_addresses_that_lead_nowhere(
    client: httpx.AsyncClient, method: str, url: str, status: int, code: str
) -> None:
    response = await client.request(method, url)
    assert_outcome(response, status, code)
    if status == 405:
        assert response.headers["allow"] == "DELETE, GET, HEAD, PATCH, PUT"


@pytest.mark.parametrize(
    ("content", "content_type", "status", "code"),
    [
        pytest.param(b"{", "application/fhir+json", 400, "structure", id="malformed"),
        pytest.param(b"", "application/fhir+json", 400, "structure", id="empty"),
        pytest.param(b"[]", "application/fhir+json", 400, "structure", id="array"),
        pytest.param(b"a=b", "application/x-www-form-urlencoded", 415, "not-supported", id="form"),
        pytest.param(
            b'{"resourceType":"Patient"}', "application/fhir+json", 400, "invalid", id="other-type"
        ),
        pytest.param(
            b'{"resourceType":"Encounter","status":"planned","status":"planned"}',
            "application/fhir+json",
            400,
            "structure",
            id="duplicate-key",
        ),
    ],
)
async def test_bodies_that_are_refused(
    client: httpx.AsyncClient, content: bytes, content_type: str, status: int, code: str
) -> None:
    response = await client.post(
        "/Encounter", content=content, headers={"content-type": content_type}
    )
    assert_outcome(response, status, code)


async def test_a_resource_over_the_limit_is_refused(client: httpx.AsyncClient) -> None:
    big = encounter(
        text={
            "status": "additional",
            "div": "<div xmlns='http://www.w3.org/1999/xhtml'>"
            + "x" * (9 * 1024 * 1024)
            + "</div>",
        }
    )
    assert_outcome(await client.post("/Encounter", json=big), 413, "too-long")


async def test_only_json_is_offered(client: httpx.AsyncClient) -> None:
    response = await client.get("/Encounter/x", headers={"accept": "image/png"})
    assert_outcome(response, 406, "not-supported")


@pytest.mark.parametrize(
    ("change", "code", "expression"),
    [
        pytest.param({"status": "banana"}, "code-invalid", "Encounter.status", id="binding"),
        pytest.param({"bogus": 1}, "structure", "Encounter", id="unknown-element"),
        pytest.param({"status": None}, "structure", "Encounter.status", id="null"),
        pytest.param({"identifier": []}, "structure", "Encounter.identifier", id="empty-array"),
        pytest.param({"subject": {}}, "structure", "Encounter.subject", id="empty-object"),
    ],
)
async def test_an_invalid_resource_is_refused_and_nothing_is_stored(
    client: httpx.AsyncClient, change: dict[str, Any], code: str, expression: str
) -> None:
    id_ = fresh_id()
    response = await client.put(f"/Encounter/{id_}", json=encounter(id=id_, **change))
    assert response.status_code in (400, 422)
    assert_outcome(response, response.status_code, code, expression)
    assert_outcome(await client.get(f"/Encounter/{id_}"), 404, "not-found")


async def test_what_a_server_cut_down_is_not_stored(client: httpx.AsyncClient) -> None:
    """https://hl7.org/fhir/R4/search.html#summary: it would take the place of the whole resource."""
    place = f"/Encounter/{fresh_id()}"
    whole = (await client.put(place, json=encounter(id=place.rpartition("/")[2]))).json()
    cut = (await client.get(f"{place}?_elements=status")).json()
    tag = cut["meta"]["tag"][0]
    added = json.dumps([{"op": "add", "path": "/meta/tag", "value": [tag]}])
    patch = {"content-type": "application/json-patch+json"}
    meta = {
        "resourceType": "Parameters",
        "parameter": [{"name": "meta", "valueMeta": {"tag": [tag]}}],
    }
    for refused in (
        await client.put(place, json=cut),
        await client.put(f"/Encounter?_id={whole['id']}", json=cut),
        await client.post("/Encounter", json=cut),
        await client.patch(place, content=added, headers=patch),
        await client.post(f"{place}/$meta-add", json=meta),
    ):
        assert_outcome(refused, 422, "business-rule", "Encounter.meta.tag[0]")
    put = {"resource": cut, "request": {"method": "PUT", "url": place[1:]}}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [put]}
    where = "Bundle.entry[0].resource.meta.tag[0]"
    assert_outcome(await client.post("", json=bundle), 422, "business-rule", where)
    (answer,) = (await client.post("", json=bundle | {"type": "batch"})).json()["entry"]
    assert answer["response"]["status"] == "422"
    assert (await client.get(place)).json() == whole
    judged = (await client.post("/Encounter/$validate", json=cut)).json()["issue"]
    errors = [each["expression"] for each in judged if each["severity"] == "error"]
    assert errors == [["Encounter.meta.tag[0]"]]
    inside = {"resourceType": "Patient", "id": "in", "meta": {"tag": [tag]}}
    holding = {**whole, "contained": [inside], "subject": {"reference": "#in"}}
    refused = await client.put(place, json=holding)
    assert_outcome(refused, 422, "business-rule", "Encounter.contained[0].meta.tag[0]")
    # A Bundle of what was found may hold what is cut down, and no other.
    found = (await client.get(f"/Encounter?_id={whole['id']}&_summary=true")).json()
    assert (await client.post("/Bundle", json=found)).status_code == 201
    collection = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": cut}]}
    assert_outcome(await client.post("/Bundle", json=collection), 422, "business-rule", where)
