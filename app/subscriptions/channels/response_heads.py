"""Responses whose head counts by itself, and that do not begin for ever.

aiohttp parses what arrives in one segment as a whole: a body that breaks its own rules takes the head before it along.
And it reads informational responses (RFC 9110, 15.2) for as long as they come, without a break for anybody else.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

_END = b"\r\n\r\n"
# So many informational responses may come before the response.
_MOST_INFORMATIONAL = 16


class _HeadFirst(ResponseHandler):
    """Has the parser read each head before what follows it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._informational = 0

    def set_response_params(self, **params: Any) -> None:
        self._informational = 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        in_body = self._payload is not None and not self._payload.is_eof()
        while not in_body and data:
            head, end, data = data.partition(_END)
            super().data_received(head + end)
            if not _is_informational(head):
                break
            self._informational += 1
            if self._informational > _MOST_INFORMATIONAL:
                self.set_exception(aiohttp.ClientPayloadError("Informational responses only"))
                if self.transport is not None:
                    self.transport.abort()
                return
        if data:
            super().data_received(data)


def _is_informational(head: bytes) -> bool:
    """Whether a head is of a response before the response; 101 is one itself."""
    return head.startswith(b"HTTP/1.") and head[8:10] == b" 1" and head[9:12] != b"101"


class Connector(aiohttp.TCPConnector):
    """A connector whose connections are read so."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        kind = cast("type[ResponseHandler]", _HeadFirst)
        self._factory = partial(kind, loop=asyncio.get_running_loop())
