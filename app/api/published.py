"""What the server publishes of itself as ordinary resources: operations, a measure, code lists and topics.

They are stored at start, and topics whenever an operator changes one, so that clients find, read and search them like
anything else.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from pymongo import ASCENDING

from app.context import Context
from app.fhir import code_lists as terminology
from app.fhir.definitions import PROFILES
from app.fhir.json import Resource
from app.interactions.interactions import until_undisturbed
from app.operations import registry
from app.records.versions import Change, is_same_content
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.topics import topic_basic


async def store_definitions(context: Context) -> None:
    """Store each operation, measure or code list that is missing or differs; what is there already stays untouched."""
    files = sorted((PROFILES / "measures").glob("*.json"))
    measures = [msgspec.json.decode(file.read_bytes()) for file in files]
    code_lists = [*terminology.code_systems().values(), *terminology.value_sets()]
    await _store(context, [*registry.definitions().values(), *code_lists, *measures])


async def store_topics(context: Context) -> None:
    """Store a Basic for each topic that is missing or differs, and delete those of topics that are gone."""
    shown = topic_basic.basics(context.services.get(SubscriptionRegistry).catalogue.by_url.values())
    await _store(context, list(shown.values()))
    ours = {
        "terms": f"code={topic_basic.CODE_SYSTEM}|{topic_basic.CODE}",
        "_id": {"$regex": f"^{topic_basic.ID_PREFIX}"},
    }

    async def clear() -> None:
        stored = await context.store.search("Basic", ours, 10_000, sort=[("_id", ASCENDING)])
        gone = [each for each in stored if each.id not in shown]
        if gone:
            await context.store.commit(
                [Change("delete", each.type, each.id, None, each) for each in gone]
            )

    await until_undisturbed(context.store, clear)


async def _store(context: Context, resources: Sequence[Resource]) -> None:
    """All in one commit: one by one they would take most of the time of a first start."""
    keys = [(resource["resourceType"], resource["id"]) for resource in resources]

    async def attempt() -> None:
        present = await context.store.read_many(keys)
        changes: list[Change] = []
        for (resource_type, resource_id), resource in zip(keys, resources, strict=True):
            before = present.get(f"{resource_type}/{resource_id}")
            if before is None or before.deleted or not is_same_content(resource, before):
                changes.append(Change("update", resource_type, resource_id, resource, before))
        if changes:
            await context.store.commit(changes)

    await until_undisturbed(context.store, attempt)
