"""The MongoDB client and the one seam between its two drivers.

Both drivers speak to the same server and return the same values; they differ in a handful of calls, all of them here:
how a session and an aggregation are opened, how a change stream is entered, and how the client is closed.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from bson.codec_options import CodecOptions
from pymongo import AsyncMongoClient
from pymongo.errors import (
    ConfigurationError,
    ConnectionFailure,
    OperationFailure,
    ServerSelectionTimeoutError,
)

from app.errors import Unavailable
from app.runtime import connection_string, driver_waits
from app.settings import Settings

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
    "readPreference": "primary",
    "readConcernLevel": "majority",
    "retryWrites": True,
    "serverSelectionTimeoutMS": 5000,
    # A primary that stands still is noticed about as soon as the others have elected one: what waits for it goes on
    # after 12 s, and not after the drivers' own 28.
    "connectTimeoutMS": 10_000,
    "heartbeatFrequencyMS": 2_000,
    "maxPoolSize": 64,
}
_NAMESPACE_EXISTS = 48
# An estimate of the database's clock that is off by less, in seconds, is kept.
_CLOCK_DRIFT = 0.1


def name_of(owner: str | None) -> str:
    """What a process calls itself towards MongoDB: by that others find what it has left open."""
    return f"carerelay {owner}" if owner else "carerelay"


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
    async def open(cls, settings: Settings, owner: str | None = None) -> Mongo:
        """Connect, insist on a replica set (transactions and change streams need one) and read its clock.

        `owner` is the name of this process where it is a server; MongoDB is told it too. Raises Unavailable where no
        server answers, where the URI asks for what cannot be, or where it leads to something else.
        """
        is_motor = settings.mongodb_driver == "motor"
        make_client: Any = AsyncMongoClient
        if is_motor:
            from motor import motor_asyncio

            make_client = motor_asyncio.AsyncIOMotorClient
        driver_waits.mend()
        uri = connection_string.settled(settings.mongodb_uri)
        try:
            client = make_client(uri, appname=name_of(owner), **_CLIENT_OPTIONS)
        except ConfigurationError:  # its text may hold the password
            raise Unavailable("The MongoDB URI is not one: see docs/settings.md") from None
        mongo = cls(client, settings.mongodb_database, motor=is_motor)
        try:
            mongo._insist(await mongo.hello())
        except ConnectionFailure as error:
            await mongo.close()
            raise Unavailable("MongoDB does not answer at the configured address") from error
        except Unavailable:
            await mongo.close()
            raise
        return mongo

    def _insist(self, hello: Document) -> None:
        """Raises Unavailable where the server that said hello is not the primary of a replica set."""
        if hello.get("msg") == "isdbgrid":
            raise Unavailable(f"MongoDB is a mongos: {connection_string.NO_MONGOS}")
        if "setName" not in hello:
            raise Unavailable(
                "MongoDB runs as a standalone server; CareRelay needs a replica set (one node is enough)"
            )
        members = [*hello.get("hosts", ()), *hello.get("passives", ())]
        if self.client.options.direct_connection and len(members) > 1:
            raise Unavailable(
                "The MongoDB URI says directConnection, and the replica set has several members: after a change of "
                "primary the server would read what is old, and write nothing. Leave the option out."
            )

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

    async def session(self) -> Session:
        """A session of the driver's; it is a context manager."""
        session = self.client.start_session()
        return await session if self._motor else session

    async def begin(self, session: Session, **options: Any) -> None:
        """Begin a transaction. See app/runtime/transactions.py."""
        begun = session.start_transaction(**options)
        if not self._motor:
            await begun

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

    def connections(self) -> dict[str, int]:
        """How many connections are in use, and how many are idle.

        From the inside of the driver: it tells of this by an event for each use, and reads would pay for that.
        """
        client = self.client.delegate if self._motor else self.client
        pools = [server.pool for server in client._topology._servers.values()]
        return {
            "in-use": sum(pool.active_sockets for pool in pools),
            "idle": sum(len(pool.conns) for pool in pools),
        }

    async def close(self) -> None:
        closing = self.client.close()
        if asyncio.iscoroutine(closing):
            await closing
