"""Bulk exports: kick-off, status, files, cancelling and expiry; what is in one, and what becomes of it in a crash.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest
from pymongo.errors import ConnectionFailure

from app.bulk import reading, writing
from app.bulk.work import Work
from app.errors import Unavailable
from app.runtime.leases import BackOff
from tests.builders.exporting import ASYNC, paused
from tests.builders.spoilt import spoilt
from tests.conftest import BASE, JSON, Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

Resource = dict[str, Any]
LENIENT = {"Prefer": "respond-async, handling=lenient"}


@pytest.fixture
async def own(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server with a database of its own: exports are of all there is."""
    async with running(make_settings(mongod)) as pair:
        yield pair


@pytest.fixture
def http(own: tuple[Server, httpx.AsyncClient]) -> httpx.AsyncClient:
    return own[1]


async def put(client: httpx.AsyncClient, kind: str, id_: str, **elements: Any) -> str:
    """Store a resource; returns when it was last changed."""
    resource = {"resourceType": kind, "id": id_, **elements}
    response = await client.put(f"/{kind}/{id_}", json=resource)
    assert response.status_code in (200, 201), response.text
    changed: str = response.json()["meta"]["lastUpdated"]
    return changed


async def observe(client: httpx.AsyncClient, id_: str, patient: str | None, **more: Any) -> str:
    subject = {"subject": {"reference": f"Patient/{patient}"}} if patient else {}
    elements = {"status": "final", "code": {"text": "x"}, **subject, **more}
    return await put(client, "Observation", id_, **elements)


async def enrol(client: httpx.AsyncClient, *members: str | Resource) -> str:
    """Put the Group `g` with these members, ids or whole entries."""
    entries = [
        {"entity": {"reference": f"Patient/{each}"}} if isinstance(each, str) else each
        for each in members
    ]
    return await put(client, "Group", "g", type="person", actual=True, member=entries)


def member(patient: str, **more: Any) -> Resource:
    return {"entity": {"reference": f"Patient/{patient}"}, **more}


async def kick_off(
    client: httpx.AsyncClient, url: str, body: Resource | None = None, **params: Any
) -> str:
    """The address of the status."""
    if body is not None:
        response = await client.post(url, json=body, headers=ASYNC)
    else:
        response = await client.get(url, params=params or None, headers=ASYNC)
    assert response.status_code == 202, response.text
    assert response.headers["content-location"].startswith(f"{BASE}/")
    assert not response.content
    return response.headers["content-location"]


async def manifest_of(server: Server, client: httpx.AsyncClient, status: str) -> Resource:
    await server.exports.drain()
    response = await client.get(status, headers={"Accept": "application/json"})
    assert response.status_code == 200, response.text
    manifest: Resource = response.json()
    return manifest


async def lines_of(client: httpx.AsyncClient, items: list[Resource]) -> list[Resource]:
    """The resources in files of a manifest, of the type and as many as the manifest says."""
    found: list[Resource] = []
    for item in items:
        response = await client.get(item["url"], headers={"Accept": "application/fhir+ndjson"})
        assert response.status_code == 200, response.text
        assert response.headers["content-type"].startswith("application/fhir+ndjson")
        lines = [json.loads(line) for line in response.text.splitlines()]
        assert len(lines) == item["count"]
        assert {line["resourceType"] for line in lines} == {item["type"]}
        found += lines
    return found


async def export(
    own: tuple[Server, httpx.AsyncClient], url: str, body: Resource | None = None, **params: Any
) -> tuple[Resource, set[str]]:
    """The manifest of an export, and what its files hold, as references: each once."""
    server, client = own
    manifest = await manifest_of(server, client, await kick_off(client, url, body, **params))
    lines = await lines_of(client, manifest["output"])
    found = [f"{line['resourceType']}/{line['id']}" for line in lines]
    assert len(found) == len(set(found))
    return manifest, set(found)


async def deleted_in(client: httpx.AsyncClient, manifest: Resource) -> set[str]:
    bundles = await lines_of(client, manifest["deleted"])
    assert all(bundle["type"] == "transaction" for bundle in bundles)
    requests = [entry["request"] for bundle in bundles for entry in bundle["entry"]]
    assert {each["method"] for each in requests} <= {"DELETE"}
    return {each["url"] for each in requests}


async def story(client: httpx.AsyncClient) -> str:
    """Three patients with an observation each, the last of which two of them share; returns when it was told."""
    for patient in ("p1", "p2", "p3"):
        await put(client, "Patient", patient, gender="female")
        await observe(client, f"o-{patient}", patient)
    await observe(
        client, "o-shared", "p1", status="preliminary", performer=[{"reference": "Patient/p2"}]
    )
    await observe(client, "o-nobody", None)
    return await put(client, "Practitioner", "d1")


OBSERVED = {"Observation/o-p1", "Observation/o-p2", "Observation/o-p3", "Observation/o-shared"}
PATIENTS = {"Patient/p1", "Patient/p2", "Patient/p3"}


async def test_a_system_export_has_everything(own: tuple[Server, httpx.AsyncClient]) -> None:
    _, client = own
    await story(client)
    url = "/$export?_type=Patient,Observation&_type=Practitioner"
    manifest, found = await export(own, url)
    assert found == PATIENTS | OBSERVED | {"Observation/o-nobody", "Practitioner/d1"}
    assert set(manifest) >= {
        "transactionTime",
        "request",
        "requiresAccessToken",
        "output",
        "deleted",
        "error",
    }
    assert httpx.URL(manifest["request"]).params.get_list("_type") == [
        "Patient,Observation",
        "Practitioner",
    ]
    assert manifest["request"].startswith(f"{BASE}/$export?")
    assert (manifest["requiresAccessToken"], manifest["error"]) == (False, [])
    assert [(item["type"], item["count"]) for item in manifest["output"]] == [
        ("Observation", 5),
        ("Patient", 3),
        ("Practitioner", 1),
    ]
    everything, _ = await export(own, "/$export")
    assert "OperationDefinition" in {item["type"] for item in everything["output"]}
    stored = (await client.get("/Patient/p1")).json()
    lines = await lines_of(client, manifest["output"])
    assert stored in lines


async def test_the_status_tells_how_far_it_is_and_asks_for_patience(
    own: tuple[Server, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = own
    await story(client)
    async with server.exports._running:  # nobody begins it
        status = await kick_off(client, "/$export")
        waiting = await client.get(status)
        assert (waiting.status_code, waiting.headers["retry-after"]) == (202, "2")
        assert 0 < len(waiting.headers["x-progress"]) < 100
        too_soon = await client.get(status)
        assert_outcome(too_soon, 429, "throttled")
        assert too_soon.headers["retry-after"] == "2"
    await manifest_of(server, client, status)
    done = await client.get(status)
    assert done.headers["content-type"] == "application/json"
    assert done.headers["expires"].endswith("GMT")


async def test_a_patient_export_has_the_compartments_of_all(
    own: tuple[Server, httpx.AsyncClient],
) -> None:
    await story(own[1])
    await enrol(own[1], "p1")
    _, found = await export(own, "/Patient/$export")
    assert found == PATIENTS | OBSERVED | {"Group/g"}


async def test_a_patient_export_of_named_patients(own: tuple[Server, httpx.AsyncClient]) -> None:
    await story(own[1])
    named = [
        {"name": "patient", "valueReference": {"reference": f"Patient/{each}"}}
        for each in ("p1", "p2")
    ]
    body = {"resourceType": "Parameters", "parameter": named}
    _, found = await export(own, "/Patient/$export", body)
    assert found == {"Patient/p1", "Patient/p2"} | OBSERVED - {"Observation/o-p3"}


async def test_a_group_export_has_the_compartments_of_its_members(
    own: tuple[Server, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One patient at a time: what two members share comes once."""
    monkeypatch.setattr("app.bulk.cohort.TOGETHER", 1)
    await story(own[1])
    await put(
        own[1], "Group", "other", type="person", actual=True, member=[member("p1"), member("p3")]
    )
    await enrol(own[1], "p1", "p2")
    _, found = await export(own, "/Group/g/$export")
    members = {"Patient/p1", "Patient/p2", "Group/g"}
    assert found == members | OBSERVED - {"Observation/o-p3"}


@pytest.mark.parametrize(
    ("changes", "is_member"),
    [
        pytest.param({}, True, id="always"),
        pytest.param({"period": {"start": "2020-01-01"}}, True, id="since-then"),
        pytest.param({"period": {"end": "2020-01-01"}}, False, id="no-longer"),
        pytest.param({"period": {"start": "2999-01-01"}}, False, id="not-yet"),
        pytest.param({"inactive": True}, False, id="inactive"),
    ],
)
async def test_who_is_a_member(
    own: tuple[Server, httpx.AsyncClient], changes: Resource, is_member: bool
) -> None:
    await story(own[1])
    await enrol(own[1], "p1", member("p3", **changes))
    _, found = await export(own, "/Group/g/$export", _type="Patient,Observation")
    assert ({"Patient/p3", "Observation/o-p3"} <= found) is is_member
    assert ("Patient/p3" in found) is is_member


async def test_a_group_may_bring_whom_and_what_its_members_resources_refer_to(
    own: tuple[Server, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where `_type` names them, those in nobody's compartment; however many members share one, it comes once."""
    monkeypatch.setattr("app.bulk.cohort.TOGETHER", 1)
    _, client = own
    await story(client)
    for each in ("d2", "d3", "d4"):
        await put(client, "Practitioner", each)
    for each in ("h1", "h2"):
        await put(client, "Organization", each, name=each)
        await put(client, "Location", each)
    await observe(
        client,
        "o-p1",
        "p1",
        performer=[{"reference": f"{BASE}/Practitioner/d1"}, {"reference": "Organization/h1"}],
        note=[{"text": 'They wrote {"reference":"Practitioner/d4"}'}],
    )
    await observe(client, "o-p3", "p3", performer=[{"reference": "Practitioner/d3"}])
    shared = [{"reference": "Practitioner/d1"}, {"reference": "Practitioner/d2/_history/1"}]
    await observe(client, "o-p2", "p2", performer=shared)
    await put(
        client,
        "Encounter",
        "e-p2",
        status="finished",
        **{"class": {"code": "IMP"}},
        subject={"reference": "Patient/p2"},
        location=[{"location": {"reference": "Location/h2"}}],
    )
    since = await enrol(client, "p1", "p2")
    beyond = "Practitioner,Organization,Location"
    manifest, found = await export(own, "/Group/g/$export", _type=beyond)
    assert found == {"Practitioner/d1", "Practitioner/d2", "Organization/h1", "Location/h2"}
    _, found = await export(own, "/Group/g/$export", _type="Patient")
    assert found == {"Patient/p1", "Patient/p2"}
    # Of what they refer to still, what has changed since.
    await put(client, "Practitioner", "d2", active=True)
    await put(client, "Practitioner", "d3", active=True)
    await client.delete("/Location/h2")
    await client.delete("/Location/h1")
    manifest, found = await export(own, "/Group/g/$export", _type=beyond, _since=since)
    assert found == {"Practitioner/d2"}
    assert await deleted_in(client, manifest) == {"Location/h2"}
    await client.delete("/Patient/p1")
    _, found = await export(own, "/Group/g/$export", _type="Patient,Location")
    assert found == {"Patient/p2"}


async def test_since_has_what_changed_and_what_was_deleted(
    own: tuple[Server, httpx.AsyncClient],
) -> None:
    _, client = own
    for each in ("o-gone", "o-back"):
        await observe(client, each, "p1")
    since = await story(client)
    await client.delete("/Observation/o-gone")
    await client.delete("/Observation/o-back")
    await observe(client, "o-back", "p1", status="amended")
    await client.delete("/Observation/o-nobody")
    await observe(client, "o-p1", "p1", status="amended")
    manifest, found = await export(own, "/$export", _since=since)
    assert found == {"Observation/o-p1", "Observation/o-back"}
    assert await deleted_in(client, manifest) == {"Observation/o-gone", "Observation/o-nobody"}
    later, nothing = await export(own, "/$export", _since=manifest["transactionTime"])
    assert (nothing, later["output"], later["deleted"]) == (set(), [], [])
    manifest, _ = await export(own, "/Patient/$export", _since=since)
    assert await deleted_in(client, manifest) == {"Observation/o-gone"}


async def test_many_deletions_come_in_several_bundles(
    own: tuple[Server, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.bulk.work._ENTRIES", 2)
    monkeypatch.setattr(writing, "_BYTES", 1)
    _, client = own
    since = await put(client, "Practitioner", "d1")
    for number in range(5):
        await put(client, "Patient", f"x{number}")
        await client.delete(f"/Patient/x{number}")
    manifest, _ = await export(own, "/$export", _since=since)
    assert [item["count"] for item in manifest["deleted"]] == [3]
    assert await deleted_in(client, manifest) == {f"Patient/x{number}" for number in range(5)}


async def test_who_joined_the_group_since_comes_with_everything(
    own: tuple[Server, httpx.AsyncClient],
) -> None:
    """By the Group's version of that time; p3 was a member by then, p2 was not."""
    _, client = own
    await story(client)
    since = await enrol(client, "p1", "p3")
    await enrol(client, "p1", "p2", "p3")
    await observe(client, "o-p1", "p1", status="amended")
    await observe(client, "o-gone", "p3")
    await client.delete("/Observation/o-gone")
    await client.delete("/Observation/o-nobody")
    manifest, found = await export(own, "/Group/g/$export", _since=since)
    joined = {"Patient/p2", "Observation/o-p2", "Observation/o-shared"}
    assert found == joined | {"Observation/o-p1", "Group/g"}
    assert await deleted_in(client, manifest) == {"Observation/o-gone"}


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        pytest.param(
            ["Observation?status=preliminary"], {"Observation/o-shared"} | PATIENTS, id="one"
        ),
        pytest.param(
            ["Observation?status=preliminary,Observation?patient=p3", "Patient?_id=p1,p2"],
            {"Observation/o-shared", "Observation/o-p3", "Patient/p1", "Patient/p2"},
            id="any-of-several",
        ),
        pytest.param(
            ["Observation?patient.gender=female"], OBSERVED | PATIENTS, id="through-a-reference"
        ),
        pytest.param(["Observation?status:not=final&patient=p2"], PATIENTS, id="finds-nothing"),
    ],
)
async def test_type_filters(
    own: tuple[Server, httpx.AsyncClient], filters: list[str], expected: set[str]
) -> None:
    await story(own[1])
    params: dict[str, Any] = {"_type": "Patient,Observation", "_typeFilter": filters}
    _, found = await export(own, "/$export", **params)
    assert found == expected


async def test_elements_cut_resources_down(own: tuple[Server, httpx.AsyncClient]) -> None:
    server, client = own
    await story(client)
    url = "/$export?_type=Patient,Observation,Practitioner&_elements=Patient.id,Observation.subject"
    manifest = await manifest_of(server, client, await kick_off(client, url))
    lines = {
        f"{line['resourceType']}/{line['id']}": line
        for line in await lines_of(client, manifest["output"])
    }
    assert "gender" not in lines["Patient/p1"]
    assert lines["Patient/p1"]["meta"]["tag"][0]["code"] == "SUBSETTED"
    assert set(lines["Observation/o-p1"]) == {
        "resourceType",
        "id",
        "meta",
        "status",
        "code",
        "subject",
    }
    assert "tag" not in lines["Practitioner/d1"]["meta"]


async def test_what_cannot_be_read_is_told_and_stops_nothing_else(
    own: tuple[Server, httpx.AsyncClient],
) -> None:
    server, client = own
    await story(client)
    await observe(client, "o-gone", "p1")
    await client.delete("/Observation/o-gone")
    url = "/$export?_type=Patient,Observation&_elements=Patient.id&_since=2020-01-01T00:00:00Z"
    async with (
        spoilt(server.mongo, "Patient/p1"),
        spoilt(server.mongo, "Observation/o-gone"),
    ):
        manifest = await manifest_of(server, client, await kick_off(client, url))
    found = {
        f"{line['resourceType']}/{line['id']}"
        for line in await lines_of(client, manifest["output"])
    }
    assert {"Patient/p2", "Observation/o-p1"} <= found
    assert "Patient/p1" not in found
    assert {each["type"] for each in manifest["error"]} == {"OperationOutcome"}
    outcomes = await lines_of(client, manifest["error"])
    assert sorted(each["issue"][0]["diagnostics"] for each in outcomes) == [
        "Observation/o-gone cannot be read",
        "Patient/p1 cannot be read",
    ]


@pytest.mark.parametrize("moment", ["before-reading", "while-reading"])
async def test_an_export_shows_one_moment(
    own: tuple[Server, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Changed, deleted and created before and behind the place that is read: it shows what was there at the start."""
    monkeypatch.setattr(reading, "_AT_ONCE", 2)
    monkeypatch.setattr(reading, "_LINES", 2)
    server, client = own
    for number in range(8):
        await observe(client, f"o{number}", "p1")
    before = [(await client.get(f"/Observation/o{n}")).json() for n in range(8)]
    if moment == "while-reading":
        reached, go_on = paused(monkeypatch, 1)
    else:
        reached, go_on = held_up(monkeypatch, server)
    criteria = "Observation?status=final"
    status = await kick_off(client, "/$export", _type="Observation", _typeFilter=criteria)
    await reached.wait()
    await observe(client, "o0", "p1", status="amended")
    await observe(client, "o5", "p1", status="amended")
    await client.delete("/Observation/o6")
    await client.delete("/Observation/o1")
    await observe(client, "o1", "p1")
    await observe(client, "o55", "p1")
    go_on.set()
    manifest = await manifest_of(server, client, status)
    lines = await lines_of(client, manifest["output"])
    assert sorted(lines, key=lambda line: str(line["id"])) == before


def held_up(monkeypatch: pytest.MonkeyPatch, server: Server) -> tuple[asyncio.Event, asyncio.Event]:
    """Let an export stop once its moment is fixed: an event for when it is, and one that lets it go on."""
    reached, go_on = asyncio.Event(), asyncio.Event()
    begin = server.exports._begin

    async def begin_and_wait(*arguments: Any) -> None:
        await begin(*arguments)
        reached.set()
        await go_on.wait()

    monkeypatch.setattr(server.exports, "_begin", begin_and_wait)
    return reached, go_on


async def test_cancelling_ends_it_and_takes_its_files_away(
    own: tuple[Server, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "_AT_ONCE", 1)
    monkeypatch.setattr(reading, "_LINES", 1)
    monkeypatch.setattr(writing, "_BYTES", 1)
    server, client = own
    await story(client)
    reached, go_on = paused(monkeypatch, 3)
    status = await kick_off(client, "/$export", _type="Observation")
    await reached.wait()
    assert await server.mongo.collection("export_files").count_documents({})
    assert (await client.delete(status)).status_code == 202
    go_on.set()
    await server.exports.drain()
    for method in ("GET", "DELETE"):
        assert_outcome(await client.request(method, status), 404, "not-found")
    assert_outcome(await client.get(f"{status}/0.ndjson"), 404, "not-found")
    for name in ("exports", "export_files"):
        assert not await server.mongo.collection(name).count_documents({})


async def test_files_expire(own: tuple[Server, httpx.AsyncClient]) -> None:
    server, client = own
    await story(client)
    status = await kick_off(client, "/$export", _type="Patient")
    manifest = await manifest_of(server, client, status)
    server.clock.advance(timedelta(hours=23, minutes=59))
    assert len(await lines_of(client, manifest["output"])) == 3
    server.clock.advance(timedelta(minutes=2))
    assert_outcome(await client.get(status), 404, "not-found")
    assert_outcome(await client.get(manifest["output"][0]["url"]), 404, "not-found")
    await server.exports.drain()
    assert not await server.mongo.collection("export_files").count_documents({})


@pytest.mark.parametrize("ending", ["stopped", "killed"])
async def test_another_process_goes_on_with_an_export(
    mongod: str, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    monkeypatch.setattr(reading, "_AT_ONCE", 2)
    monkeypatch.setattr(reading, "_LINES", 2)
    monkeypatch.setattr(writing, "_BYTES", 1)
    settings = make_settings(mongod)
    async with running(settings) as (first, client):
        for number in range(9):
            await observe(client, f"o{number}", "p1")
        reached, go_on = paused(monkeypatch, 3)
        status = await kick_off(client, "/$export", _type="Observation")
        await reached.wait()
        exports = first.mongo.collection("exports")
        if ending == "killed":
            monkeypatch.setattr(first.exports.jobs.leases, "release", nothing)
        await first.exports.stop()
        row = await exports.find_one({})
        assert row["state"] == "running"
        assert 0 < row["lines"] < 9
        async with running(settings) as (second, other):
            if ending == "killed":
                past = second.mongo.now() - timedelta(seconds=1)
                assert not await second.exports.run_once()
                await exports.update_one({}, {"$set": {"lease_until": past}})
            go_on.set()
            manifest = await manifest_of(second, other, status)
            lines = await lines_of(other, manifest["output"])
            assert sorted(line["id"] for line in lines) == [f"o{n}" for n in range(9)]
            row = await exports.find_one({})
            assert row["attempt"] == 2
            # Any process serves the files.
            assert await lines_of(client, manifest["output"]) == lines


async def nothing(*_: object) -> None:
    """What a process does that is no more."""


async def test_what_a_process_writes_that_lost_its_export_is_not_kept(
    own: tuple[Server, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was slow, and its lease ran out: what the new owner writes is not doubled."""
    server, client = own
    await story(client)
    reached, go_on = paused(monkeypatch, 1)
    status = await kick_off(client, "/$export", _type="Observation")
    await reached.wait()
    exports = server.mongo.collection("exports")
    await exports.update_one({}, {"$inc": {"attempt": 1}, "$set": {"owner": "another"}})
    go_on.set()
    await server.exports.drain()
    row = await exports.find_one({})
    assert (row["state"], row["lines"], row["files"]) == ("running", 0, [])
    assert not await server.mongo.collection("export_files").count_documents({})
    await exports.update_one(
        {}, {"$set": {"lease_until": server.mongo.now() - timedelta(seconds=1)}}
    )
    manifest = await manifest_of(server, client, status)
    assert len(await lines_of(client, manifest["output"])) == 5


async def test_an_export_that_fails_says_so(
    own: tuple[Server, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = own
    await enrol(client, "p1")
    async with server.exports._running:
        status = await kick_off(client, "/Group/g/$export")
        await client.delete("/Group/g")
    await server.exports.drain()
    assert_outcome(await client.get(status), 500, "deleted")


@pytest.mark.parametrize("killed", [False, True])
async def test_an_export_that_fails_again_and_again_is_given_up(
    own: tuple[Server, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    """Also where its process dies of it, and nobody tells that it failed."""
    server, client = own
    monkeypatch.setattr(
        server.exports.jobs.leases, "_back_off", BackOff(timedelta(), timedelta(), most=3)
    )
    monkeypatch.setattr(Work, "run", AsyncMock(side_effect=RuntimeError("planted")))
    exports = server.mongo.collection("exports")

    async def die(*_: object) -> None:
        await exports.update_one({}, {"$unset": {"lease_until": ""}})  # as if its time were over

    if killed:
        monkeypatch.setattr(server.exports, "_fail", die)
    status = await kick_off(client, "/$export", _type="Patient")
    await server.exports.drain()
    assert_outcome(await client.get(status), 500, "exception")
    row = await exports.find_one({})
    # The first failed after progress: it had found out what is to be read.
    assert (row["state"], row["tries"], row["attempt"]) == ("failed", 3 + killed, 4 + killed)


@pytest.mark.parametrize("error", [ConnectionFailure("planted"), Unavailable("planted")])
async def test_an_export_bears_with_a_database_that_is_away(
    own: tuple[Server, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    server, client = own
    await put(client, "Patient", "p1")
    monkeypatch.setattr("app.runtime.leases._DATABASE_AWAY", timedelta())
    run, failures = Work.run, 9

    async def at_first_away(work: Work) -> None:
        nonlocal failures
        if failures:
            failures -= 1
            raise error
        await run(work)

    monkeypatch.setattr(Work, "run", at_first_away)
    manifest = await manifest_of(
        server, client, await kick_off(client, "/$export", _type="Patient")
    )
    assert len(await lines_of(client, manifest["output"])) == 1


async def test_large_files_are_split_and_come_with_or_without_gzip(
    own: tuple[Server, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "PIECE_BYTES", 100)
    monkeypatch.setattr(writing, "MOST_LINES", 3)
    monkeypatch.setattr(writing, "_BYTES", 1)
    monkeypatch.setattr(reading, "_AT_ONCE", 2)
    monkeypatch.setattr(reading, "_LINES", 2)
    server, client = own
    for number in range(7):
        await put(client, "Patient", f"p{number}")
    status = await kick_off(client, "/$export", _type="Patient")
    manifest = await manifest_of(server, client, status)
    assert [item["count"] for item in manifest["output"]] == [4, 3]
    packed = await lines_of(client, manifest["output"])
    client.headers["accept-encoding"] = "identity"
    assert await lines_of(client, manifest["output"]) == packed
    head = await client.head(manifest["output"][0]["url"])
    assert (head.status_code, head.content) == (200, b"")
    assert_outcome(await client.get(f"{status}/7.ndjson"), 404, "not-found")


async def test_only_so_many_exports_at_once(mongod: str) -> None:
    async with running(make_settings(mongod, max_exports=1)) as (server, client):
        async with server.exports._running:
            status = await kick_off(client, "/$export")
            refused = await client.get("/$export", headers=ASYNC)
            assert_outcome(refused, 429, "throttled")
            assert int(refused.headers["retry-after"]) > 0
        await manifest_of(server, client, status)
        await kick_off(client, "/$export")


@pytest.mark.parametrize(
    ("url", "status", "code"),
    [
        pytest.param("/$export?_type=Nonsense", 400, "value", id="unknown-type"),
        pytest.param("/Patient/$export?_type=Practitioner", 400, "value", id="not-a-patients"),
        pytest.param("/$export?_outputFormat=text/csv", 400, "not-supported", id="format"),
        pytest.param("/$export?_since=yesterday", 400, "value", id="since"),
        pytest.param("/$export?_since=2026-01-01", 400, "value", id="since-no-instant"),
        pytest.param("/$export?_elements=nonsense", 400, "value", id="element"),
        pytest.param("/$export?_typeFilter=nonsense", 400, "value", id="no-query"),
        pytest.param("/$export?_typeFilter=Patient?_count=1", 400, "not-supported", id="control"),
        pytest.param("/$export?_typeFilter=Patient?x=1", 400, "not-supported", id="criterion"),
        pytest.param(
            "/$export?_type=Patient&_typeFilter=Group?type=person", 400, "value", id="type-beside"
        ),
        pytest.param(
            "/$export?includeAssociatedData=LatestProvenanceResources",
            400,
            "not-supported",
            id="associated",
        ),
        pytest.param("/$export?bogus=1", 400, "not-supported", id="unknown-parameter"),
        pytest.param("/Patient/$export?patient=Patient/p1", 400, "invalid", id="patient-by-get"),
        pytest.param("/Group/none-such/$export", 404, "not-found", id="group"),
        pytest.param("/Encounter/$export", 404, "not-supported", id="place"),
        pytest.param("/_export/none-such", 404, "not-found", id="export"),
    ],
)
async def test_what_is_not_understood_is_refused(
    client: httpx.AsyncClient, url: str, status: int, code: str
) -> None:
    assert_outcome(await client.get(url, headers=ASYNC), status, code)


async def test_patients_that_are_no_members_are_refused(http: httpx.AsyncClient) -> None:
    await story(http)
    await enrol(http, "p1")
    for url, patient in (("/Group/g/$export", "p2"), ("/Patient/$export", "p9")):
        named = {"name": "patient", "valueReference": {"reference": f"Patient/{patient}"}}
        body = {"resourceType": "Parameters", "parameter": [named]}
        assert_outcome(await http.post(url, json=body, headers=ASYNC), 400, "not-found", "patient")


async def test_an_export_has_to_be_asked_for_asynchronously(client: httpx.AsyncClient) -> None:
    for method in ("GET", "POST"):
        asked = await client.request(method, "/$export", headers=JSON)
        assert_outcome(asked, 400, "required", "http.Prefer")


async def test_lenient_handling_leaves_out_what_is_not_understood(
    own: tuple[Server, httpx.AsyncClient],
) -> None:
    server, client = own
    await story(client)
    url = "/Patient/$export?bogus=1&includeAssociatedData=x&_type=Patient,Practitioner"
    response = await client.get(url, headers=LENIENT)
    assert response.status_code == 202
    manifest = await manifest_of(server, client, response.headers["content-location"])
    assert [item["type"] for item in manifest["output"]] == ["Patient"]


async def test_the_capability_statement_says_so(client: httpx.AsyncClient) -> None:
    statement = (await client.get("/metadata")).json()
    url = "http://hl7.org/fhir/uv/bulkdata/"
    assert f"{url}CapabilityStatement/bulk-data" in statement["instantiates"]
    (rest,) = statement["rest"]
    places = {"": rest, **{each["type"]: each for each in rest["resource"]}}
    for place, definition in (
        ("", "export"),
        ("Patient", "patient-export"),
        ("Group", "group-export"),
    ):
        stated = {"name": "export", "definition": f"{url}OperationDefinition/{definition}"}
        assert stated in places[place]["operation"]
