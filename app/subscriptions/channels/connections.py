"""The HTTP connections for notices: one small pool for each origin, whose addresses are checked as they are opened.

An origin that hangs holds no connection another waits for; all share one TLS context, but for those with a certificate
of their own. Notices are sent by aiohttp itself. Measured per POST on one core: httpx's client 490 us, httpx's request
on an aiohttp transport 330, aiohttp 180: with httpx in between, notices to a thousand subscribers did not reach 0.4 of
the speed of a bare client. The rare requests for a token go through httpx over the same pool.
"""

from __future__ import annotations

import socket
import ssl
from collections import OrderedDict
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Self

import aiohttp

from app.network.egress_policy import CheckedResolver, Egress
from app.subscriptions.channels.response_heads import Connector

# Concurrent attempts at one origin (app/subscriptions/sending/dispatcher.py), and connections: some more, for the
# requests for tokens.
ATTEMPTS_OF_ORIGIN = 128
CONNECTIONS_PER_ORIGIN = ATTEMPTS_OF_ORIGIN + 16
_MAX_ORIGINS = 512
_USER_AGENT = "CareRelay"


@cache
def _shared_tls() -> ssl.SSLContext:
    """The context of all origins without one of their own, in all channels: making one takes 50 ms or more."""
    return ssl.create_default_context()


class Pool:
    """The session of one origin; `with pool:` keeps it open for as long as the block runs."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session
        self.in_use = 0

    def __enter__(self) -> Self:
        self.in_use += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.in_use -= 1


class Connections:
    """Pools by origin. `tls` gives the context of an origin that has its own."""

    def __init__(self, egress: Egress, tls: Callable[[str], ssl.SSLContext | None]) -> None:
        self._egress = egress
        self._tls = tls
        self._pools: OrderedDict[str, Pool] = OrderedDict()

    async def to(self, origin: str) -> Pool:
        """The pool of an origin: `scheme://host:port`."""
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = Pool(self._connect(origin))
            await self._close_idle(pool)
        self._pools.move_to_end(origin)
        return pool

    def _connect(self, origin: str) -> aiohttp.ClientSession:
        connector = Connector(
            ssl=self._tls(origin) or _shared_tls(),
            limit=CONNECTIONS_PER_ORIGIN,
            resolver=CheckedResolver(self._egress),
            family=socket.AF_UNSPEC,
            use_dns_cache=False,
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),  # the attempt as a whole is timed
            headers={"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"},
        )

    async def _close_idle(self, but: Pool) -> None:
        """Keep the number of open pools bounded: the one unused for longest goes first, and none that is in use.

        A cachetools cache would drop pools that are in use, and could not wait until one is closed.
        """
        while len(self._pools) > _MAX_ORIGINS:
            idle = (o for o, pool in self._pools.items() if not pool.in_use and pool is not but)
            origin = next(idle, None)
            if origin is None:
                return
            await self._pools.pop(origin).session.close()

    async def close(self) -> None:
        pools, self._pools = self._pools, OrderedDict()
        for pool in pools.values():
            await pool.session.close()
