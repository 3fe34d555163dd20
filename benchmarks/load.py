"""The load generator, a process of its own: `python -m benchmarks.load WORKLOAD PORT SECONDS [REQUESTS]`.

A lean HTTP/1.1 client, so that two cores are left for the server and its database: each connection writes a finished
request, reads the status and Content-Length of the answer, counts the body's bytes and goes on. It stops after
SECONDS (the first quarter warms up and is not counted), or after REQUESTS; an unexpected answer ends it with an error.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import uvloop

from benchmarks.workloads import WORKLOADS, Workload

WARM_UP = 0.25  # of the seconds
GRACE_SECONDS = 30.0  # for answers that are under way at the end
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


class LoadError(Exception):
    """The server answered in a way that no benchmark counts."""


@dataclass
class Result:
    """`per_second` counts units (resources), latencies are those of requests."""

    per_second: float
    p50_ms: float
    p99_ms: float
    requests: int


class Run:
    """The state that the connections share: what to send next, and what came back when."""

    def __init__(self, workload: Workload, seconds: float, requests: int | None) -> None:
        self._workload = workload
        # Each run has serial numbers of its own; a counted run starts at 0.
        self._first = secrets.randbelow(10**8) if requests is None else 0
        self._left = requests
        self._sent = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._open = workload.connections
        self._begin = time.perf_counter() + (seconds * WARM_UP if requests is None else 0)
        self._end = self._begin + seconds * (1 - WARM_UP if requests is None else 1)
        self._last = self._begin
        self._latencies: list[float] = []

    def next(self) -> bytes | None:
        """The next request, or None where it is time to stop."""
        if time.perf_counter() >= self._end or self._sent == self._left:
            return None
        self._sent += 1
        return self._workload.request(self._first + self._sent - 1)

    def answered(self, sent: float, status: int, text: bytes) -> None:
        now = time.perf_counter()
        if status != self._workload.status:
            self.fail(f"status {status} instead of {self._workload.status}: {text[:500]!r}")
        if self._begin <= now < self._end:
            self._latencies.append(now - sent)
            self._last = now

    def fail(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(LoadError(reason))

    def closed(self) -> None:
        self._open -= 1
        if self._open == 0 and not self.ended.done():
            self.ended.set_result(None)

    def result(self) -> Result:
        """What was counted. Raises LoadError where nothing was."""
        ordered = sorted(self._latencies)
        if not ordered:
            raise LoadError("no answer within the measured time")
        seconds = (self._end if self._left is None else self._last) - self._begin
        return Result(
            per_second=len(ordered) * self._workload.units / seconds,
            p50_ms=ordered[len(ordered) // 2] * 1000,
            p99_ms=ordered[len(ordered) * 99 // 100] * 1000,
            requests=len(ordered),
        )


class Connection(asyncio.Protocol):
    """One keep-alive connection; one request is under way at a time."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._head = b""
        self._missing = -1  # bytes of the body still to come; -1 before its length is known
        self._status = 0
        self._sent = 0.0
        self._finished = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._send()

    def connection_lost(self, error: Exception | None) -> None:
        if not self._finished:
            self._run.fail(f"the server closed a connection ({error})")
        self._run.closed()

    def data_received(self, data: bytes) -> None:
        if self._missing < 0:
            self._head += data
            body = self._head.find(b"\r\n\r\n") + 4
            if body < 4:
                return
            length = _LENGTH.search(self._head, 0, body)
            if length is None:
                self._run.fail("an answer without Content-Length")
                return
            self._status = int(self._head[9:12])
            self._missing = int(length[1]) - (len(self._head) - body)
        else:
            self._missing -= len(data)
        if self._missing == 0:
            self._run.answered(self._sent, self._status, self._head)
            self._send()

    def _send(self) -> None:
        request = self._run.next()
        if request is None:
            self._finished = True
            self._transport.close()
            return
        self._head, self._missing = b"", -1
        self._sent = time.perf_counter()
        self._transport.write(request)


async def load(name: str, port: int, seconds: float, requests: int | None = None) -> Result:
    """Put that workload on the server at this port. Raises LoadError or TimeoutError."""
    workload = WORKLOADS[name]
    workload.request(0)  # builds the templates before the clock starts
    run = Run(workload, seconds, requests)
    loop = asyncio.get_running_loop()
    make: Callable[[], Connection] = lambda: Connection(run)  # noqa: E731
    async with asyncio.timeout(seconds + GRACE_SECONDS):
        for _ in range(workload.connections):
            await loop.create_connection(make, "127.0.0.1", port)
        await run.ended
    return run.result()


def main(arguments: list[str]) -> None:
    name, port, seconds, *rest = arguments
    requests = int(rest[0]) if rest else None
    try:
        result: dict[str, Any] = vars(uvloop.run(load(name, int(port), float(seconds), requests)))
    except (LoadError, OSError, TimeoutError) as error:
        sys.exit(f"{name}: {type(error).__name__}: {error}")
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
