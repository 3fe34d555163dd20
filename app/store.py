"""The only module that touches resource collections; `commit` is the only write.

A current version lives in the collection named after its type, every version in `versions`, and each commit leaves
one row per change in `events`: all three in one transaction, so there is no 2xx without a commit, no event without a
commit and no commit without an event (docs/decisions/0002-one-write-path.md).

    <Type>     {_id: id, v, at, text, deleted?, private?, **extract(resource)}
    versions   {_id: {t: type, i: id, v}, at, method, text?}
    events     {_id, type, id, version, method, at, state, owner, lease_until, attempts}
    group_members  {_id: {g: id of the Group, m: term}}, see app/search/cohort.py
    guards     {_id: type and criteria, n}: what conditional writes compare, so that two of them cannot both see nothing
    settings   {_id: name, ...}: what all processes on the database share
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
from bson import MaxKey, ObjectId, Timestamp
from pymongo import (
    ASCENDING,
    DESCENDING,
    IndexModel,
    InsertOne,
    ReplaceOne,
    ReturnDocument,
    UpdateOne,
)
from pymongo.errors import (
    BulkWriteError,
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    OperationFailure,
)

from app import fhir_json, snapshot
from app.errors import TooLarge
from app.fhir_json import Resource
from app.group_commit import GroupCommit
from app.layout import RESOURCE_TYPES
from app.mongo import Document, Mongo, Session
from app.presence import Presence
from app.search import cohort
from app.search.cursor import trust
from app.search.extract import extract, index_models

Method = Literal["create", "update", "patch", "delete"]

# How long a committing process keeps an event to itself before another may take it over.
EVENT_LEASE = timedelta(seconds=10)
_HTTP_METHOD = {"create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}
_MILLISECOND = timedelta(milliseconds=1)
_DUPLICATE_KEY = 11000
# Beyond this the search fields would not fit into MongoDB's 16 MiB with the text.
MAX_RESOURCE_BYTES = 15 * 1024 * 1024
# Documents that a search that looks through candidates has sent at a time.
_READ_AHEAD = 200
# Rows beside a resource that one command of a transaction writes.
_ROWS_AT_ONCE = 10_000
# What a document has beside its search fields.
_NOT_SEARCHED = frozenset({"_id", "v", "at", "text", "deleted", "private"})
# What makes a Stored out of a current document.
_CURRENT = {"v": 1, "at": 1, "text": 1, "deleted": 1}


@dataclass(frozen=True, slots=True)
class Stored:
    """One version of a resource as it lies in the database; `text` is its JSON, empty where it was deleted."""

    type: str
    id: str
    version: int
    at: datetime
    text: str
    deleted: bool = False
    method: str = "PUT"

    @property
    def reference(self) -> str:
        return f"{self.type}/{self.id}"

    def resource(self) -> Resource:
        """The decoded resource, a fresh copy."""
        return fhir_json.decode_stored(self.text)


@dataclass(frozen=True, slots=True)
class Change:
    """One write, judged against `previous`: it commits only while that is still the current version.

    `private` is kept beside the current version and never becomes part of its text or of a version.
    """

    method: Method
    type: str
    id: str
    resource: Resource | None
    previous: Stored | None = None
    private: Document | None = None

    @property
    def key(self) -> str:
        return f"{self.type}/{self.id}"


@dataclass(frozen=True, slots=True)
class Guard:
    """The criteria of a conditional write and the count seen before its search ran."""

    key: str
    seen: int


class HistoryRange(msgspec.Struct, frozen=True):
    """Which versions a history asks for: of one id, of a type, or of all.

    `since` and `until` are when they were made at the earliest and at the latest; in `period`, both ends included, they
    were current at some time. `before` is where the last page ended.
    """

    type: str | None = None
    id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    period: tuple[datetime, datetime] | None = None
    before: tuple[datetime, str, str, int] | None = None

    def filter(self, *, page: bool) -> Document:
        """The MongoDB filter on `versions`; with `page`, only what follows the last page."""
        conditions: list[Document] = []
        if self.type and self.id:
            first = {"t": self.type, "i": self.id, "v": 0}
            conditions.append({"_id": {"$gte": first, "$lte": {**first, "v": MaxKey()}}})
        elif self.type:
            conditions.append({"_id.t": self.type})
        if self.since:
            conditions.append({"at": {"$gte": self.since}})
        if self.until:
            conditions.append({"at": {"$lte": self.until}})
        if self.period:
            conditions.append({"at": {"$lte": self.period[1]}})
        if page and self.before:
            at, resource_type, resource_id, version = self.before
            key = {"t": resource_type, "i": resource_id, "v": version}
            if self.id:
                conditions.append({"_id": {"$lt": key}})
            else:
                conditions.append({"$or": [{"at": {"$lt": at}}, {"at": at, "_id": {"$lt": key}}]})
        return {"$and": conditions} if conditions else {}


@dataclass(slots=True)
class Event:
    """A committed change, with the resource before and after it and their search fields."""

    id: ObjectId
    type: str
    resource_id: str
    version: int
    method: Method
    at: datetime
    resource: Resource | None
    fields: Document | None
    previous_text: str | None = None
    _previous: Resource | None = field(default=None, repr=False)
    _previous_fields: Document | None = field(default=None, repr=False)

    @property
    def previous(self) -> Resource | None:
        """The version before, decoded on first use; None where there was none or it was deleted."""
        if self._previous is None and self.previous_text:
            self._previous = fhir_json.decode_stored(self.previous_text)
        return self._previous

    @property
    def previous_fields(self) -> Document | None:
        """The search fields of the version before."""
        if self._previous_fields is None and self.previous is not None:
            self._previous_fields = extract(self.type, self.previous)
        return self._previous_fields


class VersionConflict(Exception):
    """Somebody else committed first: a version or guard that the unit was judged against has moved on."""


@dataclass(slots=True)
class _Unit:
    """What one `commit` call wants written, prepared: either all of it is written or nothing."""

    changes: Sequence[Change]
    guards: Sequence[Guard]
    stored: list[Stored] = field(default_factory=list)
    current: list[Document] = field(default_factory=list)
    rows: list[cohort.RowChange] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        return {change.key for change in self.changes} | {guard.key for guard in self.guards}

    @property
    def size(self) -> int:
        return len(self.changes)


class Store:
    """Reads and the one write path. `listeners` hear each committed batch of events in this process, at once."""

    def __init__(self, mongo: Mongo, max_resource_bytes: int = MAX_RESOURCE_BYTES) -> None:
        self._mongo = mongo
        self._max_resource_bytes = max_resource_bytes
        self.owner = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self.listeners: list[Callable[[list[Event]], None]] = []
        self._versions = mongo.collection("versions")
        self._events = mongo.collection("events")
        self._guards = mongo.collection("guards")
        self._ready: set[str] = set()
        self._making_ready = asyncio.Lock()
        self._group = GroupCommit[_Unit](self._write, hopeless=ConnectionFailure)
        self.presence = Presence(mongo, self.owner, self._times_under_way)

    async def prepare(self) -> None:
        """Make the collections that every write needs, where they are missing, and read the key of page links."""
        key = await self._mongo.collection("settings").find_one_and_update(
            {"_id": "page-links"},
            {"$setOnInsert": {"key": os.urandom(32)}},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        trust(bytes(key["key"]))
        await self._ensure("guards", [])
        await self._ensure(
            "versions",
            [
                IndexModel([("at", DESCENDING), ("_id", DESCENDING)]),
                IndexModel([("_id.t", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING)]),
            ],
        )
        await self._ensure(
            "events",
            [
                IndexModel(
                    [("state", ASCENDING), ("lease_until", ASCENDING)],
                    partialFilterExpression={"state": "pending"},
                )
            ],
        )

    # Reads

    async def read(self, resource_type: str, resource_id: str) -> Stored | None:
        """The current version, also where that is a deletion; None where the id was never used."""
        document = await self._mongo.collection(resource_type).find_one(
            {"_id": resource_id}, _CURRENT
        )
        return None if document is None else _stored_current(resource_type, document)

    async def vread(self, resource_type: str, resource_id: str, version: int) -> Stored | None:
        """That very version, or None."""
        key = {"t": resource_type, "i": resource_id, "v": version}
        document = await self._versions.find_one({"_id": key})
        return None if document is None else _stored_version(document)

    async def history(self, range_: HistoryRange, limit: int) -> list[Stored]:
        """Versions in the range, newest first, at most `limit`."""
        sort = [("_id", DESCENDING)] if range_.id else [("at", DESCENDING), ("_id", DESCENDING)]
        filter_ = range_.filter(page=True)
        if range_.period:
            pipeline = _current_since(range_.period[0], filter_, sort, limit)
            documents = await self._mongo.aggregate(self._versions, pipeline)
        else:
            documents = await self._versions.find(filter_).sort(sort).limit(limit).to_list(None)
        return [_stored_version(document) for document in documents]

    async def history_total(self, range_: HistoryRange) -> int | None:
        """How many versions the range holds over all pages; None for a period, where counting means looking at each."""
        if range_.period:
            return None
        total: int = await self._versions.count_documents(range_.filter(page=False))
        return total

    async def find(
        self,
        resource_type: str,
        filter_: Document,
        *,
        sort: Sequence[tuple[str, int]] = (),
        limit: int = 0,
        projection: Document | None = None,
    ) -> list[Document]:
        """Current documents that match a MongoDB filter, at most `limit` (0: all)."""
        cursor = await self._find(resource_type, filter_, sort, limit, projection)
        documents: list[Document] = await cursor.to_list(None)
        return documents

    async def _find(
        self,
        resource_type: str,
        filter_: Document,
        sort: Sequence[tuple[str, int]],
        limit: int,
        projection: Document | None,
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
        cursor = self._mongo.collection(resource_type).find(filter_, projection)
        if sort:
            cursor = cursor.sort(list(sort))
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
        read_ahead: int = _READ_AHEAD,
    ) -> AsyncIterator[Callable[[int], Awaitable[list[Document]]]]:
        """A function that reads the next documents that match, at most as many as it is told; none at the end."""
        cursor = await self._find(resource_type, filter_, sort, 0, projection)
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

    async def types(self) -> list[str]:
        """The resource types that were ever written, in alphabetical order."""
        names = await self._mongo.db.list_collection_names()
        return sorted(RESOURCE_TYPES.intersection(names))

    async def search(
        self,
        resource_type: str,
        filter_: Document,
        limit: int,
        sort: Sequence[tuple[str, int]] = (),
    ) -> list[Stored]:
        """Current versions that match a MongoDB filter, at most `limit`."""
        documents = await self.find(
            resource_type, filter_, sort=sort, limit=limit, projection=_CURRENT
        )
        return [_stored_current(resource_type, document) for document in documents]

    async def read_many(self, keys: Collection[tuple[str, str]]) -> dict[str, Stored]:
        """The current versions, deletions included, of these types and ids, by reference."""
        by_type: dict[str, list[str]] = {}
        for resource_type, resource_id in keys:
            by_type.setdefault(resource_type, []).append(resource_id)
        found: dict[str, Stored] = {}
        for resource_type, ids in by_type.items():
            documents = await self.find(resource_type, {"_id": {"$in": ids}}, projection=_CURRENT)
            for document in documents:
                stored = _stored_current(resource_type, document)
                found[stored.reference] = stored
        return found

    async def count(self, resource_type: str, filter_: Document, limit: int = 0) -> int:
        """How many current documents match a MongoDB filter, counting no further than `limit` (0: all)."""
        time = snapshot.current()
        if time is not None:
            return await snapshot.count(self._mongo, resource_type, filter_, limit, time)
        options = {"limit": limit} if limit else {}
        count: int = await self._mongo.collection(resource_type).count_documents(filter_, **options)
        return count

    async def terms(self, resource_type: str, prefix: str) -> list[str]:
        """The distinct search terms of a type that begin with a prefix."""
        bounds = {"$elemMatch": {"$gte": prefix, "$lt": prefix + "\U0010ffff"}}
        found: list[str] = await self._mongo.collection(resource_type).distinct(
            "terms", {"terms": bounds}
        )
        return [term for term in found if term.startswith(prefix)]

    async def reindex(self, resource_type: str, after: str, limit: int) -> tuple[str | None, int]:
        """Extract the next resources by id anew; returns the last id, None at the end, and how many changed.

        Only where nobody wrote a newer version meanwhile, which was extracted then.
        """
        documents = await self.find(
            resource_type, {"_id": {"$gt": after}}, sort=[("_id", ASCENDING)], limit=limit
        )
        updates: list[UpdateOne] = []
        for document in documents:
            if "text" in document:
                fields = _search_fields(resource_type, fhir_json.decode_stored(document["text"]))
                gone = document.keys() - fields.keys() - _NOT_SEARCHED
                new = {name: value for name, value in fields.items() if document.get(name) != value}
                if new or gone:
                    change = {"$set": new} if new else {}
                    change |= {"$unset": dict.fromkeys(gone, "")} if gone else {}
                    updates.append(UpdateOne({"_id": document["_id"], "v": document["v"]}, change))
        if updates:
            await self._mongo.collection(resource_type).bulk_write(updates, ordered=False)
        return documents[-1]["_id"] if documents else None, len(updates)

    async def cluster_time(self) -> Timestamp:
        """What `snapshot.reading_at` takes: a time that shows everything acknowledged so far."""
        return await snapshot.newest(self._mongo)

    async def guard(self, key: str) -> Guard:
        """What a conditional write compares. Take it before the search that decides what to write."""
        document = await self._guards.find_one({"_id": key})
        return Guard(key, document["n"] if document else 0)

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

    async def commit(self, changes: Sequence[Change], guards: Sequence[Guard] = ()) -> list[Stored]:
        """Write all changes in one transaction, or none; returns the new versions in the order of `changes`.

        Raises VersionConflict where a version or guard is no longer the one that was read, TooLarge for a resource
        over the limit. Units that arrive while others are being written share the next transaction.
        """
        for resource_type in {change.type for change in changes}:
            if resource_type not in self._ready:
                await self._ensure(resource_type, index_models(resource_type))
                if rows := cohort.collection_of(resource_type):
                    await self._ensure(rows, cohort.index_models())
        unit = _Unit(changes, guards)
        for change in changes:
            self._prepare_change(unit, change)
        await self._group.submit(unit)
        return unit.stored

    def _prepare_change(self, unit: _Unit, change: Change) -> None:
        previous = change.previous
        version = previous.version + 1 if previous else 1
        at = self.presence.stamp()
        if previous and at <= previous.at:  # versions of one resource never share or turn back time
            at = previous.at + _MILLISECOND
        document: Document = {"_id": change.id, "v": version, "at": at}
        resource, fields, text = None, None, ""
        if change.resource is None:
            document["deleted"] = True
        else:
            resource = with_meta(change.resource, change.id, version, at)
            text = self._text(resource)
            fields = extract(change.type, resource)
            document.update(fields)
            document.pop("rows", None)  # kept in a collection of their own
            if change.private is not None:
                document["private"] = change.private
            document["text"] = text
        if rows := cohort.collection_of(change.type):
            lives = previous is not None and not previous.deleted
            before = extract(change.type, previous.resource()) if previous and lives else None
            unit.rows.append(cohort.row_change(rows, change.id, before, fields))
        method = _HTTP_METHOD[change.method]
        unit.current.append(document)
        unit.stored.append(
            Stored(change.type, change.id, version, at, text, resource is None, method)
        )
        unit.events.append(
            Event(
                ObjectId(),
                change.type,
                change.id,
                version,
                change.method,
                at,
                resource,
                fields,
                previous.text if previous and not previous.deleted else None,
            )
        )

    def _times_under_way(self) -> Iterator[datetime]:
        return (stored.at for unit in self._group.pending() for stored in unit.stored)

    def _text(self, resource: Resource) -> str:
        """The JSON of a resource. Raises TooLarge: patches and entries of Bundles pass no other limit."""
        encoded = fhir_json.encode(resource)
        if len(encoded) > self._max_resource_bytes:
            raise TooLarge(f"The resource is over the limit of {self._max_resource_bytes} bytes")
        return encoded.decode()

    async def _write(self, units: Sequence[_Unit]) -> None:
        """One transaction for all units; VersionConflict where any of them lost a race."""
        versions = [_version_document(stored) for unit in units for stored in unit.stored]
        lease_until = self._mongo.now() + EVENT_LEASE
        events = [
            self._event_document(event, lease_until) for unit in units for event in unit.events
        ]
        writes: dict[str, list[InsertOne[Document] | ReplaceOne[Document]]] = {}
        replaced: dict[str, int] = {}
        for unit in units:
            for change, document in zip(unit.changes, unit.current, strict=True):
                operations = writes.setdefault(change.type, [])
                if change.previous is None:
                    operations.append(InsertOne(document))
                else:
                    expected = {"_id": change.id, "v": change.previous.version}
                    operations.append(ReplaceOne(expected, document))
                    replaced[change.type] = replaced.get(change.type, 0) + 1
        guards = [guard for unit in units for guard in unit.guards]
        rows = [change for unit in units for change in unit.rows]

        async def transaction(session: Session) -> None:
            self.presence.check_age(event.at for unit in units for event in unit.events)
            for guard in guards:
                await self._pass_guard(guard, session)
            for resource_type, operations in writes.items():
                result = await self._mongo.collection(resource_type).bulk_write(
                    operations, session=session
                )
                if result.matched_count != replaced.get(resource_type, 0):
                    raise VersionConflict
            for change in rows:
                await self._write_rows(change, session)
            await self._versions.insert_many(versions, session=session)
            await self._events.insert_many(events, session=session)

        try:
            await self._mongo.transaction(transaction)
        except (BulkWriteError, DuplicateKeyError) as error:
            if _is_duplicate(error):
                raise VersionConflict from error
            raise
        except DocumentTooLarge:
            raise TooLarge("The resource has too much to search for in it") from None
        # Here and not in `commit`: a client that hangs up cancels its request, not what was committed.
        committed = [event for unit in units for event in unit.events]
        for listener in self.listeners:
            listener(committed)

    async def _write_rows(self, change: cohort.RowChange, session: Session) -> None:
        """Bring the rows beside a resource up to its new version, in its transaction."""
        collection = self._mongo.collection(change.collection)
        if change.is_end:
            await collection.delete_many(cohort.all_of(change.id), session=session)
            return
        for start in range(0, len(change.gone), _ROWS_AT_ONCE):
            keys = [{"g": change.id, "m": m} for m in change.gone[start : start + _ROWS_AT_ONCE]]
            await collection.delete_many({"_id": {"$in": keys}}, session=session)
        for start in range(0, len(change.new), _ROWS_AT_ONCE):
            rows = [
                {"_id": {"g": change.id, "m": m}} for m in change.new[start : start + _ROWS_AT_ONCE]
            ]
            if change.is_new:
                await collection.insert_many(rows, session=session)
            else:
                upserts = [ReplaceOne(row, row, upsert=True) for row in rows]
                await collection.bulk_write(upserts, session=session)

    async def _pass_guard(self, guard: Guard, session: Session) -> None:
        if guard.seen == 0:
            await self._guards.insert_one({"_id": guard.key, "n": 1}, session=session)
            return
        result = await self._guards.update_one(
            {"_id": guard.key, "n": guard.seen}, {"$inc": {"n": 1}}, session=session
        )
        if result.matched_count == 0:
            raise VersionConflict

    def _event_document(self, event: Event, lease_until: datetime) -> Document:
        return {
            "_id": event.id,
            "type": event.type,
            "id": event.resource_id,
            "version": event.version,
            "method": event.method,
            "at": event.at,
            "state": "pending",
            "owner": self.owner,
            "lease_until": lease_until,
            "attempts": 0,
        }

    async def _ensure(self, name: str, models: list[IndexModel]) -> None:
        """Create a collection with its indexes once, outside any transaction.

        What is already there is only looked at: a transaction left open by a killed server would block DDL.
        """
        async with self._making_ready:
            if name in self._ready:
                return
            collection = self._mongo.collection(name)
            present = await collection.index_information()
            missing = [model for model in models if model.document["name"] not in present]
            if missing:
                await collection.create_indexes(missing)
            elif not present:
                await self._create(name)
            self._ready.add(name)

    async def _create(self, name: str) -> None:
        try:
            await self._mongo.db.create_collection(name)
        except OperationFailure as error:
            if error.code != 48:  # NamespaceExists: another process was faster
                raise


def _search_fields(resource_type: str, resource: Resource) -> Document:
    """What lies beside a resource's text in its document; `rows` are kept in a collection of their own."""
    fields = extract(resource_type, resource)
    fields.pop("rows", None)
    return fields


def with_meta(resource: Resource, resource_id: str, version: int, at: datetime) -> Resource:
    """A copy with the id and the server's meta.versionId and meta.lastUpdated, the usual keys first."""
    meta = {
        **resource.get("meta", {}),
        "versionId": str(version),
        "lastUpdated": instant(at),
    }
    rest = {k: v for k, v in resource.items() if k not in ("resourceType", "id", "meta")}
    return {"resourceType": resource["resourceType"], "id": resource_id, "meta": meta, **rest}


def is_same_content(resource: Resource, stored: Stored) -> bool:
    """Whether a write would change nothing but the server's own meta."""
    same = with_meta(resource, stored.id, stored.version, stored.at)
    return fhir_json.encode(same).decode() == stored.text


def instant(at: datetime) -> str:
    """A FHIR instant in UTC with milliseconds."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _current_since(
    start: datetime, filter_: Document, sort: list[tuple[str, int]], limit: int
) -> list[Document]:
    """The aggregation of versions that match and were not yet replaced at `start`: their successor came later."""
    successor = {"t": "$_id.t", "i": "$_id.i", "v": {"$add": ["$_id.v", 1]}}
    return [
        {"$match": filter_},
        {"$sort": dict(sort)},
        {"$set": {"next": successor}},
        {
            "$lookup": {
                "from": "versions",
                "localField": "next",
                "foreignField": "_id",
                "as": "next",
            }
        },
        {"$match": {"$or": [{"next": []}, {"next.at": {"$gt": start}}]}},
        {"$limit": limit},
        {"$unset": "next"},
    ]


def _version_document(stored: Stored) -> Document:
    document: Document = {
        "_id": {"t": stored.type, "i": stored.id, "v": stored.version},
        "at": stored.at,
        "method": stored.method,
    }
    if not stored.deleted:
        document["text"] = stored.text
    return document


def _stored_current(resource_type: str, document: Document) -> Stored:
    return Stored(
        resource_type,
        document["_id"],
        document["v"],
        document["at"],
        document.get("text", ""),
        deleted="deleted" in document,
    )


def _stored_version(document: Document) -> Stored:
    key = document["_id"]
    return Stored(
        key["t"],
        key["i"],
        key["v"],
        document["at"],
        document.get("text", ""),
        deleted="text" not in document,
        method=document["method"],
    )


def _is_duplicate(error: BulkWriteError | DuplicateKeyError) -> bool:
    if isinstance(error, DuplicateKeyError):
        return True
    details = error.details or {}
    return any(e.get("code") == _DUPLICATE_KEY for e in details.get("writeErrors", ()))
