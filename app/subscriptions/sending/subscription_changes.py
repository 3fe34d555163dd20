"""The follow-up of each new version of a Subscription, of this process or another.

One that is requested is proven, one that is active gets the rows recorded meanwhile, the rows of any other are closed.
"""

from __future__ import annotations

import asyncio

from app.runtime.mongo import Mongo
from app.store.events import Event, event_rows
from app.subscriptions.ledger.ledger import Ledger
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
        ledger: Ledger,
        lifecycle: Lifecycle,
        backlog: Backlog,
        background: BackgroundTasks,
    ) -> None:
        self._registry = registry
        self._ledger = ledger
        self._lifecycle = lifecycle
        self._backlog = backlog
        self._background = background
        # Subscriptions that the change stream has reported and that are not read yet.
        self._reported: set[str] = set()
        self.poked = asyncio.Event()

    def learn(self, event: Event) -> None:
        """Register a version that this process has committed."""
        self._registry.put(event.resource_id, event.version, event.resource)
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
        for registration in await self._registry.read(reported):
            self._follow_up(registration.id, registration)

    async def refresh(self) -> None:
        """Register all versions that other processes have written."""
        for registration in await self._registry.refresh():
            self._follow_up(registration.id, registration)

    def sweep(self) -> None:
        """Activate the Subscriptions that are still requested, and end those whose `end` has come."""
        for registration in self._registry.requested():
            self._background.do(self._lifecycle.activate(registration))
        for registration in self._registry.over():
            self._background.do(self._lifecycle.end(registration))

    def _follow_up(self, subscription: str, registration: Registration | None) -> None:
        status = "off" if registration is None else registration.status
        if registration is not None and status == "requested":
            self._background.do(self._lifecycle.activate(registration))
        elif status == "active":
            self._background.do(self._release(subscription))
        else:
            self._background.do(self._ledger.close(subscription, f"Subscription is {status}"))

    async def _release(self, subscription: str) -> None:
        """Send the rows recorded while the endpoint was being proven."""
        lanes = await self._ledger.open_lanes(subscription)
        if lanes:
            await self._backlog.advance(lanes)
