"""What search, attribution, consent and everything above may ask of a store, whoever it is limited to.

`Reader` has the reads, `ResourceStore` the one write beside them. The store itself (app/store/store.py) answers all,
a restricted one (app/authorization/restricted_store.py) what its caller may see.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Protocol

from bson import Timestamp

from app.records.versions import (
    CURRENT,
    Change,
    Guard,
    HistoryRange,
    ResourceVersion,
    RowBeside,
    WriteAction,
    stored_current,
)
from app.runtime.mongo import Document

# Documents that a search that looks through candidates has sent at a time.
READ_AHEAD = 200


class Reader(Protocol):
    """The reads of a store. Filters are MongoDB's, on current documents."""

    async def read(self, resource_type: str, resource_id: str) -> ResourceVersion | None:
        """The current version, also where that is a deletion; None where the id was never used."""

    async def vread(
        self, resource_type: str, resource_id: str, version: int
    ) -> ResourceVersion | None:
        """That very version, or None."""

    async def read_many(self, keys: Collection[tuple[str, str]]) -> dict[str, ResourceVersion]:
        """The current versions, deletions included, of these types and ids, by reference."""

    async def history(
        self, range_: HistoryRange, limit: int, *, for_page: bool = False
    ) -> list[ResourceVersion]:
        """Versions in the range, newest first, at most `limit`; `for_page` as in `find`."""

    async def history_total(self, range_: HistoryRange) -> int | None:
        """How many versions the range holds over all pages; None for a period, where counting means looking at each."""

    async def find(
        self,
        resource_type: str,
        filter_: Document,
        *,
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
        projection: Document | None = None,
        naive: bool = False,
        for_page: bool = False,
    ) -> list[Document]:
        """Current documents that match, at most `limit` (0: all); with `naive` times come without their zone, UTC.

        Those `for_page` may end with the first that does not fit on the page any more (app/search/page_bytes.py).
        """

    def batches(
        self,
        resource_type: str,
        filter_: Document,
        *,
        sort: Sequence[tuple[str, int]] = (),
        projection: Document | None = None,
        read_ahead: int = READ_AHEAD,
        naive: bool = False,
    ) -> AbstractAsyncContextManager[Callable[[int], Awaitable[list[Document]]]]:
        """A function that reads the next documents that match, at most as many as it is told; none at the end."""

    async def find_together(
        self, parts: Sequence[tuple[str, Document, Document]]
    ) -> list[list[Document]]:
        """What several `find`s with (collection, filter, projection) find, in one round, for a few documents each."""

    async def search(
        self,
        resource_type: str,
        filter_: Document,
        limit: int,
        sort: Sequence[tuple[str, int]] = (),
        *,
        for_page: bool = False,
    ) -> list[ResourceVersion]:
        """Current versions that match, at most `limit`; `for_page` as in `find`, by which every store searches."""
        rows = await self.find(
            resource_type, filter_, sort=sort, limit=limit, projection=CURRENT, for_page=for_page
        )
        return [stored_current(resource_type, row) for row in rows]

    async def count(self, resource_type: str, filter_: Document, limit: int = 0) -> int:
        """How many current documents match, counting no further than `limit` (0: all)."""

    async def terms_among(
        self, resource_type: str, filter_: Document, terms: Sequence[str]
    ) -> list[str]:
        """Those of the terms that any document has that matches."""

    async def terms(self, resource_type: str, prefix: str) -> list[str]:
        """The distinct search terms of a type that begin with a prefix."""

    async def types(self) -> list[str]:
        """The resource types that were ever written, in alphabetical order."""

    async def explain(
        self,
        resource_type: str,
        filter_: Document,
        *,
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
    ) -> Document:
        """How MongoDB runs `find` with the same arguments: the winning plan and what it examined."""

    async def cluster_time(self) -> Timestamp:
        """What `snapshot.reading_at` takes: a time that shows everything acknowledged so far."""

    async def horizon(self) -> datetime:
        """The commit horizon: every write with a time up to this one has committed or never will."""


class ResourceStore(Reader, Protocol):
    """A store that is also written to."""

    async def previous(
        self, resource_type: str, resource_id: str, action: WriteAction
    ) -> ResourceVersion | None:
        """The current version as what a write of this kind is about to change."""

    async def previous_many(
        self, actions: Mapping[tuple[str, str], WriteAction]
    ) -> dict[str, ResourceVersion]:
        """`previous` of several, by reference."""

    async def guards(self, *criteria: str) -> tuple[Guard, ...]:
        """What a conditional write by these criteria compares. Take it before the search that decides what to write."""

    async def commit(
        self,
        changes: Sequence[Change],
        guards: Sequence[Guard] = (),
        beside: Sequence[RowBeside] = (),
    ) -> list[ResourceVersion]:
        """Write all changes in one transaction, or none; returns the new versions in the order of `changes`.

        Raises VersionConflict where a version or guard is no longer the one that was read, or a row `beside` is there
        already, TooLarge for a resource over the limit.
        """

    def reserving(self, keys: Collection[str]) -> AbstractAsyncContextManager[None]:
        """Let other writes of these keys, of any process, wait for those of this task: it has lost to them for long."""

    async def annotate(
        self, resource_type: str, name: str, notes: Mapping[tuple[str, int], str]
    ) -> None:
        """Keep derived text in `private` of current versions, by id and version; one that has moved on stays as it is.

        No part of the resource: neither a version nor an event.
        """

    async def raise_event(
        self,
        reference: tuple[str, str, int],
        topic: str,
        *,
        key: str,
        at: datetime,
        trigger: Mapping[str, str] | None = None,
        context: Sequence[str] = (),
        only_for: Sequence[str] = (),
    ) -> bool:
        """Put an event of one topic into the outbox, about a stored version (type, id, version) as it is.

        Who listens for the topic, and whose filters that version passes, is told of it. The same `key` twice is one
        event: then this returns False. `context` are relative references that travel along with the notices.
        With `only_for` those alone are told who name one of these providers as a filter.
        """
