"""The deadlines of contracts: a review Task for a notice that is not delivered when its deadline is near or past.

    contract_watch   {_id: id of a Subscription, number}
    deliveries       {..., alerted?: "deadline-near" | "deadline-missed"}

No delivery waits for this: each contract has one timer that checks its rows every few minutes, and at the next
deadline. All rows up to `number` are settled. A deadline counts from the event's own time; docs/contracts.md.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from app.automation import review_tasks
from app.automation.timers import Timer, Timers
from app.context import Context
from app.coordination.contracts.contract_terms import contract_rows
from app.proof.notice import NoticeRecord, gather_readable
from app.runtime.mongo import Collection, Document
from app.subscriptions.ledger.ledger import delivery_rows
from app.subscriptions.sending.recheck_recipient import REASSIGNED
from app.subscriptions.sending.release_check import WITHHELD

log = logging.getLogger(__name__)

_KIND = "contract-deadlines"
_EVERY = timedelta(minutes=5)
# Numbers are assigned before their rows are stored.
_LATE = timedelta(minutes=2)
_BATCH = 500
_NEAR, _MISSED = "deadline-near", "deadline-missed"


async def watch(context: Context, contract: str) -> None:
    """Set a contract's timer to now."""
    await context.services.get(Timers).set(_KIND, contract, context.services.clock.now())


async def resume(context: Context) -> None:
    """Set the timers of all contracts to now: the server may have been down at a deadline."""
    async for row in contract_rows(context).find({}, {"_id": 1}):
        await watch(context, row["_id"])


async def forget(context: Context, contract: str) -> None:
    """Cancel the timer of a contract that has ended."""
    await context.services.get(Timers).cancel(_KIND, contract)


async def run(context: Context, contract: str, data: Mapping[str, Any]) -> None:
    """Check a contract's rows that are not settled, and set its timer for the next one."""
    row = await contract_rows(context).find_one({"_id": contract})
    if row is None:
        return
    now = context.services.clock.now()
    following = now + _EVERY
    for subscription in row["subscriptions"]:
        found = await _look(context, row, subscription, now)
        following = min([following, *([found] if found else [])])
    await context.services.get(Timers).set(_KIND, contract, following)


TIMER = Timer(_KIND, run, is_about_many=True, at_most=lambda _: _EVERY)


async def _look(
    context: Context, contract: Document, subscription: str, now: datetime
) -> datetime | None:
    """Check a Subscription's rows that are not settled; returns when the next one has to be checked."""
    marks = context.services.mongo.collection("contract_watch")
    mark = await marks.find_one({"_id": subscription})
    number = begin = mark["number"] if mark else 0
    steady = context.services.mongo.now() - _LATE
    following: datetime | None = None
    done = True  # so far no row has to be checked again
    while True:
        rows = await _next_rows(context, subscription, number)
        open_rows = [row for row in rows if not _is_settled(row)]
        due = await _judge(context, contract, open_rows, now)
        for row in rows:
            done = done and row["_id"] not in due and row["created_at"] < steady
            begin = row["number"] if done else begin
        following = min([*due.values(), *([following] if following else [])], default=None)
        if len(rows) < _BATCH:
            break
        number = rows[-1]["number"]
    await marks.update_one({"_id": subscription}, {"$max": {"number": begin}}, upsert=True)
    return following


async def _next_rows(context: Context, subscription: str, after: int) -> list[Document]:
    cursor = _rows(context).find({"subscription": subscription, "number": {"$gt": after}})
    rows: list[Document] = await cursor.sort("number", 1).limit(_BATCH).to_list(None)
    return rows


def _is_settled(row: Document) -> bool:
    """Whether a row needs no check: delivered, rightly suppressed, or with a Task for its missed deadline."""
    if row["state"] == "delivered" or row.get("alerted") == _MISSED:
        return True
    reason: str = row.get("reason", "")
    return row["state"] == "suppressed" and (reason.startswith(WITHHELD) or reason == REASSIGNED)


async def _judge(
    context: Context, contract: Document, rows: list[Document], now: datetime
) -> dict[str, datetime]:
    """Create Tasks for rows that are late or nearly so; returns by id when rows have to be checked again."""
    deadline = timedelta(hours=contract["terms"]["deadline"])
    margin = timedelta(hours=contract["terms"]["alert_before"])
    notices = await gather_readable(context.store, rows, context.settings.base_url.rstrip("/"))
    due: dict[str, datetime] = {}
    for row, notice in zip(rows, notices, strict=True):
        end = notice.event_time + deadline
        if now >= end:
            await _alert(context, contract, notice, _MISSED)
        elif margin and now >= end - margin:
            if row.get("alerted") != _NEAR:
                await _alert(context, contract, notice, _NEAR)
            due[notice.id] = end
        else:
            due[notice.id] = end - margin
    return due


async def _alert(context: Context, contract: Document, notice: NoticeRecord, reason: str) -> None:
    log.warning(
        "contract deadline",
        extra={"action": reason, "contract": contract["_id"], "delivery": notice.id},
    )
    patient = notice.patient
    if patient is not None:
        stored = await context.store.read(*patient.split("/"))
        patient = patient if stored is not None and not stored.deleted else None
    await review_tasks.ask(context, reason, notice.focus, patient=patient, about=contract["_id"])
    await _rows(context).update_one({"_id": notice.id}, {"$set": {"alerted": reason}})


def _rows(context: Context) -> Collection:
    return delivery_rows(context.services.mongo)
