"""The bodies that are sent.

Topic-based: a history Bundle whose first entry is the status,
http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/backport-subscription-notification-r4
Classic: nothing, or the resource itself, https://hl7.org/fhir/R4/subscription.html#2.46.7.1
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from app.fhir_json import Resource
from app.subscriptions.registration import BACKPORT, Content
from app.subscriptions.topics import Coding

Kind = Literal["handshake", "heartbeat", "event-notification"]

STATUS_PROFILE = BACKPORT + "backport-subscription-status-r4"
NOTIFICATION_PROFILE = BACKPORT + "backport-subscription-notification-r4"


@dataclass(frozen=True, slots=True)
class Head:
    """What the status entry says of the Subscription. `number` counts its events so far; `id` names the notice."""

    id: str
    base_url: str
    subscription: str
    topic: str | None
    status: str
    content: Content
    number: int
    at: datetime


@dataclass(frozen=True, slots=True)
class Focus:
    """The changed version: `method` is what happened to it; `resource` only where whole resources are sent."""

    type: str
    id: str
    version: int
    method: Literal["create", "update", "patch", "delete"]
    at: datetime
    trigger: Coding | None = None
    resource: Resource | None = None

    @property
    def reference(self) -> str:
        return f"{self.type}/{self.id}"


def status_only(head: Head, kind: Kind) -> Resource:
    """A handshake or heartbeat: no events, and the count unchanged."""
    return _bundle(head, kind, [], [])


def event_notification(
    head: Head, focus: Focus, context: Mapping[str, Resource | None]
) -> Resource:
    """The notice of one event.

    `context` maps relative references that travel along to their resource, or None where it cannot be included.
    `empty` tells neither topic, focus nor context; `id-only` tells references; `full-resource` holds the resources.
    """
    part: list[dict[str, Any]] = [
        {"name": "event-number", "valueString": str(head.number)},
        {"name": "timestamp", "valueInstant": _instant(focus.at)},
    ]
    if head.content == "empty":
        return _bundle(head, "event-notification", part, [])
    part.append({"name": "focus", "valueReference": {"reference": _url(head, focus.reference)}})
    part.extend(
        {"name": "additional-context", "valueReference": {"reference": _url(head, reference)}}
        for reference in context
    )
    if focus.trigger is not None:
        part.append({"name": "trigger", "valueCoding": dict(focus.trigger)})
    entries = [_focus_entry(head, focus)]
    if head.content == "full-resource":
        entries.extend(_context_entry(head, *item) for item in context.items())
    return _bundle(head, "event-notification", part, entries)


def _bundle(
    head: Head, kind: Kind, event: Sequence[dict[str, Any]], entries: Sequence[dict[str, Any]]
) -> Resource:
    return {
        "resourceType": "Bundle",
        "id": head.id,
        "meta": {"profile": [NOTIFICATION_PROFILE]},
        "type": "history",
        "timestamp": _instant(head.at),
        "entry": [_status_entry(head, kind, event), *entries],
    }


def _status_entry(head: Head, kind: Kind, event: Sequence[dict[str, Any]]) -> dict[str, Any]:
    # Derived from the notice's id: every attempt sends the same bytes.
    status_id = str(uuid.uuid5(uuid.UUID(head.id), "status"))
    subscription = f"Subscription/{head.subscription}"
    parameter: list[dict[str, Any]] = [
        {"name": "subscription", "valueReference": {"reference": _url(head, subscription)}}
    ]
    if head.topic is not None and head.content != "empty":
        parameter.append({"name": "topic", "valueCanonical": head.topic})
    parameter += [
        {"name": "status", "valueCode": head.status},
        {"name": "type", "valueCode": kind},
        {"name": "events-since-subscription-start", "valueString": str(head.number)},
    ]
    if event:
        parameter.append({"name": "notification-event", "part": list(event)})
    return {
        "fullUrl": f"urn:uuid:{status_id}",
        "resource": {
            "resourceType": "Parameters",
            "id": status_id,
            "meta": {"profile": [STATUS_PROFILE]},
            "parameter": parameter,
        },
        "request": {"method": "GET", "url": _url(head, f"{subscription}/$status")},
        "response": {"status": "200"},
    }


def _focus_entry(head: Head, focus: Focus) -> dict[str, Any]:
    entry: dict[str, Any] = {"fullUrl": _url(head, focus.reference)}
    if focus.resource is not None:
        entry["resource"] = focus.resource
    created = focus.version == 1
    etag = f'W/"{focus.version}"'
    if focus.method == "create":
        entry["request"] = {"method": "POST", "url": focus.type}
    elif focus.method == "delete":
        entry["request"] = {"method": "DELETE", "url": focus.reference}
        entry["response"] = {"status": "204", "etag": etag}
        return entry
    else:
        verb = "PATCH" if focus.method == "patch" else "PUT"
        entry["request"] = {"method": verb, "url": focus.reference}
    entry["response"] = {
        "status": "201" if created else "200",
        "etag": etag,
        "lastModified": _instant(focus.at),
    }
    return entry


def _context_entry(head: Head, reference: str, resource: Resource | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"fullUrl": _url(head, reference)}
    if resource is not None:
        entry["resource"] = resource
    entry["request"] = {"method": "GET", "url": reference}
    entry["response"] = {"status": "404" if resource is None else "200"}
    return entry


def _url(head: Head, reference: str) -> str:
    return f"{head.base_url}/{reference}"


def _instant(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
