"""The one write path: units of changes, each written in one MongoDB transaction or not at all.

docs/decisions/0002-one-write-path.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from bson import ObjectId
from pymongo import ASCENDING, DESCENDING, IndexModel, InsertOne, ReplaceOne
from pymongo.errors import (
    ConnectionFailure,
    DocumentTooLarge,
    DuplicateKeyError,
    OperationFailure,
    PyMongoError,
)

from app.audit import entry as audit_entry
from app.audit.hash_chain import Links
from app.audit.log import COLLECTION as AUDIT, AuditLog
from app.errors import MethodNotAllowed, TooLarge, Unavailable
from app.records import versions
from app.records.versions import (
    Change,
    Guard,
    ResourceVersion,
    RowBeside,
    VersionConflict,
    version_document,
)
from app.runtime import collections, metrics, pace, transactions
from app.runtime.cluster import Cluster
from app.runtime.commit_watch import CommitWatch
from app.runtime.group_commit import GroupCommit, InDoubt
from app.runtime.mongo import Document, Mongo, Session
from app.runtime.secrets import Secrets
from app.runtime.transactions import ContentionError
from app.search import group_members
from app.search.extract import index_models
from app.store import format
from app.store.commit_unit import CommitUnit, UnitPreparation
from app.store.events import EVENTS, Event, event_rows
from app.store.guards import Guards
from app.store.lost_races import lost_keys

# How long a committing process keeps an event to itself before another may take it over.
EVENT_LEASE = timedelta(seconds=10)
T = TypeVar("T")

_DUPLICATE_KEY = 11000
_TOO_LARGE_FOR_CACHE = 388
# Rows beside a resource that one command of a transaction writes: encoding more would hold up everything else.
_ROWS_AT_ONCE = 1_000
# The same of documents and of the bytes in them: no less than a batch of the group commit (GroupCommit.MAX_CHANGES).
_DOCUMENTS_AT_ONCE = 256
_BYTES_AT_ONCE = 1024 * 1024


class Commits:
    """Writes units. `listeners` hear each committed batch of events in this process, at once."""

    def __init__(
        self,
        mongo: Mongo,
        owner: str,
        max_resource_bytes: int,
        max_bytes_of: Mapping[str, int],
        audit: AuditLog | None,
        reacting: Collection[str],
        secrets: Secrets,
    ) -> None:
        """`reacting` are the types and topics whose events somebody reacts to (app/automation/reactions.py)."""
        self._mongo = mongo
        self._owner = owner
        self.listeners: list[Callable[[list[Event]], None]] = []
        self._reacting = frozenset(reacting)
        self._audit = audit
        self._versions = mongo.collection(versions.COLLECTION)
        self._events = event_rows(mongo)
        self._audit_rows = mongo.collection(AUDIT)
        self._preparing: set[CommitUnit] = set()
        self._ready: set[str] = set()
        self._making_ready = asyncio.Lock()
        self._group = GroupCommit[CommitUnit](self._write, hopeless=ConnectionFailure)
        self.commit_watch = CommitWatch(VersionConflict, (PyMongoError, Unavailable))
        self.cluster = Cluster(
            mongo,
            owner,
            self._times_under_way,
            format_=format.FORMAT,
            why_not=partial(format.look_again, mongo),
        )
        self._preparation = UnitPreparation(self.cluster, max_resource_bytes, max_bytes_of)
        self.guards = Guards(mongo, self.cluster, secrets)

    async def prepare(self) -> None:
        """Make the collections that every write needs, where they are missing."""
        await self.guards.prepare()
        await self._ensure(
            versions.COLLECTION,
            [
                IndexModel([("at", DESCENDING), ("_id", DESCENDING)]),
                IndexModel([("_id.t", ASCENDING), ("at", DESCENDING), ("_id", DESCENDING)]),
            ],
        )
        await self._ensure(
            EVENTS,
            [
                IndexModel(
                    [("state", ASCENDING), ("lease_until", ASCENDING)],
                    partialFilterExpression={"state": "pending"},
                ),
                IndexModel(
                    [("key", ASCENDING)],
                    name="key",
                    unique=True,
                    partialFilterExpression={"key": {"$exists": True}},
                ),
            ],
        )

    async def commit(
        self,
        changes: Sequence[Change],
        guards: Sequence[Guard] = (),
        beside: Sequence[RowBeside] = (),
    ) -> list[ResourceVersion]:
        """Write all changes in one transaction, or none; returns the new versions in the order of `changes`.

        Rows `beside` are inserted with them. Raises VersionConflict, with the keys, where a version or guard is no
        longer the one that was read, or such a row is there already, TooLarge for a resource over the limit. Units that
        arrive while others are being written share the next transaction.
        """
        for resource_type in {change.type for change in changes}:
            if resource_type not in self._ready:
                await self._ensure(resource_type, index_models(resource_type))
                if rows := group_members.collection_of(resource_type):
                    await self._ensure(rows, group_members.index_models())
        await self.cluster.be_heard()
        unit = CommitUnit(changes, guards, beside)
        await self.cluster.reservations.give_way(unit.keys)
        # From its first stamp on: no reader may take a later time for complete before this is committed.
        self._preparing.add(unit)
        try:
            async for change in pace.paced(changes):
                await self._preparation.add(unit, change)
            async for event in pace.paced(unit.events):
                await event.read_previous()
            if self._audit is not None:
                await self._prepare_entries(unit)
            with self.commit_watch.commit():
                await self._submit(unit)
        finally:
            self._preparing.discard(unit)
        audit_entry.count(unit.entries)
        return unit.stored

    async def _submit(self, unit: CommitUnit) -> None:
        """Have a unit committed. Raises VersionConflict with the keys that others have changed."""
        try:
            await self._group.submit(unit)
        except VersionConflict:
            lost = await lost_keys(self._mongo, unit.changes)
            lost |= await self.guards.moved_on(unit.guards)
            raise VersionConflict(frozenset(lost)) from None

    async def _prepare_entries(self, unit: CommitUnit) -> None:
        """What the audit says of each change: by whom, of which patients' data. Raises MethodNotAllowed for its own."""
        async for change, stored in pace.paced(zip(unit.changes, unit.stored, strict=True)):
            if change.type == "AuditEvent" and not change.silent:
                raise MethodNotAllowed("The audit is written by the server alone")
            previous = change.previous.text if change.previous else ""
            for version in (
                *(each for each in unit.passing if each.reference == change.key),
                stored,
            ):
                unit.entries += audit_entry.of_change(change.method, version, previous)

    def _times_under_way(self) -> Iterator[datetime]:
        return (
            stored.at
            for unit in (*self._preparing, *self._group.pending())
            for stored in (*unit.passing, *unit.stored)
        )

    async def _write(self, units: Sequence[CommitUnit], in_doubt: InDoubt) -> None:
        """One transaction for all units; VersionConflict where one has lost a race, ContentionError where it runs."""
        versions = [
            version_document(stored) for unit in units for stored in (*unit.passing, *unit.stored)
        ]
        lease_until = self._mongo.now() + EVENT_LEASE
        events = [
            self._event_document(event, lease_until) for unit in units for event in unit.events
        ]
        writes: dict[str, list[tuple[InsertOne[Document] | ReplaceOne[Document], Document]]] = {}
        replaced: dict[str, int] = {}
        for unit in units:
            for change, document in zip(unit.changes, unit.current, strict=True):
                operations = writes.setdefault(change.type, [])
                if change.previous is None:
                    operations.append((InsertOne(document), document))
                else:
                    expected = {"_id": change.id, "v": change.previous.version}
                    operations.append((ReplaceOne(expected, document), document))
                    replaced[change.type] = replaced.get(change.type, 0) + 1
        guards = [guard for unit in units for guard in unit.guards]
        rows = [change for unit in units for change in unit.rows]
        beside = [each for unit in units for each in unit.beside]
        times = [stored.at for unit in units for stored in (*unit.passing, *unit.stored)]

        links: Links | None = None

        async def transaction(session: Session) -> None:
            if links is not None:
                links.in_doubt = False  # what another attempt wrote is undone
            self.cluster.check_may_commit(times)
            for guard in guards:
                await self.guards.compare(guard, session)
            for resource_type, operations in writes.items():
                collection, matched = self._mongo.collection(resource_type), 0
                for portion in _portions(operations, lambda each: _size(each[1])):
                    result = await collection.bulk_write(
                        [operation for operation, _ in portion], session=session
                    )
                    matched += result.matched_count
                if matched != replaced.get(resource_type, 0):
                    raise VersionConflict
            for change in rows:
                await self._write_rows(change, session)
            for each in beside:
                await self._mongo.collection(each.collection).insert_one(
                    each.document, session=session
                )
            for documents in _portions(versions, _size):
                await self._versions.insert_many(documents, session=session)
            for documents in _portions(events, _size):
                await self._events.insert_many(documents, session=session)
            if links is not None:
                await links.insert(self._audit_rows, session)
            self.cluster.check_may_commit(times)

        entries = [entry for unit in units for entry in unit.entries]
        try:
            if self._audit is None or not self._audit.required:
                await transactions.attempt(self._mongo, transaction, in_doubt)
            else:
                async with self._audit.links(entries) as links:
                    try:
                        await transactions.attempt(self._mongo, transaction, in_doubt)
                    except ContentionError:
                        links.in_doubt = False  # nothing of it is left
                        raise
        except OperationFailure as error:
            codes = _codes(error)
            if _DUPLICATE_KEY in codes:
                raise VersionConflict from error
            if _TOO_LARGE_FOR_CACHE in codes:
                raise TooLarge(
                    "The database cannot take so much at once; send it in smaller Bundles",
                    code="too-costly",
                ) from error
            raise
        except DocumentTooLarge:
            raise TooLarge("The resource has too much to search for in it") from None
        audit_entry.asked.set(None)  # what follows from a change is not what its client asks
        if entries and links is None and self._audit is not None:
            await self._audit.record(entries)
        # Here and not in `commit`: a client that hangs up cancels its request, not what was committed.
        committed = [event for unit in units for event in unit.events]
        metrics.EVENTS.add(by=len(committed))
        for number, portion in enumerate(_portions(committed, lambda _: 1)):
            if number:
                await asyncio.sleep(0)
            for listener in self.listeners:
                listener(portion)

    async def _write_rows(self, change: group_members.RowChange, session: Session) -> None:
        """Bring the rows beside a resource up to its new version, in its transaction."""
        collection = self._mongo.collection(change.collection)
        if change.is_end:
            await collection.delete_many(group_members.all_of(change.id), session=session)
            return
        gone = [{"g": change.id, "m": m} for m in change.gone]
        if not change.is_new:  # to take away and put anew is a third of the work of a replacement
            gone += [row["_id"] for row in change.new]
        for start in range(0, len(gone), _ROWS_AT_ONCE):
            keys = gone[start : start + _ROWS_AT_ONCE]
            await collection.delete_many({"_id": {"$in": keys}}, session=session)
        for start in range(0, len(change.new), _ROWS_AT_ONCE):
            rows = change.new[start : start + _ROWS_AT_ONCE]
            await collection.insert_many(rows, session=session)

    async def raise_event(
        self, about: ResourceVersion, topic: str, *, key: str, at: datetime, told: Document
    ) -> Document | None:
        """Put an event of one topic into the outbox that no write has made; the same key twice is one event.

        `told` may have a `trigger`, a `context` and whom it is `only_for`. Returns its row, leased to this process;
        None where it is there.
        """
        event = Event(
            ObjectId(), about.type, about.id, about.version, "update", at, None, None, topic=topic
        )
        row = self._event_document(event, self._mongo.now() + EVENT_LEASE)
        row |= {"key": f"{topic} {key}", **told}
        try:
            await self._events.insert_one(row)
        except DuplicateKeyError:
            return None
        return row

    def _event_document(self, event: Event, lease_until: datetime) -> Document:
        row = {
            "_id": event.id,
            "type": event.type,
            "id": event.resource_id,
            "version": event.version,
            "method": event.method,
            "at": event.at,
            "state": "pending",
            "owner": self._owner,
            "lease_until": lease_until,
            "attempts": 0,
        }
        if (event.topic or event.type) in self._reacting:
            row["react_until"] = lease_until
        if event.topic is not None:
            row |= {"topic": event.topic, "trigger": dict(event.trigger or {})}
        return row

    async def _ensure(self, name: str, models: list[IndexModel]) -> None:
        """Create a collection with its indexes once, outside any transaction."""
        async with self._making_ready:
            if name not in self._ready:
                await collections.ensure(self._mongo, name, models)
                self._ready.add(name)


def _portions(items: Sequence[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    """The items, as many at a time as one command writes."""
    portion: list[T] = []
    total = 0
    for item in items:
        if portion and (len(portion) == _DOCUMENTS_AT_ONCE or total + size(item) > _BYTES_AT_ONCE):
            yield portion
            portion, total = [], 0
        portion.append(item)
        total += size(item)
    if portion:
        yield portion


def _size(document: Document) -> int:
    return len(document.get("text") or "")


def _codes(error: OperationFailure) -> set[int | None]:
    """MongoDB's codes of what failed, those of the single writes of a batch too."""
    details = error.details or {}
    return {error.code, *(each.get("code") for each in details.get("writeErrors", ()))}
