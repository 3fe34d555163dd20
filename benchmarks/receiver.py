"""The practices' endpoint of the benchmarks: `python -m benchmarks.receiver` takes notices and says when each came.

As lean as it can be, so that the cores are left for the server: it answers 200 to whatever is posted, and keeps the
time (time.perf_counter, one clock for all processes) and the focus of each notice. `GET /` ends a count: it answers
with the list of what came and forgets it.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from typing import cast

import uvloop

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_FOCUS = re.compile(rb'/Encounter/([^"/]+)"')
_TAKEN = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


class Receiver(asyncio.Protocol):
    """One connection; `came` is shared by all."""

    def __init__(self, came: list[tuple[str, float]]) -> None:
        self._came = came
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (head := self._buffer.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._buffer, 0, head)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(self._buffer) < end:
                return
            request, self._buffer = self._buffer[:end], self._buffer[end:]
            self._answer(request)

    def _answer(self, request: bytes) -> None:
        if request.startswith(b"GET "):
            body = json.dumps(self._came).encode()
            self._came.clear()
            self._transport.write(
                b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
            )
            return
        if focus := _FOCUS.search(request):
            self._came.append((focus[1].decode(), time.perf_counter()))
        self._transport.write(_TAKEN)


async def serve() -> None:
    came: list[tuple[str, float]] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Receiver(came), "127.0.0.1", 0, backlog=1024)
    print(f"Receiver: http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve())
