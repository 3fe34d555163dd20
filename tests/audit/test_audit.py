"""Everything on record: what the audit says, who may read it, and that nobody can change it unseen."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pymongo.errors import AutoReconnect, ServerSelectionTimeoutError
from typer.testing import CliRunner

from app.audit import log
from app.audit.entry import entry
from app.audit.hash_chain import digest
from app.audit.log import AuditLog
from app.audit.verification import VerificationReport, verify
from app.cli.commands import app as command_line
from app.runtime import secrets
from app.runtime.mongo import Mongo
from app.settings import Settings
from tests.builders.access_world import World, world
from tests.builders.audit_events import QUERY, codes, entities, events, refusing_rows
from tests.builders.receiver import receiving
from tests.builders.smart import ask, bearer, claims_of, ec_key, register, signed, token_for
from tests.builders.subscriptions import encounter, topic_based
from tests.conftest import BASE, Server, make_settings, running
from tests.outcomes import assert_outcome

Pair = tuple[Server, httpx.AsyncClient]
REST = "http://hl7.org/fhir/restful-interaction"


@pytest.fixture(scope="module")
async def recorded(mongod: str) -> AsyncIterator[Pair]:
    """A server that puts everything on record, open to everybody."""
    async with running(make_settings(mongod, audit="required")) as pair:
        yield pair


async def put_patient(client: httpx.AsyncClient, id_: str) -> None:
    answer = await client.put(f"{BASE}/Patient/{id_}", json={"resourceType": "Patient", "id": id_})
    assert answer.status_code in (200, 201)


async def check(server: Server, **options: Any) -> VerificationReport:
    """What `verify` says, once this process's chains are anchored."""
    assert server.audit is not None
    await server.audit.anchor()
    return await verify(server.mongo, secrets.of_settings(server.settings), **options)


# What is on record


async def test_a_read_is_recorded_with_its_patient_client_and_request(recorded: Pair) -> None:
    _, client = recorded
    await put_patient(client, "read-1")
    await client.get(f"{BASE}/Patient/read-1", headers={"X-Request-Id": "my-request-1"})
    event = (await events(client, entity="Patient/read-1", subtype="read"))[0]
    assert event["type"]["code"] == "rest"
    assert codes(event) == ["read"]
    assert (event["action"], event["outcome"]) == ("R", "0")
    assert [e["what"]["reference"] for e in entities(event, "1", "1")] == ["Patient/read-1"]
    data = entities(event, "2", "4")
    assert [e["what"]["reference"] for e in data] == ["Patient/read-1/_history/1"]
    source = event["agent"][0]
    assert source["type"]["coding"][0]["code"] == "110153"
    assert source["who"]["identifier"]["value"] == "anonymous"
    assert source["network"] == {"address": "127.0.0.1", "type": "2"}
    assert event["entity"][-1]["what"]["identifier"]["value"] == "my-request-1"


async def test_a_search_is_recorded_with_its_query_and_whom_it_told_of(recorded: Pair) -> None:
    _, client = recorded
    await put_patient(client, "found-1")
    body = encounter(patient="found-1", identifier=[{"value": "visit-77"}])
    await client.post(f"{BASE}/Encounter", json=body)
    await client.get(f"{BASE}/Encounter?identifier=visit-77")
    event = (await events(client, patient="Patient/found-1", subtype=f"{REST}|search"))[0]
    assert codes(event) == ["search", "search-type"]
    (query,) = entities(event, *QUERY)
    assert base64.b64decode(query["query"]) == b"GET /fhir/Encounter?identifier=visit-77"
    assert [e["what"]["reference"] for e in entities(event, "1", "1")] == ["Patient/found-1"]


async def test_of_a_page_about_many_patients_the_question_is_kept(recorded: Pair) -> None:
    _, client = recorded
    for number in range(11):
        await put_patient(client, f"many-{number}")
        body = encounter(patient=f"many-{number}", identifier=[{"value": "visit-many"}])
        await client.post(f"{BASE}/Encounter", json=body)
    await client.get(f"{BASE}/Encounter?identifier=visit-many")
    assert await events(client, patient="many-5", subtype="search-type") == []
    named = ",".join(f"Patient%2Fmany-{number}" for number in range(11))
    answer = await client.get(f"{BASE}/Encounter?patient={named}")
    assert len(answer.json()["entry"]) == 11
    assert len(await events(client, patient="many-5", subtype="search-type")) == 1


async def test_a_search_by_post_is_recorded_with_its_form(recorded: Pair) -> None:
    _, client = recorded
    await put_patient(client, "posted-1")
    answer = await client.post(f"{BASE}/Patient/_search", data={"_id": "posted-1"})
    assert [e["resource"]["id"] for e in answer.json()["entry"]] == ["posted-1"]
    event = (await events(client, patient="posted-1", subtype="search-type"))[0]
    (query,) = entities(event, *QUERY)
    assert base64.b64decode(query["query"]) == b"POST /fhir/Patient/_search _id=posted-1"


@pytest.mark.parametrize(
    ("act", "code", "action", "version"),
    [
        pytest.param(
            lambda c, url: c.put(url, json=encounter("finished", id=url[-4:], patient="w-1")),
            "update",
            "U",
            2,
            id="update",
        ),
        pytest.param(
            lambda c, url: c.patch(
                url,
                json=[{"op": "replace", "path": "/status", "value": "finished"}],
                headers={"content-type": "application/json-patch+json"},
            ),
            "patch",
            "U",
            2,
            id="patch",
        ),
        pytest.param(lambda c, url: c.delete(url), "delete", "D", 2, id="delete"),
        pytest.param(lambda c, url: c.get(f"{url}/_history/1"), "vread", "R", 1, id="vread"),
        pytest.param(
            lambda c, url: c.get(f"{url}/_history"), "history-instance", "R", None, id="history"
        ),
    ],
)
async def test_each_interaction_is_recorded_once(
    recorded: Pair,
    act: Callable[[httpx.AsyncClient, str], Awaitable[httpx.Response]],
    code: str,
    action: str,
    version: int | None,
) -> None:
    _, client = recorded
    place = f"Encounter/{code[:4]}"
    created = await client.put(f"{BASE}/{place}", json=encounter(id=code[:4], patient="w-1"))
    assert created.status_code == 201
    answer = await act(client, f"{BASE}/{place}")
    assert answer.is_success
    event, first = await events(client, entity=place)
    assert (codes(event), event["action"], event["outcome"]) == ([code], action, "0")
    told = f"{place}/_history/{version}" if version else place
    assert [e["what"]["reference"] for e in entities(event, "2", "4")] == [told]
    assert [e["what"]["reference"] for e in entities(event, "1", "1")] == ["Patient/w-1"]
    assert codes(first) == ["update"]


async def test_an_update_that_changes_nothing_is_recorded_too(recorded: Pair) -> None:
    _, client = recorded
    await put_patient(client, "same-1")
    await put_patient(client, "same-1")
    assert len(await events(client, entity="Patient/same-1", action="U")) == 2


async def test_what_is_refused_is_recorded_as_a_failure(recorded: Pair) -> None:
    _, client = recorded
    assert (await client.get(f"{BASE}/Patient/nobody-1")).status_code == 404
    body = {"resourceType": "Patient", "gender": "banana"}
    assert (await client.put(f"{BASE}/Patient/bad-1", json={**body, "id": "bad-1"})).is_error
    (missing,) = await events(client, entity="Patient/nobody-1")
    (refused,) = await events(client, patient="bad-1", outcome="4")
    assert (missing["outcome"], missing["outcomeDesc"]) == ("4", "HTTP 404")
    assert codes(refused) == ["update"]


async def test_each_entry_of_a_batch_has_its_own_record(recorded: Pair) -> None:
    _, client = recorded
    await put_patient(client, "batch-1")
    entries = [
        {"request": {"method": "GET", "url": "Patient/batch-1"}},
        {"request": {"method": "GET", "url": "Patient/batch-none"}},
        {
            "request": {"method": "PUT", "url": "Encounter/batch-e"},
            "resource": encounter(id="batch-e", patient="batch-other"),
        },
        {
            "request": {"method": "PUT", "url": "Encounter/batch-x"},
            "resource": {"resourceType": "Encounter", "id": "batch-x"},
        },
    ]
    bundle = {"resourceType": "Bundle", "type": "batch", "entry": entries}
    headers = {"X-Request-Id": "batch-request"}
    assert (await client.post(BASE, json=bundle, headers=headers)).status_code == 200
    found = [
        (codes(event), event["outcome"])
        for place in (
            "Patient/batch-1",
            "Patient/batch-none",
            "Encounter/batch-e",
            "Encounter/batch-x",
        )
        for event in await events(client, entity=place)
        if event["entity"][-1]["what"]["identifier"]["value"] == "batch-request"
    ]
    assert found == [(["read"], "0"), (["read"], "4"), (["update"], "0"), (["update"], "4")]
    assert await events(client, subtype="transaction") == []


async def test_a_transaction_is_recorded_with_its_changes_or_as_a_whole(recorded: Pair) -> None:
    _, client = recorded

    def transaction(status: str) -> dict[str, Any]:
        request = {"method": "PUT", "url": f"Encounter/tx-{status}"}
        resource = encounter(status, id=f"tx-{status}", patient="tx-1")
        other = {"request": {"method": "GET", "url": f"Encounter/tx-{status}"}}
        return {
            "resourceType": "Bundle",
            "type": "transaction",
            "entry": [{"request": request, "resource": resource}, other],
        }

    assert (await client.post(BASE, json=transaction("planned"))).status_code == 200
    assert (await client.post(BASE, json=transaction("banana"))).is_error
    found = [codes(event) for event in await events(client, entity="Encounter/tx-planned")]
    assert found == [["read"], ["update"]]
    (failed,) = await events(client, subtype="transaction")
    assert failed["outcome"] == "4"


@pytest.mark.slow
async def test_a_fan_out_to_a_hundred_subscribers_is_recorded_in_full(recorded: Pair) -> None:
    server, client = recorded
    async with receiving() as receiver:
        ids = [f"fan-{n}" for n in range(100)]
        for id_ in ids:
            place = f"{receiver.url}/{id_}?key=secret"
            body = {**topic_based("Encounter?patient=Patient/fan-1", endpoint=place), "id": id_}
            assert (await client.put(f"{BASE}/Subscription/{id_}", json=body)).status_code == 201
        await receiver.wait(100, events=False)
        await server.worker.drain()
        body = encounter(id="fan-e", patient="fan-1")
        assert (await client.put(f"{BASE}/Encounter/fan-e", json=body)).status_code == 201
        await receiver.wait(100)
        await server.worker.drain()
    found = await events(client, entity="Encounter/fan-e", subtype="110106")
    assert len(found) == 100
    told = {entities(event, "2", "9")[0]["what"]["reference"] for event in found}
    assert told == {f"Subscription/{id_}" for id_ in ids}
    for event in found:
        assert (event["action"], event["outcome"]) == ("C", "0")
        assert [e["what"]["reference"] for e in entities(event, "1", "1")] == ["Patient/fan-1"]
        target = event["agent"][0]
        assert target["type"]["coding"][0]["code"] == "110152"
        assert target["network"]["address"].startswith(receiver.url)
        assert "secret" not in str(event)


async def test_a_notice_that_is_not_taken_is_recorded_as_a_failure(recorded: Pair) -> None:
    server, client = recorded
    async with receiving() as receiver:
        receiver.answers([400], then=400)
        body = topic_based("Encounter?patient=Patient/deaf-1", endpoint=f"{receiver.url}/deaf")
        await client.put(f"{BASE}/Subscription/deaf", json={**body, "id": "deaf"})
        await receiver.wait(1, events=False)
        await server.worker.drain()
        await client.post(f"{BASE}/Encounter", json=encounter(patient="deaf-1"))
        await receiver.wait(1)
        await server.worker.drain()
    (event,) = await events(client, entity="Subscription/deaf", subtype="110106")
    assert (event["outcome"], event["outcomeDesc"].split()[:2]) == ("8", ["HTTP", "400"])


# Who reads it


async def test_an_audit_event_is_read_by_its_id(recorded: Pair) -> None:
    _, client = recorded
    await put_patient(client, "by-id")
    (event,) = await events(client, patient="by-id")
    answer = await client.get(f"{BASE}/AuditEvent/{event['id']}")
    assert answer.json() == event
    assert_outcome(await client.get(f"{BASE}/AuditEvent/nothing"), 404, "not-found")


@pytest.mark.parametrize(
    ("method", "place"),
    [
        ("POST", "AuditEvent"),
        ("PUT", "AuditEvent/x"),
        ("PATCH", "AuditEvent/x"),
        ("DELETE", "AuditEvent/x"),
        ("DELETE", "AuditEvent?outcome=0"),
        ("GET", "AuditEvent/_history"),
    ],
)
async def test_nobody_writes_audit_events(recorded: Pair, method: str, place: str) -> None:
    _, client = recorded
    body = {"resourceType": "AuditEvent", "id": "x"}
    answer = await client.request(method, f"{BASE}/{place}", json=body)
    assert_outcome(answer, 405, "not-supported")


async def test_nobody_writes_audit_events_through_bundles(recorded: Pair) -> None:
    _, client = recorded
    await put_patient(client, "forging")
    event = {**(await events(client, patient="forging"))[0], "id": "forged"}
    request = {"method": "PUT", "url": "AuditEvent/forged"}
    entry = {"request": request, "resource": event}
    for kind in ("batch", "transaction"):
        bundle = {"resourceType": "Bundle", "type": kind, "entry": [entry]}
        answer = await client.post(BASE, json=bundle)
        shown = answer.json()["entry"][0]["response"]["status"] if kind == "batch" else None
        assert shown == "405" or answer.status_code == 405
    assert_outcome(await client.get(f"{BASE}/AuditEvent/forged"), 404, "not-found")


@pytest.mark.parametrize(
    "query",
    [
        *("source=x", "patient:missing=true", "_sort=date", "date=yesterday", "_count=0"),
        *("date=sa2026", "date=ne2026", "date=", "date=20260514", "date=20260514T100000Z"),
        *("date=2026-W20-4", "date=2026-134", "date=2026-05-14T10:00:00,5Z", "date=0000"),
        *("date=gt9999", "date=lt0001-01-01", "date=2026-02-29"),
    ],
)
async def test_a_search_that_is_not_understood_is_refused(recorded: Pair, query: str) -> None:
    _, client = recorded
    assert (await client.get(f"{BASE}/AuditEvent?{query}")).status_code == 400


@pytest.mark.parametrize(
    "text",
    ["2026", "ge2026-05", "le2026-05-14", "gt2026-05-14T10:00Z", "lt2026-05-14T10:00:00 02:00"],
)
async def test_the_audit_is_searched_by_dates_as_everything_is(recorded: Pair, text: str) -> None:
    _, client = recorded
    assert (await client.get(f"{BASE}/AuditEvent?date={text}")).status_code == 200


async def test_searches_combine_and_page(recorded: Pair) -> None:
    _, client = recorded
    for _ in range(5):
        await client.get(f"{BASE}/Patient/page-1")
    parameters = {"patient": "Patient/page-1", "outcome": "4", "type": "rest", "_count": "2"}
    assert len(await events(client, **parameters, date="ge2020", agent="anonymous")) == 5
    assert await events(client, **parameters, date="lt2020") == []
    assert await events(client, **parameters, agent="somebody-else") == []


async def test_without_an_audit_audit_events_are_a_type_like_others(
    client: httpx.AsyncClient, recorded: Pair
) -> None:
    await put_patient(recorded[1], "stored-1")
    (event,) = await events(recorded[1], patient="stored-1")
    assert (await client.post(f"{BASE}/AuditEvent", json=event)).status_code == 201


# With authorization


@pytest.fixture(scope="module")
async def guarded(mongod: str) -> AsyncIterator[World]:
    async with world(mongod) as found:
        yield found


async def seen_by_admin(guarded: World, **parameters: str) -> list[dict[str, Any]]:
    headers = {"Authorization": "Bearer admin"}
    answer = await guarded.client.get("/AuditEvent", params=parameters, headers=headers)
    assert answer.status_code == 200, answer.text
    return [entry["resource"] for entry in answer.json().get("entry", ())]


async def test_with_authorization_all_must_be_on_record(guarded: World) -> None:
    assert guarded.server.audit is not None
    assert guarded.server.audit.required


async def test_who_asked_is_named_with_organization_and_role(guarded: World) -> None:
    assert (await guarded.get("north", "/Patient/audited")).status_code == 404
    (event,) = await seen_by_admin(guarded, entity="Patient/audited", outcome="4")
    client, _, organization = event["agent"]
    assert client["who"]["identifier"]["value"] == "north"
    assert organization["who"]["reference"] == "Organization/north"
    assert organization["role"] == [{"text": "practice"}]
    assert [agent["requestor"] for agent in event["agent"]] == [False, False, True]
    assert event in await seen_by_admin(guarded, agent="Organization/north")
    assert event in await seen_by_admin(guarded, agent="north")


async def test_a_missing_scope_is_on_record(guarded: World) -> None:
    answer = await guarded.get("north", "/Patient/p-scope", scopes="system/Encounter.rs")
    assert answer.status_code in (403, 404)
    (event,) = await seen_by_admin(guarded, entity="Patient/p-scope")
    assert event["outcome"] == "4"


@pytest.mark.parametrize("place", ["/fhir/Patient/x", "/fhir/_export/x", "/admin/topics"])
async def test_who_shows_no_token_is_on_record(guarded: World, place: str) -> None:
    before = len(await seen_by_admin(guarded, type="110114", outcome="4", _count="1000"))
    answer = await guarded.client.get(f"{BASE.removesuffix('/fhir')}{place}")
    assert answer.status_code == 401
    event, *rest = await seen_by_admin(guarded, type="110114", outcome="4", _count="1000")
    assert len(rest) == before
    assert codes(event) == ["110122"]
    assert event["outcomeDesc"] == "HTTP 401"


async def test_administration_is_on_record(guarded: World) -> None:
    root = BASE.removesuffix("/fhir")
    headers = {"Authorization": "Bearer admin"}
    answer = await guarded.client.get(f"{root}/admin/topics", headers=headers)
    assert answer.status_code == 200
    event = (await seen_by_admin(guarded, type="110100"))[0]
    assert event["agent"][0]["who"]["identifier"]["value"] == "admin"
    assert entities(event, *QUERY)[0]["description"] == "GET /admin/topics"


@pytest.mark.parametrize("who", ["north", "general", "plan-a", "agency"])
async def test_only_administrators_read_the_audit(guarded: World, who: str) -> None:
    assert_outcome(await guarded.get(who, "/AuditEvent"), 403, "forbidden")
    assert_outcome(await guarded.get(who, "/AuditEvent/x"), 403, "forbidden")


@pytest.mark.parametrize(
    ("scope", "place", "status"),
    [
        ("system/Patient.rs", "/AuditEvent", 403),
        ("system/AuditEvent.r", "/AuditEvent", 403),
        ("system/AuditEvent.s", "/AuditEvent/x", 403),
        ("system/AuditEvent.rs", "/AuditEvent", 200),
        ("system/AuditEvent.rs", "/AuditEvent/x", 404),
    ],
)
async def test_administrators_need_the_scope(
    guarded: World, scope: str, place: str, status: int
) -> None:
    assert (await guarded.get("admin", place, scopes=scope)).status_code == status


@pytest.mark.slow
async def test_tokens_given_and_refused_are_on_record(mongod: str, tmp_path: Path) -> None:
    settings = make_settings(mongod, auth="smart", base_url=BASE, data=tmp_path)
    async with running(settings) as (server, client):
        key = ec_key()
        who = await register(server, key, role="administrator", organization=None)
        granted = await token_for(server, client, who, key)
        refused = await ask(client, signed(claims_of(server, who), ec_key()))
        assert refused.status_code in (400, 401)
        answer = await client.get(f"{BASE}/AuditEvent?type=110114", headers=bearer(granted))
        found = [
            (event["agent"][0]["who"]["identifier"]["value"], event["outcome"])
            for event in (entry["resource"] for entry in answer.json()["entry"])
        ]
        assert found == [("unknown", "4"), (who, "0")]


async def test_what_a_newer_server_has_recorded_is_shown_as_a_request(mongod: str) -> None:
    """While servers are upgraded one after another, the audit stays readable by all."""
    async with running(make_settings(mongod, audit="required")) as (server, client):
        await server.audit.record([entry("of-tomorrow", server.mongo.now())])
        answer = await client.get(f"{BASE}/AuditEvent")
        assert answer.status_code == 200, answer.text
        assert "rest" in {each["resource"]["type"]["code"] for each in answer.json()["entry"]}


# Writing together


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_who_reads_at_the_same_time_shares_writes_and_each_is_on_record(
    mongod: str, driver: str
) -> None:
    settings = make_settings(mongod, audit="required", mongodb_driver=driver)
    async with running(settings) as (server, client):
        await put_patient(client, "p1")
        before = await server.mongo.collection("audit").count_documents({})
        reads = [client.get(f"{BASE}/Patient/p1") for _ in range(60)]
        assert {answer.status_code for answer in await asyncio.gather(*reads)} == {200}
        rows = await server.mongo.collection("audit").count_documents({}) - before
        assert 0 < rows < 30
        assert len(await events(client, patient="p1", subtype="read")) == 60
        assert (await check(server)).findings == []


@pytest.mark.slow
async def test_who_shares_a_write_that_fails_is_told_nothing(mongod: str) -> None:
    async with running(make_settings(mongod, audit="required")) as (server, client):
        await put_patient(client, "p1")
        async with refusing_rows(server):
            reads = [client.get(f"{BASE}/Patient/p1") for _ in range(20)]
            answers = await asyncio.gather(*reads)
            assert {answer.status_code for answer in answers} == {503}
            assert not any("Patient" in answer.text for answer in answers)
        assert (await client.get(f"{BASE}/Patient/p1")).status_code == 200
        assert len(await events(client, patient="p1", subtype="read")) == 1
        assert (await check(server)).findings == []


@pytest.mark.slow
async def test_a_row_that_somebody_put_in_the_way_ends_a_chain_and_is_shown(mongod: str) -> None:
    async with running(make_settings(mongod, audit="required")) as (server, client):
        await put_patient(client, "p1")
        assert (await client.get(f"{BASE}/Patient/p1")).status_code == 200
        audit = server.mongo.collection("audit")
        rows = _longest(await audit.find({}).to_list(None))
        await _insert(audit, rows)
        assert_outcome(await client.get(f"{BASE}/Patient/p1"), 503, "transient")
        assert (await client.get(f"{BASE}/Patient/p1")).status_code == 200
        assert (await check(server)).findings != []


@pytest.mark.slow
@pytest.mark.parametrize("arrives", [True, False], ids=["answer-lost", "request-lost"])
async def test_a_connection_that_breaks_is_no_failure(
    mongod: str, monkeypatch: pytest.MonkeyPatch, arrives: bool
) -> None:
    async with running(make_settings(mongod, audit="required")) as (server, client):
        await put_patient(client, "p1")
        assert server.audit is not None
        database = server.audit.rows.database
        command = database.command
        broken: list[bool] = []

        async def breaking(asked: Any, *arguments: Any, **options: Any) -> Any:
            if "insert" not in asked or broken:
                return await command(asked, *arguments, **options)
            broken.append(True)
            if arrives:
                await command(asked, *arguments, **options)
            raise AutoReconnect("gone")

        monkeypatch.setattr(database, "command", breaking, raising=False)
        assert (await client.get(f"{BASE}/Patient/p1")).status_code == 200
        assert broken
        assert (await client.get(f"{BASE}/Patient/p1")).status_code == 200
        assert len(await events(client, patient="p1", subtype="read")) == 2
        assert (await check(server)).findings == []


@pytest.mark.slow
async def test_without_a_database_nobody_waits_twice(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(make_settings(mongod, audit="required")) as (server, client):
        await put_patient(client, "p1")
        assert server.audit is not None
        asked: list[str] = []

        async def absent(*_: Any, **__: Any) -> Any:
            asked.append("insert")
            raise ServerSelectionTimeoutError("nobody there")

        with monkeypatch.context() as patched:
            patched.setattr(server.audit.rows.database, "command", absent, raising=False)
            assert_outcome(await client.get(f"{BASE}/Patient/p1"), 503, "transient")
        # The read, and that it failed: each of them once.
        assert asked == ["insert", "insert"]


# Writing fails


async def test_what_cannot_be_recorded_is_not_done(mongod: str) -> None:
    async with running(make_settings(mongod, audit="required")) as (server, client):
        await put_patient(client, "p1")
        async with refusing_rows(server):
            read = await client.get(f"{BASE}/Patient/p1")
            assert_outcome(read, 503, "transient")
            assert "Patient" not in read.text
            write = await client.put(
                f"{BASE}/Patient/p2", json={"resourceType": "Patient", "id": "p2"}
            )
            assert_outcome(write, 503, "transient")
        assert (await client.get(f"{BASE}/Patient/p2")).status_code == 404
        assert (await client.get(f"{BASE}/Patient/p1")).status_code == 200
        assert (await check(server)).findings == []


@pytest.mark.slow
async def test_a_delivery_is_settled_only_when_it_is_on_record(mongod: str) -> None:
    async with (
        running(make_settings(mongod, audit="required")) as (server, client),
        receiving() as there,
    ):
        body = topic_based("Encounter?patient=Patient/p1", endpoint=there.url)
        await client.put(f"{BASE}/Subscription/s1", json={**body, "id": "s1"})
        await there.wait(1, events=False)
        await server.worker.drain()
        release = asyncio.Event()

        def hold(_: Any) -> int:
            release.set()
            return 200

        await client.put(f"{BASE}/Encounter/e0", json=encounter("planned", id="e0"))
        there.answer = hold
        assert server.audit is not None
        recorded = server.audit.record
        deliveries = server.mongo.collection("deliveries")
        seen: list[str] = []

        async def look(entries: Any) -> bool:
            if entries and entries[0]["what"] == "delivery":
                seen.extend([row["state"] async for row in deliveries.find({})])
            return await recorded(entries)

        server.audit.record = look  # type: ignore[method-assign]
        await client.put(f"{BASE}/Encounter/e1", json=encounter(id="e1"))
        await release.wait()
        await server.worker.drain()
        assert seen == ["sending"]
        assert [row["state"] async for row in deliveries.find({})] == ["delivered"]


@pytest.mark.slow
async def test_best_effort_answers_and_counts_what_it_lost(mongod: str) -> None:
    async with running(make_settings(mongod, audit="best-effort")) as (server, client):
        await put_patient(client, "p1")
        async with refusing_rows(server):
            assert (await client.get(f"{BASE}/Patient/p1")).status_code == 200
            await put_patient(client, "p2")
        assert server.audit is not None
        assert server.audit.lost == 2
        assert len(await events(client, patient="p1")) == 1


# Whether it is as it was written


Rows = list[dict[str, Any]]


def _longest(rows: Rows) -> Rows:
    """The rows of the chain that has most."""
    chains: dict[str, Rows] = {}
    for row in rows:
        chains.setdefault(row["_id"].partition(".")[0], []).append(row)
    longest = max(chains.values(), key=lambda each: len(list(each)))
    return sorted(longest, key=lambda row: row["_id"])


async def _delete(audit: Any, rows: Rows) -> None:
    await audit.delete_one({"_id": rows[2]["_id"]})


async def _change(audit: Any, rows: Rows) -> None:
    await audit.update_one({"_id": rows[2]["_id"]}, {"$set": {"each.0.what": "vread"}})


async def _change_and_hash(audit: Any, rows: Rows) -> None:
    row = {k: v for k, v in rows[2].items() if k != "hash"} | {"k": []}
    await audit.replace_one({"_id": row["_id"]}, {**row, "hash": digest(row)})


async def _swap(audit: Any, rows: Rows) -> None:
    first, second = rows[2], rows[3]
    await audit.delete_many({"_id": {"$in": [first["_id"], second["_id"]]}})
    await audit.insert_many([{**first, "_id": second["_id"]}, {**second, "_id": first["_id"]}])


async def _cut(audit: Any, rows: Rows) -> None:
    await audit.delete_many({"_id": {"$in": [row["_id"] for row in rows[-2:]]}})


async def _insert(audit: Any, rows: Rows) -> None:
    chain, number = rows[-1]["_id"].split(".")
    row = {k: v for k, v in rows[-1].items() if k not in ("hash", "prev")}
    row |= {"_id": f"{chain}.{int(number) + 1:012d}", "prev": rows[-1]["hash"]}
    await audit.insert_one({**row, "hash": digest(row)})


async def _own_chain(audit: Any, rows: Rows) -> None:
    row = {**rows[0], "_id": "0190aaaa-0000-7000-8000-000000000000.000000000001"}
    await audit.insert_one(row)


async def _rewrite_all(audit: Any, rows: Rows) -> None:
    """Everything from a row on, with hashes that fit."""
    previous = rows[1]["hash"]
    for row in rows[2:]:
        plain = {k: v for k, v in row.items() if k != "hash"} | {"prev": previous, "k": []}
        previous = digest(plain)
        await audit.replace_one({"_id": row["_id"]}, {**plain, "hash": previous})


@dataclass(frozen=True)
class Written:
    """A database whose server has stopped, with the audit that it left."""

    settings: Settings
    mongo: Mongo
    content: dict[str, Rows]

    async def verify(self) -> VerificationReport:
        return await verify(self.mongo, secrets.of_settings(self.settings))


@pytest.fixture(scope="module")
async def stopped(mongod: str) -> AsyncIterator[Written]:
    settings = make_settings(mongod, audit="required")
    async with running(settings) as (_, client):
        for _ in range(6):
            await put_patient(client, "p1")
        await client.get(f"{BASE}/Patient/p1")
        await client.get(f"{BASE}/Patient/p2")
    mongo = await Mongo.open(settings)
    content = {
        name: await mongo.collection(name).find({}).to_list(None)
        for name in ("audit", "audit_registry")
    }
    yield Written(settings, mongo, content)
    await mongo.close()


@pytest.fixture
async def written(stopped: Written) -> AsyncIterator[Written]:
    """The audit as it was left, whatever a test does to it."""
    yield stopped
    for name, rows in stopped.content.items():
        await stopped.mongo.collection(name).delete_many({})
        await stopped.mongo.collection(name).insert_many(rows)


async def test_what_nobody_touched_holds(written: Written) -> None:
    report = await written.verify()
    assert report.findings == []
    assert report.rows == len(written.content["audit"])
    assert report.unanchored == 0


@pytest.mark.parametrize(
    ("tamper", "said"),
    [
        pytest.param(_delete, "row 3: removed", id="delete"),
        pytest.param(_change, "row 3: changed", id="change"),
        pytest.param(_change_and_hash, "row 4: does not follow", id="change-and-hash"),
        pytest.param(_swap, "row 3: does not follow", id="swap"),
        pytest.param(_cut, "cut off its end", id="cut"),
        pytest.param(_insert, "inserted after the chain was closed", id="insert"),
        pytest.param(_own_chain, "belong to no chain of the registry", id="insert-chain"),
        pytest.param(_rewrite_all, "is not the row that was anchored", id="rewrite-all"),
    ],
)
async def test_tampering_is_shown(
    written: Written, tamper: Callable[[Any, Rows], Awaitable[None]], said: str
) -> None:
    await tamper(written.mongo.collection("audit"), _longest(written.content["audit"]))
    report = await written.verify()
    assert any(said in finding for finding in report.findings), report.findings


@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param(lambda rows: rows.delete_one({"_id": 1}), id="delete"),
        pytest.param(lambda rows: rows.update_one({"_id": 1}, {"$set": {"by": "x"}}), id="change"),
    ],
)
async def test_tampering_with_the_registry_is_shown(
    written: Written, tamper: Callable[[Any], Awaitable[Any]]
) -> None:
    await tamper(written.mongo.collection("audit_registry"))
    assert any("registry" in finding for finding in (await written.verify()).findings)


def test_the_command_line_says_whether_the_audit_holds(
    stopped: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARERELAY_MONGODB_DATABASE", stopped.settings.mongodb_database)
    command = ["audit", "verify", "--mongodb-uri", stopped.settings.mongodb_uri]
    holds = CliRunner().invoke(command_line, command)
    assert holds.exit_code == 0, holds.output
    assert "as it was written" in holds.output
    noted = re.search("hash ([0-9a-f]{64})", holds.output)
    assert noted is not None
    assert CliRunner().invoke(command_line, [*command, "--expect", noted[1]]).exit_code == 0
    lost = CliRunner().invoke(command_line, [*command, "--expect", "00" * 32])
    assert lost.exit_code == 1
    assert "is not there any more" in lost.output


def test_the_command_line_accounts_for_disclosures(
    stopped: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CARERELAY_MONGODB_DATABASE", stopped.settings.mongodb_database)
    uri = stopped.settings.mongodb_uri
    command = ["audit", "disclosures", "--patient", "Patient/p1", "--mongodb-uri", uri]
    shown = CliRunner().invoke(command_line, [*command, "--format", "json"])
    assert shown.exit_code == 0, shown.output
    (line,) = json.loads(shown.output)
    assert (line["what"], line["resource"]) == ("read", "Patient/p1/_history/1")
    assert line["recipient"] == "anonymous"
    table = CliRunner().invoke(command_line, command).output.splitlines()
    assert table[0] == "date,what,recipient,organization,role,resource,query,request,consent,id"
    assert len(table) == 2
    late = CliRunner().invoke(command_line, [*command, "--since", "2999-01-01"])
    assert len(late.output.splitlines()) == 1


@pytest.mark.slow
async def test_changes_of_clients_by_command_line_are_on_record(mongod: str) -> None:
    settings = make_settings(mongod, audit="required")
    async with running(settings) as (server, client):
        await log.note(server.mongo, settings, "clients disable c1")
        (event,) = await events(client, type="110113")
        assert event["agent"][0]["who"]["identifier"]["value"] == "command-line"
        assert entities(event, *QUERY)[0]["description"] == "carerelay clients disable c1"
        assert (await check(server)).findings == []


@pytest.mark.slow
async def test_a_registry_that_was_cut_lacks_the_hash_that_was_noted_down(mongod: str) -> None:
    async with running(make_settings(mongod, audit="required")) as (server, client):
        await put_patient(client, "p1")
        noted = (await check(server)).head
        assert (await check(server, expect=noted)).findings == []
        registry = server.mongo.collection("audit_registry")
        last = await registry.find_one({}, sort=[("_id", -1)])
        await registry.delete_one({"_id": last["_id"]})
        report = await verify(server.mongo, secrets.of_settings(server.settings), expect=noted)
        assert any(noted in finding for finding in report.findings)


@pytest.mark.slow
async def test_processes_write_side_by_side_into_chains_of_their_own(mongod: str) -> None:
    settings = make_settings(mongod, audit="required")
    async with running(settings) as (first, client), running(settings) as (second, other):
        await asyncio.gather(
            *(put_patient(each, f"p{n}") for n in range(20) for each in (client, other))
        )
        assert second.audit is not None
        await second.audit.anchor()
        report = await check(first)
        assert report.findings == []
        assert report.chains >= 2


@pytest.mark.slow
async def test_what_a_dead_process_left_is_anchored_by_the_next(mongod: str) -> None:
    settings = make_settings(mongod, audit="required")
    async with running(settings) as (server, client):
        await put_patient(client, "p1")
        dead = server.audit
        assert dead is not None
        registry = server.mongo.collection("audit_registry")
        assert await registry.count_documents({"kind": "checkpoint"}) == 0
        # Another process starts while this one can say nothing any more.
        successor = AuditLog(settings, server.mongo, "successor")
        await successor.start()
        await successor.stop()
        rows = _longest(await server.mongo.collection("audit").find({}).to_list(None))
        await server.mongo.collection("audit").delete_one({"_id": rows[-1]["_id"]})
        report = await verify(server.mongo, secrets.of_settings(settings))
        assert any("cut off its end" in finding for finding in report.findings)


async def test_what_is_past_its_time_is_looked_for_once_an_hour(
    recorded: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chains are anchored every minute."""
    server, _ = recorded
    begin, looked = server.mongo.now(), list[timedelta]()
    audit = AuditLog(server.settings, server.mongo, "another")

    async def look(now: datetime) -> int:
        looked.append(now - begin)
        return 0

    monkeypatch.setattr(audit, "retire", look)
    for minutes in (0, 1, 59, 60, 61, 121):
        passed = timedelta(minutes=minutes)
        with monkeypatch.context() as patch:
            patch.setattr(server.mongo, "now", lambda passed=passed: begin + passed)
            await audit._tidy()
    assert looked == [timedelta(minutes=minutes) for minutes in (0, 60, 121)]


@pytest.mark.slow
async def test_what_is_past_its_time_goes_and_the_rest_still_holds(mongod: str) -> None:
    settings = make_settings(mongod, audit="required", audit_retention_days=2190)
    async with running(settings) as (_, client):
        await put_patient(client, "p1")
    async with running(settings) as (server, client):
        assert server.audit is not None
        old = await server.mongo.collection("audit").count_documents({})
        later = server.mongo.now() + timedelta(days=7 * 365)
        assert await server.audit.retire(later) == old
        assert await server.audit.retire(later) == 0
        await put_patient(client, "p2")
        report = await check(server)
        assert report.findings == []
        assert report.retired > 0
        assert await events(client, patient="p1") == []
        assert len(await events(client, patient="p2")) == 1
