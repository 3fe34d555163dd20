"""Worklists and counts: a plan of its own members, a practice of its own patients; what is hidden counts nowhere."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.authorization import own_records
from tests.builders.access_world import World, security, world as a_world
from tests.builders.consents import consent, deny
from tests.builders.practices import ref
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    """Everybody with one stay that goes on, and no plan of care."""
    async with a_world(mongod, rate_limit=0) as found:
        await found.put(
            "admin",
            care_plan("plan-of-ps", "ps"),
            {
                "resourceType": "Group",
                "id": "own-list",
                "type": "person",
                "actual": True,
                "managingEntity": ref("Organization/plan-a"),
                "member": [{"entity": ref("Patient/pn")}, {"entity": ref("Patient/ps")}],
            },
        )
        yield found


def care_plan(id_: str, who: str, **more: Any) -> dict[str, Any]:
    return {
        "resourceType": "CarePlan",
        "id": id_,
        "status": "active",
        "intent": "plan",
        "subject": ref(f"Patient/{who}"),
        **more,
    }


async def found(world: World, who: str, question: str, *, of: str = "Patient", **more: str) -> Any:
    """The patients of an answer, or the status of a refusal."""
    query = "".join(f"&{name}={value}" for name, value in more.items())
    answer = await world.get(
        who, f"/{of}/$worklist?question={question}&_outputFormat=ndjson{query}"
    )
    if answer.status_code != 200:
        return answer.status_code
    return sorted(line.split('"reference":"Patient/')[1][:2] for line in answer.text.splitlines())


@pytest.mark.parametrize(
    ("who", "inside", "planless"),
    [
        ("admin", ["pn", "ps"], ["pn"]),
        ("plan-a", ["pn"], ["pn"]),
        ("plan-b", ["ps"], []),
        ("north", ["pn"], ["pn"]),
        ("south", ["ps"], []),
        *((who, 403, 403) for who in ("general", "agency", "registrar")),
    ],
)
async def test_who_is_told_of_whom(world: World, who: str, inside: Any, planless: Any) -> None:
    assert await found(world, who, "in-hospital") == inside
    assert await found(world, who, "no-care-plan") == planless
    answer = await world.get(who, "/Patient/$utilization?start=2020-01-01&end=2020-02-01")
    assert answer.status_code == (403 if inside == 403 else 200)
    if inside != 403:
        members = answer.json()["group"][0]["population"][0]["count"]
        assert members == len(inside)
    panels = await world.get(who, "/Patient/$attributed?_outputFormat=csv")
    assert panels.status_code == answer.status_code
    if inside != 403:
        assert {each for each in ("pn", "ps") if f"Patient/{each}" in panels.text} == set(inside)


async def test_nobody_asks_about_others_members(world: World) -> None:
    assert await found(world, "plan-a", "in-hospital", organization="Organization/plan-b") == 403
    assert await found(world, "north", "in-hospital", organization="Organization/plan-a") == 403
    assert await found(world, "north", "in-hospital", practice="Organization/south") == 403
    assert await found(world, "plan-a", "in-hospital", practice="Organization/south") == []
    assert await found(world, "plan-a", "in-hospital", practice="Organization/north") == ["pn"]
    assert await found(world, "admin", "in-hospital", organization="Organization/plan-b") == ["ps"]


async def test_a_list_that_a_plan_writes_makes_nobody_its_member(world: World) -> None:
    assert await found(world, "plan-a", "in-hospital", of="Group/own-list") == ["pn"]
    hidden = await world.get("plan-b", "/Group/own-list/$worklist?question=no-pcp")
    absent = await world.get("plan-b", "/Group/no-list/$worklist?question=no-pcp")
    assert_outcome(hidden, 404, "not-found")
    assert hidden.text.replace("own-list", "no-list") == absent.text


async def test_each_question_takes_the_rights_that_it_reads_by(world: World) -> None:
    scopes = "system/Patient.rs system/Encounter.rs"
    for question, status in (("in-hospital", 200), ("no-care-plan", 403), ("opt-out", 403)):
        answer = await world.get("plan-a", f"/Patient/$worklist?question={question}", scopes=scopes)
        assert answer.status_code == status, answer.text
    finished = "system/Patient.rs system/Encounter.rs?status=finished"
    answer = await world.get("plan-a", "/Patient/$worklist?question=in-hospital", scopes=finished)
    assert answer.json()["total"] == 0


async def unlabelled(world: World, resource: dict[str, Any]) -> None:
    meta = {"name": "meta", "valueMeta": {"security": resource["meta"]["security"]}}
    url = f"/{resource['resourceType']}/{resource['id']}/$meta-delete"
    body = {"resourceType": "Parameters", "parameter": [meta]}
    assert (await world.ask("admin", "POST", url, body)).status_code == 200


async def test_what_is_labelled_or_refused_counts_nowhere(world: World) -> None:
    """Who may not see the plan of care is told that there is none; a hidden stay is no stay."""
    secret = care_plan("plan-of-pn", "pn", meta=security("PSY"))
    await world.write(secret)
    assert await found(world, "admin", "no-care-plan") == []
    assert await found(world, "plan-a", "no-care-plan") == ["pn"]
    await unlabelled(world, secret)
    assert await found(world, "plan-a", "no-care-plan") == []
    stay = (await world.get("admin", "/Encounter/en")).json()
    await world.write({**stay, "meta": security("R")})
    assert await found(world, "plan-a", "in-hospital") == []
    await unlabelled(world, {**stay, "meta": security("R")})
    refusal = {
        **consent("provider-access", provision=deny()),
        "id": "refusal",
        "patient": ref("Patient/pn"),
    }
    await world.write(refusal)
    assert await found(world, "north", "in-hospital") == []
    assert await found(world, "plan-a", "in-hospital") == ["pn"]
    everything = {**consent(provision=deny()), "id": "refusal", "patient": ref("Patient/pn")}
    await world.write(everything)
    assert await found(world, "plan-a", "in-hospital") == []
    await world.ask("admin", "DELETE", "/Consent/refusal")


async def test_a_table_is_on_record_with_whom_it_tells_of(world: World) -> None:
    url = "/Patient/$worklist?question=in-hospital&_outputFormat=csv"
    assert (await world.get("plan-b", url)).status_code == 200
    events = await world.get("admin", "/AuditEvent?patient=Patient/ps&_count=200")
    told = [
        each["resource"]
        for each in events.json()["entry"]
        if "$worklist" in str(each["resource"]) and "plan-b" in str(each["resource"])
    ]
    assert told


async def test_large_populations_are_judged_alike(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the database is asked by each patient or for all, the answer is the same."""
    monkeypatch.setattr(own_records, "MOST_IN_PANEL", 0)
    assert await found(world, "plan-a", "in-hospital") == ["pn"]
    assert await found(world, "south", "in-hospital") == ["ps"]
