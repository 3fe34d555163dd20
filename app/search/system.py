"""Searches over several resource types: at the server's root and in a whole compartment.

https://hl7.org/fhir/R4/http.html#search - `GET [base]?_type=Patient,Encounter&...` and `GET [base]/Patient/1/*`. Each
type is searched on its own and the results are merged, so the order must be one that all types have: by `_lastUpdated`,
newest first, or by `_id`. Without `_type` only parameters that all types have are understood.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from bson import Timestamp

from app.errors import BadRequest, Issue
from app.fhir import definitions
from app.runtime.snapshot import reading_at
from app.search import (
    candidate_scan,
    cost,
    explain,
    include,
    page,
    page_bytes,
    query,
    sorting,
)
from app.search.compartment import membership
from app.search.cursor import Position
from app.search.include import IncludedRow
from app.search.page import Page
from app.search.page_links import Walk
from app.search.parameter import Condition, Filter
from app.search.query import Parameters, Query
from app.search.resolution import resolve
from app.search.sorting import SortKey
from app.settings import Settings

if TYPE_CHECKING:
    from app.records.reader import Reader

_ORDER = (SortKey("at", -1), SortKey("_id", -1))


def _alone(resource_type: str, document: dict[str, Any]) -> list[IncludedRow]:
    return [page.row_of(resource_type, document)]


@dataclass(slots=True)
class Search:
    """One query for each type, alike but for the type. `after` are the sort values, id and type of a page's row.

    `show` tells what a row of a type stands for on the page, where that is not the row.
    """

    queries: list[Query]
    used: list[tuple[str, str]]
    after: tuple[Any, ...] | None = None
    snapshot: Timestamp | None = None
    issues: list[Issue] = field(default_factory=list)
    show: Callable[[str, dict[str, Any]], list[IncludedRow]] = _alone


def parse(
    params: Parameters,
    *,
    lenient: bool,
    settings: Settings,
    base_url: str,
    compartment: tuple[str, str, Sequence[str]] | None = None,
    begin: Position | None = None,
) -> Search:
    """The search that request parameters ask for, at the root or in a compartment (its type, owner, types).

    Raises BadRequest naming the parameter.
    """
    allowed = compartment[2] if compartment else definitions.SUPPORTED_TYPES
    types = _types([text for name, text in params if name == "_type"], allowed)
    rest = [pair for pair in params if pair[0] != "_type" and not include.is_include(pair[0])]
    if types is None:
        _check_common(rest)
    served = types or allowed
    queries = [
        query.parse(
            each, rest, lenient=lenient, settings=settings, base_url=base_url, share=len(served)
        )
        for each in served
    ]
    includes = _includes(params, cost.Budget(settings.max_search_cost))
    for each in queries:
        each.sort = order(each, params)
        each.includes = includes
        if compartment:
            each.conditions.append(membership(*compartment[:2], each.resource_type, each.scope))
    search = Search(queries, _used(params, queries))
    for issue in (issue for each in queries for issue in each.issues):
        if issue not in search.issues:
            search.issues.append(issue)
    begin_at(search, begin)
    return search


def _includes(params: Parameters, budget: cost.Budget) -> list[include.Include]:
    found = {include.parse("", *pair): pair[0] for pair in params if include.is_include(pair[0])}
    for each, name in found.items():
        budget.spend(include.cost_of(each), name)
    return list(found)


def begin_at(search: Search, begin: Position | None) -> None:
    """Begin after a page's last row: its sort values, id and type. Raises Gone for those of another search."""
    if begin is not None:
        search.after = begin.of(len(search.queries[0].sort) + 1)
        search.snapshot = begin.snapshot


def _types(texts: Sequence[str], allowed: Sequence[str]) -> list[str] | None:
    if not texts:
        return None
    if len(texts) > 1:
        raise _refused("_type", "Parameter '_type' may be given only once", "invalid")
    found = list(dict.fromkeys(texts[0].split(",")))
    for each in found:
        if each not in allowed:
            raise _refused("_type", "'_type' names a type that is not served here", "not-supported")
    return sorted(found)


def _check_common(params: Parameters) -> None:
    for name, _ in params:
        if not name.startswith("_"):
            raise _refused(
                name,
                f"'{name}' is not a search parameter of all resource types; name the types with _type",
                "not-supported",
            )


def order(each: Query, params: Parameters) -> tuple[SortKey, ...]:
    """The order asked for, which must be one that all types have; else the newest first."""
    if not any(name == "_sort" for name, _ in params):
        return _ORDER
    if any(key.field not in ("at", "_id") for key in each.sort):
        raise _refused(
            "_sort",
            "A search over several types can be sorted by _lastUpdated and _id only",
            "not-supported",
        )
    return each.sort


def _used(params: Parameters, queries: Sequence[Query]) -> list[tuple[str, str]]:
    """The parameters that took part for any type, with the values that took effect."""
    effective = {name: text for each in queries for name, text in each.used}
    kept: list[tuple[str, str]] = []
    for name, text in params:
        if name == "_type" or include.is_include(name):
            kept.append((name, text))
        elif name in effective:
            kept.append((name, effective[name] if name == "_count" else text))
    return kept


def _refused(name: str, diagnostics: str, code: str) -> BadRequest:
    return BadRequest(diagnostics, code=code, expression=f"http.{name}")


async def search_types(store: Reader, search: Search, walk: Walk) -> bytes:
    """The Bundle for one page, as JSON."""
    head = search.queries[0]
    result = Page(search.used, issues=search.issues)
    bounded = await page.up_to_horizon(store, head, result)
    until = bounded.conditions[len(head.conditions) :]
    if search.after is not None:
        result.horizon = None
    is_first = search.after is None and head.is_snapshot
    result.snapshot = await store.cluster_time() if is_first else search.snapshot
    with reading_at(result.snapshot):
        await _fill(store, search, until, result)
    return await page.render(result, walk)


async def _fill(store: Reader, search: Search, until: list[Condition], result: Page) -> None:
    head = search.queries[0]
    present = set(await store.types())
    queries = [
        await resolve(store, replace(each, conditions=[*each.conditions, *until]), may_probe=True)
        for each in search.queries
        if each.resource_type in present
    ]
    if head.count == 0 or head.shape.counts:
        result.total = await _count(store, queries)
        return
    rows = await _rows(store, search, queries)
    fitting = page_bytes.fitting(page_bytes.sizes(row for _, row in rows))
    shown = _shown(search, rows[: min(head.count, fitting)])
    if search.after is None and len(rows) == len(shown):
        result.total = sum(map(len, shown))
    elif head.total in ("accurate", "estimate"):
        result.total = await _count(store, queries)
    if head.is_explained:
        for each in queries:
            result.issues += await explain.issues(store, each, _pieces(search, each))
    kept = await page.show(store, head, result, shown)
    if len(rows) > kept:
        name, last = rows[kept - 1]
        result.following = (*(key.value(last) for key in head.sort), name)


def _shown(search: Search, rows: Sequence[tuple[str, dict[str, Any]]]) -> list[list[IncludedRow]]:
    """What each row stands for, of the rows that fit on the page; the first always does."""
    found: list[list[IncludedRow]] = []
    room = search.queries[0].count
    for name, row in rows:
        shown = search.show(name, row)
        room -= len(shown)
        if found and room < 0:
            break
        found.append(shown)
    return found


async def _count(store: Reader, queries: Sequence[Query]) -> int:
    return sum(await asyncio.gather(*(candidate_scan.count(store, each) for each in queries)))


async def _rows(
    store: Reader, search: Search, queries: Sequence[Query]
) -> list[tuple[str, dict[str, Any]]]:
    """The page's rows of all types in one order, and at least one more where others follow; ties by type."""
    found = await asyncio.gather(
        *(page.first_rows(store, each, _pieces(search, each)) for each in queries)
    )
    rows = [
        (each.resource_type, row)
        for each, of_type in zip(queries, found, strict=True)
        for row in of_type
    ]
    for key in reversed(search.queries[0].sort):
        rows.sort(key=lambda pair: key.value(pair[1]), reverse=key.direction < 0)
    return rows


def _pieces(search: Search, each: Query) -> list[Filter]:
    """What of a type follows the row that the page begins after; its tie in a later type comes first."""
    if search.after is None:
        return [each.filter]
    *values, last_type = search.after
    pieces = sorting.after(each.sort, values)
    if each.resource_type > last_type:
        tie = {key.field: value for key, value in zip(each.sort, values, strict=True)}
        pieces.insert(0, tie)
    return [{"$and": [each.filter, piece]} for piece in pieces]
