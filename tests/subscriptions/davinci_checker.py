"""Judges a message by the published profiles: cardinalities, fixed values, bundled references; not must-support.

The profiles are read as they are published, nothing of them is repeated here: Da Vinci's differentials, and the
snapshots of US Core below them.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from tests.shared_data import SHARED

ALERTS = SHARED / "data" / "davinci-alerts"
US_CORE = SHARED / "definitions" / "us-core" / "us_core_610.tgz"
DAVINCI = "http://hl7.org/fhir/us/davinci-alerts/StructureDefinition/"
# The types of the profiles that references are to lead to.
_KINDS = {
    "adt-notification-encounter": "Encounter",
    "hrex-organization": "Organization",
    "hrex-practitionerrole": "PractitionerRole",
    "us-core-location": "Location",
    "us-core-patient": "Patient",
    "us-core-practitioner": "Practitioner",
}

Json = dict[str, Any]

needs_profiles = pytest.mark.skipif(
    not (ALERTS.is_dir() and US_CORE.is_file()),
    reason=f"the Da Vinci and US Core profiles are not at {SHARED}",
)


def profile(name: str) -> Json:
    path = ALERTS / "resources" / f"StructureDefinition-{name}.json"
    read: Json = json.loads(path.read_text())
    return read


def codes() -> set[str]:
    path = ALERTS / "resources" / "CodeSystem-notification-event.json"
    return {each["code"] for each in json.loads(path.read_text())["concept"]}


def references(value: Any) -> Iterator[str]:
    """Every literal reference, those to contained resources aside."""
    if isinstance(value, list):
        for each in value:
            yield from references(each)
    elif isinstance(value, dict):
        if isinstance(value.get("reference"), str) and not value["reference"].startswith("#"):
            yield value["reference"]
        for each in value.values():
            yield from references(each)


def problems(bundle: Json) -> list[str]:
    """What is wrong with a message, by its profiles and by the rules on what a message holds; empty if nothing is."""
    entries = {
        each.get("fullUrl", ""): each.get("resource", {}) for each in bundle.get("entry", ())
    }
    found = list(_judged(bundle, "notifications-bundle", entries))
    if len(entries) != len(bundle.get("entry", ())) or "" in entries:
        found.append("Bundle.entry.fullUrl: missing or twice")
    header: dict[str, Any] = next(iter(entries.values()), {})
    if header.get("resourceType") != "MessageHeader":
        return [*found, "Bundle.entry[0]: no MessageHeader"]
    found += _judged(header, "notifications-messageheader", entries)
    event = header.get("eventCoding", {}).get("code", "")
    if event not in codes():
        found.append(f"MessageHeader.eventCoding: {event} is no event")
    kind = event.removeprefix("notification-")
    if kind in ("admit", "discharge", "transfer"):
        found += _judged(header, f"{kind}-notification-messageheader", entries)
        for resource in entries.values():
            name = f"adt-notification-{resource['resourceType'].lower()}"
            if name.removeprefix("adt-notification-") in ("encounter", "condition", "coverage"):
                found += _judged(resource, name, entries)
    dangling = {
        each for resource in entries.values() for each in references(resource)
    } - entries.keys()
    return found + [f"{each} leads out of the message" for each in sorted(dangling)]


def us_core_problems(bundle: Json) -> list[str]:
    """What US Core 6.1.0 misses in the people, places and stays of a message."""
    found: list[str] = []
    for entry in bundle["entry"]:
        name = entry["resource"]["resourceType"].lower()
        if name in ("patient", "practitioner", "location", "organization", "encounter"):
            elements = us_core(name)["snapshot"]["element"]
            plain = [each for each in elements if ":" not in each["id"] and "[x]" not in each["id"]]
            least = [{"id": each["id"], "min": each["min"]} for each in plain]
            found += _elements(entry["resource"], least, {})
    return found


@cache
def us_core(name: str) -> Json:
    with tarfile.open(US_CORE) as package:
        member = package.extractfile(f"package/StructureDefinition-us-core-{name}.json")
        assert member is not None
        read: Json = json.load(member)
        return read


def _judged(resource: Json, name: str, entries: dict[str, Json]) -> Iterator[str]:
    yield from _elements(resource, profile(name)["differential"]["element"], entries)


def _elements(resource: Json, elements: list[Json], entries: dict[str, Json]) -> Iterator[str]:
    for element in elements:
        id_ = element["id"]
        if ":" in id_:
            yield from _slice(resource, element, entries)
            continue
        path = id_.split(".")[1:]
        if not path:
            continue
        for parent in _at(resource, path[:-1]):
            values = _values(parent, path[-1])
            if len(values) < element.get("min", 0):
                yield f"{id_}: {len(values)} where {element['min']} must be"
            if element.get("max", "*") != "*" and len(values) > int(element["max"]):
                yield f"{id_}: {len(values)} where {element['max']} may be"
            fixed = [value for key, value in element.items() if key.startswith("fixed")]
            if fixed and any(value != fixed[0] for value in values):
                yield f"{id_}: is not {fixed[0]}"
            for value in values:
                yield from _bundled(id_, value, element, entries)


def _slice(resource: Json, element: Json, entries: dict[str, Json]) -> Iterator[str]:
    """The slices that the profiles have: the header among the entries, and a focus of a kind."""
    id_, least, most = element["id"], element.get("min", 0), element.get("max", "*")
    if id_ == "Bundle.entry:messageheader":
        values = [e for e in resource["entry"] if e["resource"]["resourceType"] == "MessageHeader"]
    elif id_.startswith("MessageHeader.focus:"):
        kinds = {_KINDS[each.rpartition("/")[2]] for each in element["type"][0]["targetProfile"]}
        values = [
            each
            for each in resource.get("focus", ())
            if entries.get(each["reference"], {}).get("resourceType") in kinds
        ]
    else:
        return
    if len(values) < least or (most != "*" and len(values) > int(most)):
        yield f"{id_}: {len(values)} where {least}..{most} must be"


def _at(value: Any, path: list[str]) -> Iterator[Json]:
    if not path:
        yield value
        return
    for child in _values(value, path[0]):
        if isinstance(child, dict):
            yield from _at(child, path[1:])


def _values(parent: Json, name: str) -> list[Any]:
    value = parent.get(name, parent.get(f"_{name}"))
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _bundled(id_: str, value: Any, element: Json, entries: dict[str, Json]) -> Iterator[str]:
    """References that must lead into the message, to a resource of the right type."""
    for type_ in element.get("type", ()):
        if "bundled" not in type_.get("aggregation", ()) or "reference" not in value:
            continue
        target = entries.get(value["reference"])
        names = [each.rpartition("/")[2].partition("|")[0] for each in type_["targetProfile"]]
        kinds = {_KINDS.get(name, "Resource") for name in names}
        if target is None:
            yield f"{id_}: {value['reference']} is not bundled"
        elif "Resource" not in kinds and target["resourceType"] not in kinds:
            yield f"{id_}: leads to {target['resourceType']}"
