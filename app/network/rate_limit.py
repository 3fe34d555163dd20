"""Rate limits by token buckets, and limits on concurrent requests.

Both count in one process; several workers allow several times as much. https://www.rfc-editor.org/rfc/rfc6585#section-4
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from typing import Literal

# The bucket used longest ago is dropped first: it has refilled meanwhile, and a new one is full.
_MOST_KEYS = 20_000
# The smallest part of IPv6 that is handed out to one customer.
_SITE = 64


class Buckets:
    """A bucket for each key: it holds `burst` tokens and gains `rate` a second."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = max(burst, 1.0)
        # Tokens, at. Not a cachetools cache: each request writes here, and that takes three times as long.
        self._filled: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str, now: float) -> float:
        """Take a token and return 0; without one, return the seconds until there is one."""
        tokens = self._tokens(key, now)
        if tokens < 1.0:
            return (1.0 - tokens) / self._rate
        self._filled[key] = (tokens - 1.0, now)
        self._filled.move_to_end(key)
        if len(self._filled) > _MOST_KEYS:
            self._filled.popitem(last=False)
        return 0.0

    def wait(self, key: str, now: float) -> float:
        """The seconds that `take` would return; takes no token."""
        tokens = self._tokens(key, now)
        return 0.0 if tokens >= 1.0 else (1.0 - tokens) / self._rate

    def _tokens(self, key: str, now: float) -> float:
        known = self._filled.get(key)
        if known is None:
            return self._burst
        tokens, at = known
        return min(self._burst, tokens + (now - at) * self._rate)


def buckets(rate: float | None, default: float, seconds: float) -> Buckets | None:
    """Buckets that gain `rate` (else `default`) tokens a second and hold those of `seconds`; None for a rate of 0."""
    used = default if rate is None else rate
    return Buckets(used, used * seconds) if used else None


class ConcurrencyLimit:
    """A count of concurrent holders of each key, at most `most`."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._inside: dict[str, int] = {}

    def enter(self, key: str) -> bool:
        """Count one more holder of the key, who must `leave`; False where there is no room."""
        inside = self._inside.get(key, 0)
        if inside >= self._most:
            return False
        self._inside[key] = inside + 1
        return True

    def leave(self, key: str) -> None:
        inside = self._inside[key] - 1
        if inside:
            self._inside[key] = inside
        else:
            del self._inside[key]


class ByteLimit:
    """Bytes that are held at once: at most `most` of one key, and `total` of all of them.

    Who holds nothing may hold any one thing, or what is larger than the limit could never be held.
    """

    def __init__(self, most: int, total: int) -> None:
        self._most = most
        self._total = total
        self._all = 0
        self._held: dict[str, int] = {}

    def exceeded_by(self, key: str, size: int, own: int) -> Literal["key", "all"] | None:
        """Which limit so many more bytes would break; `own` are those that their holder has already."""
        others = self._held.get(key, 0) - own
        if others and others + own + size > self._most:
            return "key"
        if self._all > own and self._all + size > self._total:
            return "all"
        return None

    def hold(self, key: str, size: int) -> None:
        """Count so many bytes more."""
        self._held[key] = self._held.get(key, 0) + size
        self._all += size

    def release(self, key: str, size: int) -> None:
        self._all -= size
        left = self._held[key] - size
        if left:
            self._held[key] = left
        else:
            del self._held[key]


def site(address: str) -> str:
    """The key of a client's address: itself, or for IPv6 its /64 network, which one customer has whole."""
    if ":" not in address:
        return address
    try:
        whole = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if whole.ipv4_mapped is not None:
        return str(whole.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(whole), _SITE), strict=False))
