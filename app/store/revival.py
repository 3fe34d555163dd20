"""Events out of their rows: what a process does whose predecessor has died, or that was told of a row alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from app.records.versions import Event
from app.runtime.mongo import Document
from app.search.extract import extract

if TYPE_CHECKING:
    from app.store.store import Store


async def revive(store: Store, row: Document) -> Event:
    """The event of a row in `events`, with the stored versions before and after it."""
    type_, id_, version = row["type"], row["id"], row["version"]
    stored = await store.vread(type_, id_, version)
    before = await store.vread(type_, id_, version - 1) if version > 1 else None
    resource = stored.resource() if stored is not None and not stored.deleted else None
    return Event(
        row["_id"],
        type_,
        id_,
        version,
        row["method"],
        row["at"],
        resource,
        extract(type_, resource) if resource is not None else None,
        before.text if before is not None and not before.deleted else None,
        topic=row.get("topic"),
        trigger=row.get("trigger"),
        context=tuple(row.get("context", ())),
    )
