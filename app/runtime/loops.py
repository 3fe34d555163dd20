"""The loops of a part: what it does of itself for as long as it lives, and how the last step of each went.

A loop waits, or is at a step. It is in trouble where it has ended though nobody ended it, where its steps have been
failing for longer than its patience, or where one step has taken longer than that. A failure or two is no trouble: the
step is repeated. Nor are old ones that nobody has tried again here: another process does that work now.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from app.runtime import background_tasks

# For loops that notices and writes wait for. Steps take milliseconds; the longest waits of the driver take a few
# seconds, and a change of primary about ten.
PATIENCE = 30.0
# For steps that go through many rows, and for what nobody waits for.
LONG_PATIENCE = 900.0

Why = Literal["ended", "failing", "hanging"]


@dataclass(frozen=True, slots=True)
class Trouble:
    """What is wrong with a loop, and for how many seconds."""

    why: Why
    seconds: float


class Loop:
    """One loop. Its steps are run inside of `step`.

    `lasting`: a step goes on for as long as all is well, as the reading of a change stream does, so that a long one is
    the good sign.
    """

    def __init__(
        self,
        name: str,
        *,
        patience: float = PATIENCE,
        may_hang: bool = False,
        lasting: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`may_hang`: a step may take any time, since it is guarded otherwise."""
        self.name = name
        self.patience = patience
        self._may_hang = may_hang
        self._lasting = lasting
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._ended: float | None = None
        self._begun: float | None = None
        self._failing: float | None = None
        self._tried = 0.0
        # When a step last ended well, in seconds since 1970; None before the first.
        self.last_run: float | None = None

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        self._ended = None
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(self._note_end)

    @property
    def is_started(self) -> bool:
        return self._task is not None

    @property
    def is_running(self) -> bool:
        return self._task is not None and self._ended is None

    @property
    def failing(self) -> float:
        """The seconds since which its steps have been failing; 0 where the last went well."""
        return 0.0 if self._failing is None else self._clock() - self._failing

    async def end(self) -> None:
        """Cancel it, and return when it has ended."""
        task, self._task = self._task, None
        if task is not None:
            await background_tasks.end([task])

    @contextmanager
    def step(self) -> Iterator[None]:
        """Note how the work inside goes; what it raises comes through."""
        begun = self._begun = self._clock()
        try:
            yield
        except Exception:
            self._tried = self._clock()
            if self._failing is None or self._went_well(begun, self._tried):
                self._failing = self._tried
            raise
        else:
            self._failing = None
            self.last_run = time.time()
        finally:
            self._begun = None

    def trouble(self) -> Trouble | None:
        """What is wrong with it now."""
        now = self._clock()
        if self._task is not None and self._ended is not None:
            return Trouble("ended", now - self._ended)
        begun, failing = self._begun, self._failing
        if begun is not None and self._went_well(begun, now):
            return None
        if failing is not None and self._tried + self.patience > now > failing + self.patience:
            return Trouble("failing", now - failing)
        if begun is not None and begun + self.patience < now and not self._may_hang:
            return Trouble("hanging", now - begun)
        return None

    def _went_well(self, begun: float, now: float) -> bool:
        """Whether a step that began then has shown by its length that all is well."""
        return self._lasting and begun + self.patience < now

    def _note_end(self, task: asyncio.Task[None]) -> None:
        self._ended = self._clock()


class Loops:
    """The loops of one part by their names."""

    def __init__(self, *loops: Loop) -> None:
        self._by_name = {loop.name: loop for loop in loops}

    def __iter__(self) -> Iterator[Loop]:
        return iter(self._by_name.values())

    def __getitem__(self, name: str) -> Loop:
        return self._by_name[name]

    @property
    def are_running(self) -> bool:
        """Whether all have been started and none has ended."""
        return all(loop.is_running for loop in self)

    async def end(self) -> None:
        """Cancel all of them, and return when they have ended."""
        for loop in self:
            await loop.end()


@runtime_checkable
class Looping(Protocol):
    """A part with loops."""

    @property
    def loops(self) -> Iterable[Loop]: ...


def loops_of(parts: Iterable[object]) -> list[Loop]:
    """All loops of those parts that have any."""
    return list(
        itertools.chain.from_iterable(part.loops for part in parts if isinstance(part, Looping))
    )
