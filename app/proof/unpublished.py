"""Notices that cannot be published: a row of its own each, apart from all others.

    deliveries   {..., publish?, publish_tries?, unpublished?: {at, error, asked?}}

One whose publication fails is put off, longer each time; after the last try it is a dead letter.
"""

from __future__ import annotations

import logging
from datetime import datetime, timedelta

from app.runtime.dead_letters import DeadLetter
from app.runtime.leases import BackOff
from app.runtime.mongo import Document, Mongo
from app.subscriptions.ledger.ledger import delivery_rows

log = logging.getLogger(__name__)

# For a little more than a day.
BACK_OFF = BackOff(timedelta(seconds=10), timedelta(hours=6), most=16)
_DEAD: Document = {"unpublished.at": {"$exists": True}}


class UnpublishedNotices:
    """The rows of the ledger whose publication failed."""

    name = "proof"

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._rows = delivery_rows(mongo)

    async def failed(self, row: Document, error: Exception, now: datetime) -> None:
        """Let the row be tried again later, or give it up after its last try."""
        name, tries = type(error).__name__, row.get("publish_tries", 0) + 1
        told = {"action": "publish", "id": row["_id"], "tries": tries, "error": name}
        pause = BACK_OFF.pause(tries)
        if pause is None:
            log.error("a notice cannot be published and was given up", extra=told)
            change: Document = {
                "$set": {"unpublished": {"at": now, "error": name}},
                "$unset": {"publish": "", "publish_tries": ""},
            }
        else:
            log.warning("a notice was not published", extra=told, exc_info=error)
            change = {"$set": {"publish": now + pause, "publish_tries": tries}}
        # One that was sent again meanwhile is open, and will be looked at when it is settled.
        await self._rows.update_one({"_id": row["_id"], "open": {"$exists": False}}, change)

    async def dead(self, limit: int, *, unasked: bool = False) -> list[DeadLetter]:
        which = _DEAD | ({"unpublished.asked": None} if unasked else {})
        rows = await self._rows.find(which).sort("unpublished.at").limit(limit).to_list(None)
        return [
            DeadLetter(
                self.name,
                row["_id"],
                "publication",
                failed["error"],
                failed["at"],
                f"{row['focus']['type']}/{row['focus']['id']}",
            )
            for row in rows
            if (failed := row["unpublished"])
        ]

    async def asked(self, letter: DeadLetter) -> None:
        which = {"_id": letter.id, **_DEAD}
        await self._rows.update_one(which, {"$set": {"unpublished.asked": True}})

    async def is_done(self, row_id: str) -> bool:
        row = await self._rows.find_one({"_id": row_id})
        return row is None or ("unpublished" not in row and "publish" not in row)

    async def run_again(self, row_id: str | None = None) -> int:
        which = _DEAD | ({"_id": row_id} if row_id is not None else {})
        anew = {"$set": {"publish": self._mongo.now()}, "$unset": {"unpublished": ""}}
        return int((await self._rows.update_many(which, anew)).modified_count)
