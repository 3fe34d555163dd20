"""What every exchange has around it: a request id, a limit on the URL, and compression by content negotiation.

Pure ASGI: `BaseHTTPMiddleware` would cost a third of the throughput (design decision 13).
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, MutableMapping
from typing import Any

import zstandard
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import exchange
from app.errors import UriTooLong
from app.identifiers import new_id

REQUEST_ID = b"x-request-id"
# What a client may choose as its request id: it comes back in a header and goes into logs.
_USABLE_ID = re.compile(rb"^[A-Za-z0-9._\-]{1,128}$")
# Below this, compressing costs more than it saves.
_MIN_SIZE = 1024
_QUALITY = re.compile(r"^\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*$")


def _gzip(body: bytes) -> bytes:
    compressor = zlib.compressobj(5, zlib.DEFLATED, 31)
    return compressor.compress(body) + compressor.flush()


def _zstd(body: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(body)


# In the order of our own preference.
_ENCODINGS: dict[str, Callable[[bytes], bytes]] = {"zstd": _zstd, "gzip": _gzip}


class Transport:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, max_url_bytes: int) -> None:
        self._app = app
        self._max_url_bytes = max_url_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given, accepted = b"", b""
        for name, value in scope["headers"]:
            if name == REQUEST_ID:
                given = value
            elif name == b"accept-encoding":
                accepted = value
        request_id = given if _USABLE_ID.match(given) else new_id().encode()
        scope["request_id"] = request_id.decode()
        sender = _Sender(send, request_id, choose_encoding(accepted.decode("latin-1")))
        if len(scope["raw_path"]) + len(scope["query_string"]) > self._max_url_bytes:
            error = UriTooLong(f"The URL is over the limit of {self._max_url_bytes} bytes")
            await exchange.respond_error(error)(scope, receive, sender)
            return
        await self._app(scope, receive, sender)


def choose_encoding(accepted: str) -> str | None:
    """The best encoding that an Accept-Encoding header allows, RFC 9110 12.5.3; None for identity."""
    if not accepted:
        return None
    wanted: dict[str, float] = {}
    for part in accepted.split(","):
        name, _, parameter = part.partition(";")
        quality = _QUALITY.match(parameter)
        if quality or not parameter.strip():
            wanted[name.strip().lower()] = float(quality[1]) if quality else 1.0
    offers = [(wanted.get(name, wanted.get("*", 0.0)), name) for name in _ENCODINGS]
    best = max(offers, key=lambda offer: offer[0])
    return best[1] if best[0] > 0 else None


class _Sender:
    """Adds the headers, and compresses a body that comes in one piece."""

    def __init__(self, send: Send, request_id: bytes, encoding: str | None) -> None:
        self._send = send
        self._request_id = request_id
        self._encoding = encoding
        self._held: MutableMapping[str, Any] | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (REQUEST_ID, self._request_id)]
            if self._encoding is None:
                await self._send(message)
            else:
                self._held = message
            return
        if self._held is not None:
            start, self._held = self._held, None
            body = message.get("body", b"")
            if len(body) >= _MIN_SIZE and not message.get("more_body"):
                message = {**message, "body": self._compress(start, body)}
            await self._send(start)
        await self._send(message)

    def _compress(self, start: MutableMapping[str, Any], body: bytes) -> bytes:
        assert self._encoding is not None  # noqa: S101 - a start is held only for an encoding
        if any(name == b"content-encoding" for name, _ in start["headers"]):
            return body
        small = _ENCODINGS[self._encoding](body)
        kept = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        start["headers"] = [
            *kept,
            (b"content-length", str(len(small)).encode()),
            (b"content-encoding", self._encoding.encode()),
            (b"vary", b"accept-encoding"),
        ]
        return small
