"""Notices on record: whose Subscription each was sent for, besides where it went."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from app.audit.accounting import disclosures
from app.fhir.ids import new_id
from app.subscriptions.sending.attempt_audit import address
from tests.builders.access_world import World, encounter, world as a_world
from tests.builders.audit_events import events
from tests.builders.practices import endpoint, role
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import topic_based

pytestmark = pytest.mark.mongo


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod) as found:
        yield found


async def deliveries(world: World, **parameters: str) -> list[dict[str, Any]]:
    """The AuditEvents of notices that an administrator finds, the newest first."""
    with_token = httpx.AsyncClient(
        transport=world.client._transport, headers={"Authorization": "Bearer admin"}
    )
    return await events(with_token, subtype="110106", **parameters)


async def subscribe(world: World, who: str, receiver: Receiver) -> str:
    body = topic_based(endpoint=f"{receiver.url}/{who}")
    answer = await world.ask(who, "POST", "/Subscription", body)
    assert answer.status_code == 201, answer.text
    await world.server.worker.drain()
    return str(answer.json()["id"])


async def tell(world: World) -> str:
    """Write an Encounter that concerns everybody of `pn`; its reference."""
    name = new_id()
    await world.put("admin", encounter(name, "pn", "general"))
    await world.server.worker.drain()
    return f"Encounter/{name}"


def client_of(event: dict[str, Any]) -> str | None:
    """The agent that is a client beside the endpoint and this server."""
    clients = [
        agent["who"]["identifier"]["value"]
        for agent in event["agent"]
        if agent["type"]["coding"][0]["code"] == "110150"
    ]
    return clients[0] if clients else None


@pytest.mark.parametrize(
    ("endpoint_", "expected"),
    [
        ("https://me:secret@pcp.example:8443/hook?key=secret", "https://pcp.example:8443/hook"),
        ("mailto:doctor@pcp.example?subject=x", "mailto:doctor@pcp.example"),
        ("https://[::1", None),
        ("nowhere", None),
        (None, None),
    ],
)
def test_an_address_is_on_record_without_what_may_be_secret(
    endpoint_: str | None, expected: str | None
) -> None:
    """User, password and query; of an address that cannot be read, nothing."""
    assert address(endpoint_) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("who", "role"), [("north", "practice"), ("plan-a", "plan"), ("agency", "state")]
)
async def test_a_notice_names_the_client_whose_subscription_it_is(
    world: World, receiver: Receiver, who: str, role: str
) -> None:
    subscription = await subscribe(world, who, receiver)
    await tell(world)
    (event,) = await deliveries(world, entity=f"Subscription/{subscription}")
    endpoint, server, client, organization = event["agent"]
    assert endpoint["network"]["address"] == f"{receiver.url}/{who}"
    assert "who" not in endpoint
    assert server["type"]["coding"][0]["code"] == "110153"
    assert client["who"]["identifier"]["value"] == who
    assert organization["who"]["reference"] == f"Organization/{who}"
    assert organization["role"] == [{"text": role}]
    assert [agent["requestor"] for agent in event["agent"]] == [False, False, False, True]
    for agent in (who, f"Organization/{who}"):
        assert event in await deliveries(world, agent=agent)


async def test_an_administrators_subscription_names_the_client_alone(
    world: World, receiver: Receiver
) -> None:
    subscription = await subscribe(world, "admin", receiver)
    await tell(world)
    (event,) = await deliveries(world, entity=f"Subscription/{subscription}")
    assert client_of(event) == "admin"
    assert [agent["requestor"] for agent in event["agent"]] == [False, False, True]


async def test_it_stays_its_clients_when_an_administrator_changes_it(
    world: World, receiver: Receiver
) -> None:
    subscription = await subscribe(world, "south", receiver)
    place = f"/Subscription/{subscription}"
    body = (await world.get("admin", place)).json()
    changed = await world.ask("admin", "PUT", place, {**body, "reason": "Another reason"})
    assert changed.status_code == 200, changed.text
    await world.server.worker.drain()
    await world.put("admin", encounter(new_id(), "ps", "city"))
    await world.server.worker.drain()
    (event,) = await deliveries(world, entity=f"Subscription/{subscription}")
    assert client_of(event) == "south"


async def test_a_notice_that_was_not_taken_names_it_as_well(
    world: World, receiver: Receiver
) -> None:
    subscription = await subscribe(world, "north", receiver)
    receiver.answers([400], then=400)
    await tell(world)
    (event,) = await deliveries(world, entity=f"Subscription/{subscription}")
    assert (event["outcome"], client_of(event)) == ("8", "north")


@pytest.mark.slow
async def test_one_that_the_server_keeps_names_for_whom(mongod: str, receiver: Receiver) -> None:
    async with a_world(mongod, endpoint_subscriptions=True) as world:
        hook = endpoint("north-hook", receiver.url)
        await world.put("admin", hook, role("role-n", "dr-n", "north", "north-hook"))
        await world.server.engine.drain()
        await world.server.worker.drain()
        told = await tell(world)
        (event,) = await deliveries(world, entity=told)
        assert client_of(event) == "carerelay"
        assert event["agent"][-1]["who"]["reference"] == "Organization/north"


async def test_the_accounting_says_for_whom_a_notice_was_sent(
    world: World, receiver: Receiver
) -> None:
    await subscribe(world, "bureau", receiver)
    await world.put("admin", encounter(new_id(), "ps", "city"))
    await world.server.worker.drain()
    lines = [line async for line in disclosures(world.server.mongo, "ps")]
    (line,) = [each for each in lines if each["recipient"] == f"{receiver.url}/bureau"]
    assert (line["what"], line["organization"]) == ("delivery", "Organization/bureau")
    assert line["role"] == "state"
