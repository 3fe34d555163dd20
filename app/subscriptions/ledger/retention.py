"""The retention of the outbox and the ledger. What waits for longer than that is given up, where people see it.

Open rows of active Subscriptions stay, however old. Those of others, as of one that is in `error`, become `dead` with
the reason, and are kept for as long again.

Events that are done are only needed to find Subscriptions that changed a moment ago. A delivery row is the ledger's
entry, and the source of `$events`, which answers 410 without it, and of `$resend`. Ids are in order of time, so both
are found by them and need no further index.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta

from bson import ObjectId

from app.fhir.ids import first_id
from app.runtime.loops import LONG_PATIENCE, Loop, Loops
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store.events import event_rows
from app.subscriptions.ledger.ledger import Ledger, delivery_rows
from app.subscriptions.ledger.waiting_rows import WaitingRows

log = logging.getLogger(__name__)

EVERY = timedelta(hours=1)
EXPIRED = "Not sent for as long as deliveries are kept"
_AFTER_FAILURE = timedelta(minutes=5)


class Retention:
    """Deletes old rows once an hour, in every process; doing it twice changes nothing."""

    def __init__(
        self, settings: Settings, mongo: Mongo, delivery_mode: Callable[[str], str]
    ) -> None:
        """`delivery_mode` returns the mode of a Subscription."""
        self._mongo = mongo
        self._ledger = Ledger(mongo, "")
        self._waiting = WaitingRows(mongo)
        self._delivery_mode = delivery_mode
        self.events = timedelta(days=settings.event_retention_days)
        self.deliveries = timedelta(days=settings.delivery_retention_days)
        self._next: datetime | None = None
        self.loops = Loops(Loop("retention", patience=LONG_PATIENCE))

    async def sweep(self) -> None:
        """Delete old rows if an hour has passed since the last time, or a few minutes since it failed."""
        now = self._mongo.now()
        if self._next is None or now >= self._next:
            self._next = now + _AFTER_FAILURE
            with self.loops["retention"].step():
                await self.clear(now)
            self._next = now + EVERY

    async def clear(self, now: datetime) -> tuple[int, int]:
        """Delete rows past their retention at `now`; returns how many events and deliveries."""
        events = await event_rows(self._mongo).delete_many(
            {
                "_id": {"$lt": ObjectId.from_datetime(now - self.events)},
                "state": "done",
                "react_until": {"$exists": False},
                "react_failed": {"$exists": False},
            }
        )
        oldest = first_id(now - self.deliveries)
        given_up_lately = {"given_up_at": {"$gte": now - self.deliveries}}
        deliveries = await delivery_rows(self._mongo).delete_many(
            {
                "_id": {"$lt": oldest},
                "open": {"$exists": False},
                "unpublished": {"$exists": False},
                "$nor": [given_up_lately],
            }
        )
        await self._give_up(oldest, now)
        return events.deleted_count, deliveries.deleted_count

    async def _give_up(self, oldest: str, now: datetime) -> None:
        """Settle the rows before an id that wait for a Subscription which is not active."""
        for subscription in await self._waiting.older_than(oldest):
            if self._delivery_mode(subscription) != "active":
                count = await self._ledger.give_up(subscription, EXPIRED, oldest, now)
                log.warning(
                    "notices expired",
                    extra={"action": "expire", "id": subscription, "count": count},
                )
