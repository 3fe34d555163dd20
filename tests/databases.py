"""The mongod of a test run, and the databases on it: each goes with the module that it was made for."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from app.runtime.embedded_mongod import EmbeddedMongo, running_uri

Client = MongoClient[dict[str, Any]]

MEMORY = Path("/dev/shm")  # noqa: S108 - what is made there has a name of its own
_PREFIX = "carerelay-tests-"
_ROOM = 4 * 2**30
_STARTING_SECONDS = 60
# For pages of a search, which a test reads one after the other. MongoDB's own 300 s keep the files of what was dropped
# open so long that there are more of them than a process may have.
_WINDOW_SECONDS = 30


@contextmanager
def running_mongod() -> Iterator[str]:
    """A real mongod whose data end with it, in memory where there is room. Its connection string.

    It acknowledges a write before its journal is on disk: otherwise a drop, or an index of a collection with rows,
    waits for a tenth of a second. Who kills a mongod starts one of its own.
    """
    _sweep(MEMORY)
    place = MEMORY if _has_room(MEMORY) else None
    with (
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=place) as directory,
        EmbeddedMongo(Path(directory)) as embedded,
    ):
        _relax(embedded.uri)
        yield embedded.uri


def _relax(uri: str) -> None:
    with _connected(uri) as client:
        config = client.admin.command("replSetGetConfig")["config"]
        changes = {"version": config["version"] + 1, "writeConcernMajorityJournalDefault": False}
        client.admin.command("replSetReconfig", config | changes)
        window = {"minSnapshotHistoryWindowInSeconds": _WINDOW_SECONDS}
        client.admin.command({"setParameter": 1, "quiet": True, **window})
        # Until something is written under the new configuration, reads of what a majority has wait, for up to 20 s.
        client["started"]["once"].insert_one({})
        client.drop_database("started")


def _connected(uri: str) -> Client:
    return MongoClient(uri)


def _has_room(directory: Path) -> bool:
    if not os.access(directory, os.W_OK):
        return False
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize >= _ROOM


def _sweep(directory: Path) -> None:
    """Free the memory that runs which were killed have left behind: a mongod ends with its run, its files do not."""
    for left in directory.glob(f"{_PREFIX}*"):
        try:
            age = time.time() - left.stat().st_mtime
            is_ours = left.stat().st_uid == os.getuid()
        except FileNotFoundError:  # another run sweeps as well
            continue
        if is_ours and age > _STARTING_SECONDS and running_uri(left) is None:
            shutil.rmtree(left, ignore_errors=True)


class Databases:
    """Those that tests have made, by name."""

    def __init__(self) -> None:
        self._made: set[str] = set()
        self._client: Client | None = None

    def new(self) -> str:
        """The name of one that goes with the module that it is made for."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self._made.add(name)
        return name

    def keep(self, name: str) -> None:
        """This one stays as long as its mongod."""
        self._made.discard(name)

    @contextmanager
    def on(self, uri: str) -> Iterator[None]:
        """That is where they are."""
        with _connected(uri) as self._client:
            yield
        self._client = None

    @contextmanager
    def dropped(self) -> Iterator[None]:
        """Those that are made inside are dropped after it: some hundred have more files than a process may open."""
        before = set(self._made)
        yield
        for name in self._made - before:
            self._made.discard(name)
            if self._client is not None:
                self._client.drop_database(name)


DATABASES = Databases()
