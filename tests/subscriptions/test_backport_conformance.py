"""Subscriptions R5 Backport guide 1.1 (R4): what it demands of a server, one test for each SHALL.

http://hl7.org/fhir/uv/subscriptions-backport/STU1.1/

    Conformance, Conformance in FHIR R4
        C1   Subscription can be read and written
        C2   $status on Subscription
        C3   at least one channel type
        C4   at least one payload type
        C5   the full capability details of the CapabilityStatement that is claimed
        C6   every mandatory element of the profiles is communicated
    Conformance, Must Support
        M1   backport-channel-type is read; an unsupported channel is refused
        M2   backport-filter-criteria is read and applied
        M3   a filter that is not supported is refused
        M4   backport-payload-content is read, and notices tell what it says
        M5   a content level that will not be honoured is refused
        M6   the first entry of a notice is Parameters of the status profile, valid and correct
        M7   criteria hold the topic's canonical; an unsupported topic is refused
    Channels, REST-Hook
        R1   a new Subscription is `requested`
        R2   an accepted handshake makes it `active`
        R3   a failed handshake makes it `error`
        R4   the content type is the one that was asked for
        R5   every header is conveyed
    Channels, Websockets
        W1   notices have the format of their Subscription        (also tests/subscriptions/test_websocket.py)
    Channels, Email
        E1   the body can be read by people                       (tests/subscriptions/test_email.py)
        E2   the content level holds for attachments              (tests/subscriptions/test_email.py)
    Notifications
        N1   the status is the first entry, its request that of $status
        N2   the shape is that of the topic
        N3   further resources keep to the content level
    Payloads
        P1   empty: no references in notification-event
        P2   empty: no entry but the status
        P3   id-only: focus in notification-event
        P4   id-only: entries have fullUrl and request
        P5   full-resource: focus in notification-event
        P6   full-resource: an entry with the resource for each one that is relevant
        P7   full-resource: where one cannot be included, request and response say so
    Errors
        X1   events are counted on
        X2   the status is updated
        X3   $status goes on answering
        X4   (of the profile) the client alone brings it back
    Extensions on channel: backport-heartbeat-period, backport-timeout, backport-max-count
        H1   no heartbeat without a period
        H2   no heartbeat counts as an event
        H3   an attempt ends when the timeout has passed
        H4   a notice tells no more events than max-count    (also tests/subscriptions/test_batching.py)
    Safety and Security
        S1   authorization is enforced in accordance with the server's policy: egress and encryption at creation
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.parameters import Parameters

from app.runtime.leases import BackOff
from app.subscriptions.matching.channel_terms import BACKPORT, CHANNEL_TYPE, PAYLOAD_CONTENT
from app.subscriptions.matching.registration import FILTER_CRITERIA
from app.subscriptions.notices.notification import STATUS_PROFILE
from app.subscriptions.sending import lifecycle
from tests.builders.receiver import Received, Receiver
from tests.builders.subscriptions import ADMISSION, encounter, topic_based, websocket
from tests.conftest import BASE, JSON, Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
Pair = tuple[Server, httpx.AsyncClient]
Edit = Callable[[dict[str, Any]], None]
CONTENTS = ("empty", "id-only", "full-resource")


@pytest.fixture(scope="module")
async def pair(mongod: str) -> AsyncIterator[Pair]:
    """A server that gives an endpoint up at the first failure, where others take their time."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lifecycle, "_BACK_OFF", BackOff(timedelta(), timedelta(), most=1))
        async with running(make_settings(mongod, refusal_window=0)) as pair:
            yield pair


async def subscribed(pair: Pair, subscription: dict[str, Any]) -> dict[str, Any]:
    """The Subscription as its creation answered it, once the server has made up its mind."""
    created = await pair[1].post("/Subscription", json=subscription)
    assert created.status_code == 201, created.text
    await pair[0].worker.drain()
    answered: dict[str, Any] = created.json()
    return answered


async def admit(pair: Pair, patient: str, **more: Any) -> dict[str, Any]:
    created = await pair[1].post("/Encounter", json=encounter(patient=patient, **more))
    await pair[0].worker.drain()
    stay: dict[str, Any] = created.json()
    return stay


async def status_of(pair: Pair, id_: str) -> dict[str, Any]:
    """The parameters that $status answers."""
    answer = await pair[1].get(f"/Subscription/{id_}/$status")
    assert answer.status_code == 200
    (entry,) = answer.json()["entry"]
    return values(entry["resource"])


def values(parameters: dict[str, Any]) -> dict[str, Any]:
    return {
        entry["name"]: next(value for key, value in entry.items() if key != "name")
        for entry in parameters["parameter"]
    }


def event_of(notice: Received) -> dict[str, Any]:
    """The parts of a notice's one event."""
    parts = values(notice.json["entry"][0]["resource"])["notification-event"]
    return {
        part["name"]: next(value for key, value in part.items() if key != "name") for part in parts
    }


async def noticed(
    pair: Pair, receiver: Receiver, patient: str, content: str = "id-only", **more: Any
) -> tuple[dict[str, Any], dict[str, Any], Received]:
    """A Subscription, an admission, and the notice of it."""
    subscription = topic_based(f"patient={patient}", endpoint=receiver.url, content=content, **more)
    created = await subscribed(pair, subscription)
    stay = await admit(pair, patient)
    (notice,) = receiver.events
    Bundle.model_validate(notice.json)
    return created, stay, notice


async def test_c1_subscriptions_are_read_and_written(pair: Pair, receiver: Receiver) -> None:
    _, client = pair
    created = await subscribed(pair, topic_based(endpoint=receiver.url))
    path = f"/Subscription/{created['id']}"
    current = (await client.get(path)).json()
    updated = await client.put(path, json={**current, "reason": "Another"})
    assert updated.json()["reason"] == "Another"
    found = await client.get("/Subscription", params={"url": receiver.url})
    assert [e["resource"]["id"] for e in found.json()["entry"]] == [created["id"]]
    await pair[0].worker.drain()
    found = await client.get("/Subscription", params={"url": receiver.url, "status": "active"})
    assert len(found.json()["entry"]) == 1
    assert (await client.delete(path)).status_code in (200, 204)
    assert (await client.get(path)).status_code == 410


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("place", ["instance", "type"])
async def test_c2_status_answers_a_searchset_of_parameters(
    pair: Pair, receiver: Receiver, method: str, place: str
) -> None:
    id_ = (await subscribed(pair, topic_based(endpoint=receiver.url)))["id"]
    if place == "instance":
        answer = await pair[1].request(method, f"/Subscription/{id_}/$status", headers=JSON)
    elif method == "GET":
        answer = await pair[1].get("/Subscription/$status", params={"id": id_})
    else:
        given = {"resourceType": "Parameters", "parameter": [{"name": "id", "valueId": id_}]}
        answer = await pair[1].post("/Subscription/$status", json=given)
    assert answer.status_code == 200
    bundle = answer.json()
    Bundle.model_validate(bundle)
    assert bundle["type"] == "searchset"
    (entry,) = bundle["entry"]
    assert entry["search"]["mode"] == "match"
    assert entry["resource"]["meta"]["profile"] == [STATUS_PROFILE]
    found = values(entry["resource"])
    assert (found["type"], found["status"]) == ("query-status", "active")
    assert found["subscription"]["reference"] == f"{BASE}/Subscription/{id_}"


@pytest.mark.parametrize("type_", ["rest-hook", "message"])
async def test_c3_channel_types_deliver(pair: Pair, receiver: Receiver, type_: str) -> None:
    subscription = topic_based(f"patient=c3-{type_}", endpoint=receiver.url)
    subscription["channel"]["type"] = type_
    await subscribed(pair, subscription)
    stay = await admit(pair, f"c3-{type_}")
    assert stay["id"] in receiver.requests[-1].body.decode()


@pytest.mark.parametrize("payload", ["application/fhir+json", "application/fhir+xml"])
async def test_c4_payload_types_deliver(pair: Pair, receiver: Receiver, payload: str) -> None:
    patient = f"c4-{payload[-4:].strip('+')}"
    subscription = topic_based(f"patient={patient}", endpoint=receiver.url, payload=payload)
    await subscribed(pair, subscription)
    stay = await admit(pair, patient)
    assert stay["id"] in receiver.requests[-1].body.decode()


async def test_c5_the_capability_statement_says_all_of_it(pair: Pair) -> None:
    guide = "http://hl7.org/fhir/uv/subscriptions-backport"
    statement = (await pair[1].get("/metadata")).json()
    claimed = f"{guide}/CapabilityStatement/backport-subscription-server-r4"
    assert claimed in statement["instantiates"]
    resources = {each["type"]: each for each in statement["rest"][0]["resource"]}
    subscription = resources["Subscription"]
    assert f"{guide}/StructureDefinition/backport-subscription" in subscription["supportedProfile"]
    operations = {each["name"]: each["definition"] for each in subscription["operation"]}
    for code in ("status", "events", "get-ws-binding-token"):
        definition = f"{guide}/OperationDefinition/backport-subscription-{code}"
        assert operations[code] == definition
    interactions = {each["code"] for each in subscription["interaction"]}
    assert {"read", "create", "update", "delete"} <= interactions
    assert {"url", "status"} <= {each["name"] for each in subscription["searchParam"]}
    topics = [
        each["valueCanonical"]
        for each in subscription["extension"]
        if each["url"] == BACKPORT + "capabilitystatement-subscriptiontopic-canonical"
    ]
    assert ADMISSION in topics
    assert len(topics) == len(set(topics))


async def test_c6_mandatory_elements_come_back(pair: Pair, receiver: Receiver) -> None:
    sent = topic_based("patient=c6", endpoint=receiver.url, heartbeat=60, timeout=5, max_count=3)
    id_ = (await subscribed(pair, sent))["id"]
    stored = (await pair[1].get(f"/Subscription/{id_}")).json()
    for name in ("criteria", "_criteria", "channel", "reason"):
        assert stored[name] == sent[name]
    assert stored["status"] == "active"


@pytest.mark.parametrize("place", ["type", "extension"])
async def test_m1_an_unsupported_channel_is_refused(pair: Pair, place: str) -> None:
    subscription = topic_based()
    if place == "type":
        subscription["channel"]["type"] = "sms"
        where = "Subscription.channel.type"
    else:
        coding = {"system": "http://example.org/channels", "code": "zulip"}
        extension = {"url": CHANNEL_TYPE, "valueCoding": coding}
        subscription["channel"]["_type"] = {"extension": [extension]}
        where = "Subscription.channel.type.extension[0]"
    answer = await pair[1].post("/Subscription", json=subscription)
    assert_outcome(answer, 422, "not-supported", where)


async def test_m1_an_additional_channel_type_that_is_supported_is_read(
    pair: Pair, receiver: Receiver
) -> None:
    subscription = topic_based(endpoint=receiver.url)
    system = "http://terminology.hl7.org/CodeSystem/subscription-channel-type"
    coding = {"system": system, "code": "rest-hook"}
    extension = {"url": CHANNEL_TYPE, "valueCoding": coding}
    subscription["channel"]["_type"] = {"extension": [extension]}
    assert (await subscribed(pair, subscription))["status"] == "requested"


async def test_m2_filters_are_applied_all_of_them(pair: Pair, receiver: Receiver) -> None:
    await subscribed(pair, topic_based("patient=m2", "class=IMP", endpoint=receiver.url))
    await admit(pair, "m2-other")
    await admit(pair, "m2", class_="EMER")
    stay = await admit(pair, "m2")
    (notice,) = receiver.events
    assert notice.focus == f"{BASE}/Encounter/{stay['id']}"


# What the guide's public test kit sends to be refused: https://github.com/inferno-framework/subscriptions-test-kit
MISNAMED = (
    "http://hl7.org/fhir/5.0/subscriptions-backport/StructureDefinition/backport-filter-criteria"
)


def _filter(text: str, url: str = FILTER_CRITERIA) -> Edit:
    def edit(subscription: dict[str, Any]) -> None:
        extension = {"url": url, "valueString": text}
        subscription["_criteria"] = {"extension": [extension]}

    return edit


def _channel(**elements: Any) -> Edit:
    return lambda subscription: subscription["channel"].update(elements)


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(_filter("unsupported=filter"), id="unknown-key"),
        pytest.param(_filter("patient:above=p1"), id="unknown-modifier"),
        pytest.param(_filter("Observation?patient=p1"), id="type-of-no-trigger"),
        pytest.param(_filter("patient=p1", MISNAMED), id="under-another-name"),
    ],
)
async def test_m3_an_unsupported_filter_is_refused(pair: Pair, edit: Edit) -> None:
    subscription = topic_based()
    edit(subscription)
    answer = await pair[1].post("/Subscription", json=subscription)
    assert_outcome(answer, 422, "not-supported", "Subscription.criteria.extension[0]")


@pytest.mark.parametrize("content", CONTENTS)
async def test_m4_notices_tell_what_the_content_level_says(
    pair: Pair, receiver: Receiver, content: str
) -> None:
    _, stay, notice = await noticed(pair, receiver, f"m4-{content}", content)
    text = notice.body.decode()
    assert (stay["id"] in text) is (content != "empty")
    assert ('"resourceType":"Encounter"' in text) is (content == "full-resource")


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        pytest.param(
            _channel(_payload={"extension": [{"url": PAYLOAD_CONTENT, "valueCode": "all"}]}),
            "channel.payload.extension[0]",
            id="unknown-level",
        ),
        pytest.param(
            _channel(
                _payload={"extension": [{"url": PAYLOAD_CONTENT, "valueCode": "full-resource"}]},
                endpoint="http://pcp.example/hook",
            ),
            "channel.endpoint",
            id="resources-without-encryption",
        ),
        pytest.param(_channel(payload="application/pdf"), "channel.payload", id="payload-type"),
        pytest.param(
            _channel(payload="application/fhir+json; fhirVersion=5.0"),
            "channel.payload",
            id="version-of-fhir",
        ),
        pytest.param(
            _channel(type="websocket", payload="application/fhir+json"),
            "channel.endpoint",
            id="websocket-with-endpoint",
        ),
        pytest.param(_channel(endpoint="gopher://x.example"), "channel.endpoint", id="endpoint"),
    ],
)
async def test_m5_what_will_not_be_honoured_is_refused(pair: Pair, edit: Edit, where: str) -> None:
    subscription = topic_based()
    edit(subscription)
    answer = await pair[1].post("/Subscription", json=subscription)
    assert answer.status_code == 422
    expressions = [e for i in answer.json()["issue"] for e in i["expression"]]
    assert f"Subscription.{where}" in expressions


@pytest.mark.parametrize("content", CONTENTS)
async def test_m6_the_first_entry_is_a_valid_status(
    pair: Pair, receiver: Receiver, content: str
) -> None:
    created, _, notice = await noticed(pair, receiver, f"m6-{content}", content)
    for received, kind, number in (
        (receiver.requests[0], "handshake", "0"),
        (notice, "event-notification", "1"),
    ):
        status = received.json["entry"][0]["resource"]
        Parameters.model_validate(status)
        assert status["meta"]["profile"] == [STATUS_PROFILE]
        found = values(status)
        assert found["subscription"]["reference"] == f"{BASE}/Subscription/{created['id']}"
        assert found["type"] == kind
        assert found["status"] == ("requested" if kind == "handshake" else "active")
        assert found["events-since-subscription-start"] == number
        assert ("notification-event" in found) is (kind == "event-notification")
        assert found.get("topic") == (None if content == "empty" else ADMISSION)
    assert event_of(notice)["event-number"] == "1"


@pytest.mark.parametrize("topic", [f"{ADMISSION}-unknown", f"{ADMISSION}|9.9", "urn:oid:1.2.3"])
async def test_m7_an_unsupported_topic_is_refused(pair: Pair, topic: str) -> None:
    answer = await pair[1].post("/Subscription", json={**topic_based(), "criteria": topic})
    assert_outcome(answer, 422, "not-supported", "Subscription.criteria")


async def test_r1_r2_requested_until_the_handshake_is_accepted(
    pair: Pair, receiver: Receiver
) -> None:
    server, client = pair
    asked = asyncio.Event()

    def answer(received: Received) -> int | None:
        asked.set()
        return None

    receiver.answer = answer
    created = await client.post("/Subscription", json=topic_based(endpoint=receiver.url))
    assert created.json()["status"] == "requested"
    path = f"/Subscription/{created.json()['id']}"
    await asked.wait()
    assert (await client.get(path)).json()["status"] == "requested"
    receiver.answer = lambda _: 200
    receiver.closing.set()  # the one that was held is answered with 500
    await server.worker.drain()
    assert (await client.get(path)).json()["status"] == "error"
    await client.put(path, json=topic_based(endpoint=receiver.url) | {"id": created.json()["id"]})
    await server.worker.drain()
    assert (await client.get(path)).json()["status"] == "active"
    assert [r.kind for r in receiver.requests] == ["handshake", "handshake"]


@pytest.mark.parametrize("status", [301, 400, 404, 500])
async def test_r3_a_failed_handshake_is_an_error(
    pair: Pair, receiver: Receiver, status: int
) -> None:
    receiver.answer = lambda _: status
    receiver.headers = {"Location": f"{receiver.url}/elsewhere"}
    id_ = (await subscribed(pair, topic_based(endpoint=receiver.url)))["id"]
    stored = (await pair[1].get(f"/Subscription/{id_}")).json()
    assert stored["status"] == "error"
    assert stored["error"]
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    "payload",
    ["application/fhir+json", "application/fhir+json; fhirVersion=4.0", "application/fhir+xml"],
)
async def test_r4_the_content_type_is_the_one_asked_for(
    pair: Pair, receiver: Receiver, payload: str
) -> None:
    await subscribed(pair, topic_based("patient=r4", endpoint=receiver.url, payload=payload))
    await admit(pair, "r4")
    assert len(receiver.requests) == 2
    for received in receiver.requests:
        assert received.method == "POST"
        assert received.headers["content-type"].startswith(payload)


async def test_r5_every_header_is_conveyed(pair: Pair, receiver: Receiver) -> None:
    headers = ["Authorization: Bearer t0ken", "X-Practice: 17", "X-Note: a: b, c"]
    created, _, _ = await noticed(pair, receiver, "r5", header=headers)
    assert created["channel"]["header"] == headers
    for received in receiver.requests:
        assert received.headers["authorization"] == "Bearer t0ken"
        assert received.headers["x-practice"] == "17"
        assert received.headers["x-note"] == "a: b, c"


async def test_w1_a_websocket_notice_has_the_format_of_its_subscription(pair: Pair) -> None:
    server, _ = pair
    id_ = (await subscribed(pair, websocket("patient=w1", payload="application/fhir+xml")))["id"]
    heard: list[str] = []

    async def listener(text: str) -> None:
        heard.append(text)

    binding = await server.worker.binder.bind(id_, listener, by_token=True)
    await admit(pair, "w1")
    await server.worker.binder.unbind(id_, binding)
    assert len(heard) == 2
    assert all(re.match(r"^(<\?xml[^>]*>)?\s*<Bundle ", text) for text in heard)


async def test_n1_the_status_entrys_request_is_that_of_status(
    pair: Pair, receiver: Receiver
) -> None:
    created, _, notice = await noticed(pair, receiver, "n1")
    bundle = notice.json
    assert bundle["type"] == "history"
    assert bundle["entry"][0]["request"] == {
        "method": "GET",
        "url": f"{BASE}/Subscription/{created['id']}/$status",
    }
    for entry in bundle["entry"]:
        assert entry["request"]["url"]
        assert entry["response"]["status"]


async def test_n2_the_shape_is_the_topics(pair: Pair, receiver: Receiver) -> None:
    await pair[1].put("/Patient/n2", json={"resourceType": "Patient", "id": "n2"})
    _, stay, notice = await noticed(pair, receiver, "n2", "full-resource")
    event = event_of(notice)
    assert event["focus"]["reference"] == f"{BASE}/Encounter/{stay['id']}"
    assert event["additional-context"]["reference"] == f"{BASE}/Patient/n2"
    assert event["trigger"]["code"] == "A01"


@pytest.mark.parametrize("content", CONTENTS)
async def test_n3_further_resources_keep_to_the_content_level(
    pair: Pair, receiver: Receiver, content: str
) -> None:
    patient = f"n3-{content}"
    await pair[1].put(f"/Patient/{patient}", json={"resourceType": "Patient", "id": patient})
    _, _, notice = await noticed(pair, receiver, patient, content)
    assert ("additional-context" in event_of(notice)) is (content != "empty")
    included = [e for e in notice.json["entry"][1:] if e["fullUrl"].endswith(f"Patient/{patient}")]
    assert any("resource" in e for e in included) is (content == "full-resource")


async def test_p1_p2_empty_tells_nothing_but_the_number(pair: Pair, receiver: Receiver) -> None:
    _, stay, notice = await noticed(pair, receiver, "p1", "empty")
    assert set(event_of(notice)) == {"event-number", "timestamp"}
    assert len(notice.json["entry"]) == 1
    assert stay["id"] not in notice.body.decode()


async def test_p3_p4_id_only_tells_references(pair: Pair, receiver: Receiver) -> None:
    _, stay, notice = await noticed(pair, receiver, "p3", "id-only")
    url = f"{BASE}/Encounter/{stay['id']}"
    assert event_of(notice)["focus"]["reference"] == url
    entries = notice.json["entry"][1:]
    assert entries
    for entry in entries:
        assert entry["fullUrl"].startswith(BASE)
        assert entry["request"]["url"]
        assert "resource" not in entry


async def test_p5_p6_full_resource_holds_them(pair: Pair, receiver: Receiver) -> None:
    await pair[1].put("/Patient/p5", json={"resourceType": "Patient", "id": "p5"})
    _, stay, notice = await noticed(pair, receiver, "p5", "full-resource")
    event = event_of(notice)
    held = {entry["fullUrl"]: entry.get("resource") for entry in notice.json["entry"][1:]}
    assert held[event["focus"]["reference"]] == stay
    assert held[event["additional-context"]["reference"]]["id"] == "p5"


async def test_p7_what_cannot_be_included_is_said(pair: Pair, receiver: Receiver) -> None:
    """The Encounter refers to a Patient that is not here."""
    _, _, notice = await noticed(pair, receiver, "p7", "full-resource")
    (missing,) = [e for e in notice.json["entry"] if e["fullUrl"] == f"{BASE}/Patient/p7"]
    assert "resource" not in missing
    assert missing["request"] == {"method": "GET", "url": "Patient/p7"}
    assert missing["response"]["status"] == "404"


async def test_x1_x2_x3_an_error_is_counted_stated_and_answered(
    pair: Pair, receiver: Receiver
) -> None:
    id_ = (await subscribed(pair, topic_based("patient=x1", endpoint=receiver.url)))["id"]
    receiver.answers([403])
    await admit(pair, "x1")
    await admit(pair, "x1")
    assert len(receiver.events) == 1
    found = await status_of(pair, id_)
    assert (found["status"], found["events-since-subscription-start"]) == ("error", "2")
    system = "http://terminology.hl7.org/CodeSystem/subscription-error"
    assert found["error"]["coding"] == [{"system": system, "code": "error-response"}]
    assert (await pair[1].get(f"/Subscription/{id_}")).json()["status"] == "error"


async def test_x4_only_the_client_brings_it_back(pair: Pair, receiver: Receiver) -> None:
    server, client = pair
    created = await subscribed(pair, topic_based("patient=x4", endpoint=receiver.url))
    receiver.answers([410], then=200)
    await admit(pair, "x4")
    await server.worker.run_once()
    path = f"/Subscription/{created['id']}"
    assert (await client.get(path)).json()["status"] == "off"
    await client.put(path, json={**created, "status": "requested"})
    await server.worker.drain()
    assert receiver.requests[-1].kind == "handshake"
    assert receiver.requests[-1].number == 1
    assert (await client.get(path)).json()["status"] == "active"
    await admit(pair, "x4")
    assert [r.number for r in receiver.events] == [1, 2]
    missed = await client.get(f"{path}/$events", params={"eventsSinceNumber": "1"})
    assert len(missed.json()["entry"]) == 3


@pytest.mark.parametrize("period", [None, 60])
async def test_h1_h2_heartbeats_come_where_asked_for_and_count_nothing(
    pair: Pair, receiver: Receiver, period: int | None
) -> None:
    server, _ = pair
    subscription = topic_based(f"patient=h{period}", endpoint=receiver.url, heartbeat=period)
    id_ = (await subscribed(pair, subscription))["id"]
    await admit(pair, f"h{period}")
    states = server.mongo.collection("subscription_state")
    past = server.mongo.now() - timedelta(seconds=1)
    await states.update_many(
        {"_id": id_, "heartbeat_at": {"$exists": True}}, {"$set": {"heartbeat_at": past}}
    )
    await server.worker.run_once()
    beats = [r for r in receiver.requests if r.kind == "heartbeat"]
    assert len(beats) == (1 if period else 0)
    for beat in beats:
        assert beat.number == 1
        assert beat.parameter("status") == "active"
        assert len(beat.json["entry"]) == 1
    assert (await status_of(pair, id_))["events-since-subscription-start"] == "1"


@pytest.mark.slow
async def test_h3_an_attempt_ends_with_the_timeout(pair: Pair, receiver: Receiver) -> None:
    server, _ = pair
    subscription = topic_based("patient=h3", endpoint=receiver.url, timeout=1)
    id_ = (await subscribed(pair, subscription))["id"]
    receiver.answer = lambda _: None
    begun = time.perf_counter()
    await admit(pair, "h3")
    assert 0.9 < time.perf_counter() - begun < 5
    row = await server.mongo.collection("deliveries").find_one({"subscription": id_})
    assert (row["state"], row["attempts"][0]["reason"]) == ("retrying", "timeout")


@pytest.mark.parametrize(("most", "notices"), [(None, 4), (1, 4), (2, 2), (10, 1)])
async def test_h4_no_more_events_than_max_count(
    pair: Pair, receiver: Receiver, most: int | None, notices: int
) -> None:
    server, client = pair
    subscription = topic_based("class=ACUTE", endpoint=receiver.url, max_count=most)
    id_ = (await subscribed(pair, subscription))["id"]
    stays = [encounter(patient=f"h4-{n}", class_="ACUTE") for n in range(4)]
    entry = [
        {"resource": stay, "request": {"method": "POST", "url": "Encounter"}} for stay in stays
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entry}
    assert (await client.post("/", json=bundle)).status_code == 200
    await server.worker.drain()
    assert len(receiver.events) == notices
    assert max(r.number for r in receiver.events) == 4
    await client.delete(f"/Subscription/{id_}")


@pytest.mark.parametrize(
    "endpoint",
    [
        pytest.param("https://169.254.169.254/latest", id="metadata"),
        pytest.param("https://10.0.0.1/hook", id="private"),
        pytest.param("https://user:secret@pcp.example/hook", id="credentials"),
    ],
)
async def test_s1_endpoints_against_the_policy_are_refused(pair: Pair, endpoint: str) -> None:
    answer = await pair[1].post("/Subscription", json=topic_based(endpoint=endpoint))
    assert_outcome(answer, 422, "security", "Subscription.channel.endpoint")


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(_channel(extension=[{"url": "http://x.example/e", "valueCode": "x"}]), id="channel"),
        pytest.param(_channel(_payload={"extension": [{"url": "http://x.example/e"}]}), id="payload"),
        pytest.param(_channel(_type={"extension": [{"url": "http://x.example/e", "valueCode": "x"}]}), id="type"),
        pytest.param(_filter("patient=p1", "http://x.example/e"), id="criteria"),
    ],
)  # fmt: skip
async def test_unknown_extensions_are_never_dropped(pair: Pair, edit: Edit) -> None:
    """Beyond the SHALLs: a dropped extension would widen what is told."""
    subscription = topic_based()
    edit(subscription)
    answer = await pair[1].post("/Subscription", json=subscription)
    assert answer.status_code in (400, 422)
