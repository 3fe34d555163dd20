"""The only module that touches resource collections; `commit` is the only write.

A current version lives in the collection named after its type, every version in `versions`, and each commit leaves
one row per change in `events`: all three in one transaction, so there is no 2xx without a commit, no event without a
commit and no commit without an event (docs/decisions/0002-one-write-path.md).

    <Type>     {_id: id, v, at, text, deleted?, private?, by?: [organizations that wrote it], **extract(resource)}
    versions   {_id: {t: type, i: id, v}, at, method, text?}
    events     {_id, type, id, version, method, at, state, owner, lease_until, attempts,
                react_until?, topic?, key?, trigger?, context?}; the last four of those that no write has made
    group_members  {_id: {g: id of the Group, m: term}, when?}, see app/search/group_members.py
    guards     what conditional writes compare, see app/store/guards.py
    settings   {_id: name, ...}: what all processes on the database share
"""

from __future__ import annotations

import logging
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any

from bson import Timestamp
from cryptography.fernet import Fernet
from pymongo import (
    ASCENDING,
    DESCENDING,
    UpdateOne,
)

from app.audit.log import AuditLog
from app.fhir import json as fhir_json
from app.fhir.element_definitions import RESOURCE_TYPES
from app.fhir.json import Resource
from app.records import versions
from app.records.reader import READ_AHEAD, ResourceStore
from app.records.versions import (
    CURRENT,
    Change,
    Guard,
    HistoryRange,
    ResourceVersion,
    RowBeside,
    WriteAction,
    current_since,
    stored_current,
    stored_version,
)
from app.runtime import snapshot
from app.runtime.batched_reads import BatchedReads
from app.runtime.cluster import new_owner
from app.runtime.mongo import Document, Mongo, max_time_ms
from app.runtime.secrets import Secrets
from app.search import group_members
from app.search.extract import extract
from app.search.page_bytes import Measure
from app.search.search_state import SearchState
from app.search.terms import senders
from app.store.commit import Commits
from app.store.events import load_event

log = logging.getLogger(__name__)

# Beyond this the search fields would not fit into MongoDB's 16 MiB with the text.
MAX_RESOURCE_BYTES = 15 * 1024 * 1024
# What a document has beside its search fields.
_NOT_SEARCHED = frozenset({"_id", "v", "at", "text", "deleted", "private", "by"})


class Store(ResourceStore):
    """Reads and the one write path. `listeners` hear each committed batch of events in this process, at once."""

    def __init__(
        self,
        mongo: Mongo,
        max_resource_bytes: int = MAX_RESOURCE_BYTES,
        *,
        max_bytes_of: Mapping[str, int] | None = None,
        owner: str | None = None,
        audit: AuditLog | None = None,
        reacting: Collection[str] = (),
        search_state: SearchState | None = None,
        secrets: Secrets | None = None,
    ) -> None:
        """`owner` names the process, `audit` is where its writes are put on record. Resources of the types in
        `max_bytes_of` may be as large as it says, others `max_resource_bytes`.

        `secrets` are those that all processes on the database share; without them conditional writes are guarded
        against those of this store alone.

        The events of the types in `reacting`, and those raised for a topic in it, wait for somebody who reacts to them.
        `search_state` says what is extracted from all that is written.
        """
        self._mongo = mongo
        self.owner = owner or new_owner()
        self.search_state = search_state or SearchState()
        self._versions = mongo.collection(versions.COLLECTION)
        # Of each type that was read, the reads of its current versions.
        self._reads: dict[str, BatchedReads[str, Document | None]] = {}
        secrets = secrets or Secrets([Fernet.generate_key().decode()])
        self._commits = Commits(
            mongo, self.owner, max_resource_bytes, max_bytes_of or {}, audit, reacting, secrets
        )
        self.cluster = self._commits.cluster
        self.commit_watch = self._commits.commit_watch
        self.listeners = self._commits.listeners

    async def prepare(self) -> None:
        """Make the collections that every write needs, where they are missing."""
        await self._commits.prepare()

    # Reads

    async def read(self, resource_type: str, resource_id: str) -> ResourceVersion | None:
        """The current version, also where that is a deletion; None where the id was never used."""
        reads = self._reads.get(resource_type)
        if reads is None:
            reads = BatchedReads(partial(self._read_together, resource_type), None)
            self._reads[resource_type] = reads
        document = await reads.get(resource_id)
        return None if document is None else stored_current(resource_type, document)

    async def _read_together(self, resource_type: str, ids: list[str]) -> dict[str, Document]:
        collection = self._mongo.collection(resource_type)
        if len(ids) == 1:
            document = await collection.find_one({"_id": ids[0]}, CURRENT)
            return {} if document is None else {ids[0]: document}
        cursor = collection.find({"_id": {"$in": ids}}, CURRENT)
        return {document["_id"]: document for document in await cursor.to_list(None)}

    async def previous(
        self, resource_type: str, resource_id: str, action: WriteAction
    ) -> ResourceVersion | None:
        """The current version as what a write of this kind is about to change; as `read` where nobody is limited."""
        return await self.read(resource_type, resource_id)

    async def previous_many(
        self, actions: Mapping[tuple[str, str], WriteAction]
    ) -> dict[str, ResourceVersion]:
        """`previous` of several, by reference."""
        return await self.read_many(actions.keys())

    async def vread(
        self, resource_type: str, resource_id: str, version: int
    ) -> ResourceVersion | None:
        """That very version, or None."""
        key = {"t": resource_type, "i": resource_id, "v": version}
        document = await self._versions.find_one({"_id": key})
        return None if document is None else stored_version(document)

    async def history(
        self, range_: HistoryRange, limit: int, *, for_page: bool = False
    ) -> list[ResourceVersion]:
        """Versions in the range, newest first, at most `limit`; `for_page` as in `find`."""
        sort = [("_id", DESCENDING)] if range_.id else [("at", DESCENDING), ("_id", DESCENDING)]
        filter_ = range_.filter(page=True)
        if range_.period:
            pipeline = current_since(range_.period[0], filter_, sort, limit)
            documents = await self._mongo.aggregate(self._versions, pipeline)
        else:
            cursor = self._versions.find(filter_).max_time_ms(max_time_ms.get())
            cursor = cursor.sort(sort).limit(limit)
            documents = await (_one_page(cursor) if for_page else cursor.to_list(None))
        return [stored_version(document) for document in documents]

    async def history_total(self, range_: HistoryRange) -> int | None:
        """How many versions the range holds over all pages; None for a period, where counting means looking at each."""
        if range_.period:
            return None
        filter_ = range_.filter(page=False)
        total: int = await self._versions.count_documents(filter_, **_within())
        return total

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
        """Current documents that match a MongoDB filter, at most `limit` (0: all).

        With `naive` times come without their zone, which is UTC: decoding a page takes a third. Those `for_page` end
        with the first that does not fit on the page any more.
        """
        if naive and limit and snapshot.current() is None:
            page: Document = {"find": resource_type, "filter": filter_, "limit": limit}
            page |= {"sort": dict(sort)} if sort else {}
            page |= {"projection": projection} if projection else {}
            rows = await self._mongo.find_at_once(page)
            if rows is not None:
                return rows
        cursor = await self._find(resource_type, filter_, sort, limit, projection, naive=naive)
        if for_page:
            return await _one_page(cursor)
        documents: list[Document] = await cursor.to_list(None)
        return documents

    async def _find(
        self,
        resource_type: str,
        filter_: Document,
        sort: Sequence[tuple[str, int]],
        limit: int,
        projection: Document | None,
        *,
        naive: bool,
    ) -> Any:
        """A cursor; on the database as it was, inside `snapshot.reading_at`."""
        time = snapshot.current()
        if time is not None:
            return await snapshot.find(
                self._mongo,
                resource_type,
                filter_,
                time=time,
                sort=sort,
                limit=limit,
                projection=projection,
            )
        cursor = self._mongo.collection(resource_type, naive=naive).find(filter_, projection)
        if sort:
            cursor = cursor.sort(list(sort))
        cursor = cursor.max_time_ms(max_time_ms.get())
        return cursor.limit(limit) if limit else cursor

    async def explain(
        self,
        resource_type: str,
        filter_: Document,
        *,
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
    ) -> Document:
        """How MongoDB runs `find` with the same arguments: the winning plan and what it examined."""
        find: Document = {"find": resource_type, "filter": filter_, "limit": limit}
        if sort:
            find["sort"] = dict(sort)
        plan: Document = await self._mongo.db.command(
            {"explain": find, "verbosity": "executionStats"}
        )
        return plan

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
        """A function that reads the next documents that match, at most as many as it is told; none at the end.

        `naive` as in `find`.
        """
        cursor = await self._find(resource_type, filter_, sort, 0, projection, naive=naive)
        cursor = cursor.batch_size(read_ahead)

        async def read(size: int) -> list[Document]:
            documents: list[Document] = await cursor.to_list(size)
            return documents

        try:
            yield read
        finally:
            await cursor.close()

    async def terms_among(
        self, resource_type: str, filter_: Document, terms: Sequence[str]
    ) -> list[str]:
        """Those of the terms that any document has that matches a MongoDB filter."""
        pipeline: list[Document] = [
            {"$match": filter_},
            {"$project": {"_id": 0, "m": {"$setIntersection": ["$terms", list(terms)]}}},
            {"$unwind": "$m"},
            {"$group": {"_id": "$m"}},
        ]
        time = snapshot.current()
        if time is not None:
            found = await snapshot.aggregate(self._mongo, resource_type, pipeline, time)
        else:
            found = await self._mongo.aggregate(self._mongo.collection(resource_type), pipeline)
        return [document["_id"] for document in found]

    async def find_together(
        self, parts: Sequence[tuple[str, Document, Document]]
    ) -> list[list[Document]]:
        """What several `find`s with (collection, filter, projection) find, in one round: it costs hardly more than one.

        For a few documents each: what they find shares one answer.
        """
        pipeline: list[Document] = []
        for number, (collection, filter_, projection) in enumerate(parts):
            shown = {**projection, "part": {"$literal": number}}
            own: list[Document] = [{"$match": filter_}, {"$project": shown}]
            pipeline += [{"$unionWith": {"coll": collection, "pipeline": own}}] if pipeline else own
        found: list[list[Document]] = [[] for _ in parts]
        first, *_ = parts
        for document in await self._mongo.aggregate(self._mongo.collection(first[0]), pipeline):
            found[document.pop("part")].append(document)
        return found

    async def types(self) -> list[str]:
        """The resource types that were ever written, in alphabetical order."""
        names = await self._mongo.db.list_collection_names()
        return sorted(RESOURCE_TYPES.intersection(names))

    async def read_many(self, keys: Collection[tuple[str, str]]) -> dict[str, ResourceVersion]:
        """The current versions, deletions included, of these types and ids, by reference."""
        by_type: dict[str, list[str]] = {}
        for resource_type, resource_id in keys:
            by_type.setdefault(resource_type, []).append(resource_id)
        found: dict[str, ResourceVersion] = {}
        for resource_type, ids in by_type.items():
            documents = await self.find(resource_type, {"_id": {"$in": ids}}, projection=CURRENT)
            for document in documents:
                stored = stored_current(resource_type, document)
                found[stored.reference] = stored
        return found

    async def count(self, resource_type: str, filter_: Document, limit: int = 0) -> int:
        """How many current documents match a MongoDB filter, counting no further than `limit` (0: all)."""
        time = snapshot.current()
        if time is not None:
            return await snapshot.count(self._mongo, resource_type, filter_, limit, time)
        options = {"limit": limit} if limit else {}
        options |= _within()
        count: int = await self._mongo.collection(resource_type).count_documents(filter_, **options)
        return count

    async def terms(self, resource_type: str, prefix: str) -> list[str]:
        """The distinct search terms of a type that begin with a prefix."""
        bounds = {"$elemMatch": {"$gte": prefix, "$lt": prefix + "\U0010ffff"}}
        found: list[str] = await self._mongo.collection(resource_type).distinct(
            "terms", {"terms": bounds}, **_within()
        )
        return [term for term in found if term.startswith(prefix)]

    async def reindex(
        self, resource_type: str, after: str, limit: int
    ) -> tuple[str | None, int, list[str]]:
        """Extract the next resources by id anew; returns the last id, None at the end, how many changed, which fail.

        Only where nobody wrote a newer version meanwhile, which was extracted then. One that cannot be read stays as it
        is.
        """
        documents = await self.find(
            resource_type, {"_id": {"$gt": after}}, sort=[("_id", ASCENDING)], limit=limit
        )
        updates: list[UpdateOne] = []
        failed: list[str] = []
        for document in documents:
            if "text" not in document:
                continue
            try:
                change = self._extracted_anew(resource_type, document)
            except Exception as error:
                reference = f"{resource_type}/{document['_id']}"
                told = {"action": "reindex", "id": reference, "error": type(error).__name__}
                log.exception("a resource cannot be indexed", extra=told)
                failed.append(reference)
                continue
            if change:
                updates.append(UpdateOne({"_id": document["_id"], "v": document["v"]}, change))
        if updates:
            await self._mongo.collection(resource_type).bulk_write(updates, ordered=False)
        return documents[-1]["_id"] if documents else None, len(updates), failed

    def _extracted_anew(self, resource_type: str, document: Document) -> Document:
        """The change of a current document whose search fields are not what its text says; empty for others."""
        with self.search_state.applied():
            fields = _search_fields(resource_type, fhir_json.decode_stored(document["text"]))
        fields["terms"] += senders(document.get("by", ()))
        gone = document.keys() - fields.keys() - _NOT_SEARCHED
        new = {name: value for name, value in fields.items() if document.get(name) != value}
        change: Document = {"$set": new} if new else {}
        return change | ({"$unset": dict.fromkeys(gone, "")} if gone else {})

    async def cluster_time(self) -> Timestamp:
        """What `snapshot.reading_at` takes: a time that shows everything acknowledged so far."""
        return await snapshot.newest(self._mongo)

    async def horizon(self) -> datetime:
        """The commit horizon (app/runtime/cluster.py)."""
        return await self.cluster.horizon()

    async def guards(self, *criteria: str) -> tuple[Guard, ...]:
        """What a conditional write compares. Take it before the search that decides what to write."""
        return await self._commits.guards.of(*criteria)

    async def annotate(
        self, resource_type: str, name: str, notes: Mapping[tuple[str, int], str]
    ) -> None:
        """Keep derived text in `private` of current versions, by id and version; one that has moved on stays as it is.

        No part of the resource: neither a version nor an event.
        """
        if notes:
            await self._mongo.collection(resource_type).bulk_write(
                [
                    UpdateOne({"_id": each, "v": version}, {"$set": {f"private.{name}": text}})
                    for (each, version), text in notes.items()
                ],
                ordered=False,
            )

    # The write

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
        with self.search_state.applied():
            return await self._commits.commit(changes, guards, beside)

    def reserving(self, keys: Collection[str]) -> AbstractAsyncContextManager[None]:
        """Let other writes of these keys, of any process, wait for those of this task."""
        return self.cluster.reserving(keys)

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
        about = ResourceVersion(*reference, at, "")
        told: Document = {"context": list(context)}
        if trigger is not None:
            told["trigger"] = dict(trigger)
        if only_for:
            told["only_for"] = list(only_for)
        row = await self._commits.raise_event(about, topic, key=key, at=at, told=told)
        if row is None:
            return False
        with self.search_state.applied():
            event = await load_event(self, row)
            for listener in self.listeners:
                listener([event])
        return True


async def _one_page(cursor: Any) -> list[Document]:
    """The documents of a cursor up to the first that does not fit on a page."""
    found: list[Document] = []
    measure = Measure()
    try:
        async for document in cursor:
            found.append(document)
            if measure.passes(len(document.get("text", ""))):
                break
    finally:
        await cursor.close()
    return found


def _within() -> dict[str, int]:
    """The option that keeps a read within the time its request has."""
    limit = max_time_ms.get()
    return {} if limit is None else {"maxTimeMS": limit}


def _search_fields(resource_type: str, resource: Resource) -> Document:
    """What lies beside a resource's text in its document; `rows` are kept in a collection of their own."""
    fields = extract(resource_type, resource)
    group_members.take_aside(fields)
    return fields
