"""One step of a chain: the resources of a type that meet a condition, asked from either side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.search.deferred_condition import DeferredCondition, TooMany
from app.search.parameter import Condition, Filter, SearchLimits
from app.search.resolution import is_resolved, settled
from app.search.terms import EVERY, Terms

if TYPE_CHECKING:
    from app.records.reader import Reader


def alive(condition: Condition) -> Filter:
    """The filter of a resolved condition on documents that are not deleted."""
    if isinstance(condition, Terms):
        return condition.filter()
    return {"$and": [{"terms": EVERY}, condition.filter()]}


@dataclass(slots=True)
class ChainStep:
    """`condition` is replaced by what it resolves to; it stays a lookup where that leads to too much."""

    resource_type: str
    condition: Condition

    async def settle(self, store: Reader) -> Condition:
        """The resolved condition. Raises TooMany where it leads to too much."""
        if not is_resolved(self.condition):
            self.condition = await settled(store, self.condition)
        return self.condition

    async def ids(self, store: Reader, limits: SearchLimits) -> list[str]:
        """The ids of the resources. Raises TooMany."""
        condition = await self.settle(store)
        rows = await store.find(
            self.resource_type, alive(condition), limit=limits.found + 1, projection={"_id": 1}
        )
        if len(rows) > limits.found:
            raise TooMany
        return [row["_id"] for row in rows]

    async def among(self, store: Reader, ids: Sequence[str]) -> set[str]:
        """Those of the ids that belong to such a resource; the link was settled before."""
        if not ids:
            return set()
        those: Filter = {"_id": {"$in": list(ids)}}
        if isinstance(self.condition, DeferredCondition):
            rows = await store.find(
                self.resource_type,
                {"$and": [{"terms": EVERY}, those]},
                projection={"_id": 1, **self.condition.needs},
            )
            return await self.condition.test(store, rows)
        rows = await store.find(
            self.resource_type,
            {"$and": [those, alive(self.condition)]},
            projection={"_id": 1},
        )
        return {row["_id"] for row in rows}
