"""Group commit by natural batching: what arrives while earlier batches are being written goes into the next one.

An idle server writes at once, a busy one shares each transaction among those who wait. Measured against one transaction
per write: 1.3 instead of 0.75 of a baseline of two inserts (docs/decisions/0002-one-write-path.md). Nobody waits for
another's trouble: what meets other writers, what is large, and what may or may not be committed leaves the batches
(docs/decisions/0019-nobody-waits-for-a-conflict.md).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from typing import Any, Generic, Protocol, TypeVar

from app.errors import Unavailable
from app.runtime.transactions import ContentionError, pause

# What waits for an outcome that is not known is told so after that many seconds.
_DOUBT_SECONDS = 20.0
_DOUBT = "The database has not said whether it has stored this; look, or try again"


class Unit(Protocol):
    """Something that is written whole or not at all."""

    @property
    def keys(self) -> set[str]:
        """What it writes: two units with a key in common never share a batch."""

    @property
    def size(self) -> int:
        """How many changes it holds."""


U = TypeVar("U", bound=Unit)
InDoubt = Callable[[], None]
# Writes units in one transaction, or raises. Calls the function where it is not known whether they are committed, and
# goes on until it is.
Write = Callable[[Sequence[U], InDoubt], Awaitable[None]]


@dataclass(slots=True, eq=False)
class _Entry(Generic[U]):
    """A unit and who waits for it."""

    unit: U
    keys: set[str]
    future: asyncio.Future[None]
    # Whether its keys keep others waiting.
    is_holding: bool = False


class _Place:
    """One of so many transactions at a time, until it is left; leaving it again changes nothing."""

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave: Callable[[], None] | None = leave

    def leave(self) -> None:
        if self._leave is not None:
            self._leave()
            self._leave = None


class GroupCommit(Generic[U]):
    """`write(units, in_doubt)` writes a batch in one transaction.

    A batch that fails is written in halves, so that only the unit that is to blame fails; except after `hopeless`
    failures, which would only repeat themselves. A unit in whose way another writer is goes on alone, again and again
    until `write` raises something else, and so does a large one from the start. These have places of their own. What
    may or may not be committed has none, and others may write what it writes.
    """

    MAX_IN_FLIGHT = 2
    MAX_CHANGES = 256
    MAX_ALONE = 4

    def __init__(self, write: Write[U], *, hopeless: type[Exception]) -> None:
        self._write = write
        self._hopeless = hopeless
        self._waiting: deque[_Entry[U]] = deque()
        self._in_flight = 0
        self._alone = asyncio.Semaphore(self.MAX_ALONE)
        # What was begun and may still commit.
        self._begun: set[_Entry[U]] = set()
        self._busy_keys: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()

    async def submit(self, unit: U) -> None:
        """Return once the unit is committed; raise what its own write raised."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Entry(unit, unit.keys, future))
        self._launch()
        await future

    def pending(self) -> Iterator[U]:
        """Every unit that may still commit: those that wait and those that were begun."""
        yield from (entry.unit for entry in self._waiting if not entry.future.done())
        yield from (entry.unit for entry in self._begun)

    def _launch(self) -> None:
        while self._waiting and self._in_flight < self.MAX_IN_FLIGHT:
            batch = self._take()
            if not batch:
                return
            self._in_flight += 1
            self._start(self._write_batch(batch))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _take(self) -> list[_Entry[U]]:
        """The next batch; units whose keys are being written wait, so that they meet no write conflict of our own."""
        batch: list[_Entry[U]] = []
        held_back: list[_Entry[U]] = []
        keys: set[str] = set()
        changes = 0
        while self._waiting and (not batch or changes < self.MAX_CHANGES):
            entry = self._waiting.popleft()
            if entry.future.done():  # its caller went away before the write began
                continue
            if not entry.keys.isdisjoint(self._busy_keys) or entry.keys & keys:
                held_back.append(entry)
                keys |= entry.keys  # later units with the same keys keep their order
                continue
            self._begin(entry)
            if entry.unit.size > self.MAX_CHANGES:
                self._start(self._write_alone(entry))
            else:
                batch.append(entry)
                changes += entry.unit.size
        self._waiting.extendleft(reversed(held_back))
        return batch

    def _begin(self, entry: _Entry[U]) -> None:
        self._begun.add(entry)
        self._busy_keys.update(entry.keys)
        entry.is_holding = True

    def _free_keys(self, entry: _Entry[U]) -> None:
        if entry.is_holding:
            entry.is_holding = False
            self._busy_keys.subtract(entry.keys)
            for key in entry.keys:
                if not self._busy_keys[key]:
                    del self._busy_keys[key]

    def _end(self, entry: _Entry[U], error: Exception | None = None) -> None:
        self._begun.discard(entry)
        self._free_keys(entry)
        settle(entry.future, error)

    async def _write_batch(self, batch: list[_Entry[U]]) -> None:
        place = _Place(self._free_place)
        parts = [batch]
        while parts:
            part = parts.pop()
            try:
                await self._write(
                    [entry.unit for entry in part], partial(self._in_doubt, part, place, parts)
                )
            except Exception as error:
                parts += self._after(error, part)
            else:
                for entry in part:
                    self._end(entry)
        place.leave()

    def _after(self, error: Exception, part: list[_Entry[U]]) -> list[list[_Entry[U]]]:
        """What is to be written again of a part that has failed; tells the others."""
        if len(part) > 1 and not isinstance(error, self._hopeless):
            middle = len(part) // 2
            return [part[middle:], part[:middle]]
        for entry in part:
            if isinstance(error, ContentionError):
                self._start(self._write_alone(entry))
            else:
                self._end(entry, error)
        return []

    async def _write_alone(self, entry: _Entry[U]) -> None:
        """Write a unit, again while others are in its way and its caller waits."""
        error: Exception | None = None
        for tries in count():
            await self._alone.acquire()
            place = _Place(self._alone.release)
            try:
                await self._write([entry.unit], partial(self._in_doubt, [entry], place, []))
                break
            except ContentionError:
                if entry.future.done():
                    break
            except Exception as failure:
                error = failure
                break
            finally:
                place.leave()
            await asyncio.sleep(pause(tries))
        self._end(entry, error)
        self._launch()

    def _in_doubt(self, part: list[_Entry[U]], place: _Place, parts: list[list[_Entry[U]]]) -> None:
        """Let others go on while nobody knows whether `part` is committed; `parts` wait for it no longer."""
        place.leave()
        loop = asyncio.get_running_loop()
        for entry in part:
            if entry.is_holding:
                self._free_keys(entry)
                loop.call_later(_DOUBT_SECONDS, settle, entry.future, Unavailable(_DOUBT))
        for entry in chain.from_iterable(parts):
            self._begun.discard(entry)
            self._free_keys(entry)
            self._waiting.append(entry)
        parts.clear()
        self._launch()

    def _free_place(self) -> None:
        self._in_flight -= 1
        self._launch()


def settle(future: asyncio.Future[None], error: Exception | None) -> None:
    """Tell who waits how its write ended, unless it has gone away."""
    if future.done():
        return
    if error is None:
        future.set_result(None)
    else:
        future.set_exception(error)
