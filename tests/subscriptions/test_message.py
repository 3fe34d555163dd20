"""The message channel, and notices in XML, against a real HTTP endpoint."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle

from app.fhir import xml
from app.runtime.mongo import Mongo
from app.store.store import Store
from app.subscriptions.matching.channel_terms import BACKPORT
from tests.builders.deliveries import create, status_of, working
from tests.builders.receiver import Receiver, receiving
from tests.builders.subscriptions import classic, encounter, topic_based

pytestmark = pytest.mark.mongo


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as receiver:
        receiver.requests = []
        yield receiver


def as_message(subscription: dict[str, Any]) -> dict[str, Any]:
    subscription["channel"]["type"] = "message"
    return subscription


def parts(message: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The MessageHeader and what its focus leads to."""
    Bundle.model_validate(message)
    assert message["type"] == "message"
    header = message["entry"][0]["resource"]
    assert header["resourceType"] == "MessageHeader"
    by_url = {entry["fullUrl"]: entry["resource"] for entry in message["entry"]}
    focus = header.get("focus")
    return header, by_url[focus[0]["reference"]] if focus else None


async def test_a_notification_travels_as_the_focus_of_a_message(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    async with working(mongo, store) as worker:
        subscription = as_message(topic_based(endpoint=receiver.url + "/fhir"))
        stored = await create(store, subscription)
        await worker.drain()
        assert await status_of(store, stored.id) == ("active", None)
        stay = await create(store, encounter())
        await worker.drain()
    handshake, notice = receiver.requests
    for received, kind in ((handshake, "handshake"), (notice, "event-notification")):
        assert (received.method, received.path) == ("POST", "/fhir/$process-message")
        assert received.headers["content-type"] == "application/fhir+json"
        header, bundle = parts(received.json)
        assert header["eventUri"] == f"{BACKPORT}backport-subscription-notification-r4"
        assert header["source"]["endpoint"] == "http://carerelay.test/fhir"
        assert header["destination"] == [{"endpoint": receiver.url + "/fhir"}]
        assert bundle is not None
        assert bundle["type"] == "history"
        types = [p for p in bundle["entry"][0]["resource"]["parameter"] if p["name"] == "type"]
        assert types[0]["valueCode"] == kind
    assert stay.id in notice.body.decode()


@pytest.mark.parametrize("payload", [None, "application/fhir+json"])
async def test_a_classic_message_has_the_resource_as_its_focus(
    mongo: Mongo, store: Store, receiver: Receiver, payload: str | None
) -> None:
    async with working(mongo, store) as worker:
        endpoint = receiver.url + "/$process-message?k=v"
        await create(store, as_message(classic("Encounter?", endpoint, payload)))
        await worker.drain()
        stay = await create(store, encounter())
        await worker.drain()
    (received,) = receiver.requests
    assert received.path == "/$process-message?k=v"
    header, focus = parts(received.json)
    assert header["eventUri"] == "http://hl7.org/fhir/StructureDefinition/Subscription"
    assert focus == (stay.resource() if payload else None)


@pytest.mark.slow
async def test_a_failed_message_is_repeated_to_the_byte(
    mongo: Mongo, store: Store, receiver: Receiver
) -> None:
    async with working(mongo, store) as worker:
        await create(
            store, as_message(classic("Encounter?", receiver.url, "application/fhir+json"))
        )
        await worker.drain()
        receiver.answers([503])
        await create(store, encounter())
        first, second = await receiver.wait(2, events=False)
    assert first.body == second.body


@pytest.mark.parametrize(
    "subscription",
    [
        pytest.param(topic_based(content="full-resource"), id="topic"),
        pytest.param(classic("Encounter?"), id="classic"),
    ],
)
async def test_notices_in_xml(
    mongo: Mongo, store: Store, receiver: Receiver, subscription: dict[str, Any]
) -> None:
    channel = {
        **subscription["channel"],
        "endpoint": receiver.url,
        "payload": "application/fhir+xml; fhirVersion=4.0",
    }
    async with working(mongo, store) as worker:
        await create(store, {**subscription, "channel": channel})
        await worker.drain()
        stay = await create(store, encounter())
        await worker.drain()
    received = receiver.requests[-1]
    assert received.headers["content-type"] == "application/fhir+xml; fhirVersion=4.0"
    resource = xml.decode(received.body)
    if resource["resourceType"] == "Bundle":
        resource = resource["entry"][1]["resource"]
    assert resource == stay.resource()
