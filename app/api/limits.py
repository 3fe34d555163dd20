"""The limits on a single request from outside: how often its sender may come, how many at once, and for how long.

    rate        a token bucket for each client, or for each address where there is none: 429 with Retry-After
    at once     requests of one client, or address, that are under way: 429
    slow body   a body that keeps us waiting: 408
    bytes       large bodies of one client that are under way: 429; of all clients: 503
    time        an answer that takes too long: the work is cancelled, 503

All of it is kept by this process alone. Requests under way are looked over once a second, or more often under
shorter limits: a timer for each of them would cost ten times as much.
"""

from __future__ import annotations

import asyncio
import math
from typing import Any

from starlette.types import Message, Receive, Scope

from app.errors import FhirError, RequestTimeout, TooManyRequests, Unavailable
from app.network.rate_limit import ByteLimit, ConcurrencyLimit, buckets, site
from app.settings import Settings

TOKEN_PATHS = frozenset({"/auth/token", "/fhir/auth/token"})
# Whoever watches the server asks often, and is told nothing.
_WATCHED = frozenset({"/healthz", "/readyz"})
# A body may take longer in proportion to its size, down to so many bytes a second.
SLOWEST_BODY = 16 * 1024
# Bodies up to this are not worth counting.
_SMALL_BODY = 256 * 1024
_LARGE_RETRY = "5"


class RequestBudget:
    """One request under way."""

    __slots__ = (
        "address",
        "bytes_key",
        "cancelled",
        "client",
        "crowd_key",
        "deadline",
        "held",
        "limits",
        "reading",
        "task",
    )

    def __init__(
        self, limits: RequestLimits, task: asyncio.Task[Any] | None, deadline: float
    ) -> None:
        self.limits = limits
        self.task = task
        self.deadline = deadline
        self.reading = False
        self.cancelled = 0
        self.client: str | None = None
        self.address: str | None = None
        self.crowd_key: str | None = None
        self.bytes_key = ""
        self.held = 0

    def body(self, receive: Receive) -> Receive:
        """`receive`, with a limit on how long the body may take; the time of the answer starts after it."""
        now = asyncio.get_running_loop().time
        limits = self.limits

        async def received() -> Message:
            if not self.reading:
                self.reading = True
                self.deadline = now() + limits.body_seconds
            message = await receive()
            if message.get("more_body"):
                self.deadline += len(message["body"]) / SLOWEST_BODY
            else:
                self.reading = False
                self.deadline = now() + limits.request_seconds
            return message

        return received

    def was_overdue(self) -> bool:
        """Whether a cancellation was ours and nobody else's; it is then undone. Ends the visit."""
        self.limits.end(self)
        if not self.cancelled or self.task is None:
            return False
        others = 0
        for _ in range(self.cancelled):
            others = self.task.uncancel()
        return not others

    def excuse(self) -> FhirError:
        """What the client is told when its time is over."""
        if self.reading:
            return RequestTimeout("The body came too slowly", headers={"Connection": "close"})
        return Unavailable(
            f"No answer within {self.limits.request_seconds:g} s; the work was given up",
            code="timeout",
            headers={"Retry-After": "10"},
        )


class RequestLimits:
    """All visits of this process."""

    def __init__(self, settings: Settings) -> None:
        smart = settings.auth == "smart"
        self.request_seconds = settings.request_timeout
        self.body_seconds = settings.body_timeout
        self._by_client = smart
        self._rate = buckets(settings.rate_limit, 200.0 if smart else 0.0, settings.rate_burst)
        self._tokens = buckets(settings.token_rate_limit, 5.0 if smart else 0.0, 4.0)
        most = settings.max_concurrent_requests
        if most is None:
            most = 256 if smart else 0
        self._crowd = ConcurrencyLimit(most) if most else None
        self._bytes = ByteLimit(settings.max_bytes_under_way, settings.max_total_bytes_under_way)
        self._visits: set[RequestBudget] = set()
        self._pace = min(1.0, self.request_seconds / 4, self.body_seconds / 4)
        self._watching = False

    def begin(self, scope: Scope) -> RequestBudget:
        """Let a request in. Raises TooManyRequests."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        visit = RequestBudget(self, asyncio.current_task(), now + self.request_seconds)
        if self._rate is not None or self._crowd is not None or self._tokens is not None:
            self._admit(visit, scope, now)
        scope["visit"] = visit
        self._visits.add(visit)
        if not self._watching:
            self._watching = True
            loop.call_later(self._pace, self._look_over)
        return visit

    def end(self, visit: RequestBudget) -> None:
        """Let it out; once is enough, twice does no harm."""
        if visit not in self._visits:
            return
        self._visits.discard(visit)
        if visit.crowd_key is not None and self._crowd is not None:
            self._crowd.leave(visit.crowd_key)
            visit.crowd_key = None
        if visit.held:
            self._bytes.release(visit.bytes_key, visit.held)
            visit.held = 0
        if visit.address is not None and visit.client is None and self._rate is not None:
            # Nobody we know: it counts for the address, so that guessing credentials is slow.
            self._rate.take(visit.address, asyncio.get_running_loop().time())

    def _admit(self, visit: RequestBudget, scope: Scope, now: float) -> None:
        path = scope["path"]
        if path in _WATCHED:
            return
        if path in TOKEN_PATHS and self._tokens is not None:
            _refuse_after(self._tokens.take(_address(scope), now))
        elif not self._by_client:
            self._charge(visit, _address(scope), now)
        elif self._rate is not None:
            visit.address = _address(scope)
            _refuse_after(self._rate.wait(visit.address, now))

    def _charge(self, visit: RequestBudget, key: str, now: float) -> None:
        if self._rate is not None:
            _refuse_after(self._rate.take(key, now))
        if self._crowd is not None and visit.crowd_key is None:
            if not self._crowd.enter(key):
                raise TooManyRequests(
                    "Too many requests under way at once", headers={"Retry-After": "1"}
                )
            visit.crowd_key = key

    def identify(self, visit: RequestBudget, client_id: str) -> None:
        if visit.client is None:
            visit.client = client_id
            self._charge(visit, f"client {client_id}", asyncio.get_running_loop().time())

    def hold(self, visit: RequestBudget, key: str, size: int) -> None:
        more = size - visit.held
        if size <= _SMALL_BODY or more <= 0:
            return
        key = visit.bytes_key = visit.bytes_key or key
        match self._bytes.exceeded_by(key, more, visit.held):
            case "key":
                raise TooManyRequests(
                    "Too many bytes under way at once: wait for the answers to your large requests",
                    headers={"Retry-After": _LARGE_RETRY},
                )
            case "all":
                raise Unavailable(
                    "Too many large requests under way; try again",
                    headers={"Retry-After": _LARGE_RETRY},
                )
        self._bytes.hold(key, more)
        visit.held = size

    def _look_over(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for visit in self._visits:
            # Again and again: in Python 3.11 a cancellation can get lost, see `background_tasks.end`.
            if visit.deadline < now and visit.task is not None and visit.task.cancel():
                visit.cancelled += 1
        self._watching = bool(self._visits)
        if self._watching:
            loop.call_later(self._pace, self._look_over)


def identify(scope: Scope, client_id: str) -> None:
    """Who sends this request, known from its token: from here on it counts for them. Raises TooManyRequests.

    Entries of a Bundle are part of the request that brought them.
    """
    visit = scope.get("visit")
    if visit is not None:
        visit.limits.identify(visit, client_id)


def hold(scope: Scope, size: int) -> None:
    """Count a body of so many bytes for its sender until it is answered. Raises TooManyRequests or Unavailable."""
    visit = scope.get("visit")
    if visit is not None:
        key = _address(scope) if visit.client is None else f"client {visit.client}"
        visit.limits.hold(visit, key, size)


def _address(scope: Scope) -> str:
    return "address " + site((scope.get("client") or ("",))[0])


def _refuse_after(seconds: float) -> None:
    if seconds:
        raise TooManyRequests(
            "Too many requests; slow down", headers={"Retry-After": str(math.ceil(seconds))}
        )
