"""What every exchange has around it: a request id, limits, security headers, compression, and an answer in any event.

Pure ASGI: `BaseHTTPMiddleware` would cost a third of the throughput
(docs/decisions/0016-request-path.md).
"""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
import zlib
from collections.abc import Callable, MutableMapping
from typing import Any

import zstandard
from pymongo.errors import ExecutionTimeout
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import audited, exchange
from app.api.limits import TOKEN_PATHS, RequestBudget, RequestLimits
from app.api.security_headers import secured
from app.api.web_pages import WebPages
from app.errors import FhirError, Forbidden, UnsupportedMediaType, UriTooLong
from app.fhir.ids import new_id
from app.network import exposure
from app.runtime import pace
from app.runtime.logs import places
from app.runtime.metrics import REQUESTS
from app.runtime.mongo import max_time_ms
from app.search.search_state import SearchState, in_force
from app.settings import Settings

log = logging.getLogger(__name__)

REQUEST_ID = b"x-request-id"
# What a client may choose as its request id: it comes back in a header and goes into logs.
_USABLE_ID = re.compile(rb"^[A-Za-z0-9._\-]{1,128}$")
_BODY = frozenset({b"content-length", b"transfer-encoding"})
# What is packed already, and what may be asked for in parts, which have to be parts of the same.
_AS_IT_IS = frozenset({b"content-encoding", b"accept-ranges"})
_PROBES = frozenset({"/healthz", "/readyz", "/metrics"})
_OVER_ANYTHING = frozenset({"/healthz", "/readyz"})
# By status; 0 is that of a client that went away unanswered.
_CLASSES = ["none"] * 100 + [f"{status // 100}xx" for status in range(100, 600)]
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

    def __init__(self, app: ASGIApp, settings: Settings, search_state: SearchState) -> None:
        self._app = app
        self._search_state = search_state
        self._max_url_bytes = settings.max_url_bytes
        self._limits = RequestLimits(settings)
        self._max_time_ms = math.ceil(settings.request_timeout * 1000)
        self._web_pages = WebPages(settings)
        self._only_tls = exposure.needs_tls(settings) and not exposure.has_own_tls(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # A server's task for a request or a websocket inherits nothing from the app.
        token = in_force.set(self._search_state)
        try:
            if scope["type"] == "http":
                await self._exchange(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            in_force.reset(token)

    async def _exchange(self, scope: Scope, receive: Receive, send: Send) -> None:
        given, accepted, has_body = b"", b"", False
        for name, value in scope["headers"]:
            if name == REQUEST_ID:
                given = value
            elif name == b"accept-encoding":
                accepted = value
            elif name in _BODY:
                has_body = True
            elif name == b"content-encoding":
                scope["content_encoding"] = value
        begun = time.perf_counter()
        request_id = given if _USABLE_ID.match(given) else new_id().encode()
        scope["request_id"] = request_id.decode()
        encoding = choose_encoding(accepted.decode("latin-1"))
        sender = _Sender(send, request_id, encoding, tls=scope["scheme"] == "https")
        try:
            await self._answer(scope, receive, sender, has_body=has_body)
        finally:
            interaction = scope.get("interaction") or _without_interaction(scope["path"])
            REQUESTS.observe(time.perf_counter() - begun, interaction, _CLASSES[sender.status])

    async def _answer(
        self, scope: Scope, receive: Receive, sender: _Sender, *, has_body: bool
    ) -> None:
        """Answer within the limits, whatever happens."""
        try:
            self._check(scope)
            visit = self._limits.begin(scope)
        except FhirError as error:
            told = await audited.refused(Request(scope), error)
            await exchange.respond_error(told)(scope, receive, sender)
            return
        failure = await self._run(
            visit, scope, visit.body(receive) if has_body else receive, sender
        )
        if failure is not None and not sender.started:
            await exchange.respond_error(failure)(scope, receive, sender)

    def _check(self, scope: Scope) -> None:
        """What can be refused before anything is done. Raises FhirError."""
        if len(scope["raw_path"]) + len(scope["query_string"]) > self._max_url_bytes:
            raise UriTooLong(
                f"The URL is over the limit of {self._max_url_bytes} bytes; a long search goes by POST to _search"
            )
        if scope.get("content_encoding", b"identity").lower() != b"identity":
            # Nothing is unpacked, so nothing can blow up.
            raise UnsupportedMediaType(
                "Send bodies without Content-Encoding", headers={"Accept-Encoding": "identity"}
            )
        if self._only_tls and scope["scheme"] != "https" and scope["path"] not in _OVER_ANYTHING:
            raise Forbidden("Only over TLS: call the address of the proxy")
        if scope["path"] not in _OVER_ANYTHING:
            self._web_pages.check(scope["method"], scope["headers"])

    async def _run(
        self, visit: RequestBudget, scope: Scope, receive: Receive, sender: _Sender
    ) -> FhirError | None:
        """Run the application within its time; returns what to answer where it did not answer itself."""
        token = max_time_ms.set(self._max_time_ms)
        try:
            await self._app(scope, receive, sender)
        except asyncio.CancelledError:
            if not visit.was_overdue():
                raise
            return visit.excuse()
        except ClientDisconnect:
            return None
        except ExecutionTimeout:
            return visit.excuse()
        except Exception as error:
            # Neither re-raised nor logged with its text, which may hold patients' data.
            log.error(
                "request failed\n%s",
                places(error),
                extra={"action": "request", "request_id": scope["request_id"]},
            )
            return FhirError("Internal error; the server's log has the details")
        finally:
            self._limits.end(visit)
            max_time_ms.reset(token)
        return None


def _without_interaction(path: str) -> str:
    """What a request counts as that no interaction of FHIR was begun for."""
    if path in _PROBES:
        return "probe"
    if path in TOKEN_PATHS:
        return "token"
    return "administration" if path.startswith("/admin/") else "none"


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

    def __init__(self, send: Send, request_id: bytes, encoding: str | None, *, tls: bool) -> None:
        self.started = False
        self.status = 0
        self._tls = tls
        self._send = send
        self._request_id = request_id
        self._encoding = encoding
        self._held: MutableMapping[str, Any] | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self.status = message["status"]
            headers = secured(message["headers"], tls=self._tls)
            headers.append((REQUEST_ID, self._request_id))
            message["headers"] = headers
            if self._encoding is None:
                await self._send(message)
            else:
                self._held = message
            return
        if self._held is not None:
            start, self._held = self._held, None
            body = message.get("body", b"")
            if len(body) >= _MIN_SIZE and not message.get("more_body"):
                message = {**message, "body": await self._compress(start, body)}
            await self._send(start)
        await self._send(message)

    async def _compress(self, start: MutableMapping[str, Any], body: bytes) -> bytes:
        assert self._encoding is not None  # noqa: S101 - a start is held only for an encoding
        if any(name in _AS_IT_IS for name, _ in start["headers"]):
            return body
        small = await pace.aside(len(body), _ENCODINGS[self._encoding], body)
        kept = [(name, value) for name, value in start["headers"] if name != b"content-length"]
        start["headers"] = [
            *kept,
            (b"content-length", str(len(small)).encode()),
            (b"content-encoding", self._encoding.encode()),
            (b"vary", b"accept-encoding"),
        ]
        return small
