"""The publication of proof: settled notices of the server's own topics become Communications and AuditEvents.

    deliveries   {..., publish?, publish_tries?, published?, unpublished?, incomplete?}
    settings     {_id: "published-notices", up_to: id of a row, looked_back?}

Rows are read once in the order of their ids; `publish` is when to read one again that was open then, was sent again, or
could not be published (unpublished.py). Ids are in the order of the database's time, but a process that stalls may
store a row after others with later ids: once an hour the rows of a whole day are looked through for such. Where the
database's clock was ahead and was put back, `up_to` goes back too, and so do the times of `publish`.
`published` is when it was done. A row may be published twice: its id makes the resources' ids. They are written without
an event, so that no notice can be about a notice; docs/proof.md.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from pymongo import ASCENDING, IndexModel, UpdateOne

from app.authorization.write_check import is_proof
from app.automation import review_tasks
from app.automation.timers import Timer, Timers
from app.context import Context
from app.fhir.ids import first_id
from app.fhir.json import Resource
from app.interactions.interactions import until_undisturbed
from app.proof import names
from app.proof.audit_event import audit_event
from app.proof.communication import communication
from app.proof.notice import NoticeRecord, gather
from app.proof.unpublished import UnpublishedNotices
from app.records.versions import Change, ResourceVersion, is_same_content
from app.runtime import collections
from app.runtime.leases import is_nobodys_fault
from app.runtime.mongo import Collection, Document
from app.settings import Settings
from app.store.shared_settings import shared_settings
from app.subscriptions.ledger.ledger import DELIVERIES, delivery_rows
from app.subscriptions.sending.worker import Worker

_KIND, _KEY = "publish-notices", "all"
EVERY = timedelta(seconds=10)
# While notices are being sent, few rows are published a round; else as many as a round's time allows.
_ROWS, _ROWS_WHILE_BUSY = 200, 20
_SECONDS_A_ROUND = 5.0
# Notices in one transaction: concurrent writers may have to wait for it.
_AT_ONCE = 10
# Ids are made before their rows are stored.
_LATE = timedelta(seconds=30)
_LOOK_BACK, _LOOK_BACK_EVERY = timedelta(days=1), timedelta(hours=1)
# A row that is open is published when it is settled, which sets `publish`; servers of format 1 do not.
_SEEN_AGAIN = timedelta(days=1)
# Nothing is put off for longer: what is was put off while the clock was ahead.
_FARTHEST = timedelta(days=2)
_NOT_ABOUT = ["AuditEvent", "Communication"]


async def start(context: Context) -> None:
    """Create the index, and set the timer of the first round."""
    if not context.settings.publish_notices:
        return
    again = IndexModel(
        [("publish", ASCENDING)],
        name="publish",
        partialFilterExpression={"publish": {"$exists": True}},
    )
    given_up = IndexModel(
        [("unpublished.at", ASCENDING)],
        name="unpublished",
        partialFilterExpression={"unpublished.at": {"$exists": True}},
    )
    await collections.ensure(context.services.mongo, DELIVERIES, [again, given_up])
    timers = context.services.get(Timers)
    if await timers.due_of(_KIND, _KEY) is None:
        await timers.set(_KIND, _KEY, context.services.clock.now() + EVERY)


async def run(context: Context, key: str, data: Mapping[str, Any]) -> None:
    """Publish settled notices for _SECONDS_A_ROUND at most, and set the timer of the next round."""
    if not context.settings.publish_notices:
        return
    loop = asyncio.get_running_loop()
    until = loop.time() + _SECONDS_A_ROUND
    more = True
    while more and loop.time() < until:
        if not context.services.get(Worker).idle:
            await _round(context, _ROWS_WHILE_BUSY)
            more = False
        else:
            more = await _round(context, _ROWS)
    pause = timedelta() if more else EVERY
    await context.services.get(Timers).set(_KIND, _KEY, context.services.clock.now() + pause)


TIMER = Timer(_KIND, run, is_loop=True, is_about_many=True, at_most=lambda _: EVERY)


async def _round(context: Context, limit: int) -> bool:
    """Publish the next rows; returns whether there may be more."""
    now, today = context.services.mongo.now(), context.services.clock.now()
    base = context.settings.topic_base.rstrip("/") + "/"
    again = await _take_again(context, base, limit)
    marks = shared_settings(context.services.mongo)
    mark: Document = await marks.find_one({"_id": "published-notices"}) or {}
    up_to = mark.get("up_to", "")
    settled = first_id(now - _LATE)
    was_ahead = up_to > first_id(now)
    looked_back = mark.get("looked_back")
    looks_back = was_ahead or looked_back is None or abs(today - looked_back) >= _LOOK_BACK_EVERY
    begin = min(up_to, first_id(now - _LOOK_BACK)) if looks_back else up_to
    fresh = await _unread(context, base, begin, limit)
    await _take(context, fresh)
    is_full = len(fresh) == limit
    reached = min(settled, fresh[-1]["_id"]) if is_full else settled
    done: Document = {"$max": {"up_to": reached}} if reached > up_to else {}
    if was_ahead and not is_full:
        done = {"$set": {"up_to": reached}}
    if looks_back and not is_full:
        done.setdefault("$set", {})["looked_back"] = today
    if done:
        await marks.update_one({"_id": "published-notices"}, done, upsert=True)
    return is_full or again == limit


async def _take_again(context: Context, base: str, limit: int) -> int:
    """Take the rows that were put off until now; returns how many."""
    now = context.services.clock.now()
    due = [{"publish": {"$lte": now}}, {"publish": {"$gt": now + _FARTHEST}}]
    found = await (
        _rows(context).find({"$or": due}).sort("publish", ASCENDING).limit(limit).to_list(None)
    )
    await _take(context, [row for row in found if _concerns(row, base)])
    others = [row["_id"] for row in found if not _concerns(row, base)]
    if others:
        await _rows(context).update_many({"_id": {"$in": others}}, {"$unset": {"publish": ""}})
    return len(found)


async def _unread(context: Context, base: str, after: str, limit: int) -> list[Document]:
    """The next rows after an id that have not been looked at."""
    wanted = {
        "_id": {"$gt": after},
        "topic": {"$regex": f"^{re.escape(base)}"},
        "focus.type": {"$nin": _NOT_ABOUT},
        **{name: {"$exists": False} for name in ("published", "publish", "unpublished")},
    }
    found: list[Document] = (
        await _rows(context).find(wanted).sort("_id", ASCENDING).limit(limit).to_list(None)
    )
    return found


def _concerns(row: Document, base: str) -> bool:
    return (row["topic"] or "").startswith(base) and row["focus"]["type"] not in _NOT_ABOUT


async def _take(context: Context, rows: Sequence[Document]) -> None:
    now = context.services.clock.now()
    later = [
        UpdateOne(
            {"_id": row["_id"], "open": True},
            {"$set": {"publish": now + _SEEN_AGAIN}},
        )
        for row in rows
        if "open" in row
    ]
    if later:
        await _rows(context).bulk_write(later, ordered=False)
    settled = [row for row in rows if "open" not in row]
    for begin in range(0, len(settled), _AT_ONCE):
        await _publish(context, settled[begin : begin + _AT_ONCE])


async def _publish(context: Context, rows: Sequence[Document]) -> None:
    """Publish settled rows together; where that fails each by itself, so that one holds up no other."""
    try:
        notices = await gather(context.store, rows, context.settings.base_url.rstrip("/"))
        incomplete = await _incomplete(context, notices)
        await _keep(context, notices)
        await _mark(context, notices, incomplete)
    except Exception as error:
        if is_nobodys_fault(error):
            raise
        if len(rows) == 1:
            unpublished, now = (
                UnpublishedNotices(context.services.mongo),
                context.services.clock.now(),
            )
            await unpublished.failed(rows[0], error, now)
            return
        for row in rows:
            await _publish(context, [row])


async def _keep(context: Context, notices: Sequence[NoticeRecord]) -> None:
    sender = sender_of(context.settings)
    wanted = [
        resource
        for notice in notices
        for resource in (communication(notice, sender), audit_event(notice, sender))
    ]
    keys = [(each["resourceType"], each["id"]) for each in wanted]

    async def attempt() -> None:
        known = await context.store.read_many(keys)
        changes = []
        for resource in wanted:
            type_, id_ = resource["resourceType"], resource["id"]
            previous = known.get(f"{type_}/{id_}")
            if previous is None or not await _stays(context, previous, resource):
                changes.append(Change("update", type_, id_, resource, previous, silent=True))
        if changes:
            await context.store.commit(changes)

    await until_undisturbed(context.store, attempt)


async def _stays(context: Context, previous: ResourceVersion, resource: Resource) -> bool:
    """Whether the stored version stays: an AuditEvent, the same content, or proof that was deleted on purpose.

    Recipients know the ids of their notices: another resource, created and deleted under such an id, is no such proof.
    """
    if previous.type == "AuditEvent":
        return True
    if not previous.deleted:
        return is_same_content(resource, previous)
    last = await context.store.vread(previous.type, previous.id, previous.version - 1)
    return last is None or last.deleted or is_proof(last.resource())


async def _incomplete(context: Context, notices: Sequence[NoticeRecord]) -> dict[str, list[str]]:
    """The names that sent notices about stays lack, by the rows' ids; creates a review Task for each notice."""
    base = context.settings.topic_base.rstrip("/") + "/encounter-"
    sent = {
        notice.id: notice
        for notice in notices
        if notice.attempts and notice.topic.startswith(base) and notice.resource
    }
    base_url = context.settings.base_url.rstrip("/")
    found = await names.missing(
        context.store, {id_: notice.resource for id_, notice in sent.items()}, base_url
    )
    lacking = {id_: each for id_, each in found.items() if each}
    for id_ in lacking:
        patient = sent[id_].patient
        is_known = patient is not None and await _is_there(context, patient)
        await review_tasks.ask(
            context, "incomplete-names", sent[id_].focus, patient=patient if is_known else None
        )
    return lacking


async def _is_there(context: Context, reference: str) -> bool:
    type_, _, id_ = reference.partition("/")
    stored = await context.store.read(type_, id_)
    return stored is not None and not stored.deleted


async def _mark(
    context: Context, notices: Sequence[NoticeRecord], incomplete: Mapping[str, list[str]]
) -> None:
    """Mark the rows of notices as published, except those that were sent again meanwhile."""
    now = context.services.mongo.now()
    updates = []
    for notice in notices:
        values: Document = {"published": now}
        if notice.id in incomplete:
            values["incomplete"] = incomplete[notice.id]
        updates.append(
            UpdateOne(
                {"_id": notice.id, "open": {"$exists": False}},
                {"$set": values, "$unset": {"publish": "", "publish_tries": ""}},
            )
        )
    if updates:
        await _rows(context).bulk_write(updates, ordered=False)


def sender_of(settings: Settings) -> Resource:
    """The server as a sender: a Reference with its address as identifier, since it has no Device."""
    address = settings.base_url or f"http://{settings.host}:{settings.port}/fhir"
    return {
        "type": "Device",
        "identifier": {"system": "urn:ietf:rfc:3986", "value": address},
        "display": "CareRelay",
    }


def _rows(context: Context) -> Collection:
    return delivery_rows(context.services.mongo)
