"""The loops that drive subscriptions: a commit wakes them at once, a sweep is the truth.

commit -> `_committed` (the store's listener, synchronous) -> intake: match, record -> sender: attempt, settle. What
other processes committed, and what dead ones left, is found by the sweep; a change stream makes it look sooner.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from pymongo.errors import ConnectionFailure, PyMongoError

from app import tasks
from app.mongo import Document, Mongo
from app.search.extract import extract
from app.security.egress import Egress
from app.settings import Settings
from app.store import Store
from app.subscriptions import past
from app.subscriptions.backlog import Backlog
from app.subscriptions.binding import Binder
from app.subscriptions.channels import CHANNELS, Channel, Surroundings
from app.subscriptions.composer import Composer
from app.subscriptions.delivery import Sender
from app.subscriptions.ledger import Ledger
from app.subscriptions.lifecycle import Lifecycle
from app.subscriptions.outbox import ContentionError, Outbox, Planned
from app.subscriptions.processes import BEAT_EVERY, Processes
from app.subscriptions.registration import Registration
from app.subscriptions.registry import Registry
from app.subscriptions.retention import Retention
from app.subscriptions.retry import RetryPolicy
from app.versions import Event

log = logging.getLogger(__name__)

SWEEP_EVERY = 1.0
_BATCH = 256
_PAUSE_AFTER_FAILURE = 0.5
_PATIENCE = 5.0
# What has come of attempts is written down together.
_SETTLE_APART = 0.025
# Many Subscriptions written elsewhere are learnt together.
_REFRESH_APART = 0.1
_REMEMBERED = 50_000


class Worker:
    """Matching and delivery in this process; any number of processes share the work."""

    def __init__(
        self,
        settings: Settings,
        mongo: Mongo,
        store: Store,
        *,
        policy: RetryPolicy | None = None,
        channels: Mapping[str, Channel] | None = None,
    ) -> None:
        self._mongo = mongo
        self._store = store
        around = Surroundings(settings, Egress.from_settings(settings), mongo, store.owner)
        self._channels = channels or {name: kind.make(around) for name, kind in CHANNELS.items()}
        self.registry = Registry(settings, mongo, store)
        self.ledger = Ledger(mongo, store.owner)
        self.outbox = Outbox(mongo, self.ledger, store.owner, self.registry.standing)
        self.composer = composer = Composer(settings, store, self.registry)
        self._lifecycle = Lifecycle(mongo, store, composer, self._channels)
        self._sender = Sender(
            mongo,
            self.ledger,
            self.registry,
            composer,
            policy or RetryPolicy(settings.delivery_window),
            self._channels,
            self._lifecycle.fail,
            self.outbox.numbering,
        )
        self._backlog = Backlog(
            mongo, self.ledger, self.registry, self._sender, self.outbox.numbering
        )
        self.binder = Binder(mongo, composer, self.outbox, self._backlog, self._channels)
        self.processes = Processes(mongo, store.owner)
        self.retention = Retention(settings, mongo)
        self._queue: deque[Event] = deque()
        self._arrived = asyncio.Event()
        self._poked = asyncio.Event()
        self._heard: set[str] = set()
        self._taking_in = asyncio.Lock()
        self._recorded: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._loops: list[asyncio.Task[None]] = []
        self._chores: set[asyncio.Task[None]] = set()

    @property
    def running(self) -> bool:
        return bool(self._loops) and not any(loop.done() for loop in self._loops)

    async def start(self, *, loops: bool = True) -> None:
        """Make the collections ready, learn the Subscriptions, listen to the store and start the loops.

        Without loops, nothing moves but by `run_once`.
        """
        await self.ledger.prepare()
        await self.outbox.prepare()
        await self.registry.load()
        await self.processes.beat(self._take_over)
        self._store.listeners.append(self._committed)
        if loops:
            steps = (
                self._intake_loop,
                self._sweep_loop,
                self._watch_loop,
                self._refresh_loop,
                self._beat_loop,
                self._settle_loop,
            )
            self._loops = [asyncio.create_task(step()) for step in steps]

    async def stop(self) -> None:
        """Stop in good order: attempts under way end or are broken off, and what is left others may take at once."""
        if self._committed in self._store.listeners:
            self._store.listeners.remove(self._committed)
        await tasks.end([*self._loops, *self._chores])
        self._loops = []
        try:
            await self._sender.finish(_PATIENCE)
            await self.ledger.abandon(self._store.owner)
            await self.outbox.hand_back()
            await self.processes.leave()
        except PyMongoError as error:
            _warn("stop", error)
        for channel in self._channels.values():
            await channel.close()

    async def run_once(self) -> None:
        """One round of everything, and what it sets off: for tests and for a worker without loops."""
        await self._sweep()
        await self._take_in()
        await self._rest()

    async def resend(self, subscription: str, condition: Document) -> int:
        """Send settled notices of a Subscription again; returns how many. `condition` is one on delivery rows."""
        count = await past.reopen(self._mongo, subscription, condition)
        self.outbox.numbering.forget([subscription])
        self._do(self._backlog.sweep())
        return count

    async def drain(self) -> None:
        """Return once nothing that was committed here is on its way any more, retries aside."""
        while True:
            await self._take_in()
            await self._rest()
            if not self._queue and not self._chores and self._backlog.idle:
                return

    async def _rest(self) -> None:
        while self._chores or self.outbox.behind or not self._backlog.idle:
            if self._chores:
                await asyncio.wait(set(self._chores))
            await self._sender.wait()
            await self._settle()

    def _committed(self, events: list[Event]) -> None:
        """The store's listener: what was committed in this process."""
        for event in events:
            if event.type == "Subscription":
                self._learn(event)
        self._queue.extend(events)
        self._arrived.set()

    def _learn(self, event: Event) -> None:
        self.registry.put(event.resource_id, event.version, event.resource)
        # Not what `put` returned: another reader may have taken the version over a moment ago.
        self._follow_up(event.resource_id, self.registry.get(event.resource_id))

    def _follow_up(self, subscription: str, registration: Registration | None) -> None:
        """Do what the new version of a Subscription asks for."""
        status = "off" if registration is None else registration.status
        if registration is not None and status == "requested":
            self._do(self._lifecycle.activate(registration))
        elif status == "active":
            self._do(self._release(subscription))
        else:
            self._do(self.ledger.close(subscription, f"Subscription is {status}"))

    async def _release(self, subscription: str) -> None:
        """Send what was counted while the endpoint was being proven."""
        lanes = await self.ledger.open_lanes(subscription)
        if lanes:
            await self._backlog.advance(lanes)

    def _do(self, chore: Coroutine[Any, Any, None]) -> None:
        """Run something beside the loops; the sweep makes good for what fails."""
        task = asyncio.create_task(chore)
        self._chores.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._chores.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _warn("chore", error)

    async def _intake_loop(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await _again_after_failure("intake", self._take_in)
            if self._queue:
                self._arrived.set()

    async def _take_in(self) -> None:
        """Record what has been committed so far, in order."""
        async with self._taking_in:
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
            _warn("record", error)
            if len(batch) > 1:
                for event in batch:
                    await self._record_or_skip([event])

    async def _record(self, events: Sequence[Event]) -> None:
        unsure = [event for event in events if not self._follows_recorded(event)]
        overdue = await self.outbox.pending_before(unsure) if unsure else []
        known = {event.id for event in events}
        older = [await self._revive(row) for row in overdue if row["_id"] not in known]
        plans = [await self._plan(event) for event in (*older, *events)]
        planned = [plan for plan in plans if plan is not None]
        idle = [plan.event.id for plan in planned if not plan.matches]
        busy = [plan for plan in planned if plan.matches]
        if idle:
            self.outbox.finish(idle)
        if busy:
            await self.composer.make_ready(
                {match.registration.id for plan in busy for match in plan.matches}
            )
            waiting = await self.outbox.record(busy, self._sender.admission(), self._sender.start)
            if waiting:
                await self._backlog.advance({row.lane for row in waiting}, waiting)
        self._remember(planned)
        self._sender.unsettled.set()

    async def _plan(self, event: Event) -> Planned | None:
        """The event with those it concerns; None where that cannot be told, and the row stays for another try."""
        try:
            return Planned(event, await self.registry.match(event))
        except PyMongoError:
            raise  # chained criteria ask the database; without it everything waits
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
        while len(self._recorded) > _REMEMBERED:
            self._recorded.popitem(last=False)

    async def _revive(self, row: Document) -> Event:
        """An event out of its row and the stored versions."""
        type_, id_, version = row["type"], row["id"], row["version"]
        stored = await self._store.vread(type_, id_, version)
        before = await self._store.vread(type_, id_, version - 1) if version > 1 else None
        resource = stored.resource() if stored is not None and not stored.deleted else None
        return Event(
            row["_id"],
            type_,
            id_,
            version,
            row["method"],
            row["at"],
            resource,
            extract(type_, resource) if resource is not None else None,
            before.text if before is not None and not before.deleted else None,
        )

    async def _settle_loop(self) -> None:
        """Write down what has come of attempts, and what was recorded, a moment's worth at once."""
        while True:
            await self._sender.unsettled.wait()
            await asyncio.sleep(_SETTLE_APART)
            self._sender.unsettled.clear()
            await _again_after_failure("settle", self._settle)
            if self.outbox.behind:
                self._sender.unsettled.set()

    async def _settle(self) -> None:
        results = await asyncio.gather(
            self._backlog.settle(alone=self.processes.alone),
            self.outbox.flush(),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _beat_loop(self) -> None:
        """Say that this process is alive, whatever else it is busy with, and take over what dead ones left."""
        while True:
            await _again_after_failure("beat", partial(self.processes.beat, self._take_over))
            await asyncio.sleep(BEAT_EVERY)

    async def _take_over(self, owner: str, at: datetime) -> None:
        taken = await self.ledger.abandon(owner)
        await self.outbox.take_from(owner, at)
        await self._lifecycle.take_from(owner)
        log.warning("took over", extra={"action": "take-over", "owner": owner, "count": taken})

    async def _sweep_loop(self) -> None:
        while True:
            await _again_after_failure("sweep", self._sweep)
            await asyncio.sleep(SWEEP_EVERY)

    async def _sweep(self) -> None:
        """Find what nobody told this process: changed Subscriptions, abandoned events, rows that are due."""
        await self._refresh()
        for row in await self.outbox.claim_abandoned(_BATCH):
            self._queue.append(await self._revive(row))
            self._arrived.set()
        await self._backlog.sweep()
        for registration in self.registry.requested():
            self._do(self._lifecycle.activate(registration))
        for registration in self.registry.over():
            self._do(self._lifecycle.end(registration))
        self._do(self._lifecycle.beat())
        self._do(self.retention.sweep())

    async def _refresh(self) -> None:
        """Learn of Subscriptions that other processes have written."""
        for registration in await self.registry.refresh():
            self._follow_up(registration.id, registration)

    async def _refresh_loop(self) -> None:
        while True:
            await self._poked.wait()
            self._poked.clear()
            await _again_after_failure("refresh", self._read_heard)
            await asyncio.sleep(_REFRESH_APART)

    async def _read_heard(self) -> None:
        """Read what the change stream has told of; where that fails the sweep finds it."""
        heard, self._heard = self._heard, set()
        for registration in await self.registry.read(heard):
            self._follow_up(registration.id, registration)

    async def _watch_loop(self) -> None:
        """Look sooner when another process has written a Subscription."""
        foreign = {
            "fullDocument.type": "Subscription",
            "fullDocument.owner": {"$ne": self._store.owner},
        }
        pipeline = [{"$match": {"operationType": "insert", **foreign}}]

        async def watch() -> None:
            events = self._mongo.collection("events")
            async with self._mongo.watch(events, pipeline) as stream:
                async for change in stream:
                    self._heard.add(change["fullDocument"]["id"])
                    self._poked.set()

        while True:
            await _again_after_failure("watch", watch)


async def _again_after_failure(action: str, step: Callable[[], Awaitable[object]]) -> None:
    """Run a loop's step; a failure is logged and followed by a pause, the loop goes on."""
    try:
        await step()
    except (PyMongoError, ContentionError) as error:
        _warn(action, error)
        await asyncio.sleep(_PAUSE_AFTER_FAILURE)
    except Exception as error:
        log.exception("worker step failed", extra={"action": action, "error": type(error).__name__})
        await asyncio.sleep(_PAUSE_AFTER_FAILURE)


def _warn(action: str, error: BaseException) -> None:
    log.warning("worker", extra={"action": action, "error": type(error).__name__})
