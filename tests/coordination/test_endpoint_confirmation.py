"""Endpoints are told unasked only where somebody stands for their address: loading a directory sends nothing to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from app.fhir.codes import REVIEW_REASON
from tests.builders.access_world import World, world as a_world
from tests.builders.practices import endpoint, organization, patient, put, ref
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import encounter
from tests.conftest import Server, make_settings, running

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

TASKS = f"/Task?code={REVIEW_REASON}|unconfirmed-endpoint"
REFUSED = f"/Task?code={REVIEW_REASON}|refused-endpoint"
KEPT = "/Subscription?_tag=http://carerelay.example/CodeSystem/subscription-origin|endpoint"


def listed(bundle: Mapping[str, Any]) -> tuple[str, set[str]]:
    """The status of the one Task, and the Endpoints that it lists."""
    (entry,) = bundle["entry"]
    task = entry["resource"]
    return task["status"], {each["valueReference"]["reference"] for each in task.get("input", ())}


async def settle(server: Server) -> None:
    await server.engine.drain()
    await server.worker.drain()


async def test_without_authorization_loopback_and_what_is_listed_is_told(
    mongod: str, receiver: Receiver
) -> None:
    settings = make_settings(
        mongod,
        endpoint_subscriptions="confirmed",
        endpoint_topics="encounter-admission",
        egress_allow="practice.example,192.0.2.0/24",
    )
    addresses = {
        "loopback": receiver.url,
        "network": "https://192.0.2.7/fhir",
        "name": "https://practice.example/fhir",
        "public": "https://elsewhere.example/fhir",
    }
    async with running(settings) as (server, client):
        for name, address in addresses.items():
            await put(client, endpoint(name, address), organization(name, name))
            await put(client, patient(name, ref(f"Organization/{name}")))
        await server.engine.drain()
        assert await told(client) == {"loopback", "network", "name"}
        answer = (await client.get(TASKS)).json()
        assert listed(answer) == ("requested", {"Endpoint/public"})
        await put(client, {**encounter(patient="public"), "id": "untold"})
        await server.engine.drain()
        asked = (await client.get("/Task", params={"focus": "Organization/public"})).json()
        assert "to stand for it" in asked["entry"][0]["resource"]["description"]


async def test_a_practice_with_refused_addresses_is_one_task_until_they_are_mended(
    mongod: str, receiver: Receiver
) -> None:
    """Whatever the number of its Endpoints, and of the topics of each."""
    settings = make_settings(
        mongod, endpoint_subscriptions=True, endpoint_content="id-only", egress_allow="127.0.0.1"
    )
    cloud, private = "http://169.254.169.254/latest", "http://10.0.0.1/fhir"
    practice = organization("p", "good")
    practice["endpoint"] = [ref(f"Endpoint/{name}") for name in ("good", "cloud", "private")]
    async with running(settings) as (server, client):
        await put(client, endpoint("good", receiver.url))
        await put(client, endpoint("cloud", cloud), endpoint("private", private))
        await put(client, practice, patient("m", ref("Organization/p")))
        await settle(server)
        assert await told(client) == {"p"}
        answer = (await client.get(REFUSED)).json()
        assert listed(answer) == ("requested", {"Endpoint/cloud", "Endpoint/private"})

        await put(client, endpoint("private", f"{receiver.url}/private"))
        await settle(server)
        assert listed((await client.get(REFUSED)).json())[1] == {"Endpoint/cloud"}
        await put(client, practice | {"endpoint": practice["endpoint"][:1]})
        await settle(server)
        assert listed((await client.get(REFUSED)).json()) == ("completed", set())

        # The good one moves to an address that is refused: the old one hears nothing more.
        await put(client, endpoint("good", private))
        await settle(server)
        assert listed((await client.get(REFUSED)).json()) == ("requested", {"Endpoint/good"})
        kept = (await client.get(KEPT)).json()["entry"]
        assert {each["resource"]["status"] for each in kept} == {"off"}


async def told(client: httpx.AsyncClient) -> set[str]:
    """The practices that a Subscription is kept for."""
    entries = (await client.get(KEPT)).json().get("entry", [])
    tags = [tag for entry in entries for tag in entry["resource"]["meta"]["tag"]]
    return {
        tag["code"].rpartition("/")[2] for tag in tags if tag["code"].startswith("Organization/")
    }


async def kept(world: World) -> set[str]:
    found = await world.get("admin", KEPT)
    return {
        f"{entry['resource']['channel']['endpoint'].rpartition('/')[2]} {entry['resource']['status']}"
        for entry in found.json().get("entry", [])
    }


async def test_an_address_is_told_once_an_administrator_or_the_practice_stands_for_it(
    mongod: str, receiver: Receiver
) -> None:
    """A directory client has loaded both Endpoints; the practice moves its own, an administrator confirms the other."""
    settings = {"endpoint_subscriptions": "confirmed", "endpoint_topics": "encounter-admission"}
    async with a_world(mongod, publish_notices=False, **settings) as world:
        for name in ("north", "south"):
            practice = (await world.get("admin", f"/Organization/{name}")).json()
            door = endpoint(f"{name}-door", f"{receiver.url}/{name}")
            door["managingOrganization"] = ref(f"Organization/{name}")
            await world.put("registrar", door)
            await world.put("admin", practice | {"endpoint": [ref(f"Endpoint/{name}-door")]})
        await settle(world.server)
        assert (await kept(world), receiver.requests) == (set(), [])
        answer = (await world.get("admin", TASKS)).json()
        assert listed(answer) == ("requested", {"Endpoint/north-door", "Endpoint/south-door"})

        loaded = (await world.get("north", "/Endpoint/north-door")).json()
        await world.put("north", loaded | {"address": f"{receiver.url}/north-2"})
        await settle(world.server)
        assert await kept(world) == {"north-2 active"}
        unchanged = (await world.get("admin", "/Endpoint/south-door")).json()
        await world.put("admin", unchanged)
        await settle(world.server)
        assert await kept(world) == {"north-2 active", "south active"}
        assert listed((await world.get("admin", TASKS)).json()) == ("completed", set())

        # Somebody else's address is nobody's word again.
        await world.put("registrar", unchanged | {"address": f"{receiver.url}/elsewhere"})
        await settle(world.server)
        assert await kept(world) == {"north-2 active", "south off"}
        assert listed((await world.get("admin", TASKS)).json()) == (
            "requested",
            {"Endpoint/south-door"},
        )
