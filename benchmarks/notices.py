"""How fast notices are: from commit to receipt at a steady rate, and one event to a thousand subscribers.

A commit counts from the moment its answer is read: the first that anybody outside the server can know of it. All
processes are on one machine and read one clock.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import aiohttp

from app.fhir.ids import new_id
from app.records.versions import Change
from app.runtime.embedded_mongod import EmbeddedMongo
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store.store import Store
from benchmarks import processes

Figures = dict[str, float]

TOPIC = "http://carerelay.example/SubscriptionTopic/encounter-admission"
_BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
_ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
WARM_UP_SECONDS = 2.0
PATIENTS = 100
FAN_OUT, FAN_OUT_EVENTS, FAN_OUT_CONNECTIONS = 1000, 10, 32
GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class Latency:
    """A steady rate of admissions, each of which concerns one of so many Subscriptions. Bars in milliseconds."""

    rate: int
    subscriptions: int
    p50_bar: float = 5.0
    p99_bar: float = 25.0


LATENCIES = {
    "latency20": Latency(20, 100),
    "latency100": Latency(100, 100),
    "latency100x1": Latency(100, 1),
    "latency100x10k": Latency(100, 10_000),
    "latency300": Latency(300, 100, p50_bar=50.0, p99_bar=250.0),
}
DELIVERIES_BAR, DELIVERIES_PER_SECOND = 0.4, 1000
NAMES = (*LATENCIES, "deliveries")


def measure_all(
    names: list[str], *, seconds: float, say: Callable[[str], None]
) -> dict[str, Figures]:
    """As `measure`, on a database of their own."""
    with (
        tempfile.TemporaryDirectory(prefix="carerelay-bench-") as directory,
        EmbeddedMongo(Path(directory)) as mongo,
    ):
        return measure(names, mongo.uri, seconds=seconds, say=say)


def measure(
    names: list[str], uri: str, *, seconds: float, say: Callable[[str], None]
) -> dict[str, Figures]:
    """The figures of these benchmarks, each on a database of its own. Raises processes.BenchmarkError."""
    figures = {}
    for name in names:
        say(name)
        if name == "deliveries":
            figures[name] = asyncio.run(_deliveries(uri, say))
        else:
            figures[name] = asyncio.run(_latency(uri, name, LATENCIES[name], seconds))
    return figures


async def _latency(uri: str, name: str, workload: Latency, seconds: float) -> Figures:
    with processes.receiver() as receiver:
        patients = [f"p{number}" for number in range(max(workload.subscriptions, PATIENTS))]
        # One alone hears of every patient: notices about one and the same wait for each other.
        filters: Sequence[str | None] = [None]
        if workload.subscriptions > 1:
            filters = [f"patient=Patient/{patient}" for patient in patients]
        await subscribe(uri, name, f"http://127.0.0.1:{receiver}/", filters, patients)
        with processes.server_on(uri, name) as server:
            async with client(server) as admit:
                await at_rate(admit, workload.rate, WARM_UP_SECONDS, patients)
                await received(receiver, int(workload.rate * WARM_UP_SECONDS))
                committed = await at_rate(admit, workload.rate, seconds, patients)
                came = await received(receiver, len(committed))
    waits = sorted((came[id_] - answered) * 1000 for id_, (_, answered) in committed.items())
    writes = [(answered - sent) * 1000 for sent, answered in committed.values()]
    last = max(came.values()) - max(answered for _, answered in committed.values())
    return {
        "p50_ms": _rounded(waits[len(waits) // 2]),
        "p99_ms": _rounded(waits[len(waits) * 99 // 100]),
        "p50_ms_bar": workload.p50_bar,
        "p99_ms_bar": workload.p99_bar,
        "write_p50_ms": _rounded(median(writes)),
        "queue_at_end_ms": _rounded(max(0.0, last) * 1000),
        "events": len(waits),
    }


async def _deliveries(uri: str, say: Callable[[str], None]) -> Figures:
    """One event after another to a thousand Subscriptions, then the same bodies by a bare client."""
    with processes.receiver() as receiver:
        url = f"http://127.0.0.1:{receiver}/"
        patients = [f"p{number}" for number in range(FAN_OUT_EVENTS)]
        await subscribe(uri, "deliveries", url, [None] * FAN_OUT, patients)
        with processes.server_on(uri, "deliveries") as server:
            async with client(server) as admit:
                await admit("warm-up", "p0")
                await received(receiver, FAN_OUT, distinct=False)
                ratios, ours, bare = [], [], []
                for run in range(3):
                    say(f"deliveries: run {run + 1} of 3")
                    begun = time.perf_counter()
                    for number in range(FAN_OUT_EVENTS):
                        await admit(f"fan-{run}-{number}", f"p{number}")
                    last = await received(receiver, FAN_OUT * FAN_OUT_EVENTS, distinct=False)
                    ours.append(FAN_OUT * FAN_OUT_EVENTS / (max(last.values()) - begun))
                    bodies = await _bodies(uri, url)
                    bare.append(await _bare(url, bodies * FAN_OUT_EVENTS))
                    ratios.append(ours[-1] / bare[-1])
                    await received(receiver, FAN_OUT * FAN_OUT_EVENTS, distinct=False)
    return {
        "ours": _rounded(median(ours)),
        "baseline": _rounded(median(bare)),
        "ratio": _rounded(median(ratios)),
        "bar": DELIVERIES_BAR,
        "ours_bar": DELIVERIES_PER_SECOND,
    }


async def _bodies(uri: str, url: str) -> list[bytes]:
    """What the server sent: the bodies of one event's notices, composed again."""
    from app.subscriptions.notices import notification

    settings = Settings(mongodb_uri=uri, mongodb_database="deliveries")
    mongo = await Mongo.open(settings)
    rows = await mongo.collection("deliveries").find({}).limit(FAN_OUT).to_list(None)
    await mongo.close()
    bodies = []
    for row in rows:
        head = notification.Head(
            id=row["_id"],
            base_url=f"{url}fhir",
            subscription=row["subscription"],
            topic=row["topic"],
            status="active",
            content="id-only",
            number=row["number"],
            at=row["created_at"],
        )
        focus = notification.Focus(
            "Encounter", row["focus"]["id"], 1, "create", row["focus"]["at"], [row["trigger"]]
        )
        body = notification.event_notification(head, focus, {"Patient/p0": None})
        bodies.append(json.dumps(body).encode())
    return bodies


async def _bare(url: str, bodies: list[bytes]) -> float:
    """Bodies per second that a bare aiohttp client posts over as many connections."""
    waiting = iter(bodies)
    connector = aiohttp.TCPConnector(limit=FAN_OUT_CONNECTIONS)
    headers = {"Content-Type": "application/fhir+json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def post() -> None:
            for body in waiting:
                async with session.post(url, data=body) as response:
                    await response.read()

        begun = time.perf_counter()
        await asyncio.gather(*(post() for _ in range(FAN_OUT_CONNECTIONS)))
        return len(bodies) / (time.perf_counter() - begun)


async def subscribe(
    uri: str,
    database: str,
    endpoint: str,
    filters: Sequence[str | None],
    patients: Sequence[str] = (),
) -> None:
    """Store active Subscriptions, in an empty database, before the server starts; None concerns every admission.

    The patients are those of one practice, so that nobody has to look into whom to tell.
    """
    mongo = await Mongo.open(Settings(mongodb_uri=uri, mongodb_database=database))
    await mongo.client.drop_database(database)
    store = Store(mongo)
    await store.prepare()
    private = {"headers": [], "base_url": f"{endpoint}fhir"}
    for begin in range(0, len(filters), 200):
        await store.commit(
            [
                Change(
                    "create",
                    "Subscription",
                    new_id(),
                    _subscription(endpoint, filter_),
                    None,
                    private,
                )
                for filter_ in filters[begin : begin + 200]
            ]
        )
    known = [*_practice(endpoint), *map(_patient, patients)] if patients else []
    for begin in range(0, len(known), 200):
        await store.commit(
            [
                Change("create", resource["resourceType"], resource["id"], resource)
                for resource in known[begin : begin + 200]
            ]
        )
    # As a server leaves them: nothing to do at the start of the run.
    await mongo.collection("events").update_many({}, {"$set": {"state": "done"}})
    await mongo.close()


def _practice(endpoint: str) -> list[dict[str, Any]]:
    """A practice of one doctor, with an endpoint, and the hospital that sends the admissions."""
    connection = "http://terminology.hl7.org/CodeSystem/endpoint-connection-type"
    return [
        {
            "resourceType": "Endpoint",
            "id": "e0",
            "status": "active",
            "connectionType": {"system": connection, "code": "hl7-fhir-rest"},
            "payloadType": [{"text": "Notices"}],
            "address": endpoint,
        },
        {
            "resourceType": "Organization",
            "id": "o0",
            "name": "Practice",
            "endpoint": [{"reference": "Endpoint/e0"}],
        },
        {"resourceType": "Organization", "id": "h0", "name": "Hospital"},
        {
            "resourceType": "Practitioner",
            "id": "d0",
            "name": [{"family": "Family", "given": ["Given"]}],
        },
        {
            "resourceType": "PractitionerRole",
            "id": "r0",
            "active": True,
            "practitioner": {"reference": "Practitioner/d0"},
            "organization": {"reference": "Organization/o0"},
        },
    ]


def _patient(patient_id: str) -> dict[str, Any]:
    return {
        "resourceType": "Patient",
        "id": patient_id,
        "name": [{"family": "Family", "given": ["Given"]}],
        "birthDate": "1951-05-17",
        "generalPractitioner": [{"reference": "PractitionerRole/r0"}],
    }


def _subscription(endpoint: str, filter_: str | None) -> dict[str, Any]:
    content = {"url": f"{_BACKPORT}backport-payload-content", "valueCode": "id-only"}
    subscription: dict[str, Any] = {
        "resourceType": "Subscription",
        "status": "active",
        "reason": "Admissions of our patients",
        "criteria": TOPIC,
        "channel": {
            "type": "rest-hook",
            "endpoint": endpoint,
            "payload": "application/fhir+json",
            "_payload": {"extension": [content]},
        },
    }
    if filter_ is not None:
        criteria = {"url": f"{_BACKPORT}backport-filter-criteria", "valueString": filter_}
        subscription["_criteria"] = {"extension": [criteria]}
    return subscription


Admit = Callable[[str, str], Any]


@asynccontextmanager
async def client(port: int) -> AsyncIterator[Admit]:
    """Stores an admission and returns when it was sent and answered."""
    connector = aiohttp.TCPConnector(limit=64)
    headers = {"Content-Type": "application/fhir+json"}
    async with aiohttp.ClientSession(connector=connector, headers=headers) as session:

        async def admit(id_: str, patient: str) -> tuple[float, float]:
            encounter = {
                "resourceType": "Encounter",
                "id": id_,
                "status": "in-progress",
                "class": {"system": _ACT_CODE, "code": "IMP"},
                "subject": {"reference": f"Patient/{patient}"},
                "period": {"start": "2026-11-20T08:30:00Z"},
                "participant": [
                    {
                        "type": [{"coding": [{"system": _PARTICIPATION, "code": "ATND"}]}],
                        "individual": {"reference": "Practitioner/d0"},
                    }
                ],
                "serviceProvider": {"reference": "Organization/h0"},
            }
            body = json.dumps(encounter).encode()
            url = f"http://127.0.0.1:{port}/fhir/Encounter/{id_}"
            sent = time.perf_counter()
            async with session.put(url, data=body) as response:
                answered = time.perf_counter()
                if response.status != 201:
                    raise processes.BenchmarkError(f"An admission was answered {response.status}")
            return sent, answered

        yield admit


async def at_rate(
    admit: Admit, rate: int, seconds: float, patients: list[str]
) -> dict[str, tuple[float, float]]:
    """Admissions at a steady rate, whether or not earlier ones are answered; when each was sent and answered."""
    begun = time.perf_counter()
    tasks: dict[str, asyncio.Task[tuple[float, float]]] = {}
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, begun + number / rate - time.perf_counter()))
        id_ = new_id()
        tasks[id_] = asyncio.create_task(admit(id_, patients[number % len(patients)]))
    return {id_: await task for id_, task in tasks.items()}


async def received(port: int, count: int, *, distinct: bool = True) -> dict[str, float]:
    """When each notice came, by its focus, once so many have come; the last of each focus unless `distinct`."""
    came: dict[str, float] = {}
    number = 0
    give_up = time.perf_counter() + GRACE_SECONDS
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"http://127.0.0.1:{port}/") as response:
                news = json.loads(await response.read())
            for focus, at in news:
                came[focus] = min(at, came.get(focus, at)) if distinct else at
            number = len(came) if distinct else number + len(news)
            if number >= count:
                return came
            if time.perf_counter() > give_up:
                raise processes.BenchmarkError(f"Only {number} of {count} notices came.")
            await asyncio.sleep(0.2)


def _rounded(value: float) -> float:
    return round(value, 2)
