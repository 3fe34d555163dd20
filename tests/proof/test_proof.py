"""The proof of notices: who was told of what, when, and how it is shown and kept.

CMS measures count the day of receipt, so that day has to be provable long afterwards.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from bson import ObjectId

from app.fhir import json as fhir_json
from app.fhir.codes import (
    CONSENT_CATEGORY,
    EVENT_TIME,
    NOTICE_COMMITTED,
    NOTICE_ENDPOINT,
    NOTICE_SHA_256,
    NOTICE_STATUS,
    REVIEW_REASON,
)
from app.fhir.ids import first_id
from app.fhir.validation.models import model_issues
from app.proof.communication import communication, receipt, receipt_of
from app.proof.notice import gather
from app.subscriptions.ledger.waiting_rows import WaitingRows
from tests.builders.practices import organization, patient, practitioner, put, ref
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import classic, encounter, topic_based
from tests.conftest import JSON, Server, make_settings, running
from tests.outcomes import errors_in

pytestmark = pytest.mark.mongo

Pair = tuple[Server, httpx.AsyncClient]
NOW = datetime.now(UTC).replace(microsecond=0)
EARLIER = NOW - timedelta(hours=3)
ATTENDING = {
    "type": [{"coding": [{"code": "ATND"}]}],
    "individual": {"display": "Dr Ada Attending"},
}


@pytest.fixture
async def hub(mongod: str) -> AsyncIterator[Pair]:
    """A practice, its doctor and a patient of theirs."""
    async with running(make_settings(mongod)) as (server, client):
        await put(
            client,
            organization("practice"),
            organization("hospital"),
            practitioner("dr"),
            {**patient("member", ref("Organization/practice")), "name": [{"family": "Berg"}]},
            patient("alone"),
        )
        yield server, client


async def subscribe(pair: Pair, receiver: Receiver, *filters: str, **more: Any) -> str:
    filters = filters or ("general-practitioner=Organization/practice",)
    body = topic_based(*filters, endpoint=f"{receiver.url}/in?key=secret", **more)
    answer = await pair[1].post("/Subscription", json=body)
    assert answer.status_code == 201, answer.text
    await pair[0].worker.drain()
    return str(answer.json()["id"])


def stay(of: str = "member", **more: Any) -> dict[str, Any]:
    """An admission three hours ago, with all three names."""
    return encounter(
        patient=of,
        **{
            "id": "stay",
            "period": {"start": EARLIER.isoformat()},
            "participant": [ATTENDING],
            "serviceProvider": ref("Organization/hospital"),
            **more,
        },
    )


async def admit(pair: Pair, resource: dict[str, Any]) -> None:
    await put(pair[1], resource)
    await pair[0].worker.drain()
    await pair[0].engine.drain()


async def publish(pair: Pair) -> None:
    """Let the publisher's next round come."""
    pair[0].clock.advance(timedelta(minutes=1))
    await pair[0].engine.drain()


async def notices(pair: Pair, name: str = "stay") -> list[tuple[Any, Any]]:
    """What $notices answers: a Communication and an AuditEvent for each notice."""
    answer = await pair[1].get(f"/Encounter/{name}/$notices")
    assert answer.status_code == 200, answer.text
    found = [entry["resource"] for entry in fhir_json.decode(answer.content).get("entry", ())]
    for resource in found:
        assert errors_in(resource) == []
        assert model_issues(resource) == []
    kinds = [each["resourceType"] for each in found]
    assert kinds == ["Communication", "AuditEvent"] * (len(found) // 2)
    return list(zip(found[::2], found[1::2], strict=True))


async def published(pair: Pair, resource_type: str) -> list[dict[str, Any]]:
    found = await pair[1].get(f"/{resource_type}", params={"_sort": "_id"})
    return [entry["resource"] for entry in found.json().get("entry", ())]


def extensions(resource: dict[str, Any]) -> dict[str, Any]:
    """The values of a resource's extensions by URL."""
    return {
        each["url"]: next(value for key, value in each.items() if key != "url")
        for each in resource.get("extension", ())
    }


async def test_each_notice_proves_when_it_happened_was_sent_and_was_received(
    hub: Pair, receiver: Receiver
) -> None:
    subscription = await subscribe(hub, receiver)
    await admit(hub, stay())
    ((told, audited),) = await notices(hub)
    assert told["status"] == "completed"
    assert told["subject"] == ref("Patient/member")
    assert told["encounter"] == ref("Encounter/stay")
    assert told["about"] == [ref("Encounter/stay")]
    assert told["recipient"] == [ref("Organization/practice")]
    assert told["sender"]["display"] == "CareRelay"
    sent, received = (datetime.fromisoformat(told[name]) for name in ("sent", "received"))
    proof = extensions(told)
    committed = datetime.fromisoformat(proof[NOTICE_COMMITTED])
    assert datetime.fromisoformat(proof[EVENT_TIME]) == EARLIER
    assert NOW <= committed <= sent <= received <= datetime.now(UTC) + timedelta(seconds=1)
    assert proof[NOTICE_STATUS] == 200
    assert proof[NOTICE_ENDPOINT] == f"{receiver.url}/in"
    digest = hashlib.sha256(receiver.events[0].body).hexdigest()
    hashes = [each["value"] for each in told["identifier"] if each["system"] == NOTICE_SHA_256]
    assert hashes == [digest]
    assert (audited["type"]["code"], audited["subtype"][0]["code"]) == ("rest", "create")
    assert (audited["action"], audited["outcome"]) == ("C", "0")
    assert audited["agent"][1]["network"] == {"address": f"{receiver.url}/in", "type": "5"}
    assert audited["agent"][2]["who"] == ref("Organization/practice")
    assert [entity["what"]["reference"] for entity in audited["entity"]] == [
        "Patient/member",
        "Encounter/stay/_history/1",
        f"Subscription/{subscription}",
    ]


async def test_a_notice_under_way_is_in_progress(hub: Pair, receiver: Receiver) -> None:
    await subscribe(hub, receiver)
    receiver.answers([], then=500)
    await admit(hub, stay())
    ((told, audited),) = await notices(hub)
    assert told["status"] == "in-progress"
    assert "received" not in told
    assert audited["outcome"] == "4"
    await publish(hub)
    assert await published(hub, "Communication") == []


async def test_a_notice_that_was_refused_is_stopped(hub: Pair, receiver: Receiver) -> None:
    await subscribe(hub, receiver)
    receiver.answers([], then=410)
    await admit(hub, stay())
    # Another may say that the practice has nobody who listens any more.
    told, audited = next(each for each in await notices(hub) if each[0]["status"] == "stopped")
    assert told["statusReason"]["coding"][0]["code"] == "system-error"
    assert NOTICE_STATUS not in extensions(told)
    assert audited["outcome"] == "8"


async def test_what_was_withheld_is_there_with_its_reason_and_without_content(
    hub: Pair, receiver: Receiver
) -> None:
    await subscribe(hub, receiver, content="full-resource")
    await put(
        hub[1],
        {
            "resourceType": "Consent",
            "id": "refusal",
            "status": "active",
            "scope": {"coding": [{"code": "patient-privacy"}]},
            "category": [{"coding": [{"system": CONSENT_CATEGORY, "code": "pcp-notification"}]}],
            "patient": ref("Patient/member"),
            "dateTime": "2026-01-01",
            "policyRule": {"text": "Plan policy"},
            "provision": {"type": "deny"},
        },
    )
    await admit(hub, stay())
    ((told, audited),) = await notices(hub)
    assert told["status"] == "not-done"
    assert told["statusReason"]["coding"][0]["code"] == "patient-objection"
    assert told.keys().isdisjoint({"sent", "received", "payload"})
    assert audited["outcome"] == "4"
    assert audited["outcomeDesc"] == told["statusReason"]["text"]


async def test_what_could_be_sent_to_nobody_is_there_too(hub: Pair, receiver: Receiver) -> None:
    await subscribe(hub, receiver)
    await admit(hub, stay(of="alone"))
    ((told, _),) = await notices(hub)
    assert told["status"] == "not-done"
    assert told["statusReason"]["coding"][0]["code"] == "recipient-unavailable"
    assert "recipient" not in told
    assert NOTICE_ENDPOINT not in extensions(told)


async def test_an_encounter_that_is_not_there_has_no_notices(client: httpx.AsyncClient) -> None:
    assert (await client.get("/Encounter/nobody/$notices")).status_code == 404


async def test_settled_notices_are_published_once(hub: Pair, receiver: Receiver) -> None:
    await subscribe(hub, receiver)
    await admit(hub, stay())
    for _ in range(3):
        await publish(hub)
    ((told, audited),) = await notices(hub)
    for shown, kept in (
        (told, await published(hub, "Communication")),
        (audited, await published(hub, "AuditEvent")),
    ):
        assert [each["id"] for each in kept] == [shown["id"]]
        assert kept[0].pop("meta")["versionId"] == "1"
        assert kept[0] == shown


async def test_published_proof_outlasts_the_ledger(hub: Pair, receiver: Receiver) -> None:
    server = hub[0]
    await subscribe(hub, receiver)
    await admit(hub, stay())
    await publish(hub)
    before = await notices(hub)
    await server.mongo.collection("deliveries").delete_many({})
    ((told, audited),) = await notices(hub)
    del told["meta"], audited["meta"]
    assert [(told, audited)] == before


async def test_a_published_notice_is_no_event(hub: Pair, receiver: Receiver) -> None:
    server, client = hub
    await subscribe(hub, receiver)
    listening = classic("Communication?", endpoint=receiver.url)
    listening["criteria"] = "Communication?status=completed"
    assert (await client.post("/Subscription", json=listening)).status_code == 201
    await admit(hub, stay())
    events = await server.mongo.collection("events").count_documents({})
    received = len(receiver.requests)
    await publish(hub)
    await server.worker.drain()
    await publish(hub)
    await server.worker.drain()
    assert len(await published(hub, "Communication")) == 1
    assert len(receiver.requests) == received
    assert await server.mongo.collection("events").count_documents({}) == events
    # A Communication that a person writes is an event like any other.
    person = {"resourceType": "Communication", "id": "person", "status": "completed"}
    await put(client, person)
    await server.worker.drain()
    assert len(receiver.requests) == received + 1


async def test_a_notice_sent_again_keeps_the_day_it_was_first_received(
    hub: Pair, receiver: Receiver
) -> None:
    server, client = hub
    subscription = await subscribe(hub, receiver)
    await admit(hub, stay())
    await publish(hub)
    ((first, _),) = await notices(hub)
    answer = await client.post(f"/Subscription/{subscription}/$resend", headers=JSON)
    assert answer.status_code in (200, 202), answer.text
    await receiver.wait(2)
    await server.worker.drain()
    await publish(hub)
    (kept,) = await published(hub, "Communication")
    assert (kept["sent"], kept["received"]) == (first["sent"], first["received"])
    assert len(await published(hub, "AuditEvent")) == 2


@pytest.mark.slow
async def test_notices_of_criteria_are_not_published_even_when_sent_again(
    hub: Pair, receiver: Receiver
) -> None:
    server, client = hub
    listening = classic("Encounter?class=IMP", endpoint=receiver.url)
    subscription = (await client.post("/Subscription", json=listening)).json()["id"]
    await admit(hub, stay())
    await publish(hub)
    again = {"subscription": subscription}
    answer = await client.post(
        "http://carerelay.test/admin/deliveries/resend", params=again, headers=JSON
    )
    assert answer.json() == {"resent": 1, "skipped": 0}
    await server.worker.drain()
    await publish(hub)
    # Only that no practice could be told is on record.
    assert [each["status"] for each in await published(hub, "Communication")] == ["not-done"]
    rows = server.mongo.collection("deliveries")
    assert await rows.count_documents({"publish": {"$exists": True}}) == 0


async def test_a_notice_that_gets_through_later_is_published_then(
    hub: Pair, receiver: Receiver
) -> None:
    server = hub[0]
    subscription = await subscribe(hub, receiver)
    receiver.answers([], then=500)
    await admit(hub, stay())
    await publish(hub)
    receiver.answers([])
    deliveries = server.mongo.collection("deliveries")
    while not await deliveries.count_documents({"state": "delivered"}):
        # A slow machine has seen the endpoint fail so often that its circuit is open for a second or two.
        await WaitingRows(server.mongo).hasten(subscription)
        await server.worker.run_once()
        await asyncio.sleep(0.05)
    server.clock.advance(timedelta(hours=1))
    await publish(hub)
    (kept,) = await published(hub, "Communication")
    assert kept["status"] == "completed"
    assert kept["received"] > kept["sent"]


async def test_what_is_sent_after_the_databases_clock_was_ahead_is_published_too(
    hub: Pair, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = hub[0]
    true = server.mongo.now
    await subscribe(hub, receiver)
    with monkeypatch.context() as wrong:
        wrong.setattr(server.mongo, "now", lambda: true() + timedelta(days=30))
        await publish(hub)
    await admit(hub, stay())
    await publish(hub)
    (kept,) = await published(hub, "Communication")
    assert kept["status"] == "completed"


@pytest.mark.slow
async def test_nothing_is_published_where_the_operator_says_so(
    mongod: str, receiver: Receiver
) -> None:
    async with running(make_settings(mongod, publish_notices=False)) as pair:
        await put(
            pair[1], organization("practice"), patient("member", ref("Organization/practice"))
        )
        await subscribe(pair, receiver)
        await admit(pair, stay())
        await publish(pair)
        assert len(await notices(pair)) == 1
        assert await published(pair, "Communication") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "missing"),
    [
        pytest.param({}, None, id="all-three"),
        pytest.param({"participant": []}, ["practitioner"], id="nobody-attends"),
        pytest.param(
            {"participant": [{**ATTENDING, "individual": ref("Practitioner/unknown")}]},
            ["practitioner"],
            id="practitioner-unknown",
        ),
        pytest.param(
            {"participant": [{**ATTENDING, "individual": ref("Practitioner/dr")}]},
            None,
            id="practitioner-by-reference",
        ),
        pytest.param({"serviceProvider": None}, ["institution"], id="no-institution"),
        pytest.param(
            {"subject": ref("Patient/nameless"), "serviceProvider": None},
            ["patient", "institution"],
            id="patient-without-a-name",
        ),
    ],
)
async def test_a_hospitals_notice_has_three_names_or_is_flagged(
    hub: Pair, receiver: Receiver, more: dict[str, Any], missing: list[str] | None
) -> None:
    server, client = hub
    await put(client, patient("nameless", ref("Organization/practice")))
    await subscribe(hub, receiver)
    given = {key: value for key, value in stay(**more).items() if value not in (None, [])}
    await admit(hub, given)
    await publish(hub)
    assert len(receiver.events) == 1
    row = await server.mongo.collection("deliveries").find_one({"focus.id": "stay"})
    assert row is not None
    assert row.get("incomplete") == missing
    asked = await client.get("/Task", params={"code": f"{REVIEW_REASON}|incomplete-names"})
    assert [each["resource"]["focus"] for each in asked.json().get("entry", ())] == (
        [ref("Encounter/stay")] if missing else []
    )


async def test_what_is_published_reads_back_as_what_was_proven(
    hub: Pair, receiver: Receiver
) -> None:
    server = hub[0]
    await subscribe(hub, receiver)
    await admit(hub, stay())
    rows = await server.mongo.collection("deliveries").find().to_list(None)
    (notice,) = await gather(server.store, rows, "")
    read = receipt(communication(notice, {}))
    proven = receipt_of(notice)
    assert read.at is not None
    assert proven.at is not None
    assert abs(read.at - proven.at) < timedelta(milliseconds=1)
    assert (read.encounter, read.topic, read.recipients, read.to_pcp, read.trigger) == (
        proven.encounter,
        proven.topic,
        ("Organization/practice",),
        True,
        proven.trigger,
    )


@pytest.mark.parametrize("off", [timedelta(hours=-1), timedelta(hours=1)], ids=["behind", "ahead"])
async def test_notices_of_a_process_whose_clock_is_wrong_are_published(
    hub: Pair, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, off: timedelta
) -> None:
    await subscribe(hub, receiver)
    await admit(hub, stay())
    await publish(hub)
    assert len(await published(hub, "Communication")) == 1
    right = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right() + int(off.total_seconds() * 1e9))
    await admit(hub, stay(id="second"))
    monkeypatch.setattr(time, "time_ns", right)
    await admit(hub, stay(id="third"))
    await publish(hub)
    told = {each["encounter"]["reference"] for each in await published(hub, "Communication")}
    assert told == {"Encounter/stay", "Encounter/second", "Encounter/third"}


async def test_what_a_stalled_process_stores_late_is_published_within_the_hour(
    hub: Pair, receiver: Receiver
) -> None:
    """Its row bears an id from before those that were gone through."""
    server, _ = hub
    await subscribe(hub, receiver)
    await admit(hub, stay())
    await publish(hub)
    rows = server.mongo.collection("deliveries")
    row = await rows.find_one({"topic": {"$ne": None}})
    late = {key: each for key, each in row.items() if key not in ("publish", "published")}
    late["_id"] = first_id(server.mongo.now() - timedelta(minutes=40))
    await rows.insert_one({**late, "event": ObjectId(), "number": 2})
    await publish(hub)
    assert len(await published(hub, "Communication")) == 1
    server.clock.advance(timedelta(hours=1))
    await publish(hub)
    assert late["_id"] in [each["id"] for each in await published(hub, "Communication")]
