"""Subscription/$dry-run: which of the last events would have matched a Subscription, without storing it.

http://carerelay.example/OperationDefinition/Subscription-dry-run
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from app.context import Context
from app.errors import BadRequest
from app.fhir import json as fhir_json
from app.fhir.instants import instant
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.records.versions import HistoryRange, ResourceVersion
from app.resources import subscription_limits
from app.resources.subscription import check_rights
from app.subscriptions.matching import explanation, registration
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.topics.topics import Coding

_DEFAULT_COUNT, _MOST = 100, 1000


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """Parameters: how many events were examined, and those that match, the newest first.

    Raises Unprocessable for a Subscription that could not be stored either.
    """
    draft = invocation.one("subscription")
    if not isinstance(draft, dict) or draft.get("resourceType") != "Subscription":
        raise BadRequest("The parameter subscription is a Subscription", expression="subscription")
    count = invocation.one("count")
    count = _DEFAULT_COUNT if count is None else count
    if not 1 <= count <= _MOST:
        raise BadRequest(f"From 1 to {_MOST} events", code="value", expression="count")
    subscription_limits.check_size(context, draft)
    registry = context.services.get(SubscriptionRegistry)
    read = registration.read(draft, registry.catalogue, context.settings)
    await check_rights(context, read)
    versions = await _last(context, read, count)
    events: list[dict[str, Any]] = []
    for version in versions:
        event = await explanation.event_of(context.store, version)
        matches, fired = await explanation.matches(registry, event, read)
        if matches:
            events.append(_event(version, fired or ()))
    body = {
        "resourceType": "Parameters",
        "parameter": [
            {"name": "examined", "valueInteger": len(versions)},
            {"name": "matched", "valueInteger": len(events)},
            *events,
        ],
    }
    return InteractionResult(200, text=fhir_json.encode(body))


async def _last(context: Context, read: Registration, count: int) -> list[ResourceVersion]:
    """The last `count` versions of the types that the Subscription is about, the newest first."""
    types = read.topic.resource_types if read.topic else (read.criteria.scope,)
    found: list[ResourceVersion] = []
    for resource_type in types:
        found += await context.store.history(HistoryRange(type=resource_type), count)
    return sorted(found, key=lambda stored: stored.at, reverse=True)[:count]


def _event(version: ResourceVersion, codings: Sequence[Coding]) -> dict[str, Any]:
    reference = f"{version.reference}/_history/{version.version}"
    part: list[dict[str, Any]] = [
        {"name": "focus", "valueReference": {"reference": reference}},
        {"name": "timestamp", "valueInstant": instant(version.at)},
    ]
    part.extend({"name": "trigger", "valueCoding": dict(each)} for each in codings)
    return {"name": "event", "part": part}
