"""The guards of conditional writes: rows that such writes compare, so that two of them cannot both see nothing.

    guards   {_id: digest of type and criteria, n, at}

A conditional write takes the guard's number before it searches, and commits only while that is still the same. So a
guard is of use for as long as a write may be under way, and goes an hour after the last write with its criteria, which
takes seconds. A number begins anywhere: one that was seen before a guard went is not met again.

Criteria name patients. The row bears only a digest of them, made with the server's secret key; during a change of keys
a write guards the digests of all keys that its server has. Servers older than format 2 know the criteria themselves:
while one is about, a write guards these as well, in a row without `at`. docs/decisions/0002-one-write-path.md
"""

from __future__ import annotations

import secrets as randomness
from collections.abc import Sequence
from datetime import timedelta

from pymongo import ASCENDING, IndexModel

from app.records.versions import Guard, VersionConflict
from app.runtime import collections
from app.runtime.cluster import Cluster
from app.runtime.mongo import Document, Mongo, Session
from app.runtime.secrets import Secrets

COLLECTION = "guards"
KEPT = timedelta(hours=1)
# Since this format servers guard digests.
_DIGESTS_SINCE = 2
_IN_THE_CLEAR: Document = {"at": {"$exists": False}}


class Guards:
    """The collection `guards`."""

    def __init__(self, mongo: Mongo, cluster: Cluster, secrets: Secrets) -> None:
        self._mongo = mongo
        self._cluster = cluster
        self._secrets = secrets
        self._rows = mongo.collection(COLLECTION)
        # Whether there may be rows that name criteria: older servers may have left some.
        self._may_be_clear = True

    async def prepare(self) -> None:
        """Make the collection, where it is missing."""
        end = IndexModel(
            [("at", ASCENDING)], name="at", expireAfterSeconds=int(KEPT.total_seconds())
        )
        await collections.ensure(self._mongo, COLLECTION, [end])

    async def of(self, *criteria: str) -> tuple[Guard, ...]:
        """What a conditional write with these criteria compares. Take it before the search that decides."""
        keys = [key for each in criteria for key in self._secrets.digests(f"guard {each}")]
        if self._cluster.oldest_format < _DIGESTS_SINCE:
            keys += criteria
            self._may_be_clear = True
        elif self._may_be_clear:
            await self._rows.delete_many(_IN_THE_CLEAR)
            self._may_be_clear = False
        found = {row["_id"]: row["n"] async for row in self._rows.find({"_id": {"$in": keys}})}
        return tuple(Guard(key, found.get(key, 0), key in criteria) for key in keys)

    async def moved_on(self, guards: Sequence[Guard]) -> set[str]:
        """The keys of those that others have counted up since, but for criteria in the clear: no row may name these."""
        keys = [guard.key for guard in guards if not guard.in_the_clear]
        if not keys:
            return set()
        found = {row["_id"]: row["n"] async for row in self._rows.find({"_id": {"$in": keys}})}
        return {each.key for each in guards if found.get(each.key, 0) != each.seen} & {*keys}

    async def compare(self, guard: Guard, session: Session) -> None:
        """Count a write, in its transaction. Raises VersionConflict where another was counted since."""
        if guard.seen == 0:
            row: Document = {"_id": guard.key, "n": 1 + randomness.randbits(48)}
            if not guard.in_the_clear:
                row["at"] = self._mongo.now()
            await self._rows.insert_one(row, session=session)
            return
        counted: Document = {"$inc": {"n": 1}}
        if not guard.in_the_clear:
            counted["$currentDate"] = {"at": True}
        seen = {"_id": guard.key, "n": guard.seen}
        result = await self._rows.update_one(seen, counted, session=session)
        if result.matched_count == 0:
            raise VersionConflict
