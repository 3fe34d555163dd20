"""What only the server says: the proof of notices, and who is told as an authority. Every way in is tried."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.fhir.codes import EVENT_NOTICE, NOTICE_KIND, RECIPIENT_KIND
from app.fhir.ids import new_id
from tests.builders.access_world import World, encounter, world as a_world
from tests.builders.patches import add, delete, diff, parameters
from tests.builders.practices import ref
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import topic_based
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
Resource = dict[str, Any]
ADMIN = "http://carerelay.test/admin"
PROOF = {"coding": [{"system": NOTICE_KIND, "code": EVENT_NOTICE}]}
AUTHORITY = {"url": RECIPIENT_KIND, "valueCode": "authority"}


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod) as found:
        yield found


@dataclass(frozen=True)
class Kind:
    """A resource that its client may write, and the element with which it may not."""

    type: str
    element: str
    value: Resource
    fhirpath: Resource
    # Where the element stands in XML, and its content there.
    behind: str
    xml: str
    plain: Callable[[str], Resource]
    criteria: Callable[[str], str]

    @property
    def place(self) -> str:
        return f"{self.type}.{self.element}"

    def reserved(self, id_: str) -> Resource:
        return {**self.plain(id_), self.element: [self.value]}


def _subscription(id_: str) -> Resource:
    # Off, so that the server changes nothing of it meanwhile.
    return {**topic_based(endpoint=f"http://127.0.0.1:9/{id_}"), "id": id_, "status": "off"}


def _communication(id_: str) -> Resource:
    return {
        "resourceType": "Communication",
        "id": id_,
        "identifier": [{"system": "urn:test", "value": id_}],
        "status": "completed",
        "subject": ref("Patient/pn"),
        "recipient": [ref("Organization/north")],
    }


KINDS = [
    Kind(
        "Communication",
        "category",
        PROOF,
        {"valueCodeableConcept": PROOF},
        "status",
        f'<f:category><f:coding><f:system value="{NOTICE_KIND}"/>'
        f'<f:code value="{EVENT_NOTICE}"/></f:coding></f:category>',
        _communication,
        lambda id_: f"identifier=urn:test|{id_}",
    ),
    Kind(
        "Subscription",
        "extension",
        AUTHORITY,
        {
            "part": [
                {"name": "url", "valueUri": RECIPIENT_KIND},
                {"name": "value", "valueCode": "authority"},
            ]
        },
        "meta",
        f'<f:extension url="{RECIPIENT_KIND}"><f:valueCode value="authority"/></f:extension>',
        _subscription,
        lambda id_: f"url=http://127.0.0.1:9/{id_}",
    ),
]
kinds = pytest.mark.parametrize("kind", KINDS, ids=[each.type for each in KINDS])

# A request: method, URL, body, headers. In a Bundle the body is the entry's resource.
Request = tuple[str, str, Any, dict[str, str]]


def bundled(type_: str, request: Request) -> Request:
    method, url, resource, _ = request
    entry: Resource = {"request": {"method": method, "url": url.removeprefix("/")}}
    if resource is not None:
        entry["resource"] = resource
    bundle = {"resourceType": "Bundle", "type": type_, "entry": [entry]}
    return "POST", "/", bundle, {}


async def send(world: World, who: str, request: Request) -> httpx.Response:
    """The answer; that of a batch is its only entry's."""
    method, url, body, headers = request
    content: dict[str, Any] = {"json": body} if isinstance(body, dict | list) else {}
    if isinstance(body, bytes):
        content = {"content": body}
    answer = await world.client.request(
        method, url, headers={"Authorization": f"Bearer {who}", **headers}, **content
    )
    if not (isinstance(body, dict) and body.get("type") == "batch"):
        return answer
    response = answer.json()["entry"][0]["response"]
    return httpx.Response(
        int(response["status"][:3]),
        json=response.get("outcome", {}),
        headers={"content-type": "application/fhir+json"},
    )


def creations(kind: Kind, resource: Resource) -> dict[str, Request]:
    """Every way to make a resource."""
    url, id_ = f"/{kind.type}", resource["id"]
    criteria = kind.criteria(id_)
    nameless = {key: value for key, value in resource.items() if key != "id"}
    post: Request = ("POST", url, nameless, {})
    put: Request = ("PUT", f"{url}/{id_}", resource, {})
    return {
        "create": post,
        "update-as-create": put,
        "conditional-create": ("POST", url, nameless, {"If-None-Exist": criteria}),
        "conditional-update": ("PUT", f"{url}?{criteria}", nameless, {}),
        "batch-create": bundled("batch", post),
        "batch-update": bundled("batch", put),
        "transaction-create": bundled("transaction", post),
        "transaction-update": bundled("transaction", put),
    }


def changes(kind: Kind, after: Resource) -> dict[str, Request]:
    """Every way to make a resource that is there, under this id, into another: with the element or without."""
    url = f"/{kind.type}/{after['id']}"
    criteria = f"/{kind.type}?{kind.criteria(after['id'])}"
    adds = kind.element in after
    put: Request = ("PUT", url, after, {})
    fhirpath = parameters(
        add(kind.type, kind.element, **kind.fhirpath) if adds else delete(f"{kind.place}[0]")
    )
    json = [{"op": "remove", "path": f"/{kind.element}"}]
    if adds:
        json = [{"op": "add", "path": f"/{kind.element}", "value": after[kind.element]}]
    xml = (
        f'<add sel="f:{kind.type}/f:{kind.behind}" pos="after">{kind.xml}</add>'
        if adds
        else f'<remove sel="f:{kind.type}/f:{kind.element}"/>'
    )
    by_json = {"content-type": "application/json-patch+json"}
    by_fhirpath = {"content-type": "application/fhir+json"}
    return {
        "update": put,
        "conditional-update": ("PUT", criteria, after, {}),
        "json-patch": ("PATCH", url, json, by_json),
        "fhirpath-patch": ("PATCH", url, fhirpath, by_fhirpath),
        "xml-patch": ("PATCH", url, diff(xml), {"content-type": "application/xml-patch+xml"}),
        "conditional-patch": ("PATCH", criteria, json, by_json),
        "batch-update": bundled("batch", put),
        "batch-patch": bundled("batch", ("PATCH", url, fhirpath, {})),
        "transaction-update": bundled("transaction", put),
        "transaction-patch": bundled("transaction", ("PATCH", url, fhirpath, {})),
    }


CREATIONS = list(creations(KINDS[0], _communication("x")))
CHANGES = list(changes(KINDS[0], _communication("x")))


def assert_reserved(kind: Kind, answer: httpx.Response) -> None:
    outcome = assert_outcome(answer, 403, "forbidden", kind.place)
    assert "administrator" in outcome["issue"][0]["diagnostics"]


async def stored(world: World, kind: Kind, id_: str) -> Resource:
    found: Resource = (await world.get("admin", f"/{kind.type}/{id_}")).json()
    return found


# Adding


@kinds
@pytest.mark.parametrize("way", CREATIONS)
async def test_a_client_creates_none(world: World, kind: Kind, way: str) -> None:
    resource = kind.reserved(new_id())
    assert_reserved(kind, await send(world, "north", creations(kind, resource)[way]))
    assert await world.found("admin", f"/{kind.type}?{kind.criteria(resource['id'])}") == []


@kinds
@pytest.mark.parametrize("way", CREATIONS)
async def test_without_the_element_the_same_is_created(world: World, kind: Kind, way: str) -> None:
    answer = await send(world, "north", creations(kind, kind.plain(new_id()))[way])
    assert answer.status_code in (200, 201), answer.text


@kinds
@pytest.mark.parametrize("way", CHANGES)
async def test_a_client_adds_it_to_none_of_its_own(world: World, kind: Kind, way: str) -> None:
    id_ = new_id()
    await world.put("north", kind.plain(id_))
    before = await stored(world, kind, id_)
    assert_reserved(kind, await send(world, "north", changes(kind, kind.reserved(id_))[way]))
    assert await stored(world, kind, id_) == before


# Changing and removing


@kinds
@pytest.mark.parametrize("way", CHANGES)
async def test_a_client_takes_it_away_from_none(world: World, kind: Kind, way: str) -> None:
    id_ = new_id()
    await world.put("north", kind.plain(id_))
    await world.put("admin", kind.reserved(id_))
    before = await stored(world, kind, id_)
    assert before[kind.element] == [kind.value]
    assert_reserved(kind, await send(world, "north", changes(kind, kind.plain(id_))[way]))
    assert await stored(world, kind, id_) == before


@kinds
@pytest.mark.parametrize("way", CHANGES)
async def test_an_administrator_adds_it_and_takes_it_away(
    world: World, kind: Kind, way: str
) -> None:
    id_ = new_id()
    await world.put("north", kind.plain(id_))
    for after in (kind.reserved(id_), kind.plain(id_)):
        answer = await send(world, "admin", changes(kind, after)[way])
        assert answer.status_code == 200, answer.text
        assert (await stored(world, kind, id_)).get(kind.element) == after.get(kind.element)


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param([{**AUTHORITY, "valueCode": "provider"}], id="another-value"),
        pytest.param([AUTHORITY, AUTHORITY], id="twice"),
        pytest.param([{**AUTHORITY, "id": "a"}], id="with-an-id"),
    ],
)
async def test_a_client_does_not_change_the_kind_of_its_recipient(
    world: World, kept: list[Resource]
) -> None:
    kind, id_ = KINDS[1], new_id()
    await world.put("agency", kind.plain(id_))
    await world.put("admin", kind.reserved(id_))
    changed = {**kind.plain(id_), "extension": kept}
    assert_reserved(kind, await world.ask("agency", "PUT", f"/Subscription/{id_}", changed))


async def test_the_rest_of_such_a_subscription_is_still_its_clients(world: World) -> None:
    kind, id_ = KINDS[1], new_id()
    await world.put("agency", kind.plain(id_))
    await world.put("admin", kind.reserved(id_))
    await world.put("agency", {**kind.reserved(id_), "reason": "Another"})
    found = await stored(world, kind, id_)
    assert (found["reason"], found["extension"]) == ("Another", [AUTHORITY])
    place = f"/Subscription/{id_}"
    assert (await world.ask("agency", "DELETE", place)).status_code == 204
    # What was deleted grants nothing to what comes after it.
    assert_reserved(kind, await world.ask("agency", "PUT", place, kind.reserved(id_)))


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(("PUT", "/Communication/{id}", "update", {}), id="update"),
        pytest.param(("DELETE", "/Communication/{id}", None, {}), id="delete"),
        pytest.param(
            ("DELETE", "/Communication?identifier=urn:test|{id}", None, {}), id="conditional-delete"
        ),
        pytest.param(("POST", "/Communication/{id}/$meta-add", "meta", {}), id="meta-add"),
    ],
)
async def test_nothing_else_of_a_proof_is_a_clients(world: World, request_: Request) -> None:
    kind, id_ = KINDS[0], new_id()
    await world.put("admin", kind.reserved(id_))
    before = await stored(world, kind, id_)
    method, url, body, headers = request_
    if body == "update":
        body = {**kind.reserved(id_), "status": "stopped"}
    elif body == "meta":
        tag = {"system": "urn:test", "code": "mine"}
        body = {
            "resourceType": "Parameters",
            "parameter": [{"name": "meta", "valueMeta": {"tag": [tag]}}],
        }
    request: Request = (method, url.format(id=id_), body, headers)
    assert_reserved(kind, await send(world, "north", request))
    if "$" not in url:
        for type_ in ("batch", "transaction"):
            assert_reserved(kind, await send(world, "north", bundled(type_, request)))
    assert await stored(world, kind, id_) == before


async def test_a_proof_that_is_hidden_is_not_told_of(world: World) -> None:
    kind, id_ = KINDS[0], new_id()
    await world.put("admin", kind.reserved(id_))
    url = f"/Communication/{id_}"
    assert_outcome(await world.get("south", url), 404, "not-found")
    patch = [{"op": "replace", "path": "/status", "value": "stopped"}]
    headers = {"content-type": "application/json-patch+json"}
    assert_outcome(await send(world, "south", ("PATCH", url, patch, headers)), 404, "not-found")
    answers = [
        await world.ask("south", "PUT", f"/Communication/{each}", kind.plain(each))
        for each in (id_, new_id())
    ]
    assert [answer.status_code for answer in answers] == [403, 403]
    assert answers[0].json() == answers[1].json()


# What the server writes itself


async def told(world: World, receiver: Receiver) -> tuple[str, str]:
    """A notice that north has received: the stay, and the id that both sides know it by."""
    body = topic_based("patient=Patient/pn", endpoint=receiver.url)
    made = await world.ask("north", "POST", "/Subscription", body)
    assert made.status_code == 201, made.text
    await world.server.worker.drain()
    stay = new_id()
    await world.put("admin", encounter(stay, "pn", "general"))
    await world.server.worker.drain()
    rows = world.server.mongo.collection("deliveries")
    row = await rows.find_one({"focus.id": stay, "subscription": made.json()["id"]})
    assert row is not None
    assert row["state"] == "delivered"
    return stay, row["_id"]


async def publish(world: World) -> None:
    world.server.clock.advance(timedelta(hours=2))
    await world.server.engine.drain()


async def test_the_server_goes_on_to_write_its_proof(world: World, receiver: Receiver) -> None:
    stay, notice = await told(world, receiver)
    await publish(world)
    found = (await world.get("north", f"/Communication/{notice}")).json()
    assert (found["category"], found["about"]) == ([PROOF], [ref(f"Encounter/{stay}")])
    assert_reserved(
        KINDS[0],
        await world.ask("north", "PUT", f"/Communication/{notice}", _communication(notice)),
    )


async def test_no_recipient_keeps_a_notice_from_being_proved(
    world: World, receiver: Receiver
) -> None:
    """It knows the notice's id as soon as it is told, and what was deleted is not published again."""
    later = world.server.clock.now() + timedelta(hours=1)
    await world.server.engine.timers.set("publish-notices", "all", later)  # not while it is at it
    _, notice = await told(world, receiver)
    await world.put("north", _communication(notice))
    place = f"/Communication/{notice}"
    assert (await world.ask("north", "DELETE", place)).status_code == 204
    await publish(world)
    assert (await world.get("north", place)).json()["category"] == [PROOF]


async def test_the_server_goes_on_to_keep_the_subscriptions_of_contracts(
    world: World, receiver: Receiver
) -> None:
    terms = {
        "id": "state",
        "title": "Admissions of members",
        "group": "Group/list-n",
        "recipient": "Organization/agency",
        "deadline": 24,
        "alert_before": 4,
        "channel": {"type": "rest-hook", "endpoint": receiver.url},
    }
    answer = await world.ask("admin", "PUT", f"{ADMIN}/contracts/state", terms)
    assert answer.status_code == 201, answer.text
    await world.server.worker.drain()
    found = (await world.get("admin", "/Subscription?_tag=contract")).json()["entry"]
    assert found
    for each in found:
        assert AUTHORITY in each["resource"]["extension"]
        assert each["resource"]["status"] == "active"
