"""Composite parameters: values joined by `$` that one and the same element must have.

https://hl7.org/fhir/R4/search.html#composite - what is stored for an element is a small set of fields like that of a
resource, so that each component's condition applies to it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from app.search.escaping import split
from app.search.parameter import AnyOf, Condition, Fields, Filter, Parameter
from app.search.terms import Terms

VALUES: Mapping[str, Callable[[Any], Any]] = {}


@dataclass(frozen=True, slots=True)
class SameElement:
    """One stored element meets all conditions. `lifted` hold of the whole resource too and can use the index."""

    key: str
    conditions: tuple[Condition, ...]
    lifted: tuple[Condition, ...] = ()

    def filter(self) -> Filter:
        inner = [condition.filter() for condition in self.conditions]
        element: Filter = {f"composites.{self.key}": {"$elemMatch": {"$and": inner}}}
        return {"$and": [*(each.filter() for each in self.lifted), element]}

    def matches(self, fields: Fields) -> bool:
        stored = fields.get("composites", {}).get(self.key, ())
        return any(all(each.matches(element) for each in self.conditions) for element in stored)


# How a component's own parameter type reads its part of the value.
Reader = Callable[[Parameter, str], Condition]


def condition(
    parameter: Parameter, modifier: str | None, texts: Iterable[str], read: Reader
) -> Condition:
    """What any of the values of one request parameter ask for; `read` reads a component's part."""
    if modifier is not None:
        raise parameter.unknown_modifier(modifier)
    found = [_one(parameter, text, read) for text in texts]
    return found[0] if len(found) == 1 else AnyOf(tuple(found))


def _one(parameter: Parameter, text: str, read: Reader) -> SameElement:
    parts = split(text, "$")
    if len(parts) != len(parameter.components) or not all(parts):
        codes = "$".join(component.code for component in parameter.components)
        raise parameter.malformed(codes)
    conditions = tuple(
        read(component, part) for component, part in zip(parameter.components, parts, strict=True)
    )
    lifted = tuple(
        each
        for component, each in zip(parameter.components, conditions, strict=True)
        if component.is_lifted and isinstance(each, Terms)
    )
    return SameElement(parameter.key, conditions, lifted)
