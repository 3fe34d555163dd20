"""Subscription/$status: the status of Subscriptions, and the number of their events.

http://hl7.org/fhir/uv/subscriptions-backport/OperationDefinition/backport-subscription-status
On an instance, or on the type with filters on id and status; answered in every state of a Subscription.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from pymongo import ASCENDING

from app.context import Context
from app.errors import BadRequest
from app.fhir import json as fhir_json
from app.fhir.instants import instant
from app.fhir.json import Resource
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.records.versions import ResourceVersion
from app.search.bundle_writer import CURSOR, Link, next_link, write_bundle, written_entries
from app.subscriptions.ledger.outbox import Outbox
from app.subscriptions.matching.channel_terms import PAYLOAD_CONTENT, Content
from app.subscriptions.notices import notification
from app.subscriptions.notices.notification import Head

_STATUSES = ("requested", "active", "error", "off")


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """A searchset of Parameters, one for each Subscription, in the order of their ids."""
    if invocation.resource_id is not None:
        return await _answer(context, [await interactions.current(context, *invocation.instance)])
    ids, statuses = _listed(invocation, "id"), _listed(invocation, "status")
    if not set(statuses) <= set(_STATUSES):
        known = ", ".join(_STATUSES)
        raise BadRequest(f"status must be one of {known}", code="value", expression="status")
    condition: dict[str, Any] = {"terms": "*"}
    if statuses:
        condition["terms"] = {"$in": [f"status={status}" for status in statuses]}
    found_ids: dict[str, Any] = {"$in": ids} if ids else {}
    if (after := invocation.one(CURSOR)) is not None:
        found_ids["$gt"] = after
    if found_ids:
        condition["_id"] = found_ids
    limit = context.settings.max_count
    found = await context.store.search(
        "Subscription", condition, limit + 1, sort=[("_id", ASCENDING)]
    )
    more = None
    if len(found) > limit:
        given = [("id", each) for each in ids] + [("status", each) for each in statuses]
        url = f"{context.base_url}/Subscription/$status"
        more = next_link(url, [*given, *invocation.given.shaping, (CURSOR, found[limit - 1].id)])
    return await _answer(context, found[:limit], more)


def _listed(invocation: Invocation, name: str) -> list[str]:
    """The values of a parameter; several in one are separated by commas."""
    return [part for value in invocation.all(name) for part in str(value).split(",") if part]


async def _answer(
    context: Context, found: Sequence[ResourceVersion], more: Link | None = None
) -> InteractionResult:
    numbers = await context.services.get(Outbox).numbering.read([stored.id for stored in found])
    entries = []
    for stored in found:
        head = head_of(context, stored.resource(), numbers[stored.id])
        parameters = notification.status_parameters(head)
        entry = {
            "fullUrl": f"urn:uuid:{parameters['id']}",
            "resource": parameters,
            "search": {"mode": "match"},
        }
        entries.append(fhir_json.encode(entry).decode())
    bundle: Resource = {
        "id": str(uuid.uuid4()),
        "type": "searchset",
        "timestamp": instant(context.services.mongo.now()),
    }
    if more is None:
        bundle["total"] = len(entries)
    return InteractionResult(
        200, text=write_bundle(bundle, [more] if more else [], written_entries(entries))
    )


def head_of(
    context: Context, subscription: Resource, number: int, content: Content | None = None
) -> Head:
    """The head of a response about a Subscription; `number` is that of its last event.

    `content` is the level of this response, where it is not the Subscription's own.
    """
    level = content or content_of(subscription)
    return Head(
        id=str(uuid.uuid4()),
        base_url=context.base_url,
        subscription=subscription["id"],
        topic=subscription["criteria"].partition("|")[0] if level else None,
        status=subscription["status"],
        content=level or "empty",
        number=number,
        at=context.services.mongo.now(),
        error=subscription.get("error"),
    )


def content_of(subscription: Resource) -> Content | None:
    """The content level; None for a classic Subscription."""
    for extension in subscription["channel"].get("_payload", {}).get("extension", ()):
        if extension.get("url") == PAYLOAD_CONTENT:
            level: Content = extension["valueCode"]
            return level
    return None
