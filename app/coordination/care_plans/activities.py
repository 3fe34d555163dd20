"""The activities and goals of a care plan: their changes, titles and statuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from app.coordination.care_plans import wording as words
from app.coordination.care_plans.difference import (
    PlanChange,
    content,
    elements,
    literal,
    normalised,
    plain,
    sides,
    told,
)
from app.coordination.care_plans.state import PlanState
from app.coordination.care_plans.wording import Names, each, key_of
from app.fhir.json import Resource

Activity = Mapping[str, Any]


def activity_changes(before: PlanState, after: PlanState, names: Names) -> Iterable[PlanChange]:
    old, new = _by_key(before), _by_key(after)
    for key in dict.fromkeys((*new, *old)):
        name = activity_title(after if key in new else before, new.get(key) or old[key], names)
        place = literal(key.partition("\n")[0])
        if key not in old:
            status = activity_status(after, new[key])
            text = f"Activity added: {name}{f' ({status})' if status else ''}."
            yield PlanChange("activity", "added", text, place, "", name)
        elif key not in new:
            yield PlanChange("activity", "removed", f"Activity removed: {name}.", place, name)
        else:
            yield from _activity_change((before, old[key]), (after, new[key]), name, place)


def _by_key(state: PlanState) -> dict[str, Activity]:
    """The plan's activities by a key that both states share: reference, else code, else description, else outcome."""
    found: dict[str, Activity] = {}
    for activity in state.plan.get("activity", ()):
        detail = activity.get("detail", {})
        code = "|".join(sorted(words.codes(detail.get("code"))))
        outcome = next((key_of(each) for each in activity.get("outcomeReference", ())), "")
        key = key_of(activity.get("reference")) or code or words.concept(detail.get("code"))
        key = base = key or str(detail.get("description") or outcome)
        count = 1
        while key in found:  # the same activity planned twice
            count += 1
            key = f"{base}\n{count}"
        found[key] = activity
    return found


def activity_title(state: PlanState, activity: Activity, names: Names) -> str:
    """The title of the resource that an activity refers to, else its detail's code, description or outcome."""
    planned, detail = activity.get("reference"), activity.get("detail", {})
    if planned:
        resource = state.find(key_of(planned))
        return (words.title(resource) if resource else "") or words.reference(planned, names)
    named = words.concept(detail.get("code")) or str(detail.get("description", ""))
    outcome = words.listing(
        words.reference(each, names) for each in activity.get("outcomeReference", ())
    )
    return (
        named or outcome or words.concept(activity.get("outcomeCodeableConcept")) or "an activity"
    )


def activity_status(state: PlanState, activity: Activity) -> str:
    """The status of the resource that an activity refers to, else of its detail; empty without either."""
    resource = state.find(key_of(activity.get("reference"))) if "reference" in activity else None
    status = (resource or {}).get("status") or activity.get("detail", {}).get("status")
    return str(status or "")


def _activity_change(
    was: tuple[PlanState, Activity], now: tuple[PlanState, Activity], name: str, place: str
) -> Iterable[PlanChange]:
    statuses = activity_status(*was), activity_status(*now)
    if statuses[0] != statuses[1] and all(statuses):
        text = f"Activity {statuses[1]}: {name} (was {statuses[0]})."
        yield PlanChange("activity", "changed", text, place, *statuses)
    elif normalised(was[1]) != normalised(now[1]) or _planned(*was) != _planned(*now):
        notes = [str(note.get("text", "")) for note in now[1].get("progress", ())]
        earlier = [str(note.get("text", "")) for note in was[1].get("progress", ())]
        news = words.listing(note for note in notes if note not in earlier)
        text = f"Activity changed: {name}{f' ({news})' if news else ''}."
        yield PlanChange("activity", "changed", text, place, statuses[0], news or statuses[1])


def _planned(state: PlanState, activity: Activity) -> Any:
    """The status and title of the resource that an activity refers to; None without one."""
    resource = state.find(key_of(activity.get("reference"))) if "reference" in activity else None
    return None if resource is None else (resource.get("status"), words.title(resource))


# Goals of a care plan: added, met, dropped or otherwise changed.

ENDED_GOAL = frozenset({"cancelled", "rejected", "entered-in-error"})


def goal_title(goal: Resource | None, reference: Mapping[str, Any] | None, names: Names) -> str:
    """A goal's description, else what the reference to it is called."""
    title = words.title(goal) if goal else ""
    return title or words.reference(reference, names) or "a goal"


def goal_changes(before: PlanState, after: PlanState, names: Names) -> Iterable[PlanChange]:
    old, new = before.referred("goal"), after.referred("goal")
    for key in dict.fromkeys((*new, *old)):
        was, now = before.find(key) if key in old else None, after.find(key) if key in new else None
        name = goal_title(now or was, new.get(key) or old.get(key), names)
        if key not in new or (now is None and was is not None):
            text = f"Goal dropped: {name}."
            yield PlanChange("goal", "dropped", text, literal(key), name)
        elif key not in old or (was is None and now is not None):
            yield PlanChange(
                "goal", "added", f"Goal added: {_with_due(name, now)}.", literal(key), "", name
            )
        elif was is not None and now is not None and content(was) != content(now):
            yield _goal_change((key, name), was, now, names)


def _with_due(name: str, goal: Resource | None) -> str:
    dues = [words.choice(target, "due") for target in (goal or {}).get("target", ())]
    due = words.listing(dues)
    return f"{name} (due {due})" if due else name


def goal_standing(goal: Resource) -> str:
    """A goal's lifecycle status and, where stated, its achievement status."""
    progress = words.concept(goal.get("achievementStatus"))
    return words.listing((str(goal.get("lifecycleStatus", "")), progress))


def _is_met(goal: Resource) -> bool:
    achieved = "achieved" in words.codes(goal.get("achievementStatus"))
    return achieved or goal.get("lifecycleStatus") == "completed"


def _goal_change(called: tuple[str, str], was: Resource, now: Resource, names: Names) -> PlanChange:
    key, name = called
    statuses = (goal_standing(was), goal_standing(now))
    if _is_met(now) and not _is_met(was):
        return PlanChange("goal", "met", f"Goal met: {name}.", literal(key), *statuses)
    ended = now.get("lifecycleStatus")
    if ended in ENDED_GOAL and was.get("lifecycleStatus") not in ENDED_GOAL:
        text = f"Goal dropped: {name} ({ended})."
        return PlanChange("goal", "dropped", text, literal(key), *statuses)
    if words.is_restricted(now):
        return PlanChange("goal", "changed", f"Goal changed: {name}.", literal(key))
    found = elements(was, now, lambda element, value: _goal_element(element, value, names))
    text = f"Goal changed: {name} ({'; '.join(told(*one) for one in found)})."
    return PlanChange("goal", "changed", text, literal(key), sides(found, 1), sides(found, 2))


def _goal_element(name: str, value: Any, names: Names) -> str:
    if name == "target":
        return words.listing(target(one) for one in each(value))
    return plain(value, names)


def target(value: Mapping[str, Any]) -> str:
    """A goal's target: measure, value and date."""
    parts = (words.concept(value.get("measure")), words.choice(value, "detail"))
    due = words.choice(value, "due")
    return " ".join(part for part in (*parts, f"by {due}" if due else "") if part)
