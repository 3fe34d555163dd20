"""The limits on websockets: how often an address may connect, how many may be open, and how much one may say.

    handshakes   a token bucket for each address: 429 with Retry-After instead of the upgrade
    open         sockets of one address that have bound nothing yet, then of one client
    patience     a socket that binds nothing is closed
    messages     a token bucket for each socket: it is closed

All of it is kept by this process alone. How many bytes a socket may say is app/api/uvicorn_websocket.py's.
"""

from __future__ import annotations

import asyncio
import math

from app.errors import TooManyRequests
from app.network.rate_limit import Buckets, ConcurrencyLimit, buckets, site
from app.settings import Settings

# Seconds for which a socket may stay without a binding.
PATIENCE = 15.0
MESSAGES_A_SECOND, MESSAGES_AT_ONCE = 5.0, 20.0
_HANDSHAKES_A_SECOND, _SECONDS_AT_ONCE, _MOST = 5.0, 4.0, 64


class Place:
    """One socket's place: its address's until something is bound, then its client's."""

    __slots__ = ("_crowd", "_key", "_messages")

    def __init__(self, crowd: ConcurrencyLimit | None, key: str, messages: Buckets | None) -> None:
        self._crowd = crowd
        self._key = key
        self._messages = messages

    def heard(self) -> None:
        """Count a message. Raises TooManyRequests."""
        if self._messages is not None and self._messages.take("", _now()):
            raise TooManyRequests("Too many messages; slow down")

    def claim(self, client_id: str) -> None:
        """From now on it counts for this client. Raises TooManyRequests."""
        if self._crowd is None:
            return
        key = f"client {client_id}"
        if not self._crowd.enter(key):
            raise TooManyRequests("Too many websockets of this client")
        self._crowd.leave(self._key)
        self._key = key

    def leave(self) -> None:
        if self._crowd is not None:
            self._crowd.leave(self._key)


class WebSocketLimits:
    """All websockets of this process. `patience` is None where a socket may wait for good."""

    def __init__(self, settings: Settings) -> None:
        smart = settings.auth == "smart"
        self.patience = PATIENCE if smart else None
        self._counts_messages = smart
        rate = _HANDSHAKES_A_SECOND if smart else 0.0
        self._handshakes = buckets(settings.websocket_rate_limit, rate, _SECONDS_AT_ONCE)
        most = settings.max_websockets
        if most is None:
            most = _MOST if smart else 0
        self._crowd = ConcurrencyLimit(most) if most else None

    def enter(self, address: str) -> Place:
        """Let a handshake in; who entered must leave. Raises TooManyRequests."""
        key = f"address {site(address)}"
        if self._handshakes is not None and (wait := self._handshakes.take(key, _now())):
            raise _refused("Too many handshakes; slow down", wait)
        if self._crowd is not None and not self._crowd.enter(key):
            raise _refused("Too many websockets that have bound nothing", 1.0)
        messages = Buckets(MESSAGES_A_SECOND, MESSAGES_AT_ONCE) if self._counts_messages else None
        return Place(self._crowd, key, messages)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _refused(diagnostics: str, seconds: float) -> TooManyRequests:
    return TooManyRequests(diagnostics, headers={"Retry-After": str(math.ceil(seconds))})
