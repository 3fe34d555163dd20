"""The MongoDB client and the one seam between its two drivers.

Both drivers speak to the same server and return the same values; they differ in a handful of calls, all of them here:
how a session and an aggregation are opened, how a change stream is entered, and how the client is closed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, TypeVar

from bson.codec_options import CodecOptions
from pymongo import AsyncMongoClient, ReadPreference, WriteConcern
from pymongo.errors import ConnectionFailure, OperationFailure, ServerSelectionTimeoutError
from pymongo.read_concern import ReadConcern

from app.errors import Unavailable
from app.settings import Settings

T = TypeVar("T")
# What a request's searches may take of MongoDB, in milliseconds; None for work that nobody waits for.
max_time_ms: ContextVar[int | None] = ContextVar("max_time_ms", default=None)
Document = dict[str, Any]
# Collections and sessions are typed `Any`: the two drivers share no base class.
Collection = Any
Session = Any

_NAIVE: CodecOptions[Document] = CodecOptions()
_CLIENT_OPTIONS: dict[str, Any] = {
    "tz_aware": True,
    "w": "majority",
    "readConcernLevel": "majority",
    "retryWrites": True,
    "appname": "carerelay",
    "serverSelectionTimeoutMS": 5000,
    "maxPoolSize": 64,
}
_NAMESPACE_EXISTS = 48
# An estimate of the database's clock that is off by less, in seconds, is kept.
_CLOCK_DRIFT = 0.1


def boot_seconds() -> float:
    """Seconds on a clock that nobody sets, and that goes on while the machine or the process sleeps."""
    if sys.platform == "linux":
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Mongo:
    """One client, one database. Open it with `await Mongo.open(settings)`; it belongs to the running event loop."""

    def __init__(self, client: Any, database: str, *, motor: bool) -> None:
        self.client = client
        self.db: Any = client.get_database(
            database, codec_options=CodecOptions(tz_aware=True, tzinfo=UTC)
        )
        self._motor = motor
        # Whether indexes that are not as this server wants them are its to replace (app/runtime/collections.py).
        self.replaces_indexes = True
        # What the database's clock says more than `boot_seconds`, in seconds; None before it was read.
        self._clock_offset: float | None = None
        self._collections: dict[str, Collection] = {}
        self._naive: dict[str, Collection] = {}

    @classmethod
    async def open(cls, settings: Settings) -> Mongo:
        """Connect, insist on a replica set (transactions and change streams need one) and read its clock.

        Raises Unavailable where no server answers or where it is no replica set.
        """
        if settings.mongodb_driver == "motor":
            from motor.motor_asyncio import AsyncIOMotorClient

            client: Any = AsyncIOMotorClient(settings.mongodb_uri, **_CLIENT_OPTIONS)
        else:
            client = AsyncMongoClient(settings.mongodb_uri, **_CLIENT_OPTIONS)
        mongo = cls(client, settings.mongodb_database, motor=settings.mongodb_driver == "motor")
        try:
            hello = await mongo.hello()
        except ConnectionFailure as error:
            await mongo.close()
            raise Unavailable("MongoDB does not answer at the configured address") from error
        if "setName" not in hello and hello.get("msg") != "isdbgrid":
            await mongo.close()
            raise Unavailable(
                "MongoDB runs as a standalone server; CareRelay needs a replica set (one node is enough)"
            )
        return mongo

    async def hello(self) -> Document:
        """Ask the server who it is; keeps the estimate of its clock fresh."""
        before = boot_seconds()
        reply: Document = await self.client.admin.command("hello")
        self.read_clock(reply["localTime"], before)
        return reply

    def read_clock(self, server_time: datetime, asked: float) -> None:
        """Take note of the time that the server gave in an answer; `asked` is `boot_seconds` when it was asked.

        An answer that took long says little: the estimate changes only where it is off for certain.
        """
        now = boot_seconds()
        if server_time.tzinfo is None:
            server_time = server_time.replace(tzinfo=UTC)
        offset = server_time.timestamp() - (asked + now) / 2
        doubt = (now - asked) / 2 + _CLOCK_DRIFT
        if self._clock_offset is None or abs(offset - self._clock_offset) > doubt:
            self._clock_offset = offset

    def now(self) -> datetime:
        """The database's clock as far as this process knows it: aware, UTC, whole milliseconds.

        Leases are compared on the server with `$$NOW`; this is only used to write them. Setting the clock of this
        machine changes nothing.
        """
        offset = self._clock_offset
        seconds = time.time() if offset is None else boot_seconds() + offset
        return datetime.fromtimestamp(int(seconds * 1000) / 1000, UTC)

    def collection(self, name: str, *, naive: bool = False) -> Collection:
        """The collection of that name, kept: making the object costs as much as a tenth of a read.

        With `naive` its times have no zone, which is UTC; a zone costs 2 us for each time that is read.
        """
        kept = self._naive if naive else self._collections
        collection = kept.get(name)
        if collection is None:
            collection = self.db[name]
            if naive:
                collection = collection.with_options(codec_options=_NAIVE)
            kept[name] = collection
        return collection

    async def create_collection(self, name: str) -> None:
        """Make a collection; does nothing where it is there already, also when another process was faster."""
        try:
            # The driver's own look before would tell of one that another process has made since as an error.
            await self.db.create_collection(name, check_exists=False)
        except OperationFailure as error:
            if error.code != _NAMESPACE_EXISTS:
                raise

    async def find_at_once(self, command: Document) -> list[Document] | None:
        """What a `find` command with a limit finds, times without their zone; None where it takes a cursor after all.

        The driver's cursors cost a fifth more than a command, but read again after a change of primary, and go on where
        the rows do not fit into one answer (16 MiB).
        """
        whole = {**command, "batchSize": command["limit"], "readConcern": {"level": "majority"}}
        limit = max_time_ms.get()
        if limit is not None:
            whole["maxTimeMS"] = limit
        try:
            reply = await self.db.command(whole, codec_options=_NAIVE)
        except ServerSelectionTimeoutError:
            raise
        except ConnectionFailure:
            return None
        cursor = reply["cursor"]
        if cursor["id"]:
            await self.db.command({"killCursors": command["find"], "cursors": [cursor["id"]]})
            return None
        rows: list[Document] = cursor["firstBatch"]
        return rows

    async def transaction(self, callback: Callable[[Session], Awaitable[T]]) -> T:
        """Run `callback(session)` in one transaction, again when MongoDB calls the failure transient.

        The callback may run more than once, so it must have no effect outside the transaction. Any exception it
        raises aborts the transaction and comes through. Raises ConnectionFailure where no server can be found.
        """

        async def attempt(session: Session) -> T:
            try:
                return await callback(session)
            except ServerSelectionTimeoutError as error:
                # The driver would call this transient too, and try for two minutes.
                raise ConnectionFailure("no server to write to") from error

        session = await self.client.start_session() if self._motor else self.client.start_session()
        async with session:
            result: T = await session.with_transaction(
                attempt,
                read_concern=ReadConcern("snapshot"),
                write_concern=WriteConcern("majority"),
                read_preference=ReadPreference.PRIMARY,
            )
            return result

    async def aggregate(
        self, collection: Collection, pipeline: list[Document], **options: Any
    ) -> list[Document]:
        """The whole result of an aggregation."""
        limit = max_time_ms.get()
        if limit is not None:
            options["maxTimeMS"] = limit
        cursor = collection.aggregate(pipeline, **options)
        if not self._motor:
            cursor = await cursor
        result: list[Document] = await cursor.to_list(None)
        return result

    @asynccontextmanager
    async def watch(
        self, target: Any, pipeline: list[Document], **options: Any
    ) -> AsyncIterator[Any]:
        """A change stream on a collection or database, for `async for change in stream`."""
        stream = target.watch(pipeline, **options)
        if not self._motor:
            stream = await stream
        async with stream:
            yield stream

    async def close(self) -> None:
        closing = self.client.close()
        if asyncio.iscoroutine(closing):
            await closing
