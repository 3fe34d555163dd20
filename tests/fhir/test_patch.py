"""JSON Patch through HTTP; the FHIRPath and XML patches have test files of their own.

https://hl7.org/fhir/R4/http.html#patch
"""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest

from tests.outcomes import assert_outcome

HEADERS = {"content-type": "application/json-patch+json"}


async def stored(client: httpx.AsyncClient, **changes: Any) -> str:
    id_ = f"t-{uuid.uuid4()}"
    body = {
        "resourceType": "Patient",
        "id": id_,
        "active": True,
        "name": [{"family": "A"}],
        **changes,
    }
    assert (await client.put(f"/Patient/{id_}", json=body)).status_code == 201
    return f"/Patient/{id_}"


async def test_a_patch_makes_the_next_version(client: httpx.AsyncClient) -> None:
    url = await stored(client)
    patch = '[{"op":"test","path":"/active","value":true},{"op":"add","path":"/name/0/given","value":["B"]}]'
    response = await client.patch(url, content=patch, headers=HEADERS)
    assert (response.status_code, response.headers["etag"]) == (200, 'W/"2"')
    assert response.json()["name"] == [{"family": "A", "given": ["B"]}]
    history = (await client.get(f"{url}/_history")).json()
    assert history["entry"][0]["request"]["method"] == "PATCH"


async def test_a_patch_keeps_the_digits_of_decimals(client: httpx.AsyncClient) -> None:
    id_ = f"t-{uuid.uuid4()}"
    body = (
        f'{{"resourceType":"Observation","id":"{id_}","status":"final",'
        '"code":{"text":"x"},"valueQuantity":{"value":1.50}}'
    )
    await client.put(
        f"/Observation/{id_}", content=body, headers={"content-type": "application/json"}
    )
    patch = '[{"op":"add","path":"/referenceRange","value":[{"low":{"value":0.10}}]}]'
    response = await client.patch(f"/Observation/{id_}", content=patch, headers=HEADERS)
    assert '"value":1.50' in response.text
    assert '"value":0.10' in response.text


@pytest.mark.parametrize(
    ("patch", "status", "code"),
    [
        pytest.param("{", 400, "structure", id="malformed"),
        pytest.param("{}", 400, "structure", id="no-array"),
        pytest.param('[{"op":"brew","path":"/active"}]', 400, "structure", id="unknown-operation"),
        pytest.param('[{"path":"/active"}]', 400, "structure", id="no-operation"),
        pytest.param(
            '[{"op":"test","path":"/active","value":false}]', 422, "processing", id="test-fails"
        ),
        pytest.param('[{"op":"remove","path":"/birthDate"}]', 422, "processing", id="no-such-path"),
        pytest.param(
            '[{"op":"replace","path":"/name/7/family","value":"B"}]',
            422,
            "processing",
            id="no-such-index",
        ),
        pytest.param('[{"op":"replace","path":"/id","value":"b"}]', 422, "value", id="changes-id"),
        pytest.param(
            '[{"op":"replace","path":"","value":[]}]', 422, "processing", id="no-resource-left"
        ),
        pytest.param(
            '[{"op":"replace","path":"/gender","value":"banana"}]',
            422,
            "code-invalid",
            id="result-invalid",
        ),
        pytest.param(
            '[{"op":"add","path":"/bogus","value":1}]',
            400,
            "structure",
            id="result-unknown-element",
        ),
    ],
)
async def test_a_patch_that_does_not_fit_changes_nothing(
    client: httpx.AsyncClient, patch: str, status: int, code: str
) -> None:
    url = await stored(client, gender="female")
    assert_outcome(await client.patch(url, content=patch, headers=HEADERS), status, code)
    assert (await client.get(url)).headers["etag"] == 'W/"1"'


async def test_what_is_said_to_be_json_alone_is_a_fhirpath_patch(client: httpx.AsyncClient) -> None:
    url = await stored(client)
    change = [
        {"name": "type", "valueCode": "replace"},
        {"name": "path", "valueString": "Patient.active"},
        {"name": "value", "valueBoolean": False},
    ]
    patch = {"resourceType": "Parameters", "parameter": [{"name": "operation", "part": change}]}
    assert (await client.patch(url, json=patch)).json()["active"] is False
    for other in ('{"active":true}', "[]"):
        answer = await client.patch(
            url, content=other, headers={"content-type": "application/json"}
        )
        assert_outcome(answer, 400, "structure")


async def test_a_patch_needs_a_known_format_a_resource_and_the_right_version(
    client: httpx.AsyncClient,
) -> None:
    url = await stored(client)
    wrong = await client.patch(url, content="[]", headers={"content-type": "text/plain"})
    assert_outcome(wrong, 415, "not-supported")
    assert "application/json-patch+json" in wrong.headers["accept-patch"]
    nothing = await client.patch("/Patient/none-such", content="[]", headers=HEADERS)
    assert_outcome(nothing, 404, "not-found")
    stale = await client.patch(url, content="[]", headers={**HEADERS, "if-match": 'W/"7"'})
    assert_outcome(stale, 412, "conflict")
    await client.delete(url)
    assert_outcome(await client.patch(url, content="[]", headers=HEADERS), 410, "deleted")


async def test_labels_stay_across_updates_until_they_are_deleted_on_purpose(
    client: httpx.AsyncClient,
) -> None:
    secret = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}
    url = await stored(
        client, meta={"security": [secret], "tag": [{"system": "urn:t", "code": "a"}]}
    )
    body = {
        "resourceType": "Patient",
        "id": url.rpartition("/")[2],
        "meta": {"tag": [{"system": "urn:t", "code": "b"}]},
    }
    updated = (await client.put(url, json=body)).json()
    assert updated["meta"]["security"] == [secret]
    assert [tag["code"] for tag in updated["meta"]["tag"]] == ["b", "a"]


async def test_an_identical_update_makes_no_new_version(client: httpx.AsyncClient) -> None:
    url = await stored(client)
    first = await client.get(url)
    again = await client.put(url, json=first.json())
    assert (again.status_code, again.headers["etag"], again.json()) == (200, 'W/"1"', first.json())
