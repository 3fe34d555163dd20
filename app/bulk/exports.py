"""Exports at work: one at a time in each process, taken over by another where the process dies.

What an export shows is one moment, the commit horizon when its work begins: every write up to it is in, none after it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from pymongo.errors import PyMongoError

from app.bulk import export_authorization
from app.bulk.export_jobs import LEASE, Jobs, LostError
from app.bulk.export_request import ExportRequest, types_at
from app.bulk.work import Work
from app.bulk.writing import Writer
from app.context import Context, Services
from app.errors import FhirError
from app.fhir import definitions, json as fhir_json
from app.runtime import background_tasks
from app.runtime.clock import Clock
from app.runtime.mongo import Document, Mongo
from app.store.store import Store

log = logging.getLogger(__name__)

_POLL = 1.0
_CLEAR_EVERY = 60.0
_HORIZON_POLL = 0.05
# Failures in a row, without a piece written in between, after which an export is given up.
_MOST_TRIES = 5
_PAUSE_AFTER_FAILURE = timedelta(seconds=5)


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
        self._loops: list[asyncio.Task[None]] = []

    async def start(self, services: Services) -> None:
        self._services = services
        await self.jobs.prepare()
        self._clock.moved.append(self._to_clear.set)
        self._loops = [asyncio.create_task(self._run()), asyncio.create_task(self._clear())]

    async def stop(self) -> None:
        """Leave off; another process, or the next start, goes on."""
        await background_tasks.end(self._loops)

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
            row = await self.jobs.claim()
            if row is None:
                return False
            try:
                async with self._kept_alive(row):
                    await self._work(row)
            except LostError:
                log.info("export left", extra={"action": "export", "id": row["_id"]})
            except asyncio.CancelledError:
                await self.jobs.release(row)
                raise
            except Exception as error:
                await self._fail(row, error)
            return True

    async def _work(self, row: Document) -> None:
        services = self._services
        await export_authorization.check_now(services, row)
        context = Context(services, export_authorization.asked_by(row), row["base_url"])
        if row["place"] is None:
            await self._begin(context, row)
        await Work(context, row, Writer(self.jobs, row)).run()
        await self.jobs.settle(row, {"state": "done", "expires": self._clock.now() + self._kept})

    async def _begin(self, context: Context, row: Document) -> None:
        """Fix what the export shows: the moment, once all that was acknowledged before the kick-off is in it."""
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
        await self.jobs.settle(row, begun)
        row.update(begun)

    @asynccontextmanager
    async def _kept_alive(self, row: Document) -> AsyncIterator[None]:
        """Renew the lease; what is inside ends with LostError where that fails."""
        working = asyncio.current_task()
        lost = False

        async def renew() -> None:
            nonlocal lost
            while True:
                await asyncio.sleep(LEASE.total_seconds() / 5)
                try:
                    with contextlib.suppress(PyMongoError):
                        await self.jobs.renew(row)
                except LostError:
                    lost = True
                    if working is not None:
                        working.cancel()
                    return

        renewing = asyncio.create_task(renew())
        try:
            yield
        except asyncio.CancelledError:
            if not lost:
                raise
            if working is not None:
                working.uncancel()
            raise LostError from None
        finally:
            await background_tasks.end([renewing])

    async def _fail(self, row: Document, error: Exception) -> None:
        log.warning(
            "export failed",
            extra={"action": "export", "error": type(error).__name__},
            exc_info=True,
        )
        with contextlib.suppress(PyMongoError, LostError):
            if not isinstance(error, FhirError) and row["tries"] < _MOST_TRIES:
                await self.jobs.release(row, _PAUSE_AFTER_FAILURE)
                return
            told = error if isinstance(error, FhirError) else FhirError("The export failed")
            ended = {
                "state": "failed",
                "error": fhir_json.encode(told.outcome).decode(),
                "expires": self._clock.now() + self._kept,
            }
            await self.jobs.settle(row, ended)
            await self.jobs.discard(row["_id"])

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(PyMongoError):  # the next round tries again
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
            with contextlib.suppress(PyMongoError):
                await self.jobs.clear(self._clock.now())
