"""Rows of fired topics that no practice was told of, in place of the notices that there was nobody to send to.

    deliveries   {..., subscription: "unrouted-<digest>", number: 0, state: "suppressed", reason,
                  untold?: {cause, concerns, patient?, parties}, was_missed?}

`untold` says why nobody was told, and is there for as long as that lasts: `cause` is a review reason, `concerns` the
practice, patient or record that it lies with, `parties` are the references whose change may mend it. What is then told
has rows of its own (rerouting.py), and this one says what became of it. `was_missed`: there was somebody to send to,
and its Subscription was ended before that was done (missed_rows.py).

Of cause `in-doubt` is a row of an event that its practice may have missed, for it was named, or began to listen, beside
the matching. It is matched anew, whatever its topics, and goes again where nothing was missed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pymongo import ASCENDING, IndexModel, UpdateOne
from pymongo.errors import DuplicateKeyError

from app.fhir.ids import first_id
from app.runtime import collections
from app.runtime.mongo import Document, Mongo
from app.store.events import Event
from app.subscriptions.ledger.delivery_rows import row_of
from app.subscriptions.ledger.ledger import DELIVERIES, delivery_rows
from app.subscriptions.topics.topics import Coding

# What stands in place of a Subscription's id begins with it.
UNROUTED = "unrouted-"
# Stands in the place of a review reason; no person is asked.
IN_DOUBT = "in-doubt"
IN_DOUBT_REASON = "The practice was named, or began to listen, while the event was matched"
# In the words of the indexes, which have no other rows.
_WAITS: Document = {"untold.cause": {"$exists": True}}
ALL: Document = {"number": 0, **_WAITS}


@dataclass(frozen=True, slots=True)
class Untold:
    """Why nobody was told, of a row that waits for that to be mended."""

    cause: str
    concerns: str
    patient: str | None
    parties: tuple[str, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Untold:
        found = row["untold"]
        return cls(found["cause"], found["concerns"], found.get("patient"), tuple(found["parties"]))

    def fields(self) -> Document:
        found: Document = {
            "cause": self.cause,
            "concerns": self.concerns,
            "parties": list(self.parties),
        }
        return found if self.patient is None else {**found, "patient": self.patient}


@dataclass(frozen=True, slots=True)
class Tally:
    """Rows that wait for one cause: how many, the first one's focus as `Type/id`, and when each end was stored."""

    count: int
    focus: str
    patient: str | None
    oldest: datetime
    newest: datetime

    def and_(self, later: Tally) -> Tally:
        """Both together; the other one's first row is younger."""
        newest = max(self.newest, later.newest)
        return replace(self, count=self.count + later.count, newest=newest)


class UntoldRows:
    """The rows of the ledger that wait for somebody to tell."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._rows = delivery_rows(mongo)

    async def prepare(self) -> None:
        """Create the indexes that are missing."""
        keys = [("untold.cause", "untold.concerns"), ("untold.parties",), ("number",)]
        models = [
            IndexModel(
                [(key, ASCENDING) for key in (*each, "_id")],
                name="_".join(each).replace(".", "_"),
                partialFilterExpression=_WAITS,
            )
            for each in keys
        ]
        await collections.ensure(self._mongo, DELIVERIES, models)

    async def add(
        self, event: Event, fired: tuple[str, Coding | None], why: Untold, reason: str
    ) -> None:
        """Store the row of a topic that an event fired; once, however often it is said."""
        with suppress(DuplicateKeyError):  # the reaction has run before
            await self._rows.insert_one(self._row(event, fired, why, reason))

    async def add_missed(
        self, event: Event, fired: tuple[str, Coding | None], why: Untold, reason: str
    ) -> None:
        """Store the row of a topic whose notice a Subscription has missed, or let it wait again that is there."""
        row = self._row(event, fired, why, reason) | {"was_missed": True}
        try:
            await self._rows.insert_one(row)
        except DuplicateKeyError:
            again = {"was_missed": True, "untold": row["untold"], "reason": reason}
            await self._rows.update_one(
                {"subscription": row["subscription"], "event": event.id},
                {"$set": {**again, "publish": row["created_at"]}},
            )

    def _row(
        self, event: Event, fired: tuple[str, Coding | None], why: Untold, reason: str
    ) -> Document:
        now = self._mongo.now()
        about = hashlib.sha256("\n".join((str(event.id), fired[0], why.concerns)).encode())
        name = f"{UNROUTED}{about.hexdigest()[:32]}"
        row = row_of(event, name, 0, f"{name}|", fired, now)
        row |= {"state": "suppressed", "reason": reason, "untold": why.fields()}
        if why.cause == IN_DOUBT:  # there is nothing to prove yet
            row.pop("publish", None)
        return row

    async def is_any(self, which: Document) -> bool:
        """Whether a row waits that is selected (`of_party`, `of_causes`)."""
        return await self._rows.find_one(which, {"_id": 1}) is not None

    async def page(self, which: Document, after: str, limit: int) -> list[Document]:
        """The next selected rows after an id, the oldest first."""
        found = self._rows.find({**which, "_id": {"$gt": after}}).sort("_id", ASCENDING)
        rows: list[Document] = await found.limit(limit).to_list(None)
        return rows

    async def tally(self, cause: str, concerns: str) -> Tally | None:
        """The rows of one cause; None where none waits."""
        which = {"untold.cause": cause, "untold.concerns": concerns}
        first = await self._rows.find_one(which, sort=[("_id", 1)])
        last = await self._rows.find_one(which, {"created_at": 1}, sort=[("_id", -1)])
        if first is None or last is None:
            return None
        return Tally(
            await self._rows.count_documents(which),
            f"{first['focus']['type']}/{first['focus']['id']}",
            first["untold"].get("patient"),
            first["created_at"],
            last["created_at"],
        )

    async def tallies(self, cause: str, concerns: str) -> list[Tally]:
        """The rows of one cause for each record by itself, in the order of their first rows."""
        pipeline: list[Document] = [
            {"$match": {"untold.cause": cause, "untold.concerns": concerns}},
            {"$sort": {"_id": 1}},
            {
                "$group": {
                    "_id": {"type": "$focus.type", "id": "$focus.id"},
                    "count": {"$sum": 1},
                    "patient": {"$first": "$untold.patient"},
                    "first": {"$first": "$_id"},
                    "oldest": {"$first": "$created_at"},
                    "newest": {"$last": "$created_at"},
                }
            },
            {"$sort": {"first": 1}},
        ]
        return [
            Tally(
                row["count"],
                f"{row['_id']['type']}/{row['_id']['id']}",
                row["patient"],
                row["oldest"],
                row["newest"],
            )
            for row in await self._mongo.aggregate(self._rows, pipeline)
        ]

    async def causes_since(self, at: datetime) -> list[tuple[str, str]]:
        """The causes, each with what it concerns, of the rows that were stored since."""
        pipeline: list[Document] = [
            {"$match": {**ALL, "_id": {"$gte": first_id(at)}}},
            {"$group": {"_id": {"cause": "$untold.cause", "concerns": "$untold.concerns"}}},
        ]
        found = await self._mongo.aggregate(self._rows, pipeline)
        return [(row["_id"]["cause"], row["_id"]["concerns"]) for row in found]

    async def move(self, moved: Mapping[str, tuple[Untold, str]], at: datetime) -> None:
        """Let rows, by id, wait for something else than before, with that as their reason; it is published anew."""
        updates = [
            UpdateOne(
                {"_id": id_, "untold": {"$exists": True}},
                {"$set": {"untold": why.fields(), "reason": reason, "publish": at}},
            )
            for id_, (why, reason) in moved.items()
        ]
        if updates:
            await self._rows.bulk_write(updates, ordered=False)

    async def forget(self, ids: Iterable[str]) -> None:
        """Delete rows of events that nobody has missed."""
        which = {"_id": {"$in": list(ids)}, "untold.cause": IN_DOUBT}
        await self._rows.delete_many(which)

    async def end(self, ended: Iterable[tuple[Mapping[str, Any], str]], at: datetime) -> None:
        """Let rows wait no more, and say what became of each; their proof is published anew."""
        updates = [
            UpdateOne(
                {"_id": row["_id"], "untold": {"$exists": True}},
                {
                    "$set": {"reason": f"{row['reason']}; {what}", "publish": at},
                    "$unset": {"untold": ""},
                },
            )
            for row, what in ended
        ]
        if updates:
            await self._rows.bulk_write(updates, ordered=False)

    async def of_version(self, focus: Mapping[str, Any]) -> list[Document]:
        """The rows, waiting or not, of topics that one version of a resource fired."""
        which = {f"focus.{name}": focus[name] for name in ("id", "type", "version")}
        which["subscription"] = {"$regex": f"^{UNROUTED}"}
        found: list[Document] = await self._rows.find(which).sort("_id", ASCENDING).to_list(None)
        return found


def of_party(reference: str) -> Document:
    """The selection of rows for whose cause a reference counts."""
    return {"untold.parties": reference, **_WAITS}


def of_causes(causes: Collection[str]) -> Document:
    """The selection of rows by cause."""
    return {"number": 0, "untold.cause": {"$in": sorted(causes)}}


def event_row(row: Mapping[str, Any], version: int | None = None) -> Document:
    """What a row is to be matched by, as a row of `events`: an event of its topic alone, which has fired already.

    One in doubt is the event as it was committed. `version` stands for the row's own, `since`, where the record has
    been put right since.
    """
    focus: Mapping[str, Any] = row["focus"]
    found = {name: focus[name] for name in ("type", "id", "version", "method", "at")}
    is_whole = row["untold"]["cause"] == IN_DOUBT
    return {
        "_id": row["event"],
        **found,
        "version": version or focus["version"],
        "since": focus["version"],
        "topic": None if is_whole else row["topic"],
        "trigger": None if is_whole else row["trigger"],
        "context": row.get("context", []),
    }


def references(*several: Sequence[str | None]) -> tuple[str, ...]:
    """References, each once and none that is not there."""
    return tuple(dict.fromkeys(each for some in several for each in some if each))
