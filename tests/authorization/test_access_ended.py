"""Whose patient somebody is now: what has ended or not begun opens nothing, whoever wrote of the patient meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.fhir.codes import ACT_CODE, ROLE_CODE
from app.fhir.ids import new_id
from tests.builders.access_world import (
    CLIENTS,
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
    TOMORROW,
    YESTERDAY,
    care_team,
    organization,
    panel,
    patient,
    practitioner,
    ref,
    role,
)
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

LASTS = {"start": PAST, "end": TOMORROW}
OVER = {"start": PAST, "end": YESTERDAY}
TO_COME = {"start": TOMORROW}
NORTH, SOUTH = ref("PractitionerRole/role-n"), ref("PractitionerRole/role-s")


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod) as found:
        yield found


async def sees(world: World, who: str, name: str) -> bool:
    """Whether a patient and the Condition of the same id are read and found: all of it, or nothing."""
    doors = [
        (await world.get(who, f"/Patient/{name}")).status_code == 200,
        (await world.get(who, f"/Condition/{name}")).status_code == 200,
        bool(await world.found(who, f"/Patient?_id={name}")),
        bool(await world.found(who, f"/Condition?patient={name}")),
    ]
    assert len(set(doors)) == 1, doors
    return doors[0]


# Members of a roster


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"period": LASTS}, True, id="lasts"),
        pytest.param({"period": OVER}, False, id="over"),
        pytest.param({"period": TO_COME}, False, id="to-come"),
        pytest.param({"inactive": True}, False, id="inactive"),
    ],
)
@pytest.mark.parametrize(
    ("who", "manager"),
    [
        pytest.param("north", "north", id="practice"),
        pytest.param("plan-a", "plan-a", id="plan-by-contract"),
        pytest.param("agency", "plan-b", id="state-by-contract"),
    ],
)
async def test_a_roster_opens_its_members_while_they_are_members(
    world: World, who: str, manager: str, change: dict[str, Any], expected: bool
) -> None:
    name = new_id()
    roster = designated(name, manager, name)
    if who == "north":
        roster = panel(name, "Organization/north", f"Patient/{name}")
    await world.put("admin", patient(name), condition(name, name), roster)
    if who != manager or who == "plan-a":
        assert (await world.get(who, f"/Patient/{name}")).status_code == 404
        await world.put("admin", contract(name, name, who, "Condition"))
    assert await sees(world, who, name)
    roster["member"][0].update(change)
    await world.put("admin", roster)
    assert await sees(world, who, name) is expected


# Roles and care teams


@pytest.mark.parametrize(
    ("period", "expected"),
    [
        pytest.param(LASTS, True, id="lasts"),
        pytest.param(OVER, False, id="over"),
        pytest.param(TO_COME, False, id="to-come"),
    ],
)
@pytest.mark.parametrize("named", ["role", "practitioner", "participant"])
async def test_a_role_opens_its_patients_to_the_practice_within_its_period(
    world: World, named: str, period: dict[str, str], expected: bool
) -> None:
    """Whether the patient's record names the role, the doctor who has it, or a care team does."""
    name = new_id()
    works = role(name, name, "north")
    of = {"role": [ref(f"PractitionerRole/{name}")], "practitioner": [ref(f"Practitioner/{name}")]}
    await world.put(
        "admin", practitioner(name), works, patient(name, *of.get(named, [])), condition(name, name)
    )
    if named == "participant":
        await world.put("admin", care_team(name, name, f"PractitionerRole/{name}"))
    assert await sees(world, "north", name)
    await world.put("admin", {**works, "period": period})
    assert await sees(world, "north", name) is expected


@pytest.mark.parametrize(
    ("team", "participation", "expected"),
    [
        pytest.param(LASTS, LASTS, True, id="both-last"),
        pytest.param(OVER, LASTS, False, id="team-over"),
        pytest.param(LASTS, OVER, False, id="participation-over"),
        pytest.param(TO_COME, {"start": PAST}, False, id="team-to-come"),
        pytest.param({"start": PAST}, TO_COME, False, id="participation-to-come"),
        pytest.param(OVER, TO_COME, False, id="nothing-in-common"),
    ],
)
async def test_a_care_team_opens_its_patient_while_team_and_participation_both_last(
    world: World, team: dict[str, str], participation: dict[str, str], expected: bool
) -> None:
    name = new_id()
    made = care_team(name, name, "PractitionerRole/role-n")
    await world.put("admin", patient(name), condition(name, name), made)
    assert await sees(world, "north", name)
    made["period"] = team
    made["participant"][0]["period"] = participation
    await world.put("admin", made)
    assert await sees(world, "north", name) is expected


# A former practice


async def test_the_record_that_a_former_practice_wrote_goes_with_the_patient(world: World) -> None:
    name = new_id()
    written = [patient(name, NORTH, active=True), condition(name, name), encounter(name, name)]
    await world.put("admin", patient(name, NORTH))
    await world.put("north", *written)
    await world.put("admin", patient(name, SOUTH, active=True))
    for each in written:
        type_ = each["resourceType"]
        for door in ("", "/_history", "/_history/1"):
            url = f"/{type_}/{name}{door}"
            assert (await world.get("north", url)).status_code == 404, url
        assert await world.found("north", f"/{type_}?_id={name}") == []
        assert_outcome(await world.ask("north", "PUT", f"/{type_}/{name}", each), 403, "forbidden")
        assert await world.found("south", f"/{type_}?_id={name}") == [f"{type_}/{name}"]


async def test_a_former_practice_keeps_its_papers_and_the_provenance_that_it_wrote(
    world: World,
) -> None:
    name = new_id()
    provenance = {
        "resourceType": "Provenance",
        "target": [ref(f"Patient/{name}")],
        "recorded": "2026-11-14T07:42:00Z",
        "agent": [{"who": ref("Organization/north")}],
    }
    papers = [
        {"resourceType": "Bundle", "id": name, "type": "collection"},
        {"resourceType": "Binary", "id": name, "contentType": "text/plain", "data": "eA=="},
    ]
    await world.put("admin", patient(name, NORTH))
    own, others = [
        f"Provenance/{(await world.ask(who, 'POST', '/Provenance', provenance)).json()['id']}"
        for who in ("north", "admin")
    ]
    await world.put("north", *papers)
    url = f"/Provenance?target=Patient/{name}"
    assert await world.found("north", url) == sorted([own, others])
    await world.put("admin", patient(name, SOUTH))
    assert await world.found("north", url) == [own]
    assert (await world.get("north", f"/{own}")).status_code == 200
    assert (await world.get("north", f"/{others}")).status_code == 404
    assert await world.found("south", url) == sorted([own, others])
    for each in papers:
        url = f"/{each['resourceType']}/{name}"
        assert (await world.get("north", url)).status_code == 200, url
        assert (await world.get("south", url)).status_code == 404, url
    more = await world.ask("north", "POST", "/Provenance", provenance)
    assert_outcome(more, 403, "forbidden")


# State agencies


async def reads(world: World, who: str, name: str) -> set[str]:
    """The types of what is about a patient, each with the patient's id, that are read, or found at all."""
    found: set[str] = set()
    for type_ in ("Patient", "Condition", "Coverage", "CarePlan", "Communication"):
        if (await world.get(who, f"/{type_}/{name}")).status_code == 200:
            found.add(type_)
        if await world.found(who, f"/{type_}?_id={name}"):
            found.add(type_)
    return found


async def test_a_contract_opens_to_a_state_agency_what_it_is_about_and_no_more(
    world: World,
) -> None:
    """Neither a Coverage nor being on a list opens a member's record; a Contract opens the types that it names."""
    name = new_id()
    paid = coverage(name, name, "plan-a")
    paid["payor"].append(ref("Organization/agency"))
    about = {"id": name, "subject": ref(f"Patient/{name}")}
    plan = {"resourceType": "CarePlan", "status": "active", "intent": "plan", **about}
    letter = {"resourceType": "Communication", "status": "completed", **about}
    await world.put("admin", patient(name), condition(name, name), paid, plan, letter)
    assert len(await reads(world, "plan-a", name)) == 5
    assert await reads(world, "agency", name) == set()
    await world.put("admin", designated(name, "agency", name))
    assert await reads(world, "agency", name) == {"Patient"}
    agreed = contract(name, name, "agency", "Condition")
    await world.put("admin", agreed)
    assert await reads(world, "agency", name) == {"Patient", "Condition"}
    assert await reads(world, "bureau", name) == set()
    await world.put("admin", {**agreed, "status": "terminated"})
    assert await reads(world, "agency", name) == {"Patient"}
    left = designated(name, "agency", name)
    left["member"][0]["inactive"] = True
    await world.put("admin", agreed, left)
    assert await reads(world, "agency", name) == set()


async def test_a_contract_and_its_group_are_read_by_its_parties_alone(world: World) -> None:
    """By the agency that it is for, by the plan that owes it, and by who manages the Group."""
    name = new_id()
    roster = designated(name, "city", name)
    del roster["managingEntity"]
    await world.put("admin", patient(name), roster)
    agreed = contract(name, name, "agency", "Encounter", plan="plan-b")
    for status in ("executed", "terminated"):
        await world.put("admin", {**agreed, "status": status})
        contracts: set[str] = set()
        groups: set[str] = set()
        for who in sorted(set(CLIENTS) - {"admin"}):
            for type_, readers in (("Contract", contracts), ("Group", groups)):
                answer = await world.get(who, f"/{type_}/{name}")
                assert answer.status_code in (200, 403, 404)
                listed = await world.get(who, f"/{type_}?_id={name}")
                assert (answer.status_code == 200) == bool(listed.json().get("total")), (who, type_)
                readers |= {who} if answer.status_code == 200 else set()
                changed = agreed if type_ == "Contract" else roster
                assert_outcome(
                    await world.ask(who, "PUT", f"/{type_}/{name}", changed), 403, "forbidden"
                )
        assert contracts == {"agency", "plan-b"}
        assert groups == ({"agency", "plan-b"} if status == "executed" else set())
    # Who owes the notices about somebody has no patient by that.
    assert (await world.get("plan-b", f"/Patient/{name}")).status_code == 404
    await world.put("admin", {**roster, "managingEntity": ref("Organization/plan-a")})
    assert (await world.get("plan-a", f"/Contract/{name}")).status_code == 200


@pytest.mark.parametrize(
    ("more", "seen"),
    [
        ({}, ["inpatient", "nursing", "place"]),
        ({"classes": ["NONAC"], "topics": ["encounter-admission"]}, ["nursing"]),
        ({"classes": [], "topics": ["encounter-admission"]}, None),
    ],
    ids=["admissions-and-nursing-facilities", "one-class", "every-class"],
)
async def test_an_agency_reads_the_stays_that_its_contract_is_about(
    world: World, more: dict[str, Any], seen: list[str] | None
) -> None:
    """By class, and in a nursing facility every stay: never a visit to a clinic, unless all classes count."""
    name = new_id()
    terms = {
        "id": name,
        "title": "Admissions",
        "group": f"Group/{name}",
        "recipient": "Organization/agency",
        "deadline": 24,
        "payload": "full-resource",
        "channel": {"type": "rest-hook", "endpoint": "http://127.0.0.1:9/"},
        **more,
    }
    facility = organization(f"snf-{name}") | {
        "type": [{"coding": [{"system": ROLE_CODE, "code": "SNF"}]}]
    }
    await world.put("admin", facility, patient(name), designated(name, "agency", name))
    answer = await world.ask("admin", "PUT", f"http://carerelay.test/admin/contracts/{name}", terms)
    assert answer.status_code == 201, answer.text
    stays = {
        "inpatient": ("IMP", "general"),
        "emergency": ("EMER", "general"),
        "clinic": ("AMB", "general"),
        "nursing": ("NONAC", "general"),
        "place": ("EMER", f"snf-{name}"),
        "therapy": ("AMB", f"snf-{name}"),
    }
    for each, (class_, where) in stays.items():
        is_of = {"class": {"system": ACT_CODE, "code": class_}}
        await world.put("admin", encounter(f"{name}-{each}", name, where, **is_of))
        during = ref(f"Encounter/{name}-{each}")
        await world.put("admin", condition(f"{name}-{each}", name, encounter=during))
    await world.put("admin", condition(f"{name}-always", name))
    seen = sorted(stays) if seen is None else seen
    found = await world.found("agency", f"/Encounter?patient={name}")
    assert [each.rpartition("-")[2] for each in found] == seen
    for each in stays:
        status = 200 if each in seen else 404
        for door in ("", "/_history/1"):
            place = f"/Encounter/{name}-{each}{door}"
            assert (await world.get("agency", place)).status_code == status
        assert (await world.get("bureau", f"/Encounter/{name}-{each}")).status_code == 404
        assert (await world.get("agency", f"/Condition/{name}-{each}")).status_code == status
    # What notices carry goes with its stay; what belongs to no visit is given by its type.
    found = await world.found("agency", f"/Condition?patient={name}")
    assert [each.rpartition("-")[2] for each in found] == sorted([*seen, "always"])


async def test_a_visit_that_nobody_knows_here_or_that_is_hidden_keeps_its_records(
    world: World,
) -> None:
    """A record is given by its type alone where `encounter` is absent; however else it names a visit, by that visit."""
    name = new_id()
    asset: dict[str, Any] = contract(name, name, "agency", "Condition", "Encounter")
    limit = [{"coding": [{"system": ACT_CODE, "code": "IMP"}]}]
    for each in asset["term"][0]["asset"]:
        each["subtype"] = limit
    await world.put("admin", patient(name), designated(name, "agency", name), asset)
    imp = {"class": {"system": ACT_CODE, "code": "IMP"}}
    stay = encounter(f"{name}-stay", name, "general", **imp)
    await world.put("admin", stay)
    here = f"Encounter/{stay['id']}"
    by_number = {"identifier": {"system": "urn:v", "value": "1"}}
    visits: dict[str, dict[str, Any]] = {
        "known": {"reference": here},
        "known-numbered": {"reference": here, **by_number},
        "foreign": {"reference": "http://elsewhere.org/fhir/Encounter/5"},
        "urn": {"reference": "urn:uuid:6c6a3b1e-5f0e-4b7d-9d6c-1f1f0a1b2c3d"},
        "numbered": {"type": "Encounter", **by_number},
        "words": {"display": "A visit to the clinic"},
        "contained": {"reference": "#e"},
    }
    held = {**encounter("e", name, "general"), "class": {"system": ACT_CODE, "code": "AMB"}}
    for each, visit in visits.items():
        more = {"contained": [held]} if each == "contained" else {}
        await world.put("admin", condition(f"{name}-{each}", name, encounter=visit, **more))
    await world.put("admin", condition(f"{name}-none", name))

    async def given() -> set[str]:
        found = await world.found("agency", f"/Condition?patient={name}")
        for each in (*visits, "none"):
            for door in ("", "/_history/1"):
                answer = await world.get("agency", f"/Condition/{name}-{each}{door}")
                assert (answer.status_code == 200) == (f"Condition/{name}-{each}" in found), each
        return {each.removeprefix(f"Condition/{name}-") for each in found}

    assert await given() == {"known", "known-numbered", "none"}
    label_ = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "ETH"}
    await world.put("admin", {**stay, "meta": {"security": [label_]}})
    assert (await world.get("agency", f"/{here}")).status_code == 404
    assert await given() == {"none"}
