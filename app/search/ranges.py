"""Ranges: how dates, numbers and quantities are stored and compared.

https://hl7.org/fhir/R4/search.html#prefix

A stored value is a range `{lo, hi}`, both ends included; a point has `lo == hi`. The search value is a range too:
`low` to `high`. The table below is the specification's, written once for MongoDB and for memory. Note `ge` and `le`:
a range that only touches the search value from below (above) is no match; it must reach beyond it or lie within it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Context, Decimal
from functools import lru_cache
from typing import Any, Literal, cast, get_args

from bson.decimal128 import Decimal128

from app.search.parameter import Fields, Filter

Prefix = Literal["eq", "ne", "gt", "lt", "ge", "le", "sa", "eb", "ap"]
PREFIXES = frozenset(get_args(Prefix))
# (end of the stored range, comparison, end of the search value)
Bound = tuple[str, str, Any]
# A match is any alternative of which all bounds hold.
Alternatives = tuple[tuple[Bound, ...], ...]

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "$lt": operator.lt,
    "$lte": operator.le,
    "$gt": operator.gt,
    "$gte": operator.ge,
}
# MongoDB's decimals have 34 digits; more are rounded, on both sides alike.
_DECIMAL128 = Context(prec=34, traps=[])


def alternatives(prefix: Prefix, low: Any, high: Any, *, ends_before: bool = False) -> Alternatives:
    """The bounds that a stored range must keep; with `ends_before` the value `high` itself lies outside the range."""
    below, above = ("$lt", "$gte") if ends_before else ("$lte", "$gt")
    within = (("lo", "$gte", low), ("hi", below, high))
    table: dict[Prefix, Alternatives] = {
        "eq": (within,),
        "ne": ((("lo", "$lt", low),), (("hi", above, high),)),
        "gt": ((("hi", above, high),),),
        "lt": ((("lo", "$lt", low),),),
        "ge": ((("hi", above, high),), within),
        "le": ((("lo", "$lt", low),), within),
        "sa": ((("lo", above, high),),),
        "eb": ((("hi", "$lt", low),),),
        "ap": ((("lo", below, high), ("hi", "$gte", low)),),
    }
    return table[prefix]


def split_prefix(text: str) -> tuple[Prefix, str]:
    """The prefix (`eq` where there is none) and what follows; an unknown one is left for the value to fail on."""
    if text[:2] in PREFIXES:
        return cast("Prefix", text[:2]), text[2:]
    return "eq", text


@lru_cache(maxsize=4096)
def stored_decimal(value: Decimal | int) -> Decimal128:
    """A number as MongoDB keeps it."""
    return Decimal128(_DECIMAL128.create_decimal(value))


@dataclass(frozen=True, slots=True)
class Ranges:
    """Any stored range at `<group>.<key>` keeps all bounds of an alternative and equals `also` in its other members.

    `also` is a list of alternatives as well: a quantity's unit may be its code or its text. `but` are members that must
    differ. `start` are bounds on the document's sort date that follow from the alternatives; they let the index on it
    serve.
    """

    group: str
    key: str
    alternatives: Alternatives
    also: tuple[Mapping[str, str], ...] = ({},)
    but: Mapping[str, str] = field(default_factory=dict)
    start: Mapping[str, Any] = field(default_factory=dict)

    def filter(self) -> Filter:
        differing = {name: {"$ne": value} for name, value in self.but.items()}
        found = [
            {f"{self.group}.{self.key}": {"$elemMatch": {**_bounds(bounds), **also, **differing}}}
            for bounds in self.alternatives
            for also in self.also
        ]
        result: Filter = found[0] if len(found) == 1 else {"$or": found}
        return {"$and": [result, {"date": dict(self.start)}]} if self.start else result

    def matches(self, fields: Fields) -> bool:
        stored = fields.get(self.group, {}).get(self.key, ())
        return any(
            all(value.get(name) == wanted for name, wanted in also.items())
            and all(value.get(name) != other for name, other in self.but.items())
            and _keeps(value, bounds)
            for value in stored
            for bounds in self.alternatives
            for also in self.also
        )


@dataclass(frozen=True, slots=True)
class Present:
    """The parameter has a value."""

    group: str
    key: str

    def filter(self) -> Filter:
        return {f"{self.group}.{self.key}": {"$exists": True}}

    def matches(self, fields: Fields) -> bool:
        return self.key in fields.get(self.group, {})


@dataclass(frozen=True, slots=True)
class Instant:
    """Bounds on one scalar field of the document."""

    name: str
    alternatives: Alternatives

    def filter(self) -> Filter:
        found = [
            {"$and": [{self.name: {comparison: value}} for _, comparison, value in bounds]}
            for bounds in self.alternatives
        ]
        return found[0] if len(found) == 1 else {"$or": found}

    def matches(self, fields: Fields) -> bool:
        if self.name not in fields:
            return False
        value = {"lo": fields[self.name], "hi": fields[self.name]}
        return any(_keeps(value, bounds) for bounds in self.alternatives)


def _bounds(bounds: tuple[Bound, ...]) -> Filter:
    result: Filter = {}
    for end, comparison, value in bounds:
        stored = stored_decimal(value) if isinstance(value, Decimal) else value
        result.setdefault(end, {})[comparison] = stored
    return result


def _keeps(value: Mapping[str, Any], bounds: tuple[Bound, ...]) -> bool:
    return all(_COMPARE[comparison](plain(value[end]), limit) for end, comparison, limit in bounds)


def plain(value: Any) -> Any:
    """A stored value as Python compares it."""
    return value.to_decimal() if isinstance(value, Decimal128) else value
