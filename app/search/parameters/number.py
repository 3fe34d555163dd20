"""Number parameters: stored exactly; the digits of the search value say how exactly it is meant.

https://hl7.org/fhir/R4/search.html#number - `100` means 99.5 to 100.5 for eq and ne, `1e2` means 95 to 105; the other
prefixes compare with the number as written, `ap` within a tenth of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Context, Decimal
from typing import Any

from app.search.escaping import unescape
from app.search.parameter import Condition, Parameter, SearchScope
from app.search.ranges import Alternatives, Ranges, alternatives, split_prefix, stored_decimal

_NUMBER = re.compile(r"[+-]?(\d{1,40}(\.\d{0,40})?|\.\d{1,40})([eE][+-]?\d{1,3})?")
_EXACT = Context(prec=100)


def point(value: Decimal | int) -> dict[str, Any]:
    """A number as a stored range."""
    stored = stored_decimal(value)
    return {"lo": stored, "hi": stored}


def bounds_of_range(element: Mapping[str, Any]) -> dict[str, Any] | None:
    """A Range as a stored range; an end that is not given is open."""
    low, high = (element.get(end, {}).get("value") for end in ("low", "high"))
    if low is None and high is None:
        return None
    return {
        "lo": stored_decimal(Decimal("-Infinity") if low is None else low),
        "hi": stored_decimal(Decimal("Infinity") if high is None else high),
    }


def _point(element: Decimal | int) -> list[dict[str, Any]]:
    return [point(element)]


def _range(element: Mapping[str, Any]) -> list[dict[str, Any]]:
    bounds = bounds_of_range(element)
    return [bounds] if bounds else []


VALUES: Mapping[str, Callable[[Any], list[dict[str, Any]]]] = {
    "integer": _point,
    "positiveInt": _point,
    "unsignedInt": _point,
    "decimal": _point,
    "Range": _range,
}


def condition(
    parameter: Parameter, modifier: str | None, texts: Iterable[str], scope: SearchScope
) -> Condition:
    """What any of the values of one request parameter ask for."""
    if modifier is not None:
        raise parameter.unknown_modifier(modifier)
    found = tuple(bounds for text in texts for bounds in compare(parameter, unescape(text)))
    return Ranges("numbers", parameter.key, found)


def compare(parameter: Parameter, text: str) -> Alternatives:
    """The bounds asked for by a prefix and a number."""
    prefix, digits = split_prefix(text)
    if not _NUMBER.fullmatch(digits):
        raise parameter.malformed("a number such as 5, ge5.4 or 1e2")
    value = Decimal(digits)
    match prefix:
        case "eq" | "ne":
            half = Decimal((0, (5,), int(value.as_tuple().exponent) - 1))
            low, high = _EXACT.subtract(value, half), _EXACT.add(value, half)
            return alternatives(prefix, low, high, ends_before=True)
        case "ap":
            tenth = abs(value) / 10
            return alternatives(prefix, _EXACT.subtract(value, tenth), _EXACT.add(value, tenth))
        case _:
            return alternatives(prefix, value, value)
