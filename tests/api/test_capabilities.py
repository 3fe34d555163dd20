"""The CapabilityStatement is exact: what it claims is exercised on every type, and nothing else is served.

https://hl7.org/fhir/R4/http.html#capabilities
"""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import httpx
import pytest

from app.fhir import json as fhir_json, xml
from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.validation.models import model_issues
from app.operations.registry import OPERATIONS
from tests.builders.minimal_resources import minimal
from tests.conftest import JSON, make_settings, running
from tests.outcomes import assert_outcome, errors_in

pytestmark = pytest.mark.slow

Resource = dict[str, Any]
Exercise = Callable[[httpx.AsyncClient, str], Awaitable[None]]

AT_ONCE = 8
# Of a Binary that has to be asked for.
AS_RESOURCE = {"accept": "application/fhir+json"}
TAG_SYSTEM = "http://carerelay.example/walk"
PATCHES = {
    "application/json-patch+json": '[{"op": "add", "path": "/language", "value": "en"}]',
    "application/fhir+json": json.dumps(
        {
            "resourceType": "Parameters",
            "parameter": [
                {
                    "name": "operation",
                    "part": [
                        {"name": "type", "valueCode": "add"},
                        {"name": "path", "valueString": "$type"},
                        {"name": "name", "valueString": "language"},
                        {"name": "value", "valueCode": "en"},
                    ],
                }
            ],
        }
    ),
    "application/fhir+xml": '<Parameters xmlns="http://hl7.org/fhir"><parameter><name value="operation"/>'
    '<part><name value="type"/><valueCode value="add"/></part>'
    '<part><name value="path"/><valueString value="$type"/></part>'
    '<part><name value="name"/><valueString value="language"/></part>'
    '<part><name value="value"/><valueCode value="en"/></part></parameter></Parameters>',
    "application/xml-patch+xml": '<diff xmlns:f="http://hl7.org/fhir"><add sel="f:$type/f:meta" pos="after">'
    '<language xmlns="http://hl7.org/fhir" value="en"/></add></diff>',
}


def tagged(resource_type: str, tag: str, **more: Any) -> Resource:
    return {
        **minimal(resource_type),
        "meta": {"tag": [{"system": TAG_SYSTEM, "code": tag}]},
        **more,
    }


def fresh() -> str:
    return f"walk-{uuid.uuid4()}"


def criteria(tag: str) -> dict[str, str]:
    return {"_tag": f"{TAG_SYSTEM}|{tag}"}


def expect(response: httpx.Response, *statuses: int) -> httpx.Response:
    request = response.request
    assert response.status_code in statuses, (request.method, str(request.url), response.text)
    return response


async def created(client: httpx.AsyncClient, resource_type: str, tag: str) -> str:
    """The path of a new resource."""
    response = await client.post(f"/{resource_type}", json=tagged(resource_type, tag))
    return f"/{resource_type}/{expect(response, 201).json()['id']}"


# What each claim of a resource type promises


async def create(client: httpx.AsyncClient, resource_type: str) -> None:
    path = await created(client, resource_type, tag := fresh())
    stored = (await client.get(path, headers=AS_RESOURCE)).json()
    sent = tagged(resource_type, tag)
    del sent["meta"], stored["meta"], stored["id"]
    assert stored == json.loads(fhir_json.encode(sent))


async def read(client: httpx.AsyncClient, resource_type: str) -> None:
    path = await created(client, resource_type, fresh())
    for method in ("GET", "HEAD"):
        answer = expect(await client.request(method, path, headers=AS_RESOURCE), 200)
        assert answer.headers["etag"] == 'W/"1"'
    as_xml = expect(await client.get(path, headers={"accept": "application/fhir+xml"}), 200)
    assert xml.decode(as_xml.content)["resourceType"] == resource_type


async def vread(client: httpx.AsyncClient, resource_type: str) -> None:
    path = await created(client, resource_type, fresh())
    expect(await client.delete(path), 204)
    answer = expect(await client.get(f"{path}/_history/1", headers=AS_RESOURCE), 200)
    assert answer.json()["meta"]["versionId"] == "1"
    expect(await client.get(f"{path}/_history/2"), 410)
    expect(await client.get(f"{path}/_history/3"), 404)


async def update(client: httpx.AsyncClient, resource_type: str) -> None:
    path = await created(client, resource_type, tag := fresh())
    id_ = path.rpartition("/")[2]
    changed = tagged(resource_type, tag, id=id_, language="en")
    response = expect(await client.put(path, json=changed), 200)
    assert (response.headers["etag"], response.json()["language"]) == ('W/"2"', "en")


async def patch(client: httpx.AsyncClient, resource_type: str) -> None:
    async def send(media_type: str, body: str) -> None:
        path = await created(client, resource_type, fresh())
        content = body.replace("$type", resource_type)
        response = await client.patch(path, content=content, headers={"content-type": media_type})
        assert expect(response, 200).json()["language"] == "en"

    await asyncio.gather(*(send(*each) for each in PATCHES.items()))


async def delete(client: httpx.AsyncClient, resource_type: str) -> None:
    path = await created(client, resource_type, fresh())
    expect(await client.delete(path), 204)
    expect(await client.get(path), 410)


async def history_instance(client: httpx.AsyncClient, resource_type: str) -> None:
    path = await created(client, resource_type, fresh())
    bundle = expect(await client.get(f"{path}/_history"), 200).json()
    assert (bundle["type"], bundle["total"]) == ("history", 1)


async def history_type(client: httpx.AsyncClient, resource_type: str) -> None:
    await created(client, resource_type, fresh())
    bundle = expect(await client.get(f"/{resource_type}/_history?_count=1"), 200).json()
    assert bundle["entry"][0]["resource"]["resourceType"] == resource_type


async def search_type(client: httpx.AsyncClient, resource_type: str) -> None:
    path = await created(client, resource_type, tag := fresh())
    by_get = await client.get(f"/{resource_type}", params=criteria(tag))
    by_post = await client.post(f"/{resource_type}/_search", data=criteria(tag))
    for response in (by_get, by_post):
        (found,) = expect(response, 200).json()["entry"]
        assert found["fullUrl"].endswith(path)


async def update_create(client: httpx.AsyncClient, resource_type: str) -> None:
    id_ = fresh()
    response = await client.put(f"/{resource_type}/{id_}", json=tagged(resource_type, id_, id=id_))
    assert expect(response, 201).headers["etag"] == 'W/"1"'


async def conditional_create(client: httpx.AsyncClient, resource_type: str) -> None:
    tag = fresh()
    headers = {"if-none-exist": f"_tag={TAG_SYSTEM}|{tag}"}
    for status in (201, 200):
        body = tagged(resource_type, tag)
        expect(await client.post(f"/{resource_type}", json=body, headers=headers), status)


async def conditional_read(client: httpx.AsyncClient, resource_type: str) -> None:
    path = await created(client, resource_type, fresh())
    modified = (await client.get(path)).headers["last-modified"]
    for headers in ({"if-none-match": 'W/"1"'}, {"if-modified-since": modified}):
        expect(await client.get(path, headers=headers), 304)


async def conditional_update(client: httpx.AsyncClient, resource_type: str) -> None:
    tag = fresh()
    for status, language in ((201, "en"), (200, "de")):
        body = tagged(resource_type, tag, language=language)
        expect(await client.put(f"/{resource_type}", params=criteria(tag), json=body), status)


async def conditional_delete(client: httpx.AsyncClient, resource_type: str) -> None:
    path = await created(client, resource_type, tag := fresh())
    expect(await client.delete(f"/{resource_type}", params=criteria(tag)), 204)
    expect(await client.get(path), 410)


INTERACTIONS: Mapping[str, Exercise] = {
    "create": create,
    "read": read,
    "vread": vread,
    "update": update,
    "patch": patch,
    "delete": delete,
    "history-instance": history_instance,
    "history-type": history_type,
    "search-type": search_type,
}
FLAGS: Mapping[str, tuple[Any, Exercise]] = {
    "updateCreate": (True, update_create),
    "conditionalCreate": (True, conditional_create),
    "conditionalRead": ("full-support", conditional_read),
    "conditionalUpdate": (True, conditional_update),
    "conditionalDelete": ("single", conditional_delete),
}
# What needs more than a minimal resource has test files of its own; here only: it is nowhere else.
TESTED_ELSEWHERE = {
    "attributed",
    "changes",
    "dry-run",
    "evaluate-measure",
    "events",
    "explain",
    "export",
    "get-ws-binding-token",
    "notices",
    "pcp",
    "process-message",
    "reindex",
    "resend",
    "status",
    "summary",
    "utilization",
    "worklist",
}
BASES = "http://hl7.org/fhir/StructureDefinition/"
META = {"name": "meta", "valueMeta": {"tag": [{"system": TAG_SYSTEM, "code": "added"}]}}


def calls(code: str, resource_type: str, path: str) -> list[tuple[str, str, Resource | None]]:
    """Every way to call an operation on a type and on one resource of it: method, path and body."""
    with_meta = {"resourceType": "Parameters", "parameter": [META]}
    resource = {"name": "resource", "resource": minimal(resource_type)}
    with_resource = {"resourceType": "Parameters", "parameter": [resource]}
    known: dict[str, list[tuple[str, str, Resource | None]]] = {
        "validate": [
            ("POST", f"/{resource_type}/$validate", with_resource),
            ("POST", f"{path}/$validate?mode=profile&profile={BASES}{resource_type}", None),
            ("GET", f"{path}/$validate", None),
        ],
        "everything": [
            ("GET", f"{path}/$everything", None),
            ("POST", f"{path}/$everything", {"resourceType": "Parameters"}),
            ("GET", f"/{resource_type}/$everything?_count=1", None),
        ],
        "meta": [("GET", f"{path}/$meta", None), ("GET", f"/{resource_type}/$meta", None)],
        "meta-add": [("POST", f"{path}/$meta-add", with_meta)],
        "meta-delete": [("POST", f"{path}/$meta-delete", with_meta)],
    }
    return known[code]


@pytest.fixture(scope="module")
async def statement(shared_app: tuple[Any, httpx.AsyncClient]) -> Resource:
    resource: Resource = expect(await shared_app[1].get("/metadata"), 200).json()
    return resource


@pytest.fixture(scope="module")
def rest(statement: Resource) -> Resource:
    rest: Resource = statement["rest"][0]
    return rest


async def on_every_type(rest: Resource, exercise: Callable[[Resource], Awaitable[None]]) -> None:
    """Run an exercise for each stated type, a few at a time; all failures are told."""
    places = asyncio.Semaphore(AT_ONCE)

    async def run(resource: Resource) -> None:
        async with places:
            await exercise(resource)

    ended = await asyncio.gather(*map(run, rest["resource"]), return_exceptions=True)
    failures = {
        resource["type"]: repr(error)[:500]
        for resource, error in zip(rest["resource"], ended, strict=True)
        if error is not None
    }
    assert failures == {}


# The statement itself


async def test_the_statement_is_valid_and_names_every_served_type_once(statement: Resource) -> None:
    assert errors_in(statement) == []
    assert model_issues(statement) == []
    assert [r["type"] for r in statement["rest"][0]["resource"]] == list(SUPPORTED_TYPES)
    assert statement["fhirVersion"] == "4.0.1"
    for resource in statement["rest"][0]["resource"]:
        names = [parameter["name"] for parameter in resource["searchParam"]]
        assert len(names) == len(set(names)), resource["type"]


@pytest.mark.processes
async def test_the_statement_in_xml_says_the_same(
    client: httpx.AsyncClient, statement: Resource
) -> None:
    response = await client.get("/metadata", params={"_format": "xml"})
    assert expect(response, 200).headers["content-type"].startswith("application/fhir+xml")
    assert xml.decode(response.content) == statement


@pytest.mark.processes
async def test_every_stated_format_is_answered_in_and_taken(
    client: httpx.AsyncClient, statement: Resource
) -> None:
    for name in statement["format"]:
        expect(await client.get("/metadata", params={"_format": name}), 200)
    assert set(statement["patchFormat"]) == set(PATCHES)


async def test_mode_normative_leaves_out_what_is_for_trial_use(
    client: httpx.AsyncClient, statement: Resource
) -> None:
    full = expect(await client.get("/metadata?mode=full"), 200).json()
    assert full == statement
    normative = expect(await client.get("/metadata?mode=normative"), 200).json()
    assert errors_in(normative) == []
    assert "messaging" not in normative
    kept = {"type", "profile", "documentation", "interaction", "searchParam", "operation"}
    for resource in normative["rest"][0]["resource"]:
        assert set(resource) <= kept


async def test_mode_terminology_tells_the_terminology_capabilities(
    client: httpx.AsyncClient,
) -> None:
    body = expect(await client.get("/metadata?mode=terminology"), 200).json()
    assert body["resourceType"] == "TerminologyCapabilities"
    assert errors_in(body) == []
    assert not {"codeSystem", "expansion", "validateCode", "translation", "closure"} & set(body)


async def test_an_unknown_mode_is_refused(client: httpx.AsyncClient) -> None:
    assert_outcome(await client.get("/metadata?mode=banana"), 400, "not-supported", "http.mode")


async def test_the_statement_follows_the_settings(mongod: str) -> None:
    settings = make_settings(mongod, conditional_delete="multiple", referential_integrity="checked")
    async with running(settings) as (_, client):
        for resource in (await client.get("/metadata")).json()["rest"][0]["resource"]:
            assert resource["conditionalDelete"] == "multiple"
            assert "enforced" in resource["referencePolicy"]


# What is claimed works


@pytest.mark.parametrize("code", INTERACTIONS)
async def test_every_claimed_interaction_works_on_every_type(
    client: httpx.AsyncClient, rest: Resource, code: str
) -> None:
    async def exercise(resource: Resource) -> None:
        assert {i["code"] for i in resource["interaction"]} == set(INTERACTIONS)
        assert (resource["versioning"], resource["readHistory"]) == ("versioned", True)
        await INTERACTIONS[code](client, resource["type"])

    await on_every_type(rest, exercise)


@pytest.mark.parametrize("flag", FLAGS)
async def test_every_stated_ability_is_there_on_every_type(
    client: httpx.AsyncClient, rest: Resource, flag: str
) -> None:
    expected, perform = FLAGS[flag]

    async def exercise(resource: Resource) -> None:
        assert resource[flag] == expected
        await perform(client, resource["type"])

    await on_every_type(rest, exercise)


async def test_every_operation_works_where_it_is_stated_and_nowhere_else(
    client: httpx.AsyncClient, rest: Resource
) -> None:
    codes = {operation.code for operation in OPERATIONS}

    async def exercise(resource: Resource) -> None:
        resource_type = resource["type"]
        path = await created(client, resource_type, fresh())
        stated = {operation["name"] for operation in resource["operation"]}
        for code in stated - TESTED_ELSEWHERE:
            for method, url, body in calls(code, resource_type, path):
                expect(await client.request(method, url, json=body, headers=JSON), 200)
        for code in codes - stated - TESTED_ELSEWHERE:
            for method, url, body in calls(code, resource_type, path):
                expect(await client.request(method, url, json=body, headers=JSON), 404)
        for code in TESTED_ELSEWHERE - stated:
            for url in (f"/{resource_type}/${code}", f"{path}/${code}"):
                expect(await client.post(url, headers=JSON), 404)

    await on_every_type(rest, exercise)


async def test_every_operations_definition_is_served_here(
    client: httpx.AsyncClient, rest: Resource
) -> None:
    stated = {
        (operation["name"], operation["definition"])
        for place in (rest, *rest["resource"])
        for operation in place["operation"]
    }
    assert {name for name, _ in stated} == {operation.code for operation in OPERATIONS}
    for name, canonical in stated:
        bundle = (await client.get("/OperationDefinition", params={"url": canonical})).json()
        assert [entry["resource"]["code"] for entry in bundle["entry"]] == [name]


async def test_every_system_interaction_and_operation_works(
    client: httpx.AsyncClient, rest: Resource
) -> None:
    stated = {interaction["code"] for interaction in rest["interaction"]}
    assert stated == {"batch", "transaction", "history-system", "search-system"}
    for kind in ("batch", "transaction"):
        entry = {"resource": minimal("Basic"), "request": {"method": "POST", "url": "Basic"}}
        bundle = {"resourceType": "Bundle", "type": kind, "entry": [entry]}
        answer = expect(await client.post("", json=bundle), 200).json()
        assert answer["type"] == f"{kind}-response"
        assert answer["entry"][0]["response"]["status"] == "201"
    assert expect(await client.get("/_history?_count=1"), 200).json()["type"] == "history"
    assert expect(await client.get("?_count=1"), 200).json()["type"] == "searchset"
    assert expect(await client.post("/_search", data={"_count": "1"}), 200).json()["entry"]
    stated = {each["name"] for each in rest["operation"]}
    assert stated == {"export", "meta", "process-message", "reindex"}
    expect(await client.get("/$meta"), 200)


# What is not claimed is not served


@pytest.mark.parametrize(
    ("path", "verbs"),
    [
        pytest.param("", "GET, HEAD, POST", id="system"),
        pytest.param("/_search", "POST", id="search-system"),
        pytest.param("/metadata", "GET, HEAD", id="capabilities"),
        pytest.param("/_history", "GET, HEAD", id="history-system"),
        pytest.param("/Basic", "DELETE, GET, HEAD, PATCH, POST, PUT", id="type"),
        pytest.param("/Basic/_search", "POST", id="search"),
        pytest.param("/Basic/_history", "GET, HEAD", id="history-type"),
        pytest.param("/Basic/1", "DELETE, GET, HEAD, PATCH, PUT", id="instance"),
        pytest.param("/Basic/1/_history", "GET, HEAD", id="history-instance"),
        pytest.param("/Basic/1/_history/1", "GET, HEAD", id="version"),
        pytest.param("/Patient/1/Basic", "GET, HEAD", id="compartment"),
        pytest.param("/Patient/1/*", "GET, HEAD", id="whole-compartment"),
        pytest.param("/Patient/1/Basic/_search", "POST", id="search-compartment"),
        pytest.param("/$meta", "GET, HEAD, POST", id="system-operation"),
        pytest.param("/Basic/$meta", "GET, HEAD, POST", id="type-operation"),
        pytest.param("/Basic/1/$meta", "GET, HEAD, POST", id="instance-operation"),
    ],
)
async def test_no_other_verb_is_served(client: httpx.AsyncClient, path: str, verbs: str) -> None:
    response = await client.request("BREW", path)
    assert_outcome(response, 405, "not-supported")
    assert response.headers["allow"] == verbs


@pytest.mark.parametrize(
    "resource_type", ["MedicinalProductDefinition", "Banana", "DomainResource"]
)
async def test_no_other_type_is_served(client: httpx.AsyncClient, resource_type: str) -> None:
    body = {"resourceType": resource_type, "id": "1"}
    for method, path in (
        ("GET", ""),
        ("POST", ""),
        ("PUT", "?_id=1"),
        ("DELETE", "?_id=1"),
        ("GET", "/_history"),
        ("GET", "/1"),
        ("PUT", "/1"),
        ("DELETE", "/1"),
        ("GET", "/1/_history"),
        ("GET", "/1/_history/1"),
        ("POST", "/_search"),
        ("GET", "/$meta"),
    ):
        content = json.dumps(body) if method in ("POST", "PUT") and path != "/_search" else None
        response = await client.request(
            method, f"/{resource_type}{path}", content=content, headers=JSON
        )
        assert_outcome(response, 404, "not-supported")
