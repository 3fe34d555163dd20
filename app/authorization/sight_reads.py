"""Reads of current rows within a caller's sight: those of all requests of the caller at one moment by one query."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from app.authentication.scopes import Action
from app.records.versions import CURRENT
from app.runtime import snapshot
from app.runtime.batched_reads import BatchedReads
from app.runtime.mongo import Document
from app.search.parameter import Filter
from app.store.store import Store

if TYPE_CHECKING:
    from app.authorization.access import Sight

_ROW: Document = CURRENT | {"terms": 1}


class SightReads:
    """One for each caller, whose sights stay the same objects until the rights change."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._reads: dict[tuple[str, Action], tuple[Sight, BatchedReads[str, Document | None]]] = {}

    async def row(
        self, resource_type: str, action: Action, sight: Sight, resource_id: str
    ) -> Document | None:
        """The current row with its terms, or that of a deletion; None where the filters of the sight hide it."""
        if snapshot.current() is not None:  # a moment of its own
            return (await self._read(resource_type, sight, [resource_id])).get(resource_id)
        known = self._reads.get((resource_type, action))
        if known is None or known[0] is not sight:
            known = (sight, BatchedReads(partial(self._read, resource_type, sight), None))
            self._reads[resource_type, action] = known
        return await known[1].get(resource_id)

    async def _read(self, resource_type: str, sight: Sight, ids: list[str]) -> dict[str, Document]:
        within = {"$or": [{"deleted": True}, {"$and": list(sight.filters)}]}
        where: list[Filter] = [{"_id": ids[0] if len(ids) == 1 else {"$in": ids}}, within]
        rows = await self._store.find(resource_type, {"$and": where}, projection=_ROW)
        return {row["_id"]: row for row in rows}
