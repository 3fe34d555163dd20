"""Elements of care plans as text for people: in notices, documents and operation results.

Pure functions over decoded JSON. `Names` maps references to the titles of their targets; a reference without an entry
is shown by its own display, else by its kind.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from app.consent import labels
from app.fhir.json import Resource
from app.fhir.resource_names import person_name

Names = Mapping[str, str]

WITHHELD = "(withheld: confidential)"
_NORMAL = labels.level(labels.NONE)
# The elements that hold the title of a resource of this type, in order of preference.
_TITLES = {
    "Appointment": ("description", "serviceType", "appointmentType"),
    "CarePlan": ("title", "description"),
    "CareTeam": ("name",),
    "CommunicationRequest": ("reasonCode", "category"),
    "DeviceRequest": ("codeCodeableConcept",),
    "DocumentReference": ("description", "type"),
    "Encounter": ("type", "class"),
    "Flag": ("code",),
    "Goal": ("description",),
    "MedicationRequest": ("medicationCodeableConcept", "medicationReference"),
    "MedicationStatement": ("medicationCodeableConcept", "medicationReference"),
    "PractitionerRole": ("practitioner", "code", "specialty"),
    "RiskAssessment": ("code", "method"),
    "Task": ("description", "code"),
}


def each(value: Any) -> Sequence[Any]:
    """An element's values, whether it holds one, several or none."""
    if value is None:
        return ()
    return value if isinstance(value, list) else (value,)


def key_of(reference: Mapping[str, Any] | None) -> str:
    """The key of a Reference: its literal reference without a version, else its identifier, else its display."""
    if not reference:
        return ""
    literal = reference.get("reference")
    if isinstance(literal, str):
        return literal.partition("/_history/")[0]
    identifier = reference.get("identifier", {})
    if "value" in identifier:
        return f"{identifier.get('system', '')}|{identifier['value']}"
    return str(reference.get("display", ""))


def concept(value: Any) -> str:
    """A CodeableConcept or Coding, or several of them, as text."""
    found = []
    for one in each(value):
        if "text" in one:
            found.append(one["text"])
            continue
        codings = one.get("coding", [one])
        shown = [c.get("display") for c in codings if c.get("display")] or [
            c.get("code") for c in codings if c.get("code")
        ]
        found += shown[:1]
    return ", ".join(str(text) for text in found)


def codes(value: Any) -> frozenset[str]:
    """The bare codes of CodeableConcepts."""
    return frozenset(
        coding["code"]
        for one in each(value)
        for coding in one.get("coding", ())
        if "code" in coding
    )


def reference(value: Mapping[str, Any] | None, names: Names) -> str:
    """A Reference as text: the name of its target, else its display or number, else what kind of thing it leads to.

    Never its address, which says nothing to people.
    """
    if not value:
        return ""
    identifier = value.get("identifier", {})
    number = "" if "reference" in value else str(identifier.get("value", ""))
    return str(names.get(key_of(value)) or value.get("display") or number or kind(value))


def kind(value: Mapping[str, Any]) -> str:
    """The type that a Reference leads to, as words: `a care team`, `an organization`."""
    place = re.search(r"(?:^|/)([A-Z][A-Za-z]+)/[^/]+$", key_of(value))
    name = place[1] if place else str(value.get("type", ""))
    if not name.isalpha():
        return "something without a name"
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower()
    return f"{'an' if spaced[0] in 'aeiou' else 'a'} {spaced}"


def day(value: Any) -> str:
    """A date, dateTime or instant to the day."""
    return str(value or "")[:10]


def period(value: Mapping[str, Any] | None) -> str:
    """A Period, open ends included."""
    if not value:
        return "not stated"
    start, end = day(value.get("start")), day(value.get("end"))
    return f"from {start or 'an unknown day'}" + (f" to {end}" if end else ", no end stated")


def quantity(value: Mapping[str, Any] | None) -> str:
    """A Quantity, Duration or Age."""
    if not value:
        return ""
    unit = value.get("unit") or value.get("code") or ""
    return f"{value.get('comparator', '')}{value.get('value', '')} {unit}".strip()


def choice(element: Mapping[str, Any], name: str) -> str:
    """The value of a choice element such as `value[x]`, whichever type it has."""
    for key, value in element.items():
        if not key.startswith(name) or key == name:
            continue
        kind = key.removeprefix(name)
        if kind in ("CodeableConcept", "Coding"):
            return concept(value)
        if kind in ("Quantity", "Age", "Duration"):
            return quantity(value)
        if kind == "Range":
            return f"{quantity(value.get('low'))} to {quantity(value.get('high'))}"
        if kind == "Period":
            return period(value)
        if kind == "Timing":
            return timing(value)
        if kind == "Reference":
            return reference(value, {})
        if kind == "Boolean":
            return "yes" if value else "no"
        if kind in ("Date", "DateTime", "Instant"):
            return day(value)
        if not isinstance(value, dict | list):
            return str(value)
    return ""


def timing(value: Mapping[str, Any]) -> str:
    """A Timing: its code, else how often, else its bounds or events."""
    if "code" in value:
        return concept(value["code"])
    repeat = value.get("repeat", {})
    if "frequency" in repeat and "period" in repeat:
        return f"{repeat['frequency']} times every {repeat['period']} {repeat.get('periodUnit', '')}".strip()
    bounds = repeat.get("boundsPeriod")
    if bounds:
        return period(bounds)
    return ", ".join(day(event) for event in value.get("event", ()))


def human_name(value: Any) -> str:
    """The name that a person goes by: its text, else its parts."""
    return person_name(each(value))


def phone(resource: Mapping[str, Any] | None) -> str:
    """The first telephone number that is in use, else the first other contact point."""
    points = [
        point
        for point in (resource or {}).get("telecom", ())
        if point.get("value") and point.get("use") != "old" and "end" not in point.get("period", {})
    ]
    for point in points:
        if point.get("system") == "phone":
            return str(point["value"])
    return str(points[0]["value"]) if points else ""


def title(resource: Resource) -> str:
    """The title of a resource; empty where it has none, WITHHELD where it is restricted."""
    if is_restricted(resource):
        return WITHHELD
    kind = resource["resourceType"]
    if kind in ("Patient", "Practitioner", "RelatedPerson", "Person"):
        return human_name(resource.get("name"))
    for name in _TITLES.get(kind, ("code", "name")):
        value = resource.get(name)
        if isinstance(value, str):
            return value
        first = next(iter(each(value)), None)
        if isinstance(first, dict):
            text = str(first.get("display", "")) if "reference" in first else concept(value)
            if text:
                return text
    return ""


def is_restricted(resource: Mapping[str, Any]) -> bool:
    """Whether a security label is sensitive, or more confidential than N (normal)."""
    found = labels.of(resource)
    return bool(found & labels.SENSITIVE) or labels.level(found) > _NORMAL


def listing(texts: Iterable[str]) -> str:
    """Several texts in one line."""
    return ", ".join(text for text in texts if text)
