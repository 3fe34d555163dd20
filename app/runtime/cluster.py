"""The server processes that share a database: who is a member, who is silent, and what can still commit.

    processes  {_id: owner, seen, horizon, parameters, format, reserved?, refused?, taken_over?}

Each process writes one row, its own, twice a second (a heartbeat). Two kinds of silence follow from it:

- After `TAKE_OVER_AFTER` what the process held (claims, leases, connections) is taken over by another, which marks the
  row and leaves it where it is. The process may only be slow: what it held may then be sent twice, never lost, and its
  late settlements change nothing. Its next heartbeat takes the mark away.
- `Cluster.silence` after the mark the process cannot commit any more, and its row goes.

With every heartbeat a process also asks whether it may go on (`why_not`, app/store/format.py). One that may not writes
no resource any more, and says `refused` as soon as nothing of it can commit.

What a silent process has left open in the database is ended with the take-over (app/runtime/transactions.py), or what
it has locked would stay so for a minute. `reserved` is what others' writes wait for (app/runtime/reservations.py).

**The commit horizon.** A resource's time of change is set before its commit, so writes become visible out of their
order in time. Who polls with `_lastUpdated=gt<the last time seen>` would miss one that commits late. Answers to such
questions therefore reach only up to the commit horizon: the earliest write under way in any process, or now. A process
knows its own writes exactly. Of the others it knows what they last said of themselves: all their later writes carry a
later time. That holds for a process that has stalled too: `check_may_commit` lets a transaction neither begin nor end
with a time, or after a heartbeat, that is older than `_OLDEST`; MongoDB aborts one that has begun after
transactionLifetimeLimitSeconds; the silence is the sum of both, with room (docs/decisions/0012-one-row-a-process.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict

from pymongo import ReturnDocument
from pymongo.errors import OperationFailure, PyMongoError

from app.errors import Unavailable
from app.runtime import transactions
from app.runtime.loops import Loop, Loops
from app.runtime.mongo import Document, Mongo, boot_seconds
from app.runtime.reservations import Reservation, Reservations

COLLECTION = "processes"
HEARTBEAT_EVERY = 0.5
TAKE_OVER_AFTER = timedelta(seconds=5)
# After a gap in our own heartbeats (a pause, a database that was away) others get this long to be heard of again.
_GRACE = 2 * TAKE_OVER_AFTER.total_seconds()
# How old a write's time and this process's last heartbeat may be when its transaction begins and when it ends.
_OLDEST = timedelta(seconds=20)
# MongoDB's default for transactionLifetimeLimitSeconds, for a server that does not say what it has.
_TRANSACTION_LIFETIME = 60
# MongoDB looks for transactions past their lifetime every half of it, at the latest after so many seconds.
_LONGEST_LOOK = 60
_ROOM = 10
# How far apart two processes may take the database's clock to be: each is off by less than half of the time that an
# answer takes, and keeps an estimate that is off by 0.1 s more (app/runtime/mongo.py).
_CLOCK_ERROR = 1.0
_MILLISECOND = timedelta(milliseconds=1)

# Frees what a silent process held. Gets its name and the time of the database's clock.
TakeOver = Callable[[str, datetime], Awaitable[None]]
WhyNot = Callable[[], Awaitable[str | None]]

log = logging.getLogger(__name__)

_TAKE_OVER_AFTER_MS = int(TAKE_OVER_AFTER.total_seconds() * 1000)
# Not renewed for long, or, after the database's clock was put back, not renewed since.
_SILENT: Document = {
    "taken_over": {"$exists": False},
    "$expr": {
        "$gt": [{"$abs": {"$subtract": ["$seen", "$$NOW"]}}, _TAKE_OVER_AFTER_MS],
    },
}


def new_owner() -> str:
    """A name for this process that no other has, now or later."""
    return f"{os.getpid()}-{uuid.uuid4().hex[:8]}"


class Member(TypedDict, total=False):
    """A row of `processes`. `format` is what the process writes; none of servers from before there was a format.

    `taken_over` is when another process freed what this one held, until it is heard again.
    """

    _id: str
    seen: datetime
    horizon: datetime
    parameters: str
    format: int
    reserved: list[Document]
    refused: bool
    taken_over: datetime


class Cluster:
    """This process among the others. `pending` gives the times of the writes under way here.

    `format_` is what it writes (app/store/format.py), and `why_not` says why it may not go on, None where it may.
    """

    def __init__(
        self,
        mongo: Mongo,
        owner: str,
        pending: Callable[[], Iterable[datetime]],
        clock: Callable[[], float] = boot_seconds,
        *,
        format_: int = 0,
        why_not: WhyNot | None = None,
    ) -> None:
        self._mongo = mongo
        self.owner = owner
        self._pending = pending
        self._clock = clock
        self._format = format_
        self._why_not = why_not
        self._rows = mongo.collection(COLLECTION)
        self._promised = datetime.min.replace(tzinfo=UTC)
        self.loops = Loops(Loop("heartbeat"))
        self._last_heartbeat: float | None = None
        self._patient_until = 0.0
        self.reservations = Reservations()
        # After so long without a heartbeat nothing that the process began can still commit.
        self.silence = _silence(_TRANSACTION_LIFETIME)
        # What this process extracts (a digest of its search parameters), said to the others with every heartbeat.
        self.parameters = ""
        # Whether no other process is about, and the oldest format of those that are, as far as could be seen a moment
        # ago. One that joins sees the others before it writes, and gives them the time to see it.
        self.alone = False
        self.oldest_format = format_
        # Why this process may not go on; then it writes no resource any more.
        self.refusal: str | None = None
        self.refused = asyncio.Event()

    async def start(self) -> None:
        """Join the cluster and keep the heartbeat going; before the first write."""
        self.silence = await silence(self._mongo)
        await self.beat()
        if await self._others():
            # They have given horizons by their own estimate of the database's clock: begin later than all of these.
            await asyncio.sleep(_CLOCK_ERROR)
        self.loops["heartbeat"].start(self._run())

    async def stop(self) -> None:
        """Leave. The row goes at once, or ages where something of this process may still commit."""
        await self.loops.end()
        if not self._is_writing:
            with contextlib.suppress(PyMongoError):
                await self._rows.delete_one({"_id": self.owner})

    async def beat(self) -> None:
        """Renew this process's row, and look who else is there."""
        begun = self._clock()
        row: Document = {
            "seen": "$$NOW",
            "horizon": self._own_horizon(),
            "parameters": self.parameters,
            "format": self._format,
            "refused": self.refusal is not None and not self._is_writing,
            "reserved": {"$literal": self.reservations.rows()},
        }
        asked = boot_seconds()
        written: Document = await self._rows.find_one_and_update(
            {"_id": self.owner},
            [{"$set": row}, {"$unset": "taken_over"}],
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        self._mongo.read_clock(written["seen"], asked)
        last = self._last_heartbeat
        if last is not None and begun - last > TAKE_OVER_AFTER.total_seconds():
            self._patient_until = begun + _GRACE
        self._last_heartbeat = begun
        others = await self._others()
        heard = [row for row in others if "taken_over" not in row]
        self.alone = not heard
        self.reservations.read(heard)
        self.oldest_format = min(
            [self._format, *(row.get("format", 0) for row in others if not row.get("refused"))]
        )
        # After the row is there: who raises what a process must have sees this one, or this one sees that.
        if self.refusal is None and self._why_not is not None:
            self.refusal = await self._why_not()
            if self.refusal is not None:
                self.refused.set()

    @contextlib.asynccontextmanager
    async def reserving(self, keys: Collection[str]) -> AsyncIterator[None]:
        """What this task writes of these keys comes first; once the other processes know."""
        within_limit = self.reservations.within_limit(keys)
        reservation = Reservation(self._mongo.now(), self.owner, within_limit)
        with self.reservations.holding(reservation):
            await self.beat()
            if not self.alone:
                await asyncio.sleep(2 * HEARTBEAT_EVERY)
            yield

    async def take_over_silent(self, take_over: TakeOver) -> list[str]:
        """Take over, once, what silent processes held; returns their names.

        Their rows stay, marked, until nothing of theirs can commit any more.
        """
        if self._last_heartbeat is None or self._clock() < self._patient_until:
            return []
        found = self._rows.find({"_id": {"$ne": self.owner}, **_SILENT})
        silent = [row["_id"] for row in await found.to_list(None)]
        for owner in silent:
            await transactions.end_those_of(self._mongo, owner)
            await take_over(owner, self._mongo.now())
            # Only while it is still silent: a process that is heard again may be silent another time.
            mark = [{"$set": {"taken_over": "$$NOW"}}]
            await self._rows.update_one({"_id": owner, **_SILENT}, mark)
        await self._rows.delete_many({"taken_over": {"$exists": True}, **self._expired("$lte")})
        return silent

    async def be_heard(self) -> None:
        """Return once the others know of this process again, should it have stalled. Before a write gets its time."""
        unheard = self.unheard
        if unheard > TAKE_OVER_AFTER:
            await self.beat()
        if unheard > self.silence:
            await asyncio.sleep(_CLOCK_ERROR)

    def stamp(self) -> datetime:
        """The time for a write that begins now: later than every horizon this process has given."""
        return max(self._mongo.now(), self._promised + _MILLISECOND)

    async def horizon(self) -> datetime:
        """Every write with a time up to this one has committed or never will."""
        # Ours first: a process that joins after the others were read begins with a later time than ours.
        own = self._own_horizon()
        others: list[datetime] = [row["horizon"] for row in await self._others()]
        return min([own, *others])

    async def agree_on(self, parameters: str) -> bool:
        """Whether every process that may still write extracts these parameters."""
        return all(row["parameters"] == parameters for row in await self._others())

    def check_may_commit(self, times: Iterable[datetime]) -> None:
        """Raises Unavailable where a transaction comes too late for others to wait for it, or may not be any more.

        Call it as the transaction begins, and again before it ends: the process may stall in between.
        """
        if self.refusal is not None:
            raise Unavailable(self.refusal)
        if self._mongo.now() - min(times) > _OLDEST or self.unheard > _OLDEST:
            raise Unavailable("The write could not be committed in time; try again")

    @property
    def _is_writing(self) -> bool:
        return any(True for _ in self._pending())

    @property
    def unheard(self) -> timedelta:
        """The time since this process's last heartbeat; none for one that has not joined."""
        if not self.loops["heartbeat"].is_started or self._last_heartbeat is None:
            return timedelta()
        return timedelta(seconds=self._clock() - self._last_heartbeat)

    def _own_horizon(self) -> datetime:
        horizon = min([self._mongo.now(), *(at - _MILLISECOND for at in self._pending())])
        self._promised = max(self._promised, horizon)
        return horizon

    async def _others(self) -> list[Document]:
        """The rows of other processes that may still commit."""
        may_commit = {"$or": [{"taken_over": {"$exists": False}}, self._expired("$gt")]}
        rows = self._rows.find({"_id": {"$ne": self.owner}, **may_commit})
        found: list[Document] = await rows.to_list(None)
        return found

    def _expired(self, comparison: str) -> Document:
        """The filter for rows whose mark is older (`$lte`) or younger (`$gt`) than the silence.

        The mark and not the last heartbeat: should the database's clock be put forward, every row looks old for a
        moment, and its process is about to renew it.
        """
        silence = int(self.silence.total_seconds() * 1000)
        return {"$expr": {comparison: ["$taken_over", {"$subtract": ["$$NOW", silence]}]}}

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(HEARTBEAT_EVERY)
            with contextlib.suppress(PyMongoError), self.loops["heartbeat"].step():
                await self.beat()  # after a failure the next one tries again


def _silence(transaction_lifetime: int) -> timedelta:
    look = min(transaction_lifetime / 2, _LONGEST_LOOK)
    return _OLDEST + timedelta(seconds=transaction_lifetime + look + _ROOM)


async def silence(mongo: Mongo) -> timedelta:
    """The time without a heartbeat after which nothing that a process began can still commit.

    The database is asked how long it lets a transaction live; an operator may have raised its limit.
    """
    name = "transactionLifetimeLimitSeconds"
    try:
        reply: Any = await mongo.client.admin.command("getParameter", 1, **{name: 1})
    except OperationFailure as error:  # not every account may ask
        log.info(
            "transaction lifetime unknown",
            extra={"action": "cluster", "assumed": _TRANSACTION_LIFETIME, "code": error.code},
        )
        return _silence(_TRANSACTION_LIFETIME)
    return _silence(int(reply[name]))


async def writers_before(mongo: Mongo, format_: int, silent: timedelta) -> list[str]:
    """The names of processes of an older format that may still write; those that were `silent` for so long may not."""
    since = {"$subtract": ["$$NOW", int(silent.total_seconds() * 1000)]}
    rows = mongo.collection(COLLECTION).find(
        {
            "format": {"$not": {"$gte": format_}},  # or none at all
            "refused": {"$ne": True},
            "$expr": {"$gt": ["$seen", since]},
        }
    )
    return [row["_id"] for row in await rows.to_list(None)]
