"""Refusals on record, and that nobody can fill the audit with them: what anybody can cause is counted after a while."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.audit import refusal_counter
from app.audit.verification import verify
from app.errors import Unavailable
from app.main import create_app
from app.runtime import secrets
from app.settings import Settings
from tests.builders.access_world import World, world as a_world
from tests.builders.audit_events import QUERY, entities, events, refusing_rows
from tests.builders.exporting import ASYNC, kick_off
from tests.conftest import BASE, Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

ROOT = BASE.removesuffix("/fhir")
ADMIN = {"Authorization": "Bearer admin"}


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod) as found:
        yield found


async def refused(world: World, **parameters: str) -> list[dict[str, Any]]:
    """The AuditEvents of refusals, the newest first."""
    with_token = httpx.AsyncClient(transport=world.client._transport, headers=ADMIN)
    return await events(with_token, outcome="4", **parameters)


def who(event: dict[str, Any]) -> str:
    return str(event["agent"][0]["who"]["identifier"]["value"])


def where(event: dict[str, Any]) -> str | None:
    address: str | None = event["agent"][0].get("network", {}).get("address")
    return address


def said(events: list[dict[str, Any]]) -> list[str]:
    """What each says of itself, by status and number."""
    return sorted(event["outcomeDesc"] for event in events)


# By method


@pytest.mark.parametrize(
    ("method", "place"),
    [
        pytest.param("PUT", "Patient/pn/_history", id="history"),
        pytest.param("DELETE", "_history", id="system"),
        pytest.param("POST", "_export/x", id="export"),
        pytest.param("PATCH", "_export/x/0.ndjson", id="file"),
        pytest.param("PUT", "AuditEvent/x/_history", id="audit"),
    ],
)
async def test_a_method_that_is_not_there_is_on_record(
    world: World, method: str, place: str
) -> None:
    assert_outcome(await world.ask("general", method, f"/{place}", {}), 405, "not-supported")
    event = (await refused(world, agent="general"))[0]
    assert event["outcomeDesc"] == "HTTP 405"
    assert entities(event, *QUERY)[0]["description"] == f"{method} /fhir/{place}"
    assert event["agent"][-1]["who"] == {"reference": "Organization/general"}


async def test_a_method_is_refused_in_a_bundle_as_well(world: World) -> None:
    entry = {"request": {"method": "GET", "url": "Patient/_search"}}
    bundle = {"resourceType": "Bundle", "type": "batch", "entry": [entry]}
    answer = await world.ask("city", "POST", "/", bundle)
    assert answer.json()["entry"][0]["response"]["status"].startswith("405")
    assert said(await refused(world, agent="city")) == ["HTTP 405"]


@pytest.mark.parametrize(
    ("method", "place"),
    [
        ("POST", "/fhir/metadata"),
        ("GET", "/auth/token"),
        ("GET", "/fhir/auth/token"),
        ("PUT", "/.well-known/smart-configuration"),
        ("PATCH", "/admin/topics"),
    ],
)
async def test_a_method_that_is_refused_before_anybody_is_known_is_on_record(
    world: World, method: str, place: str
) -> None:
    answer = await world.client.request(method, f"{ROOT}{place}", headers={"X-Request-Id": "here"})
    assert answer.status_code == 405
    event = (await refused(world))[0]
    assert (who(event) in ("unknown", "anonymous"), where(event)) == (True, "127.0.0.1")
    assert event["outcomeDesc"] == "HTTP 405"
    assert entities(event, *QUERY)[0]["description"] == f"{method} {place}"


async def test_an_export_is_not_touched_without_a_token_by_any_method(world: World) -> None:
    for method in ("GET", "POST", "DELETE"):
        answer = await world.client.request(method, "/_export/x")
        assert_outcome(answer, 401, "login")


async def test_administration_that_is_refused_names_who_asked(world: World) -> None:
    answer = await world.client.get(
        f"{ROOT}/admin/topics", headers={"Authorization": "Bearer plan-b"}
    )
    assert_outcome(answer, 403, "forbidden")
    assert said(await refused(world, agent="plan-b")) == ["HTTP 403"]


# By rate


async def test_who_asks_too_soon_how_an_export_is_doing_is_on_record(world: World) -> None:
    async with world.server.exports._running:
        export = await kick_off(world, "agency", "/$export?_type=Patient")
        for status in (202, 429):
            assert (await world.get("agency", export.status)).status_code == status
    event = (await refused(world, agent="agency"))[0]
    assert (event["outcomeDesc"], event["action"]) == ("HTTP 429", "R")


async def test_a_client_that_comes_too_often_is_named_once_for_many(mongod: str) -> None:
    async with a_world(mongod, rate_limit=0.001, rate_burst=50_000) as world:
        answers = [(await world.get("north", "/Patient/pn")).status_code for _ in range(75)]
        assert answers == 50 * [200] + 25 * [429]
    async with again(world, rate_limit=0) as later:
        found = await refused(later, agent="north")
        assert said(found) == refusal_counter.ALONE * ["HTTP 429"] + ["HTTP 429 15 times"]
        (many,) = (event for event in found if "period" in event)
        assert many["period"]["start"] < many["period"]["end"] == many["recorded"]
        assert many["agent"][-1]["who"] == {"reference": "Organization/north"}
        assert not entities(many, *QUERY)


async def test_too_many_exports_are_on_record(world: World) -> None:
    await world.server.exports.drain()
    async with world.server.exports._running:
        for _ in range(world.server.settings.max_exports):
            await kick_off(world, "admin", "/$export?_type=Patient")
        assert (await world.get("south", "/$export", headers=ASYNC)).status_code == 429
    (event,) = await refused(world, agent="south")
    assert entities(event, *QUERY)[0]["description"] == "GET /fhir/$export"


# Strangers


@asynccontextmanager
async def again(world: World, **changes: Any) -> AsyncIterator[World]:
    """A server on the same database, which the one before has left."""
    settings = world.server.settings.model_copy(update=changes)
    async with running(settings, world.authority) as (server, client):
        yield World(server, client, world.authority)


@asynccontextmanager
async def called_from(settings: Settings) -> AsyncIterator[tuple[Server, Any]]:
    """A server, and a function that gives a client at an address."""
    app = create_app(settings)

    def at(address: str) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            transport=httpx.ASGITransport(app, client=(address, 1)), base_url=BASE
        )

    async with app.router.lifespan_context(app):
        yield Server(app.state.services), at


FLOODS = [
    ("GET", "/fhir/Patient/pn", 401),
    ("POST", "/auth/token", 400),
    ("POST", "/fhir/metadata", 405),
    ("GET", f"/fhir/Patient?name={9000 * 'x'}", 414),
]


async def test_a_stranger_does_not_fill_the_audit(mongod: str) -> None:
    """Neither without a token, nor by asking for one, by methods or by long addresses."""
    async with a_world(mongod, token_rate_limit=0) as world:
        for method, place, status in FLOODS:
            for _ in range(40):
                answer = await world.client.request(method, f"{ROOT}{place}")
                assert answer.status_code == status
    async with again(world) as later:
        found = await refused(later)
        each = refusal_counter.ALONE * [f"HTTP {status}" for _, _, status in FLOODS]
        rest = [f"HTTP {status} 30 times" for _, _, status in FLOODS]
        assert said(found) == sorted([*each, *rest])
        assert {where(event) for event in found} == {"127.0.0.1"}
        lines = [query["description"] for event in found for query in entities(event, *QUERY)]
        assert max(map(len, lines)) == refusal_counter.LONGEST_LINE
        server = later.server
        assert server.audit is not None
        await server.audit.anchor()
        assert not (await verify(server.mongo, secrets.of_settings(server.settings))).findings


async def test_strangers_from_everywhere_do_not_fill_the_audit(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses are told apart as far as rates tell them apart, and only so many of them."""
    monkeypatch.setattr(refusal_counter, "MOST_ADDRESSES", 3)
    monkeypatch.setattr(refusal_counter, "ALONE", 1)
    settings = make_settings(mongod, auth="smart")
    async with called_from(settings) as (server, at):
        for address in ("203.0.113.1", "2001:db8::1", "2001:db8::2", "203.0.113.2"):
            await at(address).get("/Patient/p1")
        for number in range(20):
            await at(f"198.51.100.{number}").get("/Patient/p1")
        await at("203.0.113.1").get("/Patient/p1")
        assert server.audit is not None
        await server.audit.sum_up()
    async with running(settings.model_copy(update={"auth": "off", "audit": "required"})) as pair:
        found = await events(pair[1], type="110114")
        assert sorted((event["outcomeDesc"], where(event) or "") for event in found) == [
            ("HTTP 401", "2001:db8::1"),
            ("HTTP 401", "203.0.113.1"),
            ("HTTP 401", "203.0.113.2"),
            ("HTTP 401 1 times", "2001:db8::/64"),
            ("HTTP 401 1 times", "203.0.113.1"),
            ("HTTP 401 20 times", ""),
        ]


async def test_strangers_together_have_so_many_records_of_their_own(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever ways of being refused they find; a client's are beside that."""
    monkeypatch.setattr(refusal_counter, "MOST_ALONE", 4)
    async with a_world(mongod, max_exports=1) as world, world.server.exports._running:
        for method, place in (("GET", "/Patient/pn"), ("POST", "/metadata"), ("PUT", "/metadata")):
            for _ in range(3):
                await world.client.request(method, place)
        await kick_off(world, "north", "/$export")
        await world.get("south", "/$export", headers=ASYNC)
        assert world.server.audit is not None
        await world.server.audit.sum_up()
        found = said(await refused(world))
        assert found == [*3 * ["HTTP 401"], "HTTP 405", "HTTP 405 5 times", "HTTP 429"]


async def test_an_address_that_comes_too_often_is_on_record(mongod: str) -> None:
    """Turned away before anything else is looked at."""
    settings = make_settings(mongod, audit="required", rate_limit=0.001, rate_burst=2000)
    async with called_from(settings) as (server, at):
        statuses = [(await at("203.0.113.1").get("/Patient/none")).status_code for _ in range(15)]
        assert statuses == 2 * [404] + 13 * [429]
        assert server.audit is not None
        await server.audit.sum_up()
        found = await events(at("203.0.113.2"), outcome="4")
        assert said(found) == 2 * ["HTTP 404"] + 10 * ["HTTP 429"] + ["HTTP 429 3 times"]


async def test_what_was_counted_waits_for_a_database_that_takes_it(mongod: str) -> None:
    async with a_world(mongod) as world:
        for _ in range(12):
            await world.client.get("/Patient/pn")
        assert world.server.audit is not None
        async with refusing_rows(world.server):
            with pytest.raises(Unavailable):
                await world.server.audit.sum_up()
            assert_outcome(await world.get("general", "/Nothing/x"), 503, "transient")
        await world.client.get("/Patient/pn")
        await world.server.audit.sum_up()
        await world.server.audit.sum_up()
        singly = (refusal_counter.ALONE + 1) * ["HTTP 401"]
        assert said(await refused(world, type="110114")) == [*singly, "HTTP 401 2 times"]
