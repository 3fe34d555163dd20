"""`match100k`: what an event, a Subscription and a start cost with 100,000 Subscriptions, each for another patient.

The events are Encounters of 1.7 kB; the cost of one is the extraction of its search fields, the topics it may fire, and
the look-up of those it concerns. Few and many Subscriptions take turns, so what else the machine does meets both.
"""

from __future__ import annotations

import asyncio
import gc
import json
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from bson import ObjectId

from app.fhir import json as fhir_json
from app.runtime.embedded_mongod import EmbeddedMongo
from app.runtime.mongo import Mongo
from app.search.extract import extract
from app.settings import Settings
from app.store.events import Event
from app.store.store import Store
from app.subscriptions.matching import registration, registration_cache
from app.subscriptions.matching.event_matcher import EventMatcher
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.topics.topic_store import load
from benchmarks import resources

FEW, MANY = 100, 100_000
EVENTS, ROUNDS = 400, 15
BARS = {"ratio": 1.2, "bytes_per_subscription": 1024.0, "ready_s": 3.0}
_TOPIC = "http://carerelay.example/SubscriptionTopic/encounter-admission"
_BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
_PATIENT = "0192f0c4-7b2e-7a10-9c3d-{:012}"
# Stands in the template for the number of a Subscription and its patient.
_PLACE = "424242424242"

Figures = dict[str, float]


def measure() -> Figures:
    """Microseconds of processor time per event, bytes per Subscription, seconds until all are known, and the bars."""
    with (
        tempfile.TemporaryDirectory(prefix="carerelay-bench-") as directory,
        EmbeddedMongo(Path(directory)) as mongo,
    ):
        return asyncio.run(measure_on(mongo.uri))


async def measure_on(uri: str) -> Figures:
    """`measure` on databases of its own under a running mongod."""
    few, _, _ = await _registry(uri, FEW)
    many, ready, size = await _registry(uri, MANY)
    gc.collect()
    gc.freeze()  # as the server does after its start
    times: list[tuple[float, float]] = []
    for round_ in range(ROUNDS):
        events = [_encounter(number) for number in _patients(FEW, round_)]
        others = [_encounter(number) for number in _patients(MANY, round_)]
        times.append((await _cost(few, events), await _cost(many, others)))
    return {
        "few_us": median(few for few, _ in times),
        "many_us": median(many for _, many in times),
        "ratio": median(many / few for few, many in times),
        "ratio_bar": BARS["ratio"],
        "bytes_per_subscription": size,
        "bytes_per_subscription_bar": BARS["bytes_per_subscription"],
        "ready_s": ready,
        "ready_s_bar": BARS["ready_s"],
    }


def _patients(count: int, round_: int) -> Sequence[int]:
    """Patients of as many events, spread over all Subscriptions."""
    return [(each * 7919 + round_ * 104_729) % count for each in range(EVENTS)]


async def _cost(registry: SubscriptionRegistry, encounters: Sequence[dict[str, Any]]) -> float:
    """Microseconds of processor time per event; each has to concern exactly one Subscription."""
    now = datetime.now(UTC)
    matches, matcher = 0, EventMatcher(registry)
    begin = time.process_time()
    for encounter in encounters:
        fields = extract("Encounter", encounter)
        event = Event(ObjectId(), "Encounter", "e", 1, "create", now, encounter, fields)
        matches += len((await matcher.match(event)).matches)
    spent = time.process_time() - begin
    assert matches == len(encounters), f"{matches} matches for {len(encounters)} events"
    return spent / len(encounters) * 1e6


async def _registry(uri: str, count: int) -> tuple[SubscriptionRegistry, float, float]:
    """A registry that has read so many stored Subscriptions, the seconds that took and the bytes for each."""
    settings = Settings(mongodb_uri=uri, mongodb_database=f"match{count}")
    mongo = await Mongo.open(settings)
    store = Store(mongo)
    await store.prepare()
    await _fill(mongo, settings, count)
    registry = SubscriptionRegistry(settings, mongo, store)
    gc.collect()
    before = _resident()
    ready = [await _load(registry)]
    gc.collect()
    size = (_resident() - before) / count
    ready += [await _load(SubscriptionRegistry(settings, mongo, store)) for _ in range(2)]
    assert len(registry) == count
    return registry, median(ready), size


async def _load(registry: SubscriptionRegistry) -> float:
    """Seconds until all Subscriptions are known."""
    begin = time.perf_counter()
    await registry.load()
    return time.perf_counter() - begin


async def _fill(mongo: Mongo, settings: Settings, count: int) -> None:
    """Store Subscriptions as the server would, from one template."""
    template = _template()
    read = registration.read(template, load(settings), settings)
    fields = extract("Subscription", template)
    texts = (fhir_json.encode(template).decode(), registration_cache.encode(read, settings))
    documents: list[dict[str, Any]] = []
    for number in range(count):
        text, brief = (_numbered(each, number) for each in texts)
        terms = [_numbered(term, number) for term in fields["terms"]]
        document = {
            **fields,
            "_id": _PATIENT.format(number),
            "v": 1,
            "at": mongo.now(),
            "terms": terms,
            "private": {"headers": [], "base_url": "", "watch": brief},
            "text": text,
        }
        documents.append(document)
        if len(documents) == 5000 or number == count - 1:
            await mongo.collection("Subscription").insert_many(documents)
            documents = []


def _numbered(text: str, number: int) -> str:
    return text.replace(_PLACE, f"{number:012}")


def _template() -> dict[str, Any]:
    patient = _PATIENT.format(0).replace("000000000000", _PLACE)
    filter_ = {"url": _BACKPORT + "backport-filter-criteria", "valueString": f"patient={patient}"}
    content = {"url": _BACKPORT + "backport-payload-content", "valueCode": "id-only"}
    return {
        "resourceType": "Subscription",
        "id": "template",
        "meta": {"versionId": "1", "lastUpdated": "2026-11-21T12:00:00.000Z"},
        "status": "active",
        "end": "2031-12-31T00:00:00Z",
        "reason": "Admissions of our patient",
        "criteria": _TOPIC,
        "_criteria": {"extension": [filter_]},
        "channel": {
            "type": "rest-hook",
            "endpoint": f"https://practice-{_PLACE}.example.org/fhir/hook",
            "payload": "application/fhir+json",
            "_payload": {"extension": [content]},
        },
    }


def _encounter(number: int) -> dict[str, Any]:
    text = resources.encounters()[number % resources.TEMPLATES].decode()
    encounter: dict[str, Any] = json.loads(text.replace(resources.SERIAL, f"{number:08}"))
    patient = {"reference": f"Patient/{_PATIENT.format(number)}"}
    under_way = {"status": "in-progress", "period": {"start": encounter["period"]["start"]}}
    return {**encounter, **under_way, "id": "e", "subject": patient}


def _resident() -> int:
    """Bytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096
