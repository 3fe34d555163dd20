"""The retention of the outbox and the ledger. Open rows stay, however old, and so do those that were given up.

Events that are done are only needed to find Subscriptions that changed a moment ago. A delivery row is the ledger's
entry, and the source of `$events`, which answers 410 without it, and of `$resend`. Ids are in order of time, so both
are found by them and need no further index.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from bson import ObjectId

from app.fhir.ids import first_id
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store.events import event_rows
from app.subscriptions.ledger.ledger import delivery_rows

EVERY = timedelta(hours=1)


class Retention:
    """Deletes old rows once an hour, in every process; doing it twice changes nothing."""

    def __init__(self, settings: Settings, mongo: Mongo) -> None:
        self._mongo = mongo
        self.events = timedelta(days=settings.event_retention_days)
        self.deliveries = timedelta(days=settings.delivery_retention_days)
        self._next: datetime | None = None

    async def sweep(self) -> None:
        """Delete old rows if an hour has passed since the last time."""
        now = self._mongo.now()
        if self._next is None or now >= self._next:
            self._next = now + EVERY
            await self.clear(now)

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
        deliveries = await delivery_rows(self._mongo).delete_many(
            {
                "_id": {"$lt": first_id(now - self.deliveries)},
                "open": {"$exists": False},
                "unpublished": {"$exists": False},
            }
        )
        return events.deleted_count, deliveries.deleted_count
