"""What is to happen later: rows with a time, taken by any process when it has come, at least once.

    timers   {_id: "<kind>|<key>", kind, key, due, data, setting, tries,
              taken_until?, owner?, attempt?, cancelled?, failed?}

`due` is by the calendar (app/runtime/clock.py); the lease, `taken_until`, is by the database's
(app/runtime/leases.py). `setting` names what was set: what is set anew or cancelled while a timer rings waits until it
has rung, and then stays or goes. After the last try the row stays with `failed`, {at, error, asked?}, a dead letter
(app/runtime/dead_letters.py), and rings no more before it is set anew or a person lets it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypedDict

from pymongo import ASCENDING, IndexModel
from pymongo.errors import PyMongoError

from app.context import Context
from app.runtime import collections
from app.runtime.clock import Clock
from app.runtime.dead_letters import DeadLetter
from app.runtime.leases import NO_END, BackOff, Claim, Fields, Leases, LostError, is_nobodys_fault
from app.runtime.loops import LONG_PATIENCE, Loop, Loops
from app.runtime.mongo import Document, Mongo
from app.settings import Settings

log = logging.getLogger(__name__)

COLLECTION = "timers"
SWEEP_SECONDS = 5.0
LEASE = timedelta(seconds=60)
# By so much what a process takes the time to be may go back by itself.
_JITTER = timedelta(seconds=2)
# For about a day.
BACK_OFF = BackOff(timedelta(seconds=2), timedelta(minutes=15), most=100)

# Somebody has it in hand: rows that are put off have no owner.
_RINGS: Document = {"$and": [{"$gt": ["$owner", None]}, {"$gt": ["$taken_until", "$$NOW"]}]}

# Neither given up nor cancelled.
_STILL_ON: list[Document] = [
    {"$lte": ["$failed", None]},
    {"$lte": ["$cancelled", None]},
]
_DEAD: Document = {"failed.at": {"$exists": True}}

Run = Callable[[Context, str, Mapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Timer:
    """A kind of timer. `run` gets its key and data, and may be called again for the same.

    The key is the patient (`Patient/p1`) whom it is about, and the context of `run` is about nobody else; with
    `is_about_many` the key is something else, and that context is the server's own, without limits.
    `is_loop`: it sets itself anew for as long as there are servers, so that how it goes is told as of any loop.
    `what` happens then, for people; nothing where it only looks again and again. `of` is the type whose ids keys are.
    `at_most` says how long it is set for at most: one that is to wait for longer was set while the clock was ahead.
    `rung_already` are the keys of those that have rung and show it, so that they are asked again where the clock was
    put back.
    """

    kind: str
    run: Run
    is_loop: bool = False
    is_about_many: bool = False
    what: str = ""
    of: str = ""
    at_most: Callable[[Settings], timedelta] | None = None
    rung_already: Callable[[Context], Awaitable[Sequence[str]]] | None = None


class DueTimer(NamedTuple):
    """A timer that will ring: when, what happens then, and about whom or what."""

    at: datetime
    what: str
    kind: str
    key: str


class Row(TypedDict, total=False):
    """A row of `timers`. One that an older server has set has no `setting`."""

    _id: str
    kind: str
    key: str
    due: datetime
    data: dict[str, Any]
    setting: str
    tries: int
    taken_until: datetime
    owner: str | None
    attempt: int
    cancelled: bool
    failed: Document


class Timers:
    """The collection `timers` and the loop over it. `owner` names this process."""

    name = COLLECTION

    def __init__(
        self,
        mongo: Mongo,
        clock: Clock,
        kinds: Sequence[Timer],
        owner: str,
        *,
        lease: timedelta = LEASE,
        back_off: BackOff = BACK_OFF,
    ) -> None:
        self._mongo = mongo
        self._clock = clock
        self._kinds = {timer.kind: timer for timer in kinds}
        self._timers = mongo.collection(COLLECTION)
        self._leases = Leases[Row](
            mongo,
            COLLECTION,
            owner,
            lease=lease,
            back_off=back_off,
            fields=Fields(until="taken_until"),
            is_open={"failed": None, "kind": {"$in": list(self._kinds)}},
            order=[("due", ASCENDING)],
        )
        # What time it was at the last look; None before the first.
        self._latest: datetime | None = None
        self._changed = asyncio.Event()
        self._running = asyncio.Lock()
        self.loops = Loops(
            Loop("timers", patience=LONG_PATIENCE),
            *(Loop(kind.kind, patience=LONG_PATIENCE) for kind in kinds if kind.is_loop),
        )

    async def start(self, context: Context) -> None:
        due = IndexModel([("due", ASCENDING)], name="due")
        failed = IndexModel(
            [("failed.at", ASCENDING)],
            name="failed",
            partialFilterExpression={"failed.at": {"$exists": True}},
        )
        await collections.ensure(self._mongo, COLLECTION, [due, failed])
        self._clock.moved.append(self._changed.set)
        self.loops["timers"].start(self._loop(context))

    async def stop(self) -> None:
        """Leave off; another process, or the next start, rings what was ringing."""
        await self.loops.end()

    async def set(
        self, kind: str, key: str, due: datetime, data: Mapping[str, Any] | None = None
    ) -> None:
        """Let something happen at `due`, which takes the place of what was set for the same key."""
        await self._timers.update_one(
            {"_id": f"{kind}|{key}"},
            [
                {"$set": self._row(kind, key, due, data or {})},
                {"$unset": ["claim", "cancelled", "failed"]},
            ],
            upsert=True,
        )
        self._changed.set()

    def _row(self, kind: str, key: str, due: datetime, data: Mapping[str, Any]) -> Document:
        """The fields of a timer that is set, as expressions."""
        return {
            "kind": {"$literal": kind},
            "key": {"$literal": key},
            "due": due,
            "data": {"$literal": dict(data)},
            "setting": uuid.uuid4().hex,
            "tries": 0,
            # While it rings the lease stays, so that it does not ring twice at once. A pause between two tries goes.
            "taken_until": {"$cond": [_RINGS, "$taken_until", "$$REMOVE"]},
            "owner": {"$cond": [_RINGS, "$owner", "$$REMOVE"]},
        }

    async def set_unless_waiting(self, kind: str, key: str, due: datetime) -> None:
        """Let something happen at `due`, unless it is set already and has not begun.

        What has been committed before this call is then seen by what will happen: the database says whether it has
        begun, whatever the processes take the time to be.
        """
        waiting = {"$and": [{"$gt": ["$due", None]}, {"$not": [_RINGS]}, *_STILL_ON]}
        row = self._row(kind, key, due, {})
        kept = {name: {"$cond": [waiting, f"${name}", value]} for name, value in row.items()}
        gone = {"cancelled": "$$REMOVE", "failed": "$$REMOVE"}
        await self._timers.update_one(
            {"_id": f"{kind}|{key}"}, [{"$set": kept | gone}], upsert=True
        )
        self._changed.set()

    async def cancel(self, kind: str, key: str) -> None:
        """Let it not happen; what rings already rings to its end, but not again."""
        id_ = f"{kind}|{key}"
        gone = await self._timers.delete_one({"_id": id_, "$expr": {"$not": [_RINGS]}})
        if not gone.deleted_count:
            await self._timers.update_one({"_id": id_}, {"$set": {"cancelled": True}})

    async def due_of(self, kind: str, key: str) -> datetime | None:
        """When it will happen; None where nothing is set, or where it was given up."""
        will = {"_id": f"{kind}|{key}", "failed": None, "cancelled": None}
        row = await self._timers.find_one(will, {"due": 1})
        return None if row is None else row["due"]

    async def set_among(self, kind: str, keys: Collection[str]) -> frozenset[str]:
        """The keys for which something of a kind will happen."""
        ids = [f"{kind}|{key}" for key in keys]
        will = {"_id": {"$in": ids}, "failed": None, "cancelled": None}
        rows = await self._timers.find(will, {"key": 1}).to_list(None)
        return frozenset(row["key"] for row in rows)

    async def dead(self, limit: int, *, unasked: bool = False) -> list[DeadLetter]:
        """Those that were given up."""
        which = _DEAD | ({"failed.asked": None} if unasked else {})
        rows = await self._timers.find(which).sort("failed.at").limit(limit).to_list(None)
        return [
            DeadLetter(self.name, row["_id"], row["kind"], failed["error"], failed["at"])
            for row in rows
            if (failed := row["failed"])
        ]

    async def asked(self, letter: DeadLetter) -> None:
        await self._timers.update_one({"_id": letter.id, **_DEAD}, {"$set": {"failed.asked": True}})

    async def is_done(self, row_id: str) -> bool:
        row = await self._timers.find_one({"_id": row_id})
        if row is None:
            return True
        return "failed" not in row and not row.get("tries") and row["due"] > self._clock.now()

    async def run_again(self, row_id: str | None = None) -> int:
        """Ring what was given up, one or all, with all its tries anew."""
        which = _DEAD | ({"_id": row_id} if row_id is not None else {})
        anew: Document = {
            "$set": {"tries": 0},
            "$unset": {"failed": "", "taken_until": "", "owner": ""},
        }
        found = await self._timers.update_many(which, anew)
        self._changed.set()
        return int(found.modified_count)

    async def run_due(self, context: Context) -> int:
        """Run all whose time has come, one after another; returns how many."""
        async with self._running:
            await self._follow_clock(context)
            count = 0
            while await self._run_next(context):
                count += 1
            return count

    async def due_until(self, until: datetime, limit: int) -> tuple[list[DueTimer], int]:
        """What would happen until then: the first of it, and how much there is; without what looks again and again."""
        kinds = [kind for kind, timer in self._kinds.items() if timer.what]
        which = {"due": {"$lte": until}, "kind": {"$in": kinds}, "failed": None, "cancelled": None}
        rows = await self._timers.find(which).sort("due", ASCENDING).limit(limit).to_list(None)
        found = [
            DueTimer(
                row["due"],
                kind.what,
                kind.kind,
                f"{kind.of}/{row['key']}" if kind.of else row["key"],
            )
            for row in rows
            for kind in (self._kinds[row["kind"]],)
        ]
        count = len(found) if len(found) < limit else await self._timers.count_documents(which)
        return found, int(count)

    async def _follow_clock(self, context: Context) -> None:
        """Let nothing wait for a time that was near only while the clock was ahead, and nothing be late by it."""
        now, latest = self._clock.now(), self._latest
        if latest is None or now < latest - _JITTER:
            for kind in self._kinds.values():
                if kind.at_most is not None:
                    await self._bring_near(kind.kind, now + kind.at_most(context.settings))
                if kind.rung_already is not None and latest is not None:
                    for key in await kind.rung_already(context):
                        await self.set(kind.kind, key, now)
        self._latest = now

    async def _bring_near(self, kind: str, limit: datetime) -> None:
        far = {"_id": {"$regex": f"^{re.escape(kind)}\\|"}, "due": {"$gt": limit}, "failed": None}
        await self._timers.update_many(far, {"$set": {"due": limit}})

    async def _run_next(self, context: Context) -> bool:
        """Run the next whose time has come; False where there is none."""
        with self.loops["timers"].step():
            claim = await self._claim()
            if claim is not None:
                await self._run(context, claim)
            return claim is not None

    async def _claim(self) -> Claim[Row] | None:
        # An older server, which guards by `claim`, has lost what it took before.
        return await self._leases.claim({"due": {"$lte": self._clock.now()}}, {"claim": "$$REMOVE"})

    async def _run(self, context: Context, claim: Claim[Row]) -> None:
        row = claim.row
        unchanged = {"setting": row.get("setting")}
        if row.get("cancelled"):  # while it rang in a process that is gone
            await self._leases.remove(claim)
            return
        if not await self._ring(context, claim, unchanged):  # it was set anew meanwhile
            await self._leases.release(claim)

    async def _ring(self, context: Context, claim: Claim[Row], unchanged: Document) -> bool:
        """Run one, and write down what came of it; False where that is no more what the row is about."""
        row = claim.row
        if self._leases.is_spent(claim):
            return await self._leases.give_up(claim, NO_END, self._failed(NO_END), unchanged)
        try:
            async with self._leases.kept(claim):
                await self._call(context, self._kinds[row["kind"]], row)
        except LostError:
            log.warning("timer left", extra={"action": row["kind"], "id": row["_id"]})
            return False
        except Exception as error:
            name = type(error).__name__
            tell = log.warning if is_nobodys_fault(error) else log.exception
            tell("timer failed", extra={"action": row["kind"], "error": name})
            return await self._leases.failed(claim, error, self._failed(name), unchanged)
        return await self._leases.remove(claim, {"$or": [unchanged, {"cancelled": True}]})

    async def _call(self, context: Context, kind: Timer, row: Row) -> None:
        own = context if kind.is_about_many else context.about([row["key"]])
        with self.loops[kind.kind].step() if kind.is_loop else nullcontext():
            await kind.run(own, row["key"], row["data"])

    def _failed(self, error: str) -> Document:
        return {"failed": {"at": self._mongo.now(), "error": error}}

    async def _loop(self, context: Context) -> None:
        while True:
            pause = SWEEP_SECONDS
            try:
                await self.run_due(context)
                pause = min(pause, await self._seconds_to_next())
            except PyMongoError as error:
                log.warning("timers", extra={"action": "run", "error": type(error).__name__})
            try:
                async with asyncio.timeout(pause):
                    await self._changed.wait()
            except TimeoutError:
                continue
            self._changed.clear()

    async def _seconds_to_next(self) -> float:
        """Until the next that nobody has taken or put off, of the kinds that this process knows."""
        row = await self._leases.next_free()
        if row is None:
            return SWEEP_SECONDS
        return max(0.0, (row["due"] - self._clock.now()).total_seconds())
