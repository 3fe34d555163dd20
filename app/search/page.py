"""A searchset Bundle, built by joining the stored texts. https://hl7.org/fhir/R4/http.html#search

Paging is by keyset: a page begins after the last row of the one before, so rows whose sort values do not change appear
exactly once whatever others write meanwhile, and the last page costs what the first one does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode

import msgspec

from app.errors import operation_outcome
from app.search import cursor, sorting
from app.search.parameter import Filter
from app.search.query import Query
from app.search.resolution import resolve

if TYPE_CHECKING:
    from app.store import Store

_json = msgspec.json.Encoder()


async def search_type(store: Store, query: Query, base_url: str) -> bytes:
    """The Bundle for one page of a search, as JSON.

    `base_url` is the server's without a trailing slash. `total` is there if it was asked for, or if the first page
    holds the whole result; `_count=0` and `_summary=count` ask for nothing else.
    """
    query = await resolve(store, query)
    if query.count == 0 or query.summary == "count":
        counted = await store.count(query.resource_type, query.filter)
        return _bundle(query, base_url, [], counted, None)
    rows = await _rows(store, query)
    more = len(rows) > query.count
    rows = rows[: query.count]
    total = await _total(store, query, rows, more=more)
    following = tuple(key.value(rows[-1]) for key in query.sort) if more else None
    return _bundle(query, base_url, rows, total, following)


def filters(query: Query) -> list[Filter]:
    """What follows the row that a page begins after, piece by piece; together they are the rest of the result.

    Ties come first. Each piece is one run of the index, however deep the page lies; in one `$or` MongoDB would sort
    all that follows where a parameter has several values.
    """
    if query.after is None:
        return [query.filter]
    return [{"$and": [query.filter, each]} for each in sorting.after(query.sort, query.after)]


async def _rows(store: Store, query: Query) -> list[dict[str, Any]]:
    """The page's rows and one more, which tells that there is a next page."""
    rows: list[dict[str, Any]] = []
    for each in filters(query):
        rows += await store.find(
            query.resource_type,
            each,
            sort=[(key.field, key.direction) for key in query.sort],
            limit=query.count + 1 - len(rows),
            projection={"text": 1, **{key.field: 1 for key in query.sort}},
        )
        if len(rows) > query.count:
            break
    return rows


async def _total(
    store: Store, query: Query, rows: list[dict[str, Any]], *, more: bool
) -> int | None:
    if query.after is None and not more:
        return len(rows)
    if query.total in ("accurate", "estimate"):
        return await store.count(query.resource_type, query.filter)
    return None


def _bundle(
    query: Query,
    base_url: str,
    rows: list[dict[str, Any]],
    total: int | None,
    following: tuple[Any, ...] | None,
) -> bytes:
    links = [{"relation": "self", "url": _url(query, base_url, query.used)}]
    if following is not None:
        others = [pair for pair in query.used if pair[0] != "_cursor"]
        token = cursor.encode(following, cursor.fingerprint(query.resource_type, others))
        links.append(
            {"relation": "next", "url": _url(query, base_url, [*others, ("_cursor", token)])}
        )
    parts = ['{"resourceType":"Bundle","type":"searchset"']
    if total is not None:
        parts.append(f',"total":{total}')
    parts.append(f',"link":{_json.encode(links).decode()}')
    entries = _entries(query, base_url, rows)
    if entries:
        parts.append(f',"entry":[{",".join(entries)}]')
    parts.append("}")
    return "".join(parts).encode()


def _entries(query: Query, base_url: str, rows: list[dict[str, Any]]) -> list[str]:
    url = _json.encode(f"{base_url}/{query.resource_type}/").decode()
    beginning = f'{{"fullUrl":{url[:-1]}'
    entries = [
        f'{beginning}{row["_id"]}","resource":{row["text"]},"search":{{"mode":"match"}}}}'
        for row in rows
    ]
    if query.issues:
        outcome = _json.encode(operation_outcome(query.issues)).decode()
        entries.append(f'{{"resource":{outcome},"search":{{"mode":"outcome"}}}}')
    return entries


def _url(query: Query, base_url: str, used: list[tuple[str, str]]) -> str:
    url = f"{base_url}/{query.resource_type}"
    return f"{url}?{urlencode(used, quote_via=quote, safe=':/,|$')}" if used else url
