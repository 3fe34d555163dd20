"""A directory in memory for a session's database: nobody needs it afterwards, and on a disk each commit waits."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import is_running

_MEMORY = Path("/dev/shm")  # noqa: S108 - a directory of our own is made in it, for us alone
_NAME = "carerelay-tests-"
# What the database of one worker grows to, and as much again.
_ROOM = 3 * 2**30


@contextmanager
def directory(otherwise: Path) -> Iterator[Path]:
    """`otherwise` where there is no such memory, or not enough of it for all workers."""
    if not _MEMORY.is_dir():
        yield otherwise
        return
    _clear()
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if min(shutil.disk_usage(_MEMORY).free, _available()) < workers * _ROOM:
        yield otherwise
        return
    own = _MEMORY / f"{_NAME}{os.getpid()}"
    own.mkdir(mode=0o700)
    try:
        yield own
    finally:
        shutil.rmtree(own)


def _clear() -> None:
    """Remove what sessions that were killed have left."""
    for left in _MEMORY.glob(f"{_NAME}*"):
        if not is_running(int(left.name.removeprefix(_NAME))):
            shutil.rmtree(left, ignore_errors=True)


def _available() -> int:
    """Bytes of memory that may be taken without swapping, proc(5)."""
    said = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text())
    return int(said[1]) * 1024 if said else 0
