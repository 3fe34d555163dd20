"""A plan in the place of another (CarePlan.replaces) is told by what differs, and its document replaces the other's."""

from __future__ import annotations

import pytest

from tests.builders.care_plans import (
    Desk,
    Json,
    goal,
    patient,
    plan,
    reference,
    resources,
    trigger,
    words,
)

pytestmark = pytest.mark.mongo
RESTRICTED = {"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}


def successor(**more: Json | str) -> Json:
    """Next year's plan, which has the goal of walking written anew, and one more."""
    made = plan(goals=("walk2", "weigh"), replaces=[reference("CarePlan/plan")])
    return made | {"id": "next", "title": "Living well with heart failure", **more}


def goals() -> tuple[Json, Json]:
    return goal("walk2", "Walk twenty minutes a day"), goal("weigh", "Weigh yourself daily")


async def test_what_differs_is_told_and_the_old_document_superseded(at: Desk) -> None:
    await at.begin()
    (first,) = at.receiver.events
    await at.put(*goals(), successor(), plan("revoked"))
    notices = (await at.after(seconds=900))[1:]
    told = {each.focus.partition("CarePlan/")[2].partition("-")[0]: each for each in notices}
    assert words(told["next"]).splitlines() == [
        "The care plan replaces “Living with heart failure”; its document is attached. "
        "What differs:",
        "Goal added: Weigh yourself daily.",
    ]
    assert trigger(told["next"]) == "created"
    (communication,) = resources(told["next"], "Communication")
    (changes,) = communication["contained"]
    assert [each["name"] for each in changes["parameter"]] == ["text", "change"]
    (document,) = resources(told["next"], "Bundle")
    section = document["entry"][0]["resource"]["section"][0]
    assert section["title"] == "Changes since the last copy"
    assert "Goal added: Weigh yourself daily." in section["text"]["div"]
    (index,) = resources(told["next"], "DocumentReference")
    (earlier,) = resources(first, "DocumentReference")
    assert index["relatesTo"][0]["target"] == reference(f"DocumentReference/{earlier['id']}")
    assert (await at.get(f"DocumentReference/{earlier['id']}"))["status"] == "superseded"
    assert words(told["plan"]) == "The care plan is revoked (was active)."


@pytest.mark.parametrize(
    "other",
    [
        pytest.param({"subject": reference("Patient/bob")}, id="of-another-patient"),
        pytest.param({"meta": {"security": [RESTRICTED]}}, id="more-confidential"),
        pytest.param({"status": "draft"}, id="never-told"),
    ],
)
async def test_a_plan_that_may_not_be_told_with_it_is_not_compared(at: Desk, other: Json) -> None:
    """Whoever writes a plan learns nothing of another by naming it."""
    await at.put(patient("bob"), patient(), goal("walk", "Walk twenty minutes a day"))
    await at.put(plan() | other)
    await at.after(seconds=900)
    at.receiver.requests.clear()
    await at.put(*goals(), successor())
    (notice,) = await at.after(seconds=900)
    assert words(notice) == "The care plan is new; its document is attached."
    (communication,) = resources(notice, "Communication")
    assert "contained" not in communication


async def test_a_plan_that_was_called_off_tells_nothing_but_that(at: Desk) -> None:
    """Its goals and team go on in another plan, which tells of them."""
    await at.begin()
    at.receiver.requests.clear()
    await at.put(plan("revoked", goals=()))
    (notice,) = await at.after(seconds=900)
    assert words(notice) == "The care plan is revoked (was active)."
    await at.put(
        {
            "resourceType": "CareTeam",
            "id": "team",
            "status": "inactive",
            "subject": reference("Patient/ann"),
        },
        goal("walk", "Walk an hour a day"),
    )
    assert len(await at.after(seconds=900)) == 1
