"""`authorized`: what authorization, scopes and the audit cost together: the server with them against one without.

Both serve databases of their own under one mongod and take short turns under the same load, each one first as often as
the other: a shared machine is fast one moment and slow the next. The client is an administrator's, whom no compartment
limits; what is asked of it is on record before it is answered.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from app.runtime.embedded_mongod import EmbeddedMongo
from benchmarks import processes
from benchmarks.workloads import BEARER_FROM, STORED

NAME = "authorized"
# The share of throughput that may be lost.
BARS = {"read": 0.20, "create": 0.10}
_FILL_SECONDS = 120.0
_TURN_SECONDS = 1.5
_SETTINGS = {"CARERELAY_AUTH": "smart", "CARERELAY_RATE_LIMIT": "0"}

Figures = dict[str, float]


def measure(say: Callable[[str], None], *, seconds: float, runs: int) -> Figures:
    """The share of throughput that is lost, for each workload, in as many turns as fit into the runs."""
    turns = max(2, round(seconds * runs / _TURN_SECONDS))
    with (
        tempfile.TemporaryDirectory(prefix="carerelay-bench-") as directory,
        EmbeddedMongo(Path(directory)) as mongo,
        processes.server_on(mongo.uri, "open") as plain,
        _guarded(mongo.uri, Path(directory)) as (guarded, token),
    ):
        say("authorized: storing Encounters")
        ports = {"": plain, token: guarded}
        for held, port in ports.items():
            _load("fill", port, held, _FILL_SECONDS, STORED)
        figures: Figures = {}
        for workload, bar in BARS.items():
            done = dict.fromkeys(ports, 0.0)
            order = list(ports)
            for number in range(turns):
                say(f"authorized: {workload}, turn {number + 1} of {turns}")
                for held in order:
                    done[held] += _load(workload, ports[held], held, _TURN_SECONDS)
                order.reverse()
            figures[f"{workload}_cost"] = round(1 - done[token] / done[""], 3)
            figures[f"{workload}_cost_bar"] = bar
        return figures


def _load(
    workload: str, port: int, token: str, seconds: float, requests: int | None = None
) -> float:
    """Units per second, asked for with the token."""
    os.environ[BEARER_FROM] = token
    try:
        return processes.load(workload, port, seconds, requests)["per_second"]
    finally:
        del os.environ[BEARER_FROM]


@contextmanager
def _guarded(uri: str, directory: Path) -> Iterator[tuple[int, str]]:
    """A server that wants tokens, and one of an administrator's client."""
    key = directory / "client.jwk"
    database = {
        "CARERELAY_MONGODB_URI": uri,
        "CARERELAY_MONGODB_DATABASE": "guarded",
        "CARERELAY_DATA": str(directory / "guarded"),
        **_SETTINGS,
    }
    os.environ |= database
    try:
        client = _carerelay(
            *("clients", "add", "--name", "bench", "--role", "administrator"),
            *("--scopes", "system/*.cruds", "--new-key", str(key)),
        ).split()[-1]
        with processes.server_on(uri, "guarded") as port:
            base = f"http://{processes.LOOPBACK}:{port}/fhir"
            yield port, _carerelay("clients", "token", client, "--key", str(key), "--url", base)
    finally:
        for name in database:
            os.environ.pop(name, None)


def _carerelay(*arguments: str) -> str:
    """What a command prints. Raises BenchmarkError."""
    command = [sys.executable, "-m", "app.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise processes.BenchmarkError(done.stderr.strip() or done.stdout.strip())
    return done.stdout.strip()
