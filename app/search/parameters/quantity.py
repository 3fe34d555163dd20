"""Quantity parameters: a number, and perhaps its unit. https://hl7.org/fhir/R4/search.html#quantity

`5.4` in any unit, `5.4|http://unitsofmeasure.org|mg` in this one and in units commensurable with it, `5.4||mg` where
the code or the text is mg, `5.4|http://unitsofmeasure.org` in any unit of the system, as tokens are written and many
clients write quantities. A comparator in the resource (`<5`) leaves that side open. Money counts in its currency.

Beside a value with a UCUM unit lies the same value in the base unit: `{lo, hi, system, code, base, base_lo, base_hi}`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from bson.decimal128 import Decimal128

from app.search.escaping import split, unescape
from app.search.parameter import AnyOf, Condition, Parameter, SearchScope
from app.search.parameters import number
from app.search.ranges import Alternatives, Ranges, stored_decimal
from app.search.units import UCUM, Unit, unit

_ENDLESS = Decimal("Infinity")
CURRENCIES = "urn:iso:std:iso:4217"


def _stored(low: Decimal | int, high: Decimal | int, element: Mapping[str, Any]) -> dict[str, Any]:
    """A range with the unit of an element, and the same in the base unit where UCUM knows one."""
    stored: dict[str, Any] = {"lo": stored_decimal(low), "hi": stored_decimal(high)}
    for name in ("system", "code", "unit"):
        if name in element:
            stored[name] = element[name]
    if stored.get("system") == UCUM and "code" in stored:
        known = unit(stored["code"])
        if known is not None:
            stored["base"] = known.base
            stored["base_lo"] = _in_base(known, low)
            stored["base_hi"] = _in_base(known, high)
    return stored


@lru_cache(maxsize=4096)
def _in_base(known: Unit, value: Decimal | int) -> Decimal128:
    return stored_decimal(known.canonical(value))


def _quantity(element: Mapping[str, Any]) -> list[dict[str, Any]]:
    value = element.get("value")
    if value is None:
        return []
    low, high = value, value
    match element.get("comparator"):
        case "<" | "<=":
            low = -_ENDLESS
        case ">" | ">=":
            high = _ENDLESS
    return [_stored(low, high, element)]


def _range(element: Mapping[str, Any]) -> list[dict[str, Any]]:
    low, high = element.get("low", {}), element.get("high", {})
    if "value" not in low and "value" not in high:
        return []
    return [_stored(low.get("value", -_ENDLESS), high.get("value", _ENDLESS), low or high)]


def _sampled_data(element: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The limits between which the samples lie; nothing where they are not given."""
    limits = [element.get("lowerLimit"), element.get("upperLimit")]
    origin = element.get("origin", {})
    if None in limits:
        return []
    zero, factor = Decimal(origin.get("value", 0)), Decimal(element.get("factor", 1))
    ends = sorted(zero + Decimal(limit) * factor for limit in limits if limit is not None)
    return [_stored(ends[0], ends[1], origin)]


def _money(element: Mapping[str, Any]) -> list[dict[str, Any]]:
    value = element.get("value")
    if value is None:
        return []
    currency = element.get("currency")
    money = {"system": CURRENCIES, "code": currency} if currency else {}
    return [number.point(value) | money]


VALUES: Mapping[str, Callable[[Any], list[dict[str, Any]]]] = {
    "Quantity": _quantity,
    "Age": _quantity,
    "Count": _quantity,
    "Distance": _quantity,
    "Duration": _quantity,
    "Range": _range,
    "SampledData": _sampled_data,
    "Money": _money,
}


def condition(
    parameter: Parameter, modifier: str | None, texts: Iterable[str], scope: SearchScope
) -> Condition:
    """What any of the values of one request parameter ask for."""
    if modifier is not None:
        raise parameter.unknown_modifier(modifier)
    found = [_one(parameter, text) for text in texts]
    return found[0] if len(found) == 1 else AnyOf(tuple(found))


def _one(parameter: Parameter, text: str) -> Condition:
    parts = [unescape(part) for part in split(text, "|")]
    bounds = number.compare(parameter, parts[0])
    match parts[1:]:
        case []:
            also: tuple[Mapping[str, str], ...] = ({},)
        case [system, code] if system and code:
            exactly = {"system": system, "code": code}
            written = Ranges("quantities", parameter.key, bounds, (exactly,))
            known = unit(code) if system == UCUM else None
            return (
                AnyOf((written, _converted(parameter, bounds, code, known))) if known else written
            )
        case ["", code] if code:
            also = ({"code": code}, {"unit": code})
        case [system, *rest] if ":" in system and rest in ([], [""]):  # a unit is no URI
            also = ({"system": system},)
        case _:
            raise parameter.malformed(
                "number, number|system|code, number||code or number|system, a system being a URI"
            )
    return Ranges("quantities", parameter.key, bounds, also)


def _converted(parameter: Parameter, bounds: Alternatives, code: str, known: Unit) -> Ranges:
    """The same bounds for values in other units; those in the search's own are compared as they are written."""
    in_base: Alternatives = tuple(
        tuple(
            (f"base_{end}", comparison, known.canonical(value)) for end, comparison, value in each
        )
        for each in bounds
    )
    return Ranges("quantities", parameter.key, in_base, ({"base": known.base},), {"code": code})
