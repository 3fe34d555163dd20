"""The mongod of a test run, and the databases on it: each is used by one test, or by one module, at a time."""

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
from app.store.format import FORMAT, OLDEST, STEPS

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
    """Those that tests have made, by name, and those that are left for others to use.

    To make the collections and indexes of a server takes longer than most tests do. So a database that a server was
    started on is emptied after the test, or after the module whose fixture it was made for, and used again.
    """

    # More have more files than a process may open.
    _KEPT = 24
    _MOST_COLLECTIONS = 60

    def __init__(self) -> None:
        self._client: Client | None = None
        self._uri = ""
        # The scope of the fixture that is being set up: of a test where there is none.
        self._scope = "function"
        # Whether none may have been used before.
        self.only_new = False
        self._made: dict[str, str] = {}
        self._used_once: set[str] = set()
        self._free: list[str] = []

    def new(self) -> str:
        """The name of one that does not exist yet."""
        name = f"t{uuid.uuid4().hex[:12]}"
        self._used_once.add(name)
        self._made[name] = self._scope
        return name

    def empty(self, uri: str) -> str:
        """The name of one without a row, which may have collections and indexes of a server's already.

        A mongod of a test's own has new ones only.
        """
        if self.only_new or uri != self._uri:
            return self.new()
        if not self._free:
            name = self.new()
            self._used_once.discard(name)
            return name
        name = self._free.pop()
        self._made[name] = self._scope
        return name

    def keep(self, name: str) -> None:
        """This one stays as long as its mongod."""
        del self._made[name]

    @contextmanager
    def on(self, uri: str) -> Iterator[None]:
        """That is where they are."""
        self._uri = uri
        with _connected(uri) as self._client:
            yield
        self._client, self._uri = None, ""

    @contextmanager
    def made_for(self, scope: str) -> Iterator[None]:
        """What is made inside goes with the test, or with its module where the scope is wider."""
        outer, self._scope = self._scope, scope
        try:
            yield
        finally:
            self._scope = outer

    def end_test(self) -> None:
        """Take back what was made for the test."""
        self._take_back([name for name, scope in self._made.items() if scope == "function"])

    def end_module(self) -> None:
        """Take back all but those that are kept."""
        self._take_back(list(self._made))

    def _take_back(self, names: list[str]) -> None:
        for name in names:
            del self._made[name]
            if self._client is None:
                continue
            if name in self._used_once or len(self._free) >= self._KEPT or not self._emptied(name):
                self._used_once.discard(name)
                self._client.drop_database(name)
            else:
                self._free.append(name)

    def _emptied(self, name: str) -> bool:
        """Take out all rows but the one that says the format; False where the database is not as a start leaves it."""
        assert self._client is not None
        database = self._client[name]
        collections = database.list_collection_names()
        marker = database["settings"].find_one({"_id": "format"})
        if (
            # Where an audit ended is kept in a file beside the database.
            database["audit_registry"].find_one() is not None
            or len(collections) > self._MOST_COLLECTIONS
            or marker is None
            or set(marker) != {"_id", "format", "oldest", "steps"}
            or (marker["format"], marker["oldest"]) != (FORMAT, OLDEST)
            or marker["steps"] != [step.name for step in STEPS]
        ):
            return False
        for each in collections:
            database[each].delete_many({} if each != "settings" else {"_id": {"$ne": "format"}})
        return True


DATABASES = Databases()
