"""HTTP/1.1 as uvicorn speaks it, with limits on what is not the application's: headers, and what comes after an answer.

uvicorn bounds neither how much of headers comes nor how long they take: a client that never ends them would hold a
connection for good, or all memory. https://datatracker.ietf.org/doc/html/rfc6585#section-5

A request may be answered before all of it has come. What is still on its way is read and thrown away, for so long and
so much: where a connection is closed with bytes unread, the kernel resets it, and the reset overtakes the answer.
https://datatracker.ietf.org/doc/html/rfc9112#section-9.6
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEADER_BYTES = 64 * 1024
HEADER_SECONDS = 15.0
LINGER_BYTES = 64 * 1024 * 1024
LINGER_SECONDS = 30.0


def _last(status: str, text: str = "") -> bytes:
    """An answer after which the connection is closed."""
    return (
        f"HTTP/1.1 {status}\r\ncontent-type: text/plain; charset=utf-8\r\n"
        f"content-length: {len(text)}\r\nconnection: close\r\n\r\n{text}"
    ).encode()


_MALFORMED = _last("400 Bad Request", "Invalid HTTP request received.")
_TOO_SLOW = _last("408 Request Timeout")
_TOO_LARGE = _last("431 Request Header Fields Too Large")


class HttpProtocol(HttpToolsProtocol):
    """One connection."""

    _unfinished = 0  # bytes of headers that have come and are not complete
    _fields = 0  # bytes of the URL and of the fields of the request's headers, or of its trailers
    _is_over = False  # they are too many
    _inside = False  # a request's headers are complete, and its body is not
    _patience: asyncio.TimerHandle | None = None
    _spare: int | None = None  # the request is answered: so much more of it is thrown away
    _unread = (
        0  # bytes of a body that have come since there was anything for the application in them
    )
    _leaving = False  # the last answer has been given, and everything that comes is thrown away

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._way_out = _WayOut(self)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)
        self._way_out.close = self.transport.close  # no circle is left for the collector

    def data_received(self, data: bytes) -> None:
        if self._spare is not None:
            self._spare -= len(data)
            if self._spare < 0:
                self.transport.abort()
                return
            if self._leaving:
                return
        if self._inside:
            self._unread += len(data)
        else:
            self._unfinished += len(data)
        super().data_received(data)
        if self._unread > MAX_HEADER_BYTES and self._inside and not self._leaving:
            self._refuse(_TOO_LARGE)  # trailers, or the extension of a chunk
            return
        if self._unfinished and not self._leaving:
            if self._unfinished > MAX_HEADER_BYTES:
                self._refuse(_TOO_LARGE)
            elif self._patience is None:
                self._wait()

    def on_message_begin(self) -> None:
        self._fields = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + len(b": \r\n"))
        if not self._inside:  # nobody asks for the trailers of a chunked body
            super().on_header(name, value)

    def _count(self, size: int) -> None:
        """Raises ValueError, which ends the parsing, for more than is taken, though all of it came at once."""
        self._fields += size
        if self._fields > MAX_HEADER_BYTES:
            self._is_over = True
            raise ValueError

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        super().on_body(body)

    def on_headers_complete(self) -> None:
        self._unfinished = self._unread = self._fields = 0
        self._inside = True
        if self._patience is not None:
            self._stop_waiting()
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.transport = self._way_out  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        self._inside = False
        super().on_message_complete()
        if self._spare is not None:
            # All of it is thrown away: the connection is as good as a new one.
            self._spare = None
            self._stop_waiting()
            self._wait()

    def on_response_complete(self) -> None:
        if self._leaving:
            self.server_state.total_requests += 1
            return
        super().on_response_complete()
        if self._inside and self.cycle.response_complete and not self.transport.is_closing():
            self._throw_away()

    def send_400_response(self, msg: str) -> None:
        self._refuse(_TOO_LARGE if self._is_over else _MALFORMED)

    def shutdown(self) -> None:
        if self._leaving:
            self.transport.abort()
        else:
            super().shutdown()

    def leave(self) -> None:
        """Close the connection after an answer that was its last."""
        if self._inside:
            self._linger()
        else:
            self.transport.close()

    def _refuse(self, answer: bytes) -> None:
        """Say what is wrong with the request that is coming in, where that is what is answered next, and leave."""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if not self._inside or cycle.response_started or self.pipeline:
                self.transport.close()
                return
            cycle.disconnected = True  # nobody listens to what the application says of it
            cycle.message_event.set()
        if not self.transport.is_closing():
            self.transport.write(answer)
            self._linger()

    def _linger(self) -> None:
        """End our side of the connection, and leave the client time to read that and to end its own."""
        self._leaving = True
        self._throw_away()
        # With TLS there is no such thing: the length of the answer says where it ends.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()

    def _throw_away(self) -> None:
        self._stop_waiting()
        self._spare = LINGER_BYTES
        self._patience = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    def _wait(self) -> None:
        self._patience = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _give_up(self) -> None:
        self._patience = None
        if self._unfinished:
            self._refuse(_TOO_SLOW)
        else:
            self.transport.close()


class _WayOut:
    """The transport as the answer to a request has it: closing it leaves the client time."""

    __slots__ = ("close", "is_closing", "write")

    def __init__(self, protocol: HttpProtocol) -> None:
        self.close = protocol.leave
        self.is_closing = protocol.transport.is_closing
        self.write = protocol.transport.write
