"""A real MongoDB for development: a `mongod` child process on loopback that ends with the server.

It is a replica set of one, because transactions and change streams need one. Data stay in
DIR/mongodb between runs; docs/decisions/0001-embedded-mongod.md says why it is built this way.
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
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pymongo import MongoClient
from pymongo.errors import PyMongoError

from app.runtime import child_process

REPLICA_SET = "carerelay"
LOOPBACK = "127.0.0.1"
START_SECONDS = 120.0  # the recovery of a large database after a crash takes its time
STOP_SECONDS = 30.0
LOCK_SECONDS = 3.0
PORT_ATTEMPTS = 5
CACHE_GB = 1.0
# mongod's own exit code for a port it could not bind.
# https://www.mongodb.com/docs/manual/reference/exit-codes/
EXIT_ADDRESS_IN_USE = 48
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

    Start it from the main thread. It takes a free port of the system's choice at every start.
    Raises EmbeddedMongoError where it cannot start: no mongod, a library missing, a directory that
    is in use or cannot be written.
    """

    def __init__(self, directory: Path, *, mongod: Path | None = None) -> None:
        self.files = directory.absolute() / "mongodb"
        self.log = self.files / "mongod.log"
        self.port = 0
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
        return f"mongodb://{LOOPBACK}:{self.port}/?replicaSet={REPLICA_SET}"

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
            self._launch(self._lock)
            self._become_primary()
            os.pwrite(self._lock, f"{os.getpid()} {self.port}".encode(), 0)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Shut mongod down cleanly and free the directory; harmless where nothing runs."""
        if self._process is not None:
            child_process.end(self._process, STOP_SECONDS)
            self._process = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _launch(self, lock: int) -> None:
        """Start mongod and wait until it answers; try again where a port was snatched."""
        binary = self._mongod or find_mongod()
        for attempt in range(1, PORT_ATTEMPTS + 1):
            self.port = _free_port()
            if self.log.exists():
                self.log.replace(self.log.with_suffix(".log.1"))
            with self.log.open("wb") as log:
                command = [str(binary), *_options(self.files, self.port)]
                self._process = child_process.spawn(command, output=log, pass_fds=[lock])
            if self._answers():
                return
            code = self.process.wait()
            if code != EXIT_ADDRESS_IN_USE or attempt == PORT_ATTEMPTS:
                raise EmbeddedMongoError(self._why_it_ended(binary, code))

    def _answers(self) -> bool:
        """True once mongod answers, False when it ended before."""
        give_up = time.monotonic() + START_SECONDS
        while self.process.poll() is None:
            with contextlib.suppress(OSError, PyMongoError):
                # A plain connection first: cheap enough to try every 10 ms, which a client is not.
                socket.create_connection((LOOPBACK, self.port), timeout=1).close()
                if self._is_ours():
                    return True
            if time.monotonic() > give_up:
                raise EmbeddedMongoError(
                    f"mongod did not answer within {START_SECONDS:.0f} s; see {self.log}"
                )
            time.sleep(0.01)
        return False

    def _is_ours(self) -> bool:
        """Whether the port is not another program's, which came between our choice and mongod."""
        with self._client() as client:
            options = client.admin.command("getCmdLineOpts")["parsed"]
        return bool(options["storage"]["dbPath"] == str(self.files))

    def _client(self) -> MongoClient[dict[str, Any]]:
        return MongoClient(
            LOOPBACK, self.port, directConnection=True, serverSelectionTimeoutMS=2_000
        )

    def _become_primary(self) -> None:
        """Make the replica set at the first start, put today's port into it at any other."""
        host = f"{LOOPBACK}:{self.port}"
        give_up = time.monotonic() + START_SECONDS
        with self._client() as client:
            while not client.admin.command("hello")["isWritablePrimary"]:
                with contextlib.suppress(
                    PyMongoError
                ):  # refused while a start-up step is under way
                    _configure(client, host)
                if self.process.poll() is not None or time.monotonic() > give_up:
                    raise EmbeddedMongoError(f"mongod did not become primary; see {self.log}")
                time.sleep(0.01)

    def _why_it_ended(self, binary: Path, code: int) -> str:
        missing = missing_libraries(binary) if code == EXIT_LIBRARY_MISSING else []
        if missing:
            packages = sorted({DEBIAN_PACKAGES.get(name, name) for name in missing})
            return (
                f"mongod cannot start, these libraries are missing: {', '.join(missing)}. "
                f"Install them: apt-get install {' '.join(packages)}"
            )
        return f"mongod ended with code {code}: {_last_error(self.log)} (all of it in {self.log})"


def _lock_directory(files: Path) -> int:
    """Lock the directory; the descriptor that holds the lock.

    mongod inherits it, so the lock lasts until both processes are gone. A holder may be about to
    end, so it gets a few seconds before this gives up.
    """
    try:
        files.mkdir(parents=True, exist_ok=True)
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
                holder = os.pread(lock, 40, 0).decode().partition(" ")[0]
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
            _, _, port = os.pread(lock, 40, 0).decode().partition(" ")
            if port:
                return f"mongodb://{LOOPBACK}:{port}/?replicaSet={REPLICA_SET}"
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


def _options(files: Path, port: int) -> list[str]:
    """mongod's command line: loopback only, no compression, small, and quick to drop what a crash
    left open.
    """
    memory_gb = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return [
        *("--dbpath", str(files), "--bind_ip", LOOPBACK, "--port", str(port), "--nounixsocket"),
        *("--replSet", REPLICA_SET, "--oplogSize", "512"),
        *("--networkMessageCompressors", "disabled"),
        *("--wiredTigerCacheSizeGB", f"{max(0.25, min(CACHE_GB, memory_gb / 4)):.2f}"),
        # Transactions of a killed server would otherwise stay open, and block DDL, for a minute.
        *("--setParameter", "transactionLifetimeLimitSeconds=20"),
        # There is no second node to hand over to.
        *("--setParameter", "shutdownTimeoutMillisForSignaledShutdown=0"),
        *("--setParameter", "diagnosticDataCollectionEnabled=false"),
    ]


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


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
