"""The changes between two states of a care plan: as data, as Parameters and as sentences.

Meta, narrative, and displays beside codes and references are left out: they carry no information of their own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.coordination.care_plans import wording as words
from app.coordination.care_plans.activities import activity_changes, goal_changes
from app.coordination.care_plans.difference import (
    SPACED,
    UNTOLD,
    PlanChange,
    PlanChangeKind,
    What,
    content,
    literal,
    normalised,
    plain,
    told,
)
from app.coordination.care_plans.members import team_changes
from app.coordination.care_plans.state import PlanState
from app.coordination.care_plans.wording import Names
from app.fhir.json import Resource

# Elements with a comparison of their own, and `contained`, which the comparison of the references to it covers.
_JUDGED = UNTOLD | {"contained", "goal", "activity", "careTeam", "addresses", "period", "status"}


# What is still told of a plan that has ended: nobody acts on its team, and one that was called off has no goals.
_OF_COMPLETED = frozenset({"status", "goal", "activity", "addresses", "plan"})
_OF_CALLED_OFF = frozenset({"status"})
_TOLD_OF_ENDED: Mapping[str, frozenset[str]] = {
    "completed": _OF_COMPLETED,
    "revoked": _OF_CALLED_OFF,
    "entered-in-error": _OF_CALLED_OFF,
}
ENDED = frozenset(_TOLD_OF_ENDED)


def diff(before: PlanState, after: PlanState, names: Names) -> list[PlanChange]:
    """The changes from one state to the other, the most important ones first; of one that has ended, what matters."""
    found = [
        *_status(before, after),
        *_risk_tier(before, after),
        *goal_changes(before, after, names),
        *activity_changes(before, after, names),
        *(PlanChange("care-team", *each) for each in team_changes(before, after, names)),
        *_period(before, after),
        *_listed(before, after, "addresses", "addresses", names),
        *_others(before, after, names),
    ]
    kinds = _TOLD_OF_ENDED.get(str(after.plan.get("status")))
    return found if kinds is None else [each for each in found if each.kind in kinds]


def text_of(changes: Sequence[PlanChange]) -> str:
    """The changes as sentences, one a line."""
    return "\n".join(change.sentence for change in changes) or "Nothing has changed."


def parameters(changes: Sequence[PlanChange], head: Sequence[Mapping[str, Any]] = ()) -> Resource:
    """The changes as Parameters: `head`, the text, and one `change` for each."""
    return {
        "resourceType": "Parameters",
        "parameter": [
            *head,
            {"name": "text", "valueString": text_of(changes)},
            *({"name": "change", "part": _parts(change)} for change in changes),
        ],
    }


def _parts(change: PlanChange) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"name": "kind", "valueCode": change.kind},
        {"name": "what", "valueCode": change.what},
    ]
    if change.reference:
        parts.append({"name": "reference", "valueReference": {"reference": change.reference}})
    for name, value in (
        ("before", change.before),
        ("after", change.after),
        ("text", change.sentence),
    ):
        if value:
            parts.append({"name": name, "valueString": value})
    return parts


def _status(before: PlanState, after: PlanState) -> Iterable[PlanChange]:
    old, new = (str(state.plan.get("status", "")) for state in (before, after))
    if old != new:
        yield PlanChange("status", "changed", f"The care plan is {new} (was {old}).", "", old, new)


def _period(before: PlanState, after: PlanState) -> Iterable[PlanChange]:
    old, new = (state.plan.get("period") for state in (before, after))
    if normalised(old) != normalised(new):
        sides = (words.period(old), words.period(new))
        text = f"The care plan's period is {sides[1]} (was {sides[0]})."
        yield PlanChange("period", "changed", text, "", *sides)


def tier(state: PlanState) -> str:
    """The risk tier in words: of active flags, and of risk assessments that the plan names."""
    found = [words.concept(flag.get("code")) for flag in state.flags if flag["status"] == "active"]
    for key in state.referred("supportingInfo"):
        assessment = state.find(key)
        if key.startswith("RiskAssessment/") and assessment is not None:
            found += [
                words.concept(prediction.get("qualitativeRisk"))
                for prediction in assessment.get("prediction", ())
            ]
    return words.listing(sorted({text for text in found if text}))


def _risk_tier(before: PlanState, after: PlanState) -> Iterable[PlanChange]:
    old, new = tier(before), tier(after)
    if old != new:
        what: What = "added" if not old else "removed" if not new else "changed"
        text = f"The risk tier is {new or 'no longer stated'} (was {old or 'not stated'})."
        yield PlanChange("risk-tier", what, text, "", old, new)


def _listed(
    before: PlanState, after: PlanState, element: str, kind: PlanChangeKind, names: Names
) -> Iterable[PlanChange]:
    """The References added to and removed from an element."""
    old, new = before.referred(element), after.referred(element)
    called = {"addresses": "Condition addressed", "supportingInfo": "Supporting information"}
    label = called.get(element, f"Care plan's {SPACED.get(element, element)}")
    for key in [key for key in new if key not in old]:
        name = words.reference(new[key], names)
        yield PlanChange(kind, "added", f"{label}, added: {name}.", literal(key), "", name)
    for key in [key for key in old if key not in new]:
        name = words.reference(old[key], names)
        yield PlanChange(kind, "removed", f"{label}, removed: {name}.", literal(key), name)


def _others(before: PlanState, after: PlanState, names: Names) -> Iterable[PlanChange]:
    """The changes of the plan's other elements: title, description, author, notes and so on."""
    left, right = content(before.plan), content(after.plan)
    for name in sorted((left.keys() | right.keys()) - _JUDGED):
        if left.get(name) == right.get(name):
            continue
        if name in ("supportingInfo", "contributor", "basedOn", "replaces", "partOf"):
            yield from _listed(before, after, name, "plan", names)
            continue
        old, new = (plain(state.plan.get(name), names) for state in (before, after))
        text = f"The care plan's {told(SPACED.get(name, name), old, new)}."
        yield PlanChange("plan", "changed", text, "", old, new)
