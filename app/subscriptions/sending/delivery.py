"""The sender: claimed rows, queued at their targets, the attempts on them (attempt.py), and their settlements.

Each target has a queue of its own and a few concurrent attempts (targets.py, dispatcher.py), so none waits for another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime
from functools import partial

from pymongo.errors import PyMongoError

from app.errors import Unavailable
from app.runtime.metrics import DELIVERIES, NOTICE_SECONDS
from app.runtime.mongo import Mongo
from app.store.events import Event
from app.subscriptions.ledger.ledger import BEHIND, SECOND_LOOK, WAITING, Delivery
from app.subscriptions.ledger.settlement import Settlement, put_back
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.sending import batching
from app.subscriptions.sending.attempt import Attempts
from app.subscriptions.sending.batching import DeliveryWithEvent
from app.subscriptions.sending.dispatcher import Dispatcher
from app.subscriptions.sending.settling import Freed, Settling
from app.subscriptions.sending.targets import Target, Targets

log = logging.getLogger(__name__)


class Sender:
    """Sends rows that this process has claimed, and settles them."""

    def __init__(
        self,
        mongo: Mongo,
        registry: SubscriptionRegistry,
        targets: Targets,
        dispatcher: Dispatcher,
        attempts: Attempts,
        settling: Settling,
    ) -> None:
        self._mongo = mongo
        self._registry = registry
        self._targets = targets
        self._dispatcher = dispatcher
        self._attempts = attempts
        self._settling = settling
        # Attempts that are not settled yet, waiting ones included.
        self._in_hand: set[tuple[str, int]] = set()
        self.unsettled = settling.unsettled
        # Set where a row may be leased to this process without being in hand: an answer of the database was lost.
        self.unsure = False

    @property
    def in_hand(self) -> list[str]:
        """The ids of the rows that are leased to this process and known to it."""
        return [id_ for id_, _ in self._in_hand]

    @property
    def idle(self) -> bool:
        return self._dispatcher.is_idle and not self._settling and not self._targets.recovered

    def admission(self) -> Callable[[Registration], bool]:
        """A test of whether a row of a Subscription may be sent now, which counts those it admits."""
        return self._targets.admission()

    def start(self, delivery: Delivery, event: Event | None = None) -> None:
        """Begin an attempt on a row that this process has claimed; `event` spares reading the version again."""
        if _hold(delivery) in self._in_hand:
            return
        self._in_hand.add(_hold(delivery))
        registration = self._registry.get(delivery.subscription)
        target = self._targets.of(registration) if registration else Target()
        self._targets.take_in(target, (delivery, event))
        self._dispatcher.submit(target, partial(self._send_next, target))

    async def _send_next(self, target: Target) -> None:
        """Make an attempt on the next rows of a target; where its circuit has opened meanwhile put all back."""
        if not target.rows:
            return
        if target.is_paused(self._targets.clock()):
            rows = list(target.rows.clear())
            heads = batching.first_of_lanes(rows)
            settlements = [put_back(each, _mark(each, heads)) for each, _ in rows]
        else:
            rows = target.rows.take(target.failing, self.max_count)
            settlements = await self._attempt(target, rows)
        self._targets.let_go(target, len(rows))
        self._settling.add(settlements)

    async def _attempt(self, target: Target, batch: list[DeliveryWithEvent]) -> list[Settlement]:
        first = batch[0][0]
        learn = partial(self._targets.learn, target, first.subscription, row=first.id)
        try:
            settlements = await self._attempts.make(batch, learn)
        except (PyMongoError, Unavailable) as error:
            # The database was away before anything was sent.
            log.warning("worker", extra={"action": "attempt", "error": type(error).__name__})
            due = self._mongo.now() + SECOND_LOOK
            return [put_back(delivery, due) for delivery, _ in batch]
        except Exception as error:
            if len(batch) > 1:
                return await self._one_by_one(target, batch)
            return await self._attempts.failed(batch, error)
        # Other rows are another process's by now.
        lost = {delivery.id for delivery, _ in batch} - {each.delivery.id for each in settlements}
        self._in_hand -= {_hold(delivery) for delivery, _ in batch if delivery.id in lost}
        if self._targets.recovered:
            self.unsettled.set()
        return settlements

    async def _one_by_one(self, target: Target, batch: list[DeliveryWithEvent]) -> list[Settlement]:
        """Attempts on each of several rows, since an error of ours came of all together."""
        settlements: list[Settlement] = []
        blocked: set[str] = set()
        for row in batch:
            delivery = row[0]
            if delivery.lane in blocked:
                settlements.append(put_back(delivery, BEHIND))
                continue
            own = await self._attempt(target, [row])
            if not all(each.is_final for each in own):
                blocked.add(delivery.lane)
            settlements += own
        return settlements

    def give_back(self, delivery: Delivery, due: datetime) -> None:
        """Put a claimed row back whose attempt is not to be made now."""
        self._settling.add([put_back(delivery, due)])

    def max_count(self, subscription: str) -> int:
        registration = self._registry.get(subscription)
        return registration.channel.max_count if registration else 1

    def timeout(self, delivery: Delivery) -> float:
        registration = self._registry.get(delivery.subscription)
        return registration.channel.timeout if registration else 0.0

    async def settle(self, *, alone: bool = False) -> Freed:
        """Write the settlements so far; `alone`: no other process runs."""
        return await self._settling.write(self._settled, alone=alone)

    def _settled(self, entry: Settlement) -> None:
        self._in_hand.discard(_hold(entry.delivery))
        self._count(entry)

    def _count(self, entry: Settlement) -> None:
        """Count what came of a row, unless it was only put back."""
        if entry.state == "queued":
            return
        registration = self._registry.get(entry.delivery.subscription)
        channel = registration.channel.type if registration else "none"
        DELIVERIES.add(channel, entry.state)
        if entry.state == "delivered":
            waited = self._mongo.now() - entry.delivery.focus["at"]
            NOTICE_SECONDS.observe(waited.total_seconds(), channel)

    async def wait(self) -> None:
        """Return when a job under way has ended, at once where there is none."""
        await self._dispatcher.wait()

    async def finish(self, patience: float) -> None:
        """Wait `patience` seconds for jobs under way, cancel those left, and settle."""
        await self._dispatcher.finish(patience)
        await self.settle()


def _mark(delivery: Delivery, heads: set[str]) -> datetime:
    return WAITING if delivery.id in heads else BEHIND


def _hold(delivery: Delivery) -> tuple[str, int]:
    return delivery.id, delivery.attempt
