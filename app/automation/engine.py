"""Reactions and timers with their life: started with the server, stopped before the store."""

from __future__ import annotations

from collections.abc import Sequence

from app.automation.dead_letter_tasks import DeadLetters
from app.automation.reactions import Reaction, Reactions
from app.automation.review_tasks import RecentlyChecked
from app.automation.timers import Timer, Timers
from app.context import Context
from app.runtime.clock import Clock
from app.runtime.dead_letters import Queue
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
        queues: Sequence[Queue] = (),
    ) -> None:
        """`queues` are those of features that keep dead letters of their own."""
        self.timers = Timers(mongo, clock, timers, store.owner)
        self.reactions = Reactions(mongo, store, reactions)
        self.dead_letters = DeadLetters([self.timers, self.reactions, *queues])
        self.recently = RecentlyChecked()
        self._store = store

    @property
    def parts(self) -> list[object]:
        """What reactions and timers ask for by its class, and what has loops."""
        return [self.timers, self.dead_letters, self.recently, self.reactions]

    async def start(self, context: Context) -> None:
        """`context` is the server's own; what is written in it is written by the server."""
        self.context = context
        self._store.listeners.append(self.recently.on_events)
        await self.reactions.start(context)
        await self.timers.start(context)
        self.dead_letters.start(context)

    async def stop(self) -> None:
        await self.dead_letters.stop()
        await self.timers.stop()
        await self.reactions.stop()

    async def drain(self) -> None:
        """Return once nothing is left to react to here, no timer is due, and what was given up has its Task."""
        while True:
            await self.reactions.idle()
            if not await self.timers.run_due(self.context):
                break
        await self.dead_letters.look(self.context)
