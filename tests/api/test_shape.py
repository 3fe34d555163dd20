"""The shape of an answer belongs to the interaction, by whatever door it is asked: no element outside of it is shown.

https://hl7.org/fhir/R4/search.html#summary and https://hl7.org/fhir/R4/search.html#elements. Each shape goes through
all doors; what may be shown is told by an oracle over R4's definitions.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from lxml import etree

from app.fhir.definitions import Element, json_name, resolve, structure
from tests.conftest import Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

Json = dict[str, Any]
DIV = {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">x</div>'}
FORM = {"content-type": "application/x-www-form-urlencoded"}
WRITES = {"prefer": "return=representation"}
# A stored document: what is in it is no result.
DOCUMENT: Json = {
    "resourceType": "Bundle",
    "id": "doc",
    "type": "collection",
    "timestamp": "2026-05-14T10:00:00Z",
    "entry": [
        {"resource": {"resourceType": "Patient", "text": DIV, "photo": [{"title": "in a Bundle"}]}}
    ],
}
SHAPES = [
    "_summary=true",
    "_summary=text",
    "_summary=data",
    "_elements=Condition.note,active",
    "_elements=contained,gender",
]


def record(resource_type: str, id_: str, **elements: Any) -> Json:
    return {"resourceType": resource_type, "id": id_, "text": DIV, **elements}


def stored() -> Iterator[Json]:
    yield record("Organization", "org", name="Riverside", alias=["The old mill"])
    yield record(
        "Patient",
        "p",
        active=True,
        gender="female",
        photo=[{"title": "p"}],
        communication=[{"language": {"text": "en"}}],
        managingOrganization={"reference": "Organization/org"},
    )
    for number in range(3):
        yield record(
            "Condition",
            f"c{number}",
            contained=[record("Practitioner", "in", gender="male", photo=[{"title": "doctor"}])],
            code={"text": "Broken heart"},
            note=[{"text": "nobody's business"}],
            stage=[{"summary": {"text": "late"}}],
            subject={"reference": "Patient/p"},
            asserter={"reference": "#in"},
        )
    inner = {"type": "permit", "purpose": [{"code": "TREAT"}]}
    yield record(
        "Consent",
        "k",
        status="active",
        scope={"text": "privacy"},
        category=[{"text": "x"}],
        patient={"reference": "Patient/p"},
        policyRule={"text": "x"},
        provision={
            "type": "deny",
            "data": [{"meaning": "instance", "reference": {"reference": "Patient/p"}}],
            "provision": [inner],
        },
    )
    yield DOCUMENT


@pytest.fixture(scope="module")
async def told(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    async with running(make_settings(mongod)) as (server, client):
        for each in stored():
            url = f"/{each['resourceType']}/{each['id']}"
            # Two versions of each.
            for language in ("en", "de"):
                answer = await client.put(url, json={**each, "language": language})
                assert answer.status_code in (200, 201), answer.text
        yield server, client


@pytest.fixture
def client(told: tuple[Server, httpx.AsyncClient]) -> httpx.AsyncClient:
    return told[1]


# What may be shown


def outside(resource: Json, shape: str) -> Iterator[str]:
    """The paths of elements of a resource that a shape does not have, and of a resource that does not say it is cut."""
    kind = resource["resourceType"]
    if kind == "OperationOutcome":
        return
    name, _, value = shape.partition("=")
    if not any(tag["code"] == "SUBSETTED" for tag in resource.get("meta", {}).get("tag", ())):
        yield f"{kind} is not marked"
    elements = structure(kind).elements
    always = {"id", "meta", "resourceType"}
    if (name, value) == ("_summary", "true"):
        yield from not_in_summary(resource, elements, kind)
    elif (name, value) == ("_summary", "data"):
        yield from (path for path in narratives(resource, kind))
    else:
        wanted = (
            {"text"} if name == "_summary" else {e.rpartition(".")[2] for e in value.split(",")}
        )
        wanted |= {name for name, element in elements.items() if element.min}
        named = keys(elements)
        for key in set(resource) - always:
            if named[key.removeprefix("_")] not in wanted:
                yield f"{kind}.{key}"


def keys(elements: dict[str, Element]) -> dict[str, str]:
    return {
        json_name(name, of_type) if element.choice else name: name
        for name, element in elements.items()
        for of_type in (element.types if element.choice else ("",))
    }


def not_in_summary(value: Json, elements: dict[str, Element], path: str) -> Iterator[str]:
    named = keys(elements)
    for key, child in value.items():
        if key in ("resourceType", "id", "meta"):
            continue
        element = elements[named[key.removeprefix("_")]]
        if not element.summary:
            yield f"{path}.{key}"
        inner = resolve(element.ref).elements if element.ref else element.elements
        for each in child if isinstance(child, list) else [child]:
            if isinstance(each, dict) and "resourceType" in each:
                yield from not_in_summary(
                    each, structure(each["resourceType"]).elements, f"{path}.{key}"
                )
            elif isinstance(each, dict) and inner:
                yield from not_in_summary(each, inner, f"{path}.{key}")


def narratives(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from narratives(each, path)
    elif isinstance(value, dict):
        if "resourceType" in value and "text" in value:
            yield f"{path}.text"
        for key, each in value.items():
            yield from narratives(each, f"{path}.{key}")


# The doors


def found(answer: httpx.Response) -> list[Json]:
    """The resources that an answer tells: of results those in them."""
    assert answer.status_code in (200, 201), answer.text
    body: Json = answer.json()
    return list(told_by(body, is_result=True))


def told_by(body: Json, *, is_result: bool) -> Iterator[Json]:
    if is_result and body["resourceType"] == "Bundle" and "meta" not in body:
        for entry in body.get("entry", ()):
            response = entry.get("response", {"status": "200"})
            assert response["status"][:1] == "2", entry
            if "resource" in entry:
                yield from told_by(entry["resource"], is_result="response" in entry)
    else:
        yield body


async def pages(client: httpx.AsyncClient, answer: httpx.Response) -> list[Json]:
    """The resources of all pages; there are several."""
    shown, count = found(answer), 1
    body = answer.json()
    while url := next((x["url"] for x in body["link"] if x["relation"] == "next"), None):
        answer = await client.get(url)
        shown += found(answer)
        body, count = answer.json(), count + 1
    assert count > 1
    return shown


async def batch(
    client: httpx.AsyncClient, kind: str, *requests: Json, outer: str = ""
) -> list[Json]:
    entries = [each if "request" in each else {"request": each} for each in requests]
    bundle = {"resourceType": "Bundle", "type": kind, "entry": entries}
    answer = await client.post(f"?{outer}", json=bundle, headers=WRITES)
    shown = found(answer)
    for entry in answer.json()["entry"]:
        inner = entry["resource"]
        if any(link["relation"] == "next" for link in inner.get("link", ())):
            shown += await pages(client, httpx.Response(200, json=inner))
    return shown


def reading(shape: str) -> list[Json]:
    """GETs of each kind, as entries of a Bundle have them."""
    urls = (
        f"Condition/c1?{shape}",
        f"Bundle/doc?{shape}",
        f"Condition/c1/_history/1?{shape}&_format=json",
        f"Condition?subject=Patient/p&_count=2&{shape}&_format=xml&_pretty=true",
        f"Patient/p/Condition?_count=2&{shape}",
        f"Condition/c1/_history?_count=1&{shape}",
        f"Patient/p/$everything?_count=2&{shape}",
    )
    return [{"method": "GET", "url": url} for url in urls]


def writing(shape: str) -> list[Json]:
    """Writes whose answers have the resource."""
    note = str(uuid.uuid4())
    patient = record("Patient", "w", photo=[{"title": note}], active=True)
    other = {**patient, "id": "w2"}
    by_criteria = f"Patient?_id=w2&{shape}"
    return [
        {"request": {"method": "PUT", "url": f"Patient/w?{shape}"}, "resource": patient},
        {"request": {"method": "PUT", "url": by_criteria}, "resource": other},
    ]


Door = Callable[[httpx.AsyncClient, str], Awaitable[list[Json]]]


async def _get(client: httpx.AsyncClient, url: str) -> list[Json]:
    return found(await client.get(url))


async def _search_by_post(client: httpx.AsyncClient, shape: str) -> list[Json]:
    form = f"subject=Patient/p&_count=2&{shape}"
    return await pages(client, await client.post("/Condition/_search", content=form, headers=FORM))


async def _everything_by_post(client: httpx.AsyncClient, shape: str) -> list[Json]:
    body = {"resourceType": "Parameters", "parameter": [{"name": "_count", "valueInteger": 2}]}
    url = f"Patient/p/$everything?{shape}"
    asked = {"request": {"method": "POST", "url": url}, "resource": body}
    in_a_batch = await batch(client, "batch", asked)
    return in_a_batch + await pages(client, await client.post(f"/{url}", json=body))


async def _put(client: httpx.AsyncClient, shape: str) -> list[Json]:
    body = record("Patient", "w", photo=[{"title": str(uuid.uuid4())}], active=True)
    shown = found(await client.put(f"/Patient/w?{shape}", json=body, headers=WRITES))
    made = await client.post(f"/Patient?{shape}", json=body, headers=WRITES)
    patch = [{"op": "replace", "path": "/photo/0/title", "value": str(uuid.uuid4())}]
    kind = {"content-type": "application/json-patch+json", **WRITES}
    patched = await client.patch(f"/Patient/w?{shape}", json=patch, headers=kind)
    return [*shown, *found(made), *found(patched)]


async def _outer(client: httpx.AsyncClient, shape: str) -> list[Json]:
    """A batch that is asked for a shape as a whole."""
    urls = ("Condition/c1", "Condition?_count=2", "Patient/p/$everything?_count=2")
    return await batch(client, "batch", *({"method": "GET", "url": u} for u in urls), outer=shape)


DOORS: dict[str, Door] = {
    "read": lambda c, s: _get(c, f"/Condition/c1?{s}"),
    "read of a Bundle": lambda c, s: _get(c, f"/Bundle/doc?{s}"),
    "vread": lambda c, s: _get(c, f"/Condition/c1/_history/1?{s}"),
    "search with includes": lambda c, s: _pages(
        c,
        f"/Condition?_include=Condition:subject&_include:iterate=Patient:organization&_count=2&{s}",
    ),
    "search by POST": _search_by_post,
    "search of types": lambda c, s: _pages(c, f"/?_type=Condition,Consent,Bundle&_count=2&{s}"),
    "compartment": lambda c, s: _pages(c, f"/Patient/p/*?_count=2&{s}"),
    "contained": lambda c, s: _pages(
        c, f"/Practitioner?gender=male&_contained=true&_containedType=contained&_count=2&{s}"
    ),
    "history": lambda c, s: _pages(c, f"/Condition/_history?_count=2&{s}"),
    "everything": lambda c, s: _pages(c, f"/Patient/p/$everything?_count=2&{s}"),
    "everything by POST": _everything_by_post,
    "writes": _put,
    "batch": lambda c, s: batch(c, "batch", *reading(s), *writing(s)),
    "transaction": lambda c, s: batch(c, "transaction", *reading(s), writing(s)[0]),
    "the whole batch": _outer,
}


async def _pages(client: httpx.AsyncClient, url: str) -> list[Json]:
    return await pages(client, await client.get(url))


@pytest.mark.parametrize("shape", SHAPES)
async def test_no_door_shows_what_is_outside_of_the_shape(
    client: httpx.AsyncClient, shape: str
) -> None:
    wrong = []
    for name, door in DOORS.items():
        shown = await door(client, shape)
        assert shown, name
        wrong += [(name, path) for each in shown for path in outside(each, shape)]
    assert wrong == []


async def test_the_links_of_a_page_say_its_shape(client: httpx.AsyncClient) -> None:
    asked = "_elements=code&_summary=false&_format=xml&_pretty=true"
    for url in (f"/Condition?_count=1&{asked}", f"/Condition/_history?_count=1&{asked}"):
        links = [await xml_links(client, url)]
        links.append(await xml_links(client, links[0]["next"]))
        for each in (*links, {"next": links[1]["self"]}):
            query = dict(httpx.URL(each["next"]).params)
            assert {n: query[n] for n in ("_elements", "_format", "_pretty")} == {
                "_elements": "code",
                "_format": "xml",
                "_pretty": "true",
            }


async def xml_links(client: httpx.AsyncClient, url: str) -> dict[str, str]:
    answer = await client.get(url)
    assert answer.headers["content-type"].startswith("application/fhir+xml")
    name = "{http://hl7.org/fhir}"
    links = etree.fromstring(answer.content).iter(f"{name}link")
    pairs = [[str(each.get("value")) for each in link] for link in links]
    return {each[0]: each[1] for each in pairs}


async def test_a_form_asks_for_a_format(client: httpx.AsyncClient) -> None:
    for asked, status in (("code:text=x", 200), ("code:banana=x", 400)):
        content = f"_format=xml&_pretty=true&{asked}"
        answer = await client.post("/Condition/_search", content=content, headers=FORM)
        assert answer.status_code == status
        assert answer.headers["content-type"].startswith("application/fhir+xml")
        assert "\n  <" in answer.text


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "/Patient/p"),
        ("GET", "/Patient/p/_history/1"),
        ("GET", "/Patient/p/$everything"),
        ("PUT", "/Patient/p"),
    ],
)
async def test_what_has_no_number_is_not_counted_and_not_shown(
    client: httpx.AsyncClient, method: str, url: str
) -> None:
    """`_summary=count` asks for no resource, so none is told; and nothing is written."""
    body = record("Patient", "p", gender="other") if method == "PUT" else None
    answer = await client.request(method, f"{url}?_summary=count", json=body)
    assert_outcome(answer, 400, "not-supported", "http._summary")
    entry: Json = {"request": {"method": method, "url": f"{url}?_summary=count"}, "resource": body}
    bundle = {
        "resourceType": "Bundle",
        "type": "batch",
        "entry": [{key: value for key, value in entry.items() if value}],
    }
    (told,) = (await client.post("", json=bundle)).json()["entry"]
    assert told["response"]["status"] == "400"
    assert (await client.get("/Patient/p")).json()["gender"] == "female"


async def test_an_entry_is_in_the_format_of_its_bundle(client: httpx.AsyncClient) -> None:
    """A format that the server has is left out, of its links as well; another is refused, as it is elsewhere."""
    urls = ("Condition?_count=1&_format=xml", "Patient/p?_format=turtle", "Patient/p?_pretty=maybe")
    entries = [{"request": {"method": "GET", "url": url}} for url in urls]
    bundle = {"resourceType": "Bundle", "type": "batch", "entry": entries}
    page, *refused = (await client.post("", json=bundle)).json()["entry"]
    assert all("_format" not in link["url"] for link in page["resource"]["link"])
    assert [each["response"]["status"] for each in refused] == ["406", "400"]
