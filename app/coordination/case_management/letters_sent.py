"""Letters that practices were told of by their Subscriptions: each is completed once one has taken it.

A letter to a practice is a notice of the topic `letter`. Where a Subscription of the practice takes it nobody has to
mail it; where there is none, or where it gives up, the letter stays in preparation. docs/consent.md
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from app.automation.follow_up_tasks import amend
from app.automation.timers import Timer, Timers
from app.context import Context
from app.fhir.instants import instant
from app.fhir.json import Resource
from app.runtime.mongo import Document
from app.subscriptions.ledger.ledger import EVENTS_ONLY, delivery_rows

_KIND, _TOPIC = "letter-sent", "letter"
# The first look, and those after it while a notice is on its way.
FIRST, AGAIN = timedelta(minutes=1), timedelta(minutes=15)


async def watch(context: Context, letter_id: str, patient: str) -> None:
    """Look soon whether a practice has taken a letter about a patient (`Patient/p1`)."""
    due = context.services.clock.now() + FIRST
    await context.services.get(Timers).set(_KIND, letter_id, due, {"patient": patient})


async def _look(context: Context, key: str, data: Mapping[str, Any]) -> None:
    of_letter: Document = {
        "focus.id": key,
        "focus.type": "Communication",
        "topic": f"{context.settings.topic_base.rstrip('/')}/{_TOPIC}",
        **EVENTS_ONLY,
    }
    rows = await delivery_rows(context.services.mongo).find(of_letter).to_list(None)
    taken = [row["attempts"][-1]["at"] for row in rows if row["state"] == "delivered"]
    if taken:
        await _complete(context.about([data["patient"]]), key, min(taken))
    elif any(row.get("open") for row in rows):
        due = context.services.clock.now() + AGAIN
        await context.services.get(Timers).set(_KIND, key, due, data)


async def _complete(context: Context, letter_id: str, sent: datetime) -> None:
    """Complete the letter, unless a person has done so or has decided otherwise."""

    def change(current: Resource | None) -> Resource | None:
        if current is None or current["status"] != "preparation":
            return None
        return {**current, "status": "completed", "sent": instant(sent)}

    await amend(context, "Communication", letter_id, change)


TIMER = Timer(_KIND, _look, is_about_many=True, at_most=lambda _: AGAIN)
