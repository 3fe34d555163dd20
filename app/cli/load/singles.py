"""Resources that go one by one: single ones, NDJSON, and what was unpacked from a Bundle that is no request."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

from app.cli.load.files import Document
from app.cli.load.ids import Source
from app.cli.load.outcome import LoadReport, reason_of
from app.cli.load.plan import LoadEntry, LoadPlan, PlanError, pointed, searches
from app.cli.load.server import Conditional, FhirServer
from app.errors import FhirError
from app.fhir import json as fhir_json
from app.fhir.entry_references import EntryReferences
from app.fhir.links import FoundReferences, rewrite

AT_ONCE = 16


class SingleSender:
    """Sends entries side by side, versions of one resource in their order; `finish` waits for all under way."""

    def __init__(
        self, server: FhirServer, conditional: Conditional, report: LoadReport, source: Source
    ) -> None:
        self._server = server
        self._conditional = conditional
        self._report = report
        self._source = source
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        # Entries whose conditional references find nothing yet, and why.
        self.unfound: list[tuple[Path, LoadEntry, str]] = []

    async def take(self, document: Document, planned: LoadPlan) -> None:
        """Send the entries of a document."""
        targets = {entry.index: entry.reference for entry in planned.entries}
        named = [replace(each, target=targets.get(each.index)) for each in planned.named]
        names = EntryReferences(
            named, [self._server.base], "The reference is to an entry that is not loaded"
        )
        for entry in planned.entries:
            if document.is_line and not entry.keeps_id:
                entry.label = document.label
            try:
                entry.resource = pointed(entry, names, self._source)
            except (PlanError, FhirError) as error:
                self._refuse(document.file, entry, str(error))
                continue
            await self._send_found(document.file, entry)

    async def take_unfound(self) -> None:
        """Try those again that found nothing."""
        unfound, self.unfound = self.unfound, []
        for file, entry, _ in unfound:
            await self._send_found(file, entry)
        await self.finish()

    def report_unfound(self) -> None:
        for file, entry, why in self.unfound:
            self._refuse(file, entry, why)

    async def finish(self) -> None:
        """Wait until everything under way has its answer. Raises what went wrong."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _send_found(self, file: Path, entry: LoadEntry) -> None:
        """Send it with its conditional references resolved, among all that was sent before it."""
        wanted = set(searches(entry.resource))
        try:
            if wanted:
                await self.finish()
                found = {search: await self._conditional.only_match(search) for search in wanted}
                entry.resource = rewrite(entry.resource, FoundReferences(found))
        except PlanError as error:
            self.unfound.append((file, entry, str(error)))
            return
        await self._start(file, entry)

    async def _start(self, file: Path, entry: LoadEntry) -> None:
        if entry.reference in self._tasks:
            await self._tasks[entry.reference]
        await self._slots.acquire()
        task = asyncio.create_task(self._send(file, entry))
        self._tasks[entry.reference] = task
        task.add_done_callback(lambda _: self._done(entry.reference))

    def _done(self, key: str) -> None:
        self._slots.release()
        task = self._tasks.get(key)
        # One that failed is kept: finish() raises what it raised.
        if task is not None and task.done() and task.exception() is None:
            del self._tasks[key]

    async def _send(self, file: Path, entry: LoadEntry) -> None:
        url = f"{entry.resource_type}/{quote(str(entry.id), safe='')}"
        response = await self._server.request("PUT", url, fhir_json.encode(entry.resource))
        if response.status_code == 201:
            self._report.created[entry.resource_type] += 1
        elif response.is_success and response.status_code != 202:  # that is kept, and not in force
            self._report.updated[entry.resource_type] += 1
        else:
            self._refuse(file, entry, reason_of(response))

    def _refuse(self, file: Path, entry: LoadEntry, reason: str) -> None:
        name = entry.reference if entry.keeps_id else entry.resource_type
        label = f"{entry.label}, {name}" if entry.label else name
        self._report.refuse(file, entry.resource_type, label, reason)
