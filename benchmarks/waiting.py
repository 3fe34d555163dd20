"""`waiting`: what it costs that the notices of a dead endpoint wait, beside a server that has nothing to do.

The processor time of server and database over some seconds, without the rows and with them.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from pymongo import MongoClient

from app.fhir.ids import new_id
from app.runtime.embedded_mongod import EmbeddedMongo
from app.subscriptions.ledger.ledger import BEHIND, WAITING
from benchmarks import processes
from benchmarks.notices import TOPIC

NAME = "waiting"
ROWS, OF_A_LANE = 300_000, 3
# Percent of a core that the rows may cost.
BAR = 2.0
SECONDS = 60.0
_AT_ONCE = 5000
_TICKS = os.sysconf("SC_CLK_TCK")


def measure(say: Callable[[str], Any], seconds: float = SECONDS) -> dict[str, Any]:
    """Percent of a core that the rows cost, and updates in a second."""
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedMongo(Path(directory)) as mongod,
        MongoClient[dict[str, Any]](mongod.uri) as client,
        _endpoint() as endpoint,
        processes.server(mongod.uri) as port,
    ):
        say(f"{NAME}: one admission")
        row = _one_that_waits(port, endpoint, client)
        say(f"{NAME}: idle")
        time.sleep(15)
        idle, _ = _used(client, seconds)
        say(f"{NAME}: {ROWS} rows")
        _fill(client, row)
        time.sleep(15)
        say(f"{NAME}: waiting")
        waiting, updates = _used(client, seconds)
    return {
        "rows": ROWS,
        "idle_percent": idle,
        "waiting_percent": waiting,
        "cost_percent": waiting - idle,
        "cost_percent_bar": BAR,
        "updates_per_second": updates,
    }


@contextmanager
def _endpoint() -> Iterator[str]:
    """An endpoint that takes handshakes, and answers everything else with 503."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            self.send_response(200 if b'"handshake"' in body else 503)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Nothing is printed."""

    with ThreadingHTTPServer((processes.LOOPBACK, 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{processes.LOOPBACK}:{server.server_address[1]}"
        server.shutdown()


def _one_that_waits(
    port: int, endpoint: str, client: MongoClient[dict[str, Any]]
) -> dict[str, Any]:
    """The row of a notice that the endpoint does not take."""
    with httpx.Client(base_url=f"http://{processes.LOOPBACK}:{port}/fhir") as fhir:
        made = fhir.post("/Subscription", json=_subscription(endpoint))
        made.raise_for_status()
        while fhir.get(f"/Subscription/{made.json()['id']}").json()["status"] != "active":
            time.sleep(0.1)
        for number in range(20):
            fhir.post("/Encounter", json=_admission(f"Patient/p{number}")).raise_for_status()
    deliveries = client["carerelay"]["deliveries"]
    while (row := deliveries.find_one({"open": True, "next_at": WAITING})) is None:
        time.sleep(0.1)
    return row


def _subscription(endpoint: str) -> dict[str, Any]:
    content = (
        "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/backport-payload-content"
    )
    return {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": "Benchmark",
        "criteria": TOPIC,
        "channel": {
            "type": "rest-hook",
            "endpoint": endpoint,
            "payload": "application/fhir+json",
            "_payload": {"extension": [{"url": content, "valueCode": "id-only"}]},
        },
    }


def _admission(patient: str) -> dict[str, Any]:
    class_ = {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"}
    subject = {"reference": patient}
    return {
        "resourceType": "Encounter",
        "status": "in-progress",
        "class": class_,
        "subject": subject,
    }


def _fill(client: MongoClient[dict[str, Any]], row: dict[str, Any]) -> None:
    """Copies of the row, a few about each of many patients, as they wait for their endpoint and for each other."""
    deliveries = client["carerelay"]["deliveries"]
    for begin in range(0, ROWS, _AT_ONCE):
        deliveries.insert_many(
            {
                **row,
                "_id": new_id(),
                "event": new_id(),
                "number": 1000 + number,
                "lane": f"{row['subscription']}|Patient/w{number % (ROWS // OF_A_LANE)}",
                "state": "queued",
                "next_at": WAITING if number < ROWS // OF_A_LANE else BEHIND,
                "publish": row["created_at"] + timedelta(days=1),
                "attempt": 0,
                "attempts": [],
            }
            for number in range(begin, begin + _AT_ONCE)
        )


def _used(client: MongoClient[dict[str, Any]], seconds: float) -> tuple[float, float]:
    """Percent of a core that the processes under this one use, and updates in a second."""
    begun, ticks, updated = time.monotonic(), _ticks(), _updated(client)
    time.sleep(seconds)
    took = time.monotonic() - begun
    return 100 * (_ticks() - ticks) / _TICKS / took, (_updated(client) - updated) / took


def _updated(client: MongoClient[dict[str, Any]]) -> int:
    return int(client.admin.command("serverStatus")["metrics"]["document"]["updated"])


def _ticks() -> int:
    """Processor time of all processes that this one has begun, and of those that they have."""
    parents: dict[int, int] = {}
    used: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(") ")[2].split()
            except OSError:  # it has ended
                continue
            parents[int(entry.name)] = int(fields[1])
            used[int(entry.name)] = int(fields[11]) + int(fields[12])
    found, total = {os.getpid()}, 0
    while new := {pid for pid, parent in parents.items() if parent in found} - found:
        total += sum(used[pid] for pid in new)
        found |= new
    return total
