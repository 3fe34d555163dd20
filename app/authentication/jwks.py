"""A cache of JSON documents of other servers: the key sets of clients, the discovery document of a provider.

They are kept as long as Cache-Control says, within a floor and a ceiling, and fetched under the egress rules, with
limits on size and time, without following redirects. A failure is cached too. An expired document is never used: a key
that its owner withdrew must not stay valid because the owner's server cannot be reached.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import aiohttp
import msgspec
from cachetools import TLRUCache
from yarl import URL

from app.authentication import jwt
from app.network.egress_policy import (
    CheckedResolver,
    Egress,
    EgressRefusedError,
    UnresolvableError,
    is_loopback_host,
    origin,
)

log = logging.getLogger(__name__)

LIMIT = 64 * 1024
SECONDS = 5.0
FLOOR, CEILING, UNSTATED = 60.0, 3600.0, 300.0
# Seconds for which a failure is cached, and between two fetches of a document because of unknown key ids.
FAILED, RENEWED = 30.0, 10.0
_MAX_DOCUMENTS = 1024
_MAX_KEYS = 100
_MAX_AGE = re.compile(r"(?:^|[,\s])max-age\s*=\s*\"?([0-9]{1,9})")


class DocumentError(Exception):
    """A document cannot be fetched; the text is our own."""


@dataclass(slots=True)
class _Kept:
    content: dict[str, Any] | None
    fetched: float
    until: float
    failure: str = ""


class Documents:
    """The documents of this process by URL. `clock` counts seconds."""

    def __init__(self, egress: Egress, clock: Callable[[], float] = time.monotonic) -> None:
        self._egress = egress
        self._clock = clock
        self._kept: TLRUCache[str, _Kept] = TLRUCache(
            _MAX_DOCUMENTS, lambda url, kept, now: kept.until, lambda: self._clock()
        )
        self._locks: dict[str, asyncio.Lock] = {}
        self._session: aiohttp.ClientSession | None = None

    async def get(self, url: str, *, renew: bool = False) -> dict[str, Any]:
        """The document; with `renew` fetched anew, unless the last fetch is RENEWED seconds old or less.

        Raises DocumentError. Concurrent callers share one fetch.
        """
        kept = self._fresh(url, renew)
        if kept is None:
            lock = self._locks.setdefault(url, asyncio.Lock())
            async with lock:
                kept = self._fresh(url, renew)
                if kept is None:
                    kept = await self._renewed(url)
            self._locks.pop(url, None)
        if kept.content is None:
            raise DocumentError(kept.failure)
        return kept.content

    def _fresh(self, url: str, renew: bool) -> _Kept | None:
        kept = self._kept.get(url)
        if kept is None or not renew or kept.content is None:
            return kept
        return None if self._clock() - kept.fetched > RENEWED else kept

    async def _renewed(self, url: str) -> _Kept:
        begun = self._clock()
        try:
            content, seconds = await self._fetch(url)
            kept = _Kept(content, begun, self._clock() + seconds)
        except DocumentError as error:
            _, host, _ = origin(url) or ("", None, None)
            log.warning("no document", extra={"action": "fetch", "host": host})
            kept = _Kept(None, begun, self._clock() + FAILED, str(error))
        self._kept[url] = kept
        return kept

    async def _fetch(self, url: str) -> tuple[dict[str, Any], float]:
        try:
            check_address(self._egress, url)
            async with (
                asyncio.timeout(SECONDS),
                self._connected().get(URL(url, encoded=True), allow_redirects=False) as response,
            ):
                body = await _bounded(response.content)
                status, control = response.status, response.headers.get("Cache-Control", "")
        except EgressRefusedError as error:
            raise DocumentError(str(error)) from None
        except (UnresolvableError, aiohttp.ClientError, OSError, TimeoutError, ValueError):
            raise DocumentError("The address does not answer") from None
        if status != 200:
            raise DocumentError(f"The address answered {status}")
        try:
            return msgspec.json.decode(body, type=dict[str, Any]), lifetime(control)
        except (msgspec.DecodeError, RecursionError):
            raise DocumentError(
                "The address answered with something else than a JSON object"
            ) from None

    def _connected(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=32,
                resolver=CheckedResolver(self._egress),
                family=socket.AF_UNSPEC,
                use_dns_cache=False,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
                auto_decompress=False,
                headers={
                    "User-Agent": "CareRelay",
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                },
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


def check_address(egress: Egress, url: str) -> None:
    """Raises EgressRefusedError for a forbidden address, or one without TLS other than loopback."""
    parts = egress.check_url(url)
    if parts.scheme != "https" and not is_loopback_host(parts.hostname or ""):
        raise EgressRefusedError("Keys are fetched over https only")


def lifetime(control: str) -> float:
    """The seconds for which a document is kept, by its Cache-Control header."""
    directives = control.lower()
    if "no-store" in directives or "no-cache" in directives:
        return FLOOR
    age = _MAX_AGE.search(directives)
    return min(max(float(age[1]), FLOOR), CEILING) if age else UNSTATED


async def key_of(documents: Documents, url: str, kid: str, algorithm: str) -> Any:
    """The single key of the set at `url` for a token's header; a key id that is unknown has the set fetched once more.

    Raises jwt.TokenRefused.
    """
    try:
        found = jwt.matching(_keys(await documents.get(url)), kid, algorithm)
        if not found:
            found = jwt.matching(_keys(await documents.get(url, renew=True)), kid, algorithm)
    except DocumentError:
        raise jwt.TokenRefused("The key set at the registered address cannot be had") from None
    return jwt.the_key(found, algorithm)


def _keys(document: dict[str, Any]) -> list[Any]:
    keys = document.get("keys")
    return keys[:_MAX_KEYS] if isinstance(keys, list) else []


async def _bounded(content: aiohttp.StreamReader) -> bytes:
    """The whole body. Raises ValueError beyond the limit, without reading on."""
    body = b""
    while not content.at_eof():
        body += await content.read(LIMIT + 1 - len(body))
        if len(body) > LIMIT:
            raise ValueError("too large")
    return body
