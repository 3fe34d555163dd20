"""When something is so: Periods as pairs of instants, each end reaching as far as its date leaves open.

https://hl7.org/fhir/R4/datatypes.html#Period. Dates without a time are days in UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any

from app.fhir.instants import BEGINNING, END, span

# First and last instant; None where that end is open.
Span = tuple[datetime | None, datetime | None]
ALWAYS: Span = (None, None)
_NEVER: Span = (END, BEGINNING)


def of(period: Mapping[str, Any] | None) -> Span:
    """The span of a Period; no Period is always, one that cannot be read is never."""
    if not period:
        return ALWAYS
    return _between(period.get("start"), period.get("end"))


@lru_cache(maxsize=1024)  # the members of a roster share a few periods
def _between(start: str | None, end: str | None) -> Span:
    try:
        return (span(start)[0] if start else None, span(end)[1] if end else None)
    except ValueError:
        return _NEVER


def within(one: Span, other: Span) -> Span:
    """What both have in common."""
    starts = [start for start, _ in (one, other) if start is not None]
    ends = [end for _, end in (one, other) if end is not None]
    return max(starts, default=None), min(ends, default=None)


def holds(span: Span, at: datetime) -> bool:
    start, end = span
    return (start is None or start <= at) and (end is None or at <= end)


def has_ended(span: Span, at: datetime) -> bool:
    return span[1] is not None and span[1] < at
