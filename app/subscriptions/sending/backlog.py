"""The backlog: the rows that wait in the ledger, of which the first of each lane is sent when it is due.

A read of the backlog costs a few round trips whether it finds one row or hundreds, so it is made for many at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from pymongo.errors import PyMongoError

from app.runtime.mongo import Mongo
from app.subscriptions.ledger.ledger import LEASE_MARGIN, SECOND_LOOK, Delivery, Ledger
from app.subscriptions.ledger.sequence_numbers import SequenceNumbers
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.sending import batching
from app.subscriptions.sending.attempt import OVER
from app.subscriptions.sending.delivery import Sender


class Backlog:
    """Claims rows for the sender, and settles those that it has attempted."""

    def __init__(
        self,
        mongo: Mongo,
        ledger: Ledger,
        registry: SubscriptionRegistry,
        sender: Sender,
        numbering: SequenceNumbers,
    ) -> None:
        self._mongo = mongo
        self._ledger = ledger
        self._registry = registry
        self._sender = sender
        self._numbering = numbering
        self._settling = asyncio.Lock()

    @property
    def idle(self) -> bool:
        return self._sender.idle and not self._settling.locked()

    async def settle(self, *, alone: bool) -> datetime | None:
        """Write the settlements so far, and take the rows that waited for them.

        Returns when the first retry among them is due.
        """
        async with self._settling:
            freed = await self._sender.settle(alone=alone)
            if freed.lanes:
                await self.advance(freed.lanes)
            if freed.due:
                await self.sweep()
            return freed.again

    async def advance(self, lanes: Collection[str], fresh: Collection[Delivery] = ()) -> None:
        """Take the next row of lanes that may have become free; `fresh` are new rows that were queued in them."""
        heads = await self._ledger.heads(lanes)
        first = {head.id for head in heads}
        # Their lanes were free after all: another process has settled the rows that the cache has as open.
        self._numbering.forget({row.subscription for row in fresh if row.id in first})
        await self.take([head for head in heads if head.state == "queued"])

    async def sweep(self, limit: int = 500) -> None:
        """Take the rows that are due: retries, ended leases, and rows forgotten in their lane.

        Subscriptions without room are left out of the next page, so that theirs do not hide the others' rows.
        """
        if self._sender.unsure:
            await self._ledger.abandon(self._ledger.owner, but=self._sender.in_hand)
            self._sender.unsure = False
        refused: set[str] = set()
        while due := await self._ledger.due(limit, refused):
            heads = {
                head.lane: head for head in await self._ledger.heads({row.lane for row in due})
            }
            due_ids = {row.id for row in due}
            waiting = [row.id for row in due if heads.get(row.lane, row).id != row.id]
            if waiting:
                await self._ledger.postpone(waiting, self._mongo.now() + SECOND_LOOK)
            refused |= await self.take([head for head in heads.values() if head.id in due_ids])
            if (
                len(due) < limit
            ):  # every row of a page is taken, postponed or refused: the next page has other rows
                return

    async def resume(self, registration: Registration) -> None:
        """Send a Subscription's waiting rows now, since its client has connected."""
        self._sender.endpoint(registration).answered()
        await self._ledger.expedite(registration.id)
        await self.sweep()

    async def take(self, candidates: Sequence[Delivery]) -> set[str]:
        """Claim and start those heads of lanes that may be sent now; postpone or close others.

        Returns the Subscriptions there was no room for.
        """
        admit = self._sender.admission()
        wanted: list[Delivery] = []
        held: list[str] = []
        over: set[str] = set()
        refused: dict[str, Registration] = {}
        for candidate in candidates:
            delivery_mode = self._registry.delivery_mode(candidate.subscription)
            registration = self._registry.get(candidate.subscription)
            if registration is None or delivery_mode in ("errored", "ended"):
                over.add(candidate.subscription)
            elif delivery_mode == "waiting":
                held.append(candidate.id)
            elif admit(registration):
                wanted.append(candidate)
            else:
                refused[candidate.subscription] = registration
        for subscription in over:
            await self._ledger.close(subscription, OVER)
        if held:
            await self._ledger.postpone(held, self._mongo.now() + SECOND_LOOK)
        await self._put_off(refused)
        await self._claim(wanted)
        return set(refused)

    async def _put_off(self, refused: Mapping[str, Registration]) -> None:
        """Postpone the rows of endpoints with an open circuit until one attempt may be made again."""
        paused: dict[float, list[str]] = {}
        for subscription, registration in refused.items():
            pause = self._sender.pause_of(registration)
            if pause is not None:
                paused.setdefault(pause, []).append(subscription)
        for seconds, subscriptions in paused.items():
            due = self._mongo.now() + timedelta(seconds=seconds)
            await self._ledger.postpone_subscriptions(subscriptions, due)

    async def _claim(self, wanted: Sequence[Delivery]) -> None:
        if not wanted:
            return
        longest = max(self._sender.timeout(candidate) for candidate in wanted)
        lease = timedelta(seconds=longest) + LEASE_MARGIN
        units = await self._with_followers(wanted)
        try:
            claimed = await self._ledger.claim([row.id for unit in units for row in unit], lease)
        except PyMongoError:
            self._sender.unsure = True
            raise
        kept = batching.whole(claimed, units)
        for delivery in sorted(claimed, key=lambda row: row.number):
            if delivery.id in kept:
                self._sender.start(delivery)
            else:  # another process was faster with the one before it in its lane
                self._sender.give_back(delivery, self._mongo.now() + SECOND_LOOK)

    async def _with_followers(self, heads: Sequence[Delivery]) -> list[list[Delivery]]:
        """Each head of a lane with the rows behind it that are sent in the same notice."""
        most = {head.lane: self._sender.max_count(head) for head in heads}
        lanes = [lane for lane, count in most.items() if count > 1]
        queued: dict[str, list[Delivery]] = {}
        for row in await self._ledger.queued(lanes) if lanes else ():
            queued.setdefault(row.lane, []).append(row)
        return [
            [head, *batching.followers(head, queued.get(head.lane, ()), most[head.lane])]
            for head in heads
        ]
