"""The store as one caller may see it: the same methods, none of which finds a hidden resource.

Every request reads through `Context.store`, so searches, chains, includes, histories and operations all are filtered
here. It inherits nothing from `Store`: a method of the store that is not defined here fails.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import datetime
from typing import Any

from bson import Timestamp

from app.authentication.scopes import Action
from app.authorization import judged_rows, write_check
from app.authorization.access import Access, Sight
from app.authorization.candidates import Candidates, Read, candidates
from app.authorization.rules import rule_of
from app.errors import Forbidden
from app.records.reader import ResourceStore
from app.records.versions import (
    CURRENT,
    Change,
    Guard,
    HistoryRange,
    ResourceVersion,
    RowBeside,
    WriteAction,
    stored_current,
    stored_version,
)
from app.runtime.mongo import Document
from app.search.deferred_condition import TooMany
from app.search.page_bytes import is_full, sizes
from app.search.parameter import Filter
from app.search.terms import EVERY
from app.store.store import Store

_VERSIONS = "versions"
# Collections of rows beside resources, with the type of the resource that each row belongs to.
_ROWS = {"group_members": "Group"}
_FIRST_BATCH, _LARGEST_BATCH = 100, 1_000
_TERMS = {"terms": 1}
_CHANGES: tuple[Action, ...] = ("u", "d")


class RestrictedStore(ResourceStore):
    def __init__(self, store: Store, access: Access) -> None:
        self._store = store
        self._access = access
        self._most = access.settings.max_chain_examined

    # Single resources

    async def read(self, resource_type: str, resource_id: str) -> ResourceVersion | None:
        return await self._current(resource_type, resource_id, "r")

    async def _current(
        self, resource_type: str, resource_id: str, action: Action
    ) -> ResourceVersion | None:
        """The current version, or a deletion that may be seen; None for a hidden one."""
        sight = await self._access.sight(resource_type, action)
        if sight is None:
            return None
        if sight.is_everything:
            return await self._store.read(resource_type, resource_id)
        row = await self._access.reads.row(resource_type, action, sight, resource_id)
        if row is None:
            return None
        stored = stored_current(resource_type, row)
        if stored.deleted:
            return stored if await self._access.seen_versions([stored], action) else None
        if sight.is_exact or await self._access.seen(resource_type, [row]):
            return stored
        return None

    async def previous(
        self, resource_type: str, resource_id: str, action: WriteAction
    ) -> ResourceVersion | None:
        found = await self.previous_many({(resource_type, resource_id): action})
        return found.get(f"{resource_type}/{resource_id}")

    async def previous_many(
        self, actions: Mapping[tuple[str, str], WriteAction]
    ) -> dict[str, ResourceVersion]:
        """The versions that the caller may replace and, for a patch, see. `commit` refuses the hidden others."""
        found: dict[str, ResourceVersion] = {}
        for kind in {key[0] for key in actions}:
            if not self._access.allows(kind, "u") and not self._access.allows(kind, "d"):
                continue
            own = {key[1]: action for key, action in actions.items() if key[0] == kind}
            rows = await self._changeable(kind, own)
            own_rows = await judged_rows.last_rows_of(self._store, kind, rows)
            old = rule_of(self._access.caller.role, kind).old
            passed = await self._access.related(kind, own_rows, old, is_own_past=True)
            for row in rows:
                if row["_id"] not in passed:
                    continue
                stored = stored_current(kind, row)
                if own[stored.id] != "patch":
                    found[stored.reference] = stored
                elif (seen := await self.read(kind, stored.id)) is not None:
                    found[stored.reference] = seen
        return found

    async def _changeable(
        self, resource_type: str, actions: Mapping[str, WriteAction]
    ) -> list[Document]:
        """The rows of these ids that scopes let the caller change; those of deleted ones, too."""
        rows: list[Document] = []
        for action in _CHANGES:
            ids = [each for each, how in actions.items() if (how == "delete") == (action == "d")]
            if ids and self._access.allows(resource_type, action):
                where: list[Filter] = [{"_id": {"$in": ids}}]
                within = self._access.restrictions.filters(resource_type, action)
                if within:
                    where.append({"$or": [{"deleted": True}, *within]})
                rows += await self._store.find(
                    resource_type, {"$and": where}, projection=CURRENT | _TERMS
                )
        return rows

    async def vread(
        self, resource_type: str, resource_id: str, version: int
    ) -> ResourceVersion | None:
        if not self._access.allows(resource_type, "r"):
            return None
        stored = await self._store.vread(resource_type, resource_id, version)
        if stored is None or not await self._access.seen_versions([stored], "r"):
            return None
        return stored

    async def read_many(self, keys: Collection[tuple[str, str]]) -> dict[str, ResourceVersion]:
        """Without deleted resources: their rows have no terms to judge by."""
        by_type: dict[str, list[str]] = {}
        for resource_type, resource_id in keys:
            by_type.setdefault(resource_type, []).append(resource_id)
        found: dict[str, ResourceVersion] = {}
        for resource_type, ids in by_type.items():
            where = {"_id": {"$in": ids}, "terms": EVERY}
            for row in await self._look(resource_type, where, "r", projection=CURRENT):
                stored = stored_current(resource_type, row)
                found[stored.reference] = stored
        return found

    # Histories

    async def history(
        self, range_: HistoryRange, limit: int, *, for_page: bool = False
    ) -> list[ResourceVersion]:
        """An instance's versions need the right to read it, those of types the right to search. Raises TooMany."""
        action: Action = "r" if range_.id else "s"
        found: list[ResourceVersion] = []
        examined, size = 0, max(limit, 1)
        while len(found) < limit:
            batch = await self._store.history(range_, size, for_page=for_page)
            found += await self._access.seen_versions(batch, action)
            examined += len(batch)
            is_cut = for_page and is_full(len(each.text) for each in batch)
            if len(batch) < size and not is_cut:
                break
            if for_page and is_full(len(each.text) for each in found):
                break
            if examined > self._most:
                raise TooMany
            last = batch[-1]
            before = (last.at, last.type, last.id, last.version)
            range_ = _before(range_, before)
            size = min(max(2 * size, _FIRST_BATCH), _LARGEST_BATCH)
        return found[:limit]

    async def history_total(self, range_: HistoryRange) -> int | None:
        """Always None: a total would mean judging every version."""
        return None

    # Searches

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
        if resource_type in _ROWS:
            return await self._rows(resource_type, filter_, sort, limit, projection)
        return await self._look(
            resource_type,
            filter_,
            "s",
            sort=sort,
            limit=limit,
            projection=projection,
            naive=naive,
            for_page=for_page,
        )

    async def _look(
        self,
        resource_type: str,
        filter_: Document,
        action: Action,
        *,
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
        projection: Document | None = None,
        naive: bool = False,
        for_page: bool = False,
    ) -> list[Document]:
        sight = await self._access.sight(resource_type, action)
        if sight is None:
            return []
        where = _narrowed(filter_, sight)
        if not sight.is_exact and projection is not None:
            projection = projection | _TERMS
        rows = await self._store.find(
            resource_type,
            where,
            sort=sort,
            limit=limit,
            projection=projection,
            naive=naive,
            for_page=for_page,
        )
        if sight.is_exact:
            return rows
        seen = await self._seen(resource_type, rows)
        is_all = len(rows) < limit and not (for_page and is_full(sizes(rows)))
        if len(seen) == len(rows) or not limit or is_all:
            return seen
        options = {"sort": sort, "projection": projection, "naive": naive}
        return await self._filled(resource_type, where, limit, options, for_page=for_page)

    async def _filled(
        self,
        resource_type: str,
        where: Filter,
        limit: int,
        options: dict[str, Any],
        *,
        for_page: bool,
    ) -> list[Document]:
        """Visible rows up to the limit, from as many candidates as that takes. Raises TooMany."""
        found: list[Document] = []
        size = _FIRST_BATCH
        async with self._candidates(resource_type, where, **options) as those:
            while len(found) < limit and (rows := await those.seen(size)) is not None:
                found += rows
                if for_page and is_full(sizes(found)):
                    break
                size = min(2 * size, _LARGEST_BATCH)
        return found[:limit]

    def _candidates(
        self, resource_type: str, where: Filter, **options: Any
    ) -> AbstractAsyncContextManager[Candidates]:
        return candidates(
            self._store, self._access, resource_type, where, most=self._most, **options
        )

    async def _seen(self, resource_type: str, rows: list[Document]) -> list[Document]:
        if not rows:
            return rows
        ids = await self._access.seen(resource_type, [row for row in rows if "terms" in row])
        return [row for row in rows if row["_id"] in ids]

    async def _rows(
        self,
        collection: str,
        filter_: Document,
        sort: Sequence[tuple[str, int]],
        limit: int,
        projection: Document | None,
    ) -> list[Document]:
        """The rows beside resources that may be seen. Raises TooMany."""
        rows = await self._store.find(
            collection, filter_, sort=sort, projection=projection, limit=self._most + 1
        )
        if len(rows) > self._most:
            raise TooMany
        owners = list({row["_id"]["g"] for row in rows})
        found = await self._look(
            _ROWS[collection],
            {"_id": {"$in": owners}, "terms": EVERY},
            "s",
            projection={"_id": 1},
        )
        own = {row["_id"] for row in found}
        seen = [row for row in rows if row["_id"]["g"] in own]
        return seen[:limit] if limit else seen

    @asynccontextmanager
    async def batches(
        self,
        resource_type: str,
        filter_: Document,
        *,
        sort: Sequence[tuple[str, int]] = (),
        projection: Document | None = None,
        read_ahead: int = 200,
        naive: bool = False,
    ) -> AsyncIterator[Read]:
        options: dict[str, Any] = {"sort": sort, "read_ahead": read_ahead, "naive": naive}
        if resource_type == _VERSIONS:
            async with self._store.batches(
                resource_type, filter_, projection=projection, **options
            ) as read:
                yield _those(read, self._seen_versions)
            return
        sight = await self._access.sight(resource_type, "s")
        if sight is None:
            yield _nothing
            return
        where = _narrowed(filter_, sight)
        if sight.is_exact:
            async with self._store.batches(
                resource_type, where, projection=projection, **options
            ) as read:
                yield read
            return
        if projection is not None:
            projection = projection | _TERMS
        async with candidates(
            self._store,
            self._access,
            resource_type,
            where,
            most=None,
            projection=projection,
            **options,
        ) as found:

            async def read_seen(size: int) -> list[Document]:
                while (rows := await found.seen(size)) is not None:
                    if rows:
                        return rows
                return []

            yield read_seen

    async def _seen_versions(self, rows: list[Document]) -> list[Document]:
        versions = [stored_version(row) for row in rows]
        seen = {(s.type, s.id, s.version) for s in await self._access.seen_versions(versions, "s")}
        return [row for row in rows if (row["_id"]["t"], row["_id"]["i"], row["_id"]["v"]) in seen]

    async def find_together(
        self, parts: Sequence[tuple[str, Document, Document]]
    ) -> list[list[Document]]:
        return [
            await self.find(collection, filter_, projection=projection)
            for collection, filter_, projection in parts
        ]

    async def count(self, resource_type: str, filter_: Document, limit: int = 0) -> int:
        if resource_type in _ROWS:
            return len(await self._rows(resource_type, filter_, (), limit, {"_id": 1}))
        sight = await self._access.sight(resource_type, "s")
        if sight is None:
            return 0
        if sight.is_exact:
            return await self._store.count(resource_type, _narrowed(filter_, sight), limit)
        total = 0
        async for rows in self._all(resource_type, _narrowed(filter_, sight)):
            total += len(rows)
            if limit and total >= limit:
                return limit
        return total

    async def terms_among(
        self, resource_type: str, filter_: Document, terms: Sequence[str]
    ) -> list[str]:
        sight = await self._access.sight(resource_type, "s")
        if sight is None:
            return []
        where = _narrowed(filter_, sight)
        if sight.is_exact:
            return await self._store.terms_among(resource_type, where, terms)
        wanted, found = set(terms), set[str]()
        async for rows in self._all(resource_type, where):
            found |= {term for row in rows for term in row["terms"] if term in wanted}
            if found == wanted:
                break
        return sorted(found)

    async def terms(self, resource_type: str, prefix: str) -> list[str]:
        found: set[str] = set()
        sight = await self._access.sight(resource_type, "s")
        if sight is not None:
            if sight.is_everything:
                return await self._store.terms(resource_type, prefix)
            async for rows in self._all(resource_type, _narrowed({"terms": EVERY}, sight)):
                found |= {t for row in rows for t in row["terms"] if t.startswith(prefix)}
        return sorted(found)

    async def _all(self, resource_type: str, where: Filter) -> AsyncIterator[list[Document]]:
        """The visible rows of all that match, with their terms. Raises TooMany."""
        async with self._candidates(resource_type, where, projection=_TERMS) as found:
            while (rows := await found.seen(_LARGEST_BATCH)) is not None:
                yield rows

    async def types(self) -> list[str]:
        """The types that the caller may search."""
        return [each for each in await self._store.types() if self._access.allows(each, "s")]

    async def horizon(self) -> datetime:
        return await self._store.horizon()

    async def cluster_time(self) -> Timestamp:
        return await self._store.cluster_time()

    async def guards(self, *criteria: str) -> tuple[Guard, ...]:
        return await self._store.guards(*criteria)

    # Methods for the server alone

    async def explain(
        self,
        resource_type: str,
        filter_: Document,
        *,
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
    ) -> Document:
        raise Forbidden("How a search runs tells of what this client may not see")

    async def annotate(
        self, resource_type: str, name: str, notes: Mapping[tuple[str, int], str]
    ) -> None:
        raise _no_part()

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
        raise _no_part()

    # The write

    async def commit(
        self,
        changes: Sequence[Change],
        guards: Sequence[Guard] = (),
        beside: Sequence[RowBeside] = (),
    ) -> list[ResourceVersion]:
        """Commit as the store does. Raises Forbidden where the caller may not make one of the changes."""
        await write_check.check(self._access, changes)
        sent = [replace(each, sender=self._access.sender(each.type)) for each in changes]
        return await self._store.commit(sent, guards, beside)

    def reserving(self, keys: Collection[str]) -> AbstractAsyncContextManager[None]:
        return self._store.reserving(keys)


def _narrowed(filter_: Filter, sight: Sight) -> Filter:
    return {"$and": [filter_, *sight.filters]} if sight.filters else filter_


def _those(read: Read, judge: Callable[[list[Document]], Awaitable[list[Document]]]) -> Read:
    """A reader that skips batches without a visible row."""

    async def read_seen(size: int) -> list[Document]:
        while rows := await read(size):
            if seen := await judge(rows):
                return seen
        return []

    return read_seen


async def _nothing(size: int) -> list[Document]:
    return []


def _before(range_: HistoryRange, last: tuple[datetime, str, str, int]) -> HistoryRange:
    return HistoryRange(range_.type, range_.id, range_.since, range_.until, range_.period, last)


def _no_part() -> Forbidden:
    return Forbidden("This is no part of what a client may do")
