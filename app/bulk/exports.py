"""Exports at work: one at a time in each process, taken over by another where the process dies.

What an export shows is one moment, the commit horizon when its work begins: every write up to it is in, none after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import timedelta

from pymongo.errors import PyMongoError

from app.bulk import export_authorization
from app.bulk.export_jobs import Jobs
from app.bulk.export_request import ExportRequest, types_at
from app.bulk.work import Work
from app.bulk.writing import Writer
from app.consent import redisclosure
from app.context import Context, Services
from app.errors import FhirError
from app.fhir import definitions, json as fhir_json
from app.runtime.clock import Clock
from app.runtime.leases import Claim, LostError, is_nobodys_fault
from app.runtime.loops import LONG_PATIENCE, Loop, Loops
from app.runtime.mongo import Document, Mongo
from app.store.store import Store

log = logging.getLogger(__name__)

_POLL = 1.0
_CLEAR_EVERY = 60.0
_HORIZON_POLL = 0.05


class Exports:
    """One for each process; `start` it with the server."""

    def __init__(self, mongo: Mongo, store: Store, clock: Clock, hours: float) -> None:
        self._mongo = mongo
        self._clock = clock
        self._kept = timedelta(hours=hours)
        self.jobs = Jobs(mongo, store.owner)
        self._asked_for = asyncio.Event()
        self._to_clear = asyncio.Event()
        self._running = asyncio.Lock()
        # An export takes as long as it takes, and is kept by its lease.
        self.loops = Loops(
            Loop("exports", patience=LONG_PATIENCE, may_hang=True),
            Loop("exports-clear", patience=LONG_PATIENCE),
        )

    async def start(self, services: Services) -> None:
        self._services = services
        await self.jobs.prepare()
        self._clock.moved.append(self._to_clear.set)
        self.loops["exports"].start(self._run())
        self.loops["exports-clear"].start(self._clear())

    async def stop(self) -> None:
        """Leave off; another process, or the next start, goes on."""
        await self.loops.end()

    async def request(self, context: Context, asked: ExportRequest, request: str) -> str:
        """Ask for an export; returns its id. Raises TooManyRequests."""
        export_id = await self.jobs.request(context, asked, request)
        self._asked_for.set()
        return export_id

    async def find(self, context: Context, export_id: str) -> Document | None:
        """The caller's export, or None."""
        return await self.jobs.read(export_id, context.caller.client_id, self._clock.now())

    async def cancel(self, export_id: str) -> None:
        await self.jobs.cancel(export_id)
        self._to_clear.set()

    async def drain(self) -> None:
        """Return once no export waits for this process and what is to go has gone."""
        while await self.run_once():
            pass
        await self.jobs.clear(self._clock.now())

    async def run_once(self) -> bool:
        """Take the next export that nobody works on to its end; False where there is none."""
        async with self._running:
            claim = await self.jobs.claim()
            if claim is None:
                return False
            if self.jobs.leases.is_spent(claim):
                await self._give_up(claim, FhirError("The export failed"))
                return True
            try:
                async with self.jobs.leases.kept(claim):
                    await self._work(claim)
            except LostError:
                log.info("export left", extra={"action": "export", "id": claim.id})
            except Exception as error:
                await self._fail(claim, error)
            return True

    async def _work(self, claim: Claim[Document]) -> None:
        services, row = self._services, claim.row
        await export_authorization.check_now(services, row)
        context = Context(services, export_authorization.asked_by(row), row["base_url"])
        if row["place"] is None:
            await self._begin(context, claim)
        with redisclosure.collecting():
            await Work(context, row, Writer(self.jobs, claim)).run()
        done = {"state": "done", "expires": self._clock.now() + self._kept}
        if not await self.jobs.leases.settle(claim, done):
            raise LostError

    async def _begin(self, context: Context, claim: Claim[Document]) -> None:
        """Fix what the export shows: the moment, once all that was acknowledged before the kick-off is in it."""
        row = claim.row
        asked = ExportRequest.of(row["asked"])
        at = await context.store.horizon()
        while at < row["requested"]:
            await asyncio.sleep(_HORIZON_POLL)
            at = await context.store.horizon()
        stored = set(await context.store.types())
        types = [
            each
            for each in definitions.SUPPORTED_TYPES
            if each in stored and each in (asked.types or types_at(asked.level))
        ]
        begun = {"at": at, "types": types, "place": ["output", 0, 0, ""]}
        if not await self.jobs.leases.progress(claim, begun):
            raise LostError
        row.update(begun)

    async def _fail(self, claim: Claim[Document], error: Exception) -> None:
        log.warning(
            "export failed",
            extra={"action": "export", "error": type(error).__name__},
            exc_info=True,
        )
        refused = isinstance(error, FhirError) and not is_nobodys_fault(error)
        with contextlib.suppress(PyMongoError):  # the lease then ends by itself
            if not refused and not self.jobs.leases.is_last(claim, error):
                await self.jobs.leases.postpone(claim, error)
                return
            told = error if isinstance(error, FhirError) else FhirError("The export failed")
            await self._give_up(claim, told)

    async def _give_up(self, claim: Claim[Document], told: FhirError) -> None:
        """The client sees that it failed, and why."""
        failed = {
            "state": "failed",
            "error": fhir_json.encode(told.outcome).decode(),
            "expires": self._clock.now() + self._kept,
        }
        if await self.jobs.leases.give_up(claim, type(told).__name__, failed):
            await self.jobs.discard(claim.id)

    async def _run(self) -> None:
        while True:
            # After a failure the next round tries again.
            with contextlib.suppress(PyMongoError), self.loops["exports"].step():
                while await self.run_once():
                    pass
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._asked_for.wait(), _POLL)
            self._asked_for.clear()

    async def _clear(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._to_clear.wait(), _CLEAR_EVERY)
            self._to_clear.clear()
            with contextlib.suppress(PyMongoError), self.loops["exports-clear"].step():
                await self.jobs.clear(self._clock.now())
