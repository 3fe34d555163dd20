"""A Binary as the document that it is: read and written as what it holds, and as a resource for who asks for that.

https://hl7.org/fhir/R4/binary.html#rest
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import httpx
import pytest

from app.fhir.ids import new_id
from app.runtime.codec_process import CodecProcess
from tests.conftest import BASE, Server, make_settings, running
from tests.outcomes import assert_outcome

JSON, XML = "application/fhir+json", "application/fhir+xml"
AS_RESOURCE = {"accept": JSON}
# Bytes that no text has.
PDF = b"%PDF-1.7\n" + bytes(range(256)) + b"\n%%EOF"
PDF_TYPE = {"content-type": "application/pdf"}
KIB = 1024


async def put(
    client: httpx.AsyncClient,
    content: bytes = PDF,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """The address of new content."""
    url = f"/Binary/{new_id()}"
    answer = await client.put(url, content=content, headers={**PDF_TYPE, **headers})
    assert answer.status_code == 201, answer.text
    return url


def binary(type_: str, content: bytes = b"x", **more: Any) -> dict[str, Any]:
    data = base64.b64encode(content).decode()
    return {"resourceType": "Binary", "contentType": type_, "data": data, **more}


async def test_what_is_sent_as_it_is_is_read_so_and_is_a_resource_besides(
    client: httpx.AsyncClient,
) -> None:
    sent = await client.post("/Binary", content=PDF, headers={**PDF_TYPE, **AS_RESOURCE})
    assert (sent.status_code, sent.headers["etag"]) == (201, 'W/"1"')
    assert sent.json()["data"] == base64.b64encode(PDF).decode()
    url = sent.headers["location"].partition("/_history")[0]
    for address in (url, f"{url}/_history/1"):
        answer = await client.get(address)
        assert (answer.status_code, answer.content) == (200, PDF)
        assert answer.headers["content-type"] == "application/pdf"
        head = await client.head(address)
        assert (head.status_code, head.content) == (200, b"")
        for name in ("content-type", "content-length", "etag", "accept-ranges"):
            assert head.headers[name] == answer.headers[name]
    for ask in ({"headers": AS_RESOURCE}, {"params": {"_format": "json"}}):
        resource = (await client.get(url, **ask)).json()  # type: ignore[arg-type]
        assert resource["contentType"] == "application/pdf"
        assert base64.b64decode(resource["data"]) == PDF
    as_xml = await client.get(url, headers={"accept": XML})
    assert as_xml.headers["content-type"].startswith(XML)
    # Sent as the resource it is the same.
    other = await client.put(f"/Binary/{new_id()}", json={**resource, "id": new_id()})
    assert_outcome(other, 400, "invalid")
    assert (await client.put(url, json=resource)).headers["etag"] == 'W/"1"'
    # Where resources are listed, it is one.
    page = (await client.get(f"/Binary?_id={resource['id']}")).json()
    entry = {"request": {"method": "GET", "url": f"Binary/{resource['id']}"}}
    batch = await client.post(
        "", json={"resourceType": "Bundle", "type": "batch", "entry": [entry]}
    )
    for bundle in (page, batch.json()):
        assert bundle["entry"][0]["resource"]["data"] == resource["data"]


@pytest.mark.parametrize(
    ("type_", "accept", "expected"),
    [
        ("application/pdf", None, "content"),
        ("application/pdf", "*/*", "content"),
        ("application/pdf", "application/pdf", "content"),
        ("application/pdf", "application/*", "content"),
        ("text/plain; charset=utf-8", "text/plain", "content"),
        ("application/pdf", "text/html,application/xml;q=0.9,*/*;q=0.8", "content"),  # a browser
        ("application/pdf", "application/fhir+json, */*", JSON),
        ("application/pdf", "application/fhir+xml, application/pdf;q=0.5", XML),
        ("application/pdf", "application/fhir+json;q=0.5, application/pdf", "content"),
        ("application/pdf", "application/json", JSON),
        ("application/json", "application/json", "content"),
        ("text/xml", "text/xml", "content"),
        ("application/fhir+json", JSON, JSON),
        ("application/fhir+json", "*/*", "content"),
        ("image/png", "application/*", JSON),
        ("application/pdf", "image/png", "refused"),
        ("application/pdf", "application/pdf;q=0, image/*", "refused"),
        ("application/pdf", "application/fhir+json; fhirVersion=5.0", "refused"),
    ],
)
async def test_accept_says_whether_it_is_the_content_or_the_resource(
    client: httpx.AsyncClient, type_: str, accept: str | None, expected: str
) -> None:
    url = await put(client, b'{"a": 1}', {"content-type": type_})
    request = client.build_request("GET", url)
    del request.headers["accept"]
    if accept is not None:
        request.headers["accept"] = accept
    answer = await client.send(request)
    if expected == "refused":
        assert_outcome(answer, 406, "not-supported")
    elif expected == "content":
        assert (answer.content, answer.headers["content-type"]) == (b'{"a": 1}', type_)
    else:
        assert answer.headers["content-type"].startswith(expected)


async def test_format_stands_above_accept_and_a_shape_is_that_of_the_resource(
    client: httpx.AsyncClient,
) -> None:
    url = await put(client)
    assert (await client.get(f"{url}?_format=application/pdf", headers=AS_RESOURCE)).content == PDF
    refused = await client.get(f"{url}?_format=image/png", headers={"accept": "application/pdf"})
    assert_outcome(refused, 406, "not-supported")
    shaped = (await client.get(f"{url}?_elements=contentType")).json()
    assert "data" not in shaped


@pytest.mark.parametrize("accept", ["image/png", "application/pdf", "*/*", JSON])
async def test_what_is_not_there_is_not_found_whatever_is_asked_for(
    client: httpx.AsyncClient, accept: str
) -> None:
    asked = {"accept": accept}
    assert_outcome(await client.get(f"/Binary/{new_id()}", headers=asked), 404, "not-found")
    url = await put(client)
    assert_outcome(await client.get(f"{url}/_history/9", headers=asked), 404, "not-found")
    await client.delete(url)
    assert_outcome(await client.get(url, headers=asked), 410, "deleted")


async def test_only_reads_of_a_binary_are_answered_by_content(client: httpx.AsyncClient) -> None:
    url, png = await put(client), {"accept": "image/png"}
    for other in (f"{url}/_history", "/Binary", f"{url}/$meta", f"/Patient/{new_id()}"):
        assert_outcome(await client.get(other, headers=png), 406, "not-supported")


# What a browser makes of it


@pytest.mark.parametrize(
    ("declared", "shown", "ending"),
    [
        ("application/pdf", "application/pdf", "pdf"),
        ("text/html", "text/html", "bin"),
        ("image/svg+xml", "image/svg+xml", "bin"),
        ("TEXT/Plain;charset=utf-8", "text/plain; charset=utf-8", "txt"),
        ("text/html\nset-cookie: a=b", "application/octet-stream", "bin"),
        ("text/html; x=\u00e9", "application/octet-stream", "bin"),
        ("pdf", "application/octet-stream", "bin"),
        ("*/*", "application/octet-stream", "bin"),
    ],
)
async def test_no_content_is_shown_as_a_page_of_the_server(
    client: httpx.AsyncClient, declared: str, shown: str, ending: str
) -> None:
    id_ = new_id()
    content = b"<script>alert(1)</script>"
    sent = await client.put(f"/Binary/{id_}", json=binary(declared, content, id=id_))
    assert sent.status_code == 201, sent.text
    answer = await client.get(f"/Binary/{id_}", headers={"accept-encoding": "gzip"})
    assert answer.content == content
    assert answer.headers["content-type"] == shown
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-disposition"] == f'attachment; filename="Binary-{id_}.{ending}"'
    policy = answer.headers.get_list("content-security-policy")
    assert [each.partition(";")[0] for each in policy] == ["sandbox"]
    assert "set-cookie" not in answer.headers


# Parts of it


async def test_white_space_in_base64_is_no_part_of_the_content(client: httpx.AsyncClient) -> None:
    id_ = new_id()
    body = {**binary("a/b"), "id": id_, "data": "MDEy\n\u000b MzQ1\u00a0Njc4OQ=="}
    assert (await client.put(f"/Binary/{id_}", json=body)).status_code == 201
    answer = await client.get(f"/Binary/{id_}", headers={"range": "bytes=4-20"})
    assert (answer.content, answer.headers["content-range"]) == (b"456789", "bytes 4-9/10")


@pytest.mark.parametrize(
    ("asked", "status", "part"),
    [
        ("bytes=0-3", 206, slice(0, 4)),
        ("bytes=5-5", 206, slice(5, 6)),
        ("bytes=7-", 206, slice(7, None)),
        ("bytes=7-99999", 206, slice(7, None)),
        ("bytes=-4", 206, slice(-4, None)),
        ("bytes=-99999", 206, slice(0, None)),
        ("bytes=99999-", 416, None),
        ("bytes=-0", 416, None),
        ("bytes=9-8", 200, slice(None)),
        ("bytes=0-1,4-5", 200, slice(None)),
        ("lines=0-1", 200, slice(None)),
    ],
)
async def test_ranges(
    client: httpx.AsyncClient, asked: str, status: int, part: slice | None
) -> None:
    url = await put(client)
    answer = await client.get(url, headers={"range": asked})
    if part is None:
        assert_outcome(answer, status, "value")
        assert answer.headers["content-range"] == f"bytes */{len(PDF)}"
        return
    assert (answer.status_code, answer.content) == (status, PDF[part])
    assert answer.headers["content-length"] == str(len(PDF[part]))
    start, stop, _ = part.indices(len(PDF))
    wanted = f"bytes {start}-{stop - 1}/{len(PDF)}" if status == 206 else None
    assert answer.headers.get("content-range") == wanted
    assert len((await client.get(url, headers={"range": asked, **AS_RESOURCE})).content) > len(PDF)


async def test_a_range_is_of_the_version_that_was_begun(client: httpx.AsyncClient) -> None:
    url = await put(client)
    tag = (await client.get(url)).headers["etag"]
    asked = {"range": "bytes=0-3", "if-range": tag}
    assert (await client.get(url, headers=asked)).status_code == 206
    await client.put(url, content=b"another", headers=PDF_TYPE)
    answer = await client.get(url, headers=asked)
    assert (answer.status_code, answer.content) == (200, b"another")
    # A weak one is of the resource, and its parts are others.
    weak = {"range": "bytes=0-3", "if-range": 'W/"2"'}
    assert (await client.get(url, headers=weak)).content == b"another"


async def test_conditions_hold_for_content_as_for_resources(client: httpx.AsyncClient) -> None:
    url = await put(client)
    for tag in ('W/"1"', '"1"'):
        same = await client.get(url, headers={"if-none-match": tag})
        assert (same.status_code, same.content, same.headers["etag"]) == (304, b"", '"1"')
    old = {**PDF_TYPE, "if-match": '"2"'}
    assert_outcome(await client.put(url, content=b"y", headers=old), 412, "conflict")
    now = {**PDF_TYPE, "if-match": '"1"'}
    assert (await client.put(url, content=b"y", headers=now)).status_code == 200
    assert (await client.put(url, content=b"y", headers=PDF_TYPE)).headers["etag"] == 'W/"2"'
    assert (await client.get(f"{url}/_history/1")).content == PDF


# What is sent


@pytest.mark.parametrize(
    ("type_", "content"),
    [
        (JSON, b'{"resourceType": "Patient"}'),
        (JSON, b'{"resourceType": "Bundle", "entry": [{"resource": {"resourceType": "Binary"}}]}'),
        ("application/json", b'[{"resourceType": "Binary"}]'),
        ("application/json", b"no JSON at all"),
        (XML, b'<Patient xmlns="http://hl7.org/fhir"/>'),
        ("text/xml", b'<?xml version="1.0"?><!-- <Binary/> --><ClinicalDocument/>'),
        ("application/xml", b'<Binary xmlns="urn:other"/>'),
        ("text/html", b"<!DOCTYPE html><p>x</p>"),
        ("multipart/form-data; boundary=x", b"--x--"),
    ],
)
async def test_what_is_no_binary_is_content_whatever_its_type(
    client: httpx.AsyncClient, type_: str, content: bytes
) -> None:
    url = await put(client, content, {"content-type": type_})
    answer = await client.get(url)
    assert (answer.content, answer.headers["content-type"]) == (content, type_)


@pytest.mark.parametrize(
    ("type_", "content", "status"),
    [
        (
            JSON,
            b'{"id": "ID", "resourceType": "Binary", "contentType": "a/b", "data": "eA=="}',
            201,
        ),
        (
            "text/xml",
            b'<?xml version="1.0"?><!-- x --><Binary xmlns="http://hl7.org/fhir"><id value="ID"/>'
            b'<contentType value="a/b"/><data value="eA=="/></Binary>',
            201,
        ),
        (JSON, b'{"id": "ID", "resourceType": "Binary", "data": "eA=="}', 400),
        (JSON, b'{"id": "ID", "resourceType": "Binary", "contentType": "a/b",', 400),
        (XML, b'<!DOCTYPE Binary><Binary xmlns="http://hl7.org/fhir"/>', 400),
    ],
)
async def test_a_binary_itself_is_taken_as_one(
    client: httpx.AsyncClient, type_: str, content: bytes, status: int
) -> None:
    id_ = new_id()
    body, declared = content.replace(b"ID", id_.encode()), {"content-type": type_}
    answer = await client.put(f"/Binary/{id_}", content=body, headers=declared)
    assert answer.status_code == status, answer.text
    if status == 201:
        assert (await client.get(f"/Binary/{id_}")).content == b"x"


@pytest.mark.parametrize(
    "declared", ["", "pdf", "application/*", "text/plain; charset", "a/b, c/d"]
)
async def test_content_says_of_which_type_it_is(client: httpx.AsyncClient, declared: str) -> None:
    headers = {"content-type": declared} if declared else {}
    answer = await client.put(f"/Binary/{new_id()}", content=PDF, headers=headers)
    assert_outcome(answer, 415, "not-supported")


async def test_content_may_be_written_under_a_condition(client: httpx.AsyncClient) -> None:
    tag = new_id()
    url = await put(client, headers={"x-security-context": f"Basic/{tag}"})
    by = f"/Binary?security-context=Basic/{tag}"
    answer = await client.put(by, content=b"y", headers={**PDF_TYPE, **AS_RESOURCE})
    assert (answer.status_code, f"/Binary/{answer.json()['id']}") == (200, url)
    none = {**PDF_TYPE, "if-none-exist": by.partition("?")[2]}
    assert (await client.post("/Binary", content=b"z", headers=none)).status_code == 200
    assert (await client.get(url)).content == b"y"


# The security context


async def test_the_header_is_the_resources_security_context(client: httpx.AsyncClient) -> None:
    url = await put(client, headers={"x-security-context": f"{BASE}/Patient/p1"})
    answer = await client.get(url)
    assert answer.headers["x-security-context"] == "Patient/p1"
    resource = (await client.get(url, headers=AS_RESOURCE)).json()
    assert resource["securityContext"] == {"reference": "Patient/p1"}
    # Content without the header leaves it there, and so does a resource without the element.
    assert (await client.put(url, content=PDF, headers=PDF_TYPE)).headers["etag"] == 'W/"1"'
    del resource["securityContext"]
    changed = await client.put(url, json={**resource, "language": "en"})
    assert changed.json()["securityContext"] == {"reference": "Patient/p1"}
    other = {**PDF_TYPE, "x-security-context": "Patient/p2"}
    assert (await client.put(url, content=PDF, headers=other)).status_code == 200
    assert (await client.get(url)).headers["x-security-context"] == "Patient/p2"


async def test_a_header_that_cannot_be_understood_is_refused(client: httpx.AsyncClient) -> None:
    for named in ("p1", "Patient/p1, Patient/p2", "patient", "#p1", "Patient/"):
        headers = {**PDF_TYPE, "x-security-context": named}
        answer = await client.post("/Binary", content=PDF, headers=headers)
        assert_outcome(answer, 400, "value", "Binary.securityContext")
    beside = await client.post(
        "/Binary", json=binary("a/b"), headers={"x-security-context": "Patient/p1"}
    )
    assert_outcome(beside, 400, "invalid", "Binary.securityContext")


# Limits


async def test_how_large_content_may_be(mongod: str) -> None:
    """It has a limit of its own, as content and as a resource, and in a Bundle."""
    settings = make_settings(mongod, max_binary_bytes=96 * KIB, max_resource_bytes=64 * KIB)
    async with running(settings) as (_, client):
        fits, over = os.urandom(96 * KIB), os.urandom(96 * KIB + 1)
        url = await put(client, fits)
        assert (await client.get(url)).content == fits
        resource = (await client.get(url, headers=AS_RESOURCE)).json()
        assert (await client.put(url, json=resource)).status_code == 200
        for type_ in ("application/pdf", "application/json"):
            headers = {"content-type": type_}
            refused = await client.put("/Binary/over", content=over, headers=headers)
            assert_outcome(refused, 413, "too-long")
        large = binary("a/b", os.urandom(160 * KIB), id="over")
        refused = await client.put("/Binary/over", json=large)
        assert_outcome(refused, 413, "too-long")
        request = {"method": "PUT", "url": "Binary/over"}
        bundle = {
            "resourceType": "Bundle",
            "type": "transaction",
            "entry": [{"resource": large, "request": request}],
        }
        assert_outcome(await client.post("", json=bundle), 413, "too-long")
        assert (await client.get("/Binary/over")).status_code == 404


@pytest.mark.slow
@pytest.mark.processes
async def test_the_largest_content_is_kept_to_the_byte(mongod: str) -> None:
    """As much as MongoDB takes as one document. No other process is asked to work on content."""
    most = 11 * 1024 * KIB
    content = os.urandom(most)
    async with running(make_settings(mongod, max_binary_bytes=most)) as (server, client):
        url = await put(client, content, {"prefer": "return=minimal"})
        part = await client.get(url, headers={"range": "bytes=1-"})
        assert part.content == content[1:]
        assert server.services.get(CodecProcess).pid is None


async def test_the_statement_says_it(client: httpx.AsyncClient, server: Server) -> None:
    stated = (await client.get("/metadata")).json()["rest"][0]["resource"]
    told = {each["type"]: each["documentation"] for each in stated if "documentation" in each}
    assert list(told) == ["Binary"]
    assert "X-Security-Context" in told["Binary"]


async def test_two_security_contexts_are_refused(client: httpx.AsyncClient) -> None:
    """In two headers as in one, which are the same: https://www.rfc-editor.org/rfc/rfc9110#section-5.3"""
    url = f"/Binary/{new_id()}"
    headers = [
        ("content-type", "application/pdf"),
        ("x-security-context", "Patient/p1"),
        ("x-security-context", "Patient/q1"),
    ]
    refused = await client.put(url, content=PDF, headers=headers)
    assert_outcome(refused, 400, "value", "Binary.securityContext")
    assert (await client.get(url)).status_code == 404


@pytest.mark.processes
async def test_large_content_is_taken_as_xml(client: httpx.AsyncClient) -> None:
    """Its base64 is longer than XML parsers take without being told."""
    id_ = new_id()
    data = base64.b64encode(bytes(7_600_000)).decode()
    body = (
        f'<Binary xmlns="http://hl7.org/fhir"><id value="{id_}"/>'
        f'<contentType value="application/pdf"/><data value="{data}"/></Binary>'
    )
    headers = {"content-type": "application/fhir+xml", "prefer": "return=minimal"}
    sent = await client.put(f"/Binary/{id_}", content=body, headers=headers)
    assert sent.status_code == 201, sent.text
    head = await client.head(f"/Binary/{id_}")
    assert head.headers["content-length"] == "7600000"
