"""Text that would be code to a database or a careless parser: refused, or kept as the text it is.

Whatever is sent, no answer is a 5xx, nothing that should not match does, and what was stored stays as it was.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings as examples, strategies as st

from app.fhir import definitions
from tests.conftest import Server, make_settings, running

pytestmark = pytest.mark.slow

JSON = {"content-type": "application/fhir+json"}
JSON_PATCH = {"content-type": "application/json-patch+json"}
CANARY = "Zimmermann-Canary"

STORED: list[dict[str, Any]] = [
    {
        "resourceType": "Patient",
        "id": "inj-patient",
        "active": True,
        "identifier": [{"system": "urn:inj", "value": CANARY}],
        "name": [{"family": CANARY, "given": ["Ada"]}],
        "birthDate": "1948-05-14",
        "telecom": [{"system": "phone", "value": "555-0100"}],
        "address": [{"city": CANARY, "postalCode": "90001"}],
    },
    {
        "resourceType": "Observation",
        "id": "inj-observation",
        "status": "final",
        "code": {"coding": [{"system": "http://loinc.org", "code": "2951-2"}], "text": CANARY},
        "subject": {"reference": "Patient/inj-patient"},
        "effectiveDateTime": "2026-05-14T10:00:00Z",
        "valueQuantity": {"value": 5, "unit": "mg", "system": "urn:units", "code": "mg"},
    },
    {
        "resourceType": "RiskAssessment",
        "id": "inj-risk",
        "status": "final",
        "subject": {"reference": "Patient/inj-patient"},
        "prediction": [{"probabilityDecimal": 0.5}],
    },
    {
        "resourceType": "ValueSet",
        "id": "inj-set",
        "url": f"http://inj.example/{CANARY}",
        "status": "active",
    },
    {
        "resourceType": "Location",
        "id": "inj-location",
        "name": CANARY,
        "position": {"longitude": -118.2, "latitude": 34.0},
    },
]
# A parameter of each search type, of a resource that is stored.
PARAMETERS = [
    ("Patient", "name", "string"),
    ("Patient", "identifier", "token"),
    ("Patient", "active", "token"),
    ("Patient", "birthdate", "date"),
    ("Patient", "general-practitioner", "reference"),
    ("Observation", "subject", "reference"),
    ("Observation", "code", "token"),
    ("Observation", "date", "date"),
    ("Observation", "value-quantity", "quantity"),
    ("Observation", "code-value-quantity", "composite"),
    ("RiskAssessment", "probability", "number"),
    ("ValueSet", "url", "uri"),
    ("Location", "near", "special"),
    ("Patient", "_id", "token"),
    ("Patient", "_lastUpdated", "date"),
    ("Patient", "_tag", "token"),
    ("Patient", "_profile", "uri"),
    ("Patient", "_text", "string"),
    ("Patient", "_content", "string"),
    ("Patient", "_list", "special"),
    ("Patient", "_filter", "special"),
    ("Patient", "_sort", "result"),
    ("Patient", "_count", "result"),
    ("Patient", "_include", "result"),
    ("Patient", "_revinclude", "result"),
    ("Patient", "_elements", "result"),
    ("Patient", "_summary", "result"),
    ("Patient", "_total", "result"),
    ("Patient", "_cursor", "result"),
    ("Patient", "_contained", "result"),
    ("Patient", "_type", "result"),
    ("Patient", "_has:Observation:subject:code", "chain"),
    ("Observation", "subject:Patient.name", "chain"),
    ("Observation", "subject.identifier", "chain"),
]
MODIFIERS = [
    *("", ":exact", ":contains", ":text", ":in", ":not-in", ":above", ":below", ":of-type"),
    *(
        ":identifier",
        ":missing",
        ":not",
        ":iterate",
        ":Patient",
        ":$where",
        ":$ne",
        ":.",
        ":*",
        "[$ne]",
    ),
    *("[$regex]", "[]", ".$where", ".__proto__"),
]
# Modifiers that find what does not have the value.
NEGATIVE = frozenset({":not", ":not-in", ":missing"})
ATTACKS = [
    '{"$ne":null}',
    '{"$gt":""}',
    '{"$regex":".*"}',
    '{"$where":"sleep(5000)"}',
    "[$ne]=1",
    "$where",
    "$ne",
    "';return true;var a='",
    "' || '1'=='1",
    '" || "1"=="1',
    "1;sleep(10000)",
    "0;var d=new Date();do{c=new Date();}while(c-d<9000);",
    "this.constructor.constructor('return process')()",
    "terms.0",
    "private.secret",
    "a.$.b",
    "*",
    ".*",
    "^",
    "^Zimm",
    "Zimm.*",
    "(?i)zimm",
    "(a+)+$" + "a" * 40,
    "[",
    "(",
    "\\",
    "\\x00",
    "\x00",
    "a\x00b",
    "%00",
    "%",
    "_",
    "\uffff",
    "\U0010ffff",
    "\ud7ff\ue000",
    "__proto__",
    "constructor.prototype",
    "../../../etc/passwd",
    "${jndi:ldap://127.0.0.1/a}",
    "{{7*7}}",
    "${7*7}",
    "<script>alert(1)</script>",
    "eq eq eq",
    "name eq " + CANARY[:4] + '" or name ne "x',
    "name ne",
    "not (name eq x",
    "9" * 400,
    "-" + "9" * 400,
    "1e999999999",
    "1e-999999999",
    "NaN",
    "Infinity",
    "-0",
    "0x10",
    "ge" * 50,
    "|" * 200,
    "," * 200,
    "$" * 200,
    "((((((((((" * 30,
    "x" * 4000,
    "Patient/" + "../" * 20,
    "Patient/inj-patient/_history/{$gt:0}",
    "#" * 20,
    "\r\nSet-Cookie: a=b",
    "%0d%0aSet-Cookie:%20a=b",
    "\u202e\u0000",
]


@pytest.fixture(scope="module")
async def target(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    async with running(make_settings(mongod)) as (server, client):
        for resource in STORED:
            answer = await client.put(
                f"/{resource['resourceType']}/{resource['id']}", json=resource
            )
            assert answer.status_code == 201, answer.text
        yield server, client


async def state(server: Server) -> tuple[Any, ...]:
    """All that is stored of resources, as text."""
    db = server.mongo.db
    current = [
        [(row["_id"], row["v"], row.get("text")) async for row in db[name].find().sort("_id")]
        for name in sorted({resource["resourceType"] for resource in STORED})
    ]
    return current, await db["versions"].count_documents({}), await db.list_collection_names()


def assert_harmless(answer: httpx.Response) -> None:
    """No failure of ours, an OperationOutcome for a refusal, and no header that came from the request."""
    assert answer.status_code < 500, answer.text
    assert "set-cookie" not in answer.headers
    if answer.status_code >= 400:
        assert answer.json()["resourceType"] == "OperationOutcome"


def matches(answer: httpx.Response) -> list[str]:
    if answer.status_code != 200:
        return []
    return [
        entry["fullUrl"]
        for entry in answer.json().get("entry", [])
        if entry.get("search", {}).get("mode") == "match"
    ]


@pytest.mark.parametrize(
    ("resource_type", "name", "kind"),
    [pytest.param(*row, id=f"{row[0]}-{row[1]}") for row in PARAMETERS],
)
async def test_search_values_are_text(
    target: tuple[Server, httpx.AsyncClient], resource_type: str, name: str, kind: str
) -> None:
    server, client = target
    before = await state(server)
    for attack in ATTACKS:
        query = f"/{resource_type}?{quote(name)}={quote(attack, safe='')}"
        answer = await client.get(query)
        assert_harmless(answer)
        if kind not in ("result", "special"):
            assert matches(answer) == [], attack
    assert await state(server) == before


@pytest.mark.parametrize("modifier", MODIFIERS)
async def test_modifiers_do_not_widen(
    target: tuple[Server, httpx.AsyncClient], modifier: str
) -> None:
    server, client = target
    before = await state(server)
    for resource_type, name, kind in PARAMETERS:
        if kind in ("result", "special"):
            continue
        for attack in ATTACKS[:: 6 if modifier else 1]:
            posted = await client.post(
                f"/{resource_type}/_search", data={f"{name}{modifier}": attack}
            )
            assert_harmless(posted)
            if modifier not in NEGATIVE:
                assert matches(posted) == [], (name, attack)
    assert await state(server) == before


async def test_every_parameter_of_a_type_withstands_operators(
    target: tuple[Server, httpx.AsyncClient],
) -> None:
    _, client = target
    for resource_type in ("Patient", "Observation", "Encounter", "Subscription"):
        for name in definitions.search_parameters(resource_type):
            for attack in ('{"$ne":null}', "$where", "\x00", "9" * 400):
                answer = await client.get(
                    f"/{resource_type}?{quote(name)}={quote(attack, safe='')}"
                )
                assert_harmless(answer)
                assert matches(answer) == [], (name, attack)


SEGMENTS = [
    '{"$ne":null}',
    "$where",
    "%00",
    "inj-patient%00",
    "..",
    "%2e%2e",
    "%2e%2e%2fversions",
    "inj-patient%2f_history%2f1",
    "*",
    ".*",
    "inj-patien%74%20",
    "__proto__",
    "x" * 100,
    "%ff%fe",
    "\U0001f600",
    "inj_patient",
    "inj-patient;v=1",
    "[object Object]",
]


@pytest.mark.parametrize("segment", SEGMENTS)
async def test_paths_are_text(target: tuple[Server, httpx.AsyncClient], segment: str) -> None:
    server, client = target
    before = await state(server)
    written = segment if "%" in segment else quote(segment, safe="")
    for url in (
        f"/Patient/{written}",
        f"/{written}/inj-patient",
        f"/{written}",
        f"/Patient/inj-patient/_history/{written}",
        f"/Patient/{written}/_history",
        f"/Patient/inj-patient/{written}",
        f"/${written}",
        f"/Patient/{written}/$everything",
    ):
        answer = await client.get(url)
        assert_harmless(answer)
    body = json.dumps({"resourceType": "Patient", "id": "other"})
    for method in ("PUT", "PATCH", "DELETE"):
        for url in (f"/Patient/{written}", f"/{written}/inj-patient"):
            answer = await client.request(method, url, content=body, headers=JSON)
            assert_harmless(answer)
    assert await state(server) == before


DEEP = '{"a":' * 5000 + "1" + "}" * 5000
BODIES: dict[str, str] = {
    "where": '{"resourceType":"Patient","$where":"1"}',
    "operator": '{"resourceType":"Patient","birthDate":{"$gt":""}}',
    "operator-in-list": '{"resourceType":"Patient","name":[{"$ne":1}]}',
    "operator-as-list": '{"resourceType":"Patient","active":[{"$ne":1}]}',
    "set": '{"$set":{"resourceType":"Patient"}}',
    "dotted": '{"resourceType":"Patient","name.0.family":"x"}',
    "dotted-deep": '{"resourceType":"Patient","name":[{"family.x":"x"}]}',
    "dollar": '{"resourceType":"Patient","$":"x"}',
    "empty-key": '{"resourceType":"Patient","":"x"}',
    "proto": '{"resourceType":"Patient","__proto__":{"active":true}}',
    "constructor": '{"resourceType":"Patient","constructor":{"prototype":{}}}',
    "own-fields": '{"resourceType":"Patient","terms":["*"],"v":9,"text":{"status":"x"}}',
    "private": '{"resourceType":"Patient","private":{"secret":"x"}}',
    "mongo-id": '{"resourceType":"Patient","_id":"inj-patient"}',
    "mongo-oid": '{"resourceType":"Patient","id":{"$oid":"507f1f77bcf86cd799439011"}}',
    "id-operator": '{"resourceType":"Patient","id":"$ne"}',
    "type-operator": '{"resourceType":{"$ne":"x"}}',
    "type-collection": '{"resourceType":"versions","id":"a"}',
    "type-system": '{"resourceType":"system.users"}',
    "null-key": '{"resourceType":"Patient","a\\u0000b":1}',
    "null-value": '{"resourceType":"Patient","name":[{"family":"a\\u0000b"}]}',
    "null-raw": '{"resourceType":"Patient","name":[{"family":"a\x00b"}]}',
    "surrogate-value": '{"resourceType":"Patient","name":[{"family":"\\ud800"}]}',
    "surrogate-key": '{"resourceType":"Patient","\\udc00":1}',
    "surrogate-swapped": '{"resourceType":"Patient","name":[{"family":"\\udc00\\ud800"}]}',
    "number-integer": '{"resourceType":"Patient","multipleBirthInteger":' + "9" * 500 + "}",
    "number-exponent": '{"resourceType":"Patient","multipleBirthInteger":1e999999999}',
    "number-negative": '{"resourceType":"Patient","multipleBirthInteger":-1e-999999999}',
    "number-long": '{"resourceType":"Patient","multipleBirthInteger":0.' + "1" * 30_000 + "}",
    "nan": '{"resourceType":"Patient","multipleBirthInteger":NaN}',
    "deep": '{"resourceType":"Patient","contact":' + DEEP + "}",
    "deep-list": '{"resourceType":"Patient","name":' + "[" * 15_000 + "]" * 15_000 + "}",
    "deep-open": "[" * 30_000,
    "duplicate": '{"resourceType":"Patient","active":true,"active":false}',
    "duplicate-type": '{"resourceType":"Patient","resourceType":"Practitioner"}',
    "duplicate-deep": '{"resourceType":"Patient","name":[{"family":"a","family":"b"}]}',
    "duplicate-escaped": '{"resourceType":"Patient","active":true,"\\u0061ctive":false}',
    "not-an-object": '["Patient"]',
    "two": '{"resourceType":"Patient"}{"resourceType":"Patient"}',
    "comment": '{"resourceType":"Patient"/**/}',
    "trailing-comma": '{"resourceType":"Patient",}',
    "utf-16": '{"resourceType":"Patient"}',
    "bad-utf-8": '{"resourceType":"Patient","name":[{"family":"\udcff"}]}',
}


# Refused for the id alone, which a create has no use for: sent where the type refuses them, too.
NAMELESS = frozenset({"mongo-oid", "id-operator"})


@pytest.mark.parametrize("name", BODIES)
async def test_bodies_with_code_in_them_are_refused(
    target: tuple[Server, httpx.AsyncClient], name: str
) -> None:
    server, client = target
    before = await state(server)
    encoding = "utf-16" if name == "utf-16" else "utf-8"
    body = BODIES[name].encode(encoding, "surrogateescape")
    for method, url in (
        ("POST", "/Practitioner" if name in NAMELESS else "/Patient"),
        ("PUT", "/Patient/inj-patient"),
        ("PUT", "/Patient?identifier=urn:inj|" + CANARY),
        ("PATCH", "/Patient/inj-patient"),
        ("POST", "/"),
        ("POST", "/Patient/$validate"),
        ("POST", "/Subscription"),
    ):
        answer = await client.request(method, url, content=body, headers=JSON)
        assert_harmless(answer)
        assert answer.status_code != 201
        if "$" not in url:
            assert answer.status_code >= 400, (method, url)
    assert await state(server) == before


VALUES = [attack for attack in ATTACKS if "\x00" not in attack and "\u0000" not in attack]


async def test_text_that_looks_like_code_comes_back_as_it_was(
    target: tuple[Server, httpx.AsyncClient],
) -> None:
    _, client = target
    for number, attack in enumerate(VALUES):
        patient = {
            "resourceType": "Patient",
            "id": f"inj-text-{number}",
            "name": [{"family": attack}],
            "identifier": [{"system": "urn:inj-text", "value": attack}],
        }
        answer = await client.put(f"/Patient/inj-text-{number}", json=patient)
        assert_harmless(answer)
        if answer.status_code == 201:
            kept = (await client.get(f"/Patient/inj-text-{number}")).json()
            assert kept["name"] == patient["name"]
            escaped = attack
            for special in "\\,$|":
                escaped = escaped.replace(special, "\\" + special)
            found = await client.get(f"/Patient?identifier=urn:inj-text|{quote(escaped, safe='')}")
            if found.status_code == 200:
                assert len(matches(found)) <= 1
            (await client.delete(f"/Patient/inj-text-{number}")).raise_for_status()


POINTERS = [
    "/$set/active",
    "/__proto__/polluted",
    "/constructor/prototype/x",
    "/name.0.family",
    "/name/0/$where",
    "/_id",
    "/private/secret",
    "/terms/0",
    "/v",
    "/\x00",
    "/name/-1/family",
    "/name/99999999999999999999",
    "/~2",
    "//",
    "active",
    "/meta/versionId",
    "/id",
    "/resourceType",
]


@pytest.mark.parametrize("pointer", POINTERS)
async def test_patches_reach_nothing_but_elements(
    target: tuple[Server, httpx.AsyncClient], pointer: str
) -> None:
    server, client = target
    before = await state(server)
    for operation in (
        {"op": "add", "path": pointer, "value": {"$gt": ""}},
        {"op": "replace", "path": pointer, "value": "x"},
        {"op": "copy", "from": "/name", "path": pointer},
        {"op": "move", "from": pointer, "path": "/active"},
    ):
        answer = await client.patch(
            "/Patient/inj-patient", content=json.dumps([operation]), headers=JSON_PATCH
        )
        assert_harmless(answer)
        # What the server itself says of a resource is not taken from a client, and leaves it as it is.
        assert answer.status_code >= 400 or pointer.startswith("/meta/")
    assert await state(server) == before


@pytest.mark.parametrize("attack", ATTACKS[:30])
async def test_other_doors_take_text_for_text(
    target: tuple[Server, httpx.AsyncClient], attack: str
) -> None:
    """Headers, Bundle entries, references, cursors, operations and the operators' API."""
    server, client = target
    before = await state(server)
    text, header = quote(attack, safe=""), attack.encode("utf-8", "replace").replace(b"\x00", b"")
    cursor = quote(base64.urlsafe_b64encode(header).decode())
    patient = json.dumps({"resourceType": "Patient"}).encode()
    entry = {
        "resource": {"resourceType": "Patient"},
        "request": {"method": "PUT", "url": f"Patient?identifier={text}", "ifMatch": attack},
    }
    bundle = {"resourceType": "Bundle", "type": "batch", "entry": [entry]}
    referring = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "x"},
        "subject": {"reference": f"Patient?{attack}"},
    }
    transaction = {
        "resourceType": "Bundle",
        "type": "transaction",
        "entry": [{"resource": referring, "request": {"method": "POST", "url": "Observation"}}],
    }
    root = "http://carerelay.test"
    requests: list[tuple[str, str, bytes, Any]] = [
        ("GET", f"/Patient?_cursor={cursor}", b"", {}),
        ("GET", f"/Patient?_cursor={text}", b"", {}),
        ("GET", f"/Patient/_history?_since={text}", b"", {}),
        ("GET", f"/Patient/_history?_at={text}&_cursor={cursor}", b"", {}),
        ("PUT", "/Patient/inj-patient", patient, {**JSON, "if-match": header}),
        ("POST", "/Patient", patient, {**JSON, "if-none-exist": b"identifier=" + text.encode()}),
        ("DELETE", f"/Patient?identifier={text}", b"", {}),
        ("POST", "/", json.dumps(bundle).encode(), JSON),
        ("POST", "/", json.dumps(transaction).encode(), JSON),
        ("GET", f"/Patient/inj-patient/$everything?_type={text}", b"", {}),
        ("GET", f"/Patient/inj-patient/$everything?start={text}", b"", {}),
        ("GET", f"/Subscription/{text}/$status", b"", {}),
        ("GET", f"{root}/admin/deliveries?subscription={text}", b"", {}),
        ("GET", f"{root}/admin/deliveries?subscription[$ne]={text}", b"", {}),
        ("GET", f"{root}/admin/deliveries?focus={text}&_cursor={cursor}", b"", {}),
        ("GET", f"{root}/admin/deliveries/{text}", b"", {}),
        ("GET", f"{root}/admin/topics/{text}", b"", {}),
        ("GET", f"/Patient?_format={text}&_pretty={text}", b"", {}),
    ]
    for method, url, body, headers in requests:
        answer = await client.request(method, url, content=body, headers=headers)
        assert_harmless(answer)
        if "_cursor" not in url:
            assert matches(answer) == [] or "_format" in url
    made = await server.mongo.db["Patient"].find({"_id": {"$nin": ["inj-patient"]}}).to_list(None)
    for row in made:  # what a conditional create or update made of a value that is fit for one
        await client.delete(f"/Patient/{row['_id']}")
    kept, _, collections = await state(server)
    for rows, others in zip(kept, before[0], strict=True):
        ids = {row[0] for row in others}
        assert [row for row in rows if row[0] in ids] == others
    assert collections == before[2] or set(collections) > set(before[2])


odd = st.text(
    st.sampled_from(list("$.{}[]\"'\\|,:*^()%\x00\u0001_ ab1\u00e9\U0001f600")), max_size=20
)
keys = st.sampled_from(["$where", "$ne", "$gt", "$regex", "a.b", "__proto__", "", "name"]) | odd
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**80), 2**80) | odd,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=5,
)
bounded = examples(
    max_examples=120,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@bounded
@given(st.sampled_from([row[:2] for row in PARAMETERS]), st.sampled_from(MODIFIERS), odd)
async def test_any_odd_search(
    target: tuple[Server, httpx.AsyncClient], place: tuple[str, str], modifier: str, text: str
) -> None:
    resource_type, name = place
    posted = await target[1].post(f"/{resource_type}/_search", data={f"{name}{modifier}": text})
    assert_harmless(posted)


@bounded
@given(st.sampled_from(["name", "identifier", "birthDate", "active", "$x", "a.b", ""]), values)
async def test_any_odd_element(
    target: tuple[Server, httpx.AsyncClient], element: str, value: Any
) -> None:
    """What is taken comes back as it was sent; anything else is refused."""
    _, client = target
    patient = {"resourceType": "Patient", "id": "inj-odd", element: value}
    answer = await client.put("/Patient/inj-odd", content=json.dumps(patient), headers=JSON)
    assert_harmless(answer)
    if answer.status_code in (200, 201):
        kept = (await client.get("/Patient/inj-odd")).json()
        assert {name: kept[name] for name in patient} == patient
