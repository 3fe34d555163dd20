"""Conditions whose answer lies in other documents, and how a query with such conditions is run.

A lookup can be used from either side. Driven from its own side, it finds what it leads to and becomes a plain condition
on the documents searched (`find`). Where that would be too much, a cohort of 100,000 patients, say, the query is driven
from the other side: its other conditions give candidates in the order asked for, and the lookup is asked about each
batch of them (`test`) until the page is full. Both have limits, beyond which the answer is `too-costly`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from app.errors import Unprocessable
from app.search.parameter import AnyOf, Condition, Fields, Filter, Not
from app.search.terms import EVERY, Terms

if TYPE_CHECKING:
    from app.search.query import Query
    from app.store import Store

Document = dict[str, Any]
_FIRST_BATCH, _LARGEST_BATCH = 100, 1000


@dataclass(frozen=True, slots=True)
class Limits:
    """`found` is how many resources one step may lead to before the other side drives; `examined` how many
    candidates a page may look at."""

    found: int = 5_000
    examined: int = 100_000


class TooMany(Exception):
    """A lookup leads to more than the limit."""


def too_costly() -> Unprocessable:
    """What a search that would run for minutes is answered."""
    return Unprocessable(
        "The search leads through too many resources; add parameters that select fewer, "
        "such as a code, a patient, a date range or _lastUpdated, or search in smaller steps",
        code="too-costly",
    )


class Lookup(ABC):
    """A condition on documents of one type that depends on others. Resolve a query before using its filter."""

    @property
    @abstractmethod
    def needs(self) -> dict[str, int]:
        """The projection on the documents that `test` is given."""

    @abstractmethod
    async def find(self, store: Store, limits: Limits) -> Condition:
        """The same as a plain condition. Raises TooMany."""

    @abstractmethod
    async def test(self, store: Store, rows: Sequence[Document], limits: Limits) -> set[str]:
        """The ids of those documents that meet the condition; asked after `find` has raised TooMany."""

    def filter(self) -> Filter:
        raise RuntimeError("the query was not resolved")

    def matches(self, fields: Fields) -> bool:
        raise RuntimeError("the query was not resolved")


async def resolved(store: Store, condition: Condition, limits: Limits) -> Condition:
    """The condition with all lookups in it found. Raises TooMany."""
    match condition:
        case Lookup():
            return await condition.find(store, limits)
        case Not(inner):
            return Not(await resolved(store, inner, limits))
        case AnyOf(inner):
            return AnyOf(tuple([await resolved(store, each, limits) for each in inner]))
    return condition


async def resolve(store: Store, query: Query, *, may_probe: bool = False) -> None:
    """Find what the query's conditions depend on; before this its filter must not be used.

    With `may_probe`, lookups that lead to too much stay as `query.probes`, which only `find` and `count` below heed.
    Raises Unprocessable with the code too-costly.
    """
    conditions: list[Condition] = []
    for each in query.conditions:
        try:
            conditions.append(await resolved(store, each, query.limits))
        except TooMany:
            if not (may_probe and isinstance(each, Lookup)):
                raise too_costly() from None
            query.probes.append(each)
    query.conditions = conditions


async def find(
    store: Store,
    query: Query,
    filter_: Filter,
    *,
    sort: Sequence[tuple[str, int]],
    limit: int,
    projection: Document,
) -> list[Document]:
    """The first documents of a resolved query under a filter of its own, at most `limit`."""
    if not query.probes:
        return await store.find(
            query.resource_type, filter_, sort=sort, limit=limit, projection=projection
        )
    found: list[Document] = []
    examined = 0
    size = _FIRST_BATCH
    wanted = {**projection, **_needs(query)}
    async with store.batches(query.resource_type, filter_, sort=sort, projection=wanted) as read:
        while len(found) < limit and (batch := await read(size)):
            examined += len(batch)
            if examined > query.limits.examined:
                raise too_costly()
            found += await _passing(store, query, batch)
            size = min(2 * size, _LARGEST_BATCH)
    return found[:limit]


async def count(store: Store, query: Query) -> int:
    """How many documents a resolved query finds."""
    if not query.probes:
        return await store.count(query.resource_type, query.filter)
    total = examined = 0
    async with store.batches(
        query.resource_type, query.filter, projection={"_id": 1, **_needs(query)}
    ) as read:
        while batch := await read(_LARGEST_BATCH):
            examined += len(batch)
            if examined > query.limits.examined:
                raise too_costly()
            total += len(await _passing(store, query, batch))
    return total


def _needs(query: Query) -> dict[str, int]:
    return {name: 1 for probe in query.probes for name in probe.needs}


async def _passing(store: Store, query: Query, rows: list[Document]) -> list[Document]:
    for probe in query.probes:
        if rows:
            kept = await probe.test(store, rows, query.limits)
            rows = [row for row in rows if row["_id"] in kept]
    return rows


def alive(condition: Condition) -> Filter:
    """The filter of a plain condition on documents that are not deleted."""
    if isinstance(condition, Terms):
        return condition.filter()
    return {"$and": [{"terms": EVERY}, condition.filter()]}


@dataclass(slots=True)
class Link:
    """One step of a chain: resources of a type that meet a condition."""

    resource_type: str
    condition: Condition

    async def settle(self, store: Store, limits: Limits) -> Condition | None:
        """The plain condition; None where it still is a lookup, because it leads to too much."""
        if isinstance(self.condition, Lookup):
            try:
                self.condition = await resolved(store, self.condition, limits)
            except TooMany:
                return None
        return self.condition

    async def ids(self, store: Store, limits: Limits) -> list[str]:
        """The ids of the resources. Raises TooMany."""
        condition = await self.settle(store, limits)
        if condition is None:
            raise TooMany
        rows = await store.find(
            self.resource_type, alive(condition), limit=limits.found + 1, projection={"_id": 1}
        )
        if len(rows) > limits.found:
            raise TooMany
        return [row["_id"] for row in rows]

    async def among(self, store: Store, ids: Sequence[str], limits: Limits) -> set[str]:
        """Those of the ids that belong to such a resource."""
        if not ids:
            return set()
        those: Filter = {"_id": {"$in": list(ids)}}
        if isinstance(self.condition, Lookup):
            rows = await store.find(
                self.resource_type,
                {"$and": [{"terms": EVERY}, those]},
                projection={"_id": 1, **self.condition.needs},
            )
            return await self.condition.test(store, rows, limits)
        rows = await store.find(
            self.resource_type,
            {"$and": [those, alive(self.condition)]},
            projection={"_id": 1},
        )
        return {row["_id"] for row in rows}
