"""The content of one notice about a care plan: its trigger, its text, and the Communication that holds them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from app.automation.reactions import stable_id
from app.coordination.care_plans.changes import parameters, text_of
from app.coordination.care_plans.difference import PlanChange
from app.coordination.care_plans.state import PlanState, subject_of
from app.fhir.codes import CARE_PLAN_CHANGE, CARE_PLAN_CHANGES, CARE_PLAN_REVIEW, CARE_PLAN_REVIEWS
from app.fhir.json import Resource

NoticeKind = Literal["created", "copy", "changed", "deleted", "yearly"]
# What they carry a document with: `copy` goes to those alone who have come to the patient since the last notice.
WITH_DOCUMENT = frozenset({"created", "copy", "yearly"})
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
class PlanNotice:
    """One notice about a plan: its kind and number, its time, the state it is about, and the changes since the last."""

    plan: str
    kind: NoticeKind
    number: int
    at: datetime
    state: PlanState
    changes: Sequence[PlanChange] = ()
    # The plan that this one came in the place of, in words.
    replaces: str = ""

    def id(self, what: str) -> str:
        """The id of a resource that this notice stores."""
        return stable_id(f"care-plan-{what}", self.plan, str(self.number))


def coding(notice: PlanNotice) -> dict[str, str]:
    """The Coding for the trigger of the notice and the category of its Communication."""
    if notice.kind == "yearly":
        return _coding(CARE_PLAN_REVIEW, CARE_PLAN_REVIEWS, "yearly")
    if notice.kind in WITH_DOCUMENT:
        return _coding(CARE_PLAN_CHANGE, CARE_PLAN_CHANGES, "created")
    kinds = {_CODE_OF.get(change.kind, "changed") for change in notice.changes}
    return _coding(
        CARE_PLAN_CHANGE, CARE_PLAN_CHANGES, kinds.pop() if len(kinds) == 1 else "changed"
    )


def _coding(system: str, displays: dict[str, str], code: str) -> dict[str, str]:
    return {"system": system, "code": code, "display": displays[code]}


def communication(notice: PlanNotice, carried: Sequence[str]) -> Resource:
    """The Communication of a notice, not yet addressed: text, changes (unless all is new), and what it carries."""
    plan = {"reference": f"CarePlan/{notice.plan}"}
    patient = subject_of(notice.state.plan)
    payload: list[dict[str, Any]] = [{"contentString": told(notice)}]
    found: Resource = {
        "resourceType": "Communication",
        "id": notice.id("notice"),
        "category": [{"coding": [coding(notice)]}],
        "basedOn": [plan],
        "about": [plan, *({"reference": each} for each in carried)],
    }
    if patient is not None:
        found["subject"] = {"reference": patient}
    if not _is_all_new(notice):
        changes = {**parameters(notice.changes), "id": "changes"}
        found["contained"] = [changes]
        payload.append({"contentReference": {"reference": "#changes"}})
    payload += [{"contentReference": {"reference": each}} for each in carried]
    found["payload"] = payload
    if labels := notice.state.plan.get("meta", {}).get("security"):
        found["meta"] = {"security": labels}
    return found


def told(notice: PlanNotice) -> str:
    """The notice as text."""
    if notice.kind == "copy":
        return "The care plan is new to the practice; its document is attached."
    if notice.kind == "created" and notice.replaces:
        head = f"The care plan replaces {notice.replaces}; its document is attached. What differs:"
        return f"{head}\n{text_of(notice.changes)}"
    if notice.kind == "created":
        return "The care plan is new; its document is attached."
    if notice.kind == "yearly":
        return f"Changes of the care plan since its last copy:\n{text_of(notice.changes)}"
    return text_of(notice.changes)


def _is_all_new(notice: PlanNotice) -> bool:
    """Whether there is nothing that the plan could be compared with."""
    return notice.kind == "copy" or (notice.kind == "created" and not notice.replaces)
