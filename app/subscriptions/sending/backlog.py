"""The backlog: the rows that wait in the ledger, of which the first of each lane is sent when it is due.

A read of the backlog costs a few round trips whether it finds one row or hundreds, so it is made for many at once. Rows
whose time has not come, or that wait for a target whose circuit is open, are not looked at.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta

from pymongo.errors import PyMongoError

from app.attribution.derived import PCP
from app.runtime.mongo import Mongo
from app.subscriptions.ledger import ledger_queries
from app.subscriptions.ledger.lanes import is_shared, sequence, sequence_of
from app.subscriptions.ledger.ledger import (
    ANY_MISSED,
    BEHIND,
    LEASE_MARGIN,
    WAITING,
    Delivery,
    Ledger,
)
from app.subscriptions.ledger.missed_rows import MissedRows
from app.subscriptions.ledger.sequence_numbers import SequenceNumbers
from app.subscriptions.ledger.waiting_rows import WaitingRows
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.notices.composer import Composer
from app.subscriptions.sending import batching
from app.subscriptions.sending.delivery import Sender
from app.subscriptions.sending.targets import Target, Targets

log = logging.getLogger(__name__)

OVER = "The Subscription takes no notices"
# Rows that are read at once, and of them those of one Subscription.
_PAGE, _SHARE = 500, 100
# How often the rows are looked for that were forgotten behind others, seconds; and the share of the time that the look,
# which reads all open rows, may take.
_FORGOTTEN_EVERY, _FORGOTTEN_SHARE = 30.0, 0.005


class Backlog:
    """Claims rows for the sender, and settles those that it has attempted."""

    def __init__(
        self,
        mongo: Mongo,
        ledger: Ledger,
        registry: SubscriptionRegistry,
        composer: Composer,
        targets: Targets,
        sender: Sender,
        numbering: SequenceNumbers,
    ) -> None:
        self._mongo = mongo
        self._ledger = ledger
        self._waiting = WaitingRows(mongo)
        self._missed = MissedRows(mongo)
        self._registry = registry
        self._composer = composer
        self._targets = targets
        self._sender = sender
        self._numbering = numbering
        self._settling = asyncio.Lock()
        # Lanes in which a row was settled, and whose next row was not looked for yet.
        self._freed: set[str] = set()
        # When the rows are looked for next that were forgotten behind others.
        self._forgotten_at = 0.0

    @property
    def idle(self) -> bool:
        return self._sender.idle and not self._settling.locked() and not self._freed

    async def settle(self, *, alone: bool) -> datetime | None:
        """Write the settlements so far, and take the rows that waited for them.

        Returns when the first retry among them is due, or the first pause of a circuit ends.
        """
        async with self._settling:
            freed = await self._sender.settle(alone=alone)
            self._freed |= freed.lanes
            if self._freed:
                lanes = set(self._freed)
                await self.advance(lanes)
                self._freed -= lanes
            if self._targets.take_recovered():
                await self.sweep()
            pause = self._targets.take_pause()
            if pause is None:
                return freed.again
            ends = self._mongo.now() + timedelta(seconds=pause)
            return ends if freed.again is None else min(ends, freed.again)

    async def advance(self, lanes: Collection[str], fresh: Collection[Delivery] = ()) -> None:
        """Take the next row of lanes that may have become free; `fresh` are new rows that were queued in them."""
        heads = await self._ledger.heads(lanes)
        first = {head.id for head in heads}
        # Their lanes were free after all: another process has settled the rows that the cache has as open.
        self._numbering.forget({sequence_of(row.lane) for row in fresh if row.id in first})
        await self.take([head for head in heads if head.state == "queued" or head.is_waiting])

    async def follow_up(self, fresh: Collection[Delivery]) -> None:
        """Take those new queued rows that need not wait: their lane, their target or their Subscription is ready."""
        behind = [row for row in fresh if row.next_at == BEHIND]
        if behind:
            await self.advance({row.lane for row in behind}, behind)
        admit = self._targets.admission()
        others = {row.subscription for row in fresh if row.next_at == WAITING}
        for subscription in others:
            registration = self._registry.get(subscription)
            is_active = self._registry.delivery_mode(subscription) == "active"
            if registration is not None and is_active and admit(registration):
                await self.take_waiting({subscription: True})

    async def sweep(self) -> None:
        """Take the rows that are due: retries, ended leases; and those whose target or Subscription is ready again."""
        if self._sender.unsure:
            await self._ledger.abandon(self._ledger.owner, but=self._sender.in_hand)
            self._sender.unsure = False
        await self._find_forgotten()
        while due := await self._ledger.due(_PAGE):
            await self._take_heads(due)
            if (
                len(due) < _PAGE
            ):  # every row of a page is taken, marked or closed: the next page has other rows
                break
        await self.take_waiting(await self._waiting.subscriptions())

    async def _find_forgotten(self) -> None:
        """Find rows that wait behind one which a process has settled before it died, at first and then now and then."""
        clock = asyncio.get_running_loop().time
        begun = clock()
        if begun < self._forgotten_at:
            return
        if found := await self._waiting.find_forgotten():
            log.warning("forgotten rows", extra={"action": "sweep", "count": found})
        for subscription in await self._missed.subscriptions():
            await self.take_back(subscription)
        ended = clock()
        self._forgotten_at = ended + max(_FORGOTTEN_EVERY, (ended - begun) / _FORGOTTEN_SHARE)

    def look_for_forgotten(self) -> None:
        """Look for such rows with the next sweep: a process has died."""
        self._forgotten_at = 0.0

    async def release(self, subscription: str) -> None:
        """Send the rows of a Subscription that has become active, the oldest first."""
        await self.take_back(subscription)
        await self._waiting.release(subscription, self._sequences(subscription))
        await self.take_waiting({subscription: True})

    async def take_back(self, subscription: str) -> None:
        """Open the rows again that a practice's Subscription has missed, where it is over no more.

        Not those of another topic, which it had before.
        """
        found = self._registry.get(subscription)
        if found is None or found.topic is None:
            return
        if self._registry.delivery_mode(subscription) == "ended":
            return
        # What nobody was told of is a matter of practices (coordination/practices/missed_notices.py).
        if subscription not in self._registry.index.routed_by(PCP):
            return
        missed = {**ANY_MISSED, "topic": found.topic.url}
        if await ledger_queries.reopen(self._mongo, subscription, missed):
            self.forget(subscription)

    def forget(self, subscription: str) -> None:
        """Read anew what is open of a Subscription, since rows of it were opened again."""
        self._numbering.forget(self._sequences(subscription))

    async def close(self, subscription: str, reason: str) -> None:
        """Settle the rows of a Subscription that takes no more notices; those of others may wait behind them."""
        await self._ledger.close(subscription, reason)
        # Where it was written anew meanwhile.
        await self.take_back(subscription)
        if shared := [each for each in self._sequences(subscription) if is_shared(each)]:
            await self._waiting.find_forgotten(shared)

    def _sequences(self, subscription: str) -> set[str]:
        """What the rows of a Subscription are ordered in; they were once in its own lanes, wherever they are now."""
        registration = self._registry.get(subscription)
        return {subscription} if registration is None else {subscription, sequence(registration)}

    async def resume(self, subscription: str) -> None:
        """Send a Subscription's waiting rows now, retries too, since its client has connected."""
        registration = self._registry.get(subscription)
        if registration is not None:
            self._targets.of(registration).answered(subscription)
            await self._waiting.hasten(subscription)
            await self.take_waiting({subscription: True})

    async def take_waiting(self, subscriptions: Mapping[str, bool]) -> None:
        """Take rows that wait for their Subscription; the value says whether one of them was never attempted."""
        left = dict(subscriptions)
        while shares := await self._shares(left):
            rows = await self._read(shares)
            count = Counter(row.subscription for row in rows)
            for subscription, share in shares.items():
                if count[subscription] < share or share < _SHARE:
                    del left[subscription]
            if not await self._take_heads(rows):
                return

    async def _shares(self, subscriptions: Mapping[str, bool]) -> dict[str, int]:
        """How many waiting rows of each Subscription to read now, as far as their targets have room.

        Where one attempt is to be made to see whether a target answers again, it is one of a Subscription that failed
        least, with rows that were never attempted, and of the target whose last attempt is longest ago.
        """
        now = self._targets.clock()
        by_target: dict[Target, list[str]] = {}
        for target, subscription in await self._ready(subscriptions, now):
            by_target.setdefault(target, []).append(subscription)
        shares: dict[str, int] = {}
        probed = set()
        for target, names in sorted(by_target.items(), key=lambda each: each[0].attempted_at):
            room = min(target.room(now), target.origin.room(now))
            if room <= 0 or target.origin in probed:
                self._targets.crowd(target)
                continue
            if not target.origin.circuit.is_closed:
                probed.add(target.origin)
            if not target.is_trusted:
                names = [min(names, key=lambda s: (not subscriptions[s], target.failures_of(s)))]
            for name in names[:room]:
                shares[name] = min(_SHARE, max(1, room // len(names)))
        return shares

    async def _read(self, shares: Mapping[str, int]) -> list[Delivery]:
        """The waiting rows of these Subscriptions.

        To see whether a target answers again the newest and the first row take turns: a few at fault are one after the
        other.
        """
        rows: list[Delivery] = []
        others = dict(shares)
        for subscription in shares:
            target = self._targets.known(subscription)
            if target is not None and not target.is_trusted:
                target.probes += 1
                if target.probes % 2 and (newest := await self._waiting.newest(subscription)):
                    rows += newest
                    del others[subscription]
        return rows + (await self._waiting.first(others) if others else [])

    async def _ready(self, subscriptions: Collection[str], now: float) -> list[tuple[Target, str]]:
        """The active Subscriptions among these whose target's circuits are not open, and those that are over."""
        modes = {}
        for subscription in subscriptions:
            known = self._targets.known(subscription)
            if known is None or not known.is_paused(now):
                modes[subscription] = self._registry.delivery_mode(subscription)
        await self._learn([each for each, mode in modes.items() if mode in ("active", "ended")])
        found = []
        for subscription in modes:
            mode = self._registry.delivery_mode(subscription)
            registration = self._registry.get(subscription)
            if mode == "ended":
                found.append((Target(), subscription))
            elif registration is not None and mode == "active":
                target = self._targets.of(registration)
                if not target.is_paused(now):
                    found.append((target, subscription))
        return found

    async def _take_heads(self, rows: Sequence[Delivery]) -> bool:
        """Take those of some rows that are the first of their lane; the others wait behind these.

        Returns whether any of them waits no more as it did.
        """
        if not rows:
            return False
        heads = {head.lane: head for head in await self._ledger.heads({row.lane for row in rows})}
        behind = [row.id for row in rows if heads.get(row.lane, row).id != row.id]
        if behind:
            await self._ledger.mark(behind, BEHIND)
        ids = {row.id for row in rows}
        taken = await self.take([head for head in heads.values() if head.id in ids])
        return bool(taken or behind)

    async def take(self, candidates: Sequence[Delivery]) -> bool:
        """Claim and start those heads of lanes that may be sent now; the others wait, or are closed.

        Returns whether any was claimed or closed.
        """
        await self._learn({row.subscription for row in candidates})
        admit = self._sender.admission()
        wanted: list[Delivery] = []
        refused: list[Delivery] = []
        over: set[str] = set()
        for candidate in candidates:
            mode = self._registry.delivery_mode(candidate.subscription)
            registration = self._registry.get(candidate.subscription)
            if mode == "ended":
                over.add(candidate.subscription)
            elif registration is not None and mode == "active":
                is_next = self._is_next(candidate, registration) and admit(registration)
                (wanted if is_next else refused).append(candidate)
            else:
                refused.append(candidate)
        for subscription in over:
            await self.close(subscription, OVER)
        if unmarked := [row.id for row in refused if row.next_at != WAITING]:
            await self._ledger.mark(unmarked, WAITING)
        await self._claim(wanted)
        return bool(wanted or over)

    def _is_next(self, candidate: Delivery, registration: Registration) -> bool:
        """Whether a row may be sent by its time; where a target is tried, it is a row that waits for it."""
        return candidate.is_waiting or self._targets.of(registration).is_trusted

    async def _learn(self, subscriptions: Collection[str]) -> None:
        """Read what is needed to know these Subscriptions' targets; and those that another process has just made."""
        unknown = [each for each in subscriptions if self._registry.get(each) is None]
        if unknown:
            await self._registry.read(unknown)
        new = [each for each in subscriptions if self._targets.known(each) is None]
        if new:
            await self._composer.make_ready(new)

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
                self._sender.give_back(delivery, BEHIND)

    async def _with_followers(self, heads: Sequence[Delivery]) -> list[list[Delivery]]:
        """Each head of a lane with the rows behind it that are sent in the same notice."""
        most = {head.lane: self._sender.max_count(head.subscription) for head in heads}
        lanes = [lane for lane, count in most.items() if count > 1]
        queued: dict[str, list[Delivery]] = {}
        for row in await self._ledger.queued(lanes) if lanes else ():
            queued.setdefault(row.lane, []).append(row)
        return [
            [head, *batching.followers(head, queued.get(head.lane, ()), most[head.lane])]
            for head in heads
        ]
