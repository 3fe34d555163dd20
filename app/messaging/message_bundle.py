"""A message Bundle: its MessageHeader, its entries, and what each must have to be taken.

http://hl7.org/fhir/us/davinci-alerts/StructureDefinition/notifications-bundle and notifications-messageheader;
https://hl7.org/fhir/R4/messaging.html

A message is complete in itself: what its references lead to is in it, or named by an absolute URL. A relative reference
is never read as a record of this server, for it is a name that the sender gave.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from app.errors import BadRequest, Issue, Unprocessable
from app.fhir import full_urls, validation
from app.fhir.encounter_status import ACTIVE
from app.fhir.entry_references import EntryReferences, Meaning, NamedEntry
from app.fhir.json import Resource
from app.fhir.links import references_in
from app.messaging.contents import identifiers_of
from app.messaging.message_events import MessageEvent, StayEvent, event_of

# What an entry of a message cannot have: these are of searches, transactions and their answers.
_OF_OTHER_BUNDLES = ("search", "request", "response")
# The references of an alert's focus that Da Vinci's profile of Encounter has lead to entries of one type.
_PROFILED: Mapping[tuple[str, str], str] = {
    ("participant", "individual"): "Practitioner",
    ("location", "location"): "Location",
}
# Entries and identifiers together: each identifier is looked up.
_MOST = 1000
_HEADER = "Bundle.entry[0].resource"


@dataclass(frozen=True, slots=True)
class MessageEntry:
    """An entry with its resource."""

    index: int
    full_url: str
    resource: Resource

    @property
    def type(self) -> str:
        return str(self.resource["resourceType"])

    @property
    def where(self) -> str:
        return f"Bundle.entry[{self.index}]"


@dataclass(frozen=True, slots=True)
class Message:
    """A message that has all that it must have; `focus` are the indexes of the entries that it is about."""

    bundle: Resource
    header: Resource
    event: MessageEvent
    entries: tuple[MessageEntry, ...]
    references: EntryReferences
    focus: tuple[int, ...]
    own_bases: Collection[str]
    taken_at: datetime

    @property
    def id(self) -> str:
        """What the envelope is known by: the Bundle's id, else its identifier."""
        identifier = self.bundle.get("identifier", {})
        named = f"{identifier.get('system', '')}|{identifier.get('value', '')}"
        return str(self.bundle.get("id", named))

    def names(self, targets: Mapping[int, str]) -> EntryReferences:
        """The references of the message, given the records that its entries are or become."""
        named = [
            NamedEntry.of(each.index, each.full_url, each.resource, targets.get(each.index))
            for each in self.entries
        ]
        return EntryReferences(named, self.own_bases)


def header_of(bundle: Resource) -> Resource:
    """The MessageHeader of a message, by which it can be answered. Raises BadRequest where there is none with an id."""
    if bundle.get("resourceType") != "Bundle" or bundle.get("type") != "message":
        raise BadRequest("Post a Bundle of the type message here", expression="Bundle.type")
    entries = bundle.get("entry")
    first = entries[0] if isinstance(entries, list) and entries else None
    header = first.get("resource") if isinstance(first, dict) else None
    if not isinstance(header, dict) or header.get("resourceType") != "MessageHeader":
        raise BadRequest(
            "The first entry of a message has its MessageHeader",
            code="required",
            expression=_HEADER,
        )
    if "id" not in header:
        raise BadRequest(
            "The MessageHeader needs an id: the answer names it",
            code="required",
            expression=f"{_HEADER}.id",
        )
    validation.validate(header)
    return header


def read(bundle: Resource, header: Resource, own_bases: Collection[str], at: datetime) -> Message:
    """The message in a Bundle that is valid R4. Raises Unprocessable with all that is missing or amiss."""
    _raise_for(_of_envelope(bundle))
    event = event_of(header)
    if sum(1 + len(identifiers_of(each["resource"], at)) for each in bundle["entry"]) > _MOST:
        raise Unprocessable(
            f"A message has at most {_MOST} entries and identifiers",
            code="too-costly",
            expression="Bundle",
        )
    entries = tuple(
        MessageEntry(index, each.get("fullUrl", ""), each["resource"])
        for index, each in enumerate(bundle["entry"])
    )
    named = [NamedEntry.of(each.index, each.full_url, each.resource) for each in entries]
    reading = _Reading(header, event, entries, EntryReferences(named, own_bases))
    _raise_for(reading.issues())
    focus = tuple(reading.focus())
    if event.stay is not None:
        entries = tuple(_with_status(each, event.stay, focus) for each in entries)
        _raise_for(_of_status(entries, focus, event, event.stay, at))
    return Message(bundle, header, event, entries, reading.references, focus, own_bases, at)


def _with_status(entry: MessageEntry, stay: StayEvent, focus: Collection[int]) -> MessageEntry:
    """The entry; an Encounter that the message is about has the status of the event where it states none."""
    if entry.index not in focus:
        return entry
    return replace(entry, resource=stay.said_by(entry.resource))


def _of_status(
    entries: Sequence[MessageEntry],
    focus: Collection[int],
    event: MessageEvent,
    stay: StayEvent,
    at: datetime,
) -> Iterator[Issue]:
    """Where the event and the Encounter contradict each other, nobody can tell what has happened."""
    for index in focus:
        status = entries[index].resource["status"]
        if not stay.agrees(entries[index].resource, at):
            has_left = status in ACTIVE and status in stay.agreeing and stay.goes_on
            said = f"{status}, with a disposition and an end" if has_left else status
            yield Issue(
                "business-rule",
                f"The event {event.code} says that the stay is {stay.status}, and its Encounter that it is {said}: "
                "send a message of the event that has happened, or the Encounter as it is after this one",
                (f"{entries[index].where}.resource.status",),
            )


def _raise_for(issues: Iterator[Issue]) -> None:
    """Raises Unprocessable where there are any."""
    if found := tuple(issues):
        raise Unprocessable(issues=found)


def _of_envelope(bundle: Resource) -> Iterator[Issue]:
    if "timestamp" not in bundle:
        yield Issue("required", "A message says when it was made", ("Bundle.timestamp",))
    if "id" not in bundle and "value" not in bundle.get("identifier", {}):
        yield Issue("required", "A message needs an id, by which it is known again", ("Bundle.id",))
    if "total" in bundle:
        yield Issue("invalid", "A message has no total", ("Bundle.total",))
    if len(bundle["entry"]) < 2:
        yield Issue(
            "required", "Beside its MessageHeader a message has what it is about", ("Bundle",)
        )
    urls: dict[str, int] = {}
    for index, entry in enumerate(bundle["entry"]):
        where = f"Bundle.entry[{index}]"
        for name in _OF_OTHER_BUNDLES:
            if name in entry:
                yield Issue("invalid", f"An entry of a message has no {name}", (f"{where}.{name}",))
        if "resource" not in entry:
            yield Issue("required", "An entry of a message has a resource", (f"{where}.resource",))
        elif index and entry["resource"]["resourceType"] == "MessageHeader":
            yield Issue("invalid", "A message has one MessageHeader", (f"{where}.resource",))
        url = entry.get("fullUrl")
        if url is None and index:
            yield Issue("required", "An entry of a message has a fullUrl", (f"{where}.fullUrl",))
        elif url is not None and urls.setdefault(url, index) != index:
            both = (f"Bundle.entry[{urls[url]}].fullUrl", f"{where}.fullUrl")
            yield Issue("duplicate", "Two entries have the same fullUrl", both)
        elif url is not None and (why := full_urls.fault(url, entry.get("resource"))):
            yield Issue("value", why, (f"{where}.fullUrl",))


class _Reading:
    """What is amiss with a message whose envelope is in order."""

    def __init__(
        self,
        header: Resource,
        event: MessageEvent,
        entries: tuple[MessageEntry, ...],
        references: EntryReferences,
    ) -> None:
        self._header = header
        self._event = event
        self._entries = entries
        self.references = references

    def issues(self) -> Iterator[Issue]:
        yield from self._of_header()
        for entry in self._entries:
            yield from self._of_references(entry)
            if entry.type == "Encounter":
                yield from self._of_subject(entry)
        if self._event.is_alert:
            for index in self.focus():
                yield from self._of_profile(self._entries[index])

    def focus(self) -> Iterator[int]:
        """The entries that the header names as focus; without one, all that a message of its event can be about."""
        named = self._header.get("focus")
        if named is None:
            yield from (each.index for each in self._entries if each.type in self._event.focus)
        for each in named or ():
            index = self._meaning(0, each).entry
            if index is not None:
                yield index

    def _of_header(self) -> Iterator[Issue]:
        if "response" in self._header:
            yield Issue("not-supported", "Responses are not taken here", (f"{_HEADER}.response",))
        if self._event.is_alert and "focus" not in self._header:
            yield Issue("required", "A notification names its focus", (f"{_HEADER}.focus",))
        wanted = " or ".join(sorted(self._event.focus))
        for number, each in enumerate(self._header.get("focus", ())):
            index = self._meaning(0, each).entry
            if index is None or self._entries[index].type not in self._event.focus:
                place = f"{_HEADER}.focus[{number}]"
                yield Issue("value", f"The focus is an entry with a resource: {wanted}", (place,))
        if "focus" not in self._header and not list(self.focus()):
            yield Issue(
                "required", f"A message of this event has a resource: {wanted}", ("Bundle",)
            )
        if self._event.is_alert and len(self._header.get("destination", ())) > 1:
            place = f"{_HEADER}.destination"
            yield Issue("invalid", "A notification has one destination", (place,))

    def _of_references(self, entry: MessageEntry) -> Iterator[Issue]:
        for element in references_in(entry.resource):
            literal: str = element["reference"]
            found = self._meaning(entry.index, element)
            if found.kind == "refused":
                yield Issue("value", found.reason, (f"{entry.where}.resource",))
            elif self._leads_nowhere(literal, found):
                yield Issue(
                    "not-found",
                    "A reference of a message leads to one of its entries, or is an absolute URL",
                    (f"{entry.where}.resource",),
                )

    @staticmethod
    def _leads_nowhere(literal: str, found: Meaning) -> bool:
        """Whether a reference that means no entry is a name of the sender's own, or a search."""
        if found.kind == "ours":
            return "?" in literal or "://" not in literal
        kept = found.reference
        is_url = kept.startswith("#") or ("://" in kept and "?" not in kept)
        return found.kind == "kept" and not is_url

    def _of_subject(self, entry: MessageEntry) -> Iterator[Issue]:
        index = self._meaning(entry.index, entry.resource.get("subject", {})).entry
        if index is None or self._entries[index].type != "Patient":
            yield Issue(
                "required",
                "An Encounter of a message is about a Patient who is in the message",
                (f"{entry.where}.resource.subject",),
            )

    def _of_profile(self, entry: MessageEntry) -> Iterator[Issue]:
        for (parent, name), wanted in _PROFILED.items():
            for number, each in enumerate(entry.resource.get(parent, ())):
                if name not in each:
                    continue
                index = self._meaning(entry.index, each[name]).entry
                if index is None or self._entries[index].type != wanted:
                    place = f"{entry.where}.resource.{parent}[{number}].{name}"
                    yield Issue("value", f"A notification has this {wanted} as an entry", (place,))

    def _meaning(self, index: int, element: Mapping[str, Any]) -> Meaning:
        literal = element.get("reference")
        return self.references.meaning(index, literal) if literal else Meaning("kept")
