"""The worker: the parts of matching and delivery in one process, and the loops that drive them.

commit -> `_committed` (the store's listener, synchronous) -> intake: match, record -> sender: attempt, settle. A sweep
finds the Subscriptions that other processes changed (a change stream reports them sooner), and the work of dead ones.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from datetime import datetime
from functools import partial

from pymongo.errors import PyMongoError

from app.audit.log import AuditLog
from app.authentication.current_caller import Clients
from app.authorization.access import Accesses
from app.consent.directives import ConsentDirectives
from app.errors import Unavailable
from app.network.egress_policy import Egress
from app.runtime.loops import LONG_PATIENCE, Loop, Loops, loops_of
from app.runtime.mongo import Document, Mongo
from app.settings import Settings
from app.store.events import Event
from app.store.store import Store
from app.subscriptions.channels import CHANNELS, Channel, ChannelDependencies
from app.subscriptions.ledger import ledger_queries
from app.subscriptions.ledger.event_intake import EventIntake
from app.subscriptions.ledger.event_recorder import EventRecorder
from app.subscriptions.ledger.ledger import Delivery, Ledger
from app.subscriptions.ledger.outbox import Outbox
from app.subscriptions.ledger.recorded_events import RecordedEvents
from app.subscriptions.ledger.rematching import Rematching
from app.subscriptions.ledger.rerouting import Rerouting
from app.subscriptions.ledger.retention import Retention
from app.subscriptions.ledger.unmatched import Unmatched
from app.subscriptions.matching.criteria_check import TERMINOLOGY
from app.subscriptions.matching.event_matcher import EventMatcher
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.notices.composer import Composer
from app.subscriptions.sending.attempt import Attempts
from app.subscriptions.sending.background import BackgroundTasks, retry_loop, warn
from app.subscriptions.sending.backlog import Backlog
from app.subscriptions.sending.delivery import Sender
from app.subscriptions.sending.dispatcher import Dispatcher
from app.subscriptions.sending.lifecycle import Lifecycle
from app.subscriptions.sending.owner_rights import OwnerRights
from app.subscriptions.sending.recording_check import RecordingCheck
from app.subscriptions.sending.release_check import ReleaseCheck
from app.subscriptions.sending.release_limits import ReleaseLimits
from app.subscriptions.sending.retry import RetryPolicy
from app.subscriptions.sending.settling import Settling
from app.subscriptions.sending.subscription_changes import SubscriptionChanges
from app.subscriptions.sending.targets import Targets
from app.subscriptions.websocket.binding import Binder

log = logging.getLogger(__name__)

SWEEP_EVERY = 1.0
_TAKE_OVER_EVERY = 1.0
_PATIENCE = 5.0
# Settlements within this time are written together.
_SETTLE_APART = 0.025
# Retries that are due within this time are read together.
_LOOK_APART = 0.1
# Subscriptions that other processes write within this time are read together.
_REFRESH_APART = 0.1


class Worker:
    """Matching and delivery in this process; any number of processes share the work."""

    def __init__(
        self,
        settings: Settings,
        mongo: Mongo,
        store: Store,
        *,
        accesses: Accesses,
        directives: ConsentDirectives,
        clients: Clients | None = None,
        audit: AuditLog | None = None,
        policy: RetryPolicy | None = None,
        channels: Mapping[str, Channel] | None = None,
    ) -> None:
        """`clients` is the registry for the rights of Subscriptions' owners, `audit` records attempts."""
        self._mongo = mongo
        self._store = store
        self._accesses = accesses
        self._directives = directives
        around = ChannelDependencies(settings, Egress.from_settings(settings), mongo, store.owner)
        self._channels = channels or {name: kind.make(around) for name, kind in CHANNELS.items()}
        self.registry = registry = SubscriptionRegistry(settings, mongo, store)
        self.ledger = ledger = Ledger(mongo, store.owner)
        self.outbox = outbox = Outbox(mongo, ledger, store.owner, registry.delivery_mode)
        self.unmatched = unmatched = Unmatched(mongo, store.owner)
        self.composer = composer = Composer(settings, store, registry)
        self.limits = limits = ReleaseLimits(store, settings, directives, directives.now)
        self.rights = rights = OwnerRights(accesses, store, settings, clients)
        self.targets = targets = Targets(composer.owner)
        dispatcher = Dispatcher()
        self._lifecycle = Lifecycle(mongo, store, composer, self._channels, targets, dispatcher)
        attempts = Attempts(
            mongo,
            ledger,
            registry,
            composer,
            policy or RetryPolicy(settings.delivery_window, refusal_window=settings.refusal_window),
            self._channels,
            self._lifecycle.fail,
            ReleaseCheck(limits, rights, store, settings, directives.now, self._tell_new_practice),
        )
        settling = Settling(mongo, registry, outbox.numbering, rights, audit)
        self._sender = sender = Sender(mongo, registry, targets, dispatcher, attempts, settling)
        self._backlog = backlog = Backlog(
            mongo, ledger, registry, composer, targets, sender, outbox.numbering
        )
        self.binder = Binder(mongo, composer, outbox, backlog, self._channels, rights)
        self._cluster = store.cluster
        self.retention = Retention(settings, mongo, registry.delivery_mode)
        self._background = BackgroundTasks()
        matcher = EventMatcher(registry)
        recorder = EventRecorder(
            mongo,
            store,
            matcher,
            outbox,
            unmatched,
            composer,
            sender,
            backlog,
            RecordingCheck(limits, rights),
            self._on_fault,
        )
        recorded = RecordedEvents()
        self._recorder = recorder
        self._intake = EventIntake(mongo, store, outbox, unmatched, recorder, recorded, sender)
        self.rematching = rematching = Rematching(
            mongo, store, registry, matcher, outbox, unmatched, recorder, recorded
        )
        self.rerouting = Rerouting(mongo, store, registry, unmatched, recorder)
        self._subscription_changes = SubscriptionChanges(
            registry,
            unmatched,
            recorder,
            rematching,
            self._lifecycle,
            backlog,
            self._background,
        )
        self._arrived = asyncio.Event()
        self._loops = Loops(
            # One step is all that waits, which /readyz judges by the age of the events.
            Loop("intake", patience=LONG_PATIENCE),
            Loop("sweep"),
            Loop("watch", lasting=True),
            Loop("refresh"),
            Loop("take-over"),
            Loop("settle"),
        )
        self._looks: dict[int, asyncio.TimerHandle] = {}

    @property
    def running(self) -> bool:
        return self._loops.are_running

    @property
    def loops(self) -> list[Loop]:
        """The worker's own, and those of its parts."""
        return [*self._loops, *self.retention.loops, *loops_of(self._channels.values())]

    @property
    def idle(self) -> bool:
        """Whether nothing that this process knows of waits to be sent or written now."""
        return self._intake.empty and self._backlog.idle

    @property
    def parts(self) -> list[object]:
        """The parts that requests get by their class (`Services.get`)."""
        return [
            self.registry,
            self.outbox,
            self.unmatched,
            self.rematching,
            self.rerouting,
            self.limits,
            self.rights,
            self.binder,
            self.retention,
        ]

    @property
    def in_hand(self) -> int:
        """How many deliveries this process has claimed and not settled."""
        return len(self._sender.in_hand)

    @property
    def standstill(self) -> datetime | None:
        """Since when no event can be judged, whatever it is about; None while they are."""
        return self._recorder.standstill.since

    async def start(self, *, loops: bool = True) -> None:
        """Create the indexes, load the Subscriptions, listen to the store and start the loops.

        Without loops only `run_once` makes progress.
        """
        await self.ledger.prepare()
        await self.outbox.prepare()
        await self.unmatched.prepare()
        await self.registry.load()
        await self._cluster.take_over_silent(self._take_over)
        self._store.listeners.append(self._committed)
        if loops:
            self._loops["intake"].start(self._intake_loop())
            self._loops["sweep"].start(self._sweep_loop())
            self._loops["watch"].start(self._watch_loop())
            self._loops["refresh"].start(self._refresh_loop())
            self._loops["take-over"].start(self._take_over_loop())
            self._loops["settle"].start(self._settle_loop())

    async def stop(self) -> None:
        """Stop in order: attempts under way end or are cancelled, and other processes may take the rest at once."""
        if self._committed in self._store.listeners:
            self._store.listeners.remove(self._committed)
        await self._loops.end()
        for look in self._looks.values():
            look.cancel()
        self._looks = {}
        await self._background.end()
        try:
            # What was recorded here is told to the Subscriptions of others, too.
            await self._subscription_changes.catch_up()
            await self._sender.finish(_PATIENCE)
            await self.unmatched.hand_back()
            await self.ledger.abandon(self._store.owner)
            await self.outbox.hand_back()
        except (PyMongoError, Unavailable) as error:
            warn("stop", error)
        for channel in self._channels.values():
            await channel.close()

    async def run_once(self) -> None:
        """Run one round of everything, with the work it starts: for tests and for a worker without loops."""
        await self._sweep()
        await self._intake.take_in()
        await self._rest()

    async def resend(self, subscription: str, condition: Document) -> int:
        """Send settled notices of a Subscription again; returns how many. `condition` is one on delivery rows."""
        count = await ledger_queries.reopen(self._mongo, subscription, condition)
        self._backlog.forget(subscription)
        self._background.do(self._backlog.sweep())
        return count

    async def drain(self) -> None:
        """Return once all that this process committed is settled, retries aside."""
        while True:
            await self._intake.take_in()
            await self._rest()
            if self._intake.empty and not self._background and self._backlog.idle:
                return

    async def _rest(self) -> None:
        while self._background or self.outbox.behind or not self._backlog.idle:
            await self._background.wait()
            await self._sender.wait()
            await self._settle()

    def _committed(self, events: list[Event]) -> None:
        """The store's listener: takes the events that this process committed."""
        self._directives.on_events(events)
        self._accesses.relationships.on_events(events)
        for event in events:
            if event.type == "Subscription":
                self._subscription_changes.learn(event)
        if any(event.type in TERMINOLOGY for event in events):
            self._background.do(self._subscription_changes.find_faults())
        self._intake.add(events)
        self._arrived.set()

    def _on_fault(self, subscription: str, reason: str) -> None:
        """Set a Subscription to `error` whose own text cannot be evaluated."""
        found = self.registry.get(subscription)
        if found is not None and found.status in ("active", "requested"):
            self._background.do(self._lifecycle.refuse(subscription, found.version, reason))

    async def _tell_new_practice(self, delivery: Delivery) -> None:
        await self.rematching.tell_new_practice(delivery)

    async def _intake_loop(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await retry_loop(self._loops["intake"], self._intake.take_in)
            if not self._intake.empty:
                self._arrived.set()

    async def _settle_loop(self) -> None:
        """Write the settlements, counters and recorded events of _SETTLE_APART seconds at once."""
        while True:
            await self._sender.unsettled.wait()
            await asyncio.sleep(_SETTLE_APART)
            self._sender.unsettled.clear()
            await retry_loop(self._loops["settle"], self._settle)
            if self.outbox.behind:
                self._sender.unsettled.set()

    async def _settle(self) -> None:
        results = await asyncio.gather(
            self._backlog.settle(alone=self._cluster.alone),
            self.outbox.flush(),
            return_exceptions=True,
        )
        for result in results:
            if isinstance(result, BaseException):
                raise result
            if result is not None and self._loops.are_running:
                self._look_at(result)

    def _look_at(self, due: datetime) -> None:
        """Schedule a sweep for a retry's time, since the next regular one may be a second later."""
        loop = asyncio.get_running_loop()
        wait = (due - self._mongo.now()).total_seconds()
        slot = int((loop.time() + wait) / _LOOK_APART) + 1
        if wait <= SWEEP_EVERY and slot not in self._looks:
            self._looks[slot] = loop.call_at(slot * _LOOK_APART, self._look, slot)

    def _look(self, slot: int) -> None:
        del self._looks[slot]
        self._background.do(self._backlog.sweep())

    async def _take_over_loop(self) -> None:
        """Take over the rows and events of silent processes, whatever else this one is busy with."""
        take_over = partial(self._cluster.take_over_silent, self._take_over)
        while True:
            await retry_loop(self._loops["take-over"], take_over)
            await asyncio.sleep(_TAKE_OVER_EVERY)

    async def _take_over(self, owner: str, at: datetime) -> None:
        await self.binder.take_from(owner)
        taken = await self.ledger.abandon(owner)
        await self.outbox.take_from(owner, at)
        await self.unmatched.take_from(owner)
        await self.rematching.learn_for(owner)
        await self._lifecycle.take_from(owner)
        self._backlog.look_for_forgotten()
        log.warning("took over", extra={"action": "take-over", "owner": owner, "count": taken})

    async def _sweep_loop(self) -> None:
        while True:
            await retry_loop(self._loops["sweep"], self._sweep)
            await asyncio.sleep(SWEEP_EVERY)

    async def _sweep(self) -> None:
        """Find changed Subscriptions, abandoned events and due rows, of which this process has no notice."""
        await self._subscription_changes.refresh()
        await self._intake.add_abandoned()
        if not self._intake.empty:
            self._arrived.set()
        await self._backlog.sweep()
        self._background.do(self.rematching.replay_due())
        self._subscription_changes.sweep()
        self._background.do(self._lifecycle.beat())
        self._background.do(self.retention.sweep())

    async def _refresh_loop(self) -> None:
        """Read the Subscriptions that the change stream has reported, those of _REFRESH_APART seconds at once."""
        while True:
            await self._subscription_changes.poked.wait()
            self._subscription_changes.poked.clear()
            await retry_loop(self._loops["refresh"], self._subscription_changes.read_heard)
            await asyncio.sleep(_REFRESH_APART)

    async def _watch_loop(self) -> None:
        """Follow the change stream, so that Subscriptions of other processes are read sooner."""
        watch = partial(self._subscription_changes.watch, self._mongo, self._store.owner)
        while True:
            await retry_loop(self._loops["watch"], watch)
