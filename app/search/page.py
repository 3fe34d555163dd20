"""A searchset Bundle, built by joining the stored texts. https://hl7.org/fhir/R4/http.html#search

Paging is by keyset: a page begins after the last row of the one before, so rows whose sort values do not change appear
exactly once whatever others write meanwhile, and the last page costs what the first one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from bson import Timestamp

from app.errors import Issue
from app.fhir.instants import instant
from app.runtime.snapshot import reading_at
from app.search import candidate_scan, explain, sorting
from app.search.bundle_writer import SEARCH, found_entries, outcome_entry, write_bundle
from app.search.cursor import Position
from app.search.include import IncludedRow, included
from app.search.page_bytes import fitting, is_full, sizes
from app.search.page_links import Walk
from app.search.parameter import Filter
from app.search.query import Query
from app.search.ranges import Instant
from app.search.resolution import resolve

if TYPE_CHECKING:
    from app.records.reader import Reader


@dataclass(slots=True)
class Page:
    """What a searchset shows. `used` are the parameters that took effect.

    `following` are the sort values of the last row, where others follow; `snapshot` the cluster time of all pages.
    `horizon` is the time of change up to which the search is complete.
    """

    used: Sequence[tuple[str, str]]
    matches: Sequence[IncludedRow] = ()
    included: Sequence[IncludedRow] = ()
    total: int | None = None
    following: tuple[Any, ...] | None = None
    snapshot: Timestamp | None = None
    horizon: datetime | None = None
    issues: list[Issue] = field(default_factory=list)


async def search_type(store: Reader, query: Query, walk: Walk) -> bytes:
    """The Bundle for one page of a search, as JSON.

    `total` is there if it was asked for, or if the first page holds the whole result; `_count=0` and `_summary=count`
    ask for nothing else.
    """
    page = Page(query.used, issues=list(query.issues))
    query = await up_to_horizon(store, query, page)
    page.snapshot = await time_to_read_at(store, query)
    with reading_at(page.snapshot):
        await _fill(store, query, page)
    return await render(page, walk)


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
    if query.count == 0 or query.shape.counts:
        page.total = await candidate_scan.count(store, query)
        return
    rows = await first_rows(store, query)
    kept = min(query.count, fitting(sizes(rows)))
    more = len(rows) > kept
    rows = rows[:kept]
    page.total = await _total(store, query, rows, more=more)
    if query.is_explained:
        page.issues += await explain.issues(store, query, filters(query))
    kept = await show(store, query, page, [[row_of(query.resource_type, row)] for row in rows])
    if more or kept < len(rows):
        page.following = tuple(key.value(rows[kept - 1]) for key in query.sort)


def row_of(resource_type: str, document: dict[str, Any]) -> IncludedRow:
    return IncludedRow(resource_type, document["_id"], document["text"], document.get("terms", ()))


async def show(
    store: Reader, query: Query, page: Page, shown: Sequence[Sequence[IncludedRow]]
) -> int:
    """Put on a page what each row stands for, with what that brings along. Returns how many rows are on it.

    These are fewer where all that they bring along would be too much for a page, so that none of it is left out. Where
    a single one brings too much, the page says so.
    """
    kept = len(shown)
    while True:
        page.matches = [each for row in shown[:kept] for each in row]
        if not query.includes:
            return kept
        page.included, is_complete = await included(
            store, query.includes, page.matches, query.scope
        )
        if is_complete:
            return kept
        if kept == 1:
            page.issues.append(_incomplete(len(page.included)))
            return kept
        kept //= 2


def _incomplete(count: int) -> Issue:
    return Issue(
        "too-costly",
        f"The match brings more along than a page holds: {count} included resources are shown, others are not; "
        "search for these by themselves",
        severity="warning",
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


async def render(page: Page, walk: Walk) -> bytes:
    """The Bundle as JSON."""
    following = None
    if page.following is not None:
        following = Position(page.following, page.snapshot)
    head: dict[str, Any] = {}
    if page.horizon is not None:
        head["meta"] = {"lastUpdated": instant(page.horizon)}
    head["type"] = "searchset"
    if page.total is not None:
        head["total"] = page.total
    entries = found_entries(walk.base_url, page.matches)
    entries += found_entries(walk.base_url, page.included, "include")
    if page.issues:
        entries += outcome_entry(page.issues)
    return write_bundle(head, await walk.links(page.used, following, SEARCH), entries)
