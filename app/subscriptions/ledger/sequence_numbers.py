"""A cache of Subscriptions: the number of the last event, and the lanes with open rows.

It may be behind the database, never ahead of it: the unique index on (subscription, number) refuses a number that
another process has taken meanwhile, and then the cache is read anew. So an accepted number proves the rest of a
Subscription's entry too: no other process has inserted a row for it since it was read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pymongo import UpdateOne

from app.runtime.mongo import Collection as MongoCollection, Document, Mongo
from app.subscriptions.ledger.ledger import delivery_rows

# A row for each Subscription: the number of its last event, its next heartbeat, its handshake.
SUBSCRIPTION_STATE_COLLECTION = "subscription_state"

# For this many seconds after another process has taken a number, the cache is read anew for each use.
_SHARED_FOR = 10.0
_REMEMBERED = 100_000
# A Subscription with more lanes open than this counts as busy in all of them.
_MOST_LANES = 10_000
_AT_ONCE = 200


@dataclass(slots=True)
class Known:
    """One Subscription: `busy` counts the open rows of its lanes; `crowded` where there were too many to read."""

    number: int
    busy: dict[str, int] = field(default_factory=dict)
    crowded: bool = False

    def is_busy(self, lane: str) -> bool:
        return self.crowded or lane in self.busy


class SequenceNumbers:
    """The cache over the collections `deliveries` and `subscription_state`."""

    def __init__(self, mongo: Mongo, clock: Callable[[], float] = time.monotonic) -> None:
        self._mongo = mongo
        self._clock = clock
        self._deliveries = delivery_rows(mongo)
        self._known: dict[str, Known] = {}
        self._shared_until = 0.0

    async def learn(self, subscriptions: Iterable[str]) -> dict[str, Known]:
        """The entry of each Subscription, read where it is not cached or where other processes take numbers too."""
        wanted = set(subscriptions)
        if self._clock() < self._shared_until or len(self._known) > _REMEMBERED:
            self._known.clear()
        unknown = [subscription for subscription in wanted if subscription not in self._known]
        for begin in range(0, len(unknown), _AT_ONCE):
            self._known.update(await self._read_all(unknown[begin : begin + _AT_ONCE]))
        return {subscription: self._known[subscription] for subscription in wanted}

    async def foresee(self, subscriptions: Iterable[str]) -> None:
        """Read in advance what `learn` will need, where it may be cached."""
        if not self.shared:
            await self.learn(subscriptions)

    async def _read_all(self, ids: list[str]) -> dict[str, Known]:
        """Numbers and lanes in one round: the first notice of a Subscription waits for it."""
        # A lane is named after its Subscription and "|", so "}" ends its range.
        ranges = [{"lane": {"$gte": f"{id_}|", "$lt": f"{id_}}}"}} for id_ in ids]
        lanes = [
            {"$match": {"$or": ranges, "open": True}},
            {"$limit": _MOST_LANES + 1},
            {"$project": {"_id": 0, "lane": 1}},
        ]
        # Parts are read one after the other, numbers first: a row that comes in between makes a lane look busy, or its
        # number is refused.
        known = {id_: Known(0) for id_ in ids}
        pipeline = [*_numbers(ids), {"$unionWith": {"coll": "deliveries", "pipeline": lanes}}]
        found = 0
        for row in await self._mongo.aggregate(self._deliveries, pipeline):
            if "lane" in row:
                found += 1
                busy = known[row["lane"].partition("|")[0]].busy
                busy[row["lane"]] = busy.get(row["lane"], 0) + 1
            else:
                each = known[row["_id"]]
                each.number = max(each.number, row.get("number", 0))
        if found > _MOST_LANES:
            for each in known.values():
                each.crowded = True
        return known

    async def read(self, subscriptions: Collection[str]) -> dict[str, int]:
        """The number of each Subscription's last event; 0 where there was none."""
        ids = list(subscriptions)
        numbers = dict.fromkeys(ids, 0)
        for row in await self._mongo.aggregate(self._deliveries, _numbers(ids)):
            numbers[row["_id"]] = max(numbers[row["_id"]], row.get("number", 0))
        return numbers

    def given(self, subscription: str, number: int, lane: str, *, is_open: bool) -> None:
        """Note a row that this process inserted."""
        known = self._known.get(subscription)
        if known is None:
            return
        known.number = number
        if is_open:
            known.busy[lane] = known.busy.get(lane, 0) + 1

    def cached(self, subscriptions: Iterable[str]) -> dict[str, Known]:
        """The entries of those that are cached now, for `closed`."""
        return {each: self._known[each] for each in subscriptions if each in self._known}

    def closed(self, subscription: str, lane: str, before: Known | None) -> bool:
        """Note a row that this process settled for good; returns whether its lane may hold another open one.

        `before` is the entry as it was cached before the row was written. One that was read meanwhile has perhaps not
        counted the row any more, and the next one of the lane in its place.
        """
        known = self._known.get(subscription)
        if known is not before:
            self._known.pop(subscription, None)
            return True
        if known is None or known.crowded:
            return True
        left = known.busy.get(lane, 1) - 1
        if left > 0:
            known.busy[lane] = left
            return True
        known.busy.pop(lane, None)
        return False

    def refused(self) -> None:
        """Clear the cache: another process was faster with one of the numbers."""
        self._shared_until = self._clock() + _SHARED_FOR
        self._known.clear()

    def forget(self, subscriptions: Iterable[str]) -> None:
        """Read these anew when they are needed next."""
        for subscription in subscriptions:
            self._known.pop(subscription, None)

    @property
    def shared(self) -> bool:
        """Whether another process has taken a number in the last _SHARED_FOR seconds."""
        return self._clock() < self._shared_until


def _numbers(ids: list[str]) -> list[Document]:
    """The pipeline over `deliveries` that finds the last numbers, of the rows and of the counters.

    The counter follows the rows a moment later, and stays when they are deleted.
    """
    counters = [{"$match": {"_id": {"$in": ids}}}, {"$project": {"number": 1}}]
    return [
        {"$match": {"subscription": {"$in": ids}}},
        {"$sort": {"subscription": -1, "number": -1}},
        {"$group": {"_id": "$subscription", "number": {"$first": "$number"}}},
        {"$unionWith": {"coll": SUBSCRIPTION_STATE_COLLECTION, "pipeline": counters}},
    ]


# The number of each Subscription's last event, as it is kept beside the rows: a moment behind them, never ahead.


async def advance(
    states: MongoCollection, moved: Mapping[str, tuple[int, datetime | None]]
) -> None:
    """Write counters: `moved` holds the last number and, where there are any, when the next heartbeat is due.

    Existing counters are written by one update, which costs MongoDB a third of what single ones do.
    """
    numbers = {id_: number for id_, (number, heartbeat) in moved.items() if heartbeat is None}
    single = dict(moved)
    if numbers:
        update = _to_numbers(numbers)
        found = await states.update_many({"_id": {"$in": list(numbers)}}, update)
        if found.matched_count == len(numbers):
            single = {id_: move for id_, move in moved.items() if id_ not in numbers}
    if single:
        updates = [UpdateOne({"_id": id_}, _to(*move), upsert=True) for id_, move in single.items()]
        await states.bulk_write(updates, ordered=False)


def _to_numbers(numbers: Mapping[str, int]) -> list[Document]:
    place = {"$indexOfArray": [{"$literal": list(numbers)}, "$_id"]}
    number = {"$arrayElemAt": [{"$literal": list(numbers.values())}, place]}
    return [{"$set": {"number": {"$max": ["$number", number]}}}]


def _to(number: int, heartbeat: datetime | None) -> Document:
    update: Document = {"$max": {"number": number}}
    if heartbeat is not None:
        update["$set"] = {"heartbeat_at": heartbeat}
    return update
