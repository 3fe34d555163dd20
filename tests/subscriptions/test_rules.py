"""Subscriptions over HTTP: refused, requested, masked."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.builders.receiver import Receiver, receiving
from tests.builders.subscriptions import ADMISSION, classic, encounter, topic_based
from tests.conftest import Server
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
SECRET = "Authorization: Bearer s3cret"
MASKED = "Authorization: ********"


async def settled(server: Server, client: httpx.AsyncClient, id_: str) -> dict[str, Any]:
    """The Subscription once the server has made up its mind about it."""
    await server.worker.drain()
    found: dict[str, Any] = (await client.get(f"/Subscription/{id_}")).json()
    return found


async def remove(server: Server, client: httpx.AsyncClient, id_: str) -> None:
    await client.delete(f"/Subscription/{id_}")
    await server.worker.drain()


@pytest.mark.parametrize(
    ("subscription", "code", "expression"),
    [
        pytest.param(
            {**topic_based(), "criteria": f"{ADMISSION}-unknown"},
            "not-supported",
            "Subscription.criteria",
            id="topic",
        ),
        pytest.param(
            topic_based("colour=red"),
            "not-supported",
            "Subscription.criteria.extension[0]",
            id="filter",
        ),
        pytest.param(
            topic_based(endpoint="http://169.254.169.254/latest"),
            "security",
            "Subscription.channel.endpoint",
            id="metadata-address",
        ),
        pytest.param(
            topic_based(endpoint="https://10.1.2.3/hook"),
            "security",
            "Subscription.channel.endpoint",
            id="private-address",
        ),
        pytest.param(
            {**classic(), "end": "2020-01-01T00:00:00Z"}, "value", "Subscription.end", id="past-end"
        ),
        pytest.param(
            topic_based(header=["Authorization: ********"]),
            "value",
            "Subscription.channel.header[0]",
            id="mask-without-meaning",
        ),
    ],
)
async def test_a_refusal_names_the_element_and_stores_nothing(
    client: httpx.AsyncClient, subscription: dict[str, Any], code: str, expression: str
) -> None:
    marker = {"system": "urn:test", "code": expression[-12:].strip("[].").replace(".", "-") + code}
    response = await client.post("/Subscription", json={**subscription, "meta": {"tag": [marker]}})
    assert_outcome(response, 422, code, expression)
    found = await client.get("/Subscription", params={"_tag": f"urn:test|{marker['code']}"})
    assert not found.json().get("entry")


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        pytest.param("requested", "requested", id="requested"),
        pytest.param("active", "requested", id="active"),
        pytest.param("error", "requested", id="error"),
        pytest.param("off", "off", id="off"),
    ],
)
async def test_the_server_decides_the_status(
    server: Server, client: httpx.AsyncClient, receiver: Receiver, sent: str, stored: str
) -> None:
    body = {**topic_based(endpoint=receiver.url), "status": sent, "error": "mine"}
    created = await client.post("/Subscription", json=body)
    assert created.status_code == 201
    assert created.json()["status"] == stored
    assert "error" not in created.json()
    after = await settled(server, client, created.json()["id"])
    assert after["status"] == ("off" if stored == "off" else "active")
    assert len(receiver.requests) == (0 if stored == "off" else 1)
    await remove(server, client, after["id"])


async def test_secrets_are_for_the_writer_and_the_endpoint_alone(
    server: Server, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    body = topic_based(endpoint=receiver.url, header=[SECRET, "X-Practice: 7"])
    created = await client.post("/Subscription", json=body)
    id_ = created.json()["id"]
    assert created.json()["channel"]["header"] == [SECRET, "X-Practice: 7"]
    current = await settled(server, client, id_)
    assert current["channel"]["header"] == [MASKED, "X-Practice: ********"]
    for url in (
        f"/Subscription/{id_}",
        f"/Subscription/{id_}/_history",
        f"/Subscription/{id_}/_history/1",
        f"/Subscription?_id={id_}",
    ):
        assert "s3cret" not in (await client.get(url)).text
    assert receiver.requests[0].headers["authorization"] == "Bearer s3cret"

    # What was read can be sent back: the masks stand for what they hide.
    current["reason"] = "Still admissions"
    updated = await client.put(f"/Subscription/{id_}", json=current)
    assert updated.status_code == 200
    assert "s3cret" not in updated.text
    await settled(server, client, id_)
    assert receiver.requests[-1].headers["authorization"] == "Bearer s3cret"
    assert receiver.requests[-1].headers["x-practice"] == "7"

    # But not towards another endpoint.
    async with receiving() as other:
        current["channel"]["endpoint"] = other.url
        stolen = await client.put(f"/Subscription/{id_}", json=current)
        assert_outcome(stolen, 422, "value", "Subscription.channel.header[0]")
        assert not other.requests
    await remove(server, client, id_)


async def test_an_admission_reaches_the_practice_and_a_deletion_stops_it(
    server: Server, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    patient = (await client.post("/Patient", json={"resourceType": "Patient"})).json()["id"]
    body = topic_based(f"patient=Patient/{patient}", endpoint=receiver.url, content="full-resource")
    id_ = (await client.post("/Subscription", json=body)).json()["id"]
    assert (await settled(server, client, id_))["status"] == "active"
    stay = (await client.post("/Encounter", json=encounter(patient=patient))).json()
    (notice,) = await receiver.wait(1)
    assert notice.json["entry"][1]["resource"] == stay
    assert notice.json["entry"][2]["resource"]["id"] == patient
    assert notice.focus.endswith(f"/fhir/Encounter/{stay['id']}")
    await remove(server, client, id_)
    await client.post("/Encounter", json=encounter(patient=patient))
    await server.worker.drain()
    assert len(receiver.events) == 1


@pytest.mark.slow
async def test_many_subscriptions_at_once_are_all_proven(
    server: Server, client: httpx.AsyncClient, receiver: Receiver
) -> None:
    created = await asyncio.gather(
        *(client.post("/Subscription", json=topic_based(endpoint=receiver.url)) for _ in range(20))
    )
    ids = [response.json()["id"] for response in created]
    await server.worker.drain()
    assert len(receiver.requests) == 20
    for id_ in ids:
        assert (await settled(server, client, id_))["status"] == "active"
        await client.delete(f"/Subscription/{id_}")
    await server.worker.drain()
