"""A Da Vinci Unsolicited Notification: one event as a message Bundle that is complete in itself.

http://hl7.org/fhir/us/davinci-alerts/StructureDefinition/notifications-bundle
MessageHeader, the focus, then the resources it leads to; for a stay also its Conditions and the patient's Coverage.
Every reference leads to an entry, or becomes a display or a stated absence. Ids derive from the notice's, so that every
attempt sends the same message for as long as the resources besides the focus stay the same.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from app.authorization.subject_store import Subject, SubjectStore, patients_named
from app.consent.redisclosure import with_redisclosure_notice
from app.fhir.instants import instant
from app.fhir.json import Resource
from app.records.reader import Reader, ResourceStore
from app.records.versions import ResourceVersion
from app.subscriptions.channels.davinci import Coding
from app.subscriptions.notices.davinci_stay import (
    Closure,
    StandIns,
    Stay,
    complete,
    reachable,
    uri_of,
)
from app.subscriptions.notices.event_reader import WithheldError
from app.subscriptions.notices.named_references import references_at
from app.subscriptions.notices.required_names import key_of
from app.subscriptions.sending.release_limits import Limit, judge_along

_PROFILE = "http://hl7.org/fhir/us/davinci-alerts/StructureDefinition/"
_BUNDLE = _PROFILE + "notifications-bundle"
_HEADER = _PROFILE + "notifications-messageheader"
_OWN_HEADERS = frozenset({"notification-admit", "notification-discharge", "notification-transfer"})
# The references that are followed, by the type that has them.
_FOLLOWED: Mapping[str, tuple[str, ...]] = {
    "CareTeam": ("subject", "participant.member", "managingOrganization"),
    "Condition": ("subject", "encounter", "asserter"),
    "Coverage": ("payor",),
    "Encounter": (
        "subject",
        "participant.individual",
        "location.location",
        "serviceProvider",
    ),
    "Location": ("managingOrganization",),
    "PractitionerRole": ("practitioner", "organization"),
    "ServiceRequest": ("subject", "encounter", "requester", "performer", "reasonReference"),
    "Task": ("for", "focus", "encounter", "requester", "owner"),
}
# Task to ServiceRequest to PractitionerRole to Practitioner.
_STEPS = 4
_DIAGNOSES = ("diagnosis", "condition")
_MOST_CONDITIONS, _MOST_COVERAGES = 100, 10


@dataclass(frozen=True, slots=True)
class Alert:
    """The input of a message: `event` is the guide's code, `endpoint` the destination, `focus` the pinned version.

    `context` are relative references to send besides; `limit` is the event's limit by consent and rights.
    """

    id: str
    at: datetime
    event: Coding
    base_url: str
    endpoint: str
    focus: Resource
    context: Sequence[str] = ()
    limit: Limit | None = None

    @property
    def key(self) -> str:
        return f"{self.focus['resourceType']}/{self.focus['id']}"


class Messages:
    """Composes messages; the resources besides the focus are current ones."""

    def __init__(self, store: ResourceStore) -> None:
        self._store = store

    async def of(self, alert: Alert) -> Resource:
        """The message Bundle. Raises WithheldError where the patient's record may not be sent in full."""
        beside = await self._beside(alert)
        at_hand, hidden, permitted_by = await self._gather(alert, beside)
        stand_ins = StandIns(alert.id, alert.base_url, frozenset(hidden))
        stay = Stay(at_hand, stand_ins, alert.base_url)
        shaped = {key: _shaped(key, each, alert.base_url, stay) for key, each in at_hand.items()}
        sender: Resource | None = None
        if alert.focus["resourceType"] == "Encounter":
            sender = stay.institution(alert.focus)
        urls = {key: f"{alert.base_url}/{key}" for key in at_hand}
        urls |= {url: url for url in stand_ins.made}
        closure = Closure(alert.base_url, urls, hidden)
        closed = {urls[key]: closure.close(each) for key, each in shaped.items()}
        closed |= stand_ins.made
        header = _header(alert, urls[alert.key], None if sender is None else closure.close(sender))
        start = [urls[alert.key], *([header["sender"]["reference"]] if sender else [])]
        also = [urls[key] for key in (*beside, *alert.context) if key in urls]
        entries = {url: closed[url] for url in reachable(closed, start, also)}
        bundle = _bundle(alert, header, entries)
        return with_redisclosure_notice(bundle, permitted_by, alert.base_url)

    async def _beside(self, alert: Alert) -> dict[str, ResourceVersion]:
        """The Conditions of a stay and its patient's active Coverages, by reference; empty for another focus."""
        store = self._seen_by(alert)
        if alert.focus["resourceType"] != "Encounter":
            return {}
        found = await store.search(
            "Condition", {"terms": f"encounter={alert.key}"}, _MOST_CONDITIONS, [("_id", 1)]
        )
        patient = key_of(alert.focus.get("subject"), alert.base_url)
        if patient:
            found += await store.search(
                "Coverage", {"terms": f"beneficiary={patient}"}, _MOST_COVERAGES, [("_id", 1)]
            )
        return {each.reference: each for each in found if _is_valid(each.resource())}

    def _seen_by(self, alert: Alert) -> Reader:
        """The store as the recipient may see it, as far as it is about the patients of the focus."""
        view = alert.limit.view if alert.limit is not None else None
        patients = patients_named(alert.focus["resourceType"], alert.focus, alert.base_url)
        subject = Subject(patients, own=frozenset(alert.context))
        return SubjectStore(view or self._store, subject, alert.base_url)

    async def _gather(
        self, alert: Alert, beside: Mapping[str, ResourceVersion]
    ) -> tuple[dict[str, Resource], set[str], list[Resource]]:
        """The focus and the resources it leads to, by reference; references to those that may not be sent; and the
        Consents that let what is sent be.
        """
        permitted_by = list(alert.limit.judgement.permitted_by) if alert.limit else []
        at_hand, hidden = {alert.key: alert.focus}, set[str]()
        named = references_at(alert.focus, _DIAGNOSES)
        diagnoses = (key_of(each, alert.base_url) for each in named)
        wanted = [*_links(alert.focus, alert.base_url), *filter(None, diagnoses), *alert.context]
        fresh = dict(beside)
        for _ in range(_STEPS):
            for key, stored in fresh.items():
                resource = stored.resource()
                judgement = judge_along(alert.limit, stored, resource)
                if judgement.verdict == "full":
                    permitted_by += judgement.permitted_by
                    at_hand[key] = resource
                    wanted += _links(resource, alert.base_url)
                else:
                    hidden.add(key)
            keys = sorted({each for each in wanted if each not in at_hand} - hidden)
            pairs = [(type_, id_) for type_, _, id_ in (key.partition("/") for key in keys)]
            found = await self._seen_by(alert).read_many([pair for pair in pairs if pair[1]])
            wanted = []
            fresh = {
                key: found[key]
                for key in keys
                if key in found and not found[key].deleted and _is_valid(found[key].resource())
            }
            if not fresh:
                break
        if any(key.startswith("Patient/") for key in hidden):
            raise WithheldError("Withheld: the patient's record may not be told whole")
        return at_hand, hidden, permitted_by


def _is_valid(resource: Resource) -> bool:
    """Whether a resource was not entered in error, and a Coverage is active."""
    if resource["resourceType"] == "Coverage":
        return bool(resource.get("status") == "active")
    codings = resource.get("verificationStatus", {})
    if isinstance(codings, dict):
        return all(each.get("code") != "entered-in-error" for each in codings.get("coding", ()))
    return True


def _links(resource: Resource, base_url: str) -> list[str]:
    """The relative references that are followed from a resource."""
    paths = _FOLLOWED.get(resource["resourceType"], ())
    found = (each for path in paths for each in references_at(resource, path.split(".")))
    keys = (key_of(each, base_url) for each in found)
    return [key for key in keys if key.count("/") == 1]


def _shaped(key: str, resource: Resource, base_url: str, stay: Stay) -> Resource:
    """A resource as it is sent: with stated absences, and an Encounter as its profile requires."""
    if resource["resourceType"] in ("Patient", "Practitioner") and "identifier" not in resource:
        resource = {**resource, "identifier": [uri_of(key, base_url)]}
    if resource["resourceType"] == "Encounter":
        resource = stay.shaped(resource)
    return complete(resource)


def _header(alert: Alert, focus: str, sender: Resource | None) -> Resource:
    code = alert.event["code"]
    own = [f"{_PROFILE}{code.removeprefix('notification-')}-notification-messageheader"]
    header: Resource = {
        "resourceType": "MessageHeader",
        "id": str(uuid.uuid5(uuid.UUID(alert.id), "header")),
        "meta": {"profile": [_HEADER, *(own if code in _OWN_HEADERS else [])]},
        "eventCoding": dict(alert.event),
        "destination": [{"endpoint": alert.endpoint}],
        "source": {"name": "CareRelay", "software": "CareRelay", "endpoint": alert.base_url},
        "focus": [{"reference": focus}],
    }
    if sender is not None:
        header.update(sender=sender, responsible=sender)
    return header


def _bundle(alert: Alert, header: Resource, entries: Mapping[str, Resource]) -> Resource:
    all_: Iterable[tuple[str, Resource]] = [(f"urn:uuid:{header['id']}", header), *entries.items()]
    return {
        "resourceType": "Bundle",
        "id": alert.id,
        "meta": {"profile": [_BUNDLE]},
        "identifier": {"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{alert.id}"},
        "type": "message",
        "timestamp": instant(alert.at),
        "entry": [{"fullUrl": url, "resource": resource} for url, resource in all_],
    }
