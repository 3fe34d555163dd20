"""`carerelay` commands as real processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import httpx
import pytest

from app.runtime import child_process
from tests.log_watch import WATCH, HeardOutput

COMMAND = (sys.executable, "-m", "app.cli")
_start = subprocess.Popen.__init__


def _refuse(*_: Any, **__: Any) -> None:
    raise AssertionError("A test that starts a program has the mark `processes`")


@contextmanager
def programs(*, may_start: bool) -> Iterator[None]:
    """Whether programs may be started inside."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", _start if may_start else _refuse)
        yield


def environment(**changes: str) -> dict[str, str]:
    """The environment without anybody's CARERELAY_* settings, but with these."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("CARERELAY_")}
    settings = {f"CARERELAY_{name.upper()}": text for name, text in changes.items()}
    return {**kept, "COLUMNS": "200", **settings}


def carerelay(*arguments: str | Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**settings),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    WATCH.look(done.stderr)
    return done


@contextmanager
def started(
    announcement: str,
    *arguments: str | Path,
    command: Any = COMMAND,
    is_log: bool = True,
    **options: Any,
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A command that keeps running, and the word after `announcement` in what it prints first.

    It does not outlive the tests, however they end. `is_log`: nobody's data may be in what it prints.
    """
    with subprocess.Popen(
        [*child_process.launcher(), *command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **{"env": environment(), **options},
    ) as process:
        assert process.stdout is not None
        output = HeardOutput(process.stdout)
        process.stdout = cast(IO[str], output)
        try:
            for line in output:
                if announcement in line:
                    yield process, line.split(announcement)[1].split()[0].rstrip(",")
                    break
            else:
                raise AssertionError(f"{arguments} ended: {output.said}")
        finally:
            process.terminate()
            process.wait(40)
            output.read()
            if is_log:
                WATCH.look(output.said)


def free_port() -> int:
    """A port for a server that will listen there later, and again after it was killed.

    None of those that the system gives to outgoing connections: one of them could take it meanwhile.
    """
    while True:
        port = random.randint(10_000, 30_000)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def is_running(pid: int) -> bool:
    """False for a zombie too: nobody may be there to reap an orphan."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] not in {"Z", "X"}


def wait_until_gone(pid: int) -> None:
    give_up = time.monotonic() + 10
    while is_running(pid):
        assert time.monotonic() < give_up, f"process {pid} outlived its parent"
        time.sleep(0.01)


def wait_for(url: str) -> httpx.Response:
    """The first answer of a server that is just starting."""
    give_up = time.monotonic() + 30
    while True:
        try:
            return httpx.get(url, timeout=30)
        except httpx.TransportError:
            assert time.monotonic() < give_up, f"{url} does not answer"
            time.sleep(0.02)


async def until(holds: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    """Look again and again, for what has no event of its own outside this process."""
    give_up = time.monotonic() + seconds
    while not await holds():
        assert time.monotonic() < give_up, "did not come about"
        await asyncio.sleep(0.002)


def children(pid: int) -> list[int]:
    """The child processes of a process."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]
