"""SearchParameter resources of clients, and `$reindex`, which makes them searchable."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from pymongo.errors import ConnectionFailure

from app.errors import FhirError
from app.records.versions import Change
from app.runtime.leases import BackOff, LostError
from app.runtime.mongo import Mongo
from app.store.reindexing import Reindexing
from app.store.store import Store
from tests.builders.spoilt import spoilt
from tests.conftest import Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo


def parameter(code: str, **changes: Any) -> dict[str, Any]:
    return {
        "resourceType": "SearchParameter",
        "id": f"sp-{code}",
        "url": f"http://p.example/SearchParameter/{code}",
        "name": "Custom",
        "status": "active",
        "description": "x",
        "code": code,
        "base": ["Patient"],
        "type": "token",
        "expression": "Patient.maritalStatus",
        **changes,
    }


@pytest.fixture(scope="module")
async def own(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    async with running(make_settings(mongod)) as pair:
        yield pair


@pytest.fixture
def http(own: tuple[Server, httpx.AsyncClient]) -> httpx.AsyncClient:
    return own[1]


async def put(client: httpx.AsyncClient, resource: dict[str, Any]) -> httpx.Response:
    return await client.put(f"/{resource['resourceType']}/{resource['id']}", json=resource)


async def married(client: httpx.AsyncClient) -> str:
    id_ = f"t-{uuid.uuid4()}"
    status = {"coding": [{"system": "http://m.example", "code": "M"}]}
    patient = {"resourceType": "Patient", "id": id_, "maritalStatus": status}
    assert (await put(client, patient)).status_code == 201
    return id_


def job_of(response: httpx.Response) -> dict[str, Any]:
    (job,) = response.json()["parameter"]
    return {part["name"]: next(v for k, v in part.items() if k != "name") for part in job["part"]}


async def reindexed(client: httpx.AsyncClient, *types: str) -> dict[str, Any]:
    body = {"resourceType": "Parameters"}
    if types:
        body["parameter"] = [{"name": "type", "valueCode": each} for each in types]  # type: ignore[assignment]
    started = await client.post("/$reindex", json=body)
    assert started.status_code == 202, started.text
    return await ended(client, job_of(started))


async def ended(client: httpx.AsyncClient, job: dict[str, Any]) -> dict[str, Any]:
    """A reindexing when it is over, well or not."""
    give_up = asyncio.get_running_loop().time() + 60
    while job["state"] in ("queued", "running"):
        assert asyncio.get_running_loop().time() < give_up, f"not over in time: {job}"
        await asyncio.sleep(0.02)
        job = job_of(await client.get("/$reindex", params={"id": job["id"]}))
    return job


@pytest.mark.parametrize(
    ("changes", "code", "path", "named"),
    [
        pytest.param({"code": "birthdate"}, "duplicate", "code", "already", id="standard-code"),
        pytest.param({"code": "a:b"}, "not-supported", "code", "letters", id="code"),
        pytest.param({"base": ["Resource"]}, "not-supported", "base", "Resource", id="abstract"),
        pytest.param(
            {"expression": "Patient.nonsense"},
            "not-supported",
            "expression",
            "nonsense",
            id="element",
        ),
        pytest.param(
            {"expression": "Patient.name.trace('x')"},
            "not-supported",
            "expression",
            "trace",
            id="function",
        ),
        pytest.param(
            {"expression": "Encounter.status"},
            "not-supported",
            "expression",
            "Patient",
            id="other-type",
        ),
        pytest.param({"type": "date"}, "not-supported", "expression", "date", id="type-of-element"),
        pytest.param({"type": "special"}, "not-supported", "expression", "special", id="special"),
    ],
)
async def test_active_parameter_that_cannot_be_searched_by_is_refused(
    http: httpx.AsyncClient, changes: dict[str, Any], code: str, path: str, named: str
) -> None:
    resource = {**parameter("refused"), **changes}
    assert_outcome(await put(http, resource), 422, code, f"SearchParameter.{path}")
    response = await put(http, resource)
    assert named in response.json()["issue"][0]["diagnostics"]
    draft = await put(http, {**resource, "status": "draft", "id": f"d-{uuid.uuid4()}"})
    assert draft.status_code == 201


async def test_parameter_is_searchable_after_reindex(http: httpx.AsyncClient) -> None:
    before = await married(http)
    assert (await put(http, parameter("marriage"))).status_code == 201
    between = await married(http)
    assert_outcome(await http.get("/Patient?marriage=M"), 400, "not-supported")
    job = await reindexed(http)
    assert job["state"] == "done"
    assert job["type"] == "Patient"
    after = await married(http)
    found = (await http.get("/Patient?marriage=http://m.example|M")).json()
    assert {entry["resource"]["id"] for entry in found["entry"]} >= {before, between, after}
    missing = (await http.get("/Patient?marriage:not=M&_summary=count")).json()
    assert missing["total"] == 0


async def test_a_resource_that_cannot_be_read_is_named_and_stops_no_reindexing(
    own: tuple[Server, httpx.AsyncClient],
) -> None:
    server, http = own
    before, broken = await married(http), await married(http)
    assert (await put(http, parameter("unspoilt"))).status_code == 201
    async with spoilt(server.mongo, f"Patient/{broken}"):
        job = await reindexed(http)
    assert (job["state"], job["failed"], job["unread"]) == ("done", 1, f"Patient/{broken}")
    url = f"/Patient?unspoilt=M&_id={before},{broken}"
    found = (await http.get(url)).json()
    assert [entry["resource"]["id"] for entry in found["entry"]] == [before]
    assert (await reindexed(http, "Patient"))["failed"] == 0
    found = (await http.get(url)).json()
    assert {entry["resource"]["id"] for entry in found["entry"]} == {before, broken}


async def test_second_parameter_of_the_same_code_is_refused(http: httpx.AsyncClient) -> None:
    assert (await put(http, parameter("double"))).status_code == 201
    await reindexed(http)
    other = parameter("double", id="sp-other", url="http://p.example/SearchParameter/other")
    assert_outcome(await put(http, other), 422, "duplicate", "SearchParameter.code")


async def test_changed_parameter_waits_for_the_next_reindex(http: httpx.AsyncClient) -> None:
    await married(http)
    assert (await put(http, parameter("changing"))).status_code == 201
    await reindexed(http)
    assert (await http.get("/Patient?changing=M")).status_code == 200
    changed = parameter("changing", expression="Patient.gender")
    assert (await put(http, changed)).status_code == 200
    await reindexed(http)
    assert "entry" not in (await http.get("/Patient?changing=M")).json()
    retired = {**changed, "status": "retired"}
    assert (await put(http, retired)).status_code == 200
    await reindexed(http, "Patient")
    assert_outcome(await http.get("/Patient?changing=M"), 400, "not-supported")


@pytest.mark.slow
async def test_other_processes_learn_of_it(
    own: tuple[Server, httpx.AsyncClient], http: httpx.AsyncClient
) -> None:
    """A second process on the database holds a reindexing up until it extracts the same."""
    mongo = own[0].mongo
    store = Store(mongo)
    await store.prepare()
    other = Reindexing(mongo, store)
    store.cluster.parameters = "something else"
    await store.cluster.start()
    try:
        assert (await put(http, parameter("shared"))).status_code == 201
        started = await http.post("/$reindex", json={"resourceType": "Parameters"})
        job = job_of(started)
        await own[0].reindexing.run_once()
        assert job_of(await http.get("/$reindex", params={"id": job["id"]}))["state"] == "queued"
        await other.learn()
        assert "shared" in {each.definition.code for each in store.search_state.custom}
        await store.cluster.beat()
        assert (await ended(http, job))["state"] == "done"
    finally:
        await store.cluster.stop()


async def test_reindexing_of_a_dead_process_is_finished_by_another(mongod: str) -> None:
    """It goes on where the dead one was, and overwrites nothing newer."""
    mongo = await Mongo.open(make_settings(mongod))
    store = Store(mongo)
    await store.prepare()
    patients = [{"resourceType": "Patient", "id": f"p{n:03}", "gender": "male"} for n in range(250)]
    await store.commit([Change("create", "Patient", p["id"], p) for p in patients])
    collection = mongo.collection("Patient")
    await collection.update_many({}, {"$set": {"terms": ["*"]}})
    dead, alive = Reindexing(mongo, store), Reindexing(mongo, store)
    await dead.request(["Patient"])
    claim = await dead._leases.claim()
    assert claim is not None
    claim.row["parameters"] = {}
    await dead._step(claim, "Patient")
    assert not await alive.run_once(), "the lease still holds"
    past = mongo.now() - timedelta(seconds=1)
    await mongo.collection("reindex").update_one({}, {"$set": {"lease_until": past}})
    newer = await store.read("Patient", "p200")
    await store.commit(
        [Change("update", "Patient", "p200", {**patients[200], "gender": "female"}, newer)]
    )
    assert await alive.run_once()
    with pytest.raises(LostError):  # the dead process must not go on
        await dead._step(claim, "Patient")
    assert await collection.count_documents({"terms": "gender=male"}) == 249
    assert await collection.count_documents({"terms": "gender=female"}) == 1
    (done,) = await alive.jobs()
    assert (done["state"], done["done"], done["changed"]) == ("done", 250, 249)
    await mongo.close()


@pytest.mark.parametrize(
    ("error", "attempts", "said"),
    [
        pytest.param(TypeError("planted"), 3, "TypeError", id="by-accident"),
        pytest.param(FhirError("planted"), 1, "FhirError", id="for-good"),
    ],
)
async def test_a_reindexing_that_fails_says_so(
    mongo: Mongo,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    attempts: int,
    said: str,
) -> None:
    """And the loop goes on: another reindexing would stand still with it."""
    await store.commit([Change("create", "Patient", "p", {"resourceType": "Patient", "id": "p"})])
    reindexing = Reindexing(mongo, store)
    back_off = BackOff(timedelta(), timedelta(), most=3)
    monkeypatch.setattr(reindexing._leases, "_back_off", back_off)
    await reindexing.learn()
    with monkeypatch.context() as failing:
        failing.setattr(store, "reindex", AsyncMock(side_effect=error))
        await reindexing.request(["Patient"])
        # The first try has made progress: it has found out what is extracted.
        for _ in range(attempts + (attempts > 1)):
            assert (await reindexing.jobs())[0]["state"] in ("queued", "running")
            await reindexing.run_once()
    (job,) = await reindexing.jobs()
    assert (job["state"], job["error"]) == ("failed", said)
    assert await mongo.collection("reindex").count_documents({}) == 1
    await reindexing.request(["Patient"])
    assert await reindexing.run_once()


async def test_a_reindexing_bears_with_a_database_that_is_away(
    mongo: Mongo, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.runtime.leases._DATABASE_AWAY", timedelta())
    await store.commit([Change("create", "Patient", "p", {"resourceType": "Patient", "id": "p"})])
    reindexing = Reindexing(mongo, store)
    with monkeypatch.context() as failing:
        failing.setattr(store, "reindex", AsyncMock(side_effect=ConnectionFailure("planted")))
        await reindexing.request(["Patient"])
        for _ in range(9):
            assert not await reindexing.run_once()
    assert await reindexing.run_once()
    (job,) = await reindexing.jobs()
    assert job["state"] == "done"


async def test_a_reindexing_that_is_stopped_is_free_at_once(
    mongo: Mongo, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, reindexing = asyncio.Event(), Reindexing(mongo, store)

    async def stuck(*_: object) -> None:
        started.set()
        await asyncio.sleep(60)

    await store.commit([Change("create", "Patient", "p", {"resourceType": "Patient", "id": "p"})])
    with monkeypatch.context() as standing:
        standing.setattr(store, "reindex", stuck)
        await reindexing.start()
        await reindexing.request(["Patient"])
        await started.wait()
        await reindexing.stop()
    heir = Reindexing(mongo, store)
    assert await heir.run_once()


async def test_reindex_never_writes_over_a_newer_version(store: Store) -> None:
    """The version is compared: what was extracted from an old text is not laid beside a new one."""
    patient = {"resourceType": "Patient", "id": "p", "gender": "male"}
    await store.commit([Change("create", "Patient", "p", patient)])
    read = store.find

    async def find(*arguments: Any, **options: Any) -> list[dict[str, Any]]:
        rows = await read(*arguments, **options)
        previous = await store.read("Patient", "p")
        await store.commit(
            [Change("update", "Patient", "p", {**patient, "gender": "female"}, previous)]
        )
        for row in rows:
            row["terms"] = []
        return rows

    store.find = find  # type: ignore[method-assign]
    await store.reindex("Patient", "", 10)
    store.find = read  # type: ignore[method-assign]
    (row,) = await store.find("Patient", {})
    assert "gender=female" in row["terms"]


@pytest.mark.parametrize(
    ("method", "url", "status", "code"),
    [
        pytest.param("GET", "/$reindex?id=none", 404, "not-found", id="unknown"),
        pytest.param("GET", "/$reindex?type=Patient", 400, "invalid", id="type-by-get"),
        pytest.param("GET", "/Patient/$reindex", 404, "not-supported", id="on-a-type"),
    ],
)
async def test_calls_that_do_not_fit_are_refused(
    http: httpx.AsyncClient, method: str, url: str, status: int, code: str
) -> None:
    assert_outcome(await http.request(method, url), status, code)
