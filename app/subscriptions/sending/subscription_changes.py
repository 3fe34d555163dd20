"""The follow-up of each new version of a Subscription, of this process or another.

One that is requested is proven, one that is active gets the rows recorded meanwhile, those of one in error wait, the
rows of any other are closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from app.runtime.mongo import Mongo
from app.store.events import Event, event_rows
from app.subscriptions.ledger.event_recorder import EventRecorder
from app.subscriptions.ledger.rematching import Rematching
from app.subscriptions.ledger.unmatched import Unmatched
from app.subscriptions.matching import judges
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.sending.background import BackgroundTasks
from app.subscriptions.sending.backlog import Backlog
from app.subscriptions.sending.lifecycle import Lifecycle


class SubscriptionChanges:
    """Registers new versions, and starts their follow-up."""

    def __init__(
        self,
        registry: SubscriptionRegistry,
        unmatched: Unmatched,
        recorder: EventRecorder,
        rematching: Rematching,
        lifecycle: Lifecycle,
        backlog: Backlog,
        background: BackgroundTasks,
    ) -> None:
        self._registry = registry
        self._unmatched = unmatched
        self._recorder = recorder
        self._rematching = rematching
        self._lifecycle = lifecycle
        self._backlog = backlog
        self._background = background
        # Subscriptions that the change stream has reported and that are not read yet.
        self._reported: set[str] = set()
        self.poked = asyncio.Event()

    def learn(self, event: Event) -> None:
        """Register a version that this process has committed."""
        self._registry.put(event.resource_id, event.version, event.resource, again=False)
        # Not what `put` returned: another reader may have taken the version over a moment ago.
        self._follow_up(event.resource_id, self._registry.get(event.resource_id))

    async def watch(self, mongo: Mongo, owner: str) -> None:
        """Follow the change stream of other processes' versions; `poked` is set where there is one to read."""
        foreign = {"fullDocument.type": "Subscription", "fullDocument.owner": {"$ne": owner}}
        pipeline = [{"$match": {"operationType": "insert", **foreign}}]
        async with mongo.watch(event_rows(mongo), pipeline) as stream:
            async for change in stream:
                self._reported.add(change["fullDocument"]["id"])
                self.poked.set()

    async def read_heard(self) -> None:
        """Read the Subscriptions that the change stream has reported; where that fails `refresh` finds them."""
        reported, self._reported = self._reported, set()
        await self._take_over(lambda: self._registry.read(reported))

    async def refresh(self) -> None:
        """Register all versions that other processes have written."""
        await self._take_over(self._registry.refresh)

    async def catch_up(self) -> None:
        """Tell the Subscriptions of other processes what was recorded here, and no more; for an orderly stop."""
        await self._learn(self._registry.refresh)

    async def _take_over(self, read: Callable[[], Awaitable[list[Registration]]]) -> None:
        for registration in await self._learn(read):
            self._follow_up(registration.id, registration)

    async def _learn(self, read: Callable[[], Awaitable[list[Registration]]]) -> list[Registration]:
        """Register what is read, and match for it what was recorded here meanwhile, before anything else is."""
        async with self._recorder.lock:
            registrations = await read()
            await self._rematching.learn()
        return registrations

    async def find_faults(self) -> None:
        """Set those to `error` whose criteria cannot be settled any more, since value sets or code systems changed."""
        self._refuse(await self._registry.faults.find())

    def sweep(self) -> None:
        """Activate the Subscriptions that are still requested, and end those whose `end` has come."""
        for registration in self._registry.requested():
            self._background.do(self._lifecycle.activate(registration))
        for registration in self._registry.over():
            self._background.do(self._lifecycle.end(registration))
        self._refuse(self._registry.unsupported())

    def _refuse(self, faults: Mapping[str, str]) -> None:
        for subscription, reason in faults.items():
            version = self._registry.version(subscription)
            self._background.do(self._lifecycle.refuse(subscription, version, reason))

    def _follow_up(self, subscription: str, registration: Registration | None) -> None:
        mode = self._registry.delivery_mode(subscription)
        if mode == "waiting" and registration is not None:
            self._background.do(self._lifecycle.activate(registration))
            self._background.do(self._backlog.take_back(subscription))
        elif mode == "active":
            self._background.do(self._backlog.release(subscription))
        elif mode == "ended":
            status = "deleted" if registration is None else registration.status
            self._background.do(self._close(subscription, f"Subscription is {status}"))

    async def _close(self, subscription: str, reason: str) -> None:
        await self._backlog.close(subscription, reason)
        await self._unmatched.end(judges.of_subscription(subscription))
