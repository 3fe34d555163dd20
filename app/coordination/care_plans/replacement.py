"""A plan in the place of an earlier one (CarePlan.replaces): what differs between the two.

What has the same name and type in both is the same, for a new plan often has its goals, activities and conditions
written anew. That it is another resource, with a status and an identifier of its own, is no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from app.coordination.care_plans import wording as words
from app.coordination.care_plans.changes import diff
from app.coordination.care_plans.difference import PlanChange
from app.coordination.care_plans.state import PlanState
from app.coordination.care_plans.wording import Names, key_of
from app.fhir.json import Resource
from app.interactions.references import split

# What every plan has of its own.
_OWN = ("created", "identifier", "replaces", "status", "title")


@dataclass(frozen=True, slots=True)
class Replaced:
    """The earlier plan as it was told last, and the DocumentReference of its last document."""

    state: PlanState
    document: str | None

    @property
    def title(self) -> str:
        """The earlier plan in words."""
        name = words.title(self.state.plan)
        return "an earlier one" if name in ("", words.WITHHELD) else f"“{name}”"


def replaced_keys(plan: Resource) -> list[str]:
    """The ids of the plans that a plan replaces, as far as they are of this server."""
    places = [split(key_of(each)) for each in plan.get("replaces", ())]
    return [place[1] for place in places if place is not None and place[0] == "CarePlan"]


def differences(earlier: PlanState, later: PlanState, names: Names) -> list[PlanChange]:
    """What differs; confidential resources of the earlier plan are told of as if they were not known."""
    return diff(_aligned(_without_restricted(earlier), later, names), later, names)


def _without_restricted(state: PlanState) -> PlanState:
    others = {key: each for key, each in state.others.items() if not words.is_restricted(each)}
    return PlanState(state.plan, others, state.versions)


def _aligned(earlier: PlanState, later: PlanState, names: Names) -> PlanState:
    """The earlier state with the references of the later one, where both mean the same."""
    old, new = dict(_named(earlier, names)), dict(_named(later, names))
    free: dict[tuple[str, str], list[str]] = {}
    for key, name in new.items():
        if key not in old:
            free.setdefault(name, []).append(key)
    renamed: dict[str, str] = {}
    for key, name in old.items():
        if key not in new and free.get(name):
            renamed[key] = free[name].pop(0)
    own = {name: later.plan[name] for name in _OWN if name in later.plan}
    kept = {name: value for name, value in earlier.plan.items() if name not in _OWN}
    plan = {name: _with_references(value, renamed) for name, value in kept.items()} | own
    others = {renamed.get(key, key): each for key, each in earlier.others.items()}
    return PlanState(plan, others, earlier.versions)


def _named(state: PlanState, names: Names) -> Iterator[tuple[str, tuple[str, str]]]:
    """The goals, conditions and activities that a plan refers to, each with its type and its name."""
    keys = [*state.referred("goal"), *state.referred("addresses")]
    keys += [key_of(each.get("reference")) for each in state.plan.get("activity", ())]
    for key in keys:
        place = split(key)
        resource = state.find(key)
        name = (words.title(resource) if resource else "") or names.get(key, "")
        if place is not None and name and name != words.WITHHELD:
            yield key, (place[0], name.casefold())


def _with_references(value: Any, renamed: Mapping[str, str]) -> Any:
    """A value in which references lead to where they were moved to."""
    if isinstance(value, list):
        return [_with_references(each, renamed) for each in value]
    if not isinstance(value, dict):
        return value
    moved = {name: _with_references(each, renamed) for name, each in value.items()}
    target = renamed.get(key_of(value)) if isinstance(value.get("reference"), str) else None
    return moved if target is None else {**moved, "reference": target}
