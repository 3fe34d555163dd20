"""One search parameter of one resource type, compiled; and what a search on it becomes.

https://hl7.org/fhir/R4/searchparameter.html
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from app.errors import BadRequest
from app.search.cost import Budget
from app.search.expression import AccessPath

Filter = dict[str, Any]
Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A compiled search parameter.

    `key` is the name its values are stored under. `shared` is set where this parameter is another one restricted to
    references to one type (`patient` is `subject` restricted to Patient): relative references of that type are then
    stored once, under the other's key. `is_clinical` marks the date parameter whose start is the type's sort date.
    `aside` is the collection that keeps its terms in rows instead of the document (group_members.py).
    `components` belong to a composite; one `is_lifted` when all its values are also the resource's own under its key.
    """

    code: str
    url: str
    type: str
    paths: tuple[AccessPath, ...] = ()
    targets: tuple[str, ...] = ()
    shared: str | None = None
    is_clinical: bool = False
    is_lifted: bool = False
    aside: str | None = None
    components: tuple[Parameter, ...] = ()

    @property
    def key(self) -> str:
        return self.code

    @property
    def types(self) -> frozenset[str]:
        """The data types its values may have."""
        return frozenset(path.type for path in self.paths)

    @property
    def is_single(self) -> bool:
        """Whether a resource has at most one value: one path, or the types of one choice element."""
        elements = {path.element for path in self.paths}
        return len(elements) == 1 and not any(path.is_list for path in self.paths)

    def malformed(self, expected: str) -> BadRequest:
        """The refusal of a search value; it does not repeat the value, which may be about a patient."""
        return BadRequest(
            f"The value of search parameter '{self.code}' is malformed; expected {expected}",
            code="value",
            expression=f"http.{self.code}",
        )

    def unknown_modifier(self, modifier: str) -> BadRequest:
        return BadRequest(
            f"Modifier ':{modifier}' is not supported on search parameter '{self.code}' of type {self.type}",
            code="not-supported",
            expression=f"http.{self.code}",
        )


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """`found` is how many resources a step of a chain may lead to before the search is driven from its other side;
    `examined` how many candidates a page may look at then; `included` how many resources it may include."""

    found: int = 5_000
    examined: int = 100_000
    included: int = 1_000


@dataclass(frozen=True, slots=True)
class SearchScope:
    """What the reading of search values depends on: the server's own base without a trailing slash, and the time.

    `budget` is what the search may still ask for.
    """

    base_url: str
    now: datetime
    limits: SearchLimits = SearchLimits()
    budget: Budget = field(default_factory=Budget, compare=False)


class Condition(Protocol):
    """One request parameter's meaning."""

    def filter(self) -> Filter:
        """The MongoDB filter on the stored document."""

    def matches(self, fields: Fields) -> bool:
        """The same in memory, over what `extract` gave."""


@dataclass(frozen=True, slots=True)
class Not:
    """No value matches; resources without any value are included."""

    condition: Condition

    def filter(self) -> Filter:
        return {"$nor": [self.condition.filter()]}

    def matches(self, fields: Fields) -> bool:
        return not self.condition.matches(fields)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """One of several conditions holds."""

    conditions: tuple[Condition, ...]

    def filter(self) -> Filter:
        return {"$or": [condition.filter() for condition in self.conditions]}

    def matches(self, fields: Fields) -> bool:
        return any(condition.matches(fields) for condition in self.conditions)


@dataclass(frozen=True, slots=True)
class AllOf:
    """All of several conditions hold."""

    conditions: tuple[Condition, ...]

    def filter(self) -> Filter:
        return {"$and": [condition.filter() for condition in self.conditions]}

    def matches(self, fields: Fields) -> bool:
        return all(condition.matches(fields) for condition in self.conditions)


class UnknownParameter(BadRequest):
    """A name that is no search parameter of the type; lenient handling leaves it out and reports it."""

    def __init__(self, resource_type: str, code: str) -> None:
        super().__init__(
            f"Unknown search parameter '{code}' for resource type {resource_type}",
            code="not-supported",
            expression=f"http.{code}",
        )


def missing(parameter: Parameter, text: str) -> bool:
    """The value of the `:missing` modifier."""
    if text not in ("true", "false"):
        raise parameter.malformed("true or false after the modifier ':missing'")
    return text == "true"
