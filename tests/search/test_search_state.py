"""Two apps in one process: neither sees words, parameters or page links of the other."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from app.api.transport import Transport
from app.authorization.relations import about
from app.records.versions import Change
from app.runtime.mongo import Mongo
from app.search import custom
from app.search.custom import Custom
from app.search.extract import extract
from app.search.search_parameters import parameters
from app.search.search_state import SearchState, current
from app.settings import Settings
from app.store.store import Store
from tests.conftest import Server, make_settings, running
from tests.outcomes import assert_outcome
from tests.store.test_reindex import parameter, put, reindexed

App = tuple[Server, httpx.AsyncClient]


@contextlib.asynccontextmanager
async def two(mongod: str, **changes: Any) -> AsyncIterator[tuple[App, App]]:
    """Two apps on two databases; the first with these settings."""
    async with (
        running(make_settings(mongod, **changes)) as first,
        running(make_settings(mongod)) as second,
    ):
        yield first, second


@pytest.fixture(scope="module")
async def apps(mongod: str) -> AsyncIterator[tuple[App, App]]:
    async with two(mongod) as pair:
        yield pair


def patient(id_: str, **elements: Any) -> dict[str, Any]:
    return {"resourceType": "Patient", "id": id_, **elements}


async def terms(app: App, resource_type: str, id_: str) -> set[str]:
    """What the app stored to find a resource by."""
    row = await app[0].mongo.collection(resource_type).find_one({"_id": id_})
    return set(row["terms"])


async def found(app: App, search: str) -> set[str]:
    response = await app[1].get(search)
    assert response.status_code == 200, response.text
    return {entry["resource"]["id"] for entry in response.json().get("entry", ())}


async def next_link(app: App, search: str) -> str:
    response = await app[1].get(search)
    assert response.status_code == 200, response.text
    links = response.json()["link"]
    return next(str(link["url"]) for link in links if link["relation"] == "next")


@pytest.mark.slow
@pytest.mark.mongo
@pytest.mark.parametrize("is_first_without", [True, False])
async def test_words_are_one_apps_matter(mongod: str, is_first_without: bool) -> None:
    plan = {
        "resourceType": "CarePlan",
        "id": "plan",
        "status": "active",
        "intent": "plan",
        "subject": {"reference": "Patient/p"},
        "description": "less salt",
    }
    async with (
        running(make_settings(mongod, search_words=not is_first_without)) as first,
        running(make_settings(mongod, search_words=is_first_without)) as second,
    ):
        without, having = (first, second) if is_first_without else (second, first)
        written = await asyncio.gather(*(put(app[1], plan) for app in (first, second)))
        assert [each.status_code for each in written] == [201, 201]
        for _ in range(2):
            refused = await without[1].get("/CarePlan?_content=salt")
            assert_outcome(refused, 400, "not-supported")
            assert await found(having, "/CarePlan?_content=salt") == {"plan"}
        assert "_content=salt" in await terms(having, "CarePlan", "plan")
        assert not [t for t in await terms(without, "CarePlan", "plan") if t.startswith("_content")]


@pytest.mark.slow
@pytest.mark.mongo
async def test_a_clients_parameter_is_unknown_to_the_other_app(apps: tuple[App, App]) -> None:
    knowing, other = apps
    assert (await put(knowing[1], parameter("wed"))).status_code == 201
    married = patient("married", maritalStatus={"coding": [{"code": "M"}]})
    assert (await put(other[1], married)).status_code == 201
    assert (await put(knowing[1], married)).status_code == 201
    assert (await reindexed(knowing[1]))["state"] == "done"
    assert await found(knowing, "/Patient?wed=M") == {"married"}
    assert_outcome(await other[1].get("/Patient?wed=M"), 400, "not-supported")
    again = await asyncio.gather(
        *(put(app[1], {**married, "active": True}) for app in (knowing, other))
    )
    assert [each.status_code for each in again] == [200, 200]
    assert "wed=M" in await terms(knowing, "Patient", "married")
    assert "wed=M" not in await terms(other, "Patient", "married")
    assert (await reindexed(other[1], "Patient"))["changed"] == 0
    assert "wed=M" not in await terms(other, "Patient", "married")
    # Nor does it stand in the way of another definition of the same code there.
    apart = parameter("wed", id="sp-apart", expression="Patient.gender")
    assert (await put(other[1], apart)).status_code == 201
    assert (await put(other[1], patient("woman", gender="female"))).status_code == 201
    assert (await reindexed(other[1]))["state"] == "done"
    assert await found(other, "/Patient?wed=female,M") == {"woman"}
    assert await found(knowing, "/Patient?wed=female,M") == {"married"}


@pytest.mark.mongo
async def test_what_may_be_included_is_stated_anew_and_by_one_app(apps: tuple[App, App]) -> None:
    async def stated(app: App) -> tuple[set[str], set[str]]:
        resources = (await app[1].get("/metadata")).json()["rest"][0]["resource"]
        by_type = {each["type"]: each for each in resources}
        return set(by_type["Patient"]["searchInclude"]), set(
            by_type["Organization"]["searchRevInclude"]
        )

    knowing, other = apps
    before = await stated(knowing)
    assert await stated(other) == before
    keeper = parameter(
        "keeper",
        type="reference",
        expression="Patient.managingOrganization",
        target=["Organization"],
    )
    assert (await put(knowing[1], keeper)).status_code == 201
    assert (await reindexed(knowing[1], "Patient"))["state"] == "done"
    assert await stated(knowing) == tuple({*each, "Patient:keeper"} for each in before)
    assert await stated(other) == before


@pytest.mark.slow
@pytest.mark.mongo
@pytest.mark.parametrize(
    "search",
    [
        pytest.param("/Patient?_count=2&_sort=_id", id="type"),
        pytest.param("/?_type=Patient&_count=2", id="types"),
        pytest.param("/Patient/_history?_count=2", id="history"),
    ],
)
async def test_page_links_are_good_for_one_app(mongod: str, search: str) -> None:
    async def fill(app: App) -> None:
        for number in range(5):
            assert (await put(app[1], patient(f"p{number}"))).status_code == 201

    settings = make_settings(mongod)
    async with running(settings) as first:
        await fill(first)
        early = await next_link(first, search)
        async with running(make_settings(mongod)) as second:
            await fill(second)
            late = await next_link(first, search)
            for link in (early, late):
                assert len(await found(first, link)) == 2
                assert_outcome(await second[1].get(link), 410, "expired")
            theirs = await next_link(second, search)
            assert len(await found(second, theirs)) == 2
            assert_outcome(await first[1].get(theirs), 410, "expired")
            async with running(settings) as beside:
                assert len(await found(beside, late)) == 2
        assert len(await found(first, late)) == 2


@pytest.mark.slow
@pytest.mark.mongo
async def test_all_tasks_of_an_app_inherit_its_state(mongod: str) -> None:
    mine = ContextVar("mine", default=False)
    inherited: list[SearchState] = []

    def factory(
        loop: asyncio.AbstractEventLoop, coroutine: Any, **options: Any
    ) -> asyncio.Future[Any]:
        if mine.get():  # the loop has other tests' apps, too
            inherited.append(current())
        return asyncio.Task(coroutine, loop=loop, **options)

    outside = current()
    mine.set(True)
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        async with running(make_settings(mongod)) as (server, http):
            assert current() is outside
            assert len(inherited) > 10
            assert (await put(http, patient("p"))).status_code == 201
            assert (await http.get("/Patient?_id=p")).status_code == 200
    finally:
        loop.set_task_factory(None)
    assert set(inherited) == {server.store.search_state}
    assert current() is outside


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_every_exchange_has_the_apps_state(kind: str) -> None:
    seen: list[SearchState] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append(current())

    async def receive() -> Any:
        raise AssertionError

    async def send(message: Any) -> None:
        pass

    outside, own = current(), SearchState()
    headers = [(b"host", b"127.0.0.1")]
    scope = {"type": kind, "method": "GET", "headers": headers, "scheme": "http", "path": "/"}
    await Transport(app, Settings(), own)(
        {**scope, "raw_path": b"/", "query_string": b""}, receive, send
    )
    assert seen == [own]
    assert current() is outside


@pytest.mark.mongo
async def test_a_store_extracts_by_its_own_state(mongo: Mongo) -> None:
    """Whoever writes, and whatever is in force there."""
    marriage = custom.read(parameter("wed"))
    own = SearchState(has_words=False)
    own.learn([Custom("sp-wed", marriage)])
    store = Store(mongo, search_state=own)
    await store.prepare()
    heard: list[SearchState] = []
    store.listeners.append(lambda events: heard.append(current()))
    person = patient("p", maritalStatus={"coding": [{"code": "M"}], "text": "married"})
    await store.commit([Change("create", "Patient", "p", person)])
    assert await store.raise_event(("Patient", "p", 1), "http://t.example", key="k", at=mongo.now())
    assert heard == [own, own]
    (row,) = await store.find("Patient", {})
    assert "wed=M" in row["terms"]
    assert "_content=married" not in row["terms"]
    assert await store.reindex("Patient", "", 10) == ("p", 0, [])
    plain = Store(mongo)
    assert await plain.reindex("Patient", "", 10) == ("p", 1, [])
    (row,) = await store.find("Patient", {})
    assert "wed=M" not in row["terms"]
    assert "_content=married" in row["terms"]


def test_parameters_follow_what_clients_define() -> None:
    person = patient("p", maritalStatus={"coding": [{"code": "M"}]})
    marriage = custom.read(parameter("wed"))
    state = SearchState()
    with state.applied():
        assert "wed" not in parameters("Patient")
        state.learn([Custom("sp-wed", marriage)])
        assert "wed" not in parameters("Patient")
        assert "wed=M" in extract("Patient", person)["terms"]
        state.learn([Custom("sp-wed", marriage, is_searchable=True)])
        assert "wed" in parameters("Patient")
        state.learn([])
        assert "wed=M" not in extract("Patient", person)["terms"]
    assert "wed=M" not in extract("Patient", person)["terms"]


def test_where_two_define_a_code_both_have_to_be_indexed() -> None:
    one, two = custom.read(parameter("wed")), custom.read(parameter("wed", name="Other"))
    state = SearchState()
    with state.applied():
        for is_first, is_second in ((True, False), (False, True), (True, True)):
            state.learn([Custom("a", one, is_first), Custom("b", two, is_second)])
            assert ("wed" in parameters("Patient")) is (is_first and is_second)


def test_digests_do_not_depend_on_the_order_of_learning() -> None:
    known = [Custom(each, custom.read(parameter(each))) for each in ("a", "b")]
    states = SearchState(), SearchState()
    states[0].learn(known)
    states[1].learn(reversed(known))
    digests = {custom.digest(each.custom) for each in states}
    assert len(digests) == 1
    assert digests != {custom.digest(())}


def test_no_client_decides_what_a_resource_is_about() -> None:
    """Access hangs on it: a parameter named `patient` or `subject` changes nothing."""
    definition = custom.read(
        parameter(
            "patient", base=["Organization"], type="reference", expression="Organization.partOf"
        )
    )
    state = SearchState()
    state.learn([Custom("sp", definition, is_searchable=True)])
    with state.applied():
        assert "patient" in parameters("Organization")
        assert about("Organization") is None
    assert about("Encounter") is not None
