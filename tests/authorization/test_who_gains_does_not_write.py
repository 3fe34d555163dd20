"""Nobody makes a patient its own, keeps one, or speaks for another, by what it writes: whose patient somebody is, is
written by others than who gains by it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import httpx
import pytest

from app.authentication.caller import Caller
from app.authorization.restricted_store import RestrictedStore
from app.fhir.codes import EVENT_TIME, REVIEW_REASON
from app.fhir.ids import new_id
from app.records.versions import Change, VersionConflict
from tests.authorization.access_records import bundle, entry
from tests.builders.access_world import (
    EVERYTHING,
    Registered,
    World,
    condition,
    contract,
    coverage,
    designated,
    encounter,
    world as a_world,
)
from tests.builders.practices import (
    PAST,
    YESTERDAY,
    care_team,
    endpoint,
    organization,
    panel,
    patient,
    practitioner,
    ref,
    role,
)
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

Resource = dict[str, Any]
JSON_PATCH = {"Content-Type": "application/json-patch+json"}
NORTHS = ref("PractitionerRole/role-n")
SOUTHS = ref("PractitionerRole/role-s")


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod) as found:
        yield found


async def pcp(world: World, who: str, name: str) -> list[str]:
    """The practitioners and organizations that `$pcp` tells."""
    answer = await world.get(who, f"/Patient/{name}/$pcp")
    assert answer.status_code == 200, answer.text
    return [
        part["valueReference"]["reference"]
        for each in answer.json().get("parameter", ())
        for part in each.get("part", ())
        if part["name"] in ("practitioner", "organization")
    ]


async def refused_by_every_door(
    world: World, who: str, before: Resource, after: Resource
) -> list[httpx.Response]:
    """What a client is answered that changes one resource into another, by each door of an update."""
    type_, id_ = before["resourceType"], before["id"]
    url = f"{type_}/{id_}"
    patch = [{"op": "remove", "path": f"/{key}"} for key in before.keys() - after.keys()]
    patch += [
        {"op": "add", "path": f"/{key}", "value": value}
        for key, value in after.items()
        if before.get(key) != value
    ]
    found = [
        await world.ask(who, "PUT", f"/{url}", after),
        await world.ask(who, "PUT", f"/{type_}?_id={id_}", after),
        await world.ask(who, "PATCH", f"/{url}", patch, headers=JSON_PATCH),
        await world.ask(who, "POST", "/", bundle("transaction", entry("PUT", url, after))),
    ]
    assert [each.status_code for each in found] == [403] * 4, [each.text for each in found]
    return found


# The yearly review of a care plan


@pytest.mark.slow
async def test_a_plan_acknowledges_nothing_for_the_practice(mongod: str) -> None:
    name = "reviewed"
    review = {"status": "active", "intent": "plan", "subject": ref(f"Patient/{name}")}
    async with a_world(mongod, test_clock=True, plan_quiet_period=0) as world:

        async def years_later(*answers: tuple[str, Resource]) -> list[str]:
            """What has been told of the plan once these have answered the last notice and a year has passed."""
            await world.server.engine.drain()
            last = ref((await told())[0])
            for who, given in answers:
                is_task = given["resourceType"] == "Task"
                about: Resource = {"focus": last} if is_task else {"about": [last]}
                await world.put(who, given | about)
            world.server.clock.advance(timedelta(days=366))
            await world.server.engine.drain()
            return await told()

        async def told() -> list[str]:
            """The Communications of the notices, the last one first."""
            url = f"/Communication?based-on=CarePlan/{name}&_sort=-sent"
            entries = (await world.get("admin", url)).json()["entry"]
            return [f"Communication/{each['resource']['id']}" for each in entries]

        def answer(id_: str, who: str) -> Resource:
            known = {"subject": ref(f"Patient/{name}"), "sender": ref(who)}
            return {"resourceType": "Communication", "id": id_, "status": "completed", **known}

        def task(id_: str) -> Resource:
            known = {"intent": "order", "for": ref(f"Patient/{name}")}
            return {"resourceType": "Task", "id": id_, "status": "completed", **known}

        await world.put("admin", patient(name, NORTHS), coverage(name, name, "plan-a"))
        await world.put("plan-a", {"resourceType": "CarePlan", "id": name, **review})
        of_the_plan = (
            answer("in-its-name", "Practitioner/dr-n"),
            answer("its-own", "Organization/plan-a"),
            task("done"),
        )
        assert len(await years_later(*(("plan-a", each) for each in of_the_plan))) == 2
        assert len(await years_later(("north", answer("own", "Organization/north")))) == 2


# The care team of a former practice


async def test_a_former_practice_s_care_team_keeps_no_patient(world: World) -> None:
    name = new_id()
    await world.put("admin", patient(name, NORTHS), coverage(name, name, "plan-a"))
    await world.put("north", care_team(name, name, "PractitionerRole/role-n"))
    await world.put("plan-a", patient(name, SOUTHS))
    assert (await world.get("north", f"/Patient/{name}")).status_code == 404
    assert (await world.get("south", f"/Patient/{name}")).status_code == 200
    assert await pcp(world, "south", name) == ["Practitioner/dr-s", "Organization/south"]


async def test_a_former_practice_does_not_end_its_successor(world: World) -> None:
    """An entry of its care team about the practice that comes next takes nothing from that one."""
    name = new_id()
    await world.put("admin", patient(name, NORTHS))
    ended = care_team(name, name, "PractitionerRole/role-s")
    ended["participant"][0]["period"] = {"start": PAST, "end": YESTERDAY}
    await world.put("north", ended)
    await world.put("admin", patient(name, SOUTHS))
    assert (await world.get("south", f"/Patient/{name}")).status_code == 200


async def test_a_practice_says_who_of_its_staff_it_is(world: World) -> None:
    name = new_id()
    other = f"dr-{name}"
    await world.put("admin", patient(name, NORTHS))
    await world.put("admin", practitioner(other), role(other, other, "north"))
    await world.put("north", care_team(name, name, f"PractitionerRole/{other}"))
    assert await pcp(world, "north", name) == [f"Practitioner/{other}", "Organization/north"]
    await world.put("north", care_team(name, name, "PractitionerRole/role-s"))
    assert await pcp(world, "north", name) == ["Practitioner/dr-n", "Organization/north"]


async def test_without_any_other_source_a_practice_s_care_team_counts(world: World) -> None:
    name = new_id()
    await world.put("general", patient(name))
    await world.put("general", care_team(name, name, "PractitionerRole/role-n"))
    assert (await world.get("north", f"/Patient/{name}")).status_code == 200


async def test_what_the_plan_said_in_a_care_team_stays_its_word(world: World) -> None:
    """Whoever else works on the team; a practice that brings its own end forward has ended all the same."""
    name = new_id()
    await world.put("admin", patient(name, SOUTHS), coverage(name, name, "plan-a"))
    team = care_team(name, name, "PractitionerRole/role-n")
    await world.put("plan-a", team)
    await world.put("north", {**team, "name": "North's team"})
    assert (await world.get("north", f"/Patient/{name}")).status_code == 200
    assert (await world.get("south", f"/Patient/{name}")).status_code == 404
    await world.put("north", {**team, "period": {"end": YESTERDAY}})
    assert (await world.get("north", f"/Patient/{name}")).status_code == 404
    assert (await world.get("south", f"/Patient/{name}")).status_code == 200


@pytest.mark.parametrize("change", ["subject", "period.start"])
async def test_what_a_practice_changes_in_a_care_team_becomes_its_own_word(
    world: World, change: str
) -> None:
    """The plan's entry about another patient, or one that begins before the successor's, says nothing more of it."""
    name, of = new_id(), new_id()
    await world.put("admin", patient(name, NORTHS), coverage(name, name, "plan-a"))
    await world.put("admin", patient(of, NORTHS), coverage(of, of, "plan-a"))
    team = care_team(name, of if change == "subject" else name, "PractitionerRole/role-n")
    (norths,) = team["participant"]
    norths["period"] = {"start": PAST}
    await world.put("plan-a", team)
    moved = care_team(name, name, "PractitionerRole/role-n")
    if change == "period.start":
        moved["participant"][0]["period"] = {"start": YESTERDAY}
    else:
        moved["participant"] = [norths]
    await world.put("north", moved)
    await world.put("admin", patient(name, SOUTHS))
    assert (await world.get("north", f"/Patient/{name}")).status_code == 404
    assert (await world.get("south", f"/Patient/{name}")).status_code == 200


async def test_care_teams_from_before_count_by_who_ever_wrote_them(world: World) -> None:
    """What was stored before it was kept who named the provider: an organization's team ranks below."""
    kept, lost = new_id(), new_id()
    await world.put("admin", patient(kept, SOUTHS), patient(lost, NORTHS))
    await world.put("admin", care_team(kept, kept, "PractitionerRole/role-n"))
    await world.put("north", care_team(lost, lost, "PractitionerRole/role-n"))
    rows = world.server.mongo.collection("CareTeam")
    await rows.update_many({"_id": {"$in": [kept, lost]}}, {"$unset": {"private": ""}})
    await world.put("admin", patient(lost, SOUTHS))
    assert (await world.get("north", f"/Patient/{kept}")).status_code == 200
    assert (await world.get("north", f"/Patient/{lost}")).status_code == 404


# Who works where


def _changed(**more: Any) -> Resource:
    return {**role("x", "dr-n", "north"), **more}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param({"active": False}, {"active": True}, id="active-again"),
        pytest.param({"active": False}, {"active": None}, id="active-by-silence"),
        pytest.param({"period": {"end": YESTERDAY}}, {"period": None}, id="without-an-end"),
        pytest.param({"period": {"end": YESTERDAY}}, {"period": {"end": "2099-01-01"}}, id="longer"),
        pytest.param({"period": {"start": "2099-01-01"}}, {"period": {"start": PAST}}, id="earlier"),
        pytest.param({}, {"code": [{"coding": [{"code": "pcp"}]}]}, id="code"),
        pytest.param({}, {"practitioner": ref("Practitioner/dr-s")}, id="practitioner"),
        pytest.param({}, {"endpoint": [ref("Endpoint/souths")]}, id="endpoint-of-another"),
        pytest.param({}, {"endpoint": [ref("Endpoint/nobodys")]}, id="endpoint-of-nobody"),
    ],
)  # fmt: skip
async def test_a_practice_neither_begins_nor_reopens_a_role(
    world: World, before: Resource, after: Resource
) -> None:
    souths = {**endpoint("souths"), "managingOrganization": ref("Organization/south")}
    stored = {**_changed(**before), "id": new_id()}
    await world.put("admin", souths, stored)
    wanted = {key: value for key, value in {**stored, **after}.items() if value is not None}
    for answer in await refused_by_every_door(world, "north", stored, wanted):
        assert answer.json()["issue"][0]["expression"] == [f"PractitionerRole.{next(iter(after))}"]
    await world.put("registrar", wanted)


async def test_a_practice_ends_its_roles_and_keeps_the_rest_of_them(world: World) -> None:
    own = {**endpoint(new_id()), "managingOrganization": ref("Organization/north")}
    name = new_id()
    await world.put("admin", _changed(id=name, period={"start": PAST}))
    await world.put("north", own)
    telling = _changed(id=name, period={"start": PAST}, endpoint=[ref(f"Endpoint/{own['id']}")])
    await world.put("north", telling)
    await world.put("north", {**telling, "period": {"start": PAST, "end": YESTERDAY}})
    assert (await world.ask("north", "DELETE", f"/PractitionerRole/{name}")).status_code == 204
    again = await world.ask("north", "PUT", f"/PractitionerRole/{name}", telling)
    assert_outcome(again, 403, "forbidden")


# What an organization is part of


async def test_an_organization_does_not_move_itself(world: World) -> None:
    own, above = new_id(), f"Organization/{new_id()}"
    world.authority.known[own] = Registered(f"Organization/{own}", "practice")
    stored = {**organization(own), "partOf": ref(above)}
    await world.put("admin", stored)
    await refused_by_every_door(world, own, stored, organization(own))
    await refused_by_every_door(world, own, stored, {**stored, "partOf": ref("Organization/north")})
    assert_outcome(await world.ask(own, "DELETE", f"/Organization/{own}"), 403, "forbidden")
    await world.put(own, {**stored, "alias": ["Us"], "active": False})
    await refused_by_every_door(world, own, {**stored, "active": False}, {**stored, "active": True})
    await world.put("registrar", {**organization(own), "partOf": ref("Organization/north")})
    assert (await world.get("registrar", "/Patient/pn")).status_code == 403


async def test_an_organization_describes_itself_once_and_as_part_of_nothing(world: World) -> None:
    own = new_id()
    world.authority.known[own] = Registered(f"Organization/{own}", "practice")
    within = {**organization(own), "partOf": ref("Organization/north")}
    answer = await world.ask(own, "PUT", f"/Organization/{own}", within)
    assert_outcome(answer, 403, "forbidden", "Organization.partOf")
    await world.put(own, organization(own))
    assert (await world.ask("admin", "DELETE", f"/Organization/{own}")).status_code == 204
    answer = await world.ask(own, "PUT", f"/Organization/{own}", organization(own))
    assert_outcome(answer, 403, "forbidden")


# A plan's own Groups


async def test_a_plan_s_own_group_keeps_no_member(world: World) -> None:
    name = new_id()
    cover = coverage(name, name, "plan-a")
    await world.put("admin", patient(name), cover)
    await world.put("plan-a", designated(name, "plan-a", name))
    over = {"period": {"start": PAST, "end": YESTERDAY}}
    await world.put("admin", {**cover, **over})
    assert (await world.get("plan-a", f"/Patient/{name}")).status_code == 404
    assert await world.found("plan-a", f"/Patient?_id={name}") == []


async def test_a_plan_gives_nobody_a_member_who_has_left(world: World) -> None:
    """By a roster that lists them still, and comes to name another practice, or to be one."""
    left, stays, roster, plain = new_id(), new_id(), new_id(), new_id()
    covers = [coverage(each, each, "plan-a") for each in (left, stays)]
    await world.put("admin", patient(left), patient(stays), *covers)
    members = [f"Patient/{each}" for each in (left, stays)]
    souths = panel(roster, "Organization/plan-a", *members, of="PractitionerRole/role-s")
    await world.put("plan-a", souths, designated(plain, "plan-a", left, stays))
    await world.put("admin", {**covers[0], "status": "cancelled"})
    for stored in (souths, designated(plain, "plan-a", left, stays)):
        norths = panel(stored["id"], "Organization/plan-a", *members, of="PractitionerRole/role-n")
        for answer in await refused_by_every_door(world, "plan-a", stored, norths):
            assert_outcome(answer, 403, "forbidden", "Group.member")
    assert (await world.get("south", f"/Patient/{left}")).status_code == 200
    assert (await world.get("north", f"/Patient/{left}")).status_code == 404
    await world.put("plan-a", {**souths, "name": "South's"}, {**souths, "active": False})
    norths = panel(roster, "Organization/plan-a", *members, of="PractitionerRole/role-n")
    norths["member"][0]["period"] = {"end": YESTERDAY}
    answer = await world.ask("plan-a", "PUT", f"/Group/{roster}", norths)
    assert_outcome(answer, 403, "forbidden")  # who is a member at other times is one's own patient
    del norths["member"][0]
    await world.put("plan-a", norths)
    assert (await world.get("north", f"/Patient/{stays}")).status_code == 200


async def test_who_is_in_a_group_under_contract_is_not_its_beneficiary_s_to_say(
    world: World,
) -> None:
    name, later = new_id(), new_id()
    await world.put("admin", patient(name), patient(later), coverage(later, later, "plan-a"))
    await world.put("admin", designated(name, "plan-a", name), contract(name, name, "plan-a"))
    assert (await world.get("plan-a", f"/Patient/{name}")).status_code == 200
    answer = await world.ask(
        "plan-a", "PUT", f"/Group/{name}", designated(name, "plan-a", name, later)
    )
    assert_outcome(answer, 403, "forbidden", "Group.member")
    await world.put("plan-a", {**designated(name, "plan-a", name), "name": "High risk"})
    empty = designated(name, "plan-a", name)
    del empty["member"]
    await world.put("plan-a", empty)
    assert (await world.get("plan-a", f"/Patient/{name}")).status_code == 404


# Links between patients


@pytest.mark.parametrize("who", ["general", "north", "plan-a"])
async def test_a_link_leads_to_what_its_writer_sees(world: World, who: str) -> None:
    """What is hidden is refused as what never was, so that nobody is told of, or routed by, a stranger."""

    def linked(id_: str, other: str) -> Resource:
        link = {"other": ref(f"Patient/{other}"), "type": "seealso"}
        return {**patient(id_, NORTHS), "link": [link]}

    name = new_id()
    await world.put("admin", patient(name, NORTHS), coverage(name, name, "plan-a"))
    await world.put("admin", encounter(name, name, "general"))
    hidden = await refused_by_every_door(world, who, patient(name, NORTHS), linked(name, "ps"))
    absent = await refused_by_every_door(world, who, patient(name, NORTHS), linked(name, "nobody"))
    assert [each.json() for each in hidden] == [each.json() for each in absent]
    for other in ("ps", "nobody"):
        fresh = await world.ask(who, "POST", "/Patient", linked("x", other))
        assert_outcome(fresh, 403, "forbidden", "Patient.link")
    await world.put(who, linked(name, "pn"))
    # What is there already may stay, whoever wrote it.
    await world.put("admin", linked(name, "ps"))
    await world.put(who, {**linked(name, "ps"), "active": False})


async def test_a_former_practice_keeps_no_patient_by_a_merge(world: World) -> None:
    """Into a Patient of its own, that is: who has the survivor has the merged one, so an administrator merges."""
    name, own = new_id(), new_id()
    before = patient(name, NORTHS)
    await world.put("admin", before, coverage(name, name, "plan-a"))
    await world.put("north", patient(own, NORTHS))
    for kind in ("replaced-by", "replaces"):
        merged = {**before, "link": [{"other": ref(f"Patient/{own}"), "type": kind}]}
        for answer in await refused_by_every_door(world, "north", before, merged):
            assert_outcome(answer, 403, "forbidden", "Patient.link")
        fresh = await world.ask("north", "POST", "/Patient", {**merged, "id": "x"})
        assert_outcome(fresh, 403, "forbidden", "Patient.link")
    await world.put("plan-a", patient(name, SOUTHS))
    assert (await world.get("north", f"/Patient/{name}")).status_code == 404
    # A merge that an administrator has made may stay.
    merged = {**patient(name), "link": [{"other": ref("Patient/pn"), "type": "replaced-by"}]}
    await world.put("admin", merged)
    await world.put("plan-a", {**merged, "active": False})
    assert (await world.get("north", f"/Patient/{name}")).status_code == 200


async def test_pcp_goes_no_way_that_its_caller_does_not_see(world: World) -> None:
    """A merge that an administrator has stored is followed for those who see both, and tells others nothing."""
    merged, lost = new_id(), new_id()
    for name, survivor in ((merged, "ps"), (lost, "nobody")):
        link = {"other": ref(f"Patient/{survivor}"), "type": "replaced-by"}
        await world.put("admin", patient(name), encounter(name, name, "general"))
        await world.put("admin", {**patient(name), "link": [link]})
    told = [await world.get("general", f"/Patient/{each}/$pcp") for each in (merged, lost)]
    assert told[0].status_code == 200
    assert told[0].json() == told[1].json()
    assert await pcp(world, "admin", merged) == ["Practitioner/dr-s", "Organization/south"]
    assert await pcp(world, "south", merged) == ["Practitioner/dr-s", "Organization/south"]


@pytest.mark.parametrize("who", ["general", "north", "plan-a"])
async def test_nobody_takes_a_patient_from_the_others(world: World, who: str) -> None:
    """A Patient that was deleted would be nobody's, whoever has the patient: only an administrator deletes one."""
    name = new_id()
    await world.put("admin", patient(name, NORTHS), coverage(name, name, "plan-a"))
    await world.put("admin", encounter(name, name, "general"))
    doors = (
        ("DELETE", f"/Patient/{name}", None),
        ("DELETE", f"/Patient?_id={name}", None),
        ("POST", "/", bundle("transaction", entry("DELETE", f"Patient/{name}"))),
    )
    for method, url, body in doors:
        assert_outcome(await world.ask(who, method, url, body), 403, "forbidden")
    assert (await world.get(who, f"/Patient/{name}")).status_code == 200
    assert (await world.ask("admin", "DELETE", f"/Patient/{name}")).status_code == 204


# In another's name


@pytest.mark.parametrize("who", ["north", "plan-a", "general"])
async def test_nobody_writes_a_visit_in_a_hospital_s_name(world: World, who: str) -> None:
    name = new_id()
    npi = {"system": "http://hl7.org/fhir/sid/us-npi", "value": name}
    await world.put("admin", {**organization(f"h-{name}"), "identifier": [npi]})
    stored = encounter(name, "pn", "city")
    await world.put("admin", stored)
    for provider in (ref("Organization/city"), {"identifier": npi}):
        for method, url in (("POST", "/Encounter"), ("PUT", f"/Encounter/by-{name}")):
            made = {**encounter(f"by-{name}", "pn"), "serviceProvider": provider}
            answer = await world.ask(who, method, url, made)
            assert_outcome(answer, 403, "forbidden", "Encounter.serviceProvider")
    if who != "general":  # which does not see it
        await refused_by_every_door(world, who, stored, {**stored, "status": "finished"})
        answer = await world.ask(who, "DELETE", f"/Encounter/{name}")
        assert_outcome(answer, 403, "forbidden", "Encounter.serviceProvider")
    await world.put(who, encounter(f"by-{name}", "pn"))


async def test_nobody_takes_an_identifier_to_speak_in_another_s_name(world: World) -> None:
    """Nor names the other by an identifier beside its own reference, or inside."""
    own, other, name = new_id(), new_id(), new_id()
    npi = {"system": "http://hl7.org/fhir/sid/us-npi", "value": name}
    world.authority.known[own] = Registered(f"Organization/{own}", "practice")
    named = {**organization(other), "identifier": [npi]}
    taken = {**organization(own), "identifier": [npi]}
    await world.put("admin", named)
    answer = await world.ask(own, "PUT", f"/Organization/{own}", taken)
    assert_outcome(answer, 403, "forbidden", "Organization.identifier")
    await world.put(own, organization(own))
    await refused_by_every_door(world, own, organization(own), taken)
    mine = {"system": "urn:own", "value": name}
    await world.put(own, {**taken, "identifier": [mine]})

    inside = {**organization("o"), "identifier": [npi]}
    for provider, held in (
        ({**ref("Organization/north"), "identifier": npi}, None),
        (ref("#o"), [inside]),
    ):
        visit = encounter(name, "pn", serviceProvider=provider)
        if held is not None:
            visit["contained"] = held
        answer = await world.ask("north", "PUT", f"/Encounter/{name}", visit)
        assert_outcome(answer, 403, "forbidden", "Encounter.serviceProvider")
    # What an administrator gives to two is nobody's, but for one that is out of use.
    await world.put("registrar", {**organization("north"), "identifier": [npi]})
    visit = encounter(name, "pn", serviceProvider={"identifier": npi})
    answer = await world.ask("north", "PUT", f"/Encounter/{name}", visit)
    assert_outcome(answer, 403, "forbidden", "Encounter.serviceProvider")
    await world.put("registrar", {**named, "active": False})
    await world.put("north", visit)
    await world.put("registrar", organization("north"))


@pytest.mark.parametrize(
    "change", [{"serviceProvider": ref("Organization/city")}, {"subject": ref("Patient/ps")}]
)
async def test_nor_does_a_message_that_came_late(world: World, change: Resource) -> None:
    """What is kept in the history alone is somebody's word, too."""
    name = new_id()

    def message(hour: int, **more: Any) -> Resource:
        time = {"url": EVENT_TIME, "valueDateTime": f"2026-11-01T{hour:02}:00:00Z"}
        return {**encounter(name, "pn", "general"), "extension": [time], **more}

    await world.put("general", message(10), message(12, status="finished"))
    answer = await world.ask("general", "PUT", f"/Encounter/{name}", message(11, **change))
    assert_outcome(answer, 403, "forbidden")


@pytest.mark.parametrize("who", ["north", "general", "plan-b"])
async def test_nobody_writes_a_coverage_in_a_plan_s_name(world: World, who: str) -> None:
    name = new_id()
    about = {"plan-b": "ps"}.get(who, "pn")
    answer = await world.ask(who, "POST", "/Coverage", coverage("x", about, "plan-a"))
    assert_outcome(answer, 403, "forbidden", "Coverage.payor")
    if who == "north":
        stored = coverage(name, "pn", "plan-a")
        await world.put("admin", stored)
        await refused_by_every_door(world, who, stored, {**stored, "status": "cancelled"})
        assert_outcome(await world.ask(who, "DELETE", f"/Coverage/{name}"), 403, "forbidden")
    paid = {**coverage(f"by-{name}", about, ""), "payor": [ref(f"Patient/{about}")]}
    await world.put(who, paid)


async def test_a_provenance_is_about_what_is_its_writer_s(world: World) -> None:
    def provenance(*targets: str) -> Resource:
        return {
            "resourceType": "Provenance",
            "target": [ref(each) for each in targets],
            "recorded": "2026-01-01T00:00:00Z",
            "agent": [{"who": ref("Organization/north")}],
        }

    for foreign in ("Condition/cs", "Condition/nothing", "Patient/ps", "Encounter/en"):
        answer = await world.ask("north", "POST", "/Provenance", provenance("Patient/pn", foreign))
        assert_outcome(answer, 403, "forbidden")
    for own in (("Patient/pn", "Condition/cn"), ("Condition/cn/_history/1",)):
        answer = await world.ask("north", "POST", "/Provenance", provenance(*own))
        assert answer.status_code == 201, answer.text
    name = new_id()
    together = bundle(
        "transaction",
        entry("PUT", f"Condition/{name}", condition(name, "pn")),
        entry("POST", "Provenance", provenance(f"Condition/{name}", "Patient/pn")),
    )
    answer = await world.ask("north", "POST", "/", together)
    assert answer.status_code == 200, answer.text


# An id that is taken


async def test_a_taken_id_does_not_keep_a_hospital_from_telling_of_a_visit(world: World) -> None:
    name = new_id()
    visit = [{"system": "urn:visits", "value": name}]
    await world.put("admin", encounter(name, "ps", "city"))
    mine = {**encounter(name, "pn", "general"), "identifier": visit}
    for _ in range(2):
        answer = await world.ask("general", "PUT", f"/Encounter/{name}", mine)
        assert_outcome(answer, 403, "forbidden", "Encounter.id")
        assert "PUT Encounter?identifier=[system]|[value]" in answer.text
    entries = bundle("batch", entry("PUT", f"Encounter/{name}", mine))
    (each,) = (await world.ask("general", "POST", "/", entries)).json()["entry"]
    assert each["response"]["status"][:3] == "403"
    # What may not be written is refused as under a free id, so that nobody asks for what is taken.
    theirs = [encounter(id_, "ps", "general") for id_ in (name, f"free-{name}")]
    taken, free = [
        await world.ask("general", "PUT", f"/Encounter/{each['id']}", each) for each in theirs
    ]
    assert (taken.status_code, taken.json()) == (free.status_code, free.json())

    del mine["id"]
    first = await world.ask("general", "PUT", f"/Encounter?identifier=urn:visits|{name}", mine)
    then = await world.ask(
        "general", "PUT", f"/Encounter?identifier=urn:visits|{name}", {**mine, "status": "finished"}
    )
    assert (first.status_code, then.status_code) == (201, 200)
    assert first.json()["id"] == then.json()["id"] != name

    await world.server.engine.drain()
    asked = f"/Task?code={REVIEW_REASON}|taken-id&focus=Encounter/{name}"
    (task,) = [each["resource"] for each in (await world.get("admin", asked)).json()["entry"]]
    assert task["requester"] == ref("Organization/general")
    assert "for" not in task
    assert "ps" not in str(task)
    for who in ("general", "city", "south"):
        assert await world.found(who, asked) == []


async def test_what_somebody_of_ones_own_wrote_meanwhile_is_no_taken_id(world: World) -> None:
    """Of two first messages of a visit the slower one is planned again, on top of the other."""
    name = new_id()
    mine = encounter(name, "pn", "general")
    planned = Change("update", "Encounter", name, {**mine, "status": "finished"})
    await world.put("general", mine)
    caller = Caller("general", "Organization/general", "hospital", EVERYTHING)
    access = world.server.accesses.of(caller)
    assert access is not None
    with pytest.raises(VersionConflict):
        await RestrictedStore(world.server.store, access).commit([planned])
    await world.server.engine.drain()
    assert await world.found("admin", f"/Task?focus=Encounter/{name}&code=taken-id") == []
