"""The order within a batch: what its entries say of one resource goes one after the other, all else side by side.

https://hl7.org/fhir/R4/http.html#brules lets a server run a batch in any order. Messages of one visit are put into the
order of their events, whatever their order in the Bundle: an admission that comes after its discharge would be late,
and nobody would be told of it as an admission (docs/encounters.md). All others keep the Bundle's order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from urllib.parse import parse_qsl

from app.interactions.bundle_entries import BundleEntry
from app.resources import type_registry


def lanes(entries: Iterable[BundleEntry], arrival: datetime) -> list[list[BundleEntry]]:
    """The entries, those about one resource together and in the order in which they are to be run."""
    lanes: list[list[BundleEntry]] = []
    lane_of: dict[str, list[BundleEntry]] = {}
    for entry in entries:
        names = list(_names(entry))
        lane = [entry]
        for name in names:
            other = lane_of.get(name)
            if other is not None and other is not lane:
                lane = _joined(other, lane, lane_of)
        for name in names:
            lane_of[name] = lane
        if lane[0] is entry:
            lanes.append(lane)
    return [_by_event(lane, arrival) for lane in lanes if lane]


def _joined(
    one: list[BundleEntry], other: list[BundleEntry], lane_of: dict[str, list[BundleEntry]]
) -> list[BundleEntry]:
    """Both lanes as one, in the Bundle's order; the later one is left empty."""
    first, second = (one, other) if one[0].index < other[0].index else (other, one)
    first[:] = sorted([*first, *second], key=lambda entry: entry.index)
    second.clear()
    for name, lane in lane_of.items():
        if lane is second:
            lane_of[name] = first
    return first


def _names(entry: BundleEntry) -> Iterator[str]:
    """By what a write names its resource: its address, its criteria; a visit's also its identifiers."""
    if entry.method in ("GET", "HEAD") or "$" in entry.path or not entry.segments:
        return
    resource_type = entry.segments[0]
    if len(entry.segments) == 2:
        yield entry.path
    criteria = entry.preconditions.if_none_exist if entry.method == "POST" else entry.query
    if criteria:
        parameters = sorted(parse_qsl(criteria.rpartition("?")[2], keep_blank_values=True))
        yield f"{resource_type}?" + "&".join(f"{name}={value}" for name, value in parameters)
    if resource_type == "Encounter" and isinstance(entry.resource, dict):
        for system, value in type_registry.identifiers_of(entry.resource):
            yield f"{resource_type}?identifier={system}|{value}"


def _by_event(lane: list[BundleEntry], arrival: datetime) -> list[BundleEntry]:
    """The lane by the times of the events; an entry without one stays behind the one that it followed."""
    if len(lane) == 1:
        return lane
    timed: list[tuple[str, BundleEntry]] = []
    last = ""
    for entry in lane:
        resource = entry.resource if isinstance(entry.resource, dict) else {}
        last = type_registry.event_time_of(resource, arrival) or last
        timed.append((last, entry))
    return [entry for _, entry in sorted(timed, key=lambda each: each[0])]
