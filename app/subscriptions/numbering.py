"""What this process remembers of Subscriptions: the number of the last event, and the lanes with open rows.

A memory may be behind the database, never ahead of it: the unique index on (subscription, number) refuses a number that
another process has given out meanwhile, and then everything known of that Subscription is read anew. So a number that
is accepted proves the rest of the memory too: nobody else has inserted a row for that Subscription since it was read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

from app.mongo import Document, Mongo

# After another process has given out a number, ours are read anew for this many seconds instead of remembered.
_SHARED_FOR = 10.0
_REMEMBERED = 100_000
# A Subscription with more lanes open than this counts as busy in all of them.
_MOST_LANES = 10_000
_AT_ONCE = 200


@dataclass(slots=True)
class Known:
    """One Subscription: `busy` counts the open rows of its lanes; `crowded` where there were too many to learn."""

    number: int
    busy: dict[str, int] = field(default_factory=dict)
    crowded: bool = False

    def is_busy(self, lane: str) -> bool:
        return self.crowded or lane in self.busy


class Numbering:
    """The memory over the collections `deliveries` and `subscription_state`."""

    def __init__(self, mongo: Mongo, clock: Callable[[], float] = time.monotonic) -> None:
        self._mongo = mongo
        self._clock = clock
        self._deliveries = mongo.collection("deliveries")
        self._states = mongo.collection("subscription_state")
        self._known: dict[str, Known] = {}
        self._shared_until = 0.0

    async def learn(self, subscriptions: Iterable[str]) -> dict[str, Known]:
        """What is known of each, read where nothing is remembered or where other processes give out numbers too."""
        wanted = set(subscriptions)
        if self._clock() < self._shared_until or len(self._known) > _REMEMBERED:
            self._known.clear()
        unknown = [subscription for subscription in wanted if subscription not in self._known]
        for begin in range(0, len(unknown), _AT_ONCE):
            some = unknown[begin : begin + _AT_ONCE]
            # Numbers first: a row that comes in between makes a lane look busy, or its number is refused.
            known = {id_: Known(number) for id_, number in (await self.read(some)).items()}
            await self._learn_lanes(known)
            self._known.update(known)
        return {subscription: self._known[subscription] for subscription in wanted}

    async def read(self, subscriptions: Collection[str]) -> dict[str, int]:
        """The number of each Subscription's last event; 0 where there was none."""
        ids = list(subscriptions)
        cursor = self._states.find({"_id": {"$in": ids}}, {"number": 1})
        numbers = dict.fromkeys(ids, 0)
        for row in await cursor.to_list(None):
            numbers[row["_id"]] = row.get("number", 0)
        # The counter follows the rows a moment later, and stays when they are cleared away.
        pipeline: list[Document] = [
            {"$match": {"subscription": {"$in": ids}}},
            {"$sort": {"subscription": -1, "number": -1}},
            {"$group": {"_id": "$subscription", "number": {"$first": "$number"}}},
        ]
        for row in await self._mongo.aggregate(self._deliveries, pipeline):
            numbers[row["_id"]] = max(numbers[row["_id"]], row["number"])
        return numbers

    async def _learn_lanes(self, known: dict[str, Known]) -> None:
        # A lane is named after its Subscription and "|", so "}" ends its range.
        ranges = [{"lane": {"$gte": f"{id_}|", "$lt": f"{id_}}}"}} for id_ in known]
        cursor = self._deliveries.find({"$or": ranges, "open": True}, {"_id": 0, "lane": 1})
        lanes = [row["lane"] for row in await cursor.limit(_MOST_LANES + 1).to_list(None)]
        for lane in lanes:
            busy = known[lane.partition("|")[0]].busy
            busy[lane] = busy.get(lane, 0) + 1
        if len(lanes) > _MOST_LANES:
            for each in known.values():
                each.crowded = True

    def given(self, subscription: str, number: int, lane: str, *, is_open: bool) -> None:
        """A row was inserted here."""
        known = self._known.get(subscription)
        if known is None:
            return
        known.number = number
        if is_open:
            known.busy[lane] = known.busy.get(lane, 0) + 1

    def closed(self, subscription: str, lane: str) -> bool:
        """A row was settled for good here; returns whether the lane may hold another."""
        known = self._known.get(subscription)
        if known is None or known.crowded:
            return True
        left = known.busy.get(lane, 1) - 1
        if left > 0:
            known.busy[lane] = left
            return True
        known.busy.pop(lane, None)
        return False

    def refused(self) -> None:
        """Another process was faster with one of the numbers."""
        self._shared_until = self._clock() + _SHARED_FOR
        self._known.clear()

    def forget(self, subscriptions: Iterable[str]) -> None:
        """Read these anew when they are needed next."""
        for subscription in subscriptions:
            self._known.pop(subscription, None)

    @property
    def shared(self) -> bool:
        """Whether another process has given out numbers lately."""
        return self._clock() < self._shared_until
