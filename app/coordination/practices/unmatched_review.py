"""Review Tasks for events that could not be matched: one for each cause, closed when the cause is gone.

A cause is a Subscription whose own text cannot be evaluated, or the record that a judge failed on. What a person has
closed stays closed, until the cause has gone and come back.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from app.automation import review_tasks
from app.automation.follow_up_tasks import Closing, amend, closed, is_open
from app.automation.patient_resources import token
from app.automation.set_aside import set_aside
from app.automation.timers import Timer, Timers
from app.context import Context
from app.fhir.codes import REVIEW_REASON
from app.fhir.instants import parse
from app.fhir.json import Resource
from app.subscriptions.ledger.unmatched import Cause, Unmatched

REASON = "unmatched"
_KIND, _KEY = "unmatched-review", "all"
EVERY = timedelta(seconds=30)
# What is decided at the next try needs nobody.
_PATIENCE = timedelta(seconds=5)
_MOST = 100
_CLOSING = Closing("completed", "matched")


async def start(context: Context) -> None:
    """Set the timer, unless it is set."""
    timers = context.services.get(Timers)
    if await timers.due_of(_KIND, _KEY) is None:
        await timers.set(_KIND, _KEY, context.services.clock.now() + EVERY)


async def run(context: Context, key: str, data: Mapping[str, Any]) -> None:
    """Ask for a review of each cause, close the Tasks of those that are gone, and set the timer anew."""
    try:
        await review(context)
    finally:
        timers = context.services.get(Timers)
        await timers.set(_KIND, _KEY, context.services.clock.now() + EVERY)


TIMER = Timer(_KIND, run, is_about_many=True, at_most=lambda _: EVERY)


async def review(context: Context) -> None:
    """Bring the Tasks in line with what is unmatched."""
    unmatched = context.services.get(Unmatched)
    causes = await unmatched.causes(_MOST)
    long_ago = context.services.mongo.now() - _PATIENCE
    for cause in causes:
        if cause.since <= long_ago:
            with set_aside(_KIND, cause.focus):
                await _ask(context, cause)
    if len(causes) < _MOST:  # otherwise there are more, whose Tasks stay
        await _close_others(context, {_task(context, cause.focus)["id"] for cause in causes})


async def _ask(context: Context, cause: Cause) -> None:
    wanted = _task(context, cause.focus)

    def change(current: Resource | None) -> Resource | None:
        if current is None:
            return wanted
        if is_open(current) or _changed_at(current) >= cause.since:
            return None
        return {**wanted, "meta": current["meta"]}

    await amend(context, "Task", wanted["id"], change)


async def _close_others(context: Context, asked: set[str]) -> None:
    term = token("code", REVIEW_REASON, REASON)
    for stored in await context.store.search("Task", {"terms": term}, 0):
        with set_aside(_KIND, stored.id):
            if stored.id not in asked and is_open(stored.resource()):
                await amend(context, "Task", stored.id, _closed)


def _closed(current: Resource | None) -> Resource | None:
    return closed(current, _CLOSING) if current is not None and is_open(current) else None


def _task(context: Context, focus: str) -> Resource:
    return review_tasks.task(context, REASON, focus, patient=None)


def _changed_at(task: Resource) -> datetime:
    return parse(task["meta"]["lastUpdated"])
