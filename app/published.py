"""What the server publishes of itself as ordinary resources: operations, a measure, code lists and topics.

They are stored at start, and topics whenever an operator changes one, so that clients find, read and search them like
anything else.
"""

from __future__ import annotations

import asyncio

import msgspec
from pymongo import ASCENDING

from app import interactions, terminology
from app.context import Context
from app.definitions import PROFILES
from app.operations import registry
from app.subscriptions import topic_basic


async def store_definitions(context: Context) -> None:
    """Store each operation, measure or code list that is missing or differs; what is there already stays untouched."""
    for definition_id, resource in registry.definitions().items():
        await interactions.update(context, "OperationDefinition", definition_id, resource)
    files = sorted((PROFILES / "measures").glob("*.json"))
    measures = [msgspec.json.decode(file.read_bytes()) for file in files]
    lists = [*terminology.code_systems().values(), *terminology.value_sets(), *measures]
    await asyncio.gather(
        *(interactions.update(context, each["resourceType"], each["id"], each) for each in lists)
    )


async def store_topics(context: Context) -> None:
    """Store a Basic for each topic that is missing or differs, and delete those of topics that are gone."""
    shown = topic_basic.basics(context.server.worker.registry.catalogue.by_url.values())
    for basic_id, resource in shown.items():
        await interactions.update(context, "Basic", basic_id, resource)
    ours = {
        "terms": f"code={topic_basic.CODE_SYSTEM}|{topic_basic.CODE}",
        "_id": {"$regex": f"^{topic_basic.ID_PREFIX}"},
    }
    for stored in await context.store.search("Basic", ours, 10_000, sort=[("_id", ASCENDING)]):
        if stored.id not in shown:
            await interactions.delete(context, "Basic", stored.id)
