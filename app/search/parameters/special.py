"""Parameters that are no ordinary values: `_id`, and those of type special (`Location.near`).

https://hl7.org/fhir/R4/search.html#all
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from app.fhir.ids import is_id
from app.search.escaping import unescape
from app.search.parameter import Condition, Fields, Filter, Parameter, SearchScope
from app.search.parameters import near

VALUES: Mapping[str, Callable[[Any], Any]] = {}


@dataclass(frozen=True, slots=True)
class Ids:
    """The resource has one of these ids."""

    ids: tuple[str, ...]

    def filter(self) -> Filter:
        return {"_id": self.ids[0] if len(self.ids) == 1 else {"$in": list(self.ids)}}

    def matches(self, fields: Fields) -> bool:
        return fields.get("_id") in self.ids


def condition(
    parameter: Parameter, modifier: str | None, texts: Iterable[str], scope: SearchScope
) -> Condition:
    """What any of the values of one request parameter ask for."""
    if parameter.code == "near":
        return near.condition(parameter, modifier, texts)
    if modifier is not None:
        raise parameter.unknown_modifier(modifier)
    ids = tuple(unescape(text) for text in texts)
    if not all(is_id(each) for each in ids):
        raise parameter.malformed("an id")
    return Ids(ids)
