"""Changes of care plans become notices, each once the plan has been quiet for a while.

A change of a plan, of a Goal, care team or activity that it refers to, or of the patient's risk tier, sets a timer for
the plan, unless one runs. When it fires, the plan is compared with the state in the last notice: many edits make one
notice with their sum, edits that were undone none.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from app.automation.reactions import Reaction, for_each
from app.automation.timers import Timer, Timers
from app.context import Context
from app.coordination.care_plans import state
from app.coordination.care_plans.copies import tell_new
from app.coordination.care_plans.difference import content
from app.coordination.care_plans.plan_notices import (
    changes_between,
    finish,
    lock_of,
    record_of,
    state_told,
    tell,
)
from app.coordination.care_plans.state import PlanState, followed, is_tier
from app.coordination.care_plans.wording import key_of
from app.records.versions import ResourceVersion
from app.store.events import Event

QUIET_TIMER = "care-plan-quiet"
# The search parameters by which plans refer to these types.
_PARAMETERS = {
    "CareTeam": "care-team",
    "Goal": "goal",
    **dict.fromkeys(
        (
            "Appointment",
            "CommunicationRequest",
            "DeviceRequest",
            "MedicationRequest",
            "NutritionOrder",
            "RequestGroup",
            "ServiceRequest",
            "Task",
            "VisionPrescription",
        ),
        "activity-reference",
    ),
}
_TYPES = frozenset({"CarePlan", "Flag", "RiskAssessment", *_PARAMETERS})
# A resource that more plans refer to than this is no part of any one of them.
_MOST_PLANS = 200


async def _watch(context: Context, event: Event) -> None:
    """Set the timers of the plans that a change concerns; without a quiet period send their notices at once."""
    if event.resource is not None and content(event.resource) == content(event.previous):
        return
    quiet = timedelta(seconds=context.settings.plan_quiet_period)

    async def watch(plan: ResourceVersion) -> None:
        if not await _has_notices(context, plan, event):
            return
        if not quiet:
            await tell_of(context, plan.id, event)
            return
        # One that is running may have read what was before this change.
        due = context.services.clock.now() + quiet
        await context.services.get(Timers).set_unless_waiting(QUIET_TIMER, plan.id, due)

    await for_each(watch, await _plans(context, event))


async def _plans(context: Context, event: Event) -> list[ResourceVersion]:
    """The plans that a changed resource concerns; a deleted plan too."""
    store, key = context.store, f"{event.type}/{event.resource_id}"
    if event.type == "CarePlan":
        plan = await store.read("CarePlan", event.resource_id)
        return [] if plan is None else [plan]
    if event.type in _PARAMETERS:
        term = f"{_PARAMETERS[event.type]}={key}"
        return await store.search("CarePlan", {"terms": term}, _MOST_PLANS)
    if event.type == "Flag" and not (is_tier(event.resource) or is_tier(event.previous)):
        return []
    subjects = {key_of((each or {}).get("subject")) for each in (event.resource, event.previous)}
    terms = {"$in": [f"subject={each}" for each in sorted(subjects) if each]}
    plans = await store.search("CarePlan", {"terms": terms}, _MOST_PLANS)
    if event.type == "Flag":
        return plans
    return [plan for plan in plans if key in followed(plan.resource())]


async def _has_notices(context: Context, plan: ResourceVersion, event: Event) -> bool:
    """Whether notices about this plan are sent: from when it is first active."""
    resource = event.resource if event.type == "CarePlan" else plan.resource()
    if resource is not None and resource.get("status") == "active":
        return True
    return await record_of(context, plan.id) is not None


async def tell_of(context: Context, plan_id: str, event: Event | None = None) -> None:
    """Send a notice of what differs from the last one; with an `event`, of what that event alone made different."""
    async with lock_of(context, plan_id):
        while True:
            row = await finish(context, plan_id)
            last = await state_told(context, row)
            found = await _now(context, plan_id, event, last)
            if last and found and not state.is_of_same_patient(last, found):
                last = None  # the plan is new to those who hear of this patient
            if found is None:
                if last is None or row is None:
                    return
                if not await tell(context, plan_id, "deleted", row, dict(row["versions"])):
                    continue
                return
            if last is None:
                if found.plan.get("status") != "active":
                    return
                done = await tell(context, plan_id, "created", row, dict(found.versions))
            elif await changes_between(context, last, found):
                if row is not None and await tell_new(context, row, last):
                    continue  # who has come to the patient hears of changes after the plan itself
                done = await tell(context, plan_id, "changed", row, dict(found.versions))
            else:
                return
            if done:
                return


async def _now(
    context: Context, plan_id: str, event: Event | None, last: PlanState | None
) -> PlanState | None:
    """The state for the next notice; None where the plan is deleted."""
    plan = await context.store.read("CarePlan", plan_id)
    if event is None or last is None:
        if event is not None and event.type == "CarePlan" and event.resource is not None:
            plan = await context.store.vread("CarePlan", plan_id, event.version)
        return None if plan is None or plan.deleted else await state.current(context, plan)
    if event.type == "CarePlan" and event.resource is None:
        return None
    return await _with_event(context, plan_id, event, last)


async def _with_event(
    context: Context, plan_id: str, event: Event, last: PlanState
) -> PlanState | None:
    """The state in the last notice with this event's version in it, and the resources that the version adds."""
    key, plan_key = f"{event.type}/{event.resource_id}", f"CarePlan/{plan_id}"
    versions = dict(last.versions)
    if event.version <= versions.get(key, 0):
        return last
    versions[key] = event.version
    plan = await context.store.vread("CarePlan", plan_id, versions[plan_key])
    if plan is None or plan.deleted:
        return None
    now = await state.current(context, plan)
    wanted = {
        each: versions.get(each, version)
        for each, version in now.versions.items()
        if event.type == "CarePlan" or each in versions
    }
    if event.type == "Flag" and key not in now.versions:
        wanted.pop(key, None)
    return await state.pinned(context, plan_id, wanted)


async def _fire(context: Context, key: str, data: Mapping[str, Any]) -> None:
    await tell_of(context, key)


REACTION = Reaction("care-plan-watch", _TYPES, _watch)
QUIET = Timer(
    QUIET_TIMER,
    _fire,
    is_about_many=True,
    what="A care plan's changes are told",
    of="CarePlan",
    at_most=lambda settings: timedelta(seconds=settings.plan_quiet_period),
)
