"""Bundles on their way to the server: several side by side, those that write the same records one after another."""

from __future__ import annotations

import asyncio
from pathlib import Path

from app.cli.load.bundles import BATCH, BundleRequest
from app.cli.load.files import Document, FilesUnderWay
from app.cli.load.outcome import LoadReport
from app.cli.load.plan import PlanError
from app.cli.load.server import Conditional, FhirServer

Waiting = tuple[Document, BundleRequest | None]


class BundleSender:
    """Sends Bundles; `finish` waits for all that are under way."""

    def __init__(
        self,
        server: FhirServer,
        conditional: Conditional,
        report: LoadReport,
        files: FilesUnderWay,
        at_once: int,
    ) -> None:
        self._server = server
        self._conditional = conditional
        self._report = report
        self._files = files
        self._slots = asyncio.Semaphore(at_once)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing: dict[str, asyncio.Task[None]] = {}
        self._failed: BaseException | None = None

    async def start(
        self, document: Document, request: BundleRequest, refused: list[Waiting] | None = None
    ) -> None:
        """Send it when a slot is free; what is not taken goes to `refused`, or else into the report.

        Raises what ended another one: without a server nothing more is begun.
        """
        await self._slots.acquire()
        if self._failed is not None:
            raise self._failed
        keys = request.keys
        earlier = {self._writing[key] for key in keys if key in self._writing}
        task = asyncio.create_task(self._send(document, request, refused, earlier))
        self._tasks.add(task)
        self._writing.update(dict.fromkeys(keys, task))
        self._files.begin(document.file)
        task.add_done_callback(lambda _: self._done(document.file, task, keys))

    def _done(self, file: Path, task: asyncio.Task[None], keys: set[str]) -> None:
        self._slots.release()
        for key in keys:
            if self._writing.get(key) is task:
                del self._writing[key]
        if task.cancelled():
            return
        self._failed = self._failed or task.exception()
        if self._failed is None:  # else finish() raises it
            self._tasks.discard(task)
            self._files.end(file)

    async def finish(self) -> None:
        """Wait until everything under way has its answer. Raises what went wrong."""
        tasks, self._tasks = self._tasks, set()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _send(
        self,
        document: Document,
        request: BundleRequest,
        refused: list[Waiting] | None,
        earlier: set[asyncio.Task[None]],
    ) -> None:
        if earlier:
            await asyncio.wait(earlier)
        proof = request.only_its_own
        if proof is not None and await self._server.exists(proof):
            self._report.existing.update(request.types())
            return
        if request.kind == BATCH:
            request = await self._sent_in_part(document, request)
        else:
            await self._post(document, request)
        if request.entries and refused is not None:
            refused.append((document, request))
            self._files.begin(document.file)  # it is under way until its next turn
        elif request.entries:
            request.report_refused(document.file, self._report)

    async def _sent_in_part(self, document: Document, batch: BundleRequest) -> BundleRequest:
        """Send the entries of a batch whose conditional references find what they mean; what is left of it."""
        searches = batch.searches()
        found: dict[str, str] = {}
        missing: dict[str, str] = {}
        for search in sorted(set().union(*searches.values())):
            try:
                found[search] = await self._conditional.only_match(search)
            except PlanError as error:
                missing[search] = str(error)
        reasons = {
            index: "; ".join(missing[search] for search in sorted(wanted) if search in missing)
            for index, wanted in searches.items()
        }
        ready = batch.only(index for index, why in reasons.items() if not why)
        left = batch.only(index for index, why in reasons.items() if why)
        if ready.entries:
            ready.found(found)
            await self._post(document, ready)
        left.entries += ready.entries
        left.raw += ready.raw
        left.refused = {index: why for index, why in reasons.items() if why} | ready.refused
        return left

    async def _post(self, document: Document, request: BundleRequest) -> None:
        response = await self._server.request("POST", "", request.body)
        request.take(response, document.file, self._report)
