"""The bodies of notices.

Topic-based: a history Bundle whose first entry is the status,
http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/backport-subscription-notification-r4
Classic: nothing, or the resource itself, https://hl7.org/fhir/R4/subscription.html#2.46.7.1
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from app.consent.redisclosure import with_redisclosure_notice
from app.fhir.instants import instant
from app.fhir.json import Resource
from app.subscriptions.matching.channel_terms import BACKPORT, Content
from app.subscriptions.topics.topics import Coding

NotificationKind = Literal[
    "handshake", "heartbeat", "event-notification", "query-status", "query-event"
]

_ERRORS = "http://terminology.hl7.org/CodeSystem/subscription-error"

STATUS_PROFILE = BACKPORT + "backport-subscription-status-r4"
NOTIFICATION_PROFILE = BACKPORT + "backport-subscription-notification-r4"


@dataclass(frozen=True, slots=True)
class Head:
    """The content of the status entry. `number` counts the Subscription's events so far; `id` names the notice.

    `error` is Subscription.error.
    """

    id: str
    base_url: str
    subscription: str
    topic: str | None
    status: str
    content: Content
    number: int
    at: datetime
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Focus:
    """The changed version: `method` is what happened to it; `resource` only where full resources are sent.

    `gone`: its version should be sent and is no longer stored.
    """

    type: str
    id: str
    version: int
    method: Literal["create", "update", "patch", "delete"]
    at: datetime
    triggers: Sequence[Coding] = ()
    resource: Resource | None = None
    gone: bool = False

    @property
    def reference(self) -> str:
        return f"{self.type}/{self.id}"


@dataclass(frozen=True, slots=True)
class Told:
    """One event of a notice.

    `context` maps the relative references sent with it to their resource, or None where it cannot be included.
    `content` is below the notice's level where this event may not be sent as far. `permitted_by` are the Consents that
    let labelled content be sent with it.
    """

    number: int
    focus: Focus
    context: Mapping[str, Resource | None]
    content: Content | None = None
    permitted_by: Sequence[Resource] = ()


def status_only(head: Head, kind: NotificationKind) -> Resource:
    """A handshake or heartbeat: no events, and the count unchanged."""
    return _bundle(head, kind, [], [])


def status_parameters(head: Head) -> Resource:
    """The Parameters of `$status` for one Subscription."""
    status: Resource = _status_entry(head, "query-status", [])["resource"]
    return status


def status_id(notice_id: str) -> str:
    """The id of a notice's status entry: the notice's own as a UUID of version 8, the same in every attempt."""
    return f"{notice_id[:14]}8{notice_id[15:]}"


def event_notification(
    head: Head, focus: Focus, context: Mapping[str, Resource | None]
) -> Resource:
    """The notice of one event."""
    return events_notification(head, "event-notification", [Told(head.number, focus, context)])


def events_notification(head: Head, kind: NotificationKind, events: Sequence[Told]) -> Resource:
    """The notice of several events, in the order of their numbers.

    `empty` has neither topic, focus nor context; `id-only` has references; `full-resource` has the resources.
    """
    parts = [_event(head, event) for event in events]
    if head.content == "empty":
        return _bundle(head, kind, parts, [])
    entries = [_focus_entry(head, e.focus) for e in events if _level(head, e) != "empty"]
    if head.content == "full-resource":
        context: dict[str, Resource | None] = {}
        for event in events:
            if _level(head, event) == "full-resource":
                context.update(event.context)
        entries.extend(_context_entry(head, *item) for item in context.items())
    permitted_by = [consent for event in events for consent in event.permitted_by]
    bundle = _bundle(head, kind, parts, entries)
    return with_redisclosure_notice(bundle, permitted_by, head.base_url)


def _event(head: Head, event: Told) -> list[dict[str, Any]]:
    focus = event.focus
    part: list[dict[str, Any]] = [
        {"name": "event-number", "valueString": str(event.number)},
        {"name": "timestamp", "valueInstant": instant(focus.at)},
    ]
    if _level(head, event) == "empty":
        return part
    part.append({"name": "focus", "valueReference": {"reference": _url(head, focus.reference)}})
    part.extend(
        {"name": "additional-context", "valueReference": {"reference": _url(head, reference)}}
        for reference in event.context
    )
    part.extend({"name": "trigger", "valueCoding": dict(each)} for each in focus.triggers)
    return part


def _level(head: Head, event: Told) -> Content:
    return event.content or head.content


def _bundle(
    head: Head,
    kind: NotificationKind,
    events: Sequence[list[dict[str, Any]]],
    entries: Sequence[dict[str, Any]],
) -> Resource:
    return {
        "resourceType": "Bundle",
        "id": head.id,
        "meta": {"profile": [NOTIFICATION_PROFILE]},
        "type": "history",
        "timestamp": instant(head.at),
        "entry": [_status_entry(head, kind, events), *entries],
    }


def _status_entry(
    head: Head, kind: NotificationKind, events: Sequence[list[dict[str, Any]]]
) -> dict[str, Any]:
    own_id = status_id(head.id)
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
    parameter += [{"name": "notification-event", "part": part} for part in events]
    if head.error is not None:
        parameter.append({"name": "error", "valueCodeableConcept": _error(head.error)})
    return {
        "fullUrl": f"urn:uuid:{own_id}",
        "resource": {
            "resourceType": "Parameters",
            "id": own_id,
            "meta": {"profile": [STATUS_PROFILE]},
            "parameter": parameter,
        },
        "request": {"method": "GET", "url": _url(head, f"{subscription}/$status")},
        "response": {"status": "200"},
    }


def _error(words: str) -> dict[str, Any]:
    """The CodeableConcept of a failure by the server's text for it (attempt.py and lifecycle.py write it)."""
    code = "error-response" if " answered " in words else "no-response"
    return {"coding": [{"system": _ERRORS, "code": code}], "text": words}


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
    if focus.gone:
        entry["response"] = {"status": "410", "etag": etag}
        return entry
    entry["response"] = {
        "status": "201" if created else "200",
        "etag": etag,
        "lastModified": instant(focus.at),
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
