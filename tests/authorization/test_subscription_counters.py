"""What a Subscription's owner may not see is no event of it: no number, no row, no heartbeat, nothing to count."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.fhir.ids import new_id
from tests.builders.access_world import (
    CLIENTS,
    Authority,
    Registered,
    Resource,
    World,
    condition,
    coverage,
    designated,
    encounter,
    world as a_world,
)
from tests.builders.consents import consent, deny
from tests.builders.deliveries import make_due
from tests.builders.practices import patient, ref
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import classic, topic_based
from tests.conftest import running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo
ROOT = "http://carerelay.test"


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    """Nobody is told after all of what an earlier test has left untold."""
    async with a_world(mongod, publish_notices=False, unrouted=False) as found:
        yield found


@pytest.fixture(autouse=True)
async def _no_others(world: World) -> AsyncIterator[None]:
    yield
    await world.end_subscriptions()


async def count(world: World, who: str, subscription: str) -> int:
    """What `$status` counts."""
    answer = await world.get(who, f"/Subscription/{subscription}/$status")
    (entry,) = answer.json()["entry"]
    parts = {each["name"]: each for each in entry["resource"]["parameter"]}
    return int(parts["events-since-subscription-start"]["valueString"])


async def events(world: World, who: str, subscription: str) -> list[tuple[int, str | None]]:
    """Number and focus of all that `$events` tells."""
    answer = await world.get(who, f"/Subscription/{subscription}/$events")
    assert answer.status_code == 200, answer.text
    told = []
    for each in answer.json()["entry"][0]["resource"]["parameter"]:
        if each["name"] == "notification-event":
            parts = {part["name"]: part for part in each["part"]}
            focus = parts.get("focus", {}).get("valueReference", {}).get("reference")
            told.append((int(parts["event-number"]["valueString"]), focus))
    return told


async def deliveries(world: World, subscription: str) -> list[dict[str, Any]]:
    """The ledger as its operator reads it, the oldest first."""
    url = f"{ROOT}/admin/deliveries"
    answer = await world.get("admin", url, params={"subscription": subscription})
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["deliveries"]
    return sorted(found, key=lambda row: str(row["id"]))


async def test_a_question_about_somebody_elses_patient_counts_nothing(
    world: World, receiver: Receiver
) -> None:
    """Each of these would be answered by a counter that moves, or does not."""
    questions = [
        await world.subscribe("north", classic(f"{of}patient=ps", receiver.url))
        for of in ("Condition?code=c&", "Encounter?")
    ]
    questions.append(await world.subscribe("north", topic_based(endpoint=receiver.url)))
    receiver.requests.clear()
    await world.write(condition(new_id(), "ps"), encounter(new_id(), "ps", "city"))
    assert [await count(world, "north", each) for each in questions] == [0, 0, 0]
    assert await events(world, "north", questions[2]) == []
    assert receiver.requests == []
    for each in questions:
        (row,) = await deliveries(world, each)
        assert (row["state"], row["reason"]) == ("suppressed", "Withheld: access")
        assert "number" not in row

    own = new_id()
    await world.write(encounter(own, "pn", "general"))
    (notice,) = await receiver.wait(1)
    assert notice.number == 1
    ((number, focus),) = await events(world, "north", questions[2])
    assert (number, (focus or "").endswith(f"/Encounter/{own}")) == (1, True)


async def test_a_group_filter_tells_nobody_who_is_a_member(
    world: World, receiver: Receiver
) -> None:
    """A Group that its owner may not read is refused like one that never was, and what it becomes counts nothing."""
    hidden, own = new_id(), new_id()
    await world.write(designated(hidden, "plan-b", "pn"), designated(own, "plan-a", "pn"))
    about = {
        name: topic_based(f"group=Group/{name}", endpoint=receiver.url)
        for name in (hidden, own, "never-was")
    }
    drafts = {
        name: {
            "resourceType": "Parameters",
            "parameter": [{"name": "subscription", "resource": each}],
        }
        for name, each in about.items()
    }
    for url, bodies in (("/Subscription", about), ("/Subscription/$dry-run", drafts)):
        answers = [await world.ask("plan-a", "POST", url, bodies[n]) for n in (hidden, "never-was")]
        for answer in answers:
            assert_outcome(answer, 403, "forbidden", "Subscription.criteria")
        assert answers[0].json() == answers[1].json()
    answer = await world.ask("plan-a", "POST", "/Subscription/$dry-run", drafts[own])
    assert answer.status_code == 200, answer.text

    subscription = await world.subscribe("plan-a", about[own])
    stay = new_id()
    await world.write(encounter(stay, "pn", "general"))
    assert await count(world, "plan-a", subscription) == 1
    explained = f"/Subscription/{subscription}/$explain?reference=Encounter/{stay}"
    assert '"matches"' in (await world.get("plan-a", explained)).text
    await world.write(designated(own, "plan-b", "pn"), encounter(new_id(), "pn", "general"))
    assert await count(world, "plan-a", subscription) == 1
    assert_outcome(await world.get("plan-a", explained), 403, "forbidden", "Subscription.criteria")


async def test_neither_heartbeat_nor_explanation_tells_of_it(
    world: World, receiver: Receiver
) -> None:
    subscription = await world.subscribe("north", topic_based(endpoint=receiver.url, heartbeat=60))
    states = world.server.mongo.collection("subscription_state")
    before = await states.find_one({"_id": subscription})
    foreign = new_id()
    await world.write(encounter(foreign, "ps", "city"))
    assert await states.find_one({"_id": subscription}) == before
    explained = f"/Subscription/{subscription}/$explain?reference=Encounter/"
    answer = await world.get("north", explained + foreign)
    never_was = await world.get("north", explained + new_id())
    assert (answer.status_code, answer.text) == (404, never_was.text)


async def test_what_was_no_event_becomes_none_by_rights_that_come_later(
    world: World, receiver: Receiver
) -> None:
    name, stay = new_id(), new_id()
    subscription = await world.subscribe("north", topic_based(endpoint=receiver.url))
    await world.write(patient(name, ref("PractitionerRole/role-s")), encounter(stay, name))
    (row,) = await deliveries(world, subscription)
    await world.write(patient(name, ref("PractitionerRole/role-n")))
    receiver.requests.clear()
    resend = f"{ROOT}/admin/deliveries/{row['id']}/resend"
    assert_outcome(await world.ask("admin", "POST", resend), 409, "conflict")
    everything = {"subscription": subscription}
    answer = await world.ask("admin", "POST", f"{ROOT}/admin/deliveries/resend", params=everything)
    assert answer.json() == {"resent": 0, "skipped": 0}
    await world.server.worker.drain()
    assert receiver.requests == []
    assert await count(world, "north", subscription) == 0
    # Its owner may see the stay by now, and is told why there was no notice.
    explained = f"/Subscription/{subscription}/$explain?reference=Encounter/{stay}"
    answer = await world.get("north", explained)
    assert "It is no event of this Subscription: Withheld: access" in answer.text
    assert '"event-number"' not in answer.text


async def test_what_consent_withholds_is_no_event_and_what_it_withholds_later_keeps_its_number(
    world: World, receiver: Receiver
) -> None:
    name = new_id()
    subscription = await world.subscribe("north", topic_based(endpoint=receiver.url))
    await world.write(patient(name, ref("PractitionerRole/role-n")), encounter(new_id(), name))
    refusal = consent("pcp-notification", provision=deny()) | {"id": new_id()}
    refusal |= {"patient": ref(f"Patient/{name}"), "policyRule": {"text": "Policy"}}
    await world.write(refusal, encounter(new_id(), name))
    assert await count(world, "north", subscription) == 1
    assert await events(world, "north", subscription) == [(1, None)]
    states = [(row.get("number"), row["state"]) for row in await deliveries(world, subscription)]
    assert states == [(1, "delivered"), (None, "suppressed")]


async def test_a_patient_who_comes_with_the_stay_is_told_of(
    world: World, receiver: Receiver
) -> None:
    """A plan enrols somebody, and their stay is told, in one transaction."""
    subscription = await world.subscribe("north", topic_based(endpoint=receiver.url))
    name = new_id()
    resources = [
        encounter(new_id(), name),
        coverage(new_id(), name, "plan-a"),
        patient(name, ref("PractitionerRole/role-n")),
    ]
    entries = [
        {
            "resource": each,
            "request": {"method": "PUT", "url": f"{each['resourceType']}/{each['id']}"},
        }
        for each in resources
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    answer = await world.ask("plan-a", "POST", "", bundle)
    assert answer.status_code == 200, answer.text
    await world.server.worker.drain()
    assert len(await events(world, "north", subscription)) == 1


async def test_a_notice_that_waits_finds_the_practice_of_now(
    world: World, receiver: Receiver
) -> None:
    """Whom the old practice may not see any more, the new one is told of."""
    name = new_id()
    receiver.answers([503])
    panels = {
        who: await world.subscribe(
            who,
            topic_based(f"general-practitioner=Organization/{who}", endpoint=receiver.url),
        )
        for who in ("north", "south")
    }
    await world.write(patient(name, ref("PractitionerRole/role-n")), encounter(new_id(), name))
    await world.write(patient(name, ref("PractitionerRole/role-s")))
    await make_due(world.server.mongo)
    await world.server.worker.run_once()
    await world.server.worker.drain()
    told = {who: await deliveries(world, each) for who, each in panels.items()}
    assert [(row["state"], row.get("reason")) for row in told["north"]] == [
        ("suppressed", "The patient is no longer the recipient's")
    ]
    assert [(row["number"], row["state"]) for row in told["south"]] == [(1, "delivered")]


async def test_nobody_is_refused_by_what_another_process_has_changed_meanwhile(
    world: World, receiver: Receiver
) -> None:
    """This process remembers for a second that the patient is not north's; another one has made it so since."""
    name = new_id()
    subscription = await world.subscribe("north", topic_based(endpoint=receiver.url))
    await world.write(patient(name, ref("PractitionerRole/role-s")))
    known = Authority({each: Registered(of.organization, of.role) for each, of in CLIENTS.items()})
    async with running(world.server.settings, known) as (server, client):
        elsewhere = World(server, client, known)
        assert (await world.get("north", f"/Patient/{name}")).status_code == 404
        await elsewhere.put("admin", patient(name, ref("PractitionerRole/role-n")))
        await world.write(encounter(new_id(), name, "general"))
        assert await count(world, "north", subscription) == 1


async def test_an_older_version_is_not_refused_by_what_was_read_of_a_newer_ones_patient(
    world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record has become another patient's before its first version is judged, and north's own meanwhile."""
    name, record = new_id(), new_id()
    subscription = await world.subscribe("north", classic("Condition?", receiver.url))
    await world.write(patient(name, ref("PractitionerRole/role-s")))
    get = Authority.get

    async def failing(self: Authority, client_id: str) -> Registered | None:
        if client_id == "north":
            raise RuntimeError
        return await get(self, client_id)

    known = Authority({each: Registered(of.organization, of.role) for each, of in CLIENTS.items()})
    async with running(world.server.settings, known) as (server, client):
        elsewhere = World(server, client, known)
        with (
            monkeypatch.context() as broken
        ):  # until then nothing is decided, however long it takes
            broken.setattr(Authority, "get", failing)
            await world.write(condition(record, "pn"), condition(record, name))
            assert (await world.get("north", f"/Patient/{name}")).status_code == 404
            await elsewhere.put("admin", patient(name, ref("PractitionerRole/role-n")))
        params = {"subscription": subscription}
        await world.ask("admin", "POST", f"{ROOT}/admin/events/replay", params=params)
        assert await count(world, "north", subscription) == 2


async def test_rights_that_cannot_be_judged_are_not_taken_for_refused(
    world: World, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is set aside for that Subscription alone, later versions wait behind it, and both are told in order."""
    mine = await world.subscribe("north", classic("Encounter?patient=pn", receiver.url))
    theirs = await world.subscribe("agency", classic("Encounter?patient=pn", receiver.url))
    stay = encounter(new_id(), "pn", "general")
    get = Authority.get

    async def failing(self: Authority, client_id: str) -> Registered | None:
        if client_id == "north":
            raise RuntimeError
        return await get(self, client_id)

    with monkeypatch.context() as broken:
        broken.setattr(Authority, "get", failing)
        await world.put("general", stay)
        await world.put("general", stay | {"priority": {"text": "urgent"}})
        await world.server.worker.drain()
        assert await deliveries(world, mine) == []
        assert [row["number"] for row in await deliveries(world, theirs)] == [1, 2]
    unmatched = world.server.mongo.collection("unmatched")
    waiting = await unmatched.find({"judge": f"Subscription/{mine}"}).to_list(None)
    assert {row["focus"]["version"]: row["behind"] for row in waiting} == {1: False, 2: True}
    answer = await world.ask("admin", "POST", f"{ROOT}/admin/events/replay?all=true")
    assert answer.json()["unmatched"] == 0
    await world.server.worker.drain()
    told = [(row["number"], row["focus"]) for row in await deliveries(world, mine)]
    assert told == [(version, f"Encounter/{stay['id']}/_history/{version}") for version in (1, 2)]


async def test_a_filter_leads_to_nothing_of_somebody_else(world: World, receiver: Receiver) -> None:
    """A Task of one's own may name whatever its writer likes; the counter must not tell what that says."""

    def request(id_: str, about: str) -> Resource:
        return {
            **condition(id_, about),
            "resourceType": "ServiceRequest",
            "status": "draft",
            "intent": "order",
            "category": [{"coding": [{"system": "urn:test", "code": "asked-for"}]}],
        }

    def task(focus: str) -> Resource:
        return {
            "resourceType": "Task",
            "id": new_id(),
            "status": "requested",
            "intent": "order",
            "for": ref("Patient/pn"),
            "focus": ref(f"ServiceRequest/{focus}"),
            "owner": ref("Organization/north"),
        }

    own, foreign = new_id(), new_id()
    await world.write(request(own, "pn"), request(foreign, "ps"))
    asking = topic_based("Task?category=urn:test|asked-for", endpoint=receiver.url)
    asking["criteria"] = asking["criteria"].replace("encounter-admission", "referral")
    subscription = await world.subscribe("north", asking)
    for focus, counted in ((foreign, 0), (own, 1)):
        await world.put("north", task(focus))
        await world.server.worker.drain()
        assert await count(world, "north", subscription) == counted
