"""A care plan names whatever its writer likes, and the server tells its reader nothing that the writer could not read.

North, a practice, writes a plan about its own patient that names all there is of south's. Everything about south's
patient has a word in it that is nowhere else: whatever holds it tells of that patient.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from app.fhir.codes import CASE_MANAGEMENT, EPISODE_TYPE
from tests.builders.access_world import (
    World,
    condition,
    coverage,
    encounter,
    security,
    world as a_world,
)
from tests.builders.care_plans import CHANGE, REVIEW, achieved, tier, trigger, words
from tests.builders.practices import group, ref
from tests.builders.receiver import Receiver, receiving
from tests.builders.subscriptions import topic_based

pytestmark = [pytest.mark.mongo, pytest.mark.slow]
Resource = dict[str, Any]
WORD = "Quillfeather"
PHONE = "+1 555 7734"
QUIET = timedelta(seconds=900)
TEXT = {"text": WORD}
TOPICS = "http://carerelay.example/SubscriptionTopic/"
OTHERS = [
    f"{TOPICS}{each}" for each in ("encounter-admission", "case-management-status", "referral")
]
PHONES = [{"system": "phone", "value": PHONE}]


@pytest.fixture
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, test_clock=True) as found:
        yield found


def of(type_: str, id_: str, element: str = "subject", **more: Any) -> Resource:
    """Something about south's patient."""
    return {"resourceType": type_, "id": f"{id_}-s", element: ref("Patient/ps"), **more}


def goal(id_: str, who: str, text: str, **more: Any) -> Resource:
    return {
        "resourceType": "Goal",
        "id": id_,
        "lifecycleStatus": "active",
        "description": {"text": text},
        "subject": ref(f"Patient/{who}"),
        **more,
    }


def order(id_: str, who: str, text: str, **more: Any) -> Resource:
    return {
        "resourceType": "ServiceRequest",
        "id": id_,
        "status": "active",
        "intent": "plan",
        "code": {"text": text},
        "subject": ref(f"Patient/{who}"),
        **more,
    }


def of_south() -> list[Resource]:
    """What south has of its patient, a resource of every type that a plan may name."""
    shared: Resource = {"status": "active", "intent": "order"}
    return [
        of("Goal", "goal", lifecycleStatus="active", description=TEXT, target=[{"measure": TEXT}]),
        of(
            "CareTeam",
            "team",
            name=WORD,
            status="active",
            telecom=PHONES,
            participant=[{"member": ref("Patient/ps"), "role": [TEXT]}],
        ),
        of("RelatedPerson", "kin", "patient", name=[TEXT], telecom=PHONES),
        order("order-s", "ps", WORD, note=[TEXT]),
        of("MedicationRequest", "drug", **shared, medicationCodeableConcept=TEXT),
        of("Task", "task", "for", **shared, description=WORD) | {"status": "requested"},
        {
            "resourceType": "Appointment",
            "id": "visit-s",
            "status": "proposed",
            "description": WORD,
            "participant": [{"actor": ref("Patient/ps"), "status": "accepted"}],
        },
        of(
            "RiskAssessment",
            "risk",
            status="final",
            code=TEXT,
            prediction=[{"qualitativeRisk": TEXT}],
        ),
        of("Observation", "seen", status="final", code=TEXT, valueString=WORD),
        of("QuestionnaireResponse", "form", status="completed", item=[{"linkId": "1", **TEXT}]),
        of(
            "DocumentReference",
            "file",
            status="current",
            description=WORD,
            content=[{"attachment": {"title": WORD}}],
        ),
        of("CarePlan", "plan", **shared, title=WORD) | {"status": "draft"},
        of("Device", "device", "patient", deviceName=[{"name": WORD, "type": "other"}]),
        {**condition("cs", "ps"), "code": TEXT},
        {**encounter("es", "ps", "city"), "type": [TEXT], "reasonCode": [TEXT]},
        coverage("vs", "ps", "plan-b", subscriberId=WORD),
        {**tier(WORD), "id": "tier-s", "subject": ref("Patient/ps")},
        # About nobody, and so the administrator's.
        {**group("list-x", "Patient/ps"), "name": WORD},
        {"resourceType": "Task", "id": "memo", "status": "requested", "intent": "order"}
        | {"description": WORD},
    ]


def plan_of_north(*others: str, **more: Any) -> Resource:
    """A plan about north's patient that names these resources wherever a plan names any."""
    named = [ref(each) for each in others]
    return {
        "resourceType": "CarePlan",
        "id": "plan-n",
        "status": "active",
        "intent": "plan",
        "title": "North's plan",
        "subject": ref("Patient/pn"),
        "encounter": named[0] if named else ref("Encounter/en"),
        "author": named[-1] if named else ref("Practitioner/dr-n"),
        "contributor": named,
        "addresses": [ref("Condition/cn"), *named],
        "goal": [ref("Goal/goal-n"), *named],
        "careTeam": [ref("CareTeam/team-n"), *named],
        "activity": [
            {"reference": ref("ServiceRequest/order-n")},
            *({"reference": each, "outcomeReference": named} for each in named),
        ],
        "supportingInfo": named,
        "basedOn": named,
        "replaces": named,
        "partOf": named,
        **more,
    }


def of_north(*others: str) -> list[Resource]:
    """Records of north's own patient, which name these resources themselves."""
    named = [ref(each) for each in others]
    return [
        goal(
            "goal-n",
            "pn",
            "Walk",
            addresses=named,
            expressedBy=ref("Patient/ps"),
            outcomeReference=named,
            achievementStatus=achieved("in-progress"),
        ),
        {
            "resourceType": "CareTeam",
            "id": "team-n",
            "status": "active",
            "subject": ref("Patient/pn"),
            "participant": [
                {"member": each, "role": [{"coding": [{"code": "768820003"}]}]} for each in named
            ]
            + [{"member": ref("Practitioner/dr-n"), "onBehalfOf": each} for each in named],
        },
        order("order-n", "pn", "Physiotherapy", reasonReference=named, performer=named),
    ]


async def write(world: World, who: str, *resources: Resource) -> None:
    """Without the elements that name nothing: FHIR has no empty lists."""
    await world.put(who, *({k: v for k, v in each.items() if v != []} for each in resources))


def more_of_north(*others: str) -> list[Resource]:
    """What else makes the server do something: a stay, an enrolment, a referral, a risk; all of them name others."""
    named = [ref(each) for each in others]
    attending = {"coding": [{"code": "ATND"}]}
    return [
        encounter(
            "stay-n",
            "pn",
            participant=[{"type": [attending], "individual": each} for each in named],
            diagnosis=[{"condition": each} for each in named],
            location=[{"location": each} for each in named],
            serviceProvider=named[-1],
        ),
        {
            "resourceType": "EpisodeOfCare",
            "id": "episode-n",
            "status": "active",
            "type": [{"coding": [{"system": EPISODE_TYPE, "code": CASE_MANAGEMENT}]}],
            "patient": ref("Patient/pn"),
            "managingOrganization": named[-1],
            "careManager": named[-1],
            "referralRequest": named,
            "diagnosis": [{"condition": each} for each in named],
            "period": {"start": "2026-01-01"},
        },
        {**tier("high"), "id": "tier-n", "subject": ref("Patient/pn"), "author": named[-1]},
        order("referral-n", "pn", "Cardiology", intent="order", reasonReference=named)
        | {"requester": named[-1], "performer": named},
    ]


async def settle(world: World, after: timedelta = QUIET) -> None:
    await world.server.engine.drain()
    world.server.clock.advance(after)
    await world.server.engine.drain()
    await world.server.worker.drain()


async def subscribe(world: World, who: str, patient: str, receiver: Receiver, *topics: str) -> None:
    for topic in topics or (CHANGE, REVIEW):
        draft = topic_based(f"patient={patient}", endpoint=receiver.url, content="full-resource")
        answer = await world.ask(who, "POST", "/Subscription", {**draft, "criteria": topic})
        assert answer.status_code == 201, answer.text
    await world.server.worker.drain()


async def holding(world: World, *secrets: str) -> set[str]:
    """All that is stored, in any version, with one of these words in it."""
    pattern = "|".join(secrets).replace("+", r"\+")
    found = world.server.mongo.collection("versions").find({"text": {"$regex": pattern}})
    return {f"{row['_id']['t']}/{row['_id']['i']}" async for row in found}


async def test_a_plan_tells_its_writer_nothing_of_others(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    secrets = of_south()
    named = [f"{each['resourceType']}/{each['id']}" for each in secrets] + ["Patient/ps"]
    patient = (await world.get("admin", "/Patient/ps")).json()
    patient |= {"name": [{"family": WORD}], "telecom": PHONES}
    await world.put("admin", patient, *secrets)
    for each in named:
        assert (await world.get("north", f"/{each}")).status_code == 404
    async with receiving() as receiver, receiving() as elsewhere:
        # What the administrator has sent to a practice leaves the server, too.
        for who in ("north", "admin"):
            await subscribe(world, who, "Patient/pn", elsewhere, *OTHERS)
        await world.put("north", *more_of_north(*named))
        await settle(world)
        assert len({each.focus for each in elsewhere.events}) >= len(OTHERS)
        await subscribe(world, "north", "Patient/pn", receiver)
        await write(world, "north", *of_north(*named), plan_of_north(*named))
        await settle(world)
        (first,) = receiver.events
        assert trigger(first) == "created"

        # What changes of the others is no change of the plan.
        changed = [
            {
                **each,
                "note": [TEXT],
                "lifecycleStatus": "completed",
                "achievementStatus": achieved(),
            }
            for each in secrets
            if each["resourceType"] == "Goal"
        ] + [{**tier(f"{WORD} again"), "id": "tier-s", "subject": ref("Patient/ps")}]
        await world.put("south", *changed)
        await settle(world)
        assert receiver.events == [first]

        # Named no more, they are told of by what kind of thing north named.
        await write(world, "north", *of_north(), plan_of_north())
        await settle(world)
        (_, second) = receiver.events
        assert "Goal dropped: a goal." in words(second)
        assert "Condition addressed, removed: a condition." in words(second)
        await write(world, "north", *of_north(*named), plan_of_north(*named))
        await settle(world)
        await settle(world, timedelta(days=367))
        assert trigger(receiver.events[-1]) == "yearly"
        requests = (*receiver.requests, *elsewhere.requests)
        told = b"\n".join(each.body for each in requests).decode()

    asked = [
        (await world.get(who, f"/CarePlan/plan-n/{operation}")).text
        for who in ("north", "plan-a", "admin")
        for operation in ("$summary", "$changes", "$changes?_since=2020-01-01T00:00:00Z")
    ]
    assert all("Walk" in each or "parameter" in each for each in asked)
    for text in (told, caplog.text, *asked):
        assert WORD not in text
        assert PHONE not in text
    assert await holding(world, WORD, PHONE) == set(named)


async def test_a_plan_tells_its_writer_nothing_of_what_is_hidden_of_its_own_patient(
    world: World,
) -> None:
    """Naming the id of what somebody else has labelled is as naming what never was; of one's own it is told without
    what it is."""
    closed = {"meta": security("SUD")}
    hidden = [
        goal("goal-h", "pn", WORD, **closed),
        order("order-h", "pn", WORD, **closed),
        condition("condition-h", "pn", **closed),
    ]
    await world.put("general", *hidden)
    named = [f"{each['resourceType']}/{each['id']}" for each in hidden]
    async with receiving() as receiver:
        await subscribe(world, "north", "Patient/pn", receiver)
        await write(world, "north", *of_north(), plan_of_north(*named))
        await settle(world)
        await world.put("general", hidden[0] | {"lifecycleStatus": "completed"})
        await settle(world)
        assert [trigger(each) for each in receiver.events] == ["created"]
        told = receiver.events[0].body.decode()
        assert WORD not in told
        assert "confidential" not in told

        await write(world, "north", goal("goal-own", "pn", WORD, **closed))
        await write(world, "north", plan_of_north("Goal/goal-own"))
        await settle(world)
        url = "/Communication?based-on=CarePlan/plan-n&_sort=-sent&_count=1"
        (last,) = (await world.get("north", url)).json()["entry"]
        (text, *_) = last["resource"]["payload"]
        assert "(withheld: confidential)" in text["contentString"]
        assert WORD not in text["contentString"]


async def test_a_plan_that_moves_to_another_patient_begins_anew_there(world: World) -> None:
    """A mistake is put right: those who hear of the one patient learn nothing of the other."""
    await write(world, "admin", goal("goal-n", "pn", WORD), plan_of_north(careTeam=[], activity=[]))
    async with receiving() as receiver:
        await subscribe(world, "south", "Patient/ps", receiver)
        await settle(world)
        assert receiver.events == []
        plan = plan_of_north(subject=ref("Patient/ps"), careTeam=[], activity=[])
        await write(world, "admin", plan)
        await settle(world)
        (notice,) = receiver.events
        assert trigger(notice) == "created"
        assert WORD not in notice.body.decode()


async def test_whether_a_notice_lacks_names_says_nothing_of_others(world: World) -> None:
    """The review of names looks where the visit says; it must not look at others for whoever writes it."""
    who = [{"type": [{"coding": [{"code": "ATND"}]}], "individual": ref("Practitioner/dr-n")}]
    async with receiving() as receiver:
        draft = topic_based("patient=Patient/pn", endpoint=receiver.url)
        assert (await world.ask("north", "POST", "/Subscription", draft)).status_code == 201
        await world.server.worker.drain()
        for provider in ("Patient/ps", "Patient/nobody"):
            id_ = provider.partition("/")[2]
            visit = {**encounter(id_, "pn"), "participant": who, "serviceProvider": ref(provider)}
            await world.put("north", visit)
            await world.server.worker.drain()
        assert len(await receiver.wait(2)) == 2
    await settle(world, timedelta(minutes=5))
    tasks = (await world.get("north", "/Task?code=incomplete-names")).json().get("entry", ())
    asked = [each["resource"]["focus"]["reference"] for each in tasks]
    assert sorted(asked) == ["Encounter/nobody", "Encounter/ps"]


async def told_of(world: World, suffix: str) -> list[str]:
    """What north is told of a plan that names everything under ids with this suffix, and of its end."""
    named = [
        f"{each['resourceType']}/{each['id'].removesuffix('-s')}-{suffix}"
        for each in of_south()
        if each["id"].endswith("-s")
    ]
    id_ = f"plan-n{suffix}"
    for plan in (plan_of_north(*named, id=id_), plan_of_north(id=id_)):
        await write(world, "north", plan)
        await settle(world)
    summary = (await world.get("north", f"/CarePlan/{id_}/$summary")).json()
    changes = await world.get("north", f"/CarePlan/{id_}/$changes?_since=2020-01-01T00:00:00Z")
    found = (await world.get("north", f"/Communication?based-on=CarePlan/{id_}")).json()["entry"]
    sections = summary["entry"][0]["resource"]["section"]
    told = [
        *(each["text"]["div"] for each in sections),
        *(each["resource"]["payload"][0]["contentString"] for each in found),
        *(str(each) for each in changes.json()["parameter"] if each["name"] == "change"),
    ]
    assert len(found) == 2
    return sorted(each.replace(f"-{suffix}", "-?") for each in told)


async def test_hidden_gone_and_unknown_are_told_alike(world: World) -> None:
    """So that nobody learns by a plan which ids there are."""
    await write(world, "north", *of_north())
    for each in of_south():
        if each["id"].endswith("-s"):
            gone = {**each, "id": f"{each['id'].removesuffix('-s')}-g"}
            await world.put("admin", each, gone)
            await world.ask("admin", "DELETE", f"/{gone['resourceType']}/{gone['id']}")
    hidden, deleted, unknown = [await told_of(world, suffix) for suffix in ("s", "g", "x")]
    assert hidden == unknown
    assert deleted == unknown
