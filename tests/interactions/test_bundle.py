"""Batch and transaction. https://hl7.org/fhir/R4/http.html#transaction"""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from typing import Any

import httpx
import pytest

from tests.builders.bundles import bundle, condition, entry, identified, patient
from tests.outcomes import assert_outcome


def fresh() -> str:
    return f"t-{uuid.uuid4()}"


async def test_a_transaction_resolves_its_own_references_wherever_they_may_stand(
    client: httpx.AsyncClient,
) -> None:
    urn = f"urn:uuid:{uuid.uuid4()}"
    narrative = f'<div xmlns="http://www.w3.org/1999/xhtml"><a href="{urn}">patient</a></div>'
    referring = condition(
        urn,
        text={"status": "additional", "div": narrative},
        extension=[
            {"url": "http://example.org/link", "valueUri": urn},
            {"url": "http://example.org/canonical", "valueCanonical": urn},
        ],
        contained=[
            {
                "resourceType": "Observation",
                "id": "o",
                "status": "final",
                "code": {"text": "x"},
                "subject": {"reference": urn},
            }
        ],
        evidence=[{"detail": [{"reference": "#o"}]}],
    )
    response = await client.post(
        "",
        json=bundle(
            entry("POST", "Condition", referring), entry("POST", "Patient", patient(), urn)
        ),
    )
    assert response.status_code == 200, response.text
    answers = response.json()["entry"]
    stored, reference = answers[0]["resource"], f"Patient/{answers[1]['resource']['id']}"
    assert stored["subject"]["reference"] == reference
    assert stored["contained"][0]["subject"]["reference"] == reference
    assert stored["extension"][0]["valueUri"] == reference
    assert stored["extension"][1]["valueCanonical"] == urn
    assert f'href="{reference}"' in stored["text"]["div"]
    assert (await client.get(f"/{reference}")).status_code == 200


async def test_answers_come_in_the_order_of_the_request_with_status_location_and_etag(
    client: httpx.AsyncClient,
) -> None:
    gone, kept = fresh(), fresh()
    await client.put(f"/Patient/{gone}", json=patient(id=gone))
    response = await client.post(
        "",
        json=bundle(
            entry("GET", f"Patient/{kept}"),
            entry("PUT", f"Patient/{kept}", patient(id=kept)),
            entry("POST", "Patient", patient()),
            entry("DELETE", f"Patient/{gone}"),
        ),
    )
    assert response.status_code == 200, response.text
    read, put, post, deleted = response.json()["entry"]
    assert response.json()["type"] == "transaction-response"
    assert [e["response"]["status"] for e in (read, put, post, deleted)] == [
        "200",
        "201",
        "201",
        "204",
    ]
    assert read["resource"]["id"] == kept
    assert put["response"]["etag"] == 'W/"1"'
    assert post["response"]["location"].endswith(f"Patient/{post['resource']['id']}/_history/1")
    assert post["response"]["lastModified"]
    assert_outcome(await client.get(f"/Patient/{gone}"), 410, "deleted")


@pytest.mark.parametrize(
    ("bad", "status", "expression"),
    [
        pytest.param(
            entry("POST", "Patient", patient(gender="banana")),
            422,
            "Bundle.entry[1].resource.gender",
            id="invalid",
        ),
        pytest.param(entry("POST", "Banana", patient()), 404, "Bundle.entry[1]", id="type"),
        pytest.param(
            entry("PUT", "Patient/x", patient(id="y")),
            400,
            "Bundle.entry[1].resource.id",
            id="body-id",
        ),
        pytest.param(
            entry("PUT", "Patient/x/y/z", patient(id="x")),
            400,
            "Bundle.entry[1].request.url",
            id="url",
        ),
        pytest.param(entry("BREW", "Patient"), 400, "Bundle.entry[1].request.method", id="method"),
        pytest.param({"resource": patient()}, 400, "Bundle.entry[1].request", id="no-request"),
        pytest.param(
            entry("GET", "Patient/none-such"), 404, "Bundle.entry[1]", id="read-of-nothing"
        ),
        pytest.param(
            entry("GET", "Patient?bogus=1"), 400, "Bundle.entry[1].request.url", id="search"
        ),
        pytest.param(
            entry("PUT", "Patient/unlikely", patient(id="unlikely"), ifMatch='W/"9"'),
            412,
            "Bundle.entry[1]",
            id="if-match",
        ),
        pytest.param(
            entry("POST", "Condition", condition("Patient?identifier=urn:test|none")),
            412,
            None,
            id="reference",
        ),
    ],
)
async def test_a_failing_entry_fails_the_whole_transaction_and_stores_nothing(
    client: httpx.AsyncClient, bad: dict[str, Any], status: int, expression: str | None
) -> None:
    id_ = fresh()
    response = await client.post(
        "", json=bundle(entry("PUT", f"Patient/{id_}", patient(id=id_)), bad)
    )
    assert response.status_code == status, response.text
    outcome = response.json()
    assert outcome["resourceType"] == "OperationOutcome"
    if expression:
        assert expression in [
            path for issue in outcome["issue"] for path in issue.get("expression", [])
        ]
    assert_outcome(await client.get(f"/Patient/{id_}"), 404, "not-found")


async def test_a_transaction_reads_what_it_wrote_and_not_what_it_deletes(
    client: httpx.AsyncClient,
) -> None:
    gone, made = fresh(), fresh()
    await client.put(f"/Patient/{gone}", json=patient(id=gone))
    put = entry("PUT", f"Patient/{made}", patient(id=made))
    answer = await client.post("", json=bundle(entry("GET", f"Patient/{made}/_history/1"), put))
    assert answer.json()["entry"][0]["resource"]["id"] == made
    delete, read = entry("DELETE", f"Patient/{gone}"), entry("GET", f"Patient/{gone}")
    assert_outcome(await client.post("", json=bundle(delete, read)), 410, "deleted")
    assert (await client.get(f"/Patient/{gone}")).status_code == 200


async def test_two_entries_on_one_identity_are_refused(client: httpx.AsyncClient) -> None:
    id_ = fresh()
    response = await client.post(
        "",
        json=bundle(
            entry("PUT", f"Patient/{id_}", patient(id=id_)), entry("DELETE", f"Patient/{id_}")
        ),
    )
    outcome = assert_outcome(response, 400, "invalid")
    assert set(outcome["issue"][0]["expression"]) == {"Bundle.entry[0]", "Bundle.entry[1]"}
    assert_outcome(await client.get(f"/Patient/{id_}"), 404, "not-found")


async def test_conditional_references_find_what_is_stored_and_what_the_transaction_creates(
    client: httpx.AsyncClient,
) -> None:
    old, new = fresh(), fresh()
    stored = (await client.post("/Patient", json=identified(old))).json()
    response = await client.post(
        "",
        json=bundle(
            entry("POST", "Condition", condition(f"Patient?identifier=urn:test|{old}")),
            entry("POST", "Condition", condition(f"Patient?identifier=urn:test|{new}")),
            entry("POST", "Patient", identified(new)),
        ),
    )
    assert response.status_code == 200, response.text
    first, second, created = (e["resource"] for e in response.json()["entry"])
    assert first["subject"]["reference"] == f"Patient/{stored['id']}"
    assert second["subject"]["reference"] == f"Patient/{created['id']}"
    await client.post("/Patient", json=identified(old))
    ambiguous = bundle(entry("POST", "Condition", condition(f"Patient?identifier=urn:test|{old}")))
    assert_outcome(await client.post("", json=ambiguous), 412, "multiple-matches")


async def test_conditional_writes_in_a_transaction(client: httpx.AsyncClient) -> None:
    value = fresh()
    criteria = f"identifier=urn:test|{value}"
    urn = f"urn:uuid:{uuid.uuid4()}"
    request = bundle(
        entry("POST", "Patient", identified(value), urn, ifNoneExist=criteria),
        entry("POST", "Condition", condition(urn)),
    )
    created = (await client.post("", json=request)).json()["entry"]
    assert created[0]["response"]["status"] == "201"
    again = (await client.post("", json=request)).json()["entry"]
    assert again[0]["response"]["status"] == "200"
    assert again[1]["resource"]["subject"]["reference"] == f"Patient/{created[0]['resource']['id']}"
    updated = await client.post(
        "",
        json=bundle(entry("PUT", f"Patient?{criteria}", {**identified(value), "gender": "female"})),
    )
    assert updated.json()["entry"][0]["response"]["etag"] == 'W/"2"'
    deleted = await client.post("", json=bundle(entry("DELETE", f"Patient?{criteria}")))
    assert deleted.json()["entry"][0]["response"]["status"] == "204"
    assert_outcome(await client.get(f"/Patient/{created[0]['resource']['id']}"), 410, "deleted")


async def test_concurrent_transactions_with_the_same_condition_leave_one_resource(
    client: httpx.AsyncClient,
) -> None:
    value = fresh()
    request = bundle(
        entry("POST", "Patient", identified(value), ifNoneExist=f"identifier=urn:test|{value}")
    )
    answers = await asyncio.gather(*(client.post("", json=request) for _ in range(20)))
    statuses = sorted(a.json()["entry"][0]["response"]["status"] for a in answers)
    assert statuses == ["200"] * 19 + ["201"]
    found = (await client.get(f"/Patient?identifier=urn:test|{value}")).json()
    assert len(found["entry"]) == 1


async def test_a_patch_in_a_transaction(client: httpx.AsyncClient) -> None:
    id_ = fresh()
    await client.put(f"/Patient/{id_}", json=patient(id=id_))
    operations = json.dumps([{"op": "replace", "path": "/active", "value": False}]).encode()
    binary = {
        "resourceType": "Binary",
        "contentType": "application/json-patch+json",
        "data": base64.b64encode(operations).decode(),
    }
    response = await client.post("", json=bundle(entry("PATCH", f"Patient/{id_}", binary)))
    assert response.status_code == 200, response.text
    assert (await client.get(f"/Patient/{id_}")).json()["active"] is False


async def test_batch_entries_fail_alone(client: httpx.AsyncClient) -> None:
    id_ = fresh()
    response = await client.post(
        "",
        json=bundle(
            entry("PUT", f"Patient/{id_}", patient(id=id_)),
            entry("POST", "Patient", patient(gender="banana")),
            entry("GET", "Patient/none-such"),
            entry("DELETE", "Patient/none-such"),
            entry("GET", f"Patient?_id={id_}"),
            type="batch",
        ),
    )
    assert response.status_code == 200
    entries = response.json()["entry"]
    assert [e["response"]["status"] for e in entries] == ["201", "422", "404", "204", "200"]
    assert entries[1]["response"]["outcome"]["issue"][0]["code"] == "code-invalid"
    assert entries[2]["response"]["outcome"]["resourceType"] == "OperationOutcome"


@pytest.mark.parametrize(
    ("prefer", "has_resource", "has_outcome"),
    [
        pytest.param("return=minimal", False, False, id="minimal"),
        pytest.param("return=representation", True, False, id="representation"),
        pytest.param("return=OperationOutcome", False, True, id="outcome"),
    ],
)
async def test_prefer_is_honoured_for_each_entry(
    client: httpx.AsyncClient, prefer: str, has_resource: bool, has_outcome: bool
) -> None:
    response = await client.post(
        "", json=bundle(entry("POST", "Patient", patient())), headers={"prefer": prefer}
    )
    answer = response.json()["entry"][0]
    assert ("resource" in answer) is has_resource
    assert ("outcome" in answer["response"]) is has_outcome
    assert answer["response"]["status"] == "201"


async def test_the_conditions_of_reads_in_a_batch(client: httpx.AsyncClient) -> None:
    url = f"Patient/{(id_ := fresh())}"
    await client.put(f"/{url}", json=patient(id=id_))
    answers = await client.post(
        "",
        json=bundle(
            entry("GET", url, ifNoneMatch='W/"1"'),
            entry("GET", url, ifModifiedSince="2999-01-01T00:00:00Z"),
            entry("GET", url, ifModifiedSince="2000-01-01T00:00:00Z"),
            entry("GET", url, ifMatch='W/"7"'),
            entry("GET", url, ifModifiedSince="yesterday"),
            entry("GET", "Patient", ifMatch='W/"1"'),
            type="batch",
        ),
    )
    entries = answers.json()["entry"]
    statuses = [each["response"]["status"] for each in entries]
    assert statuses == ["304", "304", "200", "412", "400", "400"]
    assert ["resource" in each for each in entries[:3]] == [False, False, True]
    assert entries[0]["response"]["etag"] == 'W/"1"'


@pytest.mark.parametrize(
    ("made", "named"),
    [
        pytest.param(
            entry("PUT", "Patient/x", patient(id="x"), ifNoneExist="identifier=1"),
            "request.ifNoneExist",
            id="if-none-exist-of-an-update",
        ),
        pytest.param(
            entry("DELETE", "Patient/x", ifModifiedSince="2999-01-01T00:00:00Z"),
            "request.ifModifiedSince",
            id="if-modified-since-of-a-deletion",
        ),
        pytest.param(
            entry("PUT", "Patient/x", patient(id="x"), ifNoneMach="*"),
            "request.ifNoneMach",
            id="misspelt",
        ),
        pytest.param(
            {**entry("GET", "Patient/x"), "modifierExtension": [{"url": "urn:not"}]},
            "modifierExtension",
            id="modifier",
        ),
        pytest.param(
            entry("GET", "Patient/x", ifMatch='W/"1"'), "request.ifMatch", id="read-after-commit"
        ),
    ],
)
async def test_what_a_transaction_does_not_understand_of_an_entry_is_refused(
    client: httpx.AsyncClient, made: dict[str, Any], named: str
) -> None:
    other = fresh()
    answer = await client.post(
        "", json=bundle(entry("PUT", f"Patient/{other}", patient(id=other)), made)
    )
    assert answer.status_code == 400, answer.text
    assert [each["expression"] for each in answer.json()["issue"]] == [[f"Bundle.entry[1].{named}"]]
    assert (await client.get(f"/Patient/{other}")).status_code == 404


@pytest.mark.parametrize(
    "door", ["?banana=1", "/_history?banana=1", "/$everything?banana=1", "/$meta?banana=1"]
)
async def test_a_read_of_what_a_transaction_creates_is_understood_before_the_commit(
    client: httpx.AsyncClient, door: str
) -> None:
    url = f"Patient/{(id_ := fresh())}"
    posted = bundle(entry("PUT", url, patient(id=id_)), entry("GET", f"{url}{door}"))
    assert_outcome(await client.post("", json=posted), 400, "not-supported")
    assert (await client.get(f"/{url}")).status_code == 404


async def test_an_element_that_no_bundle_has_is_refused(client: httpx.AsyncClient) -> None:
    misspelt = {**bundle(type="batch"), "entries": []}
    assert_outcome(await client.post("", json=misspelt), 400, "structure", "Bundle.entries")


@pytest.mark.parametrize("type_", ["collection", "searchset", None])
async def test_other_bundles_are_not_processed(
    client: httpx.AsyncClient, type_: str | None
) -> None:
    body = {"resourceType": "Bundle", "entry": []} | ({"type": type_} if type_ else {})
    assert_outcome(await client.post("", json=body), 400, "invalid", "Bundle.type")
    assert_outcome(await client.post("", json=patient()), 400, "invalid")


@pytest.mark.parametrize("type_", ["batch", "transaction"])
async def test_a_full_url_is_one_entry_s_and_names_no_version(
    client: httpx.AsyncClient, type_: str
) -> None:
    """bdl-7 and bdl-8: two patients were made of one that was sent twice by mistake."""
    name = f"urn:uuid:{uuid.uuid4()}"
    given = {"request": {"method": "POST", "url": "Patient"}, "resource": patient()}
    twice = bundle({**given, "fullUrl": name}, {**given, "fullUrl": name}, type=type_)
    place = "Bundle.entry[1].fullUrl"
    assert_outcome(await client.post("", json=twice), 422, "invariant", place)
    version = {**given, "fullUrl": "http://elsewhere.org/fhir/Patient/1/_history/2"}
    answer = await client.post("", json=bundle(version, type=type_))
    assert_outcome(answer, 422, "invariant", "Bundle.entry[0].fullUrl")


@pytest.mark.processes
@pytest.mark.parametrize("kind", ["batch", "transaction"])
async def test_an_answer_is_no_longer_than_a_page(client: httpx.AsyncClient, kind: str) -> None:
    """A small request for much is not carried out beyond it; what is written is told without its resource."""
    large, small = f"Binary/{fresh()}", f"Patient/{fresh()}"
    headers = {"content-type": "application/pdf"}
    sent = await client.put(f"/{large}", content=b"x" * 6 * 1024 * 1024, headers=headers)
    assert sent.status_code == 201, sent.text
    reads = [entry("GET", large) for _ in range(4)]
    write = entry("PUT", small, {**patient(), "id": small.partition("/")[2]})
    answer = await client.post("", json=bundle(*reads, write, type=kind))
    assert answer.status_code == 200, answer.text
    assert len(answer.content) < 17 * 1024 * 1024
    *told, written = answer.json()["entry"]
    statuses = [each["response"]["status"] for each in told]
    assert sorted(statuses) == ["200", "413", "413", "413"]
    refused = next(each for each in told if each["response"]["status"] == "413")
    assert refused["response"]["outcome"]["issue"][0]["code"] == "too-costly"
    assert written["response"]["status"] == "201"


@pytest.mark.parametrize("kind", ["batch", "transaction"])
async def test_a_head_has_no_resource(client: httpx.AsyncClient, kind: str) -> None:
    id_ = fresh()
    await client.put(f"/Patient/{id_}", json={**patient(), "id": id_})
    asked = bundle(entry("HEAD", f"Patient/{id_}"), type=kind)
    (told,) = (await client.post("", json=asked)).json()["entry"]
    assert (told["response"]["status"], told["response"]["etag"]) == ("200", 'W/"1"')
    assert "resource" not in told
