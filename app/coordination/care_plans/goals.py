"""Goals of a care plan: added, met, dropped or otherwise changed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from app.coordination.care_plans import wording as words
from app.coordination.care_plans.difference import (
    Change,
    content,
    elements,
    literal,
    plain,
    sides,
    told,
)
from app.coordination.care_plans.state import PlanState
from app.coordination.care_plans.wording import each
from app.fhir.json import Resource

_ENDED_GOAL = frozenset({"cancelled", "rejected", "entered-in-error"})


def goal_title(goal: Resource | None, reference: Mapping[str, Any] | None = None) -> str:
    """A goal's description, else the display of what refers to it."""
    return (words.title(goal) if goal else "") or str((reference or {}).get("display") or "a goal")


def goal_changes(before: PlanState, after: PlanState) -> Iterable[Change]:
    old, new = before.referred("goal"), after.referred("goal")
    for key in dict.fromkeys((*new, *old)):
        was, now = before.find(key) if key in old else None, after.find(key) if key in new else None
        name = goal_title(now or was, new.get(key) or old.get(key))
        if key not in new or (now is None and was is not None):
            text = f"Goal dropped: {name}."
            yield Change("goal", "dropped", text, literal(key), name)
        elif key not in old or (was is None and now is not None):
            yield Change(
                "goal", "added", f"Goal added: {_with_due(name, now)}.", literal(key), "", name
            )
        elif was is not None and now is not None and content(was) != content(now):
            yield _goal_change(key, name, was, now)


def _with_due(name: str, goal: Resource | None) -> str:
    dues = [words.choice(target, "due") for target in (goal or {}).get("target", ())]
    due = words.listing(dues)
    return f"{name} (due {due})" if due else name


def goal_standing(goal: Resource) -> str:
    """A goal's lifecycle status, and its progress where that is known."""
    progress = words.concept(goal.get("achievementStatus"))
    return words.listing((str(goal.get("lifecycleStatus", "")), progress))


def _is_met(goal: Resource) -> bool:
    achieved = "achieved" in words.codes(goal.get("achievementStatus"))
    return achieved or goal.get("lifecycleStatus") == "completed"


def _goal_change(key: str, name: str, was: Resource, now: Resource) -> Change:
    standings = (goal_standing(was), goal_standing(now))
    if _is_met(now) and not _is_met(was):
        return Change("goal", "met", f"Goal met: {name}.", literal(key), *standings)
    ended = now.get("lifecycleStatus")
    if ended in _ENDED_GOAL and was.get("lifecycleStatus") not in _ENDED_GOAL:
        text = f"Goal dropped: {name} ({ended})."
        return Change("goal", "dropped", text, literal(key), *standings)
    if words.is_restricted(now):
        return Change("goal", "changed", f"Goal changed: {name}.", literal(key))
    found = elements(was, now, _goal_element)
    text = f"Goal changed: {name} ({'; '.join(told(*one) for one in found)})."
    return Change("goal", "changed", text, literal(key), sides(found, 1), sides(found, 2))


def _goal_element(name: str, value: Any) -> str:
    if name == "target":
        return words.listing(target(one) for one in each(value))
    return plain(value)


def target(value: Mapping[str, Any]) -> str:
    """A goal's target: measure, value and date."""
    parts = (words.concept(value.get("measure")), words.choice(value, "detail"))
    due = words.choice(value, "due")
    return " ".join(part for part in (*parts, f"by {due}" if due else "") if part)
