"""Requests that nobody would send: no input makes the server fail, and every refusal is an OperationOutcome.

The requests are drawn by hypothesis, the same ones in every run; what once made the server fail is listed by name.
"""

from __future__ import annotations

import base64
import json
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from app.fhir import json as fhir_json, xml as fhir_xml
from app.fhir.definitions import EXAMPLES
from tests.builders.minimal_resources import minimal
from tests.conftest import BASE

pytestmark = pytest.mark.slow

JSON = "application/fhir+json"
XML = "application/fhir+xml"
FORM = "application/x-www-form-urlencoded"
JSON_PATCH = "application/json-patch+json"
XML_PATCH = "application/xml-patch+xml"
MEDIA_TYPES = (JSON, XML, FORM, JSON_PATCH, XML_PATCH, "text/html", "")
TYPES = ("Patient", "Encounter", "Observation", "Bundle", "Parameters", "Subscription", "Binary")
STORED = "fuzzed"

bounded = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


def panel_resources() -> list[dict[str, Any]]:
    path = EXAMPLES / "panel" / sorted(p.name for p in (EXAMPLES / "panel").glob("*.json"))[-1]
    return [entry["resource"] for entry in fhir_json.decode(path.read_bytes())["entry"]]


RESOURCES = [*panel_resources(), *(minimal(name) for name in TYPES)]

text = st.text(max_size=12)
odd_text = st.sampled_from(
    [
        "",
        " ",
        "\0",
        "$",
        "$where",
        "__proto__",
        "*",
        "a,b",
        "|",
        "\\",
        "..",
        "\U0010ffff",
        "a" * 300,
        "-1",
        "1e999",
        "9" * 30,
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        "urn:uuid:x",
        "Patient?identifier=a|b",
        "Patient/" + STORED,
        "#x",
        "http://[",
    ]
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    odd_text,
    text,
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text | odd_text, inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(value, dict):
        for key, child in value.items():
            found += places(child, (*path, key))
    elif isinstance(value, list):
        for index, child in enumerate(value):
            found += places(child, (*path, index))
    return found


@st.composite
def mutated(draw: st.DrawFn, originals: st.SearchStrategy[Any]) -> Any:
    """A value with up to three places in it replaced, removed, doubled, or given an odd key."""
    whole = {"": json.loads(fhir_json.encode(draw(originals)))}
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(places(whole)[1:] or [("",)]))
        parent: Any = whole
        for step in path[:-1]:
            parent = parent[step]
        change = draw(st.sampled_from(["replace", "remove", "wrap", "add"]))
        if change == "remove" and len(path) > 1:
            del parent[path[-1]]
        elif change == "wrap":
            parent[path[-1]] = [parent[path[-1]]] * draw(st.integers(1, 2))
        elif change == "add" and isinstance(parent, dict) and len(path) > 1:
            parent[draw(odd_text | text | st.just(f"_{path[-1]}"))] = draw(values)
        else:
            parent[path[-1]] = draw(values)
    return whole.get("")


resources = mutated(st.sampled_from(RESOURCES))


def operation(*parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "resourceType": "Parameters",
        "parameter": [{"name": "operation", "part": list(parts)}],
    }


def patch_parts(kind: str, path: str, **more: Any) -> dict[str, Any]:
    parts = [{"name": "type", "valueCode": kind}, {"name": "path", "valueString": path}]
    return operation(*parts, *({"name": name, **value} for name, value in more.items()))


FHIRPATH_PATCHES = [
    patch_parts("add", "Patient", name={"valueString": "active"}, value={"valueBoolean": False}),
    patch_parts("replace", "Patient.name[0].family", value={"valueString": "x"}),
    patch_parts("delete", "Patient.extension('http://example.org/x').first()"),
    patch_parts("insert", "Patient.name", index={"valueInteger": 0}, value={"valueString": "x"}),
    patch_parts(
        "move", "Patient.name", source={"valueInteger": 0}, destination={"valueInteger": 1}
    ),
]
JSON_PATCHES = [
    [{"op": "add", "path": "/active", "value": True}],
    [{"op": "replace", "path": "/name/0/family", "value": "x"}],
    [{"op": "remove", "path": "/birthDate"}, {"op": "test", "path": "/id", "value": STORED}],
    [
        {"op": "copy", "from": "/name", "path": "/name/-"},
        {"op": "move", "from": "/a", "path": "/b"},
    ],
]
XML_PATCHES = [
    '<diff xmlns:f="http://hl7.org/fhir"><remove sel="f:Patient/f:birthDate"/></diff>',
    '<diff xmlns:f="http://hl7.org/fhir"><replace sel="f:Patient/f:active/@value">false</replace></diff>',
    '<diff><add sel="*[1]" pos="before"><x/></add></diff>',
]
BUNDLES = [
    {
        "resourceType": "Bundle",
        "type": kind,
        "entry": [
            {
                "fullUrl": "urn:uuid:c757873d-ec9a-4326-a141-556f43239520",
                "resource": minimal("Patient"),
                "request": {"method": "POST", "url": "Patient", "ifNoneExist": "identifier=a|b"},
            },
            {
                "resource": {
                    **minimal("Observation"),
                    "subject": {"reference": "urn:uuid:c757873d-ec9a-4326-a141-556f43239520"},
                    "performer": [{"reference": "Patient?_id=none"}],
                },
                "request": {"method": "PUT", "url": "Observation?_id=none", "ifMatch": 'W/"1"'},
            },
            {
                "resource": {"resourceType": "Binary", "contentType": JSON_PATCH, "data": "W10="},
                "request": {"method": "PATCH", "url": f"Patient/{STORED}"},
            },
            {"request": {"method": "GET", "url": "Patient?_count=1", "ifNoneMatch": 'W/"1"'}},
            {"request": {"method": "DELETE", "url": "Patient/none-such"}},
        ],
    }
    for kind in ("batch", "transaction")
]

PATCHING = {"method": "PATCH", "url": f"Patient/{STORED}"}


def of_one(entry: Any) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}


segments = st.one_of(
    st.sampled_from(
        [
            *TYPES,
            STORED,
            "metadata",
            "_history",
            "_search",
            "$validate",
            "$everything",
            "$meta",
            "$meta-add",
            "1",
            "Banana",
        ]
    ),
    odd_text,
    text,
)
names = st.one_of(
    st.sampled_from(
        [
            "_id",
            "_count",
            "_since",
            "_at",
            "_sort",
            "_cursor",
            "_format",
            "_pretty",
            "_summary",
            "_elements",
            "_total",
            "_lastUpdated",
            "_tag",
            "identifier",
            "name:exact",
            "birthdate",
            "subject:Patient.name",
            "value-quantity",
            "code-value-quantity",
            "mode",
            "_type",
            "start",
            "_include",
        ]
    ),
    text,
)
queries = st.lists(st.tuples(names, odd_text | text), max_size=3)
header_values = st.one_of(
    st.sampled_from(
        [
            'W/"1"',
            "*",
            '"',
            "Mon, 01 Jan 2024 00:00:00 GMT",
            "Mon, 01 Jan 2024 00:00:00",
            "Mon, 01 Jan 0001 00:00:00 +1400",
            "return=minimal",
            "handling=lenient; respond-async",
            "return=OperationOutcome",
            "application/fhir+xml;q=0",
            "text/*, */*;q=x",
            "identifier=a|b",
            "br;q=1, gzip;q=0.5",
        ]
    ),
    st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
)
headers = st.dictionaries(
    st.sampled_from(
        [
            "accept",
            "accept-encoding",
            "if-match",
            "if-none-match",
            "if-modified-since",
            "if-none-exist",
            "prefer",
            "x-request-id",
            "host",
        ]
    ),
    header_values,
    max_size=2,
)


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def as_xml(resource: Any) -> bytes:
    try:
        return fhir_xml.encode(resource)
    except Exception:  # mutated into what has no XML; sent as it is
        return encoded(resource)


@st.composite
def damaged(draw: st.DrawFn, bodies: st.SearchStrategy[bytes]) -> bytes:
    """Bytes with a piece cut out and another put in."""
    body = draw(bodies)
    start = draw(st.integers(0, len(body)))
    end = min(len(body), start + draw(st.integers(0, 8)))
    return body[:start] + draw(st.binary(max_size=8)) + body[end:]


bodies: st.SearchStrategy[tuple[str, bytes]] = st.one_of(
    st.tuples(st.just(JSON), resources.map(encoded)),
    st.tuples(st.just(XML), st.sampled_from(RESOURCES).map(as_xml) | resources.map(as_xml)),
    st.tuples(st.just(JSON), damaged(resources.map(encoded))),
    st.tuples(st.just(XML), damaged(st.sampled_from(RESOURCES).map(as_xml))),
    st.tuples(st.sampled_from(MEDIA_TYPES), st.binary(max_size=40)),
)


async def send(client: httpx.AsyncClient, method: str, path: str, **request: Any) -> None:
    """Send one request; the answer must be none of ours to be ashamed of."""
    response = await client.request(method, path, **request)
    said = (method, path, request, response.status_code, response.text[:500])
    assert response.status_code < 500, said
    if response.status_code >= 400 and method != "HEAD":
        content_type = response.headers["content-type"]
        assert content_type.startswith(("application/fhir+json", "application/fhir+xml")), said
        is_xml = content_type.startswith(XML)
        outcome = fhir_xml.decode(response.content) if is_xml else response.json()
        assert outcome["resourceType"] == "OperationOutcome", said
        assert all(issue["diagnostics"] for issue in outcome["issue"]), said
    elif response.headers.get("content-type", "").startswith(JSON) and method != "HEAD":
        fhir_json.decode(response.content)


@pytest.fixture
async def target(client: httpx.AsyncClient) -> httpx.AsyncClient:
    """The client of a server that holds the resource which requests are aimed at."""
    patient = {
        "resourceType": "Patient",
        "id": STORED,
        "active": True,
        "birthDate": "1950-01-01",
        "name": [{"family": "Thistlewick"}, {"family": "Fuzz"}],
    }
    response = await client.put(f"/Patient/{STORED}", json=patient)
    assert response.status_code in (200, 201)
    return client


def address(path: list[str]) -> str:
    return f"{BASE}/" + "/".join(quote(part, safe="") for part in path)


@bounded
@given(
    st.sampled_from(["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]),
    st.lists(segments, max_size=4),
    queries,
    headers,
    bodies,
)
async def test_any_request(
    target: httpx.AsyncClient,
    method: str,
    path: list[str],
    query: list[tuple[str, str]],
    header: dict[str, str],
    body: tuple[str, bytes],
) -> None:
    content_type, content = body
    if method in ("GET", "HEAD", "DELETE", "OPTIONS"):
        await send(target, method, address(path), params=query, headers=header)
    else:
        header = {**header, "content-type": content_type}
        await send(target, method, address(path), params=query, headers=header, content=content)


@bounded
@given(
    st.sampled_from(TYPES),
    st.sampled_from(["", f"/{STORED}", "/_history", "/$everything"]),
    queries,
    headers,
)
@example("Patient", f"/{STORED}", [], {"if-modified-since": "Mon, 01 Jan 2024 00:00:00"})
@example("Patient", f"/{STORED}", [], {"if-modified-since": "Mon, 01 Jan 2024 00:00:00 -0000"})
@example("Patient", "/_history", [("_since", "0001-01-01T00:00:00+14:00")], {})
@example("Patient", f"/{STORED}/$everything", [("_since", "monday")], {})
@example("Patient", f"/{STORED}/$everything", [], {"host": 'a"b'})
async def test_any_query_and_header_of_a_read(
    target: httpx.AsyncClient,
    resource_type: str,
    place: str,
    query: list[tuple[str, str]],
    header: dict[str, str],
) -> None:
    await send(target, "GET", f"/{resource_type}{place}", params=query, headers=header)


@bounded
@given(st.sampled_from(RESOURCES), st.data())
async def test_any_resource(
    target: httpx.AsyncClient, resource: dict[str, Any], data: st.DataObject
) -> None:
    body = data.draw(mutated(st.just({**resource, "id": STORED})))
    path = f"/{resource['resourceType']}"
    await send(target, "PUT", f"{path}/{STORED}", content=encoded(body))
    await send(target, "POST", f"{path}/$validate", content=encoded(body))
    xml = data.draw(damaged(st.just(as_xml(resource))))
    await send(target, "POST", path, content=xml, headers={"content-type": XML})


@bounded
@given(
    st.one_of(
        st.tuples(st.just(JSON), mutated(st.sampled_from(FHIRPATH_PATCHES)).map(encoded)),
        st.tuples(st.just(JSON_PATCH), mutated(st.sampled_from(JSON_PATCHES)).map(encoded)),
        st.tuples(st.just(XML_PATCH), damaged(st.sampled_from(XML_PATCHES).map(str.encode))),
        st.tuples(st.just(XML), st.sampled_from(FHIRPATH_PATCHES).map(as_xml)),
    )
)
@example((JSON_PATCH, b'[{"op": "copy", "path": "/name/-"}]'))
@example((JSON_PATCH, encoded([{"op": "copy", "from": "/name", "path": "/name/-"}] * 60)))
@example((JSON_PATCH, b"[" * 30_000))
async def test_any_patch(target: httpx.AsyncClient, patch: tuple[str, bytes]) -> None:
    content_type, content = patch
    header = {"content-type": content_type}
    await send(target, "PATCH", f"/Patient/{STORED}", content=content, headers=header)


@bounded
@given(mutated(st.sampled_from(BUNDLES)))
@example({"resourceType": "Bundle", "type": "batch", "entry": 5})
@example(of_one({"request": {"method": [], "url": "Patient"}}))
@example(of_one({"request": {"method": "POST", "url": "Patient", "ifMatch": 5}}))
@example(of_one({"request": {"method": "POST", "url": "Patient"}, "fullUrl": 5}))
@example(of_one({"request": PATCHING, "resource": {"resourceType": "Binary", "data": "\xe9"}}))
async def test_any_bundle(target: httpx.AsyncClient, bundle: Any) -> None:
    await send(target, "POST", "", content=encoded(bundle))


@bounded
@given(mutated(st.sampled_from(JSON_PATCHES)))
async def test_any_patch_in_a_bundle(target: httpx.AsyncClient, patch: Any) -> None:
    data = base64.b64encode(encoded(patch)).decode()
    binary = {"resourceType": "Binary", "contentType": JSON_PATCH, "data": data}
    bundle = of_one({"resource": binary, "request": PATCHING})
    await send(target, "POST", "", content=encoded(bundle))


@bounded
@given(
    st.sampled_from(["$validate", "$meta", "$meta-add", "$meta-delete", "$everything"]),
    mutated(
        st.sampled_from(
            [
                {
                    "resourceType": "Parameters",
                    "parameter": [{"name": "mode", "valueCode": "create"}],
                },
                {
                    "resourceType": "Parameters",
                    "parameter": [
                        {"name": "meta", "valueMeta": {"tag": [{"system": "a", "code": "b"}]}},
                        {"name": "_count", "valueInteger": 1},
                        {"name": "_since", "valueInstant": "2024-01-01T00:00:00Z"},
                        {"name": "resource", "resource": minimal("Patient")},
                    ],
                },
                minimal("Patient"),
            ]
        )
    ),
)
@example("$validate", {"resourceType": "Parameters", "parameter": 5})
@example("$validate", {"resourceType": "Parameters", "parameter": [{"name": [], "resource": 5}]})
@example(
    "$validate", {"resourceType": "Parameters", "parameter": [{"name": "resource", "resource": 5}]}
)
@example(
    "$meta-add", {"resourceType": "Parameters", "parameter": [{"name": "meta", "valueMeta": 5}]}
)
async def test_any_call_of_an_operation(target: httpx.AsyncClient, code: str, body: Any) -> None:
    for place in ("", "/Patient", f"/Patient/{STORED}"):
        await send(target, "POST", f"{place}/{code}", content=encoded(body))
