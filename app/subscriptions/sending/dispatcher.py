"""The dispatcher: runs what there is to do for each target, a few jobs of each side by side, and fairly.

Jobs are attempts on rows, heartbeats and handshakes. Those that take longer than a moment, and all of targets whose
last attempt failed, have slots of their own (slots.py), so that what hangs holds up what hangs. Where even these are
taken by what hangs, that which has hung longest is ended for the next: its time is over early.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from app.subscriptions.channels.connections import ATTEMPTS_OF_ORIGIN
from app.subscriptions.channels.patience import CURRENT, Patience
from app.subscriptions.sending.slots import Slots
from app.subscriptions.sending.targets import Job, Target

log = logging.getLogger(__name__)

T = TypeVar("T")

# Concurrent attempts over all targets, and those of one origin; each may hold a connection. The second are of attempts
# that are slow, or may well be.
_MOST, _MOST_SLOW = 256, 256
_MOST_OF_ORIGIN = 32
# After so many seconds an attempt is slow, and after so many it may be ended where others need its slot.
_SLOW, _LONG = 1.0, 5.0


@dataclass(slots=True, eq=False)
class _Turn:
    """A target's turn: the slot that one of its concurrent jobs takes, and since when it is at the present job."""

    target: Target
    slots: Slots
    began: float = 0.0
    patience: Patience = field(default_factory=Patience)
    # Makes way for others where the present job is slow.
    timer: asyncio.TimerHandle = field(init=False)


class Dispatcher:
    """Runs the jobs of targets in this process."""

    def __init__(self) -> None:
        self._slots = Slots(_MOST, _MOST_OF_ORIGIN)
        self._slow = Slots(_MOST_SLOW, ATTEMPTS_OF_ORIGIN - _MOST_OF_ORIGIN)
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_ending = False
        # The turns in slow slots, and those that are slow and have found no slow slot: the longest first.
        self._hanging: dict[_Turn, None] = {}
        self._held_up: dict[_Turn, None] = {}

    @property
    def is_idle(self) -> bool:
        return not self._tasks

    def submit(self, target: Target, job: Job, *, first: bool = False) -> None:
        """Queue a job; `first`: before those that wait."""
        if first:
            target.jobs.appendleft(job)
        else:
            target.jobs.append(job)
        self._run(target)

    async def ask(self, target: Target, send: Callable[[], Awaitable[T]]) -> T:
        """What `send` returns or raises, once it is the target's turn."""
        found: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def job() -> None:
            if found.done():  # who asked waits no more
                return
            try:
                result = await send()
            except Exception as error:
                if not found.done():
                    found.set_exception(error)
            else:
                if not found.done():
                    found.set_result(result)

        self.submit(target, job, first=True)
        return await found

    def _run(self, target: Target) -> None:
        """Start one more concurrent job of a target, within its limit and those of all."""
        if self._is_ending or not target.jobs or target.under_way >= target.allowed:
            return
        slots = self._slots_of(target)
        if not slots.take(target):
            slots.wait(target)
            return
        target.under_way += 1
        turn = _Turn(target, slots)
        if slots is self._slow:
            self._hanging[turn] = None
        task = asyncio.create_task(self._work(turn))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _slots_of(self, target: Target) -> Slots:
        return self._slow if target.is_suspect else self._slots

    async def _work(self, turn: _Turn) -> None:
        """Do one job after the other, until there is none, the target's limit has fallen, or others wait."""
        target, loop = turn.target, asyncio.get_running_loop()
        try:
            while target.jobs and target.under_way <= target.allowed and not self._is_ending:
                turn.began, turn.patience = loop.time(), Patience()
                CURRENT.set(turn.patience)
                turn.timer = loop.call_later(_SLOW, self._make_way, turn)
                try:
                    await self._do(target.jobs.popleft())
                finally:
                    turn.timer.cancel()
                    self._held_up.pop(turn, None)
                self._run(target)
                if turn.slots.contended or turn.slots is not self._slots_of(target):
                    break
        finally:
            target.under_way -= 1
            self._give_back(turn)
            self._run(target)

    def _make_way(self, turn: _Turn) -> None:
        """Let others have the slot of an attempt that is slow; where none is free for it, look again later."""
        if turn.slots is self._slow or self._move(turn):
            return
        self._held_up[turn] = None
        self._end_longest(turn.target)
        turn.timer = asyncio.get_running_loop().call_later(_SLOW, self._make_way, turn)

    def _move(self, turn: _Turn) -> bool:
        """Give an attempt a slow slot for the one it has, if one is free."""
        if not self._slow.take(turn.target):
            return False
        self._held_up.pop(turn, None)
        self._give_back(turn)
        turn.slots = self._slow
        self._hanging[turn] = None
        return True

    def _end_longest(self, target: Target) -> None:
        """End the attempt that has hung longest of those whose slot a target could have."""
        until = asyncio.get_running_loop().time() - _LONG
        is_own = self._slow.is_full_of(target.origin)
        for turn in self._hanging:
            if is_own and turn.target.origin is not target.origin:
                continue
            if turn.began <= until and turn.patience.may_end:
                turn.patience.end()
                return

    def _give_back(self, turn: _Turn) -> None:
        turn.slots.give_back(turn.target)
        if turn.slots is self._slow:
            self._hanging.pop(turn, None)
            if any(self._move(held_up) for held_up in list(self._held_up)):
                return
        while (waiting := turn.slots.next()) is not None:
            self._run(waiting)

    async def _do(self, job: Job) -> None:
        try:
            await job()
        except Exception as error:
            # The text may hold content, the type does not.
            log.error("job failed", extra={"action": "dispatch", "error": type(error).__name__})

    async def wait(self) -> None:
        """Return when a job under way has ended, at once where there is none."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), return_when=asyncio.FIRST_COMPLETED)

    async def finish(self, patience: float) -> None:
        """Wait `patience` seconds for jobs under way, and cancel those left; none is begun any more."""
        self._is_ending = True
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=patience)
        for task in set(self._tasks):
            task.cancel()
