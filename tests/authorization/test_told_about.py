"""What the server writes of a record (Tasks, letters, proof) is told as far as that record is, as it is now.

docs/access.md, "Consent and labels"
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from app.fhir.ids import new_id
from tests.builders.access_world import World, coverage, encounter, security, world as a_world
from tests.builders.consents import actor, consent, deny, permit
from tests.builders.practices import patient, ref
from tests.builders.receiver import Receiver, receiving
from tests.builders.subscriptions import topic_based

pytestmark = pytest.mark.mongo

Resource = dict[str, Any]
TEXT = {"text": "Policy"}
KIND = {"system": "http://carerelay.example/CodeSystem/episode-type", "code": "case-management"}
OPT_IN = {"system": "http://carerelay.example/CodeSystem/consent-category", "code": KIND["code"]}
LETTER = {"criteria": "http://carerelay.example/SubscriptionTopic/letter"}


@pytest.fixture(scope="module")
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as found:
        yield found


@pytest.fixture(scope="module")
async def world(mongod: str, receiver: Receiver) -> AsyncIterator[World]:
    """North asks for what concerns its patients."""
    async with a_world(mongod, rate_limit=0) as found:
        draft = topic_based("general-practitioner=Organization/north", endpoint=receiver.url)
        for body in (draft, draft | LETTER):
            assert (await found.ask("north", "POST", "/Subscription", body)).status_code == 201
        await settle(found)
        yield found


async def settle(world: World, seconds: int = 0) -> None:
    """Let all that follows happen, and the counts be brought up to date."""
    await world.server.worker.drain()
    await world.server.engine.drain()
    if seconds:
        world.server.clock.advance(timedelta(seconds=seconds))
        await world.server.engine.drain()
    await world.server.worker.drain()


async def write(world: World, *resources: Resource) -> None:
    await world.put("admin", *resources)
    await settle(world, 31)


async def read_by(world: World, who: str, url: str) -> list[Resource]:
    found = await world.get(who, url)
    assert found.status_code == 200, found.text
    return [each["resource"] for each in found.json().get("entry", ())]


@pytest.fixture
async def member(world: World) -> str:
    """The id of a member of plan-a without a practice."""
    name = new_id()
    await write(world, patient(name), coverage(new_id(), name, "plan-a"))
    return name


def stay(name: str, who: str, *labels: str) -> Resource:
    meta = {"security": [label for each in labels for label in security(each)["security"]]}
    return encounter(name, who, "general", **({"meta": meta} if labels else {}))


def refusal(who: str, name: str, **data: Any) -> Resource:
    about = {"meaning": "instance", "reference": ref(f"Encounter/{name}")}
    refused: Resource = consent(provision=deny(data=[about], actor=actor("Organization/plan-a")))
    return refused | {"id": new_id(), "patient": ref(f"Patient/{who}"), "policyRule": TEXT}


async def unlabel(world: World, place: str, label: str) -> None:
    body = {"name": "meta", "valueMeta": security(label)}
    parameters = {"resourceType": "Parameters", "parameter": [body]}
    answer = await world.ask("admin", "POST", f"/{place}/$meta-delete", parameters)
    assert answer.status_code == 200, answer.text


async def counted(world: World, who: str, member: str) -> list[tuple[str, int]]:
    """The open Tasks that a client reads of the cause: each one's focus, and how many notices it says were not sent."""
    found = await read_by(world, who, f"/Task?patient={member}&code=no-pcp&status=requested")
    return sorted(
        (task["focus"]["reference"].removeprefix(f"Encounter/{member}-"), each["valuePositiveInt"])
        for task in found
        for each in task["input"]
        if "valuePositiveInt" in each
    )


async def told_in_versions(world: World, who: str, member: str) -> set[str]:
    """All that versions of Tasks that a client reads say of how many notices."""
    found: set[str] = set()
    for task in await read_by(world, who, f"/Task?patient={member}&code=no-pcp"):
        for each in await read_by(world, who, f"/Task/{task['id']}/_history"):
            found.add(each["description"].split(". ")[1])
    return found


async def test_a_task_counts_nothing_that_hides_from_who_reads_it(
    world: World, member: str
) -> None:
    """Labelled and refused stays have Tasks of their own; neither number nor time of theirs is told."""
    await write(world, stay(f"{member}-a", member))
    assert await counted(world, "plan-a", member) == [("a", 1)]
    before = await read_by(world, "plan-a", f"/Task?patient={member}")
    await write(
        world,
        refusal(member, f"{member}-refused"),
        stay(f"{member}-v", member, "V"),
        stay(f"{member}-psy", member, "PSY"),
        stay(f"{member}-refused", member),
    )
    assert await read_by(world, "plan-a", f"/Task?patient={member}") == before
    # An administrator reads V, the plan neither.
    assert await counted(world, "admin", member) == [("a", 1), ("psy", 1), ("refused", 1), ("v", 1)]
    await write(world, stay(f"{member}-b", member))
    assert await counted(world, "plan-a", member) == [("a", 2)]
    assert await told_in_versions(world, "plan-a", member) == {
        "One notice was not sent",
        "2 notices were not sent",
    }


async def test_a_stay_that_is_plain_has_a_task_though_a_labelled_one_came_first(
    world: World, member: str
) -> None:
    await write(world, stay(f"{member}-psy", member, "PSY"))
    assert await counted(world, "plan-a", member) == []
    await write(world, stay(f"{member}-a", member))
    assert await counted(world, "plan-a", member) == [("a", 1)]


async def test_labels_refusals_and_corrections_carry_a_stay_to_another_task(
    world: World, member: str
) -> None:
    first, second = stay(f"{member}-a", member), stay(f"{member}-b", member)
    await write(world, first)
    await write(world, second)
    assert await counted(world, "plan-a", member) == [("a", 2)]
    await world.put("admin", second | {"meta": security("PSY")})
    await settle(world)
    assert await counted(world, "plan-a", member) == [("a", 1)]
    # What an older version counted may not be seen now.
    assert await told_in_versions(world, "plan-a", member) == {"One notice was not sent"}
    assert await counted(world, "admin", member) == [("a", 1), ("b", 1)]
    await world.put("admin", first | {"meta": security("PSY")})
    await settle(world)
    assert await told_in_versions(world, "plan-a", member) == set()

    for each in (first, second):
        await unlabel(world, f"Encounter/{each['id']}", "PSY")
    await settle(world)
    assert await counted(world, "plan-a", member) == [("a", 2)]
    refused = refusal(member, f"{member}-a")
    await world.put("admin", refused)
    await settle(world)
    assert await counted(world, "plan-a", member) == [("b", 1)]
    assert await counted(world, "admin", member) == [("a", 1), ("b", 1)]
    await world.put("admin", second | {"subject": ref("Patient/ps")})
    await settle(world)
    assert await counted(world, "plan-a", member) == []

    await write(world, patient(member, ref("PractitionerRole/role-n")))
    assert await counted(world, "admin", member) == []
    asked = await read_by(world, "admin", f"/Task?patient={member}&code=no-pcp")
    assert {each["status"] for each in asked} == {"completed"}


async def test_who_made_what_is_labelled_is_asked_about_it(world: World, member: str) -> None:
    """A label is for those who do not know yet: of its own stay the plan has the Task."""
    own = {k: v for k, v in stay(f"{member}-psy", member, "PSY").items() if k != "serviceProvider"}
    await world.put("plan-a", own)
    await write(world, stay(f"{member}-other", member, "PSY"))
    assert await counted(world, "plan-a", member) == [("psy", 1)]


async def test_an_open_task_that_hides_keeps_nobody_else_from_being_asked(world: World) -> None:
    name = new_id()
    both = [ref("PractitionerRole/role-n"), ref("PractitionerRole/role-s")]
    await write(world, patient(name, *both), coverage(new_id(), name, "plan-a"))
    url = f"/Task?patient={name}&code=several-pcps&status=requested"
    await write(world, stay(f"{name}-psy", name, "PSY"))
    assert await read_by(world, "plan-a", url) == []
    for each in ("a", "b"):
        await write(world, stay(f"{name}-{each}", name))
    (task,) = await read_by(world, "plan-a", url)
    assert task["focus"] == ref(f"Encounter/{name}-a")
    assert len(await read_by(world, "admin", url)) == 2


async def test_a_stay_put_right_to_another_patient_takes_along_what_tells_of_it(
    world: World,
) -> None:
    """Whom it was told as belonging to somebody else reads its proof and its review no more."""
    name = new_id()
    await world.put("admin", encounter(name, "pn", "general"))
    await settle(world, 61)
    ended = encounter(f"{name}-c", "pn", "general") | {"status": "cancelled"}
    await world.put("admin", ended)
    await settle(world)
    (task,) = await read_by(world, "north", f"/Task?focus=Encounter/{name}-c")
    (proof,) = await read_by(world, "north", f"/Communication?encounter=Encounter/{name}")
    places = (f"Task/{task['id']}", f"Communication/{proof['id']}")
    for who in ("north", "plan-a"):
        assert {(await world.get(who, f"/{each}")).status_code for each in places} == {200}
    moved = {"subject": ref("Patient/ps")}
    await world.put("admin", ended | moved, encounter(name, "pn", "general") | moved)
    for who in ("north", "plan-a", "south", "plan-b"):
        for place in places:
            for door in (place, f"{place}/_history/1", f"{place}/_history"):
                assert (await world.get(who, f"/{door}")).status_code == 404, (who, door)
            type_, _, id_ = place.partition("/")
            for query in (f"_id={id_}", "patient=pn" if type_ == "Task" else "subject=Patient/pn"):
                assert place not in await world.found(who, f"/{type_}?{query}&_count=200")
            assert place not in await world.found(who, f"/{type_}/_history?_count=200")
    assert (await world.get("admin", f"/{places[0]}")).status_code == 200


async def test_a_clients_own_task_tells_it_nothing_of_others_records(world: World) -> None:
    """It is there whether what it names is somebody else's, is labelled besides, or never was."""
    labelled, code = new_id(), "http://carerelay.example/CodeSystem/review-reason"
    await write(world, encounter(labelled, "ps", "city", meta=security("PSY")))
    for guess in ("es", labelled, "never-was"):
        task = {
            "resourceType": "Task",
            "id": new_id(),
            "status": "requested",
            "intent": "order",
            "code": {"coding": [{"system": code, "code": "incomplete-names"}]},
            "for": ref("Patient/pn"),
            "focus": ref(f"Encounter/{guess}"),
        }
        await world.put("plan-a", task)
        assert (await world.get("plan-a", f"/Task/{task['id']}")).status_code == 200


def enrolment(name: str, *labels: str) -> Resource:
    return {
        "resourceType": "EpisodeOfCare",
        "id": name,
        "status": "active",
        "patient": ref("Patient/pn"),
        "type": [{"coding": [KIND]}],
        "period": {"start": "2026-01-01"},
        "managingOrganization": ref("Organization/plan-a"),
        **({"meta": security(labels[0])} if labels else {}),
    }


def opt_in(name: str, *labels: str) -> Resource:
    given = consent(provision=permit()) | {"id": name, "policyRule": TEXT}
    return {
        **given,
        "patient": ref("Patient/pn"),
        "category": [{"coding": [OPT_IN]}],
        **({"meta": security(labels[0])} if labels else {}),
    }


@pytest.mark.parametrize("make", [enrolment, opt_in])
async def test_a_letter_is_told_as_far_as_what_it_is_about(
    world: World, receiver: Receiver, make: Any
) -> None:
    """Pushed and read; labelled from the beginning, and labelled later."""
    for labels in ((), ("PSY",)):
        name = new_id()
        about = make(name, *labels)
        letters = f"/Communication?about={about['resourceType']}/{name}"
        await world.put("admin" if make is opt_in else "plan-a", about)
        await settle(world)
        try:
            sent = [each.focus.rpartition("/")[2] for each in receiver.events]
            (to_practice,) = [
                each
                for each in await read_by(world, "admin", letters)
                if each["recipient"] == [ref("PractitionerRole/role-n")]
            ]
            assert (to_practice["id"] in sent) == (not labels)
            assert len(await read_by(world, "north", letters)) == (0 if labels else 2)
            # It prints the letters about what it has made itself.
            own = 2 if make is enrolment or not labels else 0
            assert len(await read_by(world, "plan-a", letters)) == own
            if not labels:
                await world.put("admin", make(name, "PSY"))
                place = f"/Communication/{to_practice['id']}"
                for door in (place, f"{place}/_history", f"{place}/_history/1"):
                    assert (await world.get("north", door)).status_code == 404
                assert await read_by(world, "north", letters) == []
        finally:
            await world.ask("admin", "DELETE", f"/{about['resourceType']}/{name}")
