"""Conditions that only the database can settle: a value set's codes, the resources that a chain leads to.

`parse` leaves them in the Query as they are; `resolve` replaces each by a condition on the resource's own fields. A
query that was not resolved refuses to become a filter, so none of them is ever left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from app.errors import BadRequest
from app.search.deferred_condition import DeferredCondition, TooMany
from app.search.parameter import AllOf, AnyOf, Condition, Fields, Filter, Not

if TYPE_CHECKING:
    from app.records.reader import Reader
    from app.search.query import Query


@runtime_checkable
class Unresolved(Protocol):
    """A condition that the store has to settle before it is a filter."""

    async def resolved(self, store: Reader) -> Condition:
        """The same as a condition on stored fields. Raises FhirError where it cannot be settled."""


@dataclass(frozen=True, slots=True)
class NeedsStore:
    """Base of unresolved conditions: as a filter or in memory they are refused, naming the parameter."""

    code: str

    def filter(self) -> Filter:
        raise self._refused()

    def matches(self, fields: Fields) -> bool:
        raise self._refused()

    def _refused(self) -> BadRequest:
        return BadRequest(
            f"Search parameter '{self.code}' needs other resources here and cannot be used in this place",
            code="not-supported",
            expression=f"http.{self.code}",
        )


def is_resolved(condition: Condition) -> bool:
    """Whether the condition, with all it is made of, speaks of stored fields only."""
    if isinstance(condition, Not):
        return is_resolved(condition.condition)
    if isinstance(condition, AnyOf | AllOf):
        return all(is_resolved(each) for each in condition.conditions)
    # Not isinstance: on a protocol that costs 10 us.
    return not hasattr(condition, "resolved")


async def settled(store: Reader, condition: Condition) -> Condition:
    """The condition with everything in it settled."""
    if isinstance(condition, Not):
        return Not(await settled(store, condition.condition))
    if isinstance(condition, AnyOf | AllOf):
        return replace(condition, conditions=await _each(store, condition.conditions))
    if isinstance(condition, Unresolved):
        return await settled(store, await condition.resolved(store))
    return condition


async def resolve(store: Reader, query: Query, *, may_probe: bool = False) -> Query:
    """The query with all conditions settled; the same one where nothing was to be done.

    Raises TooMany where a lookup leads to too much. With `may_probe` it becomes one of the query's `probes` instead,
    which only the functions of candidate_scan.py heed.
    """
    if all(is_resolved(each) for each in query.conditions):
        return query
    conditions: list[Condition] = []
    probes: list[DeferredCondition] = []
    for each in query.conditions:
        try:
            conditions.append(await settled(store, each))
        except TooMany:
            if not (may_probe and isinstance(each, DeferredCondition)):
                raise
            probes.append(each)
    return replace(query, conditions=conditions, probes=probes)


async def _each(store: Reader, conditions: Iterable[Condition]) -> tuple[Condition, ...]:
    return tuple([await settled(store, each) for each in conditions])
