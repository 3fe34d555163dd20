"""Whether this process does what it is there for: take in what is written, match it, and send notices.

    database     the process's heartbeat is acknowledged by a majority: a write, every half a second
    commits      resources are committed, where anybody wants to
    format       the database is one for this server
    loops        each loop's last steps went well
    events       what was committed here has been matched
    deliveries   what is due is begun

Each is judged by what this process itself achieves, so that one that stands still is taken out of service and its
neighbours are not; and by progress, so that one odd record, one endpoint that fails and one long transaction count
for nothing (docs/decisions/0022-metrics-and-readiness.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any

from app.api.measured import Kept
from app.fhir.instants import instant
from app.runtime.cluster import TAKE_OVER_AFTER
from app.runtime.loops import Loop
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store.store import Store
from app.subscriptions.ledger import open_rows
from app.subscriptions.sending.worker import Worker

# A write that is older cannot be committed any more (app/runtime/cluster.py).
_COMMITS_STALLED = 20.0
# How long what the database says of events and deliveries is kept at least.
_KEPT = 1.0

OK = "ok"
# `ok`, or the reason and since when; of the loops by their names.
Said = str | dict[str, Any]


class Readiness:
    """The checks of one process."""

    def __init__(
        self,
        settings: Settings,
        mongo: Mongo,
        store: Store,
        worker: Worker,
        loops: Callable[[], Iterable[Loop]],
    ) -> None:
        self._mongo = mongo
        self._store = store
        self._worker = worker
        self._loops = loops
        self._event_age = timedelta(seconds=settings.ready_event_age)
        self._delivery_age = timedelta(seconds=settings.ready_delivery_age)
        self._stuck = Kept(self._ask_stuck, seconds=_KEPT)
        self._overdue = Kept(self._ask_overdue, seconds=_KEPT)

    async def verdict(self) -> tuple[bool, dict[str, Said]]:
        """Whether all is well, and what each check says."""
        checks: dict[str, Said] = {
            "database": self._database(),
            "commits": self._commits(),
            "format": self._format(),
            "loops": self._troubles() or OK,
        }
        if checks["database"] == OK:
            stuck, overdue = await asyncio.gather(self._stuck.get(), self._overdue.get())
            checks["events"] = _judged(stuck, "not matched")
            checks["deliveries"] = _judged(overdue, "due and not begun")
        else:  # there is nothing to be asked
            checks["events"] = checks["deliveries"] = _UNKNOWN
        return all(said == OK for said in checks.values()), checks

    def _database(self) -> Said:
        cluster = self._store.cluster
        failing = cluster.loops["heartbeat"].failing
        if not failing and cluster.unheard <= TAKE_OVER_AFTER:
            return OK
        seconds = max(cluster.unheard.total_seconds(), failing)
        return self._since(seconds, "no write is acknowledged")

    def _commits(self) -> Said:
        stalled = self._store.commit_watch.stalled
        return OK if stalled <= _COMMITS_STALLED else self._since(stalled, "none gets through")

    def _format(self) -> Said:
        refusal = self._store.cluster.refusal
        return OK if refusal is None else {"reason": refusal}

    def _troubles(self) -> dict[str, Said]:
        found: dict[str, Said] = {
            loop.name: self._since(trouble.seconds, trouble.why)
            for loop in self._loops()
            if (trouble := loop.trouble()) is not None
        }
        if not (found or self._worker.running):
            found["worker"] = {"reason": "not started"}
        return found

    async def _ask_stuck(self) -> list[datetime]:
        before = self._mongo.now() - self._event_age
        found = await open_rows.stuck_since(self._mongo, self._store.owner, before)
        standstill = self._worker.standstill
        if standstill is not None and standstill <= before:
            found = standstill if found is None else min(found, standstill)
        return [] if found is None else [found]

    async def _ask_overdue(self) -> list[datetime]:
        found = await self._worker.ledger.oldest_due(self._mongo.now() - self._delivery_age)
        return [] if found is None else [found]

    def _since(self, seconds: float, reason: str) -> dict[str, str]:
        return {
            "reason": reason,
            "since": instant(self._mongo.now() - timedelta(seconds=seconds)),
        }


_UNKNOWN: Said = {"reason": "the database does not answer"}


def _judged(found: list[datetime] | None, reason: str) -> Said:
    """`found`: since when something has been waiting for too long, empty where nothing has, None without an answer."""
    if found is None:
        return _UNKNOWN
    return {"reason": reason, "since": instant(found[0])} if found else OK
