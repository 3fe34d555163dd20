"""The sender: queues of claimed rows by endpoint, the attempts on them (attempt.py), and their settlement.

Each endpoint has a queue of its own and a few concurrent attempts (circuit_breaker.py), so none waits for another.
One loop writes settlements in bulk: those made while a bulk is being written go into the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache, partial

from pymongo.errors import PyMongoError

from app.audit.log import AuditLog
from app.errors import Unavailable
from app.network.egress_policy import origin
from app.runtime.mongo import Mongo
from app.store.events import Event
from app.subscriptions.channels import AttemptOutcome
from app.subscriptions.ledger.ledger import Delivery, Ledger, Settlement, delivery_rows, settle
from app.subscriptions.ledger.sequence_numbers import SequenceNumbers
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.sending import attempt_audit, batching
from app.subscriptions.sending.attempt import Attempts
from app.subscriptions.sending.batching import DeliveryWithEvent
from app.subscriptions.sending.circuit_breaker import (
    MOST_IN_HAND_OF_ALL,
    EndpointState,
    EndpointStates,
    blames_endpoint,
)
from app.subscriptions.sending.owner_rights import OwnerRights
from app.subscriptions.sending.retry import Verdict

log = logging.getLogger(__name__)

# Concurrent attempts over all endpoints; each may hold a connection.
MOST_ATTEMPTS_OF_ALL = 512


@dataclass(frozen=True, slots=True)
class Freed:
    """The effect of settlements: `lanes` that may hold another open row; `due`: rows may be due at once.

    `again`: when the first retry among them is due.
    """

    lanes: set[str]
    due: bool
    again: datetime | None


class Sender:
    """Sends rows that this process has claimed, and settles them."""

    def __init__(
        self,
        mongo: Mongo,
        ledger: Ledger,
        registry: SubscriptionRegistry,
        attempts: Attempts,
        numbering: SequenceNumbers,
        rights: OwnerRights,
        audit: AuditLog | None,
    ) -> None:
        """`audit` records attempts before they are settled."""
        self._mongo = mongo
        self._rights = rights
        self._deliveries = delivery_rows(mongo)
        self._ledger = ledger
        self._registry = registry
        self._numbering = numbering
        self._attempts = attempts
        self._endpoints = EndpointStates()
        self._starved: deque[EndpointState] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        # Attempts that are not settled yet, waiting ones included.
        self._in_hand: set[tuple[str, int]] = set()
        self._crowded: set[EndpointState] = set()
        self._settlements: list[Settlement] = []
        # Those of them that are not in the audit yet.
        self._unrecorded: list[Settlement] = []
        self._audit = audit
        self._recovered: set[str] = set()
        # Wakes the loop that settles.
        self.unsettled = asyncio.Event()
        # Set where a row may be leased to this process without being in hand: an answer of the database was lost.
        self.unsure = False

    @property
    def in_hand(self) -> list[str]:
        """The ids of the rows that are leased to this process and known to it."""
        return [id_ for id_, _ in self._in_hand]

    def pause_of(self, registration: Registration) -> float | None:
        """Seconds until rows of an endpoint with an open circuit may be taken; None where the circuit is closed."""
        endpoint = self.endpoint(registration)
        return endpoint.wait(self._endpoints.clock()) if endpoint.pause else None

    @property
    def idle(self) -> bool:
        return not (self._tasks or self._settlements or self._recovered)

    def admission(self) -> Callable[[Registration], bool]:
        """A test of whether a row of a Subscription may be sent now, which counts those it admits."""
        now = self._endpoints.clock()
        extra: Counter[int] = Counter()

        def admit(registration: Registration) -> bool:
            endpoint = self.endpoint(registration)
            if (
                endpoint.room(now) <= extra[id(endpoint)]
                or len(self._in_hand) + extra.total() >= MOST_IN_HAND_OF_ALL
            ):
                if endpoint.pause:
                    endpoint.held.add(registration.id)
                else:
                    self._crowded.add(endpoint)
                return False
            extra[id(endpoint)] += 1
            return True

        return admit

    def endpoint(self, registration: Registration) -> EndpointState:
        """The state of a Subscription's endpoint, shared by all with the same origin; its own without one."""
        where = _origin(registration.channel.endpoint)
        return self._endpoints.at(where if where and where[1] else registration.id)

    def start(self, delivery: Delivery, event: Event | None = None) -> None:
        """Begin an attempt on a row that this process has claimed; `event` spares reading the version again."""
        if _hold(delivery) in self._in_hand:
            return
        self._in_hand.add(_hold(delivery))
        registration = self._registry.get(delivery.subscription)
        endpoint = self.endpoint(registration) if registration else EndpointState()
        endpoint.waiting.append((delivery, event))
        self._run(endpoint)

    def _run(self, endpoint: EndpointState) -> None:
        """Start one more concurrent attempt, within the limits of the endpoint and of all."""
        if not endpoint.waiting or endpoint.under_way >= endpoint.allowed:
            return
        if len(self._tasks) >= MOST_ATTEMPTS_OF_ALL:
            self._starved.append(endpoint)
            return
        endpoint.under_way += 1
        task = asyncio.create_task(self._work(endpoint))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _work(self, endpoint: EndpointState) -> None:
        """Make attempts one after the other, until the endpoint's queue is empty or its limit has fallen."""
        try:
            while endpoint.waiting and endpoint.under_way <= endpoint.allowed:
                await self._attempt(endpoint, self._next_batch(endpoint))
                if endpoint.under_way < endpoint.allowed and endpoint.waiting:
                    self._run(endpoint)
        finally:
            endpoint.under_way -= 1

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._starved:
            self._run(self._starved.popleft())

    def _next_batch(self, endpoint: EndpointState) -> list[DeliveryWithEvent]:
        """The rows of the next notice: one, or several where the Subscription takes them."""
        return batching.take(endpoint.waiting, self.max_count(endpoint.waiting[0][0]))

    async def _attempt(self, endpoint: EndpointState, batch: list[DeliveryWithEvent]) -> None:
        try:
            settlements = await self._attempts.make(batch, partial(self._learn, endpoint))
        except asyncio.CancelledError:
            raise
        except Exception as error:
            # The text may hold content, the type does not.
            name = type(error).__name__
            log.error("attempt failed", extra={"action": "deliver", "error": name})
            settlements = []
        if len(settlements) < len(batch):
            # The leases of the other rows end, and a sweep of some process tries them again.
            self._in_hand -= {_hold(delivery) for delivery, _ in batch}
            self._in_hand |= {_hold(settlement.delivery) for settlement in settlements}
        self._settle(settlements)

    def _learn(self, endpoint: EndpointState, outcome: AttemptOutcome) -> None:
        """Update the endpoint's state by an outcome."""
        if outcome.verdict is not Verdict.RETRY or not blames_endpoint(outcome.status):
            if endpoint.answered():
                self._recovered |= endpoint.held
                endpoint.held = set()
                self.unsettled.set()
            return
        now = self._endpoints.clock()
        wait = outcome.retry_after if outcome.status == 429 else None
        if endpoint.failed(now, wait):
            self._put_back(endpoint, timedelta(seconds=endpoint.open_until - now))

    def _put_back(self, endpoint: EndpointState, pause: timedelta) -> None:
        """Give back the rows that wait for an endpoint with an open circuit, as if they had never been taken."""
        due = self._mongo.now() + max(pause, timedelta())
        while endpoint.waiting:
            delivery, _ = endpoint.waiting.popleft()
            endpoint.held.add(delivery.subscription)
            self.give_back(delivery, due)

    def give_back(self, delivery: Delivery, due: datetime) -> None:
        """Put a claimed row back whose attempt is not to be made now."""
        self._settle([Settlement(delivery, "queued", due)])

    def _settle(self, settlements: Sequence[Settlement]) -> None:
        self._settlements += settlements
        if self._audit is not None:
            self._unrecorded += settlements
        self.unsettled.set()

    def max_count(self, delivery: Delivery) -> int:
        registration = self._registry.get(delivery.subscription)
        return registration.channel.max_count if registration else 1

    def timeout(self, delivery: Delivery) -> float:
        registration = self._registry.get(delivery.subscription)
        return registration.channel.timeout if registration else 0.0

    async def settle(self, *, alone: bool = False) -> Freed:
        """Write the settlements so far.

        `alone`: no other process runs, so no lane holds rows that this one does not know.
        """
        await self._record()
        batch, self._settlements = self._settlements, []
        recovered, self._recovered = self._recovered, set()
        try:
            if batch and await settle(self._deliveries, batch) != len(batch):
                # Some were no longer this process's: its cache of their lanes may be wrong.
                self._numbering.forget({entry.delivery.subscription for entry in batch})
            if recovered:
                await self._ledger.resume(recovered)
        except PyMongoError:
            # Settling twice changes nothing: a settled row is no longer held.
            self._settlements = batch + self._settlements
            self._recovered |= recovered
            self.unsettled.set()
            raise
        lanes = set()
        for entry in batch:
            delivery = entry.delivery
            self._in_hand.discard(_hold(delivery))
            if entry.is_final and (
                self._numbering.closed(delivery.subscription, delivery.lane) or not alone
            ):
                lanes.add(delivery.lane)
        retries = [entry.next_at for entry in batch if entry.state == "retrying" and entry.next_at]
        return Freed(lanes, self._relieved() or bool(recovered), min(retries, default=None))

    async def _record(self) -> None:
        """Record the attempts whose outcome is about to be settled."""
        while self._audit is not None and (batch := self._unrecorded):
            self._unrecorded = []
            try:
                if entries := await attempt_audit.entries(batch, self._registry, self._rights):
                    await self._audit.record(entries)
            except (PyMongoError, Unavailable):
                self._unrecorded = batch + self._unrecorded
                self.unsettled.set()
                raise

    def _relieved(self) -> bool:
        """Whether an endpoint that had no room has some again.

        Not for every place that becomes free: a read of the backlog costs the same for one row as for hundreds.
        """
        now = self._endpoints.clock()
        relieved = {e for e in self._crowded if e.pause or e.room(now) >= e.in_hand}
        self._crowded -= relieved
        return bool(relieved)

    async def wait(self) -> None:
        """Return when an attempt under way has ended, at once where there is none."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), return_when=asyncio.FIRST_COMPLETED)

    async def finish(self, patience: float) -> None:
        """Wait `patience` seconds for attempts under way, cancel those left, and settle."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=patience)
        for task in set(self._tasks):
            task.cancel()
        if self._settlements:
            await self._record()
            await settle(self._deliveries, self._settlements)
            self._settlements = []


_origin = lru_cache(maxsize=8192)(origin)


def _hold(delivery: Delivery) -> tuple[str, int]:
    return delivery.id, delivery.attempt
