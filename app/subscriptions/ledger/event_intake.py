"""The intake of committed events: each is matched and recorded in the outbox, in the order of commits.

Where an older version of an event's resource is not recorded yet, that version is recorded first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence

from cachetools import FIFOCache
from pymongo.errors import ConnectionFailure, PyMongoError

from app.store.events import Event, load_event
from app.store.store import Store
from app.subscriptions.ledger.outbox import Outbox, Planned
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.notices.composer import Composer
from app.subscriptions.sending.background import warn
from app.subscriptions.sending.backlog import Backlog
from app.subscriptions.sending.delivery import Sender
from app.subscriptions.sending.release_limits import ReleaseLimits

log = logging.getLogger(__name__)

_BATCH = 256
_REMEMBERED = 50_000


class EventIntake:
    """The queue of committed events, which are matched and recorded; rows of idle lanes go to the sender at once."""

    def __init__(
        self,
        store: Store,
        registry: SubscriptionRegistry,
        outbox: Outbox,
        composer: Composer,
        sender: Sender,
        backlog: Backlog,
        limits: ReleaseLimits,
    ) -> None:
        self._store = store
        self._registry = registry
        self._outbox = outbox
        self._composer = composer
        self._sender = sender
        self._backlog = backlog
        self._limits = limits
        self._queue: deque[Event] = deque()
        self._recording = asyncio.Lock()
        # The newest version of each resource that this process has recorded.
        self._recorded: FIFOCache[tuple[str, str], int] = FIFOCache(_REMEMBERED)
        self.arrived = asyncio.Event()

    @property
    def empty(self) -> bool:
        return not self._queue

    def add(self, events: Iterable[Event]) -> None:
        """Queue committed events, in order; `arrived` wakes the loop that calls `take_in`."""
        self._queue.extend(events)
        self.arrived.set()

    async def add_abandoned(self) -> None:
        """Queue events that no process has recorded in time: those of processes that died or failed."""
        for row in await self._outbox.claim_abandoned(_BATCH):
            self.add([await load_event(self._store, row)])

    async def take_in(self) -> None:
        """Record the queued events, in order. Raises ConnectionFailure; the queue then keeps those not recorded."""
        async with self._recording:
            while self._queue:
                batch = [self._queue[index] for index in range(min(len(self._queue), _BATCH))]
                await self._record_or_skip(batch)
                for _ in batch:
                    self._queue.popleft()

    async def _record_or_skip(self, batch: Sequence[Event]) -> None:
        """Record a batch; where that fails, one by one, and leave what still fails to the sweep.

        Raises ConnectionFailure: without a database everything waits.
        """
        try:
            await self._record(batch)
        except ConnectionFailure:
            self._sender.unsure = True
            raise
        except Exception as error:
            self._sender.unsure = True
            warn("record", error)
            if len(batch) > 1:
                for event in batch:
                    await self._record_or_skip([event])

    async def _record(self, events: Sequence[Event]) -> None:
        unsure = [event for event in events if not self._follows_recorded(event)]
        overdue = await self._outbox.pending_before(unsure) if unsure else []
        known = {event.id for event in events}
        older = [await load_event(self._store, row) for row in overdue if row["_id"] not in known]
        plans = [await self._plan(event) for event in (*older, *events)]
        planned = [plan for plan in plans if plan is not None]
        idle = [plan.event.id for plan in planned if not plan.matches]
        busy = [plan for plan in planned if plan.matches]
        if idle:
            self._outbox.finish(idle)
        if busy:
            for plan in busy:
                keys = [(m.registration.id, m.registration.version) for m in plan.matches]
                self._limits.announce(plan.event, keys)
            concerned = {match.registration.id for plan in busy for match in plan.matches}
            await asyncio.gather(
                self._composer.make_ready(concerned), self._outbox.numbering.foresee(concerned)
            )
            admit = self._sender.admission()
            waiting = await self._outbox.record(busy, admit, self._sender.start)
            if waiting:
                await self._backlog.advance({row.lane for row in waiting}, waiting)
        self._remember(planned)
        self._sender.unsettled.set()

    async def _plan(self, event: Event) -> Planned | None:
        """The event with the Subscriptions it concerns; None where matching fails, and its row is tried again later."""
        try:
            return Planned(event, await self._registry.match(event))
        except PyMongoError:
            raise  # chained criteria read the database; without it everything waits
        except Exception as error:
            log.error(
                "cannot match",
                extra={
                    "action": "match",
                    "resource_type": event.type,
                    "id": event.resource_id,
                    "version_id": event.version,
                    "error": type(error).__name__,
                },
            )
            return None

    def _follows_recorded(self, event: Event) -> bool:
        """Whether this process itself has recorded the version before."""
        key = (event.type, event.resource_id)
        return event.version == 1 or self._recorded.get(key) == event.version - 1

    def _remember(self, planned: Sequence[Planned]) -> None:
        for plan in planned:
            self._recorded[plan.event.type, plan.event.resource_id] = plan.event.version
