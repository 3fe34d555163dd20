"""What a DocumentReference attaches: a Binary or a Bundle, which has no patient of its own to be judged by.

https://hl7.org/fhir/R4/documentreference.html

A DocumentReference counts only where nobody wrote it but those who wrote what it attaches: otherwise whoever may write
one about a patient of its own would read any Binary by naming it there.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.authorization.relations import DocumentRow, id_of
from app.records.reader import Reader
from app.search.parameter import Filter
from app.search.parameters import uri
from app.search.search_parameters import parameters
from app.search.terms import SENDER

INDEX = "DocumentReference"
# What stands for resources that have nothing of their own to be judged by: types and rows, by the keys of those.
Proxies = dict[str, list[tuple[str, DocumentRow]]]


async def indexes(
    store: Reader, resource_type: str, rows: Sequence[DocumentRow], base_url: str
) -> Proxies:
    """The DocumentReferences that count for these rows, by the rows' keys (`_id`)."""
    by_term: dict[str, list[DocumentRow]] = {}
    for row in rows:
        for term in terms(f"{resource_type}/{id_of(row)}", base_url):
            by_term.setdefault(term, []).append(row)
    if not by_term:
        return {}
    found = await store.find(
        INDEX, {"terms": {"$in": sorted(by_term)}}, projection={"terms": 1, "v": 1}
    )
    counting: Proxies = {}
    for index in found:
        for term in by_term.keys() & set(index["terms"]):
            for row in by_term[term]:
                if _writers(index) <= _writers(row):
                    counting.setdefault(row["_id"], []).append((INDEX, index))
    return counting


async def attached(
    store: Reader, resource_type: str, filter_: Filter, base_url: str, most: int
) -> Filter | None:
    """A filter on what the DocumentReferences of a filter attach; None where they are more than `most`."""
    rows = await store.find(INDEX, filter_, limit=most + 1, projection={"terms": 1})
    if len(rows) > most:
        return None
    starts = terms(f"{resource_type}/", base_url)
    ids = {
        term[len(start) :]
        for row in rows
        for term in row["terms"]
        for start in starts
        if term.startswith(start)
    }
    return {"_id": {"$in": sorted(ids)}}


def terms(reference: str, base_url: str) -> list[str]:
    """The search terms of an attachment's URL: relative, and under the server's own base."""
    key = parameters(INDEX)["location"].key
    urls = (reference, f"{base_url}/{reference}")
    return [f"{key}{ending}" for url in urls for ending in uri.VALUES["url"](url)]


def _writers(row: DocumentRow) -> set[str]:
    return {term for term in row["terms"] if term.startswith(SENDER)}
