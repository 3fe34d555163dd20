"""HTTP/1.1 as uvicorn speaks it, with limits on headers: how much of them, and how long they may take.

uvicorn bounds neither with httptools: a client that never ends its headers would hold a connection for good, or all
memory. https://datatracker.ietf.org/doc/html/rfc6585#section-5
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 15.0
_TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _unfinished = 0  # bytes of headers that have come and are not complete
    _inside = False  # a request's headers are complete, and its body is not
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._inside:
            self._unfinished += len(data)
        super().data_received(data)
        if self._unfinished:
            if self._unfinished > MAX_HEADER_BYTES:
                self._refuse()
            elif self._patience is None:
                self._wait()

    def on_headers_complete(self) -> None:
        self._unfinished = 0
        self._inside = True
        if self._patience is not None:
            self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._inside = False
        super().on_message_complete()

    def _refuse(self) -> None:
        self._stop_waiting()
        self.transport.write(_TOO_LARGE)
        self.transport.close()

    def _wait(self) -> None:
        self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        self.transport.close()
