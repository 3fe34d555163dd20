"""The order within a batch: what its entries say of one resource goes one after the other, all else side by side.

https://hl7.org/fhir/R4/http.html#brules lets a server run a batch in any order. Messages of one visit are put into the
order of their events, whatever their order in the Bundle: an admission that comes after its discharge would be late,
and nobody would be told of it as an admission (docs/encounters.md). All others keep the Bundle's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import parse_qsl

from app.fhir.json import Resource
from app.interactions.bundle_entries import BundleEntry
from app.resources import type_registry


@dataclass(slots=True)
class _Lane:
    """Entries about one resource, and the names that they have for it."""

    entries: list[BundleEntry] = field(default_factory=list)
    names: set[str] = field(default_factory=set)


def lanes(entries: Iterable[BundleEntry], arrival: datetime) -> list[list[BundleEntry]]:
    """The entries, those about one resource together and in the order in which they are to be run."""
    lanes: list[_Lane] = []
    lane_of: dict[str, _Lane] = {}
    for entry in entries:
        names = set(_names(entry))
        met = list({id(lane_of[name]): lane_of[name] for name in names if name in lane_of}.values())
        if not met:
            met.append(_Lane())
            lanes.append(met[0])
        lane = met[0]
        for other in met[1:]:  # only now it shows that they are about the same
            lane.entries += other.entries
            names |= other.names
            other.entries = []
        lane.entries.append(entry)
        lane.names |= names
        lane_of.update(dict.fromkeys(names, lane))
    return [_by_event(lane.entries, arrival) for lane in lanes if lane.entries]


def _names(entry: BundleEntry) -> Iterator[str]:
    """By what a write names its resource: its address, its criteria; a visit's also its identifiers."""
    if entry.method in ("GET", "HEAD") or not entry.segments:
        return
    for visit, _ in _visits(entry):
        for system, value in type_registry.identifiers_of(visit):
            yield f"Encounter?identifier={system}|{value}"
    if "$" in entry.path:
        return
    if len(entry.segments) == 2:
        yield entry.path
    criteria = entry.preconditions.if_none_exist if entry.method == "POST" else entry.query
    if criteria:
        parameters = sorted(parse_qsl(criteria.rpartition("?")[2], keep_blank_values=True))
        named = "&".join(f"{name}={value}" for name, value in parameters)
        yield f"{entry.segments[0]}?{named}"


def _visits(entry: BundleEntry) -> Iterator[tuple[Resource, str | None]]:
    """The Encounters of which an entry tells, none validated yet: its own, or those of the FHIR message that it posts.

    With each comes when its message was made, where that is told.
    """
    if entry.path != "$process-message":
        for encounter in _of_type("Encounter", entry.resource):
            yield encounter, None
        return
    for message in _messages(entry.resource):
        for each in _objects(message, "entry"):
            for encounter in _of_type("Encounter", each.get("resource")):
                yield encounter, message.get("timestamp")


def _messages(body: Any) -> Iterator[Resource]:
    """The message of a body, which is one or has it as a parameter."""
    yield from _of_type("Bundle", body)
    for parameters in _of_type("Parameters", body):
        for each in _objects(parameters, "parameter"):
            yield from _of_type("Bundle", each.get("resource"))


def _of_type(resource_type: str, body: Any) -> Iterator[Resource]:
    """The body, if it is a resource of that type."""
    if isinstance(body, dict) and body.get("resourceType") == resource_type:
        yield body


def _objects(resource: Resource, name: str) -> Iterator[dict[str, Any]]:
    found = resource.get(name)
    return (each for each in (found if isinstance(found, list) else ()) if isinstance(each, dict))


def _by_event(entries: list[BundleEntry], arrival: datetime) -> list[BundleEntry]:
    """The entries by the times of the events; one without a time stays behind the one that it followed."""
    if len(entries) == 1:
        return entries
    timed: list[tuple[str, BundleEntry]] = []
    last = ""
    for entry in sorted(entries, key=lambda each: each.index):
        times = (type_registry.event_time_of(each, arrival, made) for each, made in _visits(entry))
        last = max((each for each in times if each), default=last)
        timed.append((last, entry))
    return [entry for _, entry in sorted(timed, key=lambda each: each[0])]
