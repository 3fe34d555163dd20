"""What FHIRPath's operators and functions do with JSON values, as the invariants of R4 use them.

http://hl7.org/fhirpath/N1 - app/fhir/validation/invariant_compiler.py puts them together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from typing import Any

from app.fhir.instants import is_after

_Truth = Callable[[Any, Any], bool | None]

# Truths of three values: None is FHIRPath's empty collection


def _and(left: _Truth, right: _Truth) -> _Truth:
    def both(value: Any, scope: Any) -> bool | None:
        first = left(value, scope)
        if first is False:
            return False
        second = right(value, scope)
        return second if first else (False if second is False else None)

    return both


def _or(left: _Truth, right: _Truth) -> _Truth:
    def either(value: Any, scope: Any) -> bool | None:
        first = left(value, scope)
        if first:
            return True
        second = right(value, scope)
        return second if first is False else (second or None)

    return either


def _implies(left: _Truth, right: _Truth) -> _Truth:
    def follows(value: Any, scope: Any) -> bool | None:
        first = left(value, scope)
        if first is False:
            return True
        second = right(value, scope)
        return second if first else (second or None)

    return follows


def _xor(left: _Truth, right: _Truth) -> _Truth:
    def one(value: Any, scope: Any) -> bool | None:
        first, second = left(value, scope), right(value, scope)
        return None if first is None or second is None else first != second

    return one


LOGIC: dict[str, Callable[[_Truth, _Truth], _Truth]] = {
    "and": _and,
    "or": _or,
    "implies": _implies,
    "xor": _xor,
}


def negation(truth: _Truth) -> _Truth:
    def negated(value: Any, scope: Any) -> bool | None:
        found = truth(value, scope)
        return None if found is None else not found

    return negated


def singleton(items: list[Any]) -> bool | None:
    """A collection where a truth is wanted: a boolean is what it says, anything else is there."""
    return items[0] is not False if items else None


def as_items(truth: bool | None) -> list[Any]:
    return [] if truth is None else [truth]


# Steps from an element to its children


def complex_child(value: Any, key: str) -> list[Any]:
    found = value.get(key)
    if found is None:
        return []
    return found if type(found) is list else [found]


def primitive_child(value: Any, key: str, companion: str) -> list[Any]:
    """The values of a primitive; where there is none, what the companion holds of id and extensions."""
    found, beside = value.get(key), value.get(companion)
    if type(found) is not list:
        if found is not None:
            return [found]
        if type(beside) is not list:
            return [] if beside is None else [beside]
        return [each for each in beside if each is not None]
    if type(beside) is not list or None not in found:
        return found
    merged = (own if own is not None else other for own, other in zip(found, beside, strict=False))
    return [each for each in merged if each is not None]


def any_child(value: Any, name: str) -> list[Any]:
    return primitive_child(value, name, f"_{name}") if type(value) is dict else []


def spread(step: Callable[[Any], list[Any]], around: list[Any]) -> list[Any]:
    """The children of every element; of a single one its list as it is, which may be long."""
    if len(around) == 1:
        return step(around[0])
    return [child for value in around for child in step(value)]


def _children(items: list[Any]) -> list[Any]:
    """The objects inside: of what is no object, no invariant asks anything further."""
    found: list[Any] = []
    for item in items:
        if type(item) is dict:
            for child in item.values():
                if type(child) is dict:
                    found.append(child)
                elif type(child) is list:
                    found += [each for each in child if type(each) is dict]
    return found


def _descendants(items: list[Any]) -> list[Any]:
    found: list[Any] = []
    level = _children(items)
    while level:
        found += level
        level = _children(level)
    return found


# Equality, membership and order


def frozen(value: Any) -> Any:
    """The value as one that can be looked up, so that no list is searched for each element of another."""
    if type(value) is dict:
        return frozenset((key, frozen(child)) for key, child in value.items())
    if type(value) is list:
        return tuple(map(frozen, value))
    return value


def frozen_set(items: list[Any]) -> frozenset[Any]:
    return frozenset(map(frozen, items))


def is_distinct(items: list[Any]) -> bool:
    return len(items) < 2 or len(frozen_set(items)) == len(items)


def _is_number(value: Any) -> bool:
    return type(value) is int or type(value) is Decimal


def exceeds(left: Any, right: Any) -> bool | None:
    """Whether the left value is more or later than the right for sure; None where the two cannot be compared."""
    if _is_number(left) and _is_number(right):
        return bool(left > right)
    if type(left) is str and type(right) is str:
        return is_after(left, right)
    if type(left) is dict and type(right) is dict and _unit(left) == _unit(right):
        return exceeds(left.get("value"), right.get("value"))
    return None


def _unit(quantity: dict[str, Any]) -> tuple[Any, Any]:
    code = quantity.get("code")
    return (quantity.get("system"), code) if code is not None else (None, quantity.get("unit"))


def _at_most(left: Any, right: Any) -> bool | None:
    more = exceeds(left, right)
    return None if more is None else not more


ORDER: dict[str, Callable[[Any, Any], bool | None]] = {
    ">": exceeds,
    "<": lambda left, right: exceeds(right, left),
    "<=": _at_most,
    ">=": lambda left, right: _at_most(right, left),
}


# Texts


def of_texts(test: Callable[[str, str], bool], texts: list[Any], others: list[Any]) -> bool | None:
    """What a test says of two texts; None where one of them is not there."""
    if not texts or not others or type(texts[0]) is not str or type(others[0]) is not str:
        return None
    return test(texts[0], others[0])


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text)


TEXT_TESTS: dict[str, Callable[[str, str], bool]] = {
    "startsWith": str.startswith,
    "contains": str.__contains__,
    # The whole text: R4 writes its patterns of names so, without anchors.
    "matches": lambda text, pattern: _pattern(pattern).fullmatch(text) is not None,
}


def replacement(pattern: str, text: str) -> Callable[[list[Any]], list[Any]]:
    compiled = re.compile(pattern)
    return lambda items: [compiled.sub(text, each) for each in items if type(each) is str]


def concatenated(left: list[Any], right: list[Any]) -> list[Any]:
    """`&`: what is not there counts as an empty text."""
    return ["".join(str(each) for each in (*left[:1], *right[:1]) if type(each) is not dict)]


def added(left: list[Any], right: list[Any]) -> list[Any]:
    return [left[0] + right[0]] if left and right else []


def _to_integer(items: list[Any]) -> list[Any]:
    return [int(each) for each in items if type(each) is int or _is_integer(each)]


def _is_integer(value: Any) -> bool:
    return type(value) is str and re.fullmatch(r"[+-]?[0-9]{1,18}", value) is not None


def _to_string(items: list[Any]) -> list[Any]:
    return [
        format(each, "f") if type(each) is Decimal else str(each)
        for each in items
        if type(each) is not dict
    ]


def has_value(items: list[Any]) -> bool:
    return len(items) == 1 and type(items[0]) is not dict


# Functions without arguments, and whether their elements are of the types that they are given.
FUNCTIONS: dict[str, tuple[Callable[[list[Any]], list[Any]], bool]] = {
    "first": (lambda items: items[:1], True),
    "tail": (lambda items: items[1:], True),
    "count": (lambda items: [len(items)], False),
    "children": (_children, False),
    "descendants": (_descendants, False),
    "toInteger": (_to_integer, False),
    "toString": (_to_string, False),
}
