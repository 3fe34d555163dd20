"""Activities of a care plan: planned by a reference or by a detail of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from app.coordination.care_plans import wording as words
from app.coordination.care_plans.difference import Change, literal, normalised
from app.coordination.care_plans.state import PlanState
from app.coordination.care_plans.wording import Names, key_of

Activity = Mapping[str, Any]


def activity_changes(before: PlanState, after: PlanState, names: Names) -> Iterable[Change]:
    old, new = _by_key(before), _by_key(after)
    for key in dict.fromkeys((*new, *old)):
        name = activity_title(after if key in new else before, new.get(key) or old[key], names)
        place = literal(key.partition("\n")[0])
        if key not in old:
            status = activity_status(after, new[key])
            text = f"Activity added: {name}{f' ({status})' if status else ''}."
            yield Change("activity", "added", text, place, "", name)
        elif key not in new:
            yield Change("activity", "removed", f"Activity removed: {name}.", place, name)
        else:
            yield from _activity_change((before, old[key]), (after, new[key]), name, place)


def _by_key(state: PlanState) -> dict[str, Activity]:
    """The plan's activities by what makes them the same one: reference, else code or description, else outcome."""
    found: dict[str, Activity] = {}
    for activity in state.plan.get("activity", ()):
        detail = activity.get("detail", {})
        code = "|".join(sorted(words.codes(detail.get("code"))))
        outcome = next((key_of(each) for each in activity.get("outcomeReference", ())), "")
        key = key_of(activity.get("reference")) or code or words.concept(detail.get("code"))
        key = base = key or str(detail.get("description") or outcome)
        count = 1
        while key in found:  # the same thing planned twice
            count += 1
            key = f"{base}\n{count}"
        found[key] = activity
    return found


def activity_title(state: PlanState, activity: Activity, names: Names) -> str:
    """What an activity is called."""
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
    """The status of an activity, or of what was requested for it."""
    resource = state.find(key_of(activity.get("reference"))) if "reference" in activity else None
    status = (resource or {}).get("status") or activity.get("detail", {}).get("status")
    return str(status or "")


def _activity_change(
    was: tuple[PlanState, Activity], now: tuple[PlanState, Activity], name: str, place: str
) -> Iterable[Change]:
    statuses = activity_status(*was), activity_status(*now)
    if statuses[0] != statuses[1] and all(statuses):
        text = f"Activity {statuses[1]}: {name} (was {statuses[0]})."
        yield Change("activity", "changed", text, place, *statuses)
    elif normalised(was[1]) != normalised(now[1]) or _planned(*was) != _planned(*now):
        notes = [str(note.get("text", "")) for note in now[1].get("progress", ())]
        earlier = [str(note.get("text", "")) for note in was[1].get("progress", ())]
        news = words.listing(note for note in notes if note not in earlier)
        text = f"Activity changed: {name}{f' ({news})' if news else ''}."
        yield Change("activity", "changed", text, place, statuses[0], news or statuses[1])


def _planned(state: PlanState, activity: Activity) -> Any:
    """What counts of the resource behind an activity: its state, and what it is about."""
    resource = state.find(key_of(activity.get("reference"))) if "reference" in activity else None
    return None if resource is None else (resource.get("status"), words.title(resource))
