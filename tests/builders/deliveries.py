"""Subscriptions and their deliveries without a whole server: a worker on a store, what it is given, and its rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from app.fhir.ids import new_id
from app.records.versions import Change, ResourceVersion
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store.store import Store
from app.subscriptions.sending.retry import RetryPolicy
from app.subscriptions.sending.worker import Worker
from tests.builders.worker import make_worker

SETTINGS = Settings(base_url="http://carerelay.test/fhir")
AT_ONCE = RetryPolicy(window=3600, jitter=lambda: 0.0)


@asynccontextmanager
async def working(
    mongo: Mongo, store: Store, *, loops: bool = True, policy: RetryPolicy = AT_ONCE
) -> AsyncIterator[Worker]:
    worker = make_worker(SETTINGS, mongo, store, policy=policy)
    await (store.cluster.start() if loops else store.cluster.beat())
    await worker.start(loops=loops)
    try:
        yield worker
    finally:
        await worker.stop()
        await store.cluster.stop()


async def create(store: Store, resource: dict[str, Any], id_: str | None = None) -> ResourceVersion:
    """Commit a first version, as the interactions would."""
    private = None
    if resource["resourceType"] == "Subscription":
        private = {"headers": resource["channel"].pop("header", []), "base_url": ""}
    change = Change("create", resource["resourceType"], id_ or new_id(), resource, None, private)
    (stored,) = await store.commit([change])
    return stored


async def update(store: Store, previous: ResourceVersion, **changes: Any) -> ResourceVersion:
    resource = {**previous.resource(), **changes}
    private: Any = {"headers": []} if previous.type == "Subscription" else None
    change = Change("update", previous.type, previous.id, resource, previous, private)
    (stored,) = await store.commit([change])
    return stored


async def status_of(store: Store, subscription: str) -> tuple[str, str | None]:
    stored = await store.read("Subscription", subscription)
    assert stored is not None
    resource = stored.resource()
    return resource["status"], resource.get("error")


async def rows(mongo: Mongo, **filter_: Any) -> list[dict[str, Any]]:
    cursor = mongo.collection("deliveries").find(filter_).sort("number", 1)
    found: list[dict[str, Any]] = await cursor.to_list(None)
    return found


async def make_due(mongo: Mongo) -> None:
    """Let the time of every waiting row and lease come."""
    past = mongo.now() - timedelta(seconds=1)
    await mongo.collection("deliveries").update_many({"open": True}, {"$set": {"next_at": past}})
    await mongo.collection("events").update_many(
        {"state": "pending"}, {"$set": {"lease_until": past}}
    )
