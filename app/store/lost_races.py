"""Which of the versions that a write was judged by have moved on."""

from __future__ import annotations

from collections.abc import Sequence

from app.records.versions import Change
from app.runtime.mongo import Mongo


async def lost_keys(mongo: Mongo, changes: Sequence[Change]) -> set[str]:
    """The keys of those changes whose resources others have written since these were made."""
    if len(changes) == 1:
        return {changes[0].key}
    lost: set[str] = set()
    judged: dict[str, dict[str, int]] = {}
    for change in changes:
        version = change.previous.version if change.previous else 0
        judged.setdefault(change.type, {})[change.id] = version
    for type_, versions in judged.items():
        rows = mongo.collection(type_).find({"_id": {"$in": list(versions)}}, {"v": 1})
        async for row in rows:
            if row["v"] != versions[row["_id"]]:
                lost.add(f"{type_}/{row['_id']}")
    return lost
