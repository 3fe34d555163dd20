"""Reading at one cluster time: what a search reads, page after page, is the database as it was at its first page.

https://www.mongodb.com/docs/manual/reference/read-concern-snapshot/ - MongoDB keeps such a view for a window of five
minutes (minSnapshotHistoryWindowInSeconds); after that it answers SnapshotTooOld, and we 410.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from bson import Timestamp
from pymongo.errors import OperationFailure

from app.errors import Gone
from app.runtime.mongo import Document, Mongo, max_time_ms

# SnapshotTooOld, SnapshotUnavailable (a change of the collection itself lies between).
_PAST = frozenset({239, 246})
_at: ContextVar[Timestamp | None] = ContextVar("snapshot", default=None)


def current() -> Timestamp | None:
    """The cluster time that this task reads at; None for the newest."""
    return _at.get()


async def newest(mongo: Mongo) -> Timestamp:
    """A cluster time that shows all that was acknowledged before."""
    reply: Document = await mongo.db.command("ping")
    time: Timestamp = reply["operationTime"]
    return time


@contextmanager
def reading_at(time: Timestamp | None) -> Iterator[None]:
    """All that the store reads inside, this task reads at this cluster time. Raises Gone past its window."""
    token = _at.set(time)
    try:
        yield
    except OperationFailure as failure:
        if time is not None and failure.code in _PAST:
            raise Gone(
                "The snapshot that these pages show is no longer kept; start the search again",
                code="expired",
                expression="http._cursor",
            ) from failure
        raise
    finally:
        _at.reset(token)


async def find(
    mongo: Mongo,
    collection: str,
    filter_: Document,
    *,
    time: Timestamp,
    sort: Sequence[tuple[str, int]] = (),
    limit: int = 0,
    projection: Document | None = None,
) -> Any:
    """A cursor on what `find` would have found at a cluster time."""
    command: Document = {"find": collection, "filter": filter_, "limit": limit}
    if sort:
        command["sort"] = dict(sort)
    if projection:
        command["projection"] = projection
    return await _cursor(mongo, command, time)


async def aggregate(
    mongo: Mongo, collection: str, pipeline: Sequence[Document], time: Timestamp
) -> list[Document]:
    """The whole result of an aggregation at a cluster time."""
    command = {"aggregate": collection, "pipeline": list(pipeline), "cursor": {}}
    cursor = await _cursor(mongo, command, time)
    rows: list[Document] = await cursor.to_list(None)
    return rows


async def count(
    mongo: Mongo, collection: str, filter_: Document, limit: int, time: Timestamp
) -> int:
    """How many documents matched at a cluster time, counting no further than `limit` (0: all)."""
    limited: list[Document] = [{"$limit": limit}] if limit else []
    pipeline = [{"$match": filter_}, *limited, {"$count": "n"}]
    rows = await aggregate(mongo, collection, pipeline, time)
    return int(rows[0]["n"]) if rows else 0


async def _cursor(mongo: Mongo, command: Document, time: Timestamp) -> Any:
    concern = {"level": "snapshot", "atClusterTime": time}
    limit = max_time_ms.get()
    if limit is not None:
        command = {**command, "maxTimeMS": limit}
    return await mongo.db.cursor_command({**command, "readConcern": concern})
