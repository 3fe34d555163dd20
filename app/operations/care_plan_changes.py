"""CarePlan/[id]/$changes: the changes since a time, or since the last notice to the primary care practice."""

from __future__ import annotations

from datetime import datetime

from app.context import Context
from app.coordination.care_plans import plan_notices, state as care_plan_state
from app.coordination.care_plans.changes import parameters
from app.coordination.care_plans.state import PlanState
from app.errors import Gone
from app.fhir import json as fhir_json
from app.fhir.instants import instant_in
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """Parameters with the changes. Raises NotFound or Gone, BadRequest for a `_since` that is no time."""
    plan = await interactions.current(context, *invocation.instance)
    since = invocation.one("_since")
    moment = None if since is None else instant_in(since, "_since")
    before = await _compared_with(context, plan.id, moment)
    if before is None:
        raise Gone("The version to compare with is no longer stored")
    after = await care_plan_state.current(context, plan)
    changes = await plan_notices.changes_between(context, before, after)
    head = [
        {"name": "since", "valueInstant": before.plan["meta"]["lastUpdated"]},
        {"name": "from", "valueReference": {"reference": _version(before)}},
        {"name": "to", "valueReference": {"reference": _version(after)}},
    ]
    return InteractionResult(200, text=fhir_json.encode(parameters(changes, head)))


async def _compared_with(
    context: Context, plan_id: str, moment: datetime | None
) -> PlanState | None:
    """The state at a time; without one that in the last notice, else that of the first version."""
    if moment is not None:
        return await care_plan_state.at_time(context, plan_id, moment)
    row = await plan_notices.record_of(context, plan_id)
    last = await plan_notices.state_told(context, row)
    if last is not None:
        return last
    first = await context.store.vread("CarePlan", plan_id, 1)
    return None if first is None else await care_plan_state.at_time(context, plan_id, first.at)


def _version(state: PlanState) -> str:
    return f"CarePlan/{state.plan['id']}/_history/{state.plan['meta']['versionId']}"
