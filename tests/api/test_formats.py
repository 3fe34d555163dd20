"""JSON, XML, `_pretty`, `_summary`, `_elements`, compression and the headers around every answer.

https://hl7.org/fhir/R4/http.html#mime-type and https://hl7.org/fhir/R4/search.html#summary
"""

from __future__ import annotations

import json
import uuid
import zlib
from typing import Any

import httpx
import pytest
import zstandard
from lxml import etree

from app.api.transport import choose_encoding
from tests.builders.patches import parameters, replace
from tests.conftest import make_settings, running
from tests.outcomes import assert_outcome

NS = "{http://hl7.org/fhir}"
DIV = '<div xmlns="http://www.w3.org/1999/xhtml">A <b>patient</b></div>'


def value_at(response: httpx.Response, path: str) -> str | None:
    element = etree.fromstring(response.content).find(path)
    return None if element is None else element.get("value")


async def stored(client: httpx.AsyncClient, **changes: Any) -> str:
    id_ = f"t-{uuid.uuid4()}"
    body = {
        "resourceType": "Patient",
        "id": id_,
        "text": {"status": "generated", "div": DIV},
        "active": True,
        "name": [{"family": "Vane", "given": ["Ida"]}],
        "photo": [{"contentType": "image/png"}],
        **changes,
    }
    assert (await client.put(f"/Patient/{id_}", json=body)).status_code == 201
    return f"/Patient/{id_}"


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        pytest.param("application/fhir+json", "application/fhir+json", id="fhir-json"),
        pytest.param("application/json", "application/fhir+json", id="json"),
        pytest.param("text/json", "application/fhir+json", id="text-json"),
        pytest.param("*/*", "application/fhir+json", id="any"),
        pytest.param("application/fhir+xml", "application/fhir+xml", id="fhir-xml"),
        pytest.param("application/xml", "application/fhir+xml", id="xml"),
        pytest.param("text/xml", "application/fhir+xml", id="text-xml"),
        pytest.param(
            "application/fhir+xml;q=0.4, application/fhir+json;q=0.8",
            "application/fhir+json",
            id="quality",
        ),
        pytest.param(
            "text/html, application/xml;q=0.9, */*;q=0.8", "application/fhir+xml", id="browser"
        ),
        pytest.param(
            "application/fhir+json; fhirVersion=4.0", "application/fhir+json", id="version"
        ),
    ],
)
async def test_accept_chooses_the_format(
    client: httpx.AsyncClient, accept: str, expected: str
) -> None:
    url = await stored(client)
    response = await client.get(url, headers={"accept": accept})
    assert response.status_code == 200
    assert response.headers["content-type"] == f"{expected}; charset=utf-8"


@pytest.mark.parametrize(
    "accept", ["image/png", "application/fhir+json; fhirVersion=5.0", "application/json;q=0"]
)
async def test_what_is_not_offered_is_406(client: httpx.AsyncClient, accept: str) -> None:
    url = await stored(client)
    assert_outcome(await client.get(url, headers={"accept": accept}), 406, "not-supported")


@pytest.mark.parametrize(
    ("format_", "is_xml"),
    [
        ("json", False),
        ("application/fhir+json", False),
        ("application/fhir%2Bjson", False),
        ("xml", True),
        ("application/fhir+xml", True),
        ("text/xml", True),
    ],
)
async def test_format_in_the_url_wins_over_accept(
    client: httpx.AsyncClient, format_: str, is_xml: bool
) -> None:
    url = await stored(client)
    other = "application/fhir+json" if is_xml else "application/fhir+xml"
    response = await client.get(f"{url}?_format={format_}", headers={"accept": other})
    assert ("xml" in response.headers["content-type"]) is is_xml
    assert_outcome(await client.get(f"{url}?_format=html"), 406, "not-supported")


async def test_a_resource_in_xml_comes_back_the_same_in_json(client: httpx.AsyncClient) -> None:
    xml = (
        f'<Patient xmlns="http://hl7.org/fhir"><text><status value="generated"/>{DIV}</text>'
        '<active value="true"/><name><family value="Vane"/></name></Patient>'
    )
    created = await client.post(
        "/Patient", content=xml, headers={"content-type": "application/fhir+xml"}
    )
    assert created.status_code == 201
    body = created.json()
    assert (body["active"], body["name"], body["text"]["div"]) == (True, [{"family": "Vane"}], DIV)
    back = await client.get(f"/Patient/{body['id']}", headers={"accept": "application/fhir+xml"})
    assert value_at(back, f"{NS}name/{NS}family") == "Vane"


async def test_bundles_searches_and_errors_speak_xml_too(client: httpx.AsyncClient) -> None:
    accept = {"accept": "application/fhir+xml"}
    url = await stored(client)
    search = await client.get("/Patient", params={"_id": url.rpartition("/")[2]}, headers=accept)
    entry = etree.fromstring(search.content).find(f"{NS}entry/{NS}resource/{NS}Patient")
    assert entry is not None
    missing = await client.get("/Patient/none-such", headers=accept)
    assert missing.status_code == 404
    assert value_at(missing, f"{NS}issue/{NS}code") == "not-found"
    bundle = (
        '<Bundle xmlns="http://hl7.org/fhir"><type value="transaction"/><entry><resource><Patient>'
        '<active value="true"/></Patient></resource><request><method value="POST"/><url value="Patient"/>'
        "</request></entry></Bundle>"
    )
    answer = await client.post("", content=bundle, headers={"content-type": "application/fhir+xml"})
    assert answer.json()["entry"][0]["response"]["status"] == "201"


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("<Patient", id="malformed"),
        pytest.param('<Patient xmlns="urn:other"/>', id="namespace"),
        pytest.param(
            '<!DOCTYPE x [<!ENTITY a "b">]><Patient xmlns="http://hl7.org/fhir"/>', id="doctype"
        ),
        pytest.param(
            '<Patient xmlns="http://hl7.org/fhir"><bogus value="1"/></Patient>', id="element"
        ),
    ],
)
async def test_xml_that_is_refused(client: httpx.AsyncClient, body: str) -> None:
    response = await client.post(
        "/Patient", content=body, headers={"content-type": "application/fhir+xml"}
    )
    assert_outcome(response, 400, "structure")


async def test_pretty_indents_both_formats(client: httpx.AsyncClient) -> None:
    url = await stored(client)
    pretty = await client.get(f"{url}?_pretty=true")
    assert pretty.text.startswith("{\n  ")
    assert pretty.json() == (await client.get(url)).json()
    assert "\n  <" in (await client.get(f"{url}?_pretty=true&_format=xml")).text
    assert_outcome(await client.get(f"{url}?_pretty=maybe"), 400, "value")


@pytest.mark.parametrize(
    ("query", "present", "absent"),
    [
        pytest.param("_summary=true", {"active", "name"}, {"text", "photo"}, id="true"),
        pytest.param("_summary=text", {"text"}, {"active", "name", "photo"}, id="text"),
        pytest.param("_summary=data", {"active", "name", "photo"}, {"text"}, id="data"),
        pytest.param("_elements=name", {"name"}, {"active", "text", "photo"}, id="elements"),
        pytest.param(
            "_elements=Patient.name,active", {"name", "active"}, {"text", "photo"}, id="qualified"
        ),
    ],
)
async def test_a_resource_cut_down_says_so(
    client: httpx.AsyncClient, query: str, present: set[str], absent: set[str]
) -> None:
    url = await stored(client)
    read = (await client.get(f"{url}?{query}")).json()
    found = (await client.get(f"/Patient?_id={url.rpartition('/')[2]}&{query}")).json()
    for resource in (read, found["entry"][0]["resource"]):
        assert present <= set(resource)
        assert not absent & set(resource)
        assert {"resourceType", "id", "meta"} <= set(resource)
        assert [tag["code"] for tag in resource["meta"]["tag"]] == ["SUBSETTED"]
    whole = (await client.get(f"{url}?_summary=false")).json()
    assert {"text", "photo"} <= set(whole)
    assert "tag" not in whole["meta"]


async def test_mandatory_elements_stay(client: httpx.AsyncClient) -> None:
    body = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "x"},
        "note": [{"text": "y"}],
    }
    url = f"/Observation/{(await client.post('/Observation', json=body)).json()['id']}"
    cut = (await client.get(f"{url}?_elements=subject")).json()
    assert {"status", "code"} <= set(cut)
    assert "note" not in cut


async def test_summary_count_is_only_a_number(client: httpx.AsyncClient) -> None:
    url = await stored(client)
    bundle = (await client.get(f"/Patient?_id={url.rpartition('/')[2]}&_summary=count")).json()
    assert (bundle["total"], "entry" in bundle) == (1, False)


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", None),
        ("gzip", "gzip"),
        ("gzip, zstd", "zstd"),
        ("gzip;q=1, zstd;q=0.5", "gzip"),
        ("br", None),
        ("*", "zstd"),
        ("gzip;q=0", None),
        ("zstd;q=junk, gzip", "gzip"),
    ],
)
def test_the_encoding_is_negotiated(accepted: str, chosen: str | None) -> None:
    assert choose_encoding(accepted) == chosen


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_large_answers_are_compressed(client: httpx.AsyncClient, encoding: str) -> None:
    url = await stored(client, name=[{"family": "x" * 5000}])
    plain = await client.get(url, headers={"accept-encoding": "identity"})
    assert "content-encoding" not in plain.headers
    async with client.stream("GET", url, headers={"accept-encoding": encoding}) as response:
        raw = b"".join([chunk async for chunk in response.aiter_raw()])
    assert (response.headers["content-encoding"], response.headers["vary"]) == (
        encoding,
        "accept-encoding",
    )
    assert len(raw) == int(response.headers["content-length"]) < len(plain.content) / 5
    body = (
        zlib.decompress(raw, 31)
        if encoding == "gzip"
        else zstandard.ZstdDecompressor().decompress(raw)
    )
    assert json.loads(body) == plain.json()


async def test_the_request_id_is_echoed_or_made(client: httpx.AsyncClient) -> None:
    echoed = await client.get("/metadata", headers={"x-request-id": "abc-123"})
    assert echoed.headers["x-request-id"] == "abc-123"
    first, second = [(await client.get("/Patient/x")).headers["x-request-id"] for _ in range(2)]
    assert first != second
    forged = await client.get("/metadata", headers={"x-request-id": "a b\tc"})
    assert forged.headers["x-request-id"] != "a b\tc"


async def test_a_url_over_the_limit_is_refused(client: httpx.AsyncClient) -> None:
    assert_outcome(await client.get("/Patient", params={"name": "x" * 9000}), 414, "too-long")


@pytest.mark.slow
async def test_cors_is_off_unless_origins_are_set(client: httpx.AsyncClient, mongod: str) -> None:
    """https://hl7.org/fhir/R4/security.html#cors and https://fetch.spec.whatwg.org/#http-cors-protocol"""
    allowed = "access-control-allow-origin"
    page = {"origin": "https://app.example"}
    assert allowed not in (await client.get("/metadata", headers=page)).headers
    written = "HTTPS://App.example:443/, http://localhost:3000"
    async with running(make_settings(mongod, cors_origins=written)) as (_, other):
        answer = await other.put(
            "/Patient/cors", json={"resourceType": "Patient", "id": "cors"}, headers=page
        )
        assert answer.status_code == 201
        assert answer.headers[allowed] == page["origin"]
        exposed = set(answer.headers["access-control-expose-headers"].split(", "))
        assert {"ETag", "Location", "Content-Location", "Last-Modified"} <= exposed
        assert "access-control-allow-credentials" not in answer.headers
        wanted = "authorization,content-type,if-match,if-none-exist,prefer"
        for method in ("PUT", "PATCH", "DELETE"):
            preflight = await other.options(
                "/Patient",
                headers={
                    **page,
                    "access-control-request-method": method,
                    "access-control-request-headers": wanted,
                },
            )
            assert preflight.status_code == 200
            assert preflight.headers[allowed] == page["origin"]
            assert method in preflight.headers["access-control-allow-methods"]
            assert preflight.headers["access-control-allow-headers"] == wanted
        refused = await other.get("/Patient/none", headers=page)  # a page has to see its failures
        assert (refused.status_code, refused.headers[allowed]) == (404, page["origin"])
        for origin in ("https://evil.example", "https://app.example.evil", "http://app.example"):
            foreign = await other.get("/metadata", headers={"origin": origin})
            assert (foreign.status_code, allowed in foreign.headers) == (403, False)


@pytest.mark.slow
async def test_no_page_may_use_what_a_browser_knows_of_its_user(mongod: str) -> None:
    """No cookie and no certificate counts, whatever page asks, and `*` names nobody."""
    async with running(make_settings(mongod, cors_origins="*")) as (_, client):
        page = {"origin": "https://any.example", "access-control-request-method": "PUT"}
        for answer in (
            await client.get("/metadata", headers=page),
            await client.options("/Patient", headers=page),
        ):
            assert answer.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize(
    ("prefer", "kind"),
    [
        pytest.param("return=minimal", None, id="minimal"),
        pytest.param("return=representation", "Patient", id="representation"),
        pytest.param("return=OperationOutcome", "OperationOutcome", id="outcome"),
        pytest.param("return=bogus, wait=10", "Patient", id="unknown-is-ignored"),
    ],
)
async def test_prefer_return(client: httpx.AsyncClient, prefer: str, kind: str | None) -> None:
    response = await client.post(
        "/Patient", json={"resourceType": "Patient"}, headers={"prefer": prefer}
    )
    assert response.status_code == 201
    assert response.headers["location"]
    assert response.headers["etag"] == 'W/"1"'
    assert (response.json()["resourceType"] if response.content else None) == kind


async def test_a_repeating_primitive_without_a_value_keeps_its_null_in_every_form(
    client: httpx.AsyncClient,
) -> None:
    """https://hl7.org/fhir/R4/json.html#primitive: in JSON, two arrays; in XML, an element without a value."""
    absent = {
        "extension": [
            {
                "url": "http://hl7.org/fhir/StructureDefinition/data-absent-reason",
                "valueCode": "unknown",
            }
        ]
    }
    name = {"family": "Vane", "given": [None], "_given": [absent]}
    path = await stored(client, name=[name])
    in_xml = await client.get(path, headers={"accept": "application/fhir+xml"})
    sent = await client.put(
        path, content=in_xml.content, headers={"content-type": "application/fhir+xml"}
    )
    assert sent.status_code == 200
    assert (await client.get(path)).json()["name"] == [name]
    added = parameters(replace("Patient.name.family", valueString="Weir"))
    patched = await client.patch(
        path, json=added, headers={"content-type": "application/fhir+json"}
    )
    assert patched.status_code == 200, patched.text
    assert patched.json()["name"] == [{**name, "family": "Weir"}]
