"""The child processes of a benchmark: the server, the baseline, the load generator. Each is ended by its pid."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection

from app import child

START_SECONDS = 60.0
STOP_SECONDS = 20.0
LOOPBACK = "127.0.0.1"


class BenchmarkError(Exception):
    """A benchmark cannot go on; the text is for people."""


@contextmanager
def server(uri: str) -> Iterator[int]:
    """The server as an operator runs it, one process; its port."""
    port = _free_port()
    command = ["-m", "app.cli", "serve", "--port", str(port), "--mongodb-uri", uri]
    with _serving(command, port):
        yield port


@contextmanager
def baseline(uri: str) -> Iterator[int]:
    """The bare baseline; its port."""
    port = _free_port()
    with _serving(["-m", "benchmarks.baseline", uri, str(port)], port):
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
def _serving(command: list[str], port: int) -> Iterator[None]:
    """Run the command until the block ends; what it printed is shown where it did not start."""
    with tempfile.TemporaryFile() as printed:
        process = child.spawn([sys.executable, *command], output=printed.fileno())
        try:
            if not _becomes_ready(process, port):
                printed.seek(0)
                raise BenchmarkError(f"{command[1]} did not start: {printed.read().decode()}")
            yield
        finally:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _becomes_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    give_up = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < give_up:
        if _is_ready(port):
            return True
        time.sleep(0.05)
    return False


def _is_ready(port: int) -> bool:
    connection = HTTPConnection(LOOPBACK, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])
