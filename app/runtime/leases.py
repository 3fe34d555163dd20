"""Leases on rows of work: one process at a time works on a row, and another goes on where that one dies or gives up.

    <queue>  {..., until?, owner?, attempt?, tries?}   under the names that each queue gives them, see `Fields`

- **Claim.** A row is free while `until` is missing or over. One find-and-update makes it this process's, and counts the
  attempt. The database compares the lease and writes it, both by its own clock: what a process takes the time to be
  decides nothing.
- **Guard.** `owner` and `attempt` guard whatever is written of the work. `attempt` never goes back, so a worker that
  outlived its lease changes nothing, whoever claimed the row since. In a row of an older server, or one that was born
  leased to the process that inserted it, both are missing; that is attempt 0 of nobody.
- **Heartbeat.** Leases of rows in hand are renewed when half their time is over, all of a process together. Work whose
  lease is lost is cancelled: it was claimed by another, withdrawn, or could not be renewed in time.
- **Retry.** `tries` counts the attempts in a row that came to nothing. The claim counts them, so one that killed its
  process counts as well. A failure puts the row off, longer each time; after the last one the row is a dead letter: its
  queue says where a person sees it, and it stays. What fails because the database is away counts as no try.
- **Release.** A process that stops in good order gives its rows back at once.

A worker that is paused just before a write of its own may still make that write after its lease was lost: work that is
not guarded by its row has to bear being done twice. Each queue tells in its module what its rows are.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import Context
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Generic, NamedTuple, TypeVar

from pymongo import ReturnDocument
from pymongo.errors import ConnectionFailure, PyMongoError

from app.errors import Unavailable
from app.runtime.mongo import Document, Mongo, Session, boot_seconds

log = logging.getLogger(__name__)

R = TypeVar("R", bound=Mapping[str, Any])

# How long a row waits whose work met a database that was away.
_DATABASE_AWAY = timedelta(seconds=5)
# How soon a renewal that failed is tried again, and how long one may take at least, as parts of a lease.
_AGAIN, _PATIENCE = 1 / 20, 1 / 4
# Work that has not ended when it lost its lease is cancelled again after so many seconds.
_CANCEL_AGAIN = 1.0
_ROWS_AT_ONCE = 1000
_TRANSIENT = ("TransientTransactionError", "RetryableWriteError")
# What a row is given up for whose tries never came to an end, instead of an error's name.
NO_END = "NoEnd"


class LostError(Exception):
    """The row is another process's by now, or was withdrawn."""


@dataclass(frozen=True, slots=True)
class BackOff:
    """When work that failed is tried again: after `first`, then twice as long each time up to `longest`.

    After `most` tries it is given up.
    """

    first: timedelta
    longest: timedelta
    most: int

    def pause(self, tries: int) -> timedelta | None:
        """How long to wait once so many tries have failed; None after the last."""
        if tries >= self.most:
            return None
        return min(self.first * 2.0 ** min(max(tries - 1, 0), 30), self.longest)


class Fields(NamedTuple):
    """Where a queue's rows keep the lease; dots lead into what is embedded."""

    until: str = "lease_until"
    owner: str = "owner"
    attempt: str = "attempt"
    tries: str = "tries"


@dataclass(eq=False, slots=True)
class Claim(Generic[R]):
    """A row in hand, as it was when it was claimed. `owner` and `attempt` guard what is written of it.

    `tries` counts this attempt. By `boot_seconds`: `until` is when the lease ends at the earliest; `look_at` is when it
    is to be renewed or, once it is lost, when to see whether the work has ended.
    """

    row: R
    owner: str | None
    attempt: int
    tries: int
    until: float = 0.0
    look_at: float = 0.0
    lost: bool = False
    # The task that works on it, and how often it was cancelled since the lease was lost.
    task: asyncio.Task[Any] | None = field(default=None, repr=False)
    cancelled: int = field(default=0, repr=False)

    @property
    def id(self) -> Any:
        return self.row["_id"]


class Leases(Generic[R]):
    """The leases on one queue's rows, as far as this process, `owner`, has to do with them."""

    def __init__(
        self,
        mongo: Mongo,
        collection: str,
        owner: str,
        *,
        lease: timedelta,
        back_off: BackOff,
        fields: Fields | None = None,
        is_open: Document | None = None,
        order: Sequence[tuple[str, int]] = (),
    ) -> None:
        """`is_open` finds the rows that are still to be worked on, `order` says which comes first."""
        self.owner = owner
        self._name = collection
        self._rows = mongo.collection(collection)
        self._lease = lease
        self._back_off = back_off
        self._fields = fields or Fields()
        self._open = is_open or {}
        self._order = list(order) or None
        self._free: Document = {"$expr": {"$lte": [f"${self._fields.until}", "$$NOW"]}}
        self._held: dict[Any, Claim[R]] = {}
        # Claims that were lost, while the work on them has not ended.
        self._ending: set[Claim[R]] = set()
        self._keeper: asyncio.Task[None] | None = None
        self._look = asyncio.Event()
        self._next_look = 0.0

    # Claiming

    async def claim(
        self, where: Document | None = None, changes: Document | None = None
    ) -> Claim[R] | None:
        """The first row that is free, now this process's; None where there is none.

        `where` narrows down which, `changes` are written with the claim, as expressions.
        """
        fields, asked = self._fields, boot_seconds()
        mine = {
            **(changes or {}),
            fields.until: _from_now(self._lease),
            fields.owner: {"$literal": self.owner},
            fields.attempt: {"$add": [_number(fields.attempt), 1]},
            fields.tries: {"$add": [_number(fields.tries), 1]},
        }
        row: R | None = await self._rows.find_one_and_update(
            {**self._open, **(where or {}), **self._free},
            [{"$set": mine}],
            sort=self._order,
            return_document=ReturnDocument.AFTER,
        )
        if row is None:
            return None
        attempt, tries = (_value(row, name) for name in (fields.attempt, fields.tries))
        claim = Claim(row, self.owner, attempt, tries)
        self._begun(claim, asked)
        return claim

    async def next_free(self) -> R | None:
        """The row that would be claimed next, as far as its lease goes."""
        row: R | None = await self._rows.find_one({**self._open, **self._free}, sort=self._order)
        return row

    def born(self, row: R, left: timedelta) -> Claim[R]:
        """The claim on a row that this process has inserted with a lease, of which so much is left."""
        now, seconds = boot_seconds(), left.total_seconds()
        return Claim(row, None, 0, 1, until=now + seconds, look_at=now + seconds / 2)

    def is_spent(self, claim: Claim[R]) -> bool:
        """Whether its tries were over before this one: their processes died of it, or never told of an end."""
        return claim.tries > self._back_off.most

    # In hand

    @asynccontextmanager
    async def kept(self, claim: Claim[R]) -> AsyncIterator[None]:
        """Keep the lease while work runs. Raises LostError where it is lost, which cancels the work.

        Work that is cancelled from outside gives its row back.
        """
        self.hold(claim)
        try:
            async with self.guarded(claim):
                yield
        except asyncio.CancelledError:
            with contextlib.suppress(PyMongoError):  # the lease then ends by itself
                await self.release(claim)
            raise
        finally:
            self.drop(claim)

    def hold(self, claim: Claim[R]) -> None:
        """Renew the lease from now on; an earlier claim on the same row is lost."""
        before = self._held.get(claim.id)
        if claim.lost or before is claim:
            return
        self._held[claim.id] = claim
        if before is not None:
            self._lose(before)
        if claim.look_at < self._next_look:
            self._look.set()
        if self._keeper is None or self._keeper.done():
            # In a context of its own: what is held is not what some request asks.
            self._keeper = asyncio.create_task(self._keep(), context=Context())

    def drop(self, claim: Claim[R]) -> None:
        """Renew the lease no more."""
        if self._held.get(claim.id) is claim:
            del self._held[claim.id]
            if not self._held:
                self._look.set()

    @asynccontextmanager
    async def guarded(self, claim: Claim[R]) -> AsyncIterator[None]:
        """Cancel what is inside where the lease that is held is lost. Raises LostError then, or where it was before."""
        task = asyncio.current_task()
        if claim.lost or task is None:
            raise LostError
        others = task.cancelling()
        claim.task = task
        try:
            yield
        except BaseException as error:
            is_ours = isinstance(error, Exception | asyncio.CancelledError)
            if not (self._left(claim, task, others) and is_ours):
                raise
            raise LostError from error
        if self._left(claim, task, others):
            raise LostError

    async def renew(self, claim: Claim[R]) -> bool:
        """Begin the lease anew; False where it has been lost."""
        return claim.id in await self._renewed([claim])

    # What comes of it

    async def progress(
        self, claim: Claim[R], changes: Document, session: Session | None = None
    ) -> bool:
        """Write down how far the work is, and renew the lease; False where it has been lost.

        From here on tries are counted anew; in a transaction the caller sets those of the claim once it has committed.
        """
        fields, asked = self._fields, boot_seconds()
        values: Document = {name: {"$literal": value} for name, value in changes.items()}
        values |= {fields.until: _from_now(self._lease), fields.tries: 0}
        written = await self._write(claim, [{"$set": values}], session=session)
        if written and session is None:
            claim.tries = 0
            self._begun(claim, asked)
        return written

    async def settle(
        self, claim: Claim[R], changes: Document | None = None, where: Document | None = None
    ) -> bool:
        """The work is over, whatever came of it; False, and nothing changed, where the lease has been lost."""
        self.drop(claim)
        update: Document = {"$unset": {self._fields.until: "", self._fields.owner: ""}}
        if changes:
            update["$set"] = changes
        return await self._write(claim, update, where)

    async def settle_many(self, claims: Sequence[Claim[R]]) -> int:
        """Settle claims together; those whose lease has been lost stay as they are. Returns how many had not."""
        for claim in claims:
            self.drop(claim)
        count = 0
        for _, held in self._together(claims):
            update = {"$unset": {self._fields.until: "", self._fields.owner: ""}}
            count += (await self._rows.update_many(held, update)).matched_count
        return count

    async def remove(self, claim: Claim[R], where: Document | None = None) -> bool:
        """The work is over and its row goes; False, and nothing changed, where the lease has been lost."""
        self.drop(claim)
        result = await self._rows.delete_one({**self._guard(claim), **(where or {})})
        return bool(result.deleted_count)

    async def release(
        self, claim: Claim[R], pause: timedelta = timedelta(), where: Document | None = None
    ) -> bool:
        """Give the row back as if it had not been claimed, free at once or after a pause; False where it was lost."""
        self.drop(claim)
        return await self._write(claim, self._given_back(pause), where)

    async def failed(
        self, claim: Claim[R], error: Exception, dead: Document, where: Document | None = None
    ) -> bool:
        """The work ended with an error: put it off, or, after the last try, give it up with `dead` in its row.

        False where the lease has been lost.
        """
        if self.is_last(claim, error):
            return await self.give_up(claim, type(error).__name__, dead, where)
        return await self.postpone(claim, error, where)

    def is_last(self, claim: Claim[R], error: Exception) -> bool:
        """Whether work that ended with this error is to be tried no more."""
        return not is_nobodys_fault(error) and self._back_off.pause(claim.tries) is None

    async def postpone(
        self, claim: Claim[R], error: Exception, where: Document | None = None
    ) -> bool:
        """Let the work be tried again, the later the more often it has failed; False where the lease was lost."""
        pause = self._back_off.pause(claim.tries)
        if pause is None or is_nobodys_fault(error):
            return await self.release(claim, _DATABASE_AWAY, where)
        self.drop(claim)
        fields = self._fields
        # A row that was born leased has not counted its first try.
        tries = {"$ifNull": [f"${fields.tries}", 1]}
        later = {fields.until: _from_now(pause), fields.owner: None, fields.tries: tries}
        return await self._write(claim, [{"$set": later}], where)

    async def give_up(
        self, claim: Claim[R], why: str, dead: Document, where: Document | None = None
    ) -> bool:
        """Settle as a dead letter: `dead` is how its queue shows that to a person. False where the lease was lost."""
        written = await self.settle(claim, dead, where)
        if written:
            told = {"action": self._name, "id": claim.id, "tries": claim.tries, "error": why}
            log.error("a row of %s was given up", self._name, extra=told)
        return written

    async def hand_back(self) -> None:
        """Release all that this process has in hand; for an orderly stop."""
        claims = list(self._held.values())
        for claim in claims:
            self.drop(claim)
        for _, held in self._together(claims):
            await self._rows.update_many(held, self._given_back(timedelta()))

    async def take_from(self, owner: str) -> None:
        """Let anybody claim at once what a process held that is gone."""
        await self._rows.update_many(
            {**self._open, self._fields.owner: owner}, [{"$set": {self._fields.until: "$$NOW"}}]
        )

    # How rows are found and written

    def _given_back(self, pause: timedelta) -> list[Document]:
        fields = self._fields
        tries = {"$max": [0, {"$subtract": [_number(fields.tries), 1]}]}
        free = {fields.until: _from_now(pause), fields.owner: None, fields.tries: tries}
        return [{"$set": free}]

    def _guard(self, claim: Claim[R]) -> Document:
        """Finds the row for as long as it is its owner's for this attempt; None finds what is missing, too."""
        attempt = claim.attempt or {"$in": [None, 0]}
        mine = {self._fields.owner: claim.owner, self._fields.attempt: attempt}
        return {"_id": claim.id, **self._open, **mine}

    def _together(
        self, claims: Iterable[Claim[R]]
    ) -> Iterator[tuple[Sequence[Claim[R]], Document]]:
        """Claims that one update finds, with what finds them: those of the same attempt."""
        groups: dict[tuple[str | None, int], list[Claim[R]]] = defaultdict(list)
        for claim in claims:
            groups[claim.owner, claim.attempt].append(claim)
        for group in groups.values():
            for begin in range(0, len(group), _ROWS_AT_ONCE):
                some = group[begin : begin + _ROWS_AT_ONCE]
                yield some, {**self._guard(some[0]), "_id": {"$in": [claim.id for claim in some]}}

    async def _write(
        self,
        claim: Claim[R],
        update: Document | list[Document],
        where: Document | None = None,
        session: Session | None = None,
    ) -> bool:
        held = {**self._guard(claim), **(where or {})}
        result = await self._rows.update_one(held, update, session=session)
        return bool(result.matched_count)

    async def _renewed(self, claims: Sequence[Claim[R]]) -> set[Any]:
        """Begin leases anew; the ids of the rows that are still held."""
        kept: set[Any] = set()
        for some, held in self._together(claims):
            asked = boot_seconds()
            longer = [{"$set": {self._fields.until: _from_now(self._lease)}}]
            result = await self._rows.update_many(held, longer)
            ids = {claim.id for claim in some}
            if result.matched_count != len(ids):
                ids = set(await self._rows.distinct("_id", held))
            kept |= ids
            for claim in some:
                if claim.id in ids:
                    self._begun(claim, asked)
        return kept

    def _begun(self, claim: Claim[R], asked: float) -> None:
        """A lease began at some time after `asked`."""
        seconds = self._lease.total_seconds()
        claim.until, claim.look_at = asked + seconds, asked + seconds / 2

    # The heartbeat

    async def _keep(self) -> None:
        """Renew what is held until nothing is."""
        while self._held or self._ending:
            self._look.clear()
            now = boot_seconds()
            if due := [claim for claim in self._held.values() if claim.look_at <= now]:
                await self._renew_due(due)
            # Again and again: a cancellation can get lost, see background_tasks.py.
            for claim in self._ending:
                if claim.task is not None and claim.look_at <= now:
                    claim.look_at = now + _CANCEL_AGAIN
                    claim.cancelled += 1
                    claim.task.cancel()
            if times := [claim.look_at for claim in (*self._held.values(), *self._ending)]:
                self._next_look = min(times)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(self._next_look - boot_seconds(), 0)):
                        await self._look.wait()

    async def _renew_due(self, due: Sequence[Claim[R]]) -> None:
        seconds = self._lease.total_seconds()
        # A process that has slept past the end of its lease asks once before it believes that.
        left = max(min(claim.until for claim in due) - boot_seconds(), seconds * _PATIENCE)
        try:
            async with asyncio.timeout(left):
                kept = await self._renewed(due)
        except Exception as error:  # whatever it was: without a renewal the lease ends
            if not isinstance(error, PyMongoError | TimeoutError):
                told = {"action": "renew", "collection": self._name, "error": type(error).__name__}
                log.exception("cannot renew leases", extra=told)
            now = boot_seconds()
            kept = {claim.id for claim in due if claim.until > now}
            for claim in due:
                claim.look_at = max(claim.look_at, now + seconds * _AGAIN)
        held = [claim for claim in due if self._held.get(claim.id) is claim]
        if lost := [claim for claim in held if claim.id not in kept]:
            gone = {"action": "renew", "collection": self._name, "count": len(lost)}
            log.warning("leases lost", extra=gone)
            for claim in lost:
                self._lose(claim)

    def _lose(self, claim: Claim[R]) -> None:
        self.drop(claim)
        claim.lost = True
        if claim.task is not None:
            claim.look_at = 0.0
            self._ending.add(claim)
            self._look.set()

    def _left(self, claim: Claim[R], task: asyncio.Task[Any], others: int) -> bool:
        """The work on a claim has ended: whether because its lease was lost, and for no other reason."""
        claim.task = None
        self._ending.discard(claim)
        if claim.lost:
            self._look.set()
        for _ in range(claim.cancelled):
            task.uncancel()
        claim.cancelled = 0
        return claim.lost and task.cancelling() <= others


def is_nobodys_fault(error: BaseException) -> bool:
    """Whether the database was away, or something else that the work needs and that comes back."""
    if isinstance(error, ConnectionFailure | Unavailable):
        return True
    return isinstance(error, PyMongoError) and any(map(error.has_error_label, _TRANSIENT))


def _from_now(span: timedelta) -> Document:
    """A time so far ahead on the database's clock, as an expression."""
    return {"$add": ["$$NOW", round(span.total_seconds() * 1000)]}


def _number(name: str) -> Document:
    return {"$ifNull": [f"${name}", 0]}


def _value(row: Mapping[str, Any], name: str) -> int:
    """What a row has at a path."""
    value: Any = row
    for step in name.split("."):
        value = value[step]
    return int(value)
