"""A searchset Bundle, built by joining the stored texts. https://hl7.org/fhir/R4/http.html#search

Paging is by keyset: a page begins after the last row of the one before, so rows whose sort values do not change appear
exactly once whatever others write meanwhile, and the last page costs what the first one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec
from bson import Timestamp

from app.errors import Issue
from app.fhir.instants import instant
from app.runtime.snapshot import reading_at
from app.search import candidate_scan, cursor, explain, sorting
from app.search.bundle_writer import (
    CURSOR,
    SEARCH,
    found_entries,
    outcome_entry,
    page_links,
    write_bundle,
)
from app.search.include import IncludedRow, included
from app.search.page_bytes import fitting, is_full, sizes
from app.search.parameter import Filter
from app.search.query import Query
from app.search.ranges import Instant
from app.search.resolution import resolve

if TYPE_CHECKING:
    from app.records.reader import Reader

_json = msgspec.json.Encoder()


@dataclass(slots=True)
class Page:
    """What a searchset shows. `search` is what its cursors are made for; `place` is its address under the base.

    `following` are the sort values of the last row, where others follow; `snapshot` the cluster time of all pages.
    `horizon` is the time of change up to which the search is complete.
    """

    search: str
    place: str
    used: Sequence[tuple[str, str]]
    matches: Sequence[IncludedRow] = ()
    included: Sequence[IncludedRow] = ()
    total: int | None = None
    following: tuple[Any, ...] | None = None
    snapshot: Timestamp | None = None
    horizon: datetime | None = None
    issues: list[Issue] = field(default_factory=list)


async def search_type(store: Reader, query: Query, base_url: str) -> bytes:
    """The Bundle for one page of a search, as JSON.

    `base_url` is the server's without a trailing slash. `total` is there if it was asked for, or if the first page
    holds the whole result; `_count=0` and `_summary=count` ask for nothing else.
    """
    place = query.place or query.resource_type
    page = Page(query.resource_type, place, query.used, issues=list(query.issues))
    query = await up_to_horizon(store, query, page)
    page.snapshot = await time_to_read_at(store, query)
    with reading_at(page.snapshot):
        await _fill(store, query, page)
    return render(page, base_url)


async def up_to_horizon(store: Reader, query: Query, page: Page) -> Query:
    """The query, and where it asks for times of change, nothing that changed after the commit horizon.

    The first page says so in Bundle.meta: who asks for what is newer than that the next time misses nothing.
    """
    if not query.is_about_time:
        return query
    horizon = await store.horizon()
    if query.after is None:
        page.horizon = horizon
    until = Instant("at", ((("lo", "$lte", horizon),),))
    return replace(query, conditions=[*query.conditions, until])


async def time_to_read_at(store: Reader, query: Query) -> Timestamp | None:
    """The cluster time that all pages of the search show; None where each shows the newest."""
    if query.after is None and query.is_snapshot:
        return await store.cluster_time()
    return query.snapshot


async def _fill(store: Reader, query: Query, page: Page) -> None:
    query = await resolve(store, query, may_probe=True)
    if query.count == 0 or query.summary == "count":
        page.total = await candidate_scan.count(store, query)
        return
    rows = await first_rows(store, query)
    kept = min(query.count, fitting(sizes(rows)))
    more = len(rows) > kept
    rows = rows[:kept]
    page.total = await _total(store, query, rows, more=more)
    page.following = tuple(key.value(rows[-1]) for key in query.sort) if more else None
    page.matches = [row_of(query.resource_type, row) for row in rows]
    if query.is_explained:
        page.issues += await explain.issues(store, query, filters(query))
    await include(store, query, page)


def row_of(resource_type: str, document: dict[str, Any]) -> IncludedRow:
    return IncludedRow(resource_type, document["_id"], document["text"], document.get("terms", ()))


async def include(store: Reader, query: Query, page: Page) -> None:
    """Add to a page what its matches are to bring along, and say so where that is not all."""
    if not query.includes:
        return
    page.included, is_complete = await included(store, query.includes, page.matches, query.scope)
    if not is_complete:
        page.issues.append(
            Issue(
                "too-costly",
                f"Only the first {len(page.included)} included resources are shown; "
                "ask for fewer matches with _count",
                severity="warning",
            )
        )


def filters(query: Query) -> list[Filter]:
    """What follows the row that a page begins after, piece by piece; together they are the rest of the result.

    Ties come first. Each piece is one run of the index, however deep the page lies; in one `$or` MongoDB would sort
    all that follows where a parameter has several values.
    """
    if query.after is None:
        return [query.filter]
    return [{"$and": [query.filter, each]} for each in sorting.after(query.sort, query.after)]


async def first_rows(
    store: Reader, query: Query, pieces: Sequence[Filter] | None = None
) -> list[dict[str, Any]]:
    """The page's documents and one more, on it or not, which tells that there is a next page."""
    rows: list[dict[str, Any]] = []
    projection = {"text": 1, **{key.field: 1 for key in query.sort}}
    if query.includes:
        projection["terms"] = 1
    for each in filters(query) if pieces is None else pieces:
        rows += await candidate_scan.find(
            store,
            query,
            each,
            sort=[(key.field, key.direction) for key in query.sort],
            limit=query.count + 1 - len(rows),
            projection=projection,
        )
        if len(rows) > query.count or is_full(sizes(rows)):
            break
    return rows


async def _total(
    store: Reader, query: Query, rows: list[dict[str, Any]], *, more: bool
) -> int | None:
    if query.after is None and not more:
        return len(rows)
    if query.total in ("accurate", "estimate"):
        return await candidate_scan.count(store, query)
    return None


def render(page: Page, base_url: str) -> bytes:
    """The Bundle as JSON."""
    token = None
    if page.following is not None:
        others = [pair for pair in page.used if pair[0] != CURSOR]
        token = cursor.encode(
            page.following, cursor.fingerprint(page.search, others), page.snapshot
        )
    head: dict[str, Any] = {}
    if page.horizon is not None:
        head["meta"] = {"lastUpdated": instant(page.horizon)}
    head["type"] = "searchset"
    if page.total is not None:
        head["total"] = page.total
    entries = found_entries(base_url, page.matches)
    entries += found_entries(base_url, page.included, "include")
    if page.issues:
        entries.append(outcome_entry(page.issues))
    url = f"{base_url}/{page.place}" if page.place else base_url
    return write_bundle(head, page_links(url, page.used, token, SEARCH), entries)
