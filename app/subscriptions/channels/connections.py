"""The connections that notices leave over: httpx's API, aiohttp's bytes, one small pool for each origin.

An origin that hangs holds no connection another waits for; all share one TLS context, but for those with a certificate
of their own. Requests are handed to httpx's transport itself: its client would add cookies, redirects, authentication
and a default timeout, none of which is wanted here, for more than the price of the request (measured per POST: client
490 us, transport 200, bare aiohttp 150).
"""

from __future__ import annotations

import socket
import ssl
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from app.security.egress import CheckedResolver, Egress

CONNECTIONS_PER_ORIGIN = 32
_MAX_ORIGINS = 512


@dataclass(slots=True)
class _Pool:
    transport: httpx.AsyncBaseTransport
    in_use: int = 0


class Connections:
    """Pools by origin. `tls` gives the context of an origin that has its own; `transport` replaces the network."""

    def __init__(
        self,
        egress: Egress,
        tls: Callable[[str], ssl.SSLContext | None],
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._egress = egress
        self._tls = tls
        self._transport = transport
        self._shared_tls = ssl.create_default_context()
        self._pools: OrderedDict[str, _Pool] = OrderedDict()

    @asynccontextmanager
    async def to(self, origin: str) -> AsyncIterator[httpx.AsyncBaseTransport]:
        """The pool of an origin, kept open for as long as the block runs."""
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = _Pool(self._transport or self._connect(origin))
        self._pools.move_to_end(origin)
        pool.in_use += 1
        try:
            yield pool.transport
        finally:
            pool.in_use -= 1
            if len(self._pools) > _MAX_ORIGINS:
                await self._close_idle()

    def _connect(self, origin: str) -> httpx.AsyncBaseTransport:
        tls = self._tls(origin) or self._shared_tls

        def session() -> aiohttp.ClientSession:
            connector = aiohttp.TCPConnector(
                ssl=tls,
                limit=CONNECTIONS_PER_ORIGIN,
                resolver=CheckedResolver(self._egress),
                family=socket.AF_UNSPEC,
                use_dns_cache=False,
            )
            return aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
            )

        return AiohttpTransport(verify=tls, client=session)

    async def _close_idle(self) -> None:
        """Keep the number of open pools bounded: the one unused for longest goes first."""
        while len(self._pools) > _MAX_ORIGINS:
            idle = next((o for o, pool in self._pools.items() if not pool.in_use), None)
            if idle is None:
                return
            await self._pools.pop(idle).transport.aclose()

    async def close(self) -> None:
        pools, self._pools = self._pools, OrderedDict()
        for pool in pools.values():
            await pool.transport.aclose()
