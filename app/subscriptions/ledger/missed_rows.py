"""Rows that were closed before they were delivered, since their Subscription takes no notices any more.

    deliveries   {..., missed?: "new" | "asked"}

`missed` is there for as long as somebody may still be to be told: `new` until that is judged
(app/coordination/practices/missed_notices.py), `asked` while a row of untold_rows.py waits in its place. Where its
Subscription takes notices again before that, the row goes out itself (sending/backlog.py).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

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

    async def forget_events(
        self, ended: Sequence[Mapping[str, Any]], is_over: Callable[[str], bool]
    ) -> None:
        """Note the same of rows in whose place others waited, which have ended; `is_over` says so of a Subscription.

        One that takes notices again sends its rows itself. Where one more waits, for another practice, they are kept.
        """
        fired = {(row["event"], row["topic"]) for row in ended}
        missed = {"event": {"$in": [event for event, _ in fired]}, **ANY_MISSED}
        found = await self._of(missed, fired)
        if not found:
            return
        places = [row["focus"]["id"] for row in ended]
        others = {"focus.id": {"$in": places}, "number": 0, "untold": {"$exists": True}}
        others["_id"] = {"$nin": [row["_id"] for row in ended]}
        left = {(row["event"], row["topic"]) for row in await self._of(others, fired)}
        await self.forget(
            row["_id"]
            for row in found
            if (row["event"], row["topic"]) not in left and is_over(row["subscription"])
        )

    async def _of(self, which: Document, fired: Collection[tuple[Any, Any]]) -> list[Document]:
        """The selected rows of topics that events fired."""
        fields = {"subscription": 1, "event": 1, "topic": 1}
        rows = await self._rows.find(which, fields).to_list(None)
        return [row for row in rows if (row["event"], row["topic"]) in fired]
