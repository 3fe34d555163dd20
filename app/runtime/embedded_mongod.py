"""A real MongoDB for development: a `mongod` child process that ends with the server and that this user alone reaches.

It is a replica set of one, because transactions and change streams need one. It listens on a Unix socket in a directory
of this user's and on no port. Data stay in DIR/mongodb between runs; docs/decisions/0001-embedded-mongod.md says why it
is built this way, docs/decisions/0029-database-of-one-user.md why nobody else reaches it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from app.runtime import child_process
from app.runtime.mongod_log import MongodLog

REPLICA_SET = "carerelay"
# https://man7.org/linux/man-pages/man7/unix.7.html has room for 108 bytes, of which the last is zero. The drivers make
# capital letters of a member's host small, and mongod takes commas and colons in it for something else.
LONGEST_SOCKET = 107
_SOCKET_PATH = re.compile(r"/[a-z0-9_./-]+\.sock")
_SOCKET = "mongod.sock"
# The lock file holds the process and the path of the socket.
_LOCK_BYTES = 20 + LONGEST_SOCKET
START_SECONDS = 120.0  # the recovery of a large database after a crash takes its time
STOP_SECONDS = 30.0
LOCK_SECONDS = 3.0
CACHE_GB = 1.0
# No operation is slow: what is logged of one holds what it looked for.
NEVER_SLOW = 2**31 - 1
EXIT_LIBRARY_MISSING = 127
DEBIAN_PACKAGES = {
    "libcurl.so.4": "libcurl4",
    "libssl.so.3": "libssl3",
    "libcrypto.so.3": "libssl3",
    "liblzma.so.5": "liblzma5",
}


class EmbeddedMongoError(Exception):
    """The embedded MongoDB cannot run; the text is for people and says what to do."""


def find_mongod() -> Path:
    """The `mongod` to run: one on PATH, else the one that the extra `embedded` installed.

    The wheel's package is looked up on sys.path and never imported: importing it is slow and has
    effects.
    """
    on_path = shutil.which("mongod")
    if on_path:
        return Path(on_path)
    for entry in sys.path:
        binary = Path(entry) / "fiftyone" / "db" / "bin" / "mongod"
        if binary.is_file():
            _make_executable(binary)
            return binary
    raise EmbeddedMongoError(
        "No mongod found. Install MongoDB so that mongod is on PATH, or carerelay[embedded] "
        "(Linux x86-64), or name a replica set with --mongodb-uri."
    )


def _make_executable(binary: Path) -> None:
    """Some installers drop the run bit of files inside wheels."""
    if os.access(binary, os.X_OK):
        return
    try:
        binary.chmod(binary.stat().st_mode | 0o111)
    except OSError as error:
        raise EmbeddedMongoError(
            f"{binary} lacks the run bit and cannot get it ({error.strerror}): chmod +x {binary}"
        ) from None


def missing_libraries(binary: Path) -> list[str]:
    """The shared libraries that `binary` links to and this machine lacks, as ldd names them."""
    ldd = shutil.which("ldd")
    if ldd is None:
        return []
    listed = subprocess.run([ldd, binary], capture_output=True, text=True, check=False)  # noqa: S603
    return re.findall(r"^\s*(\S+) => not found", listed.stdout, re.MULTILINE)


class EmbeddedMongo:
    """A mongod on `directory`/mongodb: `with EmbeddedMongo(directory) as mongo:`, then `mongo.uri`.

    Start it from the main thread. Raises EmbeddedMongoError where it cannot start: no mongod, a library missing, a
    directory that is in use or cannot be written.
    """

    def __init__(self, directory: Path, *, mongod: Path | None = None) -> None:
        self.files = directory.absolute() / "mongodb"
        self.log = MongodLog(self.files / "mongod.log")
        self.socket = self.files / _SOCKET
        self._mongod = mongod
        self._lock: int | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def uri(self) -> str:
        return uri_of(str(self.socket))

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running mongod."""
        if self._process is None:
            raise EmbeddedMongoError("The embedded MongoDB is not running.")
        return self._process

    def start(self) -> None:
        """Start mongod and wait until it is the primary of its replica set."""
        try:
            self._lock = _lock_directory(self.files)
            self.socket = _place_for_socket(self.files)
            self._launch(self._lock)
            self._become_primary()
            self.log.hold_back()
            os.pwrite(self._lock, f"{os.getpid()} {self.socket}".encode(), 0)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut mongod down cleanly and free the directory; harmless where nothing runs."""
        if self._process is not None:
            child_process.end(self._process, STOP_SECONDS)
            self._process = None
            self.log.close()
            _remove_socket(self.socket, self.files)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _launch(self, lock: int) -> None:
        """Start mongod and wait until it answers."""
        binary = self._mongod or find_mongod()
        command = [str(binary), *_options(self.files), *_listening(self.socket)]
        with self.log.writing() as log:
            self._process = child_process.spawn(command, output=log, pass_fds=[lock], umask=0o077)
        self._await_answer(binary)

    def _await_answer(self, binary: Path) -> None:
        """Return once mongod takes connections; raises EmbeddedMongoError where it ends before, or takes too long."""
        give_up = time.monotonic() + START_SECONDS
        while not _answers(self.socket):
            code = self.process.poll()
            if code is not None:
                self.log.close()
                raise EmbeddedMongoError(self._why_it_ended(binary, code))
            if time.monotonic() > give_up:
                raise EmbeddedMongoError(
                    f"mongod did not answer within {START_SECONDS:.0f} s; see {self.log.path}"
                )
            time.sleep(0.01)

    def _become_primary(self) -> None:
        """Make the replica set at the first start; at any other see that its member is where mongod listens."""
        give_up = time.monotonic() + START_SECONDS
        with MongoClient[dict[str, Any]](
            uri_of(str(self.socket), "directConnection=true"), serverSelectionTimeoutMS=2_000
        ) as client:
            while not client.admin.command("hello")["isWritablePrimary"]:
                with contextlib.suppress(
                    PyMongoError
                ):  # refused while a start-up step is under way
                    _configure(client, str(self.socket))
                if self.process.poll() is not None or time.monotonic() > give_up:
                    raise EmbeddedMongoError(f"mongod did not become primary; see {self.log.path}")
                time.sleep(0.01)

    def _why_it_ended(self, binary: Path, code: int) -> str:
        missing = missing_libraries(binary) if code == EXIT_LIBRARY_MISSING else []
        if missing:
            packages = sorted({DEBIAN_PACKAGES.get(name, name) for name in missing})
            return (
                f"mongod cannot start, these libraries are missing: {', '.join(missing)}. "
                f"Install them: apt-get install {' '.join(packages)}"
            )
        log = self.log.path
        return f"mongod ended with code {code}: {_last_error(log)} (all of it in {log})"


def uri_of(socket_path: str, options: str = f"replicaSet={REPLICA_SET}") -> str:
    return f"mongodb://{quote(socket_path, safe='')}/?{options}"


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _place_for_socket(files: Path) -> Path:
    """Where mongod is to listen: beside its files, or where that path does not serve in a directory made for it.

    Whoever made such a directory before and was killed has left it; it holds a socket that nobody listens to.
    """
    path = files / _SOCKET
    path.unlink(missing_ok=True)
    if _serves(path):
        return path
    for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):  # noqa: S108
        if parent and _serves(Path(parent) / "carerelay-12345678" / _SOCKET):
            with contextlib.suppress(OSError):
                return Path(tempfile.mkdtemp(prefix="carerelay-", dir=parent)) / _SOCKET
    raise EmbeddedMongoError(
        f"The path of {files} is no place for a Unix socket, and there is no temporary directory for one. "
        "Choose a directory with a shorter path in small letters with --data."
    )


def _serves(path: Path) -> bool:
    text = str(path)
    return len(text.encode()) <= LONGEST_SOCKET and _SOCKET_PATH.fullmatch(text) is not None


def _remove_socket(path: Path, files: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)
        if path.parent != files:
            path.parent.rmdir()


def _keep_private(files: Path) -> None:
    """Make the directory with all that is in it this user's alone; earlier versions let others read the log."""
    files.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.mkdir(mode=0o700, exist_ok=True)
    files.chmod(0o700)
    with os.scandir(files) as entries:
        for entry in entries:
            if entry.is_file(follow_symlinks=False) and entry.stat().st_mode & 0o077:
                os.chmod(entry.path, 0o600)


def _lock_directory(files: Path) -> int:
    """Lock the directory; the descriptor that holds the lock.

    mongod inherits it, so the lock lasts until both processes are gone. A holder may be about to
    end, so it gets a few seconds before this gives up.
    """
    try:
        _keep_private(files)
        lock = os.open(files / "carerelay.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise EmbeddedMongoError(f"Cannot write to {files}: {error.strerror}") from None
    give_up = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > give_up:
                holder = os.pread(lock, _LOCK_BYTES, 0).decode().partition(" ")[0]
                os.close(lock)
                raise EmbeddedMongoError(
                    f"The database in {files} is in use by another server (process {holder}). "
                    "Stop that one, or choose another directory with --data."
                ) from None
            time.sleep(0.02)
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock


def running_uri(directory: Path) -> str | None:
    """The database that another process runs on `directory`, once it is ready; None where none runs.

    Raises EmbeddedMongoError where it does not become ready.
    """
    try:
        lock = os.open(directory.absolute() / "mongodb" / "carerelay.lock", os.O_RDWR)
    except OSError:
        return None
    give_up = time.monotonic() + START_SECONDS
    try:
        while not _is_free(lock):
            _, _, path = os.pread(lock, _LOCK_BYTES, 0).decode().partition(" ")
            if path:
                return uri_of(path)
            if time.monotonic() > give_up:
                raise EmbeddedMongoError(f"The database in {directory} does not become ready.")
            time.sleep(0.02)
        return None
    finally:
        os.close(lock)


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _options(files: Path) -> list[str]:
    """mongod's command line but for where it listens: no compression, small, silent about what it is asked, and quick
    to drop what a crash left open.
    """
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return [
        *("--dbpath", str(files), "--replSet", REPLICA_SET, "--oplogSize", "512"),
        *("--networkMessageCompressors", "disabled"),
        *("--wiredTigerCacheSizeGB", f"{max(0.25, min(CACHE_GB, memory_gb / 4)):.2f}"),
        *("--quiet", "--slowms", str(NEVER_SLOW)),
        # Transactions of a killed server would otherwise stay open, and block DDL, for a minute.
        *("--setParameter", "transactionLifetimeLimitSeconds=20"),
        # There is no second node to hand over to.
        *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"),
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    ]


def _listening(path: Path) -> list[str]:
    """A socket for this user alone, and no port."""
    return ["--bind_ip", str(path), "--filePermissions", "0600", "--nounixsocket"]


def _configure(client: MongoClient[dict[str, Any]], host: str) -> None:
    """One step towards a primary at `host`; does nothing while an election is under way."""
    config = client["local"]["system.replset"].find_one()
    if config is None:
        members = [{"_id": 0, "host": host}]
        client.admin.command("replSetInitiate", {"_id": REPLICA_SET, "members": members})
    elif config["members"][0]["host"] != host:
        config["members"][0]["host"] = host
        config["version"] += 1
        # A node that does not find itself in its own configuration has no primary to ask: force.
        client.admin.command("replSetReconfig", config, force=True)


def _last_error(log: Path) -> str:
    """The last complaint in mongod's log (one JSON object a line), or its last line."""
    lines = log.read_text(errors="replace").splitlines()
    for line in reversed(lines):
        with contextlib.suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and entry.get("s") in {"E", "F"}:
                detail = entry.get("attr", {}).get("error", "")
                return f"{entry['msg']} {detail}".strip()
    return lines[-1] if lines else "no output"
