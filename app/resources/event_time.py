"""The time of the event that a message about a visit reports.

Times are texts: UTC, of one width, so that they compare as they are stored. docs/encounters.md has the rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

from app.fhir import instants
from app.fhir.codes import EVENT_TIME
from app.fhir.encounter_status import FINAL
from app.fhir.json import Resource

Time = str

# Earlier than every time, and the time of fields that have none.
BEGINNING: Time = ""
# A plan is earlier than the visit's events, whenever it was made.
PLANNED: Time = "0"
# A stated time that is ahead by more than this is not believed.
_AHEAD = timedelta(hours=1)
# What the last millisecond of a span leaves out.
_REST_OF_MILLISECOND = timedelta(microseconds=999)
_REST_OF_MINUTE = timedelta(seconds=59)
# A fraction of a second may have any number of digits.
_MOST_REMEMBERED = 40

_Span = tuple[Time, Time]


@dataclass(frozen=True, slots=True)
class Moment:
    """When a message's event happened, from `time` to `latest` by the precision with which it is said.

    `stated` by EVENT_TIME, else inferred from its periods or from its arrival. `certain`: stated, and not ahead of the
    server's clock, so that it can be compared with the times of other senders.
    """

    time: Time
    latest: Time
    stated: bool = False
    certain: bool = False


def time_of(at: datetime) -> Time:
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def moment(message: Resource, arrival: datetime) -> Moment | None:
    """The time of a message's event; None where the message has no time at all.

    The arrival counts for a stated time that is further ahead than an hour, for a visit that is over without saying
    when, and where all that the periods say is still to come.
    """
    now = time_of(arrival)
    stated = _stated(message)
    if stated is not None:
        if stated[0] > time_of(arrival + _AHEAD):
            return Moment(now, now, stated=True)
        return Moment(*stated, stated=True, certain=stated[0] <= now)
    if not (message.get("period") or message.get("statusHistory")):
        return None
    status = message.get("status")
    if status == "planned" and not message.get("statusHistory"):
        return Moment(PLANNED, PLANNED)
    shown = [each for each in _evidence(message) if each[0] <= now]
    if not shown or (status in FINAL and not _shows_its_end(message, now)):
        return Moment(now, now)
    first = max(each[0] for each in shown)
    return Moment(first, max(first, min(now, max(each[1] for each in shown))))


def with_event_time(encounter: Resource, timestamp: str) -> Resource:
    """A copy that states when its message was made, unless it states a time of its own (docs/encounters.md)."""
    stated = {"url": EVENT_TIME, "valueInstant": timestamp}
    return {**encounter, "extension": [*encounter.get("extension", ()), stated]}


def _stated(message: Resource) -> _Span | None:
    for extension in _objects(message, "extension"):
        if extension.get("url") == EVENT_TIME:
            texts = extension.get("valueDateTime"), extension.get("valueInstant")
            return next(_spans(*texts), None)
    return None


def _shows_its_end(message: Resource, now: Time) -> bool:
    """Whether the message of a visit that is over shows when that was; a cancelled one only by its history."""
    ends = [each.get("period", {}).get("end") for each in _objects(message, "statusHistory")]
    if message.get("status") == "finished":
        ends.append(message.get("period", {}).get("end"))
    return any(span[0] <= now for span in _spans(*ends))


def _evidence(message: Resource) -> Iterator[_Span]:
    """The times at which, by its periods, something has happened to the visit, or is expected to."""
    periods = [message.get("period", {})]
    for name in ("statusHistory", "classHistory"):
        periods += [each.get("period", {}) for each in _objects(message, name)]
    periods += [
        each.get("period", {})
        for each in _objects(message, "location")
        if each.get("status") not in ("planned", "reserved")
    ]
    for period in periods:
        yield from _spans(period.get("start"), period.get("end"))


def _spans(*texts: Any) -> Iterator[_Span]:
    """The first and the last time that each of those texts may mean that can be read."""
    for text in texts:
        if isinstance(text, str):
            found = _known_span(text) if len(text) <= _MOST_REMEMBERED else _span(text)
            if found is not None:
                yield found


# A visit's times are looked at when its message comes, for each earlier version, and when it is reacted to.
@lru_cache(maxsize=4096)
def _known_span(text: str) -> _Span | None:
    return _span(text)


def _span(text: str) -> _Span | None:
    """The first and the last time that a text may mean; None where it cannot be read.

    Whole minutes are taken for times that know no seconds: R4 has no other way to write those of HL7 v2.
    """
    try:
        first, last = instants.span(text)
        if len(text) > 10:
            first = instants.moment(text)
            if text[17:19] == "00" and text[19:20] != ".":
                last += _REST_OF_MINUTE
        return time_of(first), time_of(last + _REST_OF_MILLISECOND)
    except (ValueError, OverflowError):
        return None


def _objects(resource: Mapping[str, Any], name: str) -> Iterator[dict[str, Any]]:
    return (each for each in resource.get(name, ()) if isinstance(each, dict))
