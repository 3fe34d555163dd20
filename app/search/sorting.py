"""The order of a result and the filter for what follows a row in it. https://hl7.org/fhir/R4/search.html#sort

A parameter with several values sorts by its least when ascending and by its greatest when descending, a range by its
start; both are stored, since MongoDB cannot sort by two arrays. Rows without a value come first ascending and last
descending. The id settles ties, so every order is total.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.errors import BadRequest
from app.search.parameter import Filter, Parameter
from app.search.search_parameters import is_sortable, parameters


@dataclass(frozen=True, slots=True)
class SortKey:
    """A scalar field of the stored document, and 1 or -1."""

    field: str
    direction: int

    def value(self, document: Mapping[str, Any]) -> Any:
        """The value a document sorts by; None where it has none."""
        found: Any = document
        for name in self.field.split("."):
            found = found.get(name)
            if found is None:
                return None
        return found


NEWEST_FIRST = SortKey("date", -1)
# Every document has these.
_ALWAYS = frozenset({"_id", "at"})


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
    if is_sortable(parameter):
        end = "lo" if direction > 0 else "hi"
        return SortKey(f"sorts.{parameter.key}.{end}", direction)
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
        equal.append({key.field: value})
    for each in reversed(ways):
        result += each
    return result


def _beyond(key: SortKey, value: Any) -> list[Filter]:
    """Filters for values that come later; missing ones come first ascending, last descending."""
    if key.direction > 0:
        return [{key.field: {"$ne": None} if value is None else {"$gt": value}}]
    if value is None:
        return []
    later: list[Filter] = [{key.field: {"$lt": value}}]
    return later if key.field in _ALWAYS else [*later, {key.field: None}]
