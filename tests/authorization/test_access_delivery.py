"""Whose notices are whose: rights when a Subscription is made, and again whenever something is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.fhir.codes import RECIPIENT_KIND
from app.fhir.ids import new_id
from tests.builders.access_world import World, condition, encounter, security, world as a_world
from tests.builders.practices import patient, ref
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import classic, topic_based
from tests.builders.topic_listener import FEED
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
FOCI = "Encounter?status=in-progress"


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod) as found:
        yield found


@pytest.fixture(autouse=True)
async def _no_others(world: World) -> AsyncIterator[None]:
    yield
    await world.end_subscriptions()


async def rows(world: World, subscription: str) -> list[tuple[str, str | None]]:
    found = world.server.mongo.collection("deliveries").find({"subscription": subscription})
    return [(row["state"], row.get("reason")) for row in await found.sort("_id", 1).to_list(None)]


@pytest.mark.parametrize(
    ("scopes", "missing"),
    [
        pytest.param("system/Encounter.rs", "system/Subscription.c", id="subscription"),
        pytest.param("system/Subscription.cru", "system/Encounter.r", id="what-it-is-about"),
    ],
)
@pytest.mark.parametrize("body", [classic(FOCI), topic_based()], ids=["classic", "topic"])
async def test_a_subscription_needs_the_right_to_read_what_it_tells(
    world: World, scopes: str, missing: str, body: dict[str, Any]
) -> None:
    answer = await world.ask("north", "POST", "/Subscription", body, scopes=scopes)
    outcome = assert_outcome(answer, 403, "forbidden")
    assert missing in outcome["issue"][0]["diagnostics"]


@pytest.mark.parametrize(
    "criteria",
    [
        "Encounter?patient.family=Familys",
        "Encounter?subject:Patient._has:Condition:patient:code=c",
        "Encounter?_has:Condition:encounter:code=c",
    ],
)
async def test_criteria_lead_through_nothing_that_may_be_hidden(
    world: World, criteria: str
) -> None:
    answer = await world.ask("north", "POST", "/Subscription", classic(criteria))
    assert_outcome(answer, 403, "forbidden")
    draft = {"name": "subscription", "resource": classic(criteria)}
    body = {"resourceType": "Parameters", "parameter": [draft]}
    assert_outcome(
        await world.ask("north", "POST", "/Subscription/$dry-run", body), 403, "forbidden"
    )
    through_all = classic("Encounter?service-provider.name=x")
    assert (await world.ask("north", "POST", "/Subscription", through_all)).status_code == 201


@pytest.mark.parametrize("who", ["north", "general", "plan-a", "agency"])
async def test_nobody_calls_itself_an_authority(world: World, who: str) -> None:
    body = {**topic_based(), "extension": [{"url": RECIPIENT_KIND, "valueCode": "authority"}]}
    answer = await world.ask(who, "POST", "/Subscription", body)
    assert_outcome(answer, 403, "forbidden", "Subscription.extension")
    assert (await world.ask("admin", "POST", "/Subscription", body)).status_code == 201


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classic", "id-only", "full-resource"])
async def test_everybody_is_told_of_their_own(world: World, receiver: Receiver, kind: str) -> None:
    own = {}
    for who in ("north", "south", "general", "city", "plan-a", "plan-b", "agency", "bureau"):
        url = f"{receiver.url}/{who}"
        body = (
            classic(FOCI, url, payload="application/fhir+json")
            if kind == "classic"
            else topic_based(endpoint=url, content=kind)
        )
        own[who] = await world.subscribe(who, body)
    receiver.requests.clear()
    name = new_id()
    await world.write(encounter(name, "pn", "general"))
    told = {request.path for request in receiver.requests}
    expected = {"north", "general", "plan-a", "agency"}
    assert {path.split("/")[1] for path in told} == expected
    for who, subscription in own.items():
        state = ("delivered", None) if who in expected else ("suppressed", "Withheld: access")
        assert await rows(world, subscription) == [state], who


async def test_the_rights_that_count_are_those_of_the_moment(
    world: World, receiver: Receiver
) -> None:
    registered = world.authority.known["north"]
    subscription = await world.subscribe("north", topic_based(endpoint=receiver.url))
    steps: list[tuple[str, Any, str]] = [
        ("scopes", ("system/*.cruds",), "delivered"),
        ("scopes", ("system/Subscription.cruds", "system/Patient.rs"), "suppressed"),
        ("scopes", ("system/*.cruds",), "delivered"),
        ("disabled", True, "suppressed"),
        ("disabled", False, "delivered"),
        ("organization", "Organization/south", "suppressed"),
        ("organization", "Organization/north", "delivered"),
    ]
    for name, value, _ in steps:
        setattr(registered, name, value)
        await world.write(encounter(new_id(), "pn", "general"))
    states = [state for state, _ in await rows(world, subscription)]
    assert states == [expected for _, _, expected in steps]
    assert [notice.number for notice in receiver.events] == [1, 2, 3, 4]


async def test_the_scopes_of_the_token_that_made_it_remain_a_limit(
    world: World, receiver: Receiver
) -> None:
    narrow = "system/Subscription.cr system/Encounter.r?class=IMP"
    body = classic(FOCI, receiver.url)
    subscription = await world.subscribe("north", body, scopes=narrow)
    other = {"class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"}}
    await world.write(encounter(new_id(), "pn"), encounter(new_id(), "pn") | other)
    assert sorted(state for state, _ in await rows(world, subscription)) == [
        "delivered",
        "suppressed",
    ]


@pytest.mark.slow
async def test_who_is_reassigned_or_labelled_is_no_longer_told_of(
    world: World, receiver: Receiver
) -> None:
    name = new_id()
    subscription = await world.subscribe("north", topic_based(endpoint=receiver.url))
    await world.write(patient(name, ref("PractitionerRole/role-n")), encounter(new_id(), name))
    await world.write(encounter(new_id(), name, meta=security("V")))
    await world.write(patient(name, ref("PractitionerRole/role-s")), encounter(new_id(), name))
    assert [state for state, _ in await rows(world, subscription)] == [
        "delivered",
        "suppressed",
        "suppressed",
    ]


async def test_nothing_hidden_travels_along(world: World, receiver: Receiver) -> None:
    """The patient's record and a diagnosis are labelled: what refers to them may be seen, they may not."""
    name = new_id()
    labelled = patient(name, ref("PractitionerRole/role-n"), meta=security("R"))
    await world.write(
        labelled | {"name": [{"family": "Unspoken"}]},
        condition(f"c-{name}", name, meta=security("R")),
    )
    for content in ("id-only", "full-resource"):
        await world.subscribe("north", topic_based(endpoint=receiver.url, content=content))
    receiver.requests.clear()
    stay = encounter(
        new_id(),
        name,
        "general",
        participant=[{"individual": ref("Practitioner/dr-n")}],
        diagnosis=[{"condition": ref(f"Condition/c-{name}")}],
    )
    await world.write(stay)
    assert len(receiver.events) == 2
    for notice in receiver.events:
        carried = " ".join(each.get("fullUrl", "") for each in notice.json["entry"])
        assert f"Patient/{name}" not in carried
        assert f"Patient/{name}" not in str(notice.json["entry"][0])
        assert "Unspoken" not in str(notice.json)
        assert "Broken heart" not in str(notice.json)
    (whole,) = (
        found
        for notice in receiver.events
        for each in notice.json["entry"]
        if (found := each.get("resource", {})).get("resourceType") == "Encounter"
    )
    assert whole["participant"][0]["individual"]["display"] == "dr-n"
    assert whole["serviceProvider"]["display"] == "Practice general"
    assert "display" not in whole["subject"]


@pytest.mark.parametrize(
    ("scopes", "names"),
    [
        pytest.param("*", ["Familyn", "Practice general"], id="all"),
        pytest.param("Encounter Organization", [None, "Practice general"], id="no-patients"),
        pytest.param("Encounter Patient", ["Familyn", None], id="no-organizations"),
    ],
)
async def test_a_notice_names_whom_its_owner_may_read(
    world: World, receiver: Receiver, scopes: str, names: list[str | None]
) -> None:
    """US Core's feed has nothing beside the visit: its names are all that is told of others."""
    filter_ = "Encounter?patient=Patient/pn"
    asked = topic_based(filter_, endpoint=receiver.url, content="full-resource")
    await world.subscribe("north", asked | {"criteria": FEED})
    receiver.requests.clear()
    registered = world.authority.known["north"]
    before, registered.scopes = (
        registered.scopes,
        ("system/Subscription.cruds", *(f"system/{each}.cruds" for each in scopes.split())),
    )
    try:
        await world.write(encounter(new_id(), "pn", "general"))
    finally:
        registered.scopes = before
    (notice,) = receiver.events
    (focus,) = (each["resource"] for each in notice.json["entry"][1:])
    assert [focus[each].get("display") for each in ("subject", "serviceProvider")] == names


async def test_subscriptions_are_ones_own(world: World, receiver: Receiver) -> None:
    subscription = await world.subscribe("north", topic_based(endpoint=receiver.url))
    await world.write(encounter(new_id(), "pn", "general"))
    place = f"/Subscription/{subscription}"
    assert (await world.get("north", place)).status_code == 200
    assert (await world.get("north", f"{place}/$events")).status_code == 200
    for who in ("south", "general", "plan-a", "agency"):
        for door in ("", "/$status", "/$events", "/_history", "/_history/1"):
            assert (await world.get(who, place + door)).status_code == 404, door
        assert await world.found(who, "/Subscription") == []
        body = topic_based(endpoint=receiver.url) | {"id": subscription}
        assert_outcome(await world.ask(who, "PUT", place, body), 403, "forbidden")
        token = {
            "resourceType": "Parameters",
            "parameter": [{"name": "id", "valueId": subscription}],
        }
        answer = await world.ask(who, "POST", "/Subscription/$get-ws-binding-token", token)
        assert answer.status_code == 404
        explained = await world.get(who, f"{place}/$explain?reference=Encounter/en")
        assert explained.status_code == 404


@pytest.mark.slow
async def test_events_that_may_no_longer_be_seen_are_told_as_numbers(
    world: World, receiver: Receiver
) -> None:
    name = new_id()
    await world.write(patient(name, ref("PractitionerRole/role-n")))
    subscription = await world.subscribe("north", topic_based(endpoint=receiver.url))
    await world.write(encounter(name, name))
    events = f"/Subscription/{subscription}/$events"
    assert f"Encounter/{name}" in (await world.get("north", events)).text
    await world.write(patient(name, ref("PractitionerRole/role-s")))
    answer = await world.get("north", events)
    assert answer.status_code == 200
    assert f"Encounter/{name}" not in answer.text
    assert '"event-number"' in answer.text


async def test_a_dry_run_and_an_explanation_show_ones_own(world: World) -> None:
    draft = {"name": "subscription", "resource": classic(FOCI)}
    body = {"resourceType": "Parameters", "parameter": [draft]}
    answer = await world.ask("north", "POST", "/Subscription/$dry-run", body)
    assert "Encounter/en/" in answer.text
    assert "Encounter/es/" not in answer.text
    subscription = await world.subscribe("north", classic("Condition?code=c"))
    await world.write(condition("cs", "ps"))
    explained = f"/Subscription/{subscription}/$explain?reference=Condition/"
    assert (await world.get("north", explained + "cs")).status_code == 404
    assert (await world.get("north", explained + "cn")).status_code == 200


@pytest.mark.slow
async def test_an_administrator_who_changes_a_subscription_does_not_widen_it(
    world: World, receiver: Receiver
) -> None:
    subscription = await world.subscribe("north", topic_based(endpoint=receiver.url))
    body = topic_based(endpoint=receiver.url) | {"id": subscription, "reason": "Changed"}
    await world.put("admin", body)
    await world.server.worker.drain()
    await world.write(encounter(new_id(), "ps", "city"), encounter(new_id(), "pn", "general"))
    assert sorted(state for state, _ in await rows(world, subscription)) == [
        "delivered",
        "suppressed",
    ]
    assert (await world.get("north", f"/Subscription/{subscription}")).status_code == 200
