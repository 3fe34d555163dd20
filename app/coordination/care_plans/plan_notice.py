"""What one notice about a care plan says: its trigger, its words, and the Communication that keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from app.automation.reactions import stable_id
from app.coordination.care_plans.changes import parameters, text_of
from app.coordination.care_plans.difference import Change
from app.coordination.care_plans.state import PlanState, subject_of
from app.fhir.codes import CARE_PLAN_CHANGE, CARE_PLAN_CHANGES, CARE_PLAN_REVIEW, CARE_PLAN_REVIEWS
from app.fhir.json import Resource
from app.records.versions import instant

NoticeKind = Literal["created", "changed", "deleted", "yearly"]
_CODE_OF = {
    "activity": "activities",
    "addresses": "conditions",
    "care-team": "team",
    "goal": "goals",
    "period": "period",
    "risk-tier": "risk-tier",
    "status": "status",
}


@dataclass(frozen=True, slots=True)
class Notice:
    """One notice about a plan: what kind, which one, when, of which state, compared with which."""

    plan: str
    kind: NoticeKind
    number: int
    at: datetime
    state: PlanState
    changes: Sequence[Change]

    def id(self, what: str) -> str:
        """The id of something that this notice stores."""
        return stable_id(f"care-plan-{what}", self.plan, str(self.number))


def coding(notice: Notice) -> dict[str, str]:
    """What has happened: the trigger of the notice and the category of its Communication."""
    if notice.kind == "yearly":
        return _coding(CARE_PLAN_REVIEW, CARE_PLAN_REVIEWS, "yearly")
    if notice.kind == "created":
        return _coding(CARE_PLAN_CHANGE, CARE_PLAN_CHANGES, "created")
    kinds = {_CODE_OF.get(change.kind, "changed") for change in notice.changes}
    return _coding(
        CARE_PLAN_CHANGE, CARE_PLAN_CHANGES, kinds.pop() if len(kinds) == 1 else "changed"
    )


def _coding(system: str, displays: dict[str, str], code: str) -> dict[str, str]:
    return {"system": system, "code": code, "display": displays[code]}


def communication(notice: Notice, carried: Sequence[str]) -> Resource:
    """What is told, in words and as contained Parameters; of a first copy, where the document is."""
    plan = {"reference": f"CarePlan/{notice.plan}"}
    patient = subject_of(notice.state.plan)
    payload: list[dict[str, Any]] = [{"contentString": told(notice)}]
    found: Resource = {
        "resourceType": "Communication",
        "id": notice.id("notice"),
        "status": "completed",
        "category": [{"coding": [coding(notice)]}],
        "basedOn": [plan],
        "about": [plan, *({"reference": each} for each in carried)],
        "sent": instant(notice.at),
    }
    if patient is not None:
        found["subject"] = {"reference": patient}
    if notice.kind != "created":
        changes = {**parameters(notice.changes), "id": "changes"}
        found["contained"] = [changes]
        payload.append({"contentReference": {"reference": "#changes"}})
    payload += [{"contentReference": {"reference": each}} for each in carried]
    found["payload"] = payload
    if labels := notice.state.plan.get("meta", {}).get("security"):
        found["meta"] = {"security": labels}
    return found


def told(notice: Notice) -> str:
    """The notice as text."""
    if notice.kind == "created":
        return "The care plan is new; its document is attached."
    if notice.kind == "yearly":
        return f"Changes of the care plan since its last copy:\n{text_of(notice.changes)}"
    return text_of(notice.changes)
