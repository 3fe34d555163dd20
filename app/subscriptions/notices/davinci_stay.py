"""A stay as the Da Vinci profiles require it: practitioners and not their roles, and every name or its absence.

http://hl7.org/fhir/us/davinci-alerts/StructureDefinition/adt-notification-encounter, and US Core's Patient,
Practitioner, Location and Organization below it. A resource that is not stored, or may not be sent, gets a stand-in
that states by data-absent-reason what is not known.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from app.fhir.json import Resource
from app.subscriptions.notices.required_names import has_name, institutions, is_treating, key_of

_URI = "urn:ietf:rfc:3986"
_ATTENDER: Resource = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ParticipationType",
    "code": "ATND",
    "display": "attender",
}
_UNKNOWN: Resource = {
    "system": "http://terminology.hl7.org/CodeSystem/data-absent-reason",
    "code": "unknown",
}
_PEOPLE = frozenset({"Patient", "Practitioner"})
_PLACES = frozenset({"Location", "Organization"})


class StandIns:
    """Resources in place of referenced ones that are not in the message, by fullUrl; for one notice always the same."""

    def __init__(self, notice_id: str, base_url: str, hidden: frozenset[str]) -> None:
        self._notice = uuid.UUID(notice_id)
        self._base_url = base_url
        self._hidden = hidden
        self.made: dict[str, Resource] = {}

    def of(self, resource_type: str, reference: Mapping[str, Any]) -> Resource:
        """A reference to the stand-in for the target of another one; for an empty one nothing is known of it."""
        key = key_of(reference, self._base_url)
        known = {} if key in self._hidden else reference
        name = f"{resource_type} {key or known.get('display', '')}"
        made_id = str(uuid.uuid5(self._notice, name))
        url = f"urn:uuid:{made_id}"
        if url not in self.made:
            resource = {"resourceType": resource_type, "id": made_id}
            self.made[url] = complete({**resource, **self._identified(known, key), **_named(known)})
        display = {"display": known["display"]} if "display" in known else {}
        return {"reference": url, **display}

    def _identified(self, reference: Mapping[str, Any], key: str) -> Resource:
        if "identifier" in reference:
            return {"identifier": [reference["identifier"]]}
        if not reference or not key:
            return {}
        return {"identifier": [uri_of(key, self._base_url)]}


def uri_of(reference: str, base_url: str) -> Resource:
    """The Identifier of a resource by its URL."""
    url = reference if ":" in reference else f"{base_url}/{reference}"
    return {"system": _URI, "value": url}


def _named(reference: Mapping[str, Any]) -> Resource:
    return {"display": reference["display"]} if reference.get("display") else {}


def complete(resource: Resource) -> Resource:
    """A copy with a name, an identifier and the other elements that US Core requires, or their stated absence.

    A stand-in's `display` becomes its name.
    """
    resource_type = resource["resourceType"]
    made = dict(resource)
    display = made.pop("display", None)
    if resource_type in _PEOPLE:
        names = made.get("name") or [{"text": display} if display else {}]
        made["name"] = [_name(resource_type, each) for each in names]
        made.setdefault("identifier", [{"_system": ABSENT, "_value": ABSENT}])
    elif resource_type in _PLACES and not has_name(made):
        made.update({"name": display} if display else {"_name": ABSENT})
    if resource_type == "Patient":
        made.setdefault("gender", "unknown")
    if resource_type == "Organization" and "active" not in made:
        made["_active"] = ABSENT
    if resource_type == "Encounter":
        made.setdefault("type", [{"coding": [_UNKNOWN]}])
    return made


def _name(resource_type: str, name: Resource) -> Resource:
    """A HumanName with a family name or a stated absence."""
    if "family" in name or "_family" in name:
        return name
    if resource_type == "Practitioner":
        return {**name, "_family": ABSENT}
    if "given" in name:
        return name
    return {**name, "extension": [*name.get("extension", ()), *ABSENT["extension"]]}


class Stay:
    """Shapes an Encounter by the resources of the message, which are keyed by relative reference (`Patient/p1`)."""

    def __init__(self, at_hand: Mapping[str, Resource], stand_ins: StandIns, base_url: str) -> None:
        self._at_hand = at_hand
        self._stand_ins = stand_ins
        self._base_url = base_url

    def shaped(self, encounter: Resource) -> Resource:
        """The Encounter with a patient, a treating practitioner and a place that are in the message."""
        made = {
            **encounter,
            "subject": self._resolved("Patient", encounter.get("subject", {})),
            "participant": self._participants(encounter),
            "location": [
                {**each, "location": self._resolved("Location", each["location"])}
                for each in encounter.get("location") or [{"location": {}}]
            ],
        }
        if "serviceProvider" in encounter:
            made["serviceProvider"] = self._resolved("Organization", encounter["serviceProvider"])
        return made

    def institution(self, encounter: Resource) -> Resource:
        """The sending institution: that of the stay, else of its places, else one that nothing is known of."""
        named = list(institutions(encounter, self._at_hand))
        known = (each for each in named if key_of(each, self._base_url) in self._at_hand)
        return self._resolved("Organization", next(known, named[0] if named else {}))

    def _participants(self, encounter: Resource) -> list[Resource]:
        found = [self._participant(each) for each in encounter.get("participant", ())]
        kept = [each for each in found if each]
        if not any(is_treating(each) and "individual" in each for each in kept):
            unknown = self._stand_ins.of("Practitioner", {})
            kept.append({"type": [{"coding": [_ATTENDER]}], "individual": unknown})
        return kept

    def _participant(self, participant: Resource) -> Resource:
        """The participant with a Practitioner as individual, or without one: the profile allows no other type."""
        rest = {name: each for name, each in participant.items() if name != "individual"}
        individual = participant.get("individual")
        person = self._practitioner(individual) if individual else None
        return rest if person is None else {**rest, "individual": person}

    def _practitioner(self, individual: Resource) -> Resource | None:
        key = key_of(individual, self._base_url)
        resource = self._at_hand.get(key)
        if resource is not None and resource["resourceType"] == "PractitionerRole":
            named = resource.get("practitioner")
            display = {"display": individual["display"]} if "display" in individual else {}
            if named is None:
                return self._stand_ins.of("Practitioner", display) if display else None
            return self._resolved("Practitioner", {**display, **named})
        type_ = individual.get("type", "Practitioner") if key.count("/") < 1 else key.split("/")[-2]
        if type_ not in ("Practitioner", "PractitionerRole"):
            return None
        return self._resolved("Practitioner", individual)

    def _resolved(self, resource_type: str, reference: Resource) -> Resource:
        """The reference itself where it leads to a resource of the message, else one to a stand-in."""
        found = self._at_hand.get(key_of(reference, self._base_url))
        if found is not None and found["resourceType"] == resource_type:
            return reference
        return self._stand_ins.of(resource_type, reference)


# Resources that refer to each other and to nothing else, as a message needs them.
#
# https://hl7.org/fhir/R4/bundle.html#references

DATA_ABSENT = "http://hl7.org/fhir/StructureDefinition/data-absent-reason"
# The content of a required element whose value is not known.
ABSENT: Resource = {"extension": [{"url": DATA_ABSENT, "valueCode": "unknown"}]}


class Closure:
    """`urls` maps references (`Patient/p1`) to fullUrls; a reference to a `hidden` one loses even its display."""

    def __init__(
        self, base_url: str, urls: Mapping[str, str], hidden: Collection[str] = ()
    ) -> None:
        self._base_url = base_url
        self._urls = urls
        self._hidden = hidden

    def close(self, value: Any) -> Any:
        """A copy in which every reference leads to a fullUrl, or is none: display, identifier or a stated absence."""
        if isinstance(value, list):
            return [self.close(each) for each in value]
        if not isinstance(value, dict):
            return value
        closed = {name: self.close(each) for name, each in value.items()}
        if not isinstance(value.get("reference"), str) or value["reference"].startswith("#"):
            return closed
        key = key_of(value, self._base_url)
        if key in self._urls:
            return {**closed, "reference": self._urls[key]}
        return self._without_target(closed, is_hidden=key in self._hidden)

    def _without_target(self, reference: Resource, *, is_hidden: bool) -> Resource:
        without = {"reference", "_reference"} | ({"display", "identifier"} if is_hidden else set())
        rest = {name: each for name, each in reference.items() if name not in without}
        if not {"display", "identifier"} & rest.keys():
            rest["extension"] = [*rest.get("extension", ()), *ABSENT["extension"]]
        return rest


def reachable(
    resources: Mapping[str, Resource], start: Iterable[str], also: Iterable[str] = ()
) -> list[str]:
    """The fullUrls that references lead to from `start`, nearest first, then from `also`; each once.

    `resources` are closed, by fullUrl.
    """
    found: dict[str, None] = {}
    for urls in (start, also):
        waiting = list(urls)
        while waiting:
            url = waiting.pop(0)
            if url in resources and url not in found:
                found[url] = None
                waiting += _references(resources[url])
    return list(found)


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            yield from _references(each)
    elif isinstance(value, dict):
        if isinstance(value.get("reference"), str):
            yield value["reference"]
        for each in value.values():
            yield from _references(each)
