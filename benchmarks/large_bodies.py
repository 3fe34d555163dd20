"""`large_bodies`: what one client that sends the largest bodies without pause costs the others.

Beside the sender one client reads and one asks for health, each one request after another with a short rest between.
How long they wait is measured first without the sender and then with each kind of body. The sender is a process of its
own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from app.runtime.embedded_mongod import EmbeddedMongo
from benchmarks import processes

NAME = "large_bodies"
READ_BAR_MS, HEALTH_BAR_MS = 100.0, 250.0
# What a server may hold, its codec process included.
MEMORY_BAR_MIB = 600.0
_REST = 0.01
_SETTLE_SECONDS = 60.0
_JSON, _XML = "application/fhir+json", "application/fhir+xml"

Figures = dict[str, Any]


def measure(say: Callable[[str], Any], *, seconds: float) -> Figures:
    """The waits of the others in milliseconds, for each kind of body, and the memory that it took."""
    with (
        tempfile.TemporaryDirectory(prefix="carerelay-bench-") as directory,
        EmbeddedMongo(Path(directory)) as mongo,
        processes.server(mongo.uri) as port,
    ):
        _put(port)
        say(f"{NAME}: alone")
        figures: Figures = {"alone": _waits(port, seconds)}
        for kind in BODIES:
            say(f"{NAME}: {kind}")
            figures[kind] = _beside(kind, port, seconds)
            _settle(port, figures["alone"])
    loaded = [figures[kind] for kind in BODIES]
    figures["read_p99_ms"] = max(each["read_p99_ms"] for each in loaded)
    figures["read_p99_ms_bar"] = READ_BAR_MS
    figures["health_max_ms"] = max(each["health_max_ms"] for each in loaded)
    figures["health_max_ms_bar"] = HEALTH_BAR_MS
    figures["memory_mib"] = max(each["memory_mib"] for each in loaded)
    figures["memory_mib_bar"] = MEMORY_BAR_MIB
    return figures


def _beside(kind: str, port: int, seconds: float) -> Figures:
    command = [sys.executable, "-m", "benchmarks.large_bodies", kind, str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as sender:
        assert sender.stdout is not None
        sender.stdout.readline()  # its first body is under way
        try:
            waits = _waits(port, seconds)
            return {**waits, "memory_mib": _resident_mib(port)}
        finally:
            sender.terminate()


def _settle(port: int, alone: Figures) -> None:
    """Wait until the server is done with what the sender left behind."""
    give_up = time.monotonic() + _SETTLE_SECONDS
    while time.monotonic() < give_up:
        if _waits(port, 1.0)["read_p50_ms"] < 2 * alone["read_p50_ms"]:
            return


def _waits(port: int, seconds: float) -> Figures:
    found: dict[str, list[float]] = {"/fhir/Patient/large-bodies": [], "/healthz": []}
    threads = [
        threading.Thread(target=_ask, args=(port, path, seconds, waits))
        for path, waits in found.items()
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    reads, health = (sorted(waits) for waits in found.values())
    return {
        "reads": len(reads),
        "read_p50_ms": reads[len(reads) // 2],
        "read_p99_ms": reads[len(reads) * 99 // 100],
        "health_max_ms": health[-1],
    }


def _ask(port: int, path: str, seconds: float, waits: list[float]) -> None:
    connection = HTTPConnection(processes.LOOPBACK, port, timeout=60)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        if answer.status != 200:
            raise processes.BenchmarkError(f"{path}: {answer.status}")
        waits.append((time.perf_counter() - begun) * 1000)
        time.sleep(_REST)


def _put(port: int) -> None:
    patient = {"resourceType": "Patient", "id": "large-bodies"}
    connection = HTTPConnection(processes.LOOPBACK, port, timeout=60)
    body = json.dumps(patient)
    connection.request("PUT", "/fhir/Patient/large-bodies", body, {"Content-Type": _JSON})
    if connection.getresponse().status not in (200, 201):
        raise processes.BenchmarkError("the Patient was not stored")


def _resident_mib(port: int) -> float:
    """What the server that listens there and its children hold in memory."""
    pid = next(
        int(place.name)
        for place in Path("/proc").glob("[0-9]*")
        if _listens(place, port) and b"serve" in (place / "cmdline").read_bytes()
    )
    children = (Path(f"/proc/{pid}/task/{pid}/children").read_text()).split()
    return sum(_resident(int(each)) for each in (pid, *children)) / 1024


def _listens(place: Path, port: int) -> bool:
    try:
        inodes = {
            line.split()[9]
            for line in (place / "net/tcp").read_text().splitlines()[1:]
            if line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A"
        }
        return any(link.readlink().name[8:-1] in inodes for link in (place / "fd").iterdir())
    except OSError:
        return False


def _resident(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


# The sender


def _group() -> bytes:
    members = [{"entity": {"reference": f"Patient/large-{n:08}"}} for n in range(100_000)]
    group = {"resourceType": "Group", "type": "person", "actual": True, "member": members}
    return json.dumps(group).encode()


def _observation() -> bytes:
    component = {
        "code": {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]},
        "valueQuantity": {"value": 120.5, "unit": "mmHg"},
    }
    observation = {
        "resourceType": "Observation",
        "status": "final",
        "code": {"text": "blood pressure"},
        "component": [component] * 50_000,
    }
    return json.dumps(observation).encode()


def _transaction() -> bytes:
    encounter = {
        "resourceType": "Encounter",
        "status": "finished",
        "class": {"code": "IMP"},
        "subject": {"reference": "Patient/large-bodies"},
        "text": {
            "status": "generated",
            "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{"ward " * 100}</div>',
        },
    }
    entry = {"resource": encounter, "request": {"method": "POST", "url": "Encounter"}}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry] * 10_000}
    return json.dumps(bundle).encode()


def _xml() -> bytes:
    member = b'<member><entity><reference value="Patient/large-%08d"/></entity></member>'
    members = b"".join(member % number for number in range(90_000))
    head = b'<Group xmlns="http://hl7.org/fhir"><type value="person"/><actual value="true"/>'
    return head + members + b"</Group>"


# Where each is posted, as what, and how it is made.
BODIES: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "group": ("/fhir/Group", _JSON, _group),
    "validate": ("/fhir/Observation/$validate", _JSON, _observation),
    "transaction": ("/fhir", _JSON, _transaction),
    "xml": ("/fhir/Group", _XML, _xml),
}


def _send(kind: str, port: int) -> None:
    """Send one body after another until somebody ends this."""
    path, media_type, make = BODIES[kind]
    body = make()
    headers = {"Content-Type": media_type, "Prefer": "return=minimal"}
    connection = HTTPConnection(processes.LOOPBACK, port, timeout=300)
    print("sending", flush=True)
    while True:
        connection.request("POST", path, body, headers)
        connection.getresponse().read()


if __name__ == "__main__":
    _send(sys.argv[1], int(sys.argv[2]))
