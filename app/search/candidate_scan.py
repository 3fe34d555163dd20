"""Running a resolved query some of whose lookups lead to too much: its candidates are tested in batches.

The order and the paging stay those of the query; the price is candidates read in vain, so their number is limited.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from app.search.deferred_condition import Document, TooMany
from app.search.page_bytes import is_full, sizes
from app.search.parameter import Filter

if TYPE_CHECKING:
    from app.records.reader import Reader
    from app.search.query import Query

_FIRST_BATCH, _LARGEST_BATCH = 100, 1000


async def find(
    store: Reader,
    query: Query,
    filter_: Filter,
    *,
    sort: Sequence[tuple[str, int]],
    limit: int,
    projection: Document,
) -> list[Document]:
    """The first documents that a resolved query finds under this filter, at most `limit` or a page.

    Their times have no zone. Raises TooMany.
    """
    if not query.probes:
        return await store.find(
            query.resource_type,
            filter_,
            sort=sort,
            limit=limit,
            projection=projection,
            naive=True,
            for_page=True,
        )
    found: list[Document] = []
    examined = 0
    size = _FIRST_BATCH
    wanted = {**projection, **_needs(query)}
    async with store.batches(
        query.resource_type, filter_, sort=sort, projection=wanted, naive=True
    ) as read:
        while len(found) < limit and (batch := await read(size)):
            examined += len(batch)
            if examined > query.scope.limits.examined:
                raise TooMany
            found += await _passing(store, query, batch)
            if is_full(sizes(found)):
                break
            size = min(2 * size, _LARGEST_BATCH)
    return found[:limit]


async def count(store: Reader, query: Query) -> int:
    """How many documents a resolved query finds. Raises TooMany."""
    if not query.probes:
        return await store.count(query.resource_type, query.filter)
    total = examined = 0
    wanted = {"_id": 1, **_needs(query)}
    async with store.batches(query.resource_type, query.filter, projection=wanted) as read:
        while batch := await read(_LARGEST_BATCH):
            examined += len(batch)
            if examined > query.scope.limits.examined:
                raise TooMany
            total += len(await _passing(store, query, batch))
    return total


def _needs(query: Query) -> dict[str, int]:
    return {name: 1 for probe in query.probes for name in probe.needs}


async def _passing(store: Reader, query: Query, rows: list[Document]) -> list[Document]:
    for probe in query.probes:
        if rows:
            kept = await probe.test(store, rows)
            rows = [row for row in rows if row["_id"] in kept]
    return rows
