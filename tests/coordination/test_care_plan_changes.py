"""What counts as a change of a care plan, and how it is told: as data, as a sentence, and by `$changes`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from app.coordination.care_plans.changes import diff, parameters, text_of
from app.coordination.care_plans.state import PlanState
from tests.builders.care_plans import (
    Desk,
    Json,
    achieved,
    care_team,
    goal,
    participant,
    plan,
    reference,
    tier,
)
from tests.outcomes import assert_outcome, errors_in

NAMES = {
    "Practitioner/rn": "Rosa Nunez",
    "Practitioner/sw": "Sam Wu",
    "Condition/hf": "Heart failure",
}
LOCAL_ROLE = "http://carerelay.example/CodeSystem/care-team-role"
CONTACT = {"coding": [{"system": LOCAL_ROLE, "code": "point-of-contact"}], "text": "Contact"}


def state(plan_: Json, *others: Json) -> PlanState:
    return PlanState(plan_, {f"{each['resourceType']}/{each['id']}": each for each in others})


def told(before: PlanState, after: PlanState) -> list[tuple[str, str, str]]:
    return [(each.kind, each.what, each.text) for each in diff(before, after, NAMES)]


WALK = goal("walk", "Walk daily")


def request(status: str = "active") -> Json:
    return {"resourceType": "ServiceRequest", "id": "pt", "status": status, "code": {"text": "PT"}}


def with_detail(status: str, text: str = "Weigh daily", **more: Any) -> Json:
    return plan(activity=[{"detail": {"status": status, "description": text}, **more}])


def risk(text: str) -> Json:
    prediction = [{"qualitativeRisk": {"text": text}}]
    return {
        "resourceType": "RiskAssessment",
        "id": "r",
        "status": "final",
        "prediction": prediction,
    }


PLANNED_PT = plan(activity=[{"reference": reference("ServiceRequest/pt")}])
ASSESSED = plan(supportingInfo=[reference("RiskAssessment/r")])
NURSE = participant("Practitioner/rn", "Nurse")


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        pytest.param(
            state(plan(goals=())),
            state(plan(), WALK),
            [("goal", "added", "Goal added: Walk daily.")],
            id="goal-added",
        ),
        pytest.param(
            state(plan(goals=())),
            state(plan(), WALK | {"target": [{"dueDate": "2027-01-01"}]}),
            [("goal", "added", "Goal added: Walk daily (due 2027-01-01).")],
            id="goal-added-with-due-date",
        ),
        pytest.param(
            state(plan()),
            state(plan(), WALK),
            [("goal", "added", "Goal added: Walk daily.")],
            id="goal-known-only-now",
        ),
        pytest.param(
            state(plan(), WALK),
            state(plan(), goal("walk", "Walk daily", achievementStatus=achieved())),
            [("goal", "met", "Goal met: Walk daily.")],
            id="goal-achieved",
        ),
        pytest.param(
            state(plan(), WALK),
            state(plan(), goal("walk", "Walk daily", "completed")),
            [("goal", "met", "Goal met: Walk daily.")],
            id="goal-completed",
        ),
        pytest.param(
            state(plan(), goal("walk", "Walk daily", "completed")),
            state(plan(), goal("walk", "Walk daily", "completed", achievementStatus=achieved())),
            [("goal", "changed", "Goal changed: Walk daily (progress: achieved, was none).")],
            id="goal-met-before",
        ),
        pytest.param(
            state(plan(), WALK),
            state(plan(goals=())),
            [("goal", "dropped", "Goal dropped: Walk daily.")],
            id="goal-removed",
        ),
        pytest.param(
            state(plan(), WALK),
            state(plan()),
            [("goal", "dropped", "Goal dropped: Walk daily.")],
            id="goal-deleted",
        ),
        *(
            pytest.param(
                state(plan(), WALK),
                state(plan(), goal("walk", "Walk daily", status)),
                [("goal", "dropped", f"Goal dropped: Walk daily ({status}).")],
                id=f"goal-{status}",
            )
            for status in ("cancelled", "rejected", "entered-in-error")
        ),
        pytest.param(
            state(plan(), WALK),
            state(plan(), goal("walk", "Walk an hour", priority={"text": "high"})),
            [
                (
                    "goal",
                    "changed",
                    "Goal changed: Walk an hour (description: Walk an hour, was Walk daily; priority: high, was none).",
                )
            ],
            id="goal-changed",
        ),
        pytest.param(
            state(plan(), WALK),
            state(
                plan(),
                goal(
                    "walk",
                    "Walk daily",
                    target=[{"measure": {"text": "Steps"}, "detailInteger": 4000}],
                ),
            ),
            [("goal", "changed", "Goal changed: Walk daily (target: Steps 4000, was none).")],
            id="goal-target",
        ),
        pytest.param(
            state(plan()),
            state(PLANNED_PT, request()),
            [("activity", "added", "Activity added: PT (active).")],
            id="activity-added",
        ),
        pytest.param(
            state(PLANNED_PT, request()),
            state(plan()),
            [("activity", "removed", "Activity removed: PT.")],
            id="activity-removed",
        ),
        pytest.param(
            state(PLANNED_PT, request()),
            state(PLANNED_PT, request("completed")),
            [("activity", "changed", "Activity completed: PT (was active).")],
            id="request-completed",
        ),
        pytest.param(
            state(with_detail("scheduled")),
            state(with_detail("in-progress")),
            [("activity", "changed", "Activity in-progress: Weigh daily (was scheduled).")],
            id="detail-status",
        ),
        pytest.param(
            state(with_detail("scheduled")),
            state(with_detail("scheduled", progress=[{"text": "Has a scale now"}])),
            [("activity", "changed", "Activity changed: Weigh daily (Has a scale now).")],
            id="activity-progress",
        ),
        pytest.param(
            state(plan(), care_team(NURSE)),
            state(plan(), care_team(NURSE, participant("Practitioner/sw", "Social worker"))),
            [("care-team", "added", "Care team: Sam Wu joined (Social worker).")],
            id="member-joined",
        ),
        pytest.param(
            state(plan(), care_team(NURSE)),
            state(plan(), care_team(participant("Practitioner/sw", "Nurse"))),
            [
                ("care-team", "added", "Care team: Sam Wu joined (Nurse)."),
                ("care-team", "removed", "Care team: Rosa Nunez left (Nurse)."),
            ],
            id="member-replaced",
        ),
        pytest.param(
            state(plan(), care_team(NURSE)),
            state(plan(), care_team(NURSE | {"period": {"end": "2026-12-31"}})),
            [
                (
                    "care-team",
                    "changed",
                    "Care team: Rosa Nunez is now Nurse until 2026-12-31 (was Nurse).",
                )
            ],
            id="member-ends",
        ),
        pytest.param(
            state(plan(), care_team(NURSE | {"role": [CONTACT]})),
            state(
                plan(),
                care_team(
                    NURSE | {"role": [CONTACT]}, telecom=[{"system": "phone", "value": "555-0100"}]
                ),
            ),
            [("care-team", "changed", "Point of contact: Rosa Nunez, 555-0100 (was Rosa Nunez).")],
            id="telephone-of-the-contact",
        ),
        pytest.param(
            state(plan(period={"start": "2026-01-01"})),
            state(plan(period={"start": "2026-01-01", "end": "2026-06-30"})),
            [
                (
                    "period",
                    "changed",
                    "The care plan's period is from 2026-01-01 to 2026-06-30 (was from 2026-01-01, no end stated).",
                )
            ],
            id="period",
        ),
        pytest.param(
            state(plan()),
            state(plan("revoked")),
            [("status", "changed", "The care plan is revoked (was active).")],
            id="status",
        ),
        pytest.param(
            state(plan()),
            state(plan(addresses=[reference("Condition/hf")])),
            [("addresses", "added", "Condition addressed, added: Heart failure.")],
            id="condition",
        ),
        pytest.param(
            state(plan()),
            state(plan(), tier("High")),
            [("risk-tier", "added", "The risk tier is High (was not stated).")],
            id="flag",
        ),
        pytest.param(
            state(ASSESSED, risk("Moderate")),
            state(ASSESSED, risk("High")),
            [("risk-tier", "changed", "The risk tier is High (was Moderate).")],
            id="risk-assessment",
        ),
        pytest.param(
            state(plan()),
            state(plan(note=[{"text": "Prefers mornings"}])),
            [("plan", "changed", "The care plan's note: Prefers mornings, was none.")],
            id="note",
        ),
        pytest.param(
            state(plan()),
            state(plan() | {"title": "Living well"}),
            [
                (
                    "plan",
                    "changed",
                    "The care plan's title: Living well, was Living with heart failure.",
                )
            ],
            id="title",
        ),
        pytest.param(
            state(
                plan(goals=("#g",), contained=[WALK | {"id": "g"}]) | {"goal": [reference("#g")]}
            ),
            state(
                plan(contained=[goal("g", "Walk daily", "completed")]) | {"goal": [reference("#g")]}
            ),
            [("goal", "met", "Goal met: Walk daily.")],
            id="contained-goal",
        ),
    ],
)
def test_a_change_is_told(
    before: PlanState, after: PlanState, expected: Sequence[tuple[str, str, str]]
) -> None:
    assert told(before, after) == expected


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(plan(meta={"versionId": "1"}), plan(meta={"versionId": "2"}), id="meta"),
        pytest.param(plan(text={"div": "<div>a</div>"}), plan(text={"div": "<div>b</div>"}), id="text"),
        pytest.param(plan(language="en"), plan(language="de"), id="language"),
        pytest.param(plan(), plan() | {"goal": [reference("Goal/walk", "Walk")]}, id="display"),
        pytest.param(plan(goals=("a", "b")), plan(goals=("b", "a")), id="order"),
        pytest.param(
            plan(category=[{"coding": [{"code": "x"}]}]),
            plan(category=[{"coding": [{"code": "x", "display": "X"}]}]),
            id="display-of-a-code",
        ),
    ],
)  # fmt: skip
def test_what_says_nothing_new_is_no_change(before: Json, after: Json) -> None:
    assert told(state(before), state(after)) == []


def test_a_confidential_goal_is_told_without_what_it_is() -> None:
    secret = [{"system": "http://terminology.hl7.org/CodeSystem/v3-Confidentiality", "code": "R"}]
    old = goal("walk", "Stay sober", meta={"security": secret})
    new = goal("walk", "Stay sober for a year", meta={"security": secret})
    changes = diff(state(plan(), old), state(plan(), new), {})
    assert [each.text for each in changes] == ["Goal changed: (withheld: confidential)."]
    assert "sober" not in str(parameters(changes))


def test_changes_are_valid_parameters_and_readable_text() -> None:
    changes = diff(state(plan()), state(plan("on-hold"), WALK), NAMES)
    found = parameters(changes)
    assert errors_in(found) == []
    assert found["parameter"][0] == {"name": "text", "valueString": text_of(changes)}
    assert text_of(changes) == "The care plan is on-hold (was active).\nGoal added: Walk daily."
    assert text_of([]) == "Nothing has changed."


class TestOperation:
    """`CarePlan/[id]/$changes`."""

    pytestmark = pytest.mark.mongo

    async def changes(self, at: Desk, query: str = "") -> Json:
        found = await at.get(f"{at.ref('CarePlan/plan')}/$changes{query}")
        assert errors_in(found) == []
        return found

    def value(self, found: Json, name: str) -> Any:
        (parameter,) = [each for each in found["parameter"] if each["name"] == name]
        return next(value for key, value in parameter.items() if key != "name")

    async def test_without_since_it_is_what_has_not_been_told_yet(self, at: Desk) -> None:
        await at.begin()
        await at.put(goal("walk", "Walk twenty minutes a day", "completed"))
        assert self.value(await self.changes(at), "text") == "Goal met: Walk twenty minutes a day."
        await at.after(seconds=900)
        assert self.value(await self.changes(at), "text") == "Nothing has changed."

    async def test_a_plan_nobody_was_told_of_is_compared_with_its_first_version(
        self, at: Desk
    ) -> None:
        await at.put(goal("walk", "Walk"), plan("draft"), plan("draft", period={"start": "2026"}))
        found = await self.changes(at)
        assert self.value(found, "text") == (
            "The care plan's period is from 2026, no end stated (was not stated)."
        )
        assert self.value(found, "from") == reference(at.ref("CarePlan/plan") + "/_history/1")
        assert self.value(found, "to") == reference(at.ref("CarePlan/plan") + "/_history/2")

    async def test_since_a_time_what_was_then_is_compared_with(self, at: Desk) -> None:
        await at.put(goal("walk", "Walk"), plan("draft"))
        await at.put(goal("walk", "Walk far"))
        version = await at.get(at.ref("Goal/walk"))
        await at.put(goal("walk", "Walk far", "completed"), plan("active"))
        found = await self.changes(at, f"?_since={version['meta']['lastUpdated']}")
        assert self.value(found, "text").splitlines() == [
            "The care plan is active (was draft).",
            "Goal met: Walk far.",
        ]

    async def test_since_before_the_first_version_the_first_is_compared_with(
        self, at: Desk
    ) -> None:
        await at.put(goal("walk", "Walk"), plan("draft"), plan("active"))
        found = await self.changes(at, "?_since=1999-01-01T00:00:00Z")
        assert self.value(found, "text") == "The care plan is active (was draft)."

    async def test_bad_requests_are_clear(self, at: Desk) -> None:
        assert_outcome(await at.client.get("CarePlan/none-such/$changes"), 404, "not-found")
        await at.put(plan())
        path = f"{at.ref('CarePlan/plan')}/$changes"
        assert_outcome(await at.client.get(f"{path}?_since=soon"), 400, "value", "_since")
        await at.client.delete(at.ref("CarePlan/plan"))
        assert_outcome(await at.client.get(path), 410, "deleted")
