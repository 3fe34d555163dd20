"""One attempt after another: body, channel, judgement, settlement; and what is taken up next.

Attempts run side by side, but for those of one lane. What came of them is written in bulk by one loop: what settles
while a bulk is being written goes into the next.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from pymongo.errors import PyMongoError

from app.mongo import Document, Mongo
from app.security.egress import origin
from app.store import Event
from app.subscriptions.channels import Channel, Outcome
from app.subscriptions.composer import Composer, VersionGoneError
from app.subscriptions.ledger import LEASE_MARGIN, SECOND_LOOK, Delivery, Ledger, Settlement, State
from app.subscriptions.registration import Registration
from app.subscriptions.registry import Registry
from app.subscriptions.retry import RetryPolicy, Verdict

log = logging.getLogger(__name__)

MAX_IN_FLIGHT = 1024
# One endpoint that hangs must leave room for the others.
MAX_PER_ORIGIN = 256
_PAUSE_AFTER_FAILURE = 0.5
_OVER = "The Subscription takes no notices"

# Told that a Subscription's endpoint has failed for good, and why.
OnFailure = Callable[[Registration, str], Awaitable[None]]


class Sender:
    """Sends claimed rows and settles them."""

    def __init__(
        self,
        mongo: Mongo,
        ledger: Ledger,
        registry: Registry,
        composer: Composer,
        policy: RetryPolicy,
        channels: Mapping[str, Channel],
        on_failure: OnFailure,
    ) -> None:
        self._mongo = mongo
        self._ledger = ledger
        self._registry = registry
        self._composer = composer
        self._policy = policy
        self._channels = channels
        self._on_failure = on_failure
        self._tasks: set[asyncio.Task[None]] = set()
        self._per_origin: Counter[Any] = Counter()
        self._settlements: list[Settlement] = []
        self._unsettled = asyncio.Event()
        self._settling = asyncio.Lock()
        # How many attempts were under way when a row was last refused for want of room; 0 when none waits.
        self._crowd = 0

    @property
    def idle(self) -> bool:
        return not self._tasks and not self._settlements and not self._settling.locked()

    def admission(self) -> Callable[[Registration], bool]:
        """A judge of who may be sent now, that counts those it lets in."""
        total = len(self._tasks)
        extra: Counter[Any] = Counter()

        def admit(registration: Registration) -> bool:
            nonlocal total
            key = origin(registration.channel.endpoint)
            if total >= MAX_IN_FLIGHT or self._per_origin[key] + extra[key] >= MAX_PER_ORIGIN:
                self._crowd = max(total, 1)
                return False
            total += 1
            extra[key] += 1
            return True

        return admit

    def start(self, delivery: Delivery, event: Event | None = None) -> None:
        """Begin an attempt on a row that this process has claimed; `event` spares reading the version again."""
        registration = self._registry.get(delivery.subscription)
        key = origin(registration.channel.endpoint) if registration else None
        self._per_origin[key] += 1
        task = asyncio.create_task(self._deliver(delivery, event))
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._ended(task, key))

    def _ended(self, task: asyncio.Task[None], key: Any) -> None:
        self._tasks.discard(task)
        self._per_origin[key] -= 1
        if not self._per_origin[key]:
            del self._per_origin[key]
        if not task.cancelled() and task.exception() is not None:
            # The lease ends and somebody tries again; the text may hold content, the type does not.
            error = type(task.exception()).__name__
            log.error("attempt failed", extra={"action": "deliver", "error": error})

    async def take(self, candidates: Sequence[Delivery]) -> set[str]:
        """Claim and start those heads of lanes that may be sent now; put off or give up others.

        Returns the Subscriptions there was no room for.
        """
        admit = self.admission()
        wanted: list[Delivery] = []
        held: list[str] = []
        over: set[str] = set()
        refused: set[str] = set()
        for candidate in candidates:
            standing = self._registry.standing(candidate.subscription)
            registration = self._registry.get(candidate.subscription)
            if standing in ("suppress", "gone"):
                over.add(candidate.subscription)
            elif standing == "hold":
                held.append(candidate.id)
            elif registration is not None and admit(registration):
                wanted.append(candidate)
            else:
                refused.add(candidate.subscription)
        for subscription in over:
            await self._ledger.close(subscription, _OVER)
        if held:
            await self._ledger.postpone(held, self._mongo.now() + SECOND_LOOK)
        if wanted:
            longest = max(self._timeout(candidate) for candidate in wanted)
            lease = timedelta(seconds=longest) + LEASE_MARGIN
            for delivery in await self._ledger.claim([c.id for c in wanted], lease):
                self.start(delivery)
        return refused

    async def advance(self, lanes: Collection[str]) -> None:
        """Take up the next row of lanes that may have become free."""
        heads = await self._ledger.heads(lanes)
        await self.take([head for head in heads if head.state == "queued"])

    async def sweep(self, limit: int = 500) -> None:
        """Take up rows that are due: retries, ended leases, and rows forgotten in their lane.

        Subscriptions without room are left out of the next page, so that theirs do not hide the others' rows.
        """
        refused: set[str] = set()
        while due := await self._ledger.due(limit, refused):
            heads = {
                head.lane: head for head in await self._ledger.heads({row.lane for row in due})
            }
            due_ids = {row.id for row in due}
            waiting = [row.id for row in due if heads.get(row.lane, row).id != row.id]
            if waiting:
                await self._ledger.postpone(waiting, self._mongo.now() + SECOND_LOOK)
            more = await self.take([head for head in heads.values() if head.id in due_ids])
            refused |= more
            if len(due) < limit or not more:
                return

    async def _deliver(self, delivery: Delivery, event: Event | None) -> None:
        found = await self._composer.registration(delivery.subscription)
        if found is None or self._registry.standing(delivery.subscription) in ("suppress", "gone"):
            state: State = "dead" if delivery.attempt > 1 else "suppressed"
            self._settle(Settlement(delivery, state, reason=_OVER))
            return
        if (
            found.status == "requested"
        ):  # written anew meanwhile: its endpoint has to be proven first
            self._settle(Settlement(delivery, "retrying", self._mongo.now() + SECOND_LOOK))
            return
        registration = found
        lease = timedelta(seconds=registration.channel.timeout) + LEASE_MARGIN
        if delivery.next_at - self._mongo.now() < lease - LEASE_MARGIN / 2 and not (
            await self._ledger.renew(delivery, lease)
        ):
            return
        try:
            notice = await self._composer.notice(delivery, registration, event)
        except VersionGoneError as gone:
            self._settle(Settlement(delivery, "dead", reason=str(gone)))
            return
        at, begun = self._mongo.now(), time.perf_counter()
        outcome = await self._channels[registration.channel.type].send(notice)
        record = {
            "at": at,
            "ms": round((time.perf_counter() - begun) * 1000, 1),
            "status": outcome.status,
            "reason": outcome.reason,
            "answer": outcome.answer,
            "sha256": hashlib.sha256(notice.body).hexdigest(),
        }
        await self._conclude(delivery, registration, outcome, record)

    async def _conclude(
        self, delivery: Delivery, registration: Registration, outcome: Outcome, record: Document
    ) -> None:
        if outcome.verdict is Verdict.DELIVERED:
            self._settle(Settlement(delivery, "delivered", attempt=record))
            return
        due = None
        if outcome.verdict is Verdict.RETRY:
            first_at = delivery.first_at or record["at"]
            due = self._policy.next_attempt(
                delivery.attempt, first_at, self._mongo.now(), outcome.retry_after
            )
        if due is not None:
            self._settle(Settlement(delivery, "retrying", due, record))
            return
        what = f"answered {outcome.status}" if outcome.status else f"failed: {outcome.reason}"
        reason = f"The endpoint {what}"
        self._settle(Settlement(delivery, "dead", attempt=record, reason=reason))
        await self._on_failure(registration, reason)

    def _settle(self, settlement: Settlement) -> None:
        self._settlements.append(settlement)
        self._unsettled.set()

    def _timeout(self, delivery: Delivery) -> float:
        registration = self._registry.get(delivery.subscription)
        return registration.channel.timeout if registration else 0.0

    async def settle_loop(self) -> None:
        """Write down what has come of attempts, for as long as the worker runs."""
        while True:
            await self._unsettled.wait()
            try:
                await self.settle()
            except PyMongoError as error:
                log.warning(
                    "cannot settle", extra={"action": "settle", "error": type(error).__name__}
                )
                await asyncio.sleep(_PAUSE_AFTER_FAILURE)

    async def settle(self) -> None:
        """Write down what has come of attempts so far, and take up what waited for it."""
        async with self._settling:
            self._unsettled.clear()
            batch = self._settlements
            if not batch:
                return
            self._settlements = []
            try:
                await self._ledger.settle(batch)
                await self._go_on(batch)
            except PyMongoError:
                # Settling twice changes nothing: a settled row is no longer held.
                self._settlements = batch + self._settlements
                self._unsettled.set()
                raise

    async def _go_on(self, batch: Sequence[Settlement]) -> None:
        free = {entry.delivery.lane for entry in batch if entry.state != "retrying"}
        if free:
            await self.advance(free)
        # Not for every seat that becomes free: a look at the backlog costs the same for one row as for hundreds.
        if self._crowd and len(self._tasks) <= self._crowd // 2:
            self._crowd = 0
            await self.sweep()

    async def wait(self) -> None:
        """Return when an attempt under way has ended, at once where there is none."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), return_when=asyncio.FIRST_COMPLETED)

    async def finish(self, patience: float) -> None:
        """Let attempts under way come to their end for so many seconds, then break them off, and settle."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=patience)
        for task in set(self._tasks):
            task.cancel()
        if self._settlements:
            await self._ledger.settle(self._settlements)
            self._settlements = []
