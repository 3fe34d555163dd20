"""Rows that were closed before they were delivered, since their Subscription takes no notices any more.

    deliveries   {..., missed?: "new" | "asked"}

`missed` is there for as long as somebody may still be to be told: `new` until that is judged
(app/coordination/practices/missed_notices.py), `asked` while a row of untold_rows.py waits in its place. Where its
Subscription takes notices again before that, the row goes out itself (sending/backlog.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from pymongo import ASCENDING

from app.runtime.mongo import Document, Mongo
from app.subscriptions.ledger.ledger import ANY_MISSED, MISSED_ASKED, MISSED_NEW, delivery_rows


class MissedRows:
    """The rows of the ledger that their Subscription has missed."""

    def __init__(self, mongo: Mongo) -> None:
        self._rows = delivery_rows(mongo)

    async def subscriptions(self) -> list[str]:
        """The Subscriptions that have missed rows."""
        found: list[str] = await self._rows.distinct("subscription", ANY_MISSED)
        return found

    async def new(self, limit: int) -> list[Document]:
        """Some that nobody has judged yet."""
        by = [("subscription", ASCENDING), ("_id", ASCENDING)]
        found = self._rows.find({"missed": MISSED_NEW}).sort(by).limit(limit)
        rows: list[Document] = await found.to_list(None)
        return rows

    async def asked(self, ids: Iterable[str]) -> None:
        """Note that other rows wait in the place of these."""
        which = {"_id": {"$in": list(ids)}, "missed": MISSED_NEW}
        await self._rows.update_many(which, {"$set": {"missed": MISSED_ASKED}})

    async def forget(self, ids: Iterable[str]) -> None:
        """Note that nobody is to be told of these."""
        which = {"_id": {"$in": list(ids)}, **ANY_MISSED}
        await self._rows.update_many(which, {"$unset": {"missed": ""}})

    async def forget_events(self, events: Iterable[object], is_over: Callable[[str], bool]) -> None:
        """Note the same of the rows of events that were told otherwise; `is_over` says so of their Subscription.

        One that takes notices again sends its rows itself.
        """
        which = {"event": {"$in": list(events)}, **ANY_MISSED}
        rows = await self._rows.find(which, {"subscription": 1}).to_list(None)
        await self.forget(row["_id"] for row in rows if is_over(row["subscription"]))
