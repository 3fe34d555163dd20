"""A replica set of three real mongod on loopback, whose primary can be stopped and let go on."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pymongo import MongoClient

from app.runtime import child_process
from app.runtime.embedded_mongod import REPLICA_SET, _options, find_mongod
from tests.processes import free_port

LOOPBACK = "127.0.0.1"
MEMBERS = 3
_PATIENCE_MS = 60_000
_ELECTION_MS = 2_000


@dataclass
class ReplicaSet:
    """The processes by their ports."""

    members: dict[int, subprocess.Popen[bytes]]

    @property
    def uri(self) -> str:
        hosts = ",".join(f"{LOOPBACK}:{port}" for port in self.members)
        return f"mongodb://{hosts}/?replicaSet={REPLICA_SET}"

    @contextmanager
    def frozen_primary(self) -> Iterator[None]:
        """The primary does nothing, as on a machine that stalls, until the end of the context."""
        with MongoClient[dict[str, Any]](self.uri, serverSelectionTimeoutMS=_PATIENCE_MS) as client:
            primary = client.admin.command("hello")["primary"]
        process = self.members[int(primary.rpartition(":")[2])]
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)


@contextmanager
def replica_set(directory: Path) -> Iterator[ReplicaSet]:
    """Three members on files of their own, with a primary."""
    with ExitStack() as opened:
        members = {port: opened.enter_context(_member(directory, port)) for port in _ports()}
        made = ReplicaSet(members)
        _initiate(list(members))
        with MongoClient[dict[str, Any]](made.uri, serverSelectionTimeoutMS=_PATIENCE_MS) as client:
            client.admin.command("ping")
        yield made


def _ports() -> list[int]:
    return [free_port() for _ in range(MEMBERS)]


@contextmanager
def _member(directory: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    files = directory / str(port)
    files.mkdir()
    listening = ["--bind_ip", LOOPBACK, "--port", str(port), "--nounixsocket"]
    mongod = [str(find_mongod()), *_options(files), *listening]
    command = [*child_process.launcher(), *mongod]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def _initiate(ports: list[int]) -> None:
    members = [{"_id": n, "host": f"{LOOPBACK}:{port}"} for n, port in enumerate(ports)]
    for port in ports:
        with _directly(port) as client:
            client.admin.command("ping")
    settings = {"electionTimeoutMillis": _ELECTION_MS}
    with _directly(ports[0]) as client:
        client.admin.command(
            "replSetInitiate", {"_id": REPLICA_SET, "members": members, "settings": settings}
        )


def _directly(port: int) -> MongoClient[dict[str, Any]]:
    return MongoClient(LOOPBACK, port, directConnection=True, serverSelectionTimeoutMS=_PATIENCE_MS)
