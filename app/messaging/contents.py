"""What is to be stored of a message's entry. Pure functions over decoded resources."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

from app.fhir import instants
from app.fhir.definitions import structure
from app.fhir.json import Resource
from app.fhir.links import references_in
from app.fhir.resource_names import name_of

# The system and the value of an Identifier.
Identity = tuple[str, str]

# The system of identifiers that are URIs.
URI = "urn:ietf:rfc:3986"
# Types of identifiers, and those that do not tell one person or one visit from another: accounts, bank cards, and the
# numbers of employers, guarantors and subscribers.
_V2_0203 = "http://terminology.hl7.org/CodeSystem/v2-0203"
_ACCOUNTS = frozenset({"AN", "ANC", "AND", "ANT", "BA", "BC"})
_SHARED = {"Patient": _ACCOUNTS | {"EN", "GI", "GN", "SN"}, "Encounter": _ACCOUNTS}
_VISIT = "VN"
# What a message does not change of a person who is known: whose patient it is, and what the server sets.
_NOT_FILLED = frozenset(
    {
        "resourceType",
        "id",
        "meta",
        "text",
        "contained",
        "active",
        "generalPractitioner",
        "identifier",
        "link",
        "managingOrganization",
    }
)
# Elements of which there is one in one of several types.
_CHOICES = ("deceased", "multipleBirth")


def identifiers_of(resource: Resource, at: datetime) -> list[Identity]:
    """The identifiers by which a resource is known at a moment, with their systems.

    Former ones count no more, nor do those that several persons or visits may have together, as a family's insurance.
    Of a visit that has a visit number nothing else counts.
    """
    usable = [each for each in _elements(resource) if _counts(resource, each, at)]
    if resource["resourceType"] == "Encounter":
        usable = [each for each in usable if _VISIT in _types(each)] or usable
    return [pair for each in usable if (pair := _pair(each)) is not None]


def has_lost(resource: Resource, identities: Collection[Identity], at: datetime) -> bool:
    """Whether a record that is found by identifiers has them in such a way only that they do not count."""
    same = [each for each in _elements(resource) if _pair(each) in identities]
    return bool(same) and not any(_counts(resource, each, at) for each in same)


def _elements(resource: Resource) -> list[Resource]:
    element = resource.get("identifier", [])
    return element if isinstance(element, list) else [element]


def _counts(resource: Resource, identifier: Resource, at: datetime) -> bool:
    """Whether an identifier tells this record from others. The period of a visit's number is often the visit's own."""
    kind = resource["resourceType"]
    if identifier.get("use") == "old" or (kind != "Encounter" and _is_over(identifier, at)):
        return False
    return _types(identifier).isdisjoint(_SHARED.get(kind, frozenset()))


def _is_over(identifier: Resource, at: datetime) -> bool:
    end = identifier.get("period", {}).get("end")
    return end is not None and instants.span(end)[1] <= at


def _pair(identifier: Resource) -> Identity | None:
    system, value = identifier.get("system"), identifier.get("value")
    return (system, value) if system and value else None


def _types(identifier: Resource) -> set[str]:
    codings = identifier.get("type", {}).get("coding", ())
    return {str(each.get("code")) for each in codings if each.get("system") == _V2_0203}


def with_url(resource: Resource, url: str) -> Resource:
    """A copy that is found by its fullUrl, since it has no identifier of its own."""
    identifier = {"system": URI, "value": url}
    if not structure(resource["resourceType"]).elements["identifier"].is_list:
        return {**resource, "identifier": identifier}
    return {**resource, "identifier": [*resource.get("identifier", ()), identifier]}


def filled(stored: Resource, said: Resource) -> Resource:
    """A known person with what the record lacks: identifiers and elements. What it has stays as it is.

    A message tells of an event and comes when it comes; what is new about a person is written by PUT or PATCH.
    """
    known = {_element(key) for key in stored}
    added = {
        key: value
        for key, value in said.items()
        if _element(key) not in known and _element(key) not in _NOT_FILLED
    }
    has = {None, *(_pair(each) for each in stored.get("identifier", ()))}
    new = [each for each in said.get("identifier", ()) if _pair(each) not in has]
    if new:
        added["identifier"] = [*stored.get("identifier", ()), *new]
    return {**stored, **added}


def _element(key: str) -> str:
    name = key.removeprefix("_")
    return next((choice for choice in _CHOICES if name.startswith(choice)), name)


def named_only(
    resource: Resource, unplaced: Callable[[str], Resource | None], at: datetime
) -> Resource:
    """A copy whose references to what is not stored name it by its identifier and display.

    `unplaced` gives the resource that a literal reference leads to, where it is one of these.
    """
    if not any(unplaced(each["reference"]) for each in references_in(resource)):
        return resource
    made = copy.deepcopy(resource)
    for element in references_in(made):
        target = unplaced(element["reference"])
        if target is not None:
            _name(element, target, at)
    return made


def _name(element: dict[str, Any], target: Resource, at: datetime) -> None:
    del element["reference"]
    element.pop("_reference", None)
    element.setdefault("type", target["resourceType"])
    for system, value in identifiers_of(target, at)[:1]:
        element.setdefault("identifier", {"system": system, "value": value})
    if display := name_of(target):
        element.setdefault("display", display)
