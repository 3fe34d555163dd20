"""Subscription/$explain: why this Subscription had a notice of a resource's version, or had none.

http://carerelay.example/OperationDefinition/Subscription-explain

It evaluates the Subscription and the topic as they are now, and adds the ledger's row.
"""

from __future__ import annotations

import re
from typing import Any

from app.context import Context
from app.errors import BadRequest, NotFound
from app.fhir import json as fhir_json
from app.fhir.instants import instant
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.proof.visible_notices import visible
from app.records.versions import ResourceVersion
from app.resources.subscription import check_groups
from app.runtime.mongo import Document
from app.subscriptions.ledger.ledger import delivery_rows
from app.subscriptions.ledger.untold_rows import UntoldRows
from app.subscriptions.matching import explanation, registration
from app.subscriptions.matching.explanation import Explanation, Judged
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.topics.topics import interaction

_REFERENCE = re.compile(r"([A-Z][A-Za-z]+)/([A-Za-z0-9\-.]{1,64})(?:/_history/([0-9]{1,9}))?")


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """Parameters: whether it matches, each trigger and filter with its result, the delivery where there is one."""
    subscription = await interactions.current(context, *invocation.instance)
    version = await _version(context, invocation)
    services = context.services
    registry = services.get(SubscriptionRegistry)
    resource = subscription.resource()
    read = registration.read(resource, registry.catalogue, context.settings)
    await check_groups(context, read)
    event = await explanation.event_of(context.store, version)
    found = await explanation.explain(registry, context.settings, event, resource, read)
    delivery = await delivery_rows(services.mongo).find_one(
        {
            "subscription": subscription.id,
            "focus.type": version.type,
            "focus.id": version.id,
            "focus.version": version.version,
        }
    )
    parameters: list[dict[str, Any]] = [
        {"name": "version", "valueString": f"{version.reference}/_history/{version.version}"},
        {"name": "interaction", "valueCode": interaction(event)},
        {"name": "status", "valueCode": read.status},
        {"name": "matches", "valueBoolean": found.matches},
        {"name": "reason", "valueString": await _reason(context, version, read, found, delivery)},
        *(_judged("trigger", each) for each in found.triggers),
        *(_judged("filter", each) for each in found.filters),
    ]
    if delivery is not None:
        parameters.append(_delivery(delivery))
    parameters += await _nobody(context, version)
    body = {"resourceType": "Parameters", "parameter": parameters}
    return InteractionResult(200, text=fhir_json.encode(body))


async def _version(context: Context, invocation: Invocation) -> ResourceVersion:
    """The version to explain: the one that is named, or the current one. Raises NotFound."""
    match = _REFERENCE.fullmatch(invocation.one("reference") or "")
    if match is None:
        raise BadRequest(
            "The reference must be Type/id or Type/id/_history/version", expression="reference"
        )
    named = invocation.one("version") or match[3]
    if named is None:
        current = await context.store.read(match[1], match[2])
        named = str(current.version) if current else "0"
    if not str(named).isdecimal():
        raise BadRequest("A version is a number", code="value", expression="version")
    stored = await context.store.vread(match[1], match[2], int(named))
    if stored is None or stored.type == "Subscription":
        raise NotFound("There is no such version")
    return stored


async def _reason(
    context: Context,
    version: ResourceVersion,
    read: Registration,
    found: Explanation,
    delivery: Document | None,
) -> str:
    if delivery is not None:
        why = f": {delivery['reason']}" if delivery.get("reason") else ""
        if delivery["number"] < 1:
            return f"It is no event of this Subscription{why}"
        return f"It is event {delivery['number']} of this Subscription, {delivery['state']}{why}"
    if read.topic is not None and found.fired is None:
        return "The topic did not fire"
    if not found.matches:
        return _failing(read, found)
    first = await context.store.vread("Subscription", read.id, 1)
    if first is not None and first.at > version.at:
        return "It matches, but was committed before the Subscription was made"
    return (
        "It matches the Subscription as it is now, but no notice is recorded: the Subscription was off or another "
        "then, the event has not been looked at yet, another topic told the same Endpoint of it, or the record is no "
        "longer kept"
    )


async def _nobody(context: Context, version: ResourceVersion) -> list[dict[str, Any]]:
    """Why no practice was told of the version, for each topic that it fired, as far as the caller may know."""
    focus = {"type": version.type, "id": version.id, "version": version.version}
    rows = await UntoldRows(context.services.mongo).of_version(focus)
    return [
        {"name": "nobody", "valueString": f"{notice.topic}: {notice.reason}"}
        for notice in await visible(context, rows)
    ]


def _failing(read: Registration, found: Explanation) -> str:
    failing = [each.text for each in found.filters if not each.holds]
    if failing:
        return f"The filters do not hold: {', '.join(failing)}"
    if read.topic is None:
        return "It is of another resource type, or a deletion, which a classic Subscription is not told"
    return "The filters do not hold together"


def _judged(name: str, judged: Judged) -> dict[str, Any]:
    part: list[dict[str, Any]] = [
        {"name": "text", "valueString": judged.text},
        {"name": "holds", "valueBoolean": judged.holds},
    ]
    if judged.note:
        part.append({"name": "note", "valueString": judged.note})
    return {"name": name, "part": part}


def _delivery(row: Document) -> dict[str, Any]:
    number = {"name": "event-number", "valueString": str(row["number"])}
    return {
        "name": "delivery",
        "part": [
            {"name": "id", "valueString": row["_id"]},
            *([number] if row["number"] >= 1 else []),
            {"name": "state", "valueCode": row["state"]},
            {"name": "attempts", "valueInteger": len(row["attempts"])},
            {"name": "created", "valueInstant": instant(row["created_at"])},
        ],
    }
