"""Subscription/$resend: send past notices again, over the Subscription's own channel.

http://hl7.org/fhir/uv/subscriptions-backport/OperationDefinition/backport-subscription-resend
Defined in 1.2.0-ballot of the Subscriptions R5 Backport guide; 1.1 does not have it.
"""

from __future__ import annotations

from typing import Any

from app.context import Context
from app.errors import Conflict, Forbidden, Issue, operation_outcome
from app.fhir import json as fhir_json
from app.fhir.instants import instant_in
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.operations.subscription_events import read_span
from app.subscriptions.sending.worker import Worker

_BOUNDS = {"eventsSinceInstant": "$gte", "eventsUntilInstant": "$lte"}


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """202 with an OperationOutcome that says how many notices are sent again. Without bounds: all that are kept."""
    stored = await interactions.current(context, *invocation.instance)
    if await context.store.previous(stored.type, stored.id, "update") is None:
        raise Forbidden("Only who may change the Subscription has its notices sent again")
    status = stored.resource()["status"]
    if status != "active":
        raise Conflict(f"The Subscription is {status}; only an active one is told anything")
    condition = read_span(invocation).condition()
    moments: dict[str, Any] = {}
    for name, operator in _BOUNDS.items():
        if (text := invocation.one(name)) is not None:
            moments[operator] = instant_in(text, name)
    if moments:
        condition["focus.at"] = moments
    count = await context.services.get(Worker).resend(stored.id, condition)
    issue = Issue("informational", f"{count} notices are sent again", severity="information")
    return InteractionResult(202, text=fhir_json.encode(operation_outcome([issue])))
