"""Care plans are told of: a first copy, one notice for what changed in a quiet period, and a yearly summary."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from app.coordination.care_plans import quiet_period
from app.fhir.instants import a_year_after, span
from tests.builders.care_plans import (
    REVIEW,
    Desk,
    achieved,
    care_team,
    desk,
    goal,
    participant,
    patient,
    plan,
    reference,
    resources,
    serving,
    tier,
    trigger,
    words,
)
from tests.builders.consents import actor, consent, deny, permit
from tests.builders.reactions import make_due

pytestmark = [pytest.mark.mongo, pytest.mark.slow]
ANN = reference("Patient/ann")


@pytest.fixture
async def told(at: Desk) -> Desk:
    """The practice has its first copy; what it received is forgotten."""
    await at.begin()
    at.receiver.requests.clear()
    return at


async def test_the_first_active_plan_is_told_with_its_document(at: Desk) -> None:
    await at.begin()
    (notice,) = at.receiver.events
    assert trigger(notice) == "created"
    assert notice.focus.endswith(at.ref("/CarePlan/plan"))
    (document,) = resources(notice, "Bundle")
    (index,) = resources(notice, "DocumentReference")
    assert document["type"] == "document"
    assert document["entry"][0]["resource"]["resourceType"] == "Composition"
    assert index["masterIdentifier"] == document["identifier"]
    assert index["context"]["related"] == [reference(at.ref("CarePlan/plan"))]
    assert index["content"][0]["attachment"]["url"].endswith(f"/Bundle/{document['id']}")


def refusal(*categories: str, **provision: Any) -> dict[str, Any]:
    """Ann's Consent that refuses this and nothing else."""
    rule = permit(provision=[deny(**provision)]) if provision else deny()
    given = consent(*categories, provision=rule, policyRule={"text": "Policy"})
    return {**given, "id": f"no{len(categories)}", "patient": ANN}


async def written(at: Desk, kind: str) -> list[dict[str, Any]]:
    """What the server wrote about Ann's plan, of a type: proofs of notices have no content."""
    found = await at.get(f"{kind}?subject={at.ref('Patient/ann')}")
    every = [each["resource"] for each in found.get("entry", [])]
    return [each for each in every if not each.keys().isdisjoint(("content", "payload"))]


async def test_what_a_provider_is_refused_is_in_no_copy_and_no_text(at: Desk) -> None:
    """A copy is made once for all who read it; whoever may see more asks `$summary`."""
    no_goals = {"class": [{"system": "http://hl7.org/fhir/resource-types", "code": "Goal"}]}
    await at.put(patient(), refusal(**no_goals, actor=actor("Organization/other")))
    named = {**reference("Goal/walk"), "display": "Walk twenty minutes"}
    await at.begin(goal=[named])
    (index,) = await written(at, "DocumentReference")
    document = await at.get(index["content"][0]["attachment"]["url"])
    assert "Rosa Nunez" in str(document)
    assert "Walk twenty minutes a day" not in str(document)
    # The plan's own words stand in the plan alone.
    assert "Walk twenty" not in str(document["entry"][0])
    at.receiver.requests.clear()
    await at.put(goal("walk", "Walk an hour a day"))
    assert await at.after(seconds=900) == []
    await at.put(plan(title="Another title", goals=()), goal("walk", "Walk two hours a day"))
    await at.after(seconds=900)
    texts = [str(each["payload"]) for each in await written(at, "Communication")]
    assert any("Another title" in each for each in texts)
    assert not any("Walk" in each for each in texts)
    await at.put(plan(title="Another title"))
    assert "two hours a day" in str(await at.get(at.ref("CarePlan/plan") + "/$summary"))


async def test_nothing_is_written_of_a_plan_that_providers_are_refused(at: Desk) -> None:
    await at.put(patient(), refusal("case-management"))
    await at.begin()
    await at.put(plan(title="Another title"))
    assert await at.after(seconds=900) == []
    assert not [*await written(at, "Communication"), *await written(at, "DocumentReference")]
    # Once it is refused no more, what is then told is what has changed since.
    await at.put({**refusal("case-management"), "status": "inactive"}, plan("on-hold"))
    (notice,) = await at.after(seconds=900)
    assert "on-hold" in words(notice)


async def test_a_draft_is_not_told_until_it_is_active(at: Desk) -> None:
    await at.begin(status="draft")
    assert at.receiver.events == []
    await at.put(plan())
    (notice,) = await at.after(seconds=900)
    assert trigger(notice) == "created"


async def test_nothing_is_told_before_the_quiet_period_is_over(told: Desk) -> None:
    await told.put(plan("on-hold"))
    assert await told.after(seconds=890) == []
    (notice,) = await told.after(seconds=10)
    assert trigger(notice) == "status"
    assert words(notice) == "The care plan is on-hold (was active)."


async def test_ten_edits_are_one_notice_with_their_sum(told: Desk) -> None:
    for number in range(10):
        await told.put(goal(f"g{number}", f"Goal number {number}"))
        await told.put(plan(goals=("walk", *(f"g{each}" for each in range(number + 1)))))
        await told.after(seconds=20)
    (notice,) = await told.after(seconds=900)
    assert words(notice).splitlines() == [f"Goal added: Goal number {each}." for each in range(10)]
    assert trigger(notice) == "goals"
    (communication,) = resources(notice, "Communication")
    (parameters,) = communication["contained"]
    changes = [each for each in parameters["parameter"] if each["name"] == "change"]
    assert changes[0]["part"] == [
        {"name": "kind", "valueCode": "goal"},
        {"name": "what", "valueCode": "added"},
        {"name": "reference", "valueReference": reference(told.ref("Goal/g0"))},
        {"name": "after", "valueString": "Goal number 0"},
        {"name": "text", "valueString": "Goal added: Goal number 0."},
    ]


async def test_the_quiet_period_counts_from_the_first_change(told: Desk) -> None:
    """However busy a plan is, nobody waits longer."""
    await told.put(plan("on-hold"))
    await told.after(seconds=600)
    await told.put(plan("on-hold", goals=()))
    (notice,) = await told.after(seconds=300)
    assert words(notice).splitlines() == [
        "The care plan is on-hold (was active).",
        "Goal dropped: Walk twenty minutes a day.",
    ]


async def test_a_plan_that_ended_before_it_came_here_is_not_told(at: Desk) -> None:
    await at.begin(status="completed")
    await at.put(goal("walk", "Walk an hour a day"))
    assert await at.after(seconds=2000) == []


async def test_an_edit_that_is_undone_is_not_told(told: Desk) -> None:
    await told.put(plan("on-hold"))
    await told.after(seconds=60)
    await told.put(plan("active"))
    assert await told.after(seconds=2000) == []


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(
            plan(
                text={
                    "status": "additional",
                    "div": '<div xmlns="http://www.w3.org/1999/xhtml">N</div>',
                }
            ),
            id="narrative",
        ),
        pytest.param(plan(meta={"tag": [{"system": "urn:x", "code": "seen"}]}), id="meta"),
        pytest.param(plan() | {"goal": [reference("Goal/walk", "Walk")]}, id="display"),
    ],
)
async def test_what_says_nothing_new_is_not_told(told: Desk, changed: dict[str, Any]) -> None:
    await told.put(changed)
    assert await told.after(seconds=2000) == []


async def test_a_goal_that_is_met_is_told_although_the_plan_itself_did_not_change(
    told: Desk,
) -> None:
    before = await told.get(told.ref("CarePlan/plan"))
    await told.put(goal("walk", "Walk twenty minutes a day", achievementStatus=achieved()))
    (notice,) = await told.after(seconds=900)
    assert words(notice) == "Goal met: Walk twenty minutes a day."
    assert await told.get(told.ref("CarePlan/plan")) == before


async def test_a_new_member_of_the_team_is_told_by_name(told: Desk) -> None:
    member = {"resourceType": "Practitioner", "id": "sw", "name": [{"text": "Sam Wu LCSW"}]}
    nurse = participant("Practitioner/rn", "Nurse care manager")
    await told.put(member, care_team(nurse, participant("Practitioner/sw", "Social worker")))
    (notice,) = await told.after(seconds=900)
    assert words(notice) == "Care team: Sam Wu LCSW joined (Social worker)."
    assert trigger(notice) == "team"


async def test_people_are_told_of_by_name_whatever_the_references_lead_to(told: Desk) -> None:
    """A role is called by its practitioner; what is not known by its kind, never by its address."""
    role = {
        "resourceType": "PractitionerRole",
        "id": "role",
        "practitioner": reference("Practitioner/sw"),
        "code": [{"text": "Social worker"}],
    }
    await told.put(
        {"resourceType": "Practitioner", "id": "sw", "name": [{"text": "Sam Wu LCSW"}]},
        {"resourceType": "Organization", "id": "house", "name": "Harbour House"},
        role,
        goal("walk", "Walk twenty minutes a day", expressedBy=reference("PractitionerRole/role")),
        plan(author=reference("Practitioner/nobody")),
        care_team(
            participant(
                "Practitioner/rn", "Nurse care manager", onBehalfOf=reference("Organization/house")
            ),
            participant("PractitionerRole/role", "Helper"),
            participant("Practitioner/nobody", "PCP"),
        ),
    )
    (notice,) = await told.after(seconds=900)
    assert words(notice).splitlines() == [
        "Goal changed: Walk twenty minutes a day (who expressed it: Sam Wu LCSW, was none).",
        "Care team: Rosa Nunez RN is now Nurse care manager for Harbour House (was Nurse care manager).",
        "Care team: Sam Wu LCSW joined (Helper).",
        "Care team: a practitioner joined (PCP).",
        "The care plan's author: a practitioner, was none.",
    ]


async def test_the_risk_tier_is_told(told: Desk) -> None:
    await told.put(tier("High"))
    (notice,) = await told.after(seconds=900)
    assert words(notice) == "The risk tier is High (was not stated)."
    await told.put(tier("High", status="inactive"))
    assert words((await told.after(seconds=900))[1]) == (
        "The risk tier is no longer stated (was High)."
    )


async def test_what_was_requested_is_told_once_it_is_done(told: Desk) -> None:
    request = {
        "resourceType": "ServiceRequest",
        "id": "pt",
        "status": "active",
        "intent": "order",
        "code": {"text": "Physical therapy"},
        "subject": reference("Patient/ann"),
    }
    await told.put(request, plan(activity=[{"reference": reference("ServiceRequest/pt")}]))
    (added,) = await told.after(seconds=900)
    assert words(added) == "Activity added: Physical therapy (active)."
    await told.put(request | {"status": "completed"})
    assert words((await told.after(seconds=900))[1]) == (
        "Activity completed: Physical therapy (was active)."
    )


async def test_several_kinds_of_changes_are_told_as_such(told: Desk) -> None:
    await told.put(plan("on-hold", goals=(), period={"start": "2026-01-01", "end": "2026-12-31"}))
    (notice,) = await told.after(seconds=900)
    assert trigger(notice) == "changed"
    assert words(notice).splitlines() == [
        "The care plan is on-hold (was active).",
        "Goal dropped: Walk twenty minutes a day.",
        "The care plan's period is from 2026-01-01 to 2026-12-31 (was not stated).",
    ]


async def test_a_deleted_plan_is_told_and_a_new_one_begins_anew(told: Desk) -> None:
    await told.client.delete(told.ref("CarePlan/plan"))
    (notice,) = await told.after(seconds=900)
    assert words(notice) == "The care plan was deleted."
    await told.put(plan())
    assert [trigger(each) for each in await told.after(seconds=900)] == ["status", "created"]


async def test_with_no_quiet_period_each_edit_is_a_notice(mongod: str) -> None:
    async with serving(mongod, quiet=0) as pair, desk(pair) as at:
        await at.begin()
        for status in ("on-hold", "active", "completed"):
            await at.put(plan(status))
        await at.settle()
        await at.put(goal("walk", "Walk twenty minutes a day", "completed"))
        notices = await at.settle()
        assert [trigger(each) for each in notices] == [
            "created",
            "status",
            "status",
            "status",
            "goals",
        ]
        assert [words(each) for each in notices][1:4] == [
            "The care plan is on-hold (was active).",
            "The care plan is active (was on-hold).",
            "The care plan is completed (was active).",
        ]


async def test_a_repeated_reaction_makes_nothing_twice(told: Desk) -> None:
    await told.put(plan("on-hold"))
    await told.after(seconds=900)
    await make_due(told.server.mongo, all_again=True)
    await told.server.engine.reactions.sweep()
    assert len(await told.after(seconds=2000)) == 1
    assert (
        await told.get(
            f"Communication?subject={told.ref('Patient/ann')}&based-on:missing=false&_summary=count"
        )
    )["total"] == 2
    assert (await told.get(f"DocumentReference?subject={told.ref('Patient/ann')}&_summary=count"))[
        "total"
    ] == 1


async def test_a_notice_that_was_put_down_is_carried_out_by_whoever_finds_it(told: Desk) -> None:
    """The process died between putting the notice down and sending it."""
    await told.put(plan("on-hold"))
    rows = told.server.mongo.collection("plan_notices")
    row = await rows.find_one({"_id": told.ref("plan")})
    versions = {
        key: 2 if key == told.ref("CarePlan/plan") else version for key, version in row["versions"]
    }
    pending = {"number": 2, "kind": "changed", "at": told.server.clock.now()}
    pending["versions"] = [[key, version] for key, version in versions.items()]
    await rows.update_one({"_id": told.ref("plan")}, {"$set": {"pending": pending}})
    (notice,) = await told.after(seconds=900)
    assert words(notice) == "The care plan is on-hold (was active)."


class TestAnniversary:
    """The yearly summary."""

    @pytest.fixture
    async def reviewed(self, told: Desk) -> Desk:
        await told.subscribe(REVIEW)
        told.receiver.requests.clear()
        return told

    async def notices(self, reviewed: Desk) -> dict[str, Any]:
        """What has been told, as it is kept."""
        return await reviewed.get(f"Communication?subject={reviewed.ref('Patient/ann')}")

    async def test_the_changes_of_the_year_are_summed_up_in_a_new_document(
        self, reviewed: Desk
    ) -> None:
        await reviewed.after(days=200)
        await reviewed.put(goal("walk", "Walk twenty minutes a day", "completed"))
        assert len(await reviewed.after(seconds=900)) == 1
        # The year is that of the last document, whatever was told since.
        assert len(await reviewed.after(days=164)) == 1
        notices = await reviewed.after(days=2)
        assert [trigger(each) for each in notices] == ["goals", "yearly"]
        (document,) = resources(notices[1], "Bundle")
        sections = document["entry"][0]["resource"]["section"]
        assert sections[0]["title"] == "Changes since the last copy"
        assert "Goal met: Walk twenty minutes a day." in sections[0]["text"]["div"]
        (index,) = resources(notices[1], "DocumentReference")
        (replaced,) = index["relatesTo"]
        earlier = await reviewed.get(replaced["target"]["reference"])
        assert (replaced["code"], earlier["status"]) == ("replaces", "superseded")

    async def test_it_comes_on_the_day_and_every_year(self, reviewed: Desk) -> None:
        assert await reviewed.after(days=364) == []
        assert len(await reviewed.after(days=2)) == 1
        assert len(await reviewed.after(days=366)) == 2

    @pytest.mark.parametrize(
        ("answer", "expected"),
        [
            pytest.param(
                {
                    "resourceType": "Communication",
                    "sender": reference("Practitioner/dr"),
                    "inResponseTo": ...,
                },
                0,
                id="answered",
            ),
            pytest.param(
                {
                    "resourceType": "Communication",
                    "sender": reference("Organization/pr"),
                    "about": ...,
                },
                0,
                id="about-it",
            ),
            pytest.param(
                {
                    "resourceType": "Communication",
                    "sender": reference("Patient/ann"),
                    "inResponseTo": ...,
                },
                1,
                id="by-the-member",
            ),
            pytest.param({"resourceType": "Task", "for": ANN, "focus": ...}, 0, id="task"),
            pytest.param(
                {"resourceType": "Task", "for": ANN, "focus": ..., "status": "requested"},
                1,
                id="open-task",
            ),
            pytest.param({"resourceType": "Task", "focus": ...}, 1, id="task-about-nobody"),
        ],
    )
    async def test_an_unchanged_plan_that_was_acknowledged_needs_no_summary(
        self, reviewed: Desk, answer: dict[str, Any], expected: int
    ) -> None:
        (entry,) = (await self.notices(reviewed))["entry"]
        notice = reference(f"Communication/{entry['resource']['id']}")
        listed = answer["resourceType"] == "Communication"
        filled = {k: ([notice] if listed else notice) if v is ... else v for k, v in answer.items()}
        own = {"subject": ANN} if listed else {"intent": "order"}
        await reviewed.put({"id": "answer", "status": "completed", **own, **filled})
        assert len(await reviewed.after(days=366)) == expected

    async def test_a_change_that_was_acknowledged_before_does_not_count(
        self, reviewed: Desk
    ) -> None:
        """Only an answer to the last notice does."""
        (entry,) = (await self.notices(reviewed))["entry"]
        earlier = reference(f"Communication/{entry['resource']['id']}")
        answer: dict[str, Any] = {"resourceType": "Communication", "id": "answer"}
        answer |= {"status": "completed"}
        answer |= {"subject": reference("Patient/ann"), "sender": reference("Practitioner/dr")}
        await reviewed.put(answer | {"inResponseTo": [earlier]}, plan("on-hold"))
        await reviewed.after(seconds=900)
        assert trigger((await reviewed.after(days=366))[1]) == "yearly"

    async def test_an_untold_change_is_summed_up_although_the_last_notice_was_acknowledged(
        self, reviewed: Desk
    ) -> None:
        """It is quiet for five minutes only when the anniversary comes."""
        (entry,) = (await self.notices(reviewed))["entry"]
        earlier = reference(f"Communication/{entry['resource']['id']}")
        task = {"resourceType": "Task", "id": "answer", "status": "completed", "intent": "order"}
        await reviewed.put(task | {"for": ANN, "focus": earlier})
        due = await reviewed.server.engine.timers.due_of("care-plan-review", reviewed.ref("plan"))
        assert due is not None
        ahead = (due - reviewed.server.clock.now()).total_seconds()
        await reviewed.after(seconds=ahead - 300)
        await reviewed.put(plan("on-hold"))
        (notice,) = await reviewed.after(seconds=301)
        assert trigger(notice) == "yearly"
        assert len(await reviewed.after(seconds=900)) == 1

    async def test_an_ended_plan_is_not_reviewed(self, reviewed: Desk) -> None:
        await reviewed.put(plan("completed"))
        assert len(await reviewed.after(seconds=900)) == 1
        assert len(await reviewed.after(days=800)) == 1


@pytest.mark.parametrize(
    ("day", "expected"),
    [
        pytest.param("2026-11-22T10:00:00Z", "2027-11-22T10:00:00Z", id="plain"),
        pytest.param("2024-02-29T10:00:00Z", "2025-02-28T10:00:00Z", id="leap-day"),
    ],
)
def test_the_anniversary_is_a_calendar_year_later(day: str, expected: str) -> None:
    assert a_year_after(span(day)[0]) == span(expected)[0]


async def test_an_app_does_not_wait_for_another_with_a_plan_of_the_same_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def app(name: str) -> Any:
        return SimpleNamespace(services=SimpleNamespace(store=SimpleNamespace(owner=name)))

    slow, fast = app("slow"), app("fast")
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def finish(context: Any, plan_id: str) -> None:
        if context is slow:
            reached.set()
            await go_on.wait()

    async def nothing(*_: Any) -> None:
        return None

    monkeypatch.setattr(quiet_period, "finish", finish)
    monkeypatch.setattr(quiet_period, "state_told", nothing)
    monkeypatch.setattr(quiet_period, "_now", nothing)
    held = asyncio.create_task(quiet_period.tell_of(slow, "plan"))
    await reached.wait()
    again = asyncio.create_task(quiet_period.tell_of(slow, "plan"))
    await asyncio.wait_for(quiet_period.tell_of(fast, "plan"), 5)
    assert not again.done(), "one notice of a plan at a time"
    go_on.set()
    await asyncio.gather(held, again)
