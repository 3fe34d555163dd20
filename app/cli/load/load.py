"""Load files into a FHIR server: Bundles, NDJSON or single resources, plain or compressed.

Entries go one by one (plan.py says with which ids and references), several at a time, and
what the server refuses is reported and does not stop the rest. What is not quite R4 and can be put
right without a doubt is (plan.py, too), and is reported as well.
"""

from __future__ import annotations

import asyncio
import bz2
import gzip
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from httpx_aiohttp import AiohttpTransport

from app.cli.load.plan import LoadEntry, PlanError, mend, plan, searches
from app.errors import FhirError
from app.fhir import json as fhir_json
from app.fhir.entry_references import EntryReferences
from app.fhir.json import Resource
from app.fhir.links import FoundReferences, rewrite
from app.settings import Settings

AT_ONCE = 16
ATTEMPTS = 6
FIRST_PAUSE = 0.2  # seconds before a second attempt; doubled each time unless the server says
SUFFIXES = (".json", ".ndjson")
OPENERS: dict[str, Callable[[Path], bytes]] = {
    ".gz": lambda path: gzip.decompress(path.read_bytes()),
    ".bz2": lambda path: bz2.decompress(path.read_bytes()),
}
FHIR_JSON = "application/fhir+json"


class LoadError(Exception):
    """Nothing can be loaded: a path that does not exist, a server that does not answer."""


def find_files(paths: Iterable[Path]) -> list[Path]:
    """The files to load, in the order of `paths` and by name within directories.

    A directory gives its .json and .ndjson files, compressed or not; a named file is always taken.
    Raises LoadError where a path does not exist or nothing is found.
    """
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.rglob("*") if _kind(file) in SUFFIXES)
        elif path.is_file():
            files.append(path)
        else:
            raise LoadError(f"{path} does not exist")
    if not files:
        raise LoadError("There is no .json or .ndjson file to load")
    return files


def _kind(file: Path) -> str:
    """The suffix below that of a compression."""
    return Path(file.stem).suffix if file.suffix in OPENERS else file.suffix


def read(file: Path) -> Iterator[bytes]:
    """The JSON texts in a file: one, or one a line in NDJSON."""
    content = OPENERS.get(file.suffix, Path.read_bytes)(file)
    if _kind(file) == ".ndjson":
        yield from (line for line in content.splitlines() if line.strip())
    else:
        yield content


class Loader:
    """One load into one server; `report` fills as it goes."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.report = LoadReport()
        self._client = client
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._taken: set[str] = set()
        self._found: dict[str, str] = {}

    async def load(self, file: Path) -> None:
        """Load one file. Raises LoadError where the server cannot be reached."""
        try:
            texts = list(read(file))
        except (OSError, EOFError, ValueError) as error:
            self.report.refuse(file, "?", "the file", f"cannot be read: {error}")
            return
        for number, text in enumerate(texts, 1):
            try:
                document = fhir_json.decode(text)
            except FhirError as error:
                name = f"line {number}" if len(texts) > 1 else "the file"
                self.report.refuse(file, "?", name, str(error))
                continue
            document, notes = mend(document)
            if notes:
                self.report.mended.append(Mended(str(file), tuple(notes)))
            await self._load_document(file, document)

    async def finish(self) -> None:
        """Wait until everything under way has its answer."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def _load_document(self, file: Path, document: Resource) -> None:
        base = str(self._client.base_url)
        planned = plan(document, self._taken, base)
        for label, reason in planned.refused:
            self.report.refuse(file, "?", label or "the file", reason)
        wanted = [entry for entry in planned.entries if await self._settle(file, entry)]
        targets = {
            entry.index: entry.reference
            for entry in planned.entries
            if entry.id is not None and not entry.is_closed
        }
        named = [replace(each, target=targets.get(each.index)) for each in planned.named]
        names = EntryReferences(named, [base], "The reference is to an entry that is not loaded")
        for entry in wanted:
            try:
                if not entry.is_closed:
                    await self._point(entry, names)
            except (PlanError, FhirError) as error:
                self._refuse(file, entry, str(error))
                continue
            await self._start(file, entry)

    async def _point(self, entry: LoadEntry, names: EntryReferences) -> None:
        """Have its references lead to what is stored."""
        entry.resource = names.rewritten(entry.index, entry.resource)
        found = {search: await self._only_match(search) for search in set(searches(entry.resource))}
        if found:
            entry.resource = rewrite(entry.resource, FoundReferences(found))

    async def _settle(self, file: Path, entry: LoadEntry) -> bool:
        """Decide which id the entry has, and whether it is sent at all."""
        is_wanted = True
        if entry.condition:
            try:
                matches = await self._search(f"{entry.resource_type}?{entry.condition}")
                if len(matches) > 1:
                    raise PlanError("has a condition that matches more than one resource")
            except PlanError as error:
                self._refuse(file, entry, str(error))
                entry.resource.pop("id", None)  # nothing can refer to it
                return False
            if matches:
                entry.resource["id"] = matches[0].rpartition("/")[2]
                is_wanted = entry.update
                self.report.existing[entry.resource_type] += not is_wanted
        return is_wanted

    async def _only_match(self, search: str) -> str:
        """The one resource that a conditional reference means."""
        if search not in self._found:
            matches = await self._search(search)
            if len(matches) != 1:
                count = "no resource" if not matches else "more than one resource"
                raise PlanError(f"refers to {search}, which matches {count}")
            self._found[search] = matches[0]
        return self._found[search]

    async def _search(self, query: str) -> list[str]:
        """The references (two at most) that a search finds, among all that was sent before it."""
        await self.finish()
        path, _, parameters = query.partition("?")
        joint = "&" if parameters else ""
        response = await self._request("GET", f"{path}?{parameters}{joint}_count=2", None)
        if response.status_code != 200:
            raise PlanError(f"needs the search {query}: {_reason(response)}")
        bundle = fhir_json.decode(response.content)
        return [
            f"{path}/{entry['resource']['id']}"
            for entry in bundle.get("entry", [])
            if entry.get("search", {}).get("mode", "match") == "match"
        ]

    async def _start(self, file: Path, entry: LoadEntry) -> None:
        """Send it when a slot is free; versions of one resource go in their order."""
        if entry.id is not None and entry.reference in self._tasks:
            await self._tasks[entry.reference]
        await self._slots.acquire()
        key = entry.reference if entry.id is not None else f"{entry.resource_type}?{id(entry)}"
        task = asyncio.create_task(self._send(file, entry))
        self._tasks[key] = task
        task.add_done_callback(lambda _: self._done(key))

    def _done(self, key: str) -> None:
        self._slots.release()
        task = self._tasks.get(key)
        # One that failed is kept: finish() raises what it raised.
        if task is not None and task.done() and task.exception() is None:
            del self._tasks[key]

    async def _send(self, file: Path, entry: LoadEntry) -> None:
        method, url = ("POST", entry.resource_type)
        if entry.id is not None:
            method, url = "PUT", f"{entry.resource_type}/{quote(str(entry.id), safe='')}"
        response = await self._request(method, url, fhir_json.encode(entry.resource))
        if response.status_code == 201:
            self.report.created[entry.resource_type] += 1
        elif response.is_success and response.status_code != 202:  # that is kept, and not in force
            self.report.updated[entry.resource_type] += 1
        else:
            self._refuse(file, entry, _reason(response))

    async def _request(self, method: str, url: str, body: bytes | None) -> httpx.Response:
        """One request, tried again while the server is busy."""
        pause = FIRST_PAUSE
        for attempt in range(1, ATTEMPTS + 1):
            is_last = attempt == ATTEMPTS
            try:
                response = await self._client.request(
                    method, url, content=body, headers={"Content-Type": FHIR_JSON}
                )
                if response.status_code not in {429, 503} or is_last:
                    break
                asked = response.headers.get("Retry-After", "")
            except httpx.TransportError as error:
                # A lost connection may have carried a POST: again, it could be stored twice.
                if is_last or method == "POST" or isinstance(error, httpx.ConnectError):
                    raise LoadError(f"{self._client.base_url} does not answer: {error}") from None
                asked = ""
            await asyncio.sleep(float(asked) if asked.isdigit() else pause)
            pause *= 2
        return response

    def _refuse(self, file: Path, entry: LoadEntry, reason: str) -> None:
        name = entry.reference if entry.id is not None else entry.resource_type
        label = f"{entry.label}, {name}" if entry.label else name
        self.report.refuse(file, entry.resource_type, label, reason)


def _reason(response: httpx.Response) -> str:
    """The status and what the OperationOutcome says."""
    try:
        issues: list[dict[str, Any]] = fhir_json.decode(response.content)["issue"]
    except (FhirError, KeyError):
        return str(response.status_code)
    said = []
    for issue in issues:
        where = ", ".join(issue.get("expression", []))
        text = issue.get("diagnostics") or issue.get("code", "")
        said.append(f"{where}: {text}" if where and not text.startswith(where) else text)
    return f"{response.status_code} {'; '.join(said)}"


async def load(
    paths: Iterable[Path],
    base: str,
    on_file: Callable[[Path], None],
    transport: httpx.AsyncBaseTransport | None = None,
) -> LoadReport:
    """Load all of `paths` into the server at `base`; `on_file` is called as each file begins.

    Raises LoadError where nothing can be loaded at all.
    """
    files = find_files(paths)
    async with httpx.AsyncClient(
        base_url=base,
        timeout=60,
        transport=transport or AiohttpTransport(),
        headers=Settings().token_header,
    ) as client:
        loader = Loader(client)
        try:
            for file in files:
                on_file(file)
                await loader.load(file)
        finally:
            await loader.finish()
    return loader.report


# What came of a load: counts per type, refusals, and files that were put right before they were sent.


@dataclass(frozen=True, slots=True)
class LoadRefusal:
    """One resource that was not stored, and why."""

    file: str
    resource: str
    reason: str


@dataclass(frozen=True, slots=True)
class Mended:
    """A file that was not R4 and was put right before it was sent, and what was done to it."""

    file: str
    notes: tuple[str, ...]


@dataclass(slots=True)
class LoadReport:
    """What became of each resource: counts per type, every refusal, and the files that were put right."""

    created: Counter[str] = field(default_factory=Counter)
    updated: Counter[str] = field(default_factory=Counter)
    existing: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    refusals: list[LoadRefusal] = field(default_factory=list)
    mended: list[Mended] = field(default_factory=list)

    @property
    def total(self) -> int:
        counters = (self.created, self.updated, self.existing, self.refused)
        return sum(counter.total() for counter in counters)

    def refuse(self, file: Path, resource_type: str, name: str, reason: str) -> None:
        self.refused[resource_type] += 1
        self.refusals.append(LoadRefusal(str(file), name, reason))
