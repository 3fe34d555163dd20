"""`carerelay run`: the demonstration that the README begins with."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.processes import carerelay, children, environment, started, wait_until_gone


def test_once_shows_the_notices_and_exits_0(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        done = carerelay("run", "--once", "--port", str(taken), "--data", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Port {taken} is in use" in done.stdout
    assert "handshake" in done.stdout
    assert done.stdout.count("encounter admission, ") == 2
    assert done.stdout.count("encounter discharge, ") == 1
    assert "3 notices arrived." in done.stdout

    # The same story again on the same data.
    with serving("--data", tmp_path) as (process, _):
        process.send_signal(signal.SIGINT)
        assert process.wait(40) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_leaves_nothing_behind(tmp_path, number):
    with serving(env={**environment(), "TMPDIR": str(tmp_path)}) as (process, base):
        stay = httpx.get(f"{base}/Encounter/agnes-thistlewick-stay").json()
        assert stay["status"] == "finished"
        [server] = children(process.pid)
        [mongod] = children(server)
        process.send_signal(number)
        assert process.wait(40) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        wait_until_gone(server)
        wait_until_gone(mongod)
    if number == signal.SIGTERM:
        assert list(tmp_path.iterdir()) == []


@contextmanager
def serving(*arguments: str | Path, **options: Any) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`carerelay run` when all notices have arrived, and its FHIR base."""
    command = ("run", "--port", "0", *arguments)
    with started("server are up: ", *command, **options) as (process, base):
        assert process.stdout is not None
        said = list(iter(process.stdout.readline, "Ctrl-C stops everything.\n"))
        assert "3 notices arrived.\n" in said
        yield process, base


def test_server_that_does_not_start_is_shown_with_its_reason(tmp_path):
    (tmp_path / "mongodb").touch()
    done = carerelay("run", "--once", "--port", "0", "--data", tmp_path)
    assert done.returncode == 1
    assert "Cannot write to" in done.stdout
