"""Subscriptions that the server keeps for practices and agencies: each reads and asks its own, and changes none."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator

import pytest

from app.fhir.codes import SUBSCRIPTION_ENDPOINT, SUBSCRIPTION_ORIGIN, SUBSCRIPTION_OWNER
from app.fhir.ids import new_id
from tests.builders.access_world import Resource, World, encounter, security, world as a_world
from tests.builders.practices import endpoint, organization, practitioner, role
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import topic_based
from tests.conftest import BASE
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
ADMISSION = "/Subscription?criteria=http://carerelay.example/SubscriptionTopic/encounter-admission"


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    settings = {"egress_allow": "127.0.0.1", "endpoint_subscriptions": True}
    async with a_world(mongod, publish_notices=False, **settings) as found:
        yield found


async def settle(world: World) -> None:
    """Once the Subscriptions are kept and their endpoints proven."""
    await world.server.engine.drain()
    await world.server.worker.drain()


def transaction(*resources: Resource) -> Resource:
    entries = [
        {
            "resource": each,
            "request": {"method": "PUT", "url": f"{each['resourceType']}/{each['id']}"},
        }
        for each in resources
    ]
    return {"resourceType": "Bundle", "type": "transaction", "entry": entries}


async def test_a_practice_asks_what_is_kept_for_it(world: World, receiver: Receiver) -> None:
    # Of the world's own stays nobody could be told; told after all, they are no matter here.
    await settle(world)
    await world.server.mongo.collection("deliveries").delete_many({})
    directory = transaction(
        endpoint("north-door", receiver.url),
        endpoint("role-door", f"{receiver.url}/role"),
        organization("north", "north-door"),
        practitioner("dr-n"),
        role("role-n", "dr-n", "north", "role-door"),
    )
    answer = await world.ask("admin", "POST", "", directory)
    assert answer.status_code == 200, answer.text
    await settle(world)

    # What is kept anew by several changes at once has its endpoint proven once.
    proven = Counter(each.parameter("subscription")["reference"] for each in receiver.requests)
    assert set(proven.values()) == {1}

    kept = await world.found("north", ADMISSION)
    assert len(kept) == 2  # of the organization, and of its role
    stay = new_id()
    await world.put("admin", encounter(stay, "pn", "general"))
    await settle(world)
    for place in kept:
        assert (await world.get("north", f"/{place}")).json()["status"] == "active"
        assert (await world.get("north", f"/{place}/_history/1")).status_code == 200
        status = await world.get("north", f"/{place}/$status")
        assert '"name":"events-since-subscription-start","valueString":"1"' in status.text
        assert f"Encounter/{stay}" in (await world.get("north", f"/{place}/$events")).text
        for who in ("south", "general", "plan-a", "agency"):
            for door in ("", "/$status", "/$events", "/_history"):
                assert (await world.get(who, f"/{place}{door}")).status_code == 404

    (place, *_) = kept
    stored = (await world.get("north", f"/{place}")).json()
    moved = stored | {"channel": stored["channel"] | {"endpoint": "http://127.0.0.1:9/elsewhere"}}
    assert_outcome(await world.ask("north", "PUT", f"/{place}", moved), 403, "forbidden")
    await world.ask("north", "DELETE", f"/{place}")
    assert_outcome(await world.ask("north", "POST", f"/{place}/$resend"), 403, "forbidden")
    assert (await world.get("north", f"/{place}")).json() == stored


async def test_the_parties_of_a_contract_ask_what_is_kept_for_it(
    world: World, receiver: Receiver
) -> None:
    """Whom it tells, and who owes that."""
    terms = {
        "id": "of-admissions",
        "title": "Admissions",
        "group": "Group/list-n",
        "recipient": "Organization/agency",
        "plan": "Organization/plan-a",
        "topics": ["encounter-admission"],
        "deadline": 24,
        "channel": {"type": "rest-hook", "endpoint": f"{receiver.url}/agency"},
    }
    contract = "http://carerelay.test/admin/contracts/of-admissions"
    answer = await world.ask("admin", "PUT", contract, terms)
    assert answer.status_code == 201, answer.text
    await settle(world)
    stay = new_id()
    await world.put("admin", encounter(stay, "pn", "general"))
    await settle(world)

    (notice,) = (each for each in receiver.events if each.path.endswith("/agency"))
    place = notice.parameter("subscription")["reference"].removeprefix(BASE)
    stored = (await world.get("agency", place)).json()
    assert stored["status"] == "active"
    for who in ("agency", "plan-a"):
        assert await world.found(who, "/Subscription") == [place.removeprefix("/")]
        assert '"valueString":"1"' in (await world.get(who, f"{place}/$status")).text
        assert f"Encounter/{stay}" in (await world.get(who, f"{place}/$events")).text
    for who in ("bureau", "plan-b", "north", "general"):
        for door in ("", "/$status", "/$events", "/_history"):
            assert (await world.get(who, f"{place}{door}")).status_code == 404
    moved = stored | {"reason": "Mine"}
    for who in ("agency", "plan-a"):
        assert_outcome(await world.ask(who, "PUT", place, moved), 403, "forbidden")
        await world.ask(who, "DELETE", place)
        assert_outcome(await world.ask(who, "POST", f"{place}/$resend"), 403, "forbidden")
    assert (await world.get("agency", place)).json() == stored


async def test_an_agency_is_told_of_the_members_of_a_list_that_it_may_not_read(
    world: World, receiver: Receiver
) -> None:
    """The list of a contract is very restricted by now; the filter is the server's own, and goes on."""
    listed = (await world.get("admin", "/Group/list-n")).json()
    await world.put("admin", {**listed, "meta": security("V")})
    terms = {
        "id": "of-a-closed-list",
        "title": "Admissions",
        "group": "Group/list-n",
        "recipient": "Organization/agency",
        "topics": ["encounter-admission"],
        "deadline": 24,
        "channel": {"type": "rest-hook", "endpoint": f"{receiver.url}/closed"},
    }
    contract = "http://carerelay.test/admin/contracts/of-a-closed-list"
    answer = await world.ask("admin", "PUT", contract, terms)
    assert answer.status_code == 201, answer.text
    await settle(world)
    assert (await world.get("agency", "/Group/list-n")).status_code == 404
    stay = new_id()
    await world.put("admin", encounter(stay, "pn", "general"))
    await settle(world)
    told = [each.focus for each in receiver.events if each.path.endswith("/closed")]
    assert [focus.rpartition("/")[2] for focus in told] == [stay]
    await world.ask("admin", "DELETE", contract)
    await world.put("admin", listed)


@pytest.mark.parametrize(
    ("origin", "owner", "who"),
    [("endpoint", "Organization/south", "south"), ("contract", "Contract/with-agency", "agency")],
)
async def test_nobody_makes_a_subscription_look_kept_for_another(
    world: World, receiver: Receiver, origin: str, owner: str, who: str
) -> None:
    tags = [
        {"system": SUBSCRIPTION_ORIGIN, "code": origin},
        {"system": SUBSCRIPTION_OWNER, "code": owner},
    ]
    body = topic_based(endpoint=receiver.url) | {"meta": {"tag": tags}}
    answer = await world.ask("north", "POST", "/Subscription", body)
    assert answer.status_code == 201, answer.text
    place = f"/Subscription/{answer.json()['id']}"
    assert (await world.get(who, place)).status_code == 404
    assert place.removeprefix("/") not in await world.found(who, "/Subscription")


async def test_no_client_joins_what_is_sent_to_an_endpoint_in_one_order(
    world: World, receiver: Receiver
) -> None:
    """Its notices would be waited for before the practice is told of anything else."""
    body = topic_based(endpoint=receiver.url) | {
        "meta": {"tag": [{"system": SUBSCRIPTION_OWNER, "code": "Organization/south"}]},
        "extension": [
            {
                "url": SUBSCRIPTION_ENDPOINT,
                "valueReference": {"reference": "Endpoint/south-door"},
            }
        ],
    }
    answer = await world.ask("north", "POST", "/Subscription", body)
    assert_outcome(answer, 403, "forbidden", "Subscription.extension")
