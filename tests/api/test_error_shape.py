"""Every failure has one shape: the right status, FHIR content, an OperationOutcome, and nothing of our inside."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.fhir import xml
from app.interactions import interactions
from app.runtime import mongo
from app.runtime.embedded_mongod import EmbeddedMongo
from tests.conftest import make_settings, running
from tests.outcomes import assert_outcome

SECRET = "Agnes Thistlewick"
JSON = "application/fhir+json"
XML = "application/fhir+xml"
JSON_PATCH = "application/json-patch+json"
KIB = 1024
SMALL = {
    "max_resource_bytes": 64 * KIB,
    "max_bundle_bytes": 128 * KIB,
    "max_bundle_entries": 3,
}


@pytest.fixture(scope="module")
async def limited(mongod: str) -> AsyncIterator[httpx.AsyncClient]:
    """A server with low limits, one resource `Patient/there`, and one that was deleted, `Patient/gone`."""
    settings = make_settings(mongod, **SMALL, max_url_bytes=512, referential_integrity="checked")
    async with running(settings) as (_, client):
        for id_ in ("there", "gone"):
            response = await client.put(f"/Patient/{id_}", json=patient(id=id_, meta=LABELS))
            assert response.status_code == 201
        assert (await client.delete("/Patient/gone")).status_code == 204
        await client.post("/Patient", json=patient(link=[link("there")]))
        yield client


def patient(**more: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "active": True, **more}


def link(patient_id: str) -> dict[str, Any]:
    return {"type": "seealso", "other": {"reference": f"Patient/{patient_id}"}}


def bundle(*entries: dict[str, Any], kind: str = "transaction") -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def posting(resource: dict[str, Any]) -> dict[str, Any]:
    return {"request": {"method": "POST", "url": resource["resourceType"]}, "resource": resource}


def case(status: int, code: str, method: str, url: str, body: Any = None, **headers: str) -> Any:
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    sent = {"content-type": JSON} if content is not None else {}
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    return pytest.param(status, code, method, url, content, sent)


LABELS = {"tag": [{"code": "x"}], "profile": ["http://example.org/p"]}
FAILING_TEST = [{"op": "test", "path": "/active", "value": False}]
# Each copy doubles the resource.
BOMB = [{"op": "copy", "from": "", "path": f"/{n}"} for n in range(60)]
CASES = {
    "400 malformed JSON": case(400, "structure", "POST", "/Patient", b"{"),
    "400 empty body": case(400, "structure", "POST", "/Patient", b""),
    "400 malformed XML": case(400, "structure", "POST", "/Patient", b"<P", content_type=XML),
    "400 entity": case(
        400,
        "structure",
        "POST",
        "/Patient",
        b'<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><Patient>&b;</Patient>',
        content_type=XML,
    ),
    "400 unknown element": case(400, "structure", "POST", "/Patient", patient(bogus=1)),
    "400 missing element": case(400, "required", "POST", "/Observation", {"resourceType": "Observation"}),
    "400 body id": case(400, "invalid", "PUT", "/Patient/there", patient(id="other")),
    "400 meta": case(400, "structure", "PUT", "/Patient/there", patient(id="there", meta=None)),
    "400 tag": case(400, "structure", "PUT", "/Patient/there", patient(id="there", meta={"tag": [{"code": []}]})),
    "400 if-match": case(400, "invalid", "PUT", "/Patient/there", patient(id="there"), if_match="x"),
    "400 date header": case(400, "invalid", "GET", "/Patient/there", if_modified_since="monday"),
    "400 host": case(400, "invalid", "GET", "/Patient/there", host="[::1"),
    "400 search parameter": case(400, "not-supported", "GET", "/Patient?bogus=1"),
    "400 search value": case(400, "value", "GET", "/Patient?birthdate=monday"),
    "400 count": case(400, "value", "GET", "/Patient?_count=x"),
    "400 history": case(400, "value", "GET", "/Patient/_history?_at=monday"),
    "400 summary": case(400, "value", "GET", "/Patient/there?_summary=banana"),
    "400 pretty": case(400, "value", "GET", "/Patient/there?_pretty=banana"),
    "400 no criteria": case(400, "required", "DELETE", "/Patient"),
    "400 operation": case(400, "not-supported", "GET", "/Patient/there/$everything?bogus=1"),
    "400 parameters": case(400, "structure", "POST", "/$meta", {"resourceType": "Parameters", "parameter": 1}),
    "400 bundle type": case(400, "invalid", "POST", "", bundle(kind="collection")),
    "400 bundle entry": case(400, "required", "POST", "", bundle({"resource": patient()})),
    "400 patch": case(400, "structure", "PATCH", "/Patient/there", b"{}", content_type=JSON_PATCH),
    "404 route": case(404, "not-found", "GET", "/Patient/a/b/c/d"),
    "404 type": case(404, "not-supported", "GET", "/Banana"),
    "404 type not served": case(404, "not-supported", "GET", "/MedicinalProductDefinition/1"),
    "404 id": case(404, "not-found", "GET", "/Patient/nobody"),
    "404 version": case(404, "not-found", "GET", "/Patient/there/_history/7"),
    "404 history": case(404, "not-found", "GET", "/Patient/nobody/_history"),
    "404 patch": case(404, "not-found", "PATCH", "/Patient?_id=nobody", b"[]", content_type=JSON_PATCH),
    "404 operation": case(404, "not-supported", "GET", "/$banana"),
    "405 metadata": case(405, "not-supported", "DELETE", "/metadata"),
    "405 instance": case(405, "not-supported", "POST", "/Patient/there", patient()),
    "405 options": case(405, "not-supported", "OPTIONS", "/Patient"),
    "405 made up": case(405, "not-supported", "BREW", "/Patient"),
    "405 operation": case(405, "not-supported", "GET", "/Patient/there/$meta-add"),
    "406 accept": case(406, "not-supported", "GET", "/Patient/there", accept="image/png"),
    "406 version": case(406, "not-supported", "GET", "/Patient/there", accept="application/fhir+json; fhirVersion=5.0"),
    "406 format": case(406, "not-supported", "GET", "/Patient/there?_format=turtle"),
    "409 referred to": case(409, "conflict", "DELETE", "/Patient/there"),
    "410 read": case(410, "deleted", "GET", "/Patient/gone"),
    "410 version": case(410, "deleted", "GET", "/Patient/gone/_history/2"),
    "410 patch": case(410, "deleted", "PATCH", "/Patient/gone", b"[]", content_type=JSON_PATCH),
    "412 if-match": case(412, "conflict", "PUT", "/Patient/there", patient(id="there"), if_match='W/"9"'),
    "412 if-none-match": case(412, "conflict", "PUT", "/Patient/there", patient(id="there"), if_none_match="*"),
    "412 many": case(412, "multiple-matches", "DELETE", "/Patient?active=true"),
    "413 declared": case(413, "too-long", "POST", "/Patient", b" " * 65 * KIB),
    "413 bundle": case(413, "too-long", "POST", "", b" " * 129 * KIB),
    "413 entry": case(413, "too-long", "POST", "", bundle(posting(patient(name=[{"text": "x" * 65 * KIB}])))),
    "400 entries": case(400, "too-costly", "POST", "", bundle(*[posting(patient())] * 4)),
    "414": case(414, "too-long", "GET", "/Patient?_id=" + "x" * 600),
    "415 create": case(415, "not-supported", "POST", "/Patient", b"a=b", content_type="text/html"),
    "415 patch": case(415, "not-supported", "PATCH", "/Patient/there", b"[]", content_type="text/html"),
    "415 search": case(415, "not-supported", "POST", "/Patient/_search", b"{}", content_type=JSON),
    "415 version": case(415, "not-supported", "POST", "/Patient", b"{}", content_type=f"{JSON}; fhirVersion=5.0"),
    "422 code": case(422, "code-invalid", "POST", "/Patient", patient(gender="banana")),
    "422 reference": case(422, "business-rule", "POST", "/Patient", patient(link=[link("nobody")])),
    "422 test": case(422, "processing", "PATCH", "/Patient/there", FAILING_TEST, content_type=JSON_PATCH),
    "422 bomb": case(422, "too-costly", "PATCH", "/Patient/there", BOMB, content_type=JSON_PATCH),
}  # fmt: skip


@pytest.mark.parametrize(
    ("status", "code", "method", "url", "content", "headers"), CASES.values(), ids=CASES
)
async def test_every_refusal_is_an_operation_outcome(
    limited: httpx.AsyncClient,
    status: int,
    code: str,
    method: str,
    url: str,
    content: bytes | None,
    headers: dict[str, str],
) -> None:
    response = await limited.request(method, url, content=content, headers=headers)
    assert_outcome(response, status, code)
    assert_nothing_inside(response)
    if status == 405:
        assert response.headers["allow"]


async def test_an_outcome_comes_in_the_format_that_was_asked_for(
    limited: httpx.AsyncClient,
) -> None:
    response = await limited.get("/Patient/nobody", headers={"accept": XML})
    assert response.status_code == 404
    assert response.headers["content-type"].startswith(XML)
    assert xml.decode(response.content)["issue"][0]["code"] == "not-found"


async def test_outside_the_fhir_base_there_are_outcomes_too(limited: httpx.AsyncClient) -> None:
    root = str(limited.base_url).removesuffix("/fhir/")
    assert_outcome(await limited.get(f"{root}/nowhere"), 404, "not-found")
    assert_outcome(await limited.delete(f"{root}/healthz"), 405, "not-supported")


async def test_a_defect_of_ours_tells_nothing_of_our_inside(
    limited: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(interactions, "read", broken)
    response = await limited.get("/Patient/there")
    assert_outcome(response, 500, "exception")
    assert_nothing_inside(response)
    assert response.headers["x-request-id"]


@pytest.mark.processes
@pytest.mark.slow
async def test_without_its_database_the_server_says_so_and_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(mongo._CLIENT_OPTIONS, "serverSelectionTimeoutMS", 300)
    caplog.set_level(logging.CRITICAL)
    with EmbeddedMongo(tmp_path) as embedded:
        async with running(make_settings(embedded.uri)) as (_, client):
            assert (await client.put("/Patient/there", json=patient(id="there"))).is_success
            embedded.process.kill()
            embedded.process.wait()
            entry = posting(patient())
            for response in (
                await client.get("/Patient/there"),
                await client.get("/Patient?active=true"),
                await client.get("/_history"),
                await client.post("/Patient", json=patient()),
                await client.put("/Patient/there", json=patient(id="there", gender="other")),
                await client.delete("/Patient/there"),
                await client.post("", json=bundle(entry)),
            ):
                assert_outcome(response, 503, "transient")
                assert_nothing_inside(response)
            batch = await client.post("", json=bundle(entry, kind="batch"))
            assert_outcome(batch, 503, "transient")
            root = str(client.base_url).removesuffix("/fhir/")
            assert (await client.get(f"{root}/readyz")).status_code == 503
            assert (await client.get(f"{root}/healthz")).status_code == 200
            assert (await client.get("/metadata")).status_code == 200


def assert_nothing_inside(response: httpx.Response) -> None:
    for word in ("Traceback", "Error(", ".py", "mongo", "pymongo", "pydantic", SECRET):
        assert word not in response.text
