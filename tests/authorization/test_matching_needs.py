"""What live Subscriptions are evaluated by is changed and deleted by administrators alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.builders.access_world import World, encounter, world as a_world
from tests.builders.receiver import receiving
from tests.builders.subscriptions import classic
from tests.conftest import JSON, Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

VALUE_SET = "http://codes.example/ValueSet/stays"
INNER = "http://codes.example/ValueSet/inner"
SYSTEM = "http://codes.example/CodeSystem/types"


def value_set(id_: str, url: str, **include: Any) -> dict[str, Any]:
    return {
        "resourceType": "ValueSet",
        "id": id_,
        "url": url,
        "status": "active",
        "compose": {"include": [include]},
    }


NEEDED = [
    value_set("stays", VALUE_SET, valueSet=[INNER]),
    value_set("inner", INNER, system=SYSTEM),
    {
        "resourceType": "CodeSystem",
        "id": "types",
        "url": SYSTEM,
        "status": "active",
        "content": "complete",
        "concept": [{"code": "ward"}],
    },
    {
        "resourceType": "SearchParameter",
        "id": "risk",
        "url": "http://codes.example/SearchParameter/risk",
        "name": "Risk",
        "status": "active",
        "description": "x",
        "code": "risk",
        "base": ["Encounter"],
        "type": "token",
        "expression": "Encounter.priority",
    },
]


@pytest.fixture
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, egress_allow="127.0.0.1") as world:
        yield world


async def reindexed(server: Server, client: httpx.AsyncClient) -> None:
    """Every stored resource is indexed by the clients' parameters."""
    await server.reindexing.learn()
    answer = await client.post("/$reindex", headers={"Authorization": "Bearer admin", **JSON})
    assert answer.is_success, answer.text
    while not all(each.is_searchable for each in server.store.search_state.custom):
        await server.reindexing.run_once()


@pytest.mark.slow
async def test_nobody_changes_what_is_needed_without_proof_of_being_an_administrator(
    mongod: str,
) -> None:
    """Without authorization anybody may be a practice's client."""
    async with running(make_settings(mongod, egress_allow="127.0.0.1")) as (server, client):

        async def put(resource: dict[str, Any]) -> httpx.Response:
            place = f"/{resource['resourceType']}/{resource['id']}"
            return await client.put(place, json=resource)

        for each in NEEDED:
            assert (await put(each)).status_code == 201
        await reindexed(server, client)
        criteria = f"Encounter?type:in={VALUE_SET}&risk=high"
        assert (await put({**classic(criteria), "id": "s1"})).status_code == 201
        await server.worker.drain()
        by_id = value_set("by-id", "http://codes.example/ValueSet/by-id", system=SYSTEM)
        assert (await put(by_id)).status_code == 201
        asked = classic("Encounter?type:in=ValueSet/by-id")
        assert (await put({**asked, "id": "s2"})).status_code == 201
        await server.worker.drain()
        for needed in [*NEEDED, by_id]:
            assert_outcome(await put({**needed, "description": "Mine"}), 409, "conflict")
            place = f"/{needed['resourceType']}/{needed['id']}"
            assert_outcome(await client.delete(place), 409, "conflict")
            assert (await put(needed)).status_code == 200  # as it is
        shadow = {**NEEDED[0], "id": "shadow"}
        assert_outcome(await put(shadow), 409, "conflict")
        other = value_set("other", "http://codes.example/ValueSet/other", system=SYSTEM)
        assert (await put(other)).status_code == 201
        assert (await client.delete("/ValueSet/other")).is_success
        for each in ({**classic(criteria), "id": "s1"}, {**asked, "id": "s2"}):
            assert (await put({**each, "status": "off"})).status_code == 200
        await server.worker.drain()
        for needed in NEEDED:
            assert (await client.delete(f"/{needed['resourceType']}/{needed['id']}")).is_success


@pytest.mark.slow
@pytest.mark.parametrize("needed", NEEDED, ids=lambda each: f"{each['resourceType']}-{each['id']}")
async def test_an_administrator_ends_what_needs_it_and_nobody_else(
    world: World, needed: dict[str, Any]
) -> None:
    await world.put("admin", *NEEDED)
    await reindexed(world.server, world.client)
    criteria = f"Encounter?type:in={VALUE_SET}&risk=high"
    async with receiving() as receiver:
        await world.put("admin", {**classic(criteria, f"{receiver.url}/in"), "id": "s1"})
        await world.put("admin", {**classic("Encounter?", f"{receiver.url}/all"), "id": "s2"})
        await world.server.worker.drain()
        place = f"/{needed['resourceType']}/{needed['id']}"
        assert (await world.ask("admin", "DELETE", place)).is_success
        await world.server.reindexing.learn()
        await world.server.worker.run_once()
        await world.server.worker.drain()
        ended = (await world.get("admin", "/Subscription/s1")).json()
        assert ended["status"] == "error"
        assert ended["error"].startswith("criteria")
        assert "codes.example" not in ended["error"]
        await world.put("admin", encounter("e1", "pn"))
        await world.server.worker.drain()
        assert [each.path for each in receiver.requests] == ["/all"]
