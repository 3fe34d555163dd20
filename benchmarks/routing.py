"""`routing`: what panels add from commit to receipt: 100,000 patients, 1,000 practices, one Subscription of each.

The same admissions are told by Subscriptions that name the patient and by those that name the practice, in two
databases with the same population. Both servers run side by side and take turns, so what else the machine does meets
both.

`python -m benchmarks.routing SCALE` runs with so many times fewer patients and practices, for a quick look.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bson import CodecOptions
from pymongo import MongoClient

from app.fhir import json as fhir_json
from app.records.versions import with_meta
from app.runtime.embedded_mongod import EmbeddedMongo
from app.search.extract import extract, index_models
from benchmarks import notices, processes
from benchmarks.notices import Admit, Figures

PATIENTS, PRACTICES = 100_000, 1_000
RATE, ROUNDS = 20, 5
ADDED_BAR_MS = 5.0
_AT = datetime(2026, 1, 1, tzinfo=UTC)
_CONNECTION = "http://terminology.hl7.org/CodeSystem/endpoint-connection-type"
_BATCH = 5_000


def measure(say: Callable[[str], None], *, seconds: float, scale: int = 1) -> Figures:
    """Milliseconds of the median notice either way, and their difference with its bar."""
    with (
        tempfile.TemporaryDirectory(prefix="carerelay-bench-") as directory,
        EmbeddedMongo(Path(directory)) as mongo,
        processes.receiver() as receiver,
    ):
        patients, practices = PATIENTS // scale, PRACTICES // scale
        endpoint = f"http://127.0.0.1:{receiver}/"
        admitted = [f"p{number}" for number in range(0, patients, patients // practices)]
        ways = {
            "plain": [f"patient=Patient/{each}" for each in admitted],
            "routed": [f"general-practitioner=Organization/o{n}" for n in range(practices)],
        }
        say("routing: storing the population")
        for database, filters in ways.items():
            asyncio.run(notices.subscribe(mongo.uri, database, endpoint, filters))
        _seed(mongo.uri, list(ways), patients, practices, endpoint)
        with (
            processes.server_on(mongo.uri, "plain") as plain,
            processes.server_on(mongo.uri, "routed") as routed,
        ):
            say("routing: admissions")
            return asyncio.run(_compare(plain, routed, receiver, admitted, seconds))


async def _compare(
    plain: int, routed: int, receiver: int, patients: list[str], seconds: float
) -> Figures:
    found: dict[str, list[float]] = {"plain": [], "routed": []}
    async with notices.client(plain) as admit_plain, notices.client(routed) as admit_routed:
        admits = {"plain": admit_plain, "routed": admit_routed}
        for admit in admits.values():
            await _round(admit, receiver, patients, notices.WARM_UP_SECONDS)
        for number in range(ROUNDS):
            order = list(admits) if number % 2 else list(reversed(admits))
            for way in order:
                found[way].append(await _round(admits[way], receiver, patients, seconds / 2))
    added = [b - a for a, b in zip(found["plain"], found["routed"], strict=True)]
    return {
        "plain_p50_ms": round(median(found["plain"]), 2),
        "routed_p50_ms": round(median(found["routed"]), 2),
        "added_p50_ms": round(median(added), 2),
        "added_p50_ms_bar": ADDED_BAR_MS,
    }


async def _round(admit: Admit, receiver: int, patients: list[str], seconds: float) -> float:
    """The median of the milliseconds from an answered commit to its notice."""
    committed = await notices.at_rate(admit, RATE, seconds, patients)
    came = await notices.received(receiver, len(committed))
    return median((came[id_] - answered) * 1000 for id_, (_, answered) in committed.items())


def _population(patients: int, practices: int, endpoint: str) -> Iterator[dict[str, Any]]:
    """Practices of one doctor each; every patient is in the panel of one of them."""
    for number in range(practices):
        yield {
            "resourceType": "Endpoint",
            "id": f"e{number}",
            "status": "active",
            "connectionType": {"system": _CONNECTION, "code": "hl7-fhir-rest"},
            "payloadType": [{"text": "Notices"}],
            "address": endpoint,
        }
        yield {
            "resourceType": "Organization",
            "id": f"o{number}",
            "name": f"Practice {number}",
            "endpoint": [{"reference": f"Endpoint/e{number}"}],
        }
        yield {
            "resourceType": "PractitionerRole",
            "id": f"r{number}",
            "active": True,
            "practitioner": {"reference": f"Practitioner/d{number}"},
            "organization": {"reference": f"Organization/o{number}"},
        }
    panel = patients // practices
    for number in range(patients):
        yield {
            "resourceType": "Patient",
            "id": f"p{number}",
            "name": [{"family": f"Family {number}", "given": ["Given"]}],
            "birthDate": "1951-05-17",
            "generalPractitioner": [{"reference": f"PractitionerRole/r{number // panel}"}],
        }


def _seed(uri: str, databases: list[str], patients: int, practices: int, endpoint: str) -> None:
    """Store the population as the server would have, in each database."""
    options: CodecOptions[dict[str, Any]] = CodecOptions(tz_aware=True, tzinfo=UTC)
    with MongoClient[dict[str, Any]](uri) as client:
        opened = [client.get_database(name, options) for name in databases]
        for kind, documents in _batches(_population(patients, practices, endpoint)):
            for database in opened:
                database[kind].insert_many(documents, ordered=False)
        for database in opened:
            for kind in ("Patient", "PractitionerRole", "Organization", "Endpoint"):
                database[kind].create_indexes(index_models(kind))


def _batches(
    resources: Iterable[dict[str, Any]],
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    waiting: dict[str, list[dict[str, Any]]] = {}
    for resource in resources:
        kind = resource["resourceType"]
        whole = with_meta(resource, resource["id"], 1, _AT)
        text = fhir_json.encode(whole).decode()
        documents = waiting.setdefault(kind, [])
        documents.append(
            {**extract(kind, whole), "_id": whole["id"], "v": 1, "at": _AT, "text": text}
        )
        if len(documents) == _BATCH:
            yield kind, waiting.pop(kind)
    yield from waiting.items()


if __name__ == "__main__":
    begun = time.perf_counter()
    scale = int(sys.argv[1]) if len(sys.argv) > 1 else 1
    figures = measure(lambda _: None, seconds=6, scale=scale)
    print(json.dumps({**figures, "took_s": round(time.perf_counter() - begun, 1)}, indent=2))
