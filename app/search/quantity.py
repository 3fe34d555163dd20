"""Quantity parameters: a number, and perhaps its unit. https://hl7.org/fhir/R4/search.html#quantity

`5.4` in any unit, `5.4|http://unitsofmeasure.org|mg` in exactly this one, `5.4||mg` where the code or the text is mg.
A comparator in the resource (`<5`) leaves that side open. Money counts in its currency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from app.search import number
from app.search.escaping import split, unescape
from app.search.parameter import AnyOf, Condition, Parameter, Scope
from app.search.ranges import Ranges, stored_decimal

CURRENCIES = "urn:iso:std:iso:4217"


def _unit(element: Mapping[str, Any]) -> dict[str, str]:
    return {name: element[name] for name in ("system", "code", "unit") if name in element}


def _quantity(element: Mapping[str, Any]) -> list[dict[str, Any]]:
    value = element.get("value")
    if value is None:
        return []
    stored = number.point(value)
    match element.get("comparator"):
        case "<" | "<=":
            stored["lo"] = stored_decimal(Decimal("-Infinity"))
        case ">" | ">=":
            stored["hi"] = stored_decimal(Decimal("Infinity"))
    return [stored | _unit(element)]


def _range(element: Mapping[str, Any]) -> list[dict[str, Any]]:
    bounds = number.bounds_of_range(element)
    unit = element.get("low") or element.get("high") or {}
    return [bounds | _unit(unit)] if bounds else []


def _sampled_data(element: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The limits between which the samples lie; nothing where they are not given."""
    limits = [element.get("lowerLimit"), element.get("upperLimit")]
    origin = element.get("origin", {})
    if None in limits:
        return []
    zero, factor = Decimal(origin.get("value", 0)), Decimal(element.get("factor", 1))
    ends = sorted(zero + Decimal(limit) * factor for limit in limits if limit is not None)
    return [{"lo": stored_decimal(ends[0]), "hi": stored_decimal(ends[1])} | _unit(origin)]


def _money(element: Mapping[str, Any]) -> list[dict[str, Any]]:
    value = element.get("value")
    if value is None:
        return []
    currency = element.get("currency")
    unit = {"system": CURRENCIES, "code": currency} if currency else {}
    return [number.point(value) | unit]


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


def values(fhir_type: str, element: Any) -> list[dict[str, Any]]:
    """The ranges stored for an element, each with its unit."""
    return VALUES[fhir_type](element)


def condition(
    parameter: Parameter, modifier: str | None, texts: Iterable[str], scope: Scope
) -> Condition:
    """What any of the values of one request parameter ask for."""
    if modifier is not None:
        raise parameter.unknown_modifier(modifier)
    found = [_one(parameter, text) for text in texts]
    return found[0] if len(found) == 1 else AnyOf(tuple(found))


def _one(parameter: Parameter, text: str) -> Ranges:
    parts = [unescape(part) for part in split(text, "|")]
    bounds = number.compare(parameter, parts[0])
    match parts[1:]:
        case []:
            also: tuple[Mapping[str, str], ...] = ({},)
        case [system, code] if system and code:
            also = ({"system": system, "code": code},)
        case ["", code] if code:
            also = ({"code": code}, {"unit": code})
        case _:
            raise parameter.malformed("number, number|system|code or number||code")
    return Ranges("quantities", parameter.key, bounds, also)
