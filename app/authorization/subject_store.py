"""The store as far as it is about the patients of one matter: what is theirs alone, and the directory.

What the server does of itself runs with it: reactions, timers, documents, summaries. References that clients write
steer these, and clients must not learn through them what they could not read. What is left out is absent, as it is in a
restricted store (restricted_store.py), around which this one may lie. docs/decisions/0023-subject-store.md
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from bson import Timestamp

from app.authorization.relations import DocumentRow, about, facts_of, id_of, patients_of, traits_of
from app.authorization.rules import room_of
from app.consent.labels import Labels
from app.errors import Forbidden
from app.fhir.json import Resource
from app.records.reader import READ_AHEAD, ResourceStore
from app.records.versions import (
    Change,
    Guard,
    HistoryRange,
    ResourceVersion,
    RowBeside,
    WriteAction,
)
from app.runtime.mongo import Document
from app.search.parameter import Filter, SearchScope
from app.search.parameters import reference
from app.search.search_parameters import parameters

_TERMS = {"terms": 1}
_NOWHERE: Filter = {"_id": {"$in": []}}
# About no person: everybody reads these anyway.
_EVERYBODYS = frozenset({"directory", "reference"})
_MEMBERS = "group_members"


# Whether a record, given as a reference and its labels, may be told.
IsTold = Callable[[str, Labels], bool]


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom a matter is about, as references: patients, and resources about nobody that are `own` to the matter.

    With `is_told` what may not be told does not count either.
    """

    patients: frozenset[str] = frozenset()
    own: frozenset[str] = frozenset()
    is_told: IsTold | None = None


def is_everybodys(resource_type: str) -> bool:
    """Whether a type is of the directory or a definition, which are about no person."""
    return room_of(resource_type) in _EVERYBODYS


def patients_named(resource_type: str, resource: Resource, base_url: str) -> frozenset[str]:
    """The patients (`Patient/p1`) that a resource, which has an id, is about."""
    return patients_of(resource_type, facts_of(resource_type, resource["id"], resource), base_url)


class SubjectStore(ResourceStore):
    """Judges by what was read, so it costs no reads of its own.

    A resource counts if all patients that it is about are the subject's; one that is about nobody, if it is the
    subject's own. The latter are found by their ids alone, and no search finds them.
    """

    def __init__(self, store: ResourceStore, subject: Subject, base_url: str) -> None:
        self._store = store
        self._subject = subject
        self._base_url = base_url

    # Single resources

    async def read(self, resource_type: str, resource_id: str) -> ResourceVersion | None:
        return self._counting(await self._store.read(resource_type, resource_id))

    async def vread(
        self, resource_type: str, resource_id: str, version: int
    ) -> ResourceVersion | None:
        return self._counting(await self._store.vread(resource_type, resource_id, version))

    async def read_many(self, keys: Collection[tuple[str, str]]) -> dict[str, ResourceVersion]:
        found = await self._store.read_many(keys)
        return {key: each for key, each in found.items() if self._counting(each)}

    async def history(
        self, range_: HistoryRange, limit: int, *, for_page: bool = False
    ) -> list[ResourceVersion]:
        """Those of the next versions that count: there may be more behind them."""
        found = await self._store.history(range_, limit, for_page=for_page)
        return [each for each in found if self._counting(each)]

    async def history_total(self, range_: HistoryRange) -> int | None:
        return None

    def _counting(self, stored: ResourceVersion | None) -> ResourceVersion | None:
        """The version, or None for one about others; a deletion has nothing in it."""
        if stored is None or stored.deleted or is_everybodys(stored.type):
            return stored
        row = facts_of(stored.type, stored.id, stored.resource())
        return stored if self._is_of_subject(stored.type, row) else None

    def _is_of_subject(self, resource_type: str, row: DocumentRow) -> bool:
        traits = traits_of(resource_type, {"terms": (), **row}, self._base_url)
        reference = f"{resource_type}/{id_of(row)}"
        if traits.patients and not traits.patients <= self._subject.patients:
            return False
        if not traits.patients and reference not in self._subject.own:
            return False
        is_told = self._subject.is_told
        return is_told is None or is_told(reference, traits.labels)

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
        """A page comes whole: its reader cuts it."""
        within = self._within(resource_type)
        if within == _NOWHERE:
            return []
        asked = limit
        while True:
            rows = await self._store.find(
                resource_type,
                _both(filter_, within),
                sort=sort,
                limit=asked,
                projection=_with_terms(projection),
                naive=naive,
            )
            found = self._judged(resource_type, rows)
            if not limit or len(found) >= limit or len(rows) < asked:
                return found[:limit] if limit else found
            asked *= 2  # some of them were about others besides

    @asynccontextmanager
    async def batches(
        self,
        resource_type: str,
        filter_: Document,
        *,
        sort: Sequence[tuple[str, int]] = (),
        projection: Document | None = None,
        read_ahead: int = READ_AHEAD,
        naive: bool = False,
    ) -> AsyncIterator[Callable[[int], Awaitable[list[Document]]]]:
        options: dict[str, Any] = {"sort": sort, "read_ahead": read_ahead, "naive": naive}
        where = _both(filter_, self._within(resource_type))
        async with self._store.batches(
            resource_type, where, projection=_with_terms(projection), **options
        ) as read:

            async def read_judged(size: int) -> list[Document]:
                while rows := await read(size):
                    if found := self._judged(resource_type, rows):
                        return found
                return []

            yield read_judged

    async def find_together(
        self, parts: Sequence[tuple[str, Document, Document]]
    ) -> list[list[Document]]:
        narrowed = [
            (kind, _both(filter_, self._within(kind)), projection | _TERMS)
            for kind, filter_, projection in parts
        ]
        found = await self._store.find_together(narrowed)
        return [self._judged(part[0], rows) for part, rows in zip(parts, found, strict=True)]

    async def count(self, resource_type: str, filter_: Document, limit: int = 0) -> int:
        return len(await self.find(resource_type, filter_, limit=limit, projection={"_id": 1}))

    def _within(self, resource_type: str) -> Filter:
        """The filter on what may be about the patients, which `_judged` then looks at."""
        if is_everybodys(resource_type):
            return {}
        patients = sorted(self._subject.patients)
        if resource_type == "Patient":
            return {"_id": {"$in": [each.partition("/")[2] for each in patients]}}
        is_rows = resource_type == _MEMBERS
        by = parameters("Group")["member"] if is_rows else about(resource_type)
        if by is None or not patients:
            return _NOWHERE
        scope = SearchScope(self._base_url, datetime.now(UTC))
        terms = list(reference.local(by, patients, scope).equal)
        return {"_id.m" if is_rows else "terms": {"$in": terms}}

    def _judged(self, resource_type: str, rows: list[Document]) -> list[Document]:
        if is_everybodys(resource_type) or resource_type == _MEMBERS:
            return rows
        return [row for row in rows if self._is_of_subject(resource_type, row)]

    # What is asked of all that is stored

    async def terms_among(
        self, resource_type: str, filter_: Document, terms: Sequence[str]
    ) -> list[str]:
        raise _beyond()

    async def terms(self, resource_type: str, prefix: str) -> list[str]:
        raise _beyond()

    async def types(self) -> list[str]:
        raise _beyond()

    async def explain(
        self,
        resource_type: str,
        filter_: Document,
        *,
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
    ) -> Document:
        raise _beyond()

    async def cluster_time(self) -> Timestamp:
        return await self._store.cluster_time()

    async def horizon(self) -> datetime:
        return await self._store.horizon()

    # The write

    async def previous(
        self, resource_type: str, resource_id: str, action: WriteAction
    ) -> ResourceVersion | None:
        """As it is: `commit` refuses one about others."""
        return await self._store.previous(resource_type, resource_id, action)

    async def previous_many(
        self, actions: Mapping[tuple[str, str], WriteAction]
    ) -> dict[str, ResourceVersion]:
        return await self._store.previous_many(actions)

    async def guards(self, *criteria: str) -> tuple[Guard, ...]:
        return await self._store.guards(*criteria)

    async def commit(
        self,
        changes: Sequence[Change],
        guards: Sequence[Guard] = (),
        beside: Sequence[RowBeside] = (),
    ) -> list[ResourceVersion]:
        """Commit as the store does. Raises Forbidden for what is or was about others."""
        for change in changes:
            before = change.previous
            old = None if before is None or before.deleted else before.resource()
            for version in (old, change.resource):
                named = version and patients_named(
                    change.type, {**version, "id": change.id}, self._base_url
                )
                if named and not named <= self._subject.patients:
                    raise _beyond()
        return await self._store.commit(changes, guards, beside)

    def reserving(self, keys: Collection[str]) -> AbstractAsyncContextManager[None]:
        return self._store.reserving(keys)

    async def annotate(
        self, resource_type: str, name: str, notes: Mapping[tuple[str, int], str]
    ) -> None:
        raise _beyond()

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
        return await self._store.raise_event(
            reference,
            topic,
            key=key,
            at=at,
            trigger=trigger,
            context=context,
            only_for=only_for,
        )


def _both(filter_: Filter, within: Filter) -> Filter:
    return {"$and": [filter_, within]} if within else filter_


def _with_terms(projection: Document | None) -> Document | None:
    return None if projection is None else projection | _TERMS


def _beyond() -> Forbidden:
    return Forbidden("This is beyond what is done for these patients")
