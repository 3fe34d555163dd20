"""Among thousands of others an organization finds all that is its own, and nothing else.

The limit on what a search may examine is far below what is stored: without the organization's panel these searches
would be refused as too costly.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.authorization.access import Access
from app.records.versions import Change
from tests.builders.access_world import (
    World,
    condition,
    contract,
    coverage,
    designated,
    encounter,
    world as make_world,
)
from tests.builders.practices import (
    PAST,
    TOMORROW,
    YESTERDAY,
    care_team,
    dated,
    group,
    panel,
    patient,
    practitioner,
    ref,
    role,
)

pytestmark = [pytest.mark.mongo, pytest.mark.slow]
OTHERS, MAY_EXAMINE = 3_000, 1_500
PAPERS = 1_600
NORTH = ref("PractitionerRole/role-n")


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with make_world(mongod, max_chain_examined=MAY_EXAMINE) as found:
        crowd = [
            resource
            for number in range(OTHERS)
            for resource in (
                patient(f"x{number}", ref("PractitionerRole/role-s")),
                encounter(f"a-x{number}", f"x{number}", "city", period={"start": "2026-11-01"}),
            )
        ]
        crowd += [paper(f"a-x{number}") for number in range(PAPERS)]
        crowd += [group(f"a-x{number}") for number in range(PAPERS)]
        changes = [Change("create", each["resourceType"], each["id"], each) for each in crowd]
        for start in range(0, len(changes), 500):
            await found.server.store.commit(changes[start : start + 500])
        replaced = {"link": [{"type": "replaced-by", "other": ref("Patient/y-team")}]}
        behalf = care_team("behalf", "y-behalf", "Practitioner/dr-alone")
        behalf["participant"][0]["onBehalfOf"] = ref("Organization/north")
        await found.put(
            "admin",
            practitioner("dr-alone"),
            patient("y-doctor", ref("Practitioner/dr-n")),
            patient("y-practice", ref("Organization/north")),
            patient("y-team"),
            care_team("team", "y-team", "PractitionerRole/role-n"),
            patient("y-behalf"),
            behalf,
            patient("y-panel"),
            panel("panel", "Organization/north", "Patient/y-panel"),
            patient("y-merged") | replaced,
            patient("was", dated("PractitionerRole/role-n", PAST, YESTERDAY)),
            patient("will", dated("PractitionerRole/role-n", TOMORROW)),
            *(
                encounter(f"z-{who}", who, "city", period={"start": f"2026-10-{day:02}"})
                for day, who in enumerate(ATTRIBUTED, 10)
            ),
            encounter("z-was", "was", "city"),
            condition("z-c", "y-team"),
            coverage("z-v", "y-doctor", "plan-a"),
            coverage("z-over", "y-team", "plan-a", period={"end": "2020-01-01"}),
            designated("z-list", "plan-b", "y-panel"),
            contract("z-list", "z-list", "plan-a"),
            designated("z-own", "plan-a", "y-team"),
            designated("z-state", "agency", "y-team"),
            paper("z-paper"),
            attaching("z-paper", "y-team"),
            designated("z-agreed", "plan-b", "y-practice"),
            contract("z-contract", "z-agreed", "bureau", "Encounter", plan="plan-a"),
        )
        await found.put("admin", *former())
        yield found


def paper(id_: str) -> dict[str, Any]:
    return {"resourceType": "Binary", "id": id_, "contentType": "text/plain", "data": "eA=="}


def attaching(paper_id: str, who: str) -> dict[str, Any]:
    return {
        "resourceType": "DocumentReference",
        "id": paper_id,
        "status": "current",
        "subject": ref(f"Patient/{who}"),
        "content": [{"attachment": {"url": f"Binary/{paper_id}"}}],
    }


def former() -> list[dict[str, Any]]:
    """Patients who belonged to somebody once, or never did though a Coverage names who asks."""
    ended = {"period": {"start": PAST, "end": YESTERDAY}}
    roster = panel("f-panel", "Organization/north", "Patient/f-panel")
    members = designated("f-plan", "plan-a", "f-plan"), designated("f-state", "agency", "f-state")
    for each in (roster, *members):
        each["member"][0] |= ended
    team = care_team("f-team", "f-team", "PractitionerRole/role-n") | ended
    team["participant"][0]["period"] = {"start": PAST, "end": TOMORROW}
    return [
        contract("f-plan", "f-plan", "plan-a"),
        *(patient(f"f-{each}") for each in ("panel", "plan", "state", "team", "paid")),
        *(roster, *members, team),
        role("f-role", "dr-former", "north") | ended,
        patient("f-role", ref("PractitionerRole/f-role")),
        coverage("f-paid", "f-paid", "agency"),
        *(encounter(f"f-{each}", f"f-{each}", "city") for each in FORMER),
    ]


FORMER = ("panel", "plan", "state", "team", "role", "paid")
ATTRIBUTED = ("y-doctor", "y-practice", "y-team", "y-behalf", "y-panel", "y-merged")


async def test_a_practice_finds_all_of_its_patients(world: World) -> None:
    found = await world.found("north", "/Patient?_count=100")
    assert found == sorted(f"Patient/{who}" for who in (*ATTRIBUTED, "pn"))


async def test_a_practice_finds_all_visits_of_its_patients_in_the_order_asked_for(
    world: World,
) -> None:
    answer = await world.get("north", "/Encounter?_sort=date&date=gt2026-01-01&_count=4")
    pages = [[each["resource"]["id"] for each in answer.json()["entry"]]]
    while following := [
        link["url"] for link in answer.json()["link"] if link["relation"] == "next"
    ]:
        answer = await world.get("north", following[0])
        pages.append([each["resource"]["id"] for each in answer.json()["entry"]])
    assert [id_ for page in pages for id_ in page] == [f"z-{who}" for who in ATTRIBUTED]


async def test_totals_count_ones_own_among_thousands(world: World) -> None:
    answer = await world.get("north", "/Patient?_summary=count")
    assert answer.json()["total"] == len(ATTRIBUTED) + 1


@pytest.mark.parametrize(
    ("who", "expected"),
    [
        ("plan-a", ["Patient/pn", "Patient/y-doctor", "Patient/y-panel"]),
        ("agency", ["Patient/pn", "Patient/y-team"]),
    ],
)
async def test_members_are_found_by_coverage_and_by_group(
    world: World, who: str, expected: list[str]
) -> None:
    assert await world.found(who, "/Patient?_count=100") == expected


@pytest.mark.parametrize("who", ["north", "plan-a", "agency"])
async def test_who_was_ones_own_once_is_not_found_among_thousands(world: World, who: str) -> None:
    """Nor is whom a Coverage names a state agency for: its patients are those of Groups alone."""
    gone = {f"{type_}/f-{each}" for type_ in ("Patient", "Encounter") for each in FORMER}
    for url in ("/Patient?_count=100", "/Encounter?status=in-progress&_count=100"):
        assert not gone & set(await world.found(who, url)), url


async def test_papers_and_groups_are_found_by_what_leads_to_them(world: World) -> None:
    assert await world.found("north", "/Binary?_count=100") == ["Binary/z-paper"]
    lists = [f"Group/{each}" for each in ("f-plan", "z-agreed", "z-list", "z-own")]
    assert await world.found("plan-a", "/Group?_count=100") == lists
    assert await world.found("bureau", "/Group?_count=100") == ["Group/list-s", "Group/z-agreed"]


async def test_a_chain_finds_ones_own_among_thousands(world: World) -> None:
    found = await world.found("north", "/Condition?patient.active:missing=true&_count=100")
    assert set(found) <= {"Condition/cn", "Condition/z-c"}
    assert await world.found("north", "/Encounter?status=in-progress&_count=100") == sorted(
        ["Encounter/en", *(f"Encounter/z-{who}" for who in ATTRIBUTED)]
    )


async def test_whose_panel_is_the_crowd_itself_is_told_when_it_is_too_much(world: World) -> None:
    answer = await world.get("south", "/Patient?_summary=count")
    assert answer.status_code == 422
    assert answer.json()["issue"][0]["code"] == "too-costly"


async def test_a_panel_lacks_nobody_who_is_attributed(world: World) -> None:
    """Its narrowing may never hide what judging would have shown."""
    accesses = world.server.accesses
    for name in ("north", "plan-a", "agency"):
        client = world.authority.known[name]
        access = accesses.of(await world.authority.caller(f"Bearer {name}"))
        assert isinstance(access, Access)
        family = await access.family()
        listed = await accesses.panels.of(client.role, family)
        assert listed is not None
        rows = await world.server.store.find("Patient", {"terms": "*"}, projection={"_id": 1})
        everybody = {f"Patient/{row['_id']}" for row in rows}
        assert await access.own_patients(everybody, family) <= listed
        assert len(listed) < 20
