"""Date parameters: a date is the range its precision leaves open. https://hl7.org/fhir/R4/search.html#date

Dates and times without a zone are UTC. Ranges are kept in milliseconds, both ends included; an open end of a Period
reaches to the end of time. A Timing counts by its outer limits.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from app.fhir.instants import BEGINNING, END, Span, span
from app.search.escaping import unescape
from app.search.parameter import Condition, Parameter, SearchScope
from app.search.ranges import Alternatives, Instant, Ranges, alternatives, split_prefix

_MILLISECOND = timedelta(milliseconds=1)
# A search may leave out a time's seconds and its zone; what else is wrong with it `span` refuses.
_DATE_TIME = re.compile(r"\d{4}(-\d\d(-\d\d(T\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)?)?)?)?")


def _date(element: str) -> list[dict[str, Any]]:
    try:
        low, high = span(element)
    except ValueError:
        return []
    return [{"lo": low, "hi": high}]


def _period(element: Mapping[str, str]) -> list[dict[str, Any]]:
    start, end = element.get("start"), element.get("end")
    try:
        low = span(start)[0] if start else BEGINNING
        high = span(end)[1] if end else END
    except ValueError:
        return []
    return [{"lo": low, "hi": high}] if start or end else []


def _timing(element: Mapping[str, Any]) -> list[dict[str, Any]]:
    found = [part for event in element.get("event", ()) if event for part in _date(event)]
    bounds = element.get("repeat", {}).get("boundsPeriod")
    if bounds:
        found += _period(bounds)
    if not found:
        return []
    return [{"lo": min(part["lo"] for part in found), "hi": max(part["hi"] for part in found)}]


VALUES: Mapping[str, Callable[[Any], list[dict[str, Any]]]] = {
    "date": _date,
    "dateTime": _date,
    "instant": _date,
    "Period": _period,
    "Timing": _timing,
}


def condition(
    parameter: Parameter, modifier: str | None, texts: Iterable[str], scope: SearchScope
) -> Condition:
    """What any of the values of one request parameter ask for."""
    if modifier is not None:
        raise parameter.unknown_modifier(modifier)
    found: Alternatives = tuple(
        bounds for text in texts for bounds in _one(parameter, unescape(text), scope)
    )
    if parameter.key == "_lastUpdated":
        return Instant("at", found)
    return Ranges("dates", parameter.key, found, start=_start(parameter, found))


def read(text: str) -> Span:
    """The first and the last millisecond of a search value without a prefix. Raises ValueError."""
    if not _DATE_TIME.fullmatch(text):
        raise ValueError
    return span(text)


def within(prefix: str, value: Span) -> Span:
    """The span that a prefix and a value mean for what happens at one moment. Raises ValueError where there is none."""
    low, high = value
    try:
        match prefix:
            case "eq":
                return low, high
            case "ge":
                return low, END
            case "gt":
                return high + _MILLISECOND, END
            case "le":
                return BEGINNING, high
            case "lt":
                return BEGINNING, low - _MILLISECOND
    except OverflowError:
        pass
    raise ValueError


def precise(parameter: Parameter, text: str) -> Span:
    """The same of a search parameter's value. Raises BadRequest."""
    try:
        return read(text)
    except ValueError:
        raise parameter.malformed(
            "a date such as 2026, 2026-05, ge2026-05-14 or 2026-05-14T10:00:00Z"
        ) from None


def _one(parameter: Parameter, text: str, scope: SearchScope) -> Alternatives:
    prefix, text = split_prefix(text.replace(" ", "+"))
    low, high = precise(parameter, text)
    if prefix == "ap":
        # About: within a tenth of the time between now and the value.
        slack = abs(scope.now - low) / 10
        low = low - slack if low - BEGINNING > slack else BEGINNING
        high = high + slack if END - high > slack else END
    return alternatives(prefix, low, high)


def _start(parameter: Parameter, found: Alternatives) -> dict[str, datetime]:
    """Bounds on the sort date, which is the least start of all ranges, where every alternative implies them."""
    limits: dict[str, datetime] = {}
    if not parameter.is_clinical:
        return limits
    upper = [
        [value for end, how, value in bounds if end == "lo" and how in ("$lt", "$lte")]
        for bounds in found
    ]
    if all(upper):
        limits["$lte"] = max(min(each) for each in upper)
    lower = [
        [value for end, how, value in bounds if end == "lo" and how in ("$gt", "$gte")]
        for bounds in found
    ]
    if parameter.is_single and all(lower):
        limits["$gte"] = min(max(each) for each in lower)
    return limits
