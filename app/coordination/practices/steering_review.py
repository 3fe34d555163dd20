"""A review Task for what steers the server and was stored while authorization was off, when anybody could store it.

The first start with authorization lists the Contracts, which say who reads whom, the topics, which say what is told,
the Subscriptions and the Consents. They stay as they are: an administrator who has looked at them completes the Task.
Consents that no organization recorded permit nothing until they are written again. A later time without authorization
has its own. docs/smart.md
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from pymongo import ReturnDocument

from app.automation import review_tasks
from app.consent.judgement import UNCONFIRMED
from app.context import Context
from app.fhir.instants import instant
from app.fhir.json import Resource
from app.interactions import interactions
from app.runtime.mongo import Document
from app.store.shared_settings import shared_settings
from app.subscriptions.matching.registry import SubscriptionRegistry

log = logging.getLogger(__name__)

REASON = "before-authorization"
# What the Task lists of each kind; the log has how many there are.
_MOST_LISTED = 200
_BATCH = 1_000
_LIVE: Document = {"terms": {"$in": ["status=requested", "status=active", "status=error"]}}


async def start(context: Context) -> None:
    """Ask, on the first start with authorization; note a start without."""
    marks = shared_settings(context.services.mongo)
    if context.settings.auth != "smart":
        await marks.delete_one({"_id": REASON})
        return
    mark = await marks.find_one_and_update(
        {"_id": REASON},
        {"$setOnInsert": {"at": context.services.clock.now()}},
        upsert=True,
        return_document=ReturnDocument.AFTER,
    )
    if mark.get("is_listed"):
        return
    topics = context.services.get(SubscriptionRegistry).topics
    found = {
        "Contract": await _ids(context, "Contract", {"terms": "status=executed"}),
        "SubscriptionTopic": [each["url"] for each in await topics.list()],
        "Subscription": await _ids(context, "Subscription", _LIVE),
        "Consent": await _doubted(context),
    }
    for kind, own in found.items():
        if own:
            log.warning(
                "stored while authorization was off: look whether it is to steer the server",
                extra={"action": "authorization", "resource_type": kind, "count": len(own)},
            )
    if any(found.values()):
        about = instant(mark["at"])  # the same in all processes that start at this moment
        asked = review_tasks.task(context, REASON, None, patient=None, about=about)
        asked["input"] = [each for kind, own in found.items() for each in _inputs(kind, own)]
        if await context.store.read("Task", asked["id"]) is None:
            await interactions.update(context, "Task", asked["id"], asked)
    await marks.update_one({"_id": REASON}, {"$set": {"is_listed": True}})


async def _ids(context: Context, resource_type: str, where: Document) -> Sequence[str]:
    rows = await context.store.find(resource_type, where, projection={"_id": 1})
    return sorted(f"{resource_type}/{row['_id']}" for row in rows)


async def _doubted(context: Context) -> Sequence[str]:
    """The active Consents that no organization recorded, noted as unconfirmed."""
    notes: dict[tuple[str, int], str] = {}
    where: Document = {"terms": "status=active"}
    async with context.store.batches("Consent", where, projection={"v": 1, "by": 1}) as read:
        while rows := await read(_BATCH):
            found = {
                (row["_id"], row["v"]): "" for row in rows if not next(iter(row.get("by", ())), "")
            }
            await context.store.annotate("Consent", UNCONFIRMED, found)
            notes |= found
    return sorted(f"Consent/{id_}" for id_, _ in notes)


def _inputs(kind: str, names: Iterable[str]) -> Iterable[Resource]:
    for name in list(names)[:_MOST_LISTED]:
        is_topic = kind == "SubscriptionTopic"
        value = {"valueCanonical": name} if is_topic else {"valueReference": {"reference": name}}
        yield {"type": {"text": kind}, **value}
