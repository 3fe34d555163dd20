"""A real HTTP endpoint that remembers what it received and answers as it is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from app.subscriptions.channels.protocol import NOTICE_ID_HEADER


@dataclass
class Received:
    """One request. `at` is on the clock of time.perf_counter()."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.body)

    @property
    def kind(self) -> str:
        return str(self.parameter("type"))

    @property
    def number(self) -> int:
        return int(self.parameter("events-since-subscription-start"))

    @property
    def focus(self) -> str:
        parts = {p["name"]: p for p in self.parameter("notification-event")}
        return str(parts["focus"]["valueReference"]["reference"])

    def parameter(self, name: str) -> Any:
        for parameter in self.json["entry"][0]["resource"]["parameter"]:
            if parameter["name"] == name:
                return next(value for key, value in parameter.items() if key != "name")
        raise KeyError(name)


@dataclass
class Receiver:
    """`answer` decides the status of each request by what was received so far; None leaves it unanswered."""

    url: str = ""
    requests: list[Received] = field(default_factory=list)
    answer: Callable[[Received], int | None] = lambda _: 200
    headers: dict[str, str] = field(default_factory=dict)
    text: str = "taken"
    closing: asyncio.Event = field(default_factory=asyncio.Event)
    _changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def events(self) -> list[Received]:
        """Topic-based notices of events, without handshakes and heartbeats."""
        return [r for r in self.requests if r.body and r.kind == "event-notification"]

    def answers(self, statuses: Iterable[int], then: int = 200) -> None:
        """Answer with these statuses in turn, handshakes aside."""
        queue = list(statuses)

        def answer(received: Received) -> int:
            if received.body and b'"handshake"' in received.body:
                return 200
            return queue.pop(0) if queue else then

        self.answer = answer

    async def wait(self, count: int, *, events: bool = True) -> list[Received]:
        """The requests, once there are that many."""
        await self.until(lambda: len(self.events if events else self.requests) >= count)
        return self.events if events else self.requests

    async def until(self, holds: Callable[[], bool], seconds: float = 15) -> None:
        """Return once it holds of what was received."""
        async with asyncio.timeout(seconds), self._changed:
            await self._changed.wait_for(holds)

    async def handle(self, request: web.Request) -> web.Response:
        at = time.perf_counter()
        headers = {name.lower(): value for name, value in request.headers.items()}
        if (
            NOTICE_ID_HEADER.lower() not in headers
        ):  # some other program, probing for a port of its own
            return web.Response(status=404)
        received = Received(request.method, request.path_qs, headers, await request.read(), at)
        self.requests.append(received)
        async with self._changed:
            self._changed.notify_all()
        status = self.answer(received)
        if status is None:
            await self.closing.wait()
        return web.Response(status=status or 500, headers=self.headers, text=self.text)


@asynccontextmanager
async def receiving(port: int = 0) -> AsyncIterator[Receiver]:
    """A receiver on loopback."""
    receiver = Receiver()
    app = web.Application(client_max_size=64 * 1024 * 1024)
    app.router.add_route("*", "/{tail:.*}", receiver.handle)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", port)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield receiver
    finally:
        receiver.closing.set()
        await runner.cleanup()
