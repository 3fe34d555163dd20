"""The pace of long work on the event loop: a few milliseconds, then everybody else's turn.

A request whose body is large calls `begin`; whatever is done for it afterwards calls `breathe` wherever it has come a
step further, and hands `aside` a single step that itself may take long. For all other requests neither does anything.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# How long one turn may take, and how long the loop is then left to everybody else. A read takes a handful of the loop's
# turns: without the rest it would wait for as many of ours.
TURN, REST = 0.004, 0.002
# Work on so many bytes of JSON is a step that fits into a turn, or nearly so.
STEP_BYTES = 64 * 1024
# Few, however many requests have a large step to take: each thread that waits for the interpreter may have it first.
_threads = ThreadPoolExecutor(2, "aside")

_turn_ends: ContextVar[list[float] | None] = ContextVar("turn_ends", default=None)


def begin() -> None:
    """What this task does from here on, and the tasks that it starts, is long work."""
    if _turn_ends.get() is None:
        _turn_ends.set([time.perf_counter() + TURN])


def is_long() -> bool:
    return _turn_ends.get() is not None


async def breathe() -> None:
    """Let everybody else have a turn, if this one has taken its time."""
    turn = _turn_ends.get()
    if turn is not None and time.perf_counter() >= turn[0]:
        await asyncio.sleep(REST)
        turn[0] = time.perf_counter() + TURN


async def aside(size: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What `work` returns: a step on `size` bytes, in a thread where it is long.

    That lets others in where the step is Python's own; one call of a C library holds the interpreter all the same.
    """
    if size > STEP_BYTES:
        step = partial(contextvars.copy_context().run, work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(_threads, step)
    await breathe()
    return work(*args, **kwargs)


async def paced(items: Iterable[T]) -> AsyncIterator[T]:
    """The items, with a breath before each."""
    for item in items:
        await breathe()
        yield item
