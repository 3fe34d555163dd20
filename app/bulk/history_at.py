"""Resources as they were at the time that an export shows.

The current documents serve as long as nobody changed them since; where somebody did, the stored versions tell what was
there then. Versions up to the commit horizon no longer change, so asking again gives the same.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime

from app.records.reader import Reader
from app.records.versions import HistoryRange, ResourceVersion, stored_version
from app.runtime.mongo import Document
from app.search.extract import extract
from app.search.parameter import Fields

_READ_AHEAD = 100


async def as_of(
    store: Reader, resource_type: str, resource_id: str, at: datetime
) -> ResourceVersion | None:
    """The version that was current then, also where that is a deletion; None where there was none yet."""
    found = await store.history(HistoryRange(resource_type, resource_id, until=at), 1)
    return found[0] if found else None


def fields_of(stored: ResourceVersion) -> Fields:
    """What conditions are judged by in memory."""
    return {**extract(stored.type, stored.resource()), "_id": stored.id, "at": stored.at}


@asynccontextmanager
async def deletions(
    store: Reader, resource_type: str, since: datetime, until: datetime, after: str
) -> AsyncIterator[AsyncIterator[tuple[str, ResourceVersion, ResourceVersion]]]:
    """What was deleted in between and still was at its end, oldest first: (place, deletion, last version before it).

    `after` is the place of the last one that was read, or empty.
    """
    conditions: list[Document] = [
        {"_id.t": resource_type, "method": "DELETE", "at": {"$gt": since, "$lte": until}}
    ]
    if after:
        moment, _, name = after.partition("|")
        reached = datetime.fromisoformat(moment)
        conditions.append(
            {"$or": [{"at": {"$gt": reached}}, {"at": reached, "_id.i": {"$gt": name}}]}
        )
    async with store.batches(
        "versions",
        {"$and": conditions},
        sort=[("at", 1), ("_id", 1)],
        read_ahead=_READ_AHEAD,
    ) as read:

        async def each() -> AsyncIterator[tuple[str, ResourceVersion, ResourceVersion]]:
            while rows := await read(_READ_AHEAD):
                for row in rows:
                    deletion = stored_version(row)
                    then = await as_of(store, resource_type, deletion.id, until)
                    before = await store.vread(resource_type, deletion.id, deletion.version - 1)
                    if then is None or then.version != deletion.version or before is None:
                        continue
                    if not before.deleted:
                        yield f"{deletion.at.isoformat()}|{deletion.id}", deletion, before

        yield each()
