"""The format of what is stored: the database says in which one it is, and which servers may use it.

    settings  {_id: "format", format, oldest, steps: [names of those that were done], owner?, lease_until?}

Every server compares that with FORMAT and OLDEST before it writes anything, and again with each heartbeat
(app/runtime/cluster.py). Servers of several formats may share a database, so that they can be replaced one by one:
`oldest` is the format that a server must have at least.

A change of what is stored (a field, its meaning, a collection, the definition of an index) comes in two moves, in two
releases: expand, then contract.

1. FORMAT is raised with the change, which brings a step at the end of STEPS. Servers from OLDEST on run beside the new
   one for a while: it reads what they write, and writes only what they can read.
2. OLDEST is raised in a later release, to a FORMAT that was released before. From then on the code needs to know
   nothing of older servers. What they wrote after the step of the first move, a step of this release brings up to date:
   it runs when none of them can write any more.

Both together in one release would mean that all servers are stopped for it. Steps stay: a database may come from any of
the releases before.

docs/decisions/0014-format-marker.md
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

from pymongo import ASCENDING, IndexModel, ReturnDocument
from pymongo.errors import DuplicateKeyError, PyMongoError

from app.runtime import background_tasks, cluster
from app.runtime.collections import UnusableDatabaseError
from app.runtime.mongo import Document, Mongo
from app.settings import Settings
from app.store import endpoint_headers, shared_lanes
from app.store.shared_settings import shared_settings

# What this server writes: raised by every release that changes what is stored.
FORMAT = 4
# Whose servers it still gets along with: raised later, to a format that was released before. Servers from before the
# marker, of format 0, do not look at it; they get along with format 1.
OLDEST = 1

# The first format with a marker.
_FIRST = 1
_ID = "format"
LEASE = timedelta(seconds=15)
# Seconds for which a starting server waits for the one that takes the steps, and for older ones to be stopped beyond
# the time for which a silent one counts as running.
PATIENCE, PATIENCE_WITH_OLDER = 600.0, 10.0
_POLL = 0.1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Step:
    """One move forward, done once for a database, beside servers that are at work on it.

    `run` may be broken off anywhere and is then run again from its beginning, also by two processes at once, where one
    has stalled: what it did already it finds done. It names collections and fields as they were in its time, and uses
    nothing of the program that may change.
    """

    name: str
    run: Callable[[Mongo, Settings], Awaitable[None]]


async def _remove_rows_without_heartbeat(mongo: Mongo, _: Settings) -> None:
    """Rows of processes that died before their first heartbeat, as servers of format 0 could leave them.

    Nobody takes those away, and the commit horizon cannot be told from them.
    """
    dead = {"$expr": {"$lt": ["$alive_until", "$$NOW"]}}
    await mongo.collection("processes").delete_many(
        {"alive_until": {"$exists": True}, "seen": {"$exists": False}, **dead}
    )


async def _remove_guards_in_the_clear(mongo: Mongo, _: Settings) -> None:
    """Rows of `guards` that name the criteria of conditional writes, identifiers of patients among them.

    A write that compares one of them at this moment begins anew.
    """
    await mongo.collection("guards").delete_many({"at": {"$exists": False}})


async def _index_waiting_deliveries(mongo: Mongo, _: Settings) -> None:
    """Open deliveries are found by what they wait for, and settled ones have no time at which they are due.

    A server of format 1 takes what waits for due, and uses the new indexes.
    """
    deliveries = mongo.collection("deliveries")
    waiting = [(key, ASCENDING) for key in ("next_at", "subscription", "state", "number")]
    lanes = [(key, ASCENDING) for key in ("open", "lane", "number")]
    await deliveries.create_indexes(
        [
            IndexModel(waiting, partialFilterExpression={"next_at": {"$exists": True}}),
            IndexModel(lanes, partialFilterExpression={"open": True}),
        ]
    )
    for name in ("next_at_1", "lane_1_number_1"):
        if name in await deliveries.index_information():
            await deliveries.drop_index(name)
    await deliveries.update_many(
        {"open": {"$exists": False}, "next_at": {"$exists": True}}, {"$unset": {"next_at": ""}}
    )


async def _seal_headers_of_endpoints(mongo: Mongo, settings: Settings) -> None:
    """What a server of format 2 writes beside this one stays as it is until it is written again."""
    await endpoint_headers.seal(
        mongo.collection("Endpoint"), mongo.collection("versions"), settings
    )


async def _doubt_clients_from_before_authorization(mongo: Mongo, _: Settings) -> None:
    """Clients of a database that no server with authorization has used: whoever reached the server could add them."""
    if await mongo.collection("signing_keys").find_one({}) is None:
        await mongo.collection("clients").update_many({}, {"$set": {"unconfirmed": True}})


async def _date_documents_of_plans(mongo: Mongo, _: Settings) -> None:
    """What was told of a care plan has the time of its last document; only that of the last notice was kept."""
    undated = {"shown": {"$exists": True}, "shown_at": {"$exists": False}}
    await mongo.collection("plan_notices").update_many(
        undated, [{"$set": {"shown_at": "$told_at"}}]
    )


async def _share_lanes(mongo: Mongo, _: Settings) -> None:
    """What a server of format 3 records beside this one stays in the lane of its Subscription until it is settled."""
    await shared_lanes.share(mongo.collection("Subscription"), mongo.collection("deliveries"))


async def _doubt_consents_from_before_authorization(mongo: Mongo, _: Settings) -> None:
    """Consents that anybody may have recorded, where an earlier version has looked back on that time, without these."""
    mark = await mongo.collection("settings").find_one({"_id": "before-authorization"})
    if mark is not None:
        of_nobody = {"at": {"$lt": mark["at"]}, "by.0": {"$in": [None, ""]}}
        await mongo.collection("Consent").update_many(
            {"terms": "status=active", **of_nobody}, {"$set": {"private.unconfirmed": ""}}
        )


STEPS: Sequence[Step] = (
    Step("1: processes without a heartbeat", _remove_rows_without_heartbeat),
    Step("2: guards without identifiers", _remove_guards_in_the_clear),
    Step("2: deliveries by what they wait for", _index_waiting_deliveries),
    Step("3: headers of Endpoints sealed", _seal_headers_of_endpoints),
    Step("3: clients to be confirmed", _doubt_clients_from_before_authorization),
    Step("4: documents of care plans with their time", _date_documents_of_plans),
    Step("4: lanes that Subscriptions share", _share_lanes),
    Step("4: Consents to be confirmed", _doubt_consents_from_before_authorization),
)


class _LeaseLostError(Exception):
    """Another process takes the steps."""


async def prepare(mongo: Mongo, settings: Settings, owner: str | None = None) -> None:
    """Bring the database forward where that is left to do, or wait for the process that does it; before any write.

    `owner` names this process, `settings` the keys that secrets are sealed with. Raises UnusableDatabaseError where
    this server may not use the database, or where a step fails.
    """
    owner = owner or cluster.new_owner()
    loop = asyncio.get_running_loop()
    give_up: float | None = None
    while True:
        marker = await _marker(mongo)
        refusal = _judge(mongo, marker)
        if refusal is not None:
            raise UnusableDatabaseError(refusal)
        if not _left(marker):
            return
        if await _claim(mongo, owner):
            await _bring_forward(mongo, settings, owner)
            continue
        if give_up is None:
            give_up = loop.time() + PATIENCE
            log.warning(
                "another process brings the database to format %s, this one waits",
                FORMAT,
                extra={"action": "format"},
            )
        elif loop.time() > give_up:
            raise UnusableDatabaseError(
                f"Another process has been bringing the database to format {FORMAT} for {PATIENCE / 60:.0f} minutes. "
                "Start this server again when it is through."
            )
        await asyncio.sleep(_POLL)


async def look_again(mongo: Mongo) -> str | None:
    """Why this server may not use the database any more, for people; None where it may."""
    marker = await shared_settings(mongo).find_one({"_id": _ID})
    return None if marker is None else _judge(mongo, marker)


def _judge(mongo: Mongo, marker: Document) -> str | None:
    """Why this server may not use the database, None where it may. Tells `mongo` whether it may replace indexes."""
    mongo.replaces_indexes = marker["format"] <= FORMAT
    if marker["oldest"] <= FORMAT:
        return None
    return (
        f"The database is in format {marker['format']}, for servers of format {marker['oldest']} and later; "
        f"this version of CareRelay has format {FORMAT}. Use a later version."
    )


def _left(marker: Document) -> bool:
    """Whether there is anything to do."""
    is_behind = marker["format"] < FORMAT or marker["oldest"] < OLDEST
    return is_behind or any(step.name not in marker["steps"] for step in STEPS)


async def _marker(mongo: Mongo) -> Document:
    """The marker, made where there is none: an empty database is in today's format, any other in format 0.

    The latter is for all servers until the older ones, which do not look at it, have stopped.
    """
    rows = shared_settings(mongo)
    while True:
        marker: Document | None = await rows.find_one({"_id": _ID})
        if marker is not None:
            return marker
        is_empty = not await mongo.db.list_collection_names()
        marker = {
            "_id": _ID,
            "format": FORMAT if is_empty else 0,
            "oldest": OLDEST if is_empty else _FIRST,
            "steps": [step.name for step in STEPS] if is_empty else [],
        }
        try:
            await rows.insert_one(marker)
        except DuplicateKeyError:  # another process was faster; the majority may not have it yet
            await asyncio.sleep(_POLL)
            continue
        return marker


async def _claim(mongo: Mongo, owner: str) -> bool:
    """Take the lease; False where another process has it."""
    row = await shared_settings(mongo).find_one_and_update(
        {"_id": _ID, "$expr": {"$lte": ["$lease_until", "$$NOW"]}},  # where there is none too
        [{"$set": {"owner": owner, "lease_until": _lease_end()}}],
        return_document=ReturnDocument.AFTER,
    )
    return row is not None


def _lease_end() -> Document:
    return {"$add": ["$$NOW", int(LEASE.total_seconds() * 1000)]}


async def _bring_forward(mongo: Mongo, settings: Settings, owner: str) -> None:
    """Take the steps that are left while the lease lasts. Raises UnusableDatabaseError where one fails."""
    work = asyncio.create_task(_take_steps(mongo, settings, owner))
    lease = asyncio.create_task(_renew(mongo, owner))
    try:
        await asyncio.wait({work, lease}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await background_tasks.end([work, lease])
        with suppress(PyMongoError):  # it ends by itself
            await shared_settings(mongo).update_one(
                {"_id": _ID, "owner": owner}, {"$unset": {"owner": "", "lease_until": ""}}
            )
    if not work.cancelled():
        with suppress(_LeaseLostError):
            work.result()


async def _take_steps(mongo: Mongo, settings: Settings, owner: str) -> None:
    marker = await _marker(mongo)
    if marker["oldest"] < OLDEST:
        await _outlast_older(mongo)
        await _write(mongo, owner, {"$max": {"oldest": OLDEST}})
        # One that has started meanwhile sees by its first heartbeat that it may not.
        await _outlast_older(mongo)
    for step in STEPS:
        if step.name in marker["steps"]:
            continue
        extra = {"action": "format", "step": step.name}
        log.warning("the database goes to format %s, step %s", FORMAT, step.name, extra=extra)
        try:
            await step.run(mongo, settings)
        except Exception as error:
            log.exception("step %s failed", step.name, extra=extra)
            raise UnusableDatabaseError(
                f"The database cannot be brought to format {FORMAT}: the step '{step.name}' has failed with "
                f"{type(error).__name__}, and the log says where. The next start tries it again."
            ) from None
        await _write(mongo, owner, {"$addToSet": {"steps": step.name}})
    await _write(mongo, owner, {"$max": {"format": FORMAT}})


async def _outlast_older(mongo: Mongo) -> None:
    """Wait until no older server can write any more. Raises UnusableDatabaseError where some go on."""
    loop = asyncio.get_running_loop()
    silence = await cluster.silence(mongo)
    give_up = loop.time() + silence.total_seconds() + PATIENCE_WITH_OLDER
    is_told = False
    while older := await cluster.writers_before(mongo, OLDEST, silence):
        if loop.time() > give_up:
            raise UnusableDatabaseError(
                f"Servers older than format {OLDEST} still use the database ({', '.join(older)}). "
                "Replace those by a version in between first, or stop them."
            )
        if not is_told:
            is_told = True
            log.warning("waits until older servers have stopped", extra={"action": "format"})
        await asyncio.sleep(_POLL)


async def _write(mongo: Mongo, owner: str, change: Document) -> None:
    """Change the marker while the lease is ours. Raises _LeaseLostError."""
    done = await shared_settings(mongo).update_one({"_id": _ID, "owner": owner}, change)
    if not done.matched_count:
        raise _LeaseLostError


async def _renew(mongo: Mongo, owner: str) -> None:
    """Renew the lease until it is another's."""
    rows = shared_settings(mongo)
    while True:
        await asyncio.sleep(LEASE.total_seconds() / 3)
        with suppress(PyMongoError):
            renewed = [{"$set": {"lease_until": _lease_end()}}]
            if not (await rows.update_one({"_id": _ID, "owner": owner}, renewed)).matched_count:
                return
