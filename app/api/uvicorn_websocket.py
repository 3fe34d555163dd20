"""Websockets as uvicorn speaks them, with a limit on what a client says, and nothing kept for one that does not read.

uvicorn bounds a message, but neither how many pieces it comes in nor how many pings come between, and answers pings to
who never reads the answers. A client has to say what it binds and to answer pings, which is little.
https://datatracker.ietf.org/doc/html/rfc6455#section-10
"""

from __future__ import annotations

import asyncio
import logging

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

BYTES_A_SECOND, BYTES_AT_ONCE = 16 * 1024, 256 * 1024
_POLICY_VIOLATION, _NO_UTF_8 = 1008, 1007
# uvicorn says of each handshake which path and query it was for, at the level of information: names may be in them.
_log = logging.getLogger("uvicorn.websocket")
_log.setLevel(logging.WARNING)


class WebSocketProtocol(WebSocketsSansIOProtocol):
    """One connection."""

    _left = float(BYTES_AT_ONCE)
    _counted = 0.0  # when

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.logger = self.conn.logger = _log
        self._counted = self.loop.time()

    def data_received(self, data: bytes) -> None:
        now = self.loop.time()
        self._left = min(self._left + (now - self._counted) * BYTES_A_SECOND, BYTES_AT_ONCE)
        self._left -= len(data)
        self._counted = now
        if self._left < 0:
            self._refuse(_POLICY_VIOLATION, "Too much was said; slow down")
        else:
            super().data_received(data)

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:  # uvicorn would log a traceback for each
                self._refuse(_NO_UTF_8, "")
                return
        super().send_receive_event_to_app()

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if self.close_sent:
            self.handshake_complete = (
                True  # refused with an answer is no fault of ours: uvicorn would log one
            )
            self._abandon()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._abandon()

    def _refuse(self, code: int, reason: str) -> None:
        """Close without waiting for the other side to agree."""
        if self.handshake_complete and not self.close_sent:
            self.conn.fail(code, reason)
            self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self._abandon()
        self.transport.close()

    def _abandon(self) -> None:
        """A connection that is to end and has not been read is dropped: it would stay until its client reads."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
