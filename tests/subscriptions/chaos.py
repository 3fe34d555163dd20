"""Three server processes, a database and a practice's endpoint, and somebody who kills them at random moments.

What must hold afterwards: every admission that was committed has reached every Subscription at least once, the numbers
of each Subscription run from 1 without a gap and always mean the same event, and nothing was told that is not stored.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from app.runtime import child_process
from app.runtime.embedded_mongod import EmbeddedMongo
from app.runtime.mongo import Mongo
from app.settings import Settings
from tests.builders.receiver import Receiver
from tests.builders.subscriptions import encounter, topic_based
from tests.log_watch import WATCH
from tests.processes import environment, free_port

SERVERS = 3
WRITERS = 8
# What a restarted process may take to serve, and what is left undone may take to be found and sent.
PATIENCE_SECONDS = 60.0


@dataclass
class Cluster:
    """The processes under attack. `committed`: the ids of admissions that were answered."""

    uri: str
    directory: Path
    ports: list[int]
    random: random.Random
    mongo: EmbeddedMongo | None = None
    servers: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    committed: set[str] = field(default_factory=set)

    def start(self, port: int) -> None:
        """A server on this port; one that was there is gone. What both say goes into one file."""
        serve = ["-m", "app.cli", "serve", "--port", str(port), "--mongodb-uri", self.uri]
        with self._log(port).open("ab") as log:
            self.servers[port] = subprocess.Popen(
                [*child_process.launcher(), sys.executable, *serve],
                env=environment(),
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def _log(self, port: int) -> Path:
        return self.directory / f"server-{port}.log"

    def kill_server(self) -> None:
        """SIGKILL to one of the servers, and another in its place."""
        port = self.random.choice(self.ports)
        self.servers[port].send_signal(signal.SIGKILL)
        self.servers[port].wait()
        self.start(port)

    async def kill_mongod(self) -> None:
        """SIGKILL to the database, which comes back at the same address."""
        assert self.mongo is not None
        self.mongo.process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(self.mongo.process.wait)
        self.mongo.stop()
        self.mongo.start()

    def stop(self) -> None:
        for server in self.servers.values():
            server.kill()
            server.wait()
        for port in self.ports:
            WATCH.look(self._log(port).read_text())

    async def ready(self) -> None:
        """Return once all servers answer."""
        async with httpx.AsyncClient(timeout=5) as client:
            give_up = time.monotonic() + PATIENCE_SECONDS
            for port in self.ports:
                while not await _is_ready(client, port):
                    said = self._log(port).read_text()[-2000:]
                    assert self.servers[port].poll() is None, f"a server has ended: {said}"
                    assert time.monotonic() < give_up, f"a server does not come up: {said}"
                    await asyncio.sleep(0.1)

    async def subscribe(self, endpoint: str) -> str:
        """An active Subscription to all admissions."""
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.ports[0]}/fhir", timeout=30
        ) as client:
            response = await client.post("/Subscription", json=topic_based(endpoint=endpoint))
            assert response.status_code == 201, response.text
            id_: str = response.json()["id"]
            give_up = time.monotonic() + PATIENCE_SECONDS
            while (await client.get(f"/Subscription/{id_}")).json()["status"] != "active":
                assert time.monotonic() < give_up, "the Subscription did not become active"
                await asyncio.sleep(0.05)
        return id_

    async def admit(self, ids: list[str]) -> None:
        """Store these admissions through whichever server answers; return when all are acknowledged."""
        left = list(reversed(ids))

        async def write() -> None:
            async with httpx.AsyncClient(timeout=10) as client:
                while left:
                    id_ = left.pop()
                    while not await self._put(client, id_):  # noqa: ASYNC110
                        await asyncio.sleep(0.1)
                    self.committed.add(id_)

        await asyncio.gather(*(write() for _ in range(WRITERS)))

    async def _put(self, client: httpx.AsyncClient, id_: str) -> bool:
        url = f"http://127.0.0.1:{self.random.choice(self.ports)}/fhir/Encounter/{id_}"
        with contextlib.suppress(httpx.TransportError):
            body = {**encounter(patient=f"p-{id_}"), "id": id_}
            return (await client.put(url, json=body)).status_code in (200, 201)
        return False


async def _is_ready(client: httpx.AsyncClient, port: int) -> bool:
    try:
        return (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200
    except httpx.TransportError:
        return False


@asynccontextmanager
async def cluster(directory: Path, seed: int) -> AsyncIterator[Cluster]:
    """Three servers on a database of their own, all answering."""
    with EmbeddedMongo(directory) as mongo:
        async with servers(mongo.uri, directory, seed, SERVERS) as cluster:
            cluster.mongo = mongo
            yield cluster


@asynccontextmanager
async def servers(uri: str, directory: Path, seed: int, count: int) -> AsyncIterator[Cluster]:
    """So many servers on a database, all answering."""
    cluster = Cluster(uri, directory, [free_port() for _ in range(count)], random.Random(seed))
    try:
        for each in cluster.ports:
            cluster.start(each)
        await cluster.ready()
        yield cluster
    finally:
        cluster.stop()


async def verify(cluster: Cluster, receiver: Receiver, subscriptions: list[str]) -> None:
    """Wait until everything committed has arrived, and judge what did."""
    mongo = await Mongo.open(Settings(mongodb_uri=cluster.uri))
    try:
        stored = {
            row["_id"] for row in await mongo.collection("Encounter").find({}, {"_id": 1}).to_list()
        }
        assert cluster.committed <= stored
        give_up = time.monotonic() + PATIENCE_SECONDS
        told: dict[str, dict[int, str]] = {}
        while True:
            told = _told(receiver)
            missing = {s: stored - set(told.get(s, {}).values()) for s in subscriptions}
            if not any(missing.values()):
                break
            assert time.monotonic() < give_up, f"never told: {missing}"
            await asyncio.sleep(0.2)
        for subscription in subscriptions:
            numbers = told[subscription]
            assert sorted(numbers) == list(range(1, len(stored) + 1))
            assert sorted(numbers.values()) == sorted(stored)
            await _compare(mongo, subscription, numbers)
    finally:
        await mongo.close()


def _told(receiver: Receiver) -> dict[str, dict[int, str]]:
    """By Subscription: which event each number stood for; the same one at every repetition."""
    told: dict[str, dict[int, str]] = {}
    for received in receiver.events:
        reference = received.parameter("subscription")["reference"]
        numbers = told.setdefault(reference.rpartition("/")[2], {})
        focus = received.focus.rpartition("/")[2]
        assert numbers.setdefault(received.number, focus) == focus
    return told


async def _compare(mongo: Mongo, subscription: str, numbers: dict[int, str]) -> None:
    """The ledger says the same as the endpoint."""
    rows: list[dict[str, Any]] = await (
        mongo.collection("deliveries").find({"subscription": subscription}).to_list()
    )
    assert {row["number"]: row["focus"]["id"] for row in rows} == numbers
    assert len(rows) == len(numbers)
