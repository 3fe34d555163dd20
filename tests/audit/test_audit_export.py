"""What is on record of bulk exports: each file with the patients whose data it holds, and every other visit."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import httpx
import pytest

from app.audit.accounting import disclosures
from app.audit.entry import PATIENTS_AT_ONCE
from app.fhir.ids import new_id
from tests.builders.access_world import World, designated, world as a_world
from tests.builders.audit_events import (
    JOB,
    PATIENT,
    QUERY,
    REPORT,
    codes,
    entities,
    events,
    refusing_rows,
)
from tests.builders.exporting import ASYNC, Exported, kick_off
from tests.builders.practices import patient
from tests.conftest import make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

MANY = PATIENTS_AT_ONCE + 1


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, max_exports=20) as found:
        yield found


async def on_record(world: World, **parameters: str) -> list[dict[str, Any]]:
    """The AuditEvents that an administrator finds, the newest first."""
    with_token = httpx.AsyncClient(
        transport=world.client._transport, headers={"Authorization": "Bearer admin"}
    )
    return await events(with_token, **parameters)


def named(event: dict[str, Any]) -> list[str]:
    """The patients that an AuditEvent names."""
    return [each["what"]["reference"] for each in entities(event, *PATIENT)]


def identified(event: dict[str, Any], kind: tuple[str, str]) -> list[str]:
    return [each["what"]["identifier"]["value"] for each in entities(event, *kind)]


def name_of(url: str) -> str:
    """What the audit calls a file or an export, by its address."""
    return url.partition("/_export/")[2]


async def told_of(world: World, who: str, since: datetime | None = None) -> list[dict[str, str]]:
    """The files of exports in the accounting of a patient's disclosures."""
    found = disclosures(world.server.mongo, who, since)
    return [line async for line in found if line["what"] == "export"]


# A file


@pytest.mark.slow
async def test_a_file_is_recorded_with_the_patients_whose_data_it_holds(world: World) -> None:
    export = await kick_off(world, "plan-a", "/$export?_type=Patient,Encounter,Practitioner")
    files = await export.files()
    for kind, url in files.items():
        answer = await world.get("plan-a", url, headers={"X-Request-Id": f"fetch-{kind}"})
        assert answer.status_code == 200
        (event,) = await on_record(world, **{"entity:identifier": name_of(url)})
        assert (codes(event), event["action"]) == (["operation", "110106"], "R")
        assert event["outcome"] == "0"
        assert named(event) == ([] if kind == "Practitioner" else ["Patient/pn"])
        assert identified(event, REPORT) == [name_of(url)]
        assert identified(event, JOB) == [name_of(export.status)]
        assert entities(event, *QUERY)[0]["description"] == f"GET /fhir/_export/{name_of(url)}"
        assert event["entity"][-1]["what"]["identifier"]["value"] == f"fetch-{kind}"
        client, _, organization = event["agent"]
        assert client["who"]["identifier"]["value"] == "plan-a"
        assert organization["who"]["reference"] == "Organization/plan-a"
    found = await on_record(world, patient="Patient/pn", agent="plan-a", subtype="110106")
    assert len(found) == 2


async def test_each_file_is_in_the_accounting_of_whom_it_is_about(world: World) -> None:
    export = await kick_off(world, "agency", "/$export?_type=Condition,Encounter")
    url = (await export.files())["Condition"]
    before = world.server.mongo.now()
    for _ in range(2):
        await world.get("agency", url)
    lines = await told_of(world, "pn", since=before)
    assert len(lines) == 2
    for line in lines:
        assert (line["recipient"], line["organization"]) == ("agency", "Organization/agency")
        assert (line["role"], line["resource"]) == ("state", "Condition")
        assert line["query"] == f"GET /fhir/_export/{name_of(url)}"
    assert await told_of(world, "ps", since=before) == []


async def test_what_elements_leave_of_a_resource_is_still_about_its_patient(world: World) -> None:
    query = "_type=Condition&_elements=Condition.code&_typeFilter=Condition?_id=cn"
    export = await kick_off(world, "north", f"/$export?{query}")
    (url,) = (await export.files()).values()
    await world.get("north", url)
    (event,) = await on_record(world, **{"entity:identifier": name_of(url)})
    assert named(event) == ["Patient/pn"]


async def test_deletions_are_about_the_patients_of_what_was_deleted(world: World) -> None:
    made = await world.ask("admin", "POST", "/Condition", await _condition(world))
    await world.ask("admin", "DELETE", f"/Condition/{made.json()['id']}")
    since = made.json()["meta"]["lastUpdated"]
    query = {"_type": "Condition", "_since": since}
    export = await kick_off(world, "north", "/$export", params=query)
    (deleted,) = (await export.manifest())["deleted"]
    await world.get("north", deleted["url"])
    (event,) = await on_record(world, **{"entity:identifier": name_of(deleted["url"])})
    assert named(event) == ["Patient/pn"]


async def _condition(world: World) -> dict[str, Any]:
    read: dict[str, Any] = (await world.get("admin", "/Condition/cn")).json()
    return {name: value for name, value in read.items() if name not in ("id", "meta")}


async def test_to_ask_how_large_a_file_is_discloses_nothing(world: World) -> None:
    export = await kick_off(world, "south", "/$export?_type=Encounter")
    (url,) = (await export.files()).values()
    assert (await world.ask("south", "HEAD", url)).status_code == 200
    assert await on_record(world, **{"entity:identifier": name_of(url)}) == []
    (event, *_) = await on_record(world, **{"entity:identifier": name_of(export.status)})
    assert (named(event), codes(event)) == ([], ["operation", "110106"])
    assert await told_of(world, "ps") == []


# Very many patients


def crowd() -> dict[str, Any]:
    """A transaction that makes one patient more than an entry names."""
    entries = [
        {"request": {"method": "PUT", "url": f"Patient/m{n}"}, "resource": patient(f"m{n}")}
        for n in range(MANY)
    ]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


@pytest.fixture(scope="module")
async def many(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, max_exports=20) as found:
        assert (await found.ask("admin", "POST", "/", crowd())).status_code == 200
        yield found


@pytest.mark.slow
async def test_a_file_about_many_names_them_once_and_every_fetch_is_accounted_for(
    many: World,
) -> None:
    query = "_type=Patient&_typeFilter=Patient?_lastUpdated=gt2000"
    export = await kick_off(many, "admin", f"/$export?{query}")
    (url,) = (await export.files()).values()
    fetched = []
    for _ in range(3):
        fetched.append(many.server.mongo.now())
        assert (await many.get("admin", url)).status_code == 200
    found = await on_record(many, **{"entity:identifier": name_of(url), "_count": "1000"})
    first, *later = sorted(found, key=lambda event: not named(event))
    everybody = [name for event in found for name in named(event)]
    assert len(everybody) == len(set(everybody)) == MANY + 2
    assert max(len(named(event)) for event in found) == PATIENTS_AT_ONCE
    assert [bool(named(event)) for event in later] == [True, False, False]
    assert first["outcome"] == "0"
    for who in ("m0", f"m{MANY - 1}", "pn"):
        for number, since in enumerate((None, *fetched)):
            lines = await told_of(many, who, since)
            assert len(lines) == 3 - max(number - 1, 0)
            assert {line["recipient"] for line in lines} == {"admin"}
        (event,) = await on_record(many, patient=who, subtype="110106", agent="admin")
        assert identified(event, REPORT) == [name_of(url)]
    assert await told_of(many, "nobody") == []


@pytest.mark.slow
async def test_what_was_lost_of_a_file_about_many_is_recorded_when_it_is_fetched_again(
    mongod: str,
) -> None:
    """Where nobody insists on the record: a name that could not be kept is not taken for kept."""
    async with running(make_settings(mongod, audit="best-effort")) as (server, client):
        await client.post("/", json=crowd())
        asked = await client.get("/$export?_type=Patient", headers=ASYNC)
        await server.exports.drain()
        status = asked.headers["content-location"]
        (file,) = (await client.get(status)).json()["output"]
        async with refusing_rows(server):
            assert (await client.get(file["url"])).status_code == 200
        assert not await events(client, patient="m7", subtype="110106")
        assert (await client.get(file["url"])).status_code == 200
        assert len(await events(client, patient="m7", subtype="110106")) == 1


# Where it cannot be recorded


async def test_a_file_that_cannot_be_put_on_record_is_not_given_away(world: World) -> None:
    export = await kick_off(world, "north", "/$export?_type=Patient")
    (url,) = (await export.files()).values()
    async with refusing_rows(world.server):
        refused = await world.get("north", url)
        assert_outcome(refused, 503, "transient")
        assert "Familyn" not in refused.text
    assert "Familyn" in (await world.get("north", url)).text


# What else is asked of an export


async def visits(world: World, export: Exported) -> list[tuple[str, str, str]]:
    """What the audit says of an export, oldest first: who, action and status."""
    found = await on_record(world, **{"entity:identifier": name_of(export.status)})
    return [
        (
            event["agent"][0]["who"]["identifier"]["value"],
            event["action"],
            event["outcomeDesc"].removeprefix("HTTP "),
        )
        for event in reversed(found)
    ]


async def test_how_it_is_doing_and_its_end_are_on_record(world: World) -> None:
    async with world.server.exports._running:
        export = await kick_off(world, "north", "/$export?_type=Patient")
        assert (await world.get("north", export.status)).status_code == 202
    await export.manifest()
    assert (await world.ask("north", "DELETE", export.status)).status_code == 202
    found = [("north", "R", "202"), ("north", "R", "200"), ("north", "D", "202")]
    assert await visits(world, export) == found


async def test_that_it_failed_is_on_record_as_a_failure(world: World) -> None:
    name = new_id()
    await world.put("admin", designated(name, "agency", "pn"))
    async with world.server.exports._running:
        export = await kick_off(world, "agency", f"/Group/{name}/$export")
        await world.ask("admin", "DELETE", f"/Group/{name}")
    await world.server.exports.drain()
    assert (await world.get("agency", export.status)).status_code == 500
    (event,) = await on_record(world, **{"entity:identifier": name_of(export.status)})
    assert (event["outcome"], event["outcomeDesc"]) == ("8", "HTTP 500")


@pytest.mark.parametrize(("method", "place"), [("GET", ""), ("DELETE", ""), ("GET", "/0.ndjson")])
async def test_who_asks_for_anothers_export_is_on_record(
    world: World, method: str, place: str
) -> None:
    export = await kick_off(world, "north", "/$export?_type=Patient")
    await export.manifest()
    url = f"{export.status}{place}"
    assert (await world.ask("south", method, url)).status_code == 404
    event = (await on_record(world, agent="south", outcome="4"))[0]
    said = entities(event, *QUERY)[0]["description"]
    assert said == f"{method} /fhir/_export/{name_of(url)}"
    assert event["outcomeDesc"] == "HTTP 404"
