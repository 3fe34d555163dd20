"""The order of a result and the filter for what follows a row in it. https://hl7.org/fhir/R4/search.html#sort

A parameter with several values sorts by its least when ascending and by its greatest when descending, a range by its
start; rows without a value come first ascending and last descending. The id settles ties, so every order is total.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import BadRequest
from app.search.parameter import Filter, Parameter
from app.search.registry import GROUPS, parameters


@dataclass(frozen=True, slots=True)
class SortKey:
    """A field of the stored document, and 1 or -1. `is_scalar` says that it never holds several values."""

    field: str
    direction: int
    is_scalar: bool = True

    def value(self, document: Mapping[str, Any]) -> Any:
        """The value a document sorts by; None where it has none."""
        found: list[Any] = [document]
        for name in self.field.split("."):
            children = [each.get(name) for each in found]
            found = [
                part for child in children for part in (child if type(child) is list else [child])
            ]
            found = [part for part in found if part is not None]
        if not found:
            return None
        return min(found, key=_comparable) if self.direction > 0 else max(found, key=_comparable)


NEWEST_FIRST = SortKey("date", -1)


def _comparable(value: Any) -> Any:
    return value.to_decimal() if hasattr(value, "to_decimal") else value


def parse(resource_type: str, text: str) -> tuple[SortKey, ...]:
    """The keys of a `_sort` value, the id last. Raises BadRequest naming what cannot be sorted by."""
    keys = [_key(resource_type, each) for each in text.split(",")]
    return with_id(keys)


def with_id(keys: Sequence[SortKey]) -> tuple[SortKey, ...]:
    """The keys up to the id, which is added if missing, in the direction that lets an index serve."""
    for position, key in enumerate(keys):
        if key.field == "_id":
            return tuple(keys[: position + 1])
    return (*keys, SortKey("_id", keys[-1].direction))


def _key(resource_type: str, text: str) -> SortKey:
    code, direction = (text[1:], -1) if text.startswith("-") else (text, 1)
    parameter = parameters(resource_type).get(code)
    if parameter is None:
        raise BadRequest(
            f"'_sort' names '{code}', which is no search parameter of {resource_type}",
            code="not-supported",
            expression="http._sort",
        )
    return _field(parameter, direction)


def _field(parameter: Parameter, direction: int) -> SortKey:
    if parameter.code == "_id":
        return SortKey("_id", direction)
    if parameter.code == "_lastUpdated":
        return SortKey("at", direction)
    if parameter.is_clinical and parameter.is_single:
        return SortKey("date", direction)
    if parameter.type in GROUPS:
        return SortKey(f"{GROUPS[parameter.type]}.{parameter.key}.lo", direction, is_scalar=False)
    if parameter.type in ("string", "token", "uri"):
        return SortKey(f"sorts.{parameter.key}", direction, is_scalar=False)
    raise BadRequest(
        f"Sorting by '{parameter.code}' of type {parameter.type} is not supported",
        code="not-supported",
        expression="http._sort",
    )


def after(keys: Sequence[SortKey], values: Sequence[Any]) -> list[Filter]:
    """The alternatives, disjoint and in order, of which one holds for every row after the one with these values."""
    result: list[Filter] = []
    equal: list[Filter] = []
    ways: list[list[Filter]] = []
    for key, value in zip(keys, values, strict=True):
        ways.append([{"$and": [*equal, beyond]} for beyond in _beyond(key, value)])
        equal.append(_equal(key, value))
    for each in reversed(ways):
        result += each
    return result


def _equal(key: SortKey, value: Any) -> Filter:
    if value is None:
        return {key.field: None if key.is_scalar else {"$exists": False}}
    if key.is_scalar:
        return {key.field: value}
    outside = "$lt" if key.direction > 0 else "$gt"
    return {"$and": [{key.field: value}, {key.field: {"$not": {outside: value}}}]}


def _beyond(key: SortKey, value: Any) -> list[Filter]:
    """Filters for values that come later; missing ones come first ascending, last descending."""
    if value is None:
        if key.direction < 0:
            return []
        return [{key.field: {"$ne": None} if key.is_scalar else {"$exists": True}}]
    if key.is_scalar:
        if key.direction > 0:
            return [{key.field: {"$gt": value}}]
        later: list[Filter] = [{key.field: {"$lt": value}}]
        return [*later, {key.field: None}] if key.field == "date" else later
    if key.direction > 0:
        return [{key.field: {"$exists": True, "$not": {"$lte": value}}}]
    return [{key.field: {"$not": {"$gte": value}}}]
