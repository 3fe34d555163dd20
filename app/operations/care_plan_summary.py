"""CarePlan/[id]/$summary: the current care plan as a document that can be read without FHIR software.

It is made anew each time. With `persist` it is stored as a Bundle besides; no notice is sent.
"""

from __future__ import annotations

import uuid

from app.context import Context
from app.coordination.care_plans import (
    document,
    record as care_plan_record,
    state as care_plan_state,
)
from app.coordination.care_plans.document import Edition
from app.errors import MethodNotAllowed
from app.fhir import json as fhir_json
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """The document Bundle. Raises NotFound or Gone, MethodNotAllowed for `persist` without POST."""
    persist = bool(invocation.one("persist"))
    if persist and not invocation.given.posted:
        raise MethodNotAllowed("persist stores the document; use POST", headers={"Allow": "POST"})
    plan = await interactions.current(context, *invocation.instance)
    state = await care_plan_state.current(context, plan)
    now = context.services.clock.now()
    record = await care_plan_record.gather(context, state, now)
    edition = Edition(str(uuid.uuid4()), now, context.base_url)
    bundle = document.build(record, edition)
    if persist:
        answer = await interactions.update(context, "Bundle", edition.id, bundle)
        return InteractionResult(201, answer.stored, location=True)
    return InteractionResult(200, text=fhir_json.encode(bundle))
