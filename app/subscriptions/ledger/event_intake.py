"""The intake of committed events: each is matched and recorded in the outbox, in the order of commits.

Where an older version of an event's resource is not recorded yet, that version is recorded first. Where one was set
aside for a judge, the younger one waits behind it for that judge.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from cachetools import FIFOCache

from app.runtime.leases import is_nobodys_fault
from app.runtime.mongo import Document, Mongo
from app.store.commit import EVENT_LEASE
from app.store.events import Event
from app.store.store import Store
from app.subscriptions.ledger.event_recorder import EventRecorder
from app.subscriptions.ledger.outbox import ContentionError, Outbox, Planned
from app.subscriptions.ledger.recorded_events import RecordedEvents
from app.subscriptions.ledger.unmatched import Key, Unmatched
from app.subscriptions.sending.background import warn
from app.subscriptions.sending.delivery import Sender

_BATCH = 256
_REMEMBERED = 50_000
# Events that have waited for so long in the queue have their lease renewed: they are in hand.
_IN_HAND = EVENT_LEASE / 2


class EventIntake:
    """The queue of committed events, which are matched and recorded; rows of idle lanes go to the sender at once."""

    def __init__(
        self,
        mongo: Mongo,
        store: Store,
        outbox: Outbox,
        unmatched: Unmatched,
        recorder: EventRecorder,
        recorded: RecordedEvents,
        sender: Sender,
    ) -> None:
        self._mongo = mongo
        self._store = store
        self._outbox = outbox
        self._unmatched = unmatched
        self._recorder = recorder
        self._recorded = recorded
        self._sender = sender
        self._queue: deque[Event] = deque()
        # The newest version of each resource that was recorded here, and the resources of which one was set aside.
        self._newest: FIFOCache[Key, int] = FIFOCache(_REMEMBERED)
        self._set_aside: set[Key] = set()

    @property
    def empty(self) -> bool:
        return not self._queue

    def add(self, events: Iterable[Event]) -> None:
        """Queue committed events, in order."""
        self._queue.extend(events)

    async def add_abandoned(self) -> None:
        """Queue events that no process has recorded in time: those of processes that died or failed.

        Those that wait here are in hand, however long they wait.
        """
        due = self._mongo.now() - _IN_HAND
        await self._outbox.renew([event.id for event in self._queue if event.at <= due])
        if len(self._queue) > _BATCH:
            return
        queued = {event.id for event in self._queue}
        for row in await self._outbox.claim_abandoned(_BATCH, queued):
            if (event := await self._load(row)) is not None:
                self.add([event])

    async def take_in(self) -> None:
        """Record the queued events, in order. Raises what is nobody's fault; what was not recorded stays queued."""
        while self._queue:
            async with self._recorder.lock:
                batch = [self._queue[index] for index in range(min(len(self._queue), _BATCH))]
                with self._store.search_state.applied():
                    await self._record_or_skip(batch)
                for _ in batch:
                    self._queue.popleft()

    async def _record_or_skip(self, batch: Sequence[Event]) -> None:
        """Record a batch; where that fails, one by one. What still fails is set aside as a whole.

        Raises what is nobody's fault: without a database everything waits.
        """
        try:
            await self._record(batch)
        except Exception as error:
            self._sender.unsure = True
            if is_nobodys_fault(error):
                raise
            warn("record", error)
            if len(batch) > 1:
                for event in batch:
                    await self._record_or_skip([event])
            elif not isinstance(error, ContentionError):  # that is left to the sweep
                event = batch[0]
                self._set_aside.add((event.type, event.resource_id))
                await self._recorder.set_aside(event, error)

    async def _record(self, events: Sequence[Event]) -> None:
        known = {event.id for event in events}
        unsure = [event for event in events if not self._follows_recorded(event)]
        overdue = await self._outbox.pending_before(unsure) if unsure else []
        loaded = [await self._load(row) for row in overdue if row["_id"] not in known]
        older = [event for event in loaded if event is not None]
        waiting = await self._waiting([*older, *unsure, *self._of_set_aside(events)])
        plans = []
        for event in (*older, *events):
            key = (event.type, event.resource_id)
            before = waiting.get(key, {})
            plan = await self._recorder.plan(
                event, {j for v, those in before.items() if v < event.version for j in those}
            )
            plans.append(plan)
            if plan.failures:
                failed = {failure.judge for failure in plan.failures}
                waiting.setdefault(key, {}).setdefault(event.version, set()).update(failed)
        plans = await self._recorder.judged(plans)
        for plan in plans:
            if plan.failures:
                self._set_aside.add((plan.event.type, plan.event.resource_id))
        await self._recorder.record(plans)
        self._remember(plans)

    async def _waiting(self, events: Sequence[Event]) -> dict[Key, dict[int, set[str]]]:
        """The judges for which older versions wait, by version; none where this process knows that there is nothing."""
        versions: dict[Key, int] = {}
        for event in events:
            key = (event.type, event.resource_id)
            if event.version > 1:
                versions[key] = max(event.version, versions.get(key, 0))
        if not versions:
            return {}
        found = await self._unmatched.waiting(versions)
        self._set_aside -= versions.keys() - found.keys()
        return found

    def _of_set_aside(self, events: Sequence[Event]) -> list[Event]:
        if not self._set_aside:
            return []
        return [event for event in events if (event.type, event.resource_id) in self._set_aside]

    async def _load(self, row: Document) -> Event | None:
        event = await self._recorder.load(row)
        if event is None:
            self._set_aside.add((row["type"], row["id"]))
        return event

    def _follows_recorded(self, event: Event) -> bool:
        """Whether this process itself has recorded the version before."""
        key = (event.type, event.resource_id)
        return event.version == 1 or self._newest.get(key) == event.version - 1

    def _remember(self, planned: Sequence[Planned]) -> None:
        if len(self._set_aside) > _REMEMBERED:  # the database knows them all
            self._set_aside.clear()
            self._newest.clear()
        for plan in planned:
            self._newest[plan.event.type, plan.event.resource_id] = plan.event.version
            self._recorded.add(plan.event)
