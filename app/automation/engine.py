"""Reactions and timers with their life: started with the server, stopped before the store."""

from __future__ import annotations

from collections.abc import Sequence

from app.automation.reactions import Reaction, Reactions
from app.automation.review_tasks import RecentlyChecked
from app.automation.timers import Timer, Timers
from app.context import Context
from app.runtime.clock import Clock
from app.runtime.mongo import Mongo
from app.store.store import Store


class Engine:
    """What the server does of itself."""

    def __init__(
        self,
        mongo: Mongo,
        store: Store,
        clock: Clock,
        reactions: Sequence[Reaction],
        timers: Sequence[Timer],
    ) -> None:
        self.timers = Timers(mongo, clock, timers, store.owner)
        self.reactions = Reactions(mongo, store, reactions)
        self.recently = RecentlyChecked()
        self._store = store

    @property
    def parts(self) -> list[object]:
        """What reactions and timers ask for by its class."""
        return [self.timers, self.recently]

    async def start(self, context: Context) -> None:
        """`context` is the server's own; what is written in it is written by the server."""
        self.context = context
        self._store.listeners.append(self.recently.on_events)
        await self.reactions.start(context)
        await self.timers.start(context)

    async def stop(self) -> None:
        await self.timers.stop()
        await self.reactions.stop()

    async def drain(self) -> None:
        """Return once nothing is left to react to in this process and no timer is due."""
        while True:
            await self.reactions.idle()
            if not await self.timers.run_due(self.context):
                return
