"""Each new version of a Subscription, written here or elsewhere, and what it asks for.

One that is requested is proven, one that is active gets what was counted meanwhile, one that is over gets nothing more.
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
    """Tells the registry of new versions, and sees to what follows."""

    def __init__(
        self,
        registry: SubscriptionRegistry,
        ledger: Ledger,
        lifecycle: Lifecycle,
        backlog: Backlog,
        chores: BackgroundTasks,
    ) -> None:
        self._registry = registry
        self._ledger = ledger
        self._lifecycle = lifecycle
        self._backlog = backlog
        self._chores = chores
        self._heard: set[str] = set()
        self.poked = asyncio.Event()

    def learn(self, event: Event) -> None:
        """A version that was committed in this process."""
        self._registry.put(event.resource_id, event.version, event.resource)
        # Not what `put` returned: another reader may have taken the version over a moment ago.
        self._follow_up(event.resource_id, self._registry.get(event.resource_id))

    async def watch(self, mongo: Mongo, owner: str) -> None:
        """Listen to the change stream for what other processes write; `poked` tells that there is something to read."""
        foreign = {"fullDocument.type": "Subscription", "fullDocument.owner": {"$ne": owner}}
        pipeline = [{"$match": {"operationType": "insert", **foreign}}]
        async with mongo.watch(event_rows(mongo), pipeline) as stream:
            async for change in stream:
                self._heard.add(change["fullDocument"]["id"])
                self.poked.set()

    async def read_heard(self) -> None:
        """Read what the change stream has told of; where that fails `refresh` finds it."""
        heard, self._heard = self._heard, set()
        for registration in await self._registry.read(heard):
            self._follow_up(registration.id, registration)

    async def refresh(self) -> None:
        """Learn of all that other processes have written."""
        for registration in await self._registry.refresh():
            self._follow_up(registration.id, registration)

    def sweep(self) -> None:
        """Take up again what is still requested, and end what has reached its end."""
        for registration in self._registry.requested():
            self._chores.do(self._lifecycle.activate(registration))
        for registration in self._registry.over():
            self._chores.do(self._lifecycle.end(registration))

    def _follow_up(self, subscription: str, registration: Registration | None) -> None:
        status = "off" if registration is None else registration.status
        if registration is not None and status == "requested":
            self._chores.do(self._lifecycle.activate(registration))
        elif status == "active":
            self._chores.do(self._release(subscription))
        else:
            self._chores.do(self._ledger.close(subscription, f"Subscription is {status}"))

    async def _release(self, subscription: str) -> None:
        """Send what was counted while the endpoint was being proven."""
        lanes = await self._ledger.open_lanes(subscription)
        if lanes:
            await self._backlog.advance(lanes)
