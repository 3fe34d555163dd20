"""The child processes of a benchmark: the server, the baseline, the load generator. Each is ended by its pid."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import IO

from app.runtime import child_process

START_SECONDS = 60.0
STOP_SECONDS = 20.0
LOOPBACK = "127.0.0.1"
MAX_PRINTED = 1024 * 1024
SHOWN_LINES = 40
_ADDRESS = re.compile(rf"http://{re.escape(LOOPBACK)}:([0-9]+)")


class BenchmarkError(Exception):
    """A benchmark cannot go on; the text is for people."""


@contextmanager
def server(uri: str) -> Iterator[int]:
    """The server as an operator runs it, one process; its port."""
    with _serving("app.cli", "serve", "--port", "0", "--mongodb-uri", uri) as port:
        yield port


@contextmanager
def server_on(uri: str, database: str) -> Iterator[int]:
    """The server on a database of that name; its port."""
    os.environ["CARERELAY_MONGODB_DATABASE"] = database
    try:
        with server(uri) as port:
            yield port
    finally:
        os.environ.pop("CARERELAY_MONGODB_DATABASE", None)


@contextmanager
def receiver() -> Iterator[int]:
    """The practices' endpoint; its port."""
    with _serving("benchmarks.receiver") as port:
        yield port


@contextmanager
def baseline(uri: str) -> Iterator[int]:
    """The bare baseline; its port."""
    with _serving("benchmarks.baseline", uri) as port:
        yield port


def load(workload: str, port: int, seconds: float, requests: int | None = None) -> dict[str, float]:
    """What the load generator measured. Raises BenchmarkError where an answer was wrong."""
    command = [sys.executable, "-m", "benchmarks.load", workload, str(port), str(seconds)]
    if requests is not None:
        command.append(str(requests))
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=seconds + START_SECONDS
    )
    if done.returncode:
        raise BenchmarkError(done.stderr.strip() or f"{workload}: exit code {done.returncode}")
    result: dict[str, float] = json.loads(done.stdout)
    return result


@contextmanager
def _serving(module: str, *arguments: str) -> Iterator[int]:
    """Run the module until the block ends; the port that it printed.

    A BenchmarkError, also one out of the block, ends with what the process printed last.
    """
    with tempfile.TemporaryFile() as printed:
        command = [sys.executable, "-m", module, *arguments]
        process = child_process.spawn(command, output=printed.fileno())
        try:
            yield _port_when_ready(process, printed)
        except BenchmarkError as error:
            lines = _read(printed).splitlines()[-SHOWN_LINES:]
            raise BenchmarkError("\n".join([str(error), f"{module} printed:", *lines])) from None
        finally:
            child_process.end(process, STOP_SECONDS)


def _port_when_ready(process: subprocess.Popen[bytes], printed: IO[bytes]) -> int:
    """Wait for the address in what is printed, then until the server there is ready."""
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        address = _ADDRESS.search(_read(printed))
        if address and _is_ready(int(address[1])):
            return int(address[1])
        time.sleep(0.05)
    raise BenchmarkError("A server did not start.")


def _read(printed: IO[bytes]) -> str:
    # By position: the child writes through the same file and must go on at its end.
    return os.pread(printed.fileno(), MAX_PRINTED, 0).decode(errors="replace")


def _is_ready(port: int) -> bool:
    connection = HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()
