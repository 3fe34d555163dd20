"""A server that says hello as some other kind of MongoDB would, and knows nothing else.

For what cannot be had here (a mongos). https://www.mongodb.com/docs/manual/reference/mongodb-wire-protocol/
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import bson

_OP_REPLY, _OP_QUERY, _OP_MSG = 1, 2004, 2013
_HEADER = struct.Struct("<iiii")


@asynccontextmanager
async def saying_hello(**fields: Any) -> AsyncIterator[str]:
    """The address of a server whose answer to every command has these fields."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                header = await reader.readexactly(_HEADER.size)
                length, request, _, code = _HEADER.unpack(header)
                await reader.readexactly(length - _HEADER.size)
                writer.write(_reply(request, code, fields))
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


def _reply(request: int, code: int, fields: dict[str, Any]) -> bytes:
    document = bson.encode(
        {
            "ok": 1.0,
            "isWritablePrimary": True,
            "ismaster": True,
            "helloOk": True,
            "localTime": datetime.now(UTC),
            "maxBsonObjectSize": 16_777_216,
            "maxMessageSizeBytes": 48_000_000,
            "maxWriteBatchSize": 100_000,
            "minWireVersion": 0,
            "maxWireVersion": 21,
            **fields,
        }
    )
    if code == _OP_QUERY:
        body, code = struct.pack("<iqii", 8, 0, 0, 1) + document, _OP_REPLY
    else:
        assert code == _OP_MSG
        body = struct.pack("<iB", 0, 0) + document
    return _HEADER.pack(_HEADER.size + len(body), 1, request, code) + body
