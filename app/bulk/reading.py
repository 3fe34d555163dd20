"""The resources of one type and part, as they were at the time the export shows, window by window in order of ids.

A window begins with the current documents that nobody changed since that time. After that, those inside its bounds that
somebody did change are looked up as they were then: whoever changes one while the window is read, it is in one of both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime

from app.bulk.cohort import Cohort
from app.bulk.history_at import as_of, fields_of
from app.records.reader import Reader
from app.records.versions import ResourceVersion
from app.runtime.mongo import Document
from app.search.parameter import Fields, Filter
from app.search.parameters.special import Ids
from app.search.query import Query
from app.search.terms import EVERY

# Documents that are decoded without a pause. After them comes a pause of so many times what they took, and of so many
# seconds at least: notices come first, and where the machine is busy the export takes longer.
_AT_ONCE = 50
_REST, _SHORTEST = 2.0, 0.004
# What a window holds at most.
_LINES, _BYTES = 500, 4 * 1024 * 1024


pause = asyncio.sleep


@dataclass(slots=True)
class Source:
    """What is read of a type: the resources of the cohort that any of the queries finds, all where there is none.

    `changed` remembers, for what was changed meanwhile, whether it is wanted at all. `unreadable` are those of which
    that cannot be said, since the last window.
    """

    store: Reader
    cohort: Cohort
    resource_type: str
    queries: Sequence[Query]
    at: datetime
    changed: dict[str, bool] = field(default_factory=dict)
    unreadable: list[ResourceVersion] = field(default_factory=list)

    def filter(self, number: int, after: str) -> Filter:
        """The current documents of a part after an id that are as they were."""
        since = self.cohort.parts[number].since
        found: list[Filter] = [
            {"at": {"$lte": self.at, **({"$gt": since} if since else {})}},
            {"_id": {"$gt": after}},
        ]
        condition = self.cohort.condition(self.resource_type, number)
        if condition is not None:
            found.append(condition.filter())
        if condition is None or isinstance(condition, Ids):  # what was deleted has an id still
            found.append({"terms": EVERY})
        if self.queries:
            found.append({"$or": [query.filter for query in self.queries]})
        return {"$and": found}

    async def windows(
        self, number: int, after: str
    ) -> AsyncGenerator[tuple[list[ResourceVersion], str], None]:
        """The resources of a part after an id, with the id that the window reaches to; empty at its end."""
        async with self._unchanged(number, after) as batches:
            window: list[ResourceVersion] = []
            seen = after
            async for batch, last in batches:
                window += batch
                size = sum(len(stored.text) for stored in window)
                if len(window) >= _LINES or size >= _BYTES:
                    window += await self._changed(number, (seen, last), window)
                    yield window, last
                    window, seen = [], last
        window += await self._changed(number, (seen, None), window)
        yield window, ""

    @asynccontextmanager
    async def _unchanged(
        self, number: int, after: str
    ) -> AsyncIterator[AsyncIterator[tuple[list[ResourceVersion], str]]]:
        """Batches, each with the id that it reaches to."""
        projection = {"at": 1, "v": 1, "text": 1, **({"terms": 1} if number else {})}
        async with self.store.batches(
            self.resource_type,
            self.filter(number, after),
            sort=[("_id", 1)],
            projection=projection,
            read_ahead=_AT_ONCE,
        ) as read:

            async def each() -> AsyncGenerator[tuple[list[ResourceVersion], str], None]:
                begun = time.perf_counter()
                while rows := await read(_AT_ONCE):
                    own = [self._stored(row) for row in rows if self._is_first(row, number)]
                    yield own, rows[-1]["_id"]
                    await pause(max(_SHORTEST, _REST * (time.perf_counter() - begun)))
                    begun = time.perf_counter()

            async with aclosing(each()) as batches:
                yield batches

    def _stored(self, row: Document) -> ResourceVersion:
        return ResourceVersion(self.resource_type, row["_id"], row["v"], row["at"], row["text"])

    def _is_first(self, fields: Fields, number: int) -> bool:
        """Whether no part before has it too."""
        return number == 0 or self.cohort.is_first(self.resource_type, fields["terms"], number)

    async def _changed(
        self, number: int, bounds: tuple[str, str | None], window: Sequence[ResourceVersion]
    ) -> list[ResourceVersion]:
        """What was changed since and is not in the window, as it was."""
        after, last = bounds
        between = {"$gt": after, **({"$lte": last} if last is not None else {})}
        moved = {"_id": between, "at": {"$gt": self.at}}
        rows = await self.store.find(self.resource_type, moved, projection={"_id": 1})
        there = {stored.id for stored in window}
        found: list[ResourceVersion] = []
        for row in rows:
            if row["_id"] not in there and self.changed.get(row["_id"], True):
                stored = await as_of(self.store, self.resource_type, row["_id"], self.at)
                if stored is None:
                    continue
                try:
                    if self._is_wanted(stored, number):
                        found.append(stored)
                except ValueError:
                    self.changed[row["_id"]] = False
                    self.unreadable.append(stored)
        return found

    def _is_wanted(self, stored: ResourceVersion, number: int) -> bool:
        is_in = False
        if not stored.deleted:
            fields = fields_of(stored)
            is_in = self.cohort.has(self.resource_type, stored.id, fields["terms"]) and (
                not self.queries or any(query.matches(fields) for query in self.queries)
            )
        self.changed[stored.id] = is_in
        if not is_in:
            return False
        since = self.cohort.parts[number].since
        condition = self.cohort.condition(self.resource_type, number)
        is_new = since is None or stored.at > since
        is_of_part = condition is None or condition.matches(fields)
        return is_new and is_of_part and self._is_first(fields, number)
