"""The rows that rights are judged by: of current documents, of versions, and of what was deleted as it was before."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from app.authorization.relations import DocumentRow, Traits, patients_of
from app.records.versions import ResourceVersion
from app.runtime import pace
from app.search.extract import extract
from app.search.terms import senders
from app.store.store import Store

# Rows with their traits, by key.
Judged = dict[str, tuple[DocumentRow, Traits]]


async def current_rows(
    store: Store, resource_type: str, ids: Collection[str]
) -> dict[str, DocumentRow]:
    """The rows stored under these ids, with terms and senders (`by`), by id; deleted ones included."""
    rows = await store.find(
        resource_type,
        {"_id": {"$in": sorted(ids)}},
        projection={"terms": 1, "by": 1, "deleted": 1, "v": 1},
    )
    return {row["_id"]: row for row in rows}


async def last_row_of(store: Store, resource_type: str, row: DocumentRow) -> DocumentRow | None:
    """The row of a current document; for a deleted one, of the version before."""
    if not row.get("deleted"):
        return row
    return await _row_before(store, resource_type, row["_id"], row["v"], row.get("by", ()))


async def last_rows_of(
    store: Store, resource_type: str, rows: Iterable[DocumentRow]
) -> list[DocumentRow]:
    """The same of several, without those of which nothing is left."""
    return [own for row in rows if (own := await last_row_of(store, resource_type, row))]


async def row_of_version(
    store: Store, stored: ResourceVersion, by: Sequence[str]
) -> DocumentRow | None:
    """The row of a version; for a deletion, of the version before it."""
    if stored.deleted:
        return await _row_before(store, stored.type, stored.id, stored.version, by)
    resource = await stored.resource_aside()
    fields = await pace.aside(len(stored.text), extract, stored.type, resource)
    return {**fields, "_id": stored.id, "terms": [*fields["terms"], *senders(by)]}


def is_withdrawn(resource_type: str, row: DocumentRow, current: DocumentRow, base_url: str) -> bool:
    """Whether a version was entered in error about a patient whose the record is not (docs/encounters.md).

    Such a version takes back what was told about its patient, and says nothing of whose the record is now.
    """
    return "status=entered-in-error" in row["terms"] and patients_of(
        resource_type, row, base_url
    ).isdisjoint(patients_of(resource_type, current, base_url))


async def _row_before(
    store: Store, resource_type: str, resource_id: str, version: int, by: Sequence[str]
) -> DocumentRow | None:
    before = await store.vread(resource_type, resource_id, version - 1)
    if before is None or before.deleted:
        return None
    return await row_of_version(store, before, by)
