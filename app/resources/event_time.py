"""The time of the event that a message about a visit reports.

Times are texts: UTC, of one width, so that they compare as they are stored. docs/encounters.md has the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from app.fhir import instants
from app.fhir.codes import EVENT_TIME
from app.fhir.json import Resource

Time = str

ACTIVE = frozenset({"arrived", "triaged", "in-progress", "onleave"})
CANCELLED = frozenset({"cancelled", "entered-in-error"})
# Earlier than every time, and the time of fields that have none.
BEGINNING: Time = ""
# A plan is earlier than the visit's events, whenever it was made.
PLANNED: Time = "0"
# A time that is ahead by more than this is not believed.
_AHEAD = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Moment:
    """The time of a message's event; `stated` by EVENT_TIME and not only inferred from its periods."""

    time: Time
    stated: bool


def time_of(at: datetime) -> Time:
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def moment(message: Resource, arrival: datetime) -> Moment | None:
    """The time of a message's event; None where the message has no time at all.

    The arrival counts for times further ahead than an hour, and for the end of a visit that does not state it.
    """
    latest = time_of(arrival + _AHEAD)
    stated = _stated(message)
    if stated is not None:
        return Moment(stated if stated <= latest else time_of(arrival), True)
    if not (message.get("period") or message.get("statusHistory")):
        return None
    status = message.get("status")
    if status == "planned" and not message.get("statusHistory"):
        return Moment(PLANNED, False)
    now = time_of(arrival)
    if status in CANCELLED or status == "finished":
        ends = [each.get("period", {}).get("end") for each in _objects(message, "statusHistory")]
        if status == "finished":
            ends.append(message.get("period", {}).get("end"))
        if not any(ends):
            return Moment(now, False)
    return Moment(
        max([time if time <= latest else now for time in _evidence(message)], default=now), False
    )


def _stated(message: Resource) -> Time | None:
    for extension in _objects(message, "extension"):
        if extension.get("url") == EVENT_TIME:
            return next(_times(extension.get("valueDateTime"), extension.get("valueInstant")), None)
    return None


def _evidence(message: Resource) -> Iterator[Time]:
    """The times at which, by its periods, something had happened to the visit."""
    periods = [message.get("period", {})]
    for name in ("statusHistory", "classHistory"):
        periods += [each.get("period", {}) for each in _objects(message, name)]
    periods += [
        each.get("period", {})
        for each in _objects(message, "location")
        if each.get("status") not in ("planned", "reserved")
    ]
    for period in periods:
        yield from _times(period.get("start"))
        yield from _times(period.get("end"), end=True)


def _times(*texts: Any, end: bool = False) -> Iterator[Time]:
    """The times of those texts that can be read. A date without a time is its first moment, as an `end` its last."""
    for text in texts:
        if isinstance(text, str):
            try:
                is_time = len(text) > 10
                whole = instants.moment(text) if is_time else instants.span(text)[1 if end else 0]
                yield time_of(whole)
            except (ValueError, OverflowError):
                continue


def _objects(resource: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    return (each for each in resource.get(name, ()) if isinstance(each, dict))
