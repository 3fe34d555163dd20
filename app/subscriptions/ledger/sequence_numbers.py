"""A cache of Subscriptions: the number of the last event, and the lanes with open rows.

It may be behind the database, never ahead of it: the unique index on (subscription, number) refuses a number that
another process has taken meanwhile, and then the cache is read anew. So an accepted number proves the rest of a
Subscription's entry too: no other process has inserted a row for it since it was read.

A sequence that several Subscriptions share (lanes.py) has an entry of its own: the last turn in place of a number, and
its lanes. The unique index on (sequence, turn) proves it likewise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from pymongo import UpdateOne

from app.runtime.mongo import Collection as MongoCollection, Document, Mongo
from app.subscriptions.ledger.lanes import HAS_TURN, is_shared, range_of, sequence_of
from app.subscriptions.ledger.ledger import delivery_rows

# A row for each Subscription: the number of its last event, its next heartbeat, its handshake; and one for each shared
# sequence: its last turn, as `number`.
SUBSCRIPTION_STATE_COLLECTION = "subscription_state"

# For this many seconds after another process has taken a number, the cache is read anew for each use.
_SHARED_FOR = 10.0
_REMEMBERED = 100_000
# A Subscription with more lanes open than this counts as busy in all of them.
_MOST_LANES = 10_000
_AT_ONCE = 200


@dataclass(slots=True)
class Known:
    """One Subscription or shared sequence: its last `number` or turn; `busy` counts the open rows of its lanes.

    `crowded` where there were too many to read.
    """

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

    async def learn(self, names: Iterable[str]) -> dict[str, Known]:
        """The entry of each Subscription or sequence, read where it is not cached or where others take numbers too."""
        wanted = set(names)
        if self._clock() < self._shared_until or len(self._known) > _REMEMBERED:
            self._known.clear()
        unknown = [each for each in wanted if each not in self._known]
        for begin in range(0, len(unknown), _AT_ONCE):
            self._known.update(await self._read_all(unknown[begin : begin + _AT_ONCE]))
        return {each: self._known[each] for each in wanted}

    async def foresee(self, names: Iterable[str]) -> None:
        """Read in advance what `learn` will need, where it may be cached."""
        if not self.shared:
            await self.learn(names)

    async def _read_all(self, ids: list[str]) -> dict[str, Known]:
        """Numbers and lanes in one round: the first notice of a Subscription waits for it."""
        ranges = [{"lane": range_of(id_)} for id_ in ids]
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
                busy = known[sequence_of(row["lane"])].busy
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

    def given(self, row: Document) -> None:
        """Note a row that this process inserted."""
        lane = row["lane"]
        numbering = self._known.get(row["subscription"])
        if numbering is not None:
            numbering.number = row["number"]
        ordering = self._known.get(sequence_of(lane))
        if ordering is None:
            return
        if "turn" in row:
            ordering.number = row["turn"]
        if "open" in row:
            ordering.busy[lane] = ordering.busy.get(lane, 0) + 1

    def cached(self, sequences: Iterable[str]) -> dict[str, Known]:
        """The entries of those that are cached now, for `closed`."""
        return {each: self._known[each] for each in sequences if each in self._known}

    def closed(self, lane: str, before: Mapping[str, Known]) -> bool:
        """Note a row that this process settled for good; returns whether its lane may hold another open one.

        `before` are the entries as they were cached before the row was written. One that was read meanwhile has perhaps
        not counted the row any more, and the next one of the lane in its place.
        """
        sequence = sequence_of(lane)
        known = self._known.get(sequence)
        if known is not before.get(sequence):
            self._known.pop(sequence, None)
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

    def forget(self, names: Iterable[str]) -> None:
        """Read these Subscriptions and sequences anew when they are needed next."""
        for name in names:
            self._known.pop(name, None)

    @property
    def shared(self) -> bool:
        """Whether another process has taken a number in the last _SHARED_FOR seconds."""
        return self._clock() < self._shared_until


def _numbers(ids: list[str]) -> list[Document]:
    """The pipeline over `deliveries` that finds the last numbers, of the rows and of the counters.

    The counter follows the rows a moment later, and stays when they are deleted.
    """
    counters = [{"$match": {"_id": {"$in": ids}}}, {"$project": {"number": 1}}]
    found: list[Document] = [
        *_last("subscription", "number", {"subscription": {"$in": ids}}),
        {"$unionWith": {"coll": SUBSCRIPTION_STATE_COLLECTION, "pipeline": counters}},
    ]
    if shared := [each for each in ids if is_shared(each)]:
        turns = _last("sequence", "turn", {"sequence": {"$in": shared}, **HAS_TURN})
        found.append({"$unionWith": {"coll": "deliveries", "pipeline": turns}})
    return found


def _last(by: str, number: str, which: Document) -> list[Document]:
    """The pipeline that finds the last number of each Subscription, or the last turn of each sequence."""
    return [
        {"$match": which},
        {"$sort": {by: -1, number: -1}},
        {"$group": {"_id": f"${by}", "number": {"$first": f"${number}"}}},
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
