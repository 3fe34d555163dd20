"""Load files into a FHIR server: in which order documents go, and what goes side by side.

1. Transactions and batches that wait for nothing go as they are read, several side by side.
2. What keeps the ids of its source is compared with what is there (sources.py), and goes in its order: Bundles as
   they are, all else entry by entry.
3. Messages go through `$process-message`, those first that were made first.
4. What refers conditionally (`Practitioner?identifier=...`) goes last, in rounds: what still finds nothing, waits for
   what the round has stored, until a round stores nothing. So the order of names does not matter. Transactions are
   tried as they are read until the first is refused: where a directory's names are in order, nothing has to wait.

What the server refuses is reported and does not stop the rest. docs/decisions/0039-loading.md
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import httpx
from httpx_aiohttp import AiohttpTransport

from app.cli.load.bundles import BATCH, TRANSACTION, BundleRequest, request_of
from app.cli.load.files import Document, FilesUnderWay, content_of, documents, find_files
from app.cli.load.ids import Source
from app.cli.load.mending import may_need_mending, mend
from app.cli.load.messages import MESSAGE, MessageSender, made_at
from app.cli.load.outcome import LoadRefusal, LoadReport, Mended
from app.cli.load.plan import LISTS, LoadPlan, PlanError, plan
from app.cli.load.sending import BundleSender, Waiting
from app.cli.load.server import Conditional, FhirServer
from app.cli.load.singles import SingleSender
from app.cli.load.sources import SourceCheck
from app.errors import FhirError
from app.fhir import json as fhir_json
from app.fhir.json import Resource
from app.settings import Settings

BUNDLES_AT_ONCE = 4
# Bytes of Bundles that wait in memory; beyond, they are read again when it is their turn.
HELD_BYTES = 256 * 1024 * 1024
TIMEOUT = 300.0  # seconds for one answer: a large transaction takes its time
_CONDITIONAL = re.compile(rb'"reference"\s*:\s*"[A-Za-z]+\?')
_CHOICE = (
    "Two sources use the same ids. Nothing of what keeps its ids was loaded: load the files of one of them with "
    "--source NAME, which gives them ids of their own"
)


class Loader:
    """One load into one server; `report` fills as it goes."""

    def __init__(
        self, server: FhirServer, source: Source, bundles_at_once: int, files: FilesUnderWay
    ) -> None:
        self.report = LoadReport()
        self._server = server
        self._source = source
        conditional = Conditional(server)
        self._bundles = BundleSender(server, conditional, self.report, files, bundles_at_once)
        self._files = files
        self._singles = SingleSender(server, conditional, self.report, source)
        self._messages = MessageSender(server, self.report)
        self._with_messages: list[tuple[datetime, Path]] = []
        self._check = SourceCheck()
        self._waiting: list[Waiting] = []
        # Transactions that were tried before their turn, and refused.
        self._too_early: list[Waiting] = []
        self._is_tried = False
        self._held = 0

    async def load(self, files: list[Path]) -> None:
        """Load all files. Raises LoadError where the server cannot be reached."""
        try:
            late = []
            for file in files:
                self._files.begin(file)
                if await self._take_independent(file):
                    late.append(file)
                else:
                    self._files.end(file)
            await self._bundles.finish()
            await self._check.ask(self._server)
            if self._check.clashes:
                self._refuse_source(late)
            else:
                await self._take_late(late)
            await self._take_messages()
            await self._in_rounds()
        finally:
            # What is under way has its answer before the connection is closed.
            ends = self._bundles.finish(), self._singles.finish()
            await asyncio.gather(*ends, return_exceptions=True)

    async def _take_independent(self, file: Path) -> bool:
        """Send what waits for nothing, and set aside the rest; whether there is something that keeps its ids."""
        has_late = False
        made: list[datetime] = []
        for document in await self._documents(file):
            read = self._read(document)
            if read is None:
                continue
            content, planned = read
            if _kind(content) == MESSAGE:
                made.append(made_at(content))
                continue
            for entry in planned.entries:
                if entry.keeps_id:
                    self._check.add(file, entry)
            if not _is_request(content) or any(entry.keeps_id for entry in planned.entries):
                has_late = True
            else:
                await self._go_or_wait(document, content, planned)
        if made:
            self._files.begin(file)
            self._with_messages.append((min(made), file))
        return has_late

    async def _take_late(self, files: list[Path]) -> None:
        """Send what the first reading left: it keeps its ids, or goes entry by entry."""
        for file in files:
            for document in await self._documents(file):
                read = self._read(document, is_first=False)
                if read is None:
                    continue
                content, planned = read
                if _kind(content) == MESSAGE:
                    continue
                if not _is_request(content):
                    await self._singles.take(document, planned)
                elif any(entry.keeps_id for entry in planned.entries):
                    await self._go_or_wait(document, content, planned)
            self._files.end(file)
        await self._bundles.finish()
        await self._singles.finish()

    async def _take_messages(self) -> None:
        """Send the messages: files in the order of their first ones, those of a file in its order."""
        for _, file in sorted(self._with_messages):
            for document in await self._documents(file):
                read = self._read(document, is_first=False)
                if read is not None and _kind(read[0]) == MESSAGE:
                    await self._messages.send(document, read[0])
            self._files.end(file)

    async def _documents(self, file: Path) -> list[Document]:
        try:
            return list(documents(file, await asyncio.to_thread(content_of, file)))
        except (OSError, EOFError, ValueError) as error:
            self.report.refuse(file, "?", "the file", f"cannot be read: {error}")
            return []

    def _read(
        self, document: Document, *, is_first: bool = True
    ) -> tuple[Resource, LoadPlan] | None:
        """The document with its plan; what is wrong or put right in it is told when it is read first."""
        try:
            content = fhir_json.decode(document.text)
        except FhirError as error:
            if is_first:
                self.report.refuse(document.file, "?", document.label, str(error))
            return None
        if may_need_mending(document.text):
            content, notes = mend(content)
            if notes and is_first:
                self.report.mended.append(Mended(str(document.file), tuple(notes)))
        if _kind(content) in LISTS and any("request" in each for each in _entries(content)):
            content = {**content, "type": BATCH}
        if _kind(content) == MESSAGE:
            return content, LoadPlan()
        planned = plan(content, document.digest, self._server.base, self._source)
        if is_first and _kind(content) != TRANSACTION:
            for label, reason in planned.refused:
                self.report.refuse(document.file, "?", label or "the file", reason)
        return content, planned

    def _request(
        self, document: Document, content: Resource, planned: LoadPlan
    ) -> BundleRequest | None:
        """The Bundle as it is sent, or None where it cannot be."""
        kind = str(content["type"])
        label = f"the {kind}" if not document.is_line else f"{document.label}, the {kind}"
        try:
            return request_of(
                content, planned, self._server.base, self._source, document.digest, label
            )
        except (PlanError, FhirError) as error:
            types = Counter(entry.resource_type for entry in planned.entries)
            self.report.refused.update(types or {"?": 1})
            self.report.refusals.append(LoadRefusal(str(document.file), label, str(error)))
            return None

    async def _go_or_wait(self, document: Document, content: Resource, planned: LoadPlan) -> None:
        request = self._request(document, content, planned)
        if request is None or not request.entries:
            return
        if request.kind == TRANSACTION and not _CONDITIONAL.search(document.text):
            await self._bundles.start(document, request)
            return
        if request.kind == TRANSACTION and not self._too_early:
            await self._try(document, request)
            return
        waiting = request
        if request.kind == BATCH:
            ready, waiting = _divided(request)
            if ready.entries:
                await self._bundles.start(document, ready)
        if waiting.entries:
            self._held += len(document.text)
            self._waiting.append((document, waiting))
            self._files.begin(document.file)
            self._let_go_of_some()

    async def _try(self, document: Document, request: BundleRequest) -> None:
        """Send a transaction that refers to others; the first of them once those before it have been stored."""
        if not self._is_tried:
            self._is_tried = True
            await self._bundles.finish()
        await self._bundles.start(document, request, self._too_early)

    def _let_go_of_some(self) -> None:
        """Keep no more in memory than is right: the last one is read again later."""
        document, request = self._waiting[-1]
        if self._held > HELD_BYTES and request is not None and request.kind == TRANSACTION:
            self._held -= len(document.text)
            self._waiting[-1] = (replace(document, text=b""), None)

    async def _again(self, document: Document) -> tuple[Document, BundleRequest | None]:
        """A Bundle that was not kept in memory."""
        for each in await self._documents(document.file):
            if each.number == document.number:
                read = self._read(each, is_first=False)
                return each, read and self._request(each, *read)
        return document, None

    async def _in_rounds(self) -> None:
        """Send what refers to others until nothing is left, or a round stores nothing."""
        self._waiting = [*self._too_early, *self._waiting]
        while self._waiting or self._singles.unfound:
            before = self.report.stored
            refused: list[Waiting] = []
            for document, held in self._waiting:
                request = held
                if request is None:
                    document, request = await self._again(document)
                if request is not None:
                    await self._bundles.start(document, request, refused)
            await self._bundles.finish()
            await self._singles.take_unfound()
            for document, _ in self._waiting:
                self._files.end(document.file)
            self._waiting = refused
            if self.report.stored == before:
                break
        for document, request in self._waiting:
            if request is not None:
                request.report_refused(document.file, self.report)
            self._files.end(document.file)
        self._singles.report_unfound()

    def _refuse_source(self, files: list[Path]) -> None:
        clashes = self._check.clashes
        said = "; ".join(clashes[:3]) + (f" and {len(clashes) - 3} more" if clashes[3:] else "")
        for file in files:
            self.report.refuse(file, "?", "the file", f"{said}. {_CHOICE}")
            self._files.end(file)


def _entries(bundle: Resource) -> list[Resource]:
    entries = bundle.get("entry")
    return [each for each in entries if isinstance(each, dict)] if isinstance(entries, list) else []


def _is_request(content: Resource) -> bool:
    return _kind(content) in (TRANSACTION, BATCH)


def _kind(content: Resource) -> str:
    """The type of a Bundle; empty for everything else."""
    return str(content.get("type", "")) if content.get("resourceType") == "Bundle" else ""


def _divided(batch: BundleRequest) -> tuple[BundleRequest, BundleRequest]:
    """The entries of a batch that wait for nothing, and those that refer to others by conditions."""
    waiting = [index for index, found in batch.searches().items() if found]
    ready = {entry.index for entry in batch.entries} - set(waiting)
    return batch.only(ready), batch.only(waiting)


async def load(
    paths: Iterable[Path],
    base: str,
    on_done: Callable[[Path], None],
    transport: httpx.AsyncBaseTransport | None = None,
    *,
    source: str = "",
    bundles_at_once: int = BUNDLES_AT_ONCE,
) -> LoadReport:
    """Load all of `paths` into the server at `base`; `on_done` is called when all of a file has its answer.

    Raises LoadError where nothing can be loaded at all.
    """
    files = find_files(paths)
    async with httpx.AsyncClient(
        base_url=base,
        timeout=TIMEOUT,
        transport=transport or AiohttpTransport(),
        headers=Settings().token_header,
    ) as client:
        loader = Loader(FhirServer(client), Source(source), bundles_at_once, FilesUnderWay(on_done))
        await loader.load(files)
    return loader.report
