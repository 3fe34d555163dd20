"""Events that a judge could not decide on: set aside for that judge alone, and judged again until it can.

    unmatched  {_id, event: id of the event, judge: see app/subscriptions/matching/judges.py, focus: {type, id, version,
                method, at}, topic?, trigger?, context?, only_for?: of an event that was raised, reason: types and
                places, is_own: the judge's own text is at fault, behind: only waits for an older version,
                as_of_now?: the practice of now counts, created_at, lease_until, owner?, attempt?, tries}

A row is inserted before its event is done, once for each event and judge, and follows the rules of
app/runtime/leases.py, but that it is never given up. It goes when the judge has decided and the deliveries are
recorded, or when the Subscription that judges is off or deleted. Younger versions of the same resource wait behind it
for that judge.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypedDict

from bson import ObjectId
from bson.errors import InvalidId
from pymongo import ASCENDING, IndexModel, UpdateOne
from pymongo.errors import BulkWriteError

from app.errors import BadRequest
from app.fhir.instants import instant
from app.runtime import collections
from app.runtime.leases import BackOff, Claim, Leases
from app.runtime.mongo import Document, Mongo
from app.store.events import Event
from app.subscriptions.matching import judges
from app.subscriptions.matching.judges import ALL, Failure

COLLECTION = "unmatched"
BEHIND = "waits behind an older version"

_LEASE = timedelta(seconds=60)
_BACK_OFF = BackOff(timedelta(seconds=2), timedelta(minutes=5), most=sys.maxsize)
# The look at a row that only waits for another, which is released when that one goes.
_SECOND_LOOK = timedelta(seconds=10)
# A judge that failed on so many records is a cause itself.
_MANY = 5
_DUPLICATE_KEY = 11000

_RECORD: Document = {"$concat": ["$focus.type", "/", "$focus.id"]}

Key = tuple[str, str]


class Row(TypedDict, total=False):
    """A row of `unmatched`."""

    _id: ObjectId
    event: Any
    judge: str
    focus: dict[str, Any]
    topic: str | None
    trigger: dict[str, str] | None
    context: list[str]
    only_for: list[str]
    reason: str
    is_own: bool
    behind: bool
    as_of_now: bool
    created_at: datetime
    lease_until: datetime
    owner: str | None
    attempt: int
    tries: int


class UndecidedError(Exception):
    """A judge has failed again."""


@dataclass(frozen=True, slots=True)
class Selected:
    """Which rows an operator asks for, all of it. `focus` is `Type/id`."""

    subscription: str | None = None
    judge: str | None = None
    focus: str | None = None

    def condition(self) -> Document:
        """The MongoDB filter on rows."""
        found: Document = {}
        if self.subscription is not None:
            found["judge"] = judges.of_subscription(self.subscription)
        elif self.judge is not None:
            found["judge"] = self.judge
        if self.focus is not None:
            found["focus.type"], _, found["focus.id"] = self.focus.partition("/")
        return found


@dataclass(frozen=True, slots=True)
class Cause:
    """Why rows are there: a Subscription, or a record. `focus` is that resource, as `Type/id`.

    `since` is when the oldest of its rows was set aside.
    """

    focus: str
    since: datetime


def row_of(
    event: Event, failure: Failure, now: datetime, *, as_of_now: bool = False
) -> tuple[Document, Document]:
    """A new row: what finds it, and what it holds."""
    behind = failure.reason == BEHIND
    values: Document = {
        "focus": {
            "type": event.type,
            "id": event.resource_id,
            "version": event.version,
            "method": event.method,
            "at": event.at,
        },
        "reason": failure.reason,
        "is_own": failure.is_own,
        "behind": behind,
        "created_at": now,
        "lease_until": now + (_SECOND_LOOK if behind else _BACK_OFF.first),
        "tries": 0,
    }
    if event.topic is not None:
        trigger = dict(event.trigger) if event.trigger else None
        values |= {"topic": event.topic, "trigger": trigger, "context": list(event.context)}
        if event.only_for:
            values["only_for"] = list(event.only_for)
    if as_of_now:
        values["as_of_now"] = True
    return {"event": event.id, "judge": failure.judge}, values


def event_row(row: Row) -> Document:
    """The row of `events` that a row is about, which may be deleted by now."""
    focus = row["focus"]
    return {
        "_id": row["event"],
        **{name: focus[name] for name in ("type", "id", "version", "method", "at")},
        **{name: row[name] for name in ("topic", "trigger", "context", "only_for") if name in row},
    }


class Unmatched:
    """The collection. `owner` names this process."""

    def __init__(self, mongo: Mongo, owner: str) -> None:
        self._mongo = mongo
        self._rows = mongo.collection(COLLECTION)
        order = [("lease_until", ASCENDING)]
        self._leases = Leases[Row](
            mongo, COLLECTION, owner, lease=_LEASE, back_off=_BACK_OFF, order=order
        )

    async def prepare(self) -> None:
        """Create the indexes that are missing."""
        models = [
            IndexModel([("event", ASCENDING), ("judge", ASCENDING)], name="event", unique=True),
            IndexModel([("focus.id", ASCENDING), ("focus.version", ASCENDING)], name="focus"),
            IndexModel([("lease_until", ASCENDING)], name="lease_until"),
            IndexModel([("judge", ASCENDING)], name="judge"),
        ]
        await collections.ensure(self._mongo, COLLECTION, models)

    # Setting aside

    async def add(self, failed: Iterable[tuple[Event, Failure]], *, as_of_now: bool) -> None:
        """Set events aside for their judges; those that are there already stay as they are."""
        now = self._mongo.now()
        updates = []
        for event, failure in failed:
            found, values = row_of(event, failure, now, as_of_now=as_of_now)
            later = {"$set": {"as_of_now": values.pop("as_of_now")}} if as_of_now else {}
            updates.append(UpdateOne(found, {"$setOnInsert": values, **later}, upsert=True))
        if not updates:
            return
        try:
            await self._rows.bulk_write(updates, ordered=False)
        except BulkWriteError as error:  # another process was faster with the same row
            if any(each["code"] != _DUPLICATE_KEY for each in error.details["writeErrors"]):
                raise

    async def waiting(self, events: Mapping[Key, int]) -> dict[Key, dict[int, set[str]]]:
        """The judges for which older versions of these resources wait, by version; `events` has the newest of each."""
        if not events:
            return {}
        ids = {"$in": list({key[1] for key in events})}
        fields = {"focus.type": 1, "focus.id": 1, "focus.version": 1, "judge": 1}
        found: dict[Key, dict[int, set[str]]] = {}
        for row in await self._rows.find({"focus.id": ids}, fields).to_list(None):
            focus = row["focus"]
            key = (focus["type"], focus["id"])
            if focus["version"] < events.get(key, 0):
                found.setdefault(key, {}).setdefault(focus["version"], set()).add(row["judge"])
        return found

    # Judging again

    async def claim(self, which: Document | None = None) -> Claim[Row] | None:
        """The next row that is due, or the first that `which` selects and nobody has in hand."""
        if which is None:
            return await self._leases.claim({"lease_until": {"$lte": self._mongo.now()}})
        return await self._leases.claim(which)

    def kept(self, claim: Claim[Row]) -> AbstractAsyncContextManager[None]:
        """Keep the lease while the judge is asked."""
        return self._leases.kept(claim)

    async def decided(self, claim: Claim[Row]) -> None:
        """The judge has decided: the row goes, and what waited behind it is due."""
        row = claim.row
        await self._leases.remove(claim)
        focus = row["focus"]
        later = {"focus.id": focus["id"], "focus.type": focus["type"], "behind": True}
        await self._make_due(later)
        if row["is_own"] and claim.tries > 1:  # the one that was tried for all of its judge
            await self._make_due({"judge": row["judge"]})

    async def put_off(self, claim: Claim[Row], failure: Failure) -> None:
        """The judge has failed again: later, and more so each time. All rows of one that is itself at fault wait."""
        says = {"reason": failure.reason, "is_own": failure.is_own, "behind": False}
        await self._rows.update_one({"_id": claim.id}, {"$set": says})
        await self._leases.postpone(claim, UndecidedError())
        pause = _BACK_OFF.pause(claim.tries)
        if failure.is_own and pause is not None:
            until = {"$add": ["$$NOW", round(pause.total_seconds() * 1000)]}
            others = {"judge": failure.judge, "owner": None}
            await self._rows.update_many(others, [{"$set": {"lease_until": until}}])

    async def put_behind(self, claim: Claim[Row]) -> None:
        """An older version still waits: look again when that one has gone."""
        await self._leases.release(claim, _SECOND_LOOK)

    async def failed(self, claim: Claim[Row], error: Exception) -> None:
        """What stood between the row and its judge failed; where that was the database it does not count."""
        await self._leases.postpone(claim, error)

    async def end(self, judge: str) -> None:
        """Drop the rows of a judge that decides on nothing any more."""
        await self._rows.delete_many({"judge": judge})

    async def hasten(self, which: Document) -> None:
        """Make rows due that nobody has in hand."""
        await self._make_due(which)

    async def _make_due(self, which: Document) -> None:
        await self._rows.update_many({**which, "owner": None}, [{"$set": {"lease_until": "$$NOW"}}])

    async def hand_back(self) -> None:
        """Release what this process has in hand; for an orderly stop."""
        await self._leases.hand_back()

    async def take_from(self, owner: str) -> None:
        """Let anybody claim at once what a process held that is gone."""
        await self._leases.take_from(owner)

    # What is asked of it

    async def ids(self, which: Document) -> list[ObjectId]:
        """The rows that a condition selects, older versions first."""
        cursor = self._rows.find(which, {"_id": 1})
        rows = await cursor.sort([("focus.version", 1), ("_id", 1)]).to_list(None)
        return [row["_id"] for row in rows]

    async def count(self, which: Document | None = None) -> int:
        """How many events are set aside, each once for each judge."""
        count: int = await self._rows.count_documents(which or {})
        return count

    async def oldest(self) -> datetime | None:
        """When the oldest of them was set aside."""
        row = await self._rows.find_one({}, {"created_at": 1}, sort=[("_id", ASCENDING)])
        return None if row is None else row["created_at"]

    async def search(
        self, selected: Selected, count: int, cursor: str | None = None
    ) -> tuple[list[Document], str | None]:
        """Rows as JSON, the oldest first, and the cursor of the next page, if there is one."""
        condition = selected.condition()
        if cursor is not None:
            try:
                condition["_id"] = {"$gt": ObjectId(cursor)}
            except InvalidId:
                raise BadRequest("Not a cursor of this list", expression="_cursor") from None
        found = self._rows.find(condition).sort("_id", ASCENDING).limit(count + 1)
        rows: list[Row] = await found.to_list(None)
        more = str(rows[count - 1]["_id"]) if len(rows) > count else None
        return [_shown(row) for row in rows[:count]], more

    async def causes(self, limit: int) -> Sequence[Cause]:
        """Why rows are there, the oldest first; those that only wait behind others have no cause of their own.

        A judge that is itself at fault, or that failed on many records, is one cause; otherwise each record is.
        """
        by_judge = await self._grouped({"behind": False}, "$judge", limit)
        own = [row for row in by_judge if row["is_own"] or row["count"] >= _MANY]
        causes = [
            Cause(row["_id"] if judges.subscription_of(row["_id"]) else row["record"], row["since"])
            for row in own
        ]
        others = {"behind": False, "judge": {"$nin": [row["_id"] for row in own]}}
        by_record = await self._grouped(others, _RECORD, limit)
        causes.extend(Cause(row["_id"], row["since"]) for row in by_record)
        unique = {cause.focus: cause for cause in reversed(causes)}
        return sorted(unique.values(), key=lambda cause: cause.since)[:limit]

    async def _grouped(self, which: Document, by: Any, limit: int) -> list[Document]:
        group = {
            "_id": by,
            "since": {"$min": "$created_at"},
            "count": {"$sum": 1},
            "is_own": {"$max": "$is_own"},
            "record": {"$first": _RECORD},
        }
        pipeline: list[Document] = [
            {"$match": which},
            {"$sort": {"_id": 1}},
            {"$group": group},
            {"$sort": {"since": 1}},
            {"$limit": limit},
        ]
        return await self._mongo.aggregate(self._rows, pipeline)


def behind(waiting: Collection[str]) -> list[Failure]:
    """What is noted of judges for which an older version waits."""
    return [Failure(judge, BEHIND) for judge in sorted(waiting)]


def is_waiting(judge: str, waiting: Collection[str]) -> bool:
    """Whether an older version waits for this judge, or for all."""
    return judge in waiting or ALL in waiting


def _shown(row: Row) -> Document:
    focus = row["focus"]
    return {
        "id": str(row["_id"]),
        "judge": row["judge"],
        "state": "unmatched",
        "reason": row["reason"],
        "focus": f"{focus['type']}/{focus['id']}/_history/{focus['version']}",
        "method": focus["method"],
        "committed_at": instant(focus["at"]),
        "created_at": instant(row["created_at"]),
        "next_at": instant(row["lease_until"]),
        "tries": row["tries"],
    }
