"""What keeps the search fields of stored resources in step with the definitions: clients' parameters, and `$reindex`.

Every process learns of SearchParameter resources once a second, extracts them from then on, and says so in its row
(app/runtime/cluster.py). A reindexing is a row too, so that any process can go on with it after a restart:

    reindex             {_id, state, types, type, after, done, changed, total, parameters, requested, finished?, error?,
                         failed, lease_until?, owner?, attempt, tries?}
    search_parameters   {_id: id of the resource, digest}: everything stored is indexed by this definition

A reindexing begins when all processes extract the same parameters: whatever they write while it passes over the stored
resources, they extract themselves. What it wrote it settles with the next place, guarded by the lease
(app/runtime/leases.py). One that fails again and again at the same place is given up, with the reason in `error`. A
single resource that cannot be read does not stop it: it is counted in `failed`, named in `unread`, and stays as it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, TypedDict

from pymongo import ASCENDING, DESCENDING
from pymongo.errors import PyMongoError

from app.errors import FhirError
from app.fhir.json import Resource, decode_stored
from app.runtime.leases import NO_END, BackOff, Claim, Leases, LostError, is_nobodys_fault
from app.runtime.loops import LONG_PATIENCE, Loop, Loops
from app.runtime.mongo import Document, Mongo
from app.search import custom
from app.search.custom import Custom
from app.search.custom_check import standard_urls, why_not
from app.store.events import Event
from app.store.store import Store

log = logging.getLogger(__name__)

BATCH = 100
_LEASE = timedelta(seconds=15)
_BACK_OFF = BackOff(timedelta(seconds=2), timedelta(minutes=1), most=5)
# How long a reindexing waits for processes that do not extract the same yet.
_UNTIL_AGREED = timedelta(seconds=1)
_POLL = 1.0
# How many resources that cannot be read a row names.
_MOST_NAMED = 100
_PROGRESS = ("type", "after", "done", "changed", "failed", "unread")
# A change that committed late may not show in what the poll looks at.
_POLLS_UNTIL_CERTAIN = 20


class Job(TypedDict, total=False):
    """A row of `reindex`. `type` is the one that it is at, None after the last; `after` the last id that is done."""

    _id: str
    state: str
    types: list[str]
    type: str | None
    after: str
    done: int
    changed: int
    failed: int
    unread: list[str]
    total: int
    parameters: dict[str, str]
    requested: datetime
    finished: datetime
    error: str


class Reindexing:
    """One for each process; `start` it with the server."""

    def __init__(self, mongo: Mongo, store: Store) -> None:
        self._store = store
        self._state = store.search_state
        self._mongo = mongo
        self._jobs = mongo.collection("reindex")
        self._leases = Leases[Job](
            mongo,
            "reindex",
            store.owner,
            lease=_LEASE,
            back_off=_BACK_OFF,
            is_open={"state": {"$in": ["queued", "running"]}},
            order=[("requested", ASCENDING)],
        )
        self._indexed = mongo.collection("search_parameters")
        self._seen: Any = None
        self._polls = 0
        self._wake = asyncio.Event()
        # A reindexing takes as long as it takes, and is kept by its lease.
        self.loops = Loops(Loop("reindexing", patience=LONG_PATIENCE, may_hang=True))

    async def start(self) -> None:
        await self.learn()
        self._store.listeners.append(self._hear)
        self.loops["reindexing"].start(self._run())

    async def stop(self) -> None:
        """Stop between two batches; another process, or the next start, goes on."""
        self._store.listeners.remove(self._hear)
        await self.loops.end()
        self._state.learn(())

    # Clients' parameters

    async def learn(self) -> None:
        """Know the active SearchParameter resources, and say so to the other processes."""
        indexed = {row["_id"]: row["digest"] async for row in self._indexed.find()}
        found: list[Custom] = []
        for row in await self._store.find(
            "SearchParameter", {"terms": "status=active"}, projection={"text": 1}
        ):
            resource = decode_stored(row["text"])
            if resource.get("url") in standard_urls() or why_not(resource):
                continue
            definition = custom.read(resource)
            each = Custom(row["_id"], definition)
            found.append(Custom(row["_id"], definition, indexed.get(row["_id"]) == each.digest))
        self._state.learn(found)
        self._store.cluster.parameters = custom.digest(self._state.custom)

    async def _learn_what_changed(self) -> None:
        newest = await self._store.find(
            "SearchParameter", {}, sort=[("at", DESCENDING)], limit=1, projection={"at": 1, "v": 1}
        )
        indexed = [row async for row in self._indexed.find().sort("_id")]
        self._polls += 1
        if (newest, indexed) != self._seen or self._polls % _POLLS_UNTIL_CERTAIN == 0:
            await self.learn()
            self._seen = (newest, indexed)

    def _hear(self, events: list[Event]) -> None:
        if any(event.type == "SearchParameter" for event in events):
            self._seen = None
            self._wake.set()

    # Reindexing

    async def request(self, types: Sequence[str]) -> Document:
        """Ask for a reindexing of these types; without any, of those with parameters that wait for it, else of all."""
        await self.learn()
        if not types:
            known = self._state.custom
            waiting = {t for p in known if not p.is_searchable for t in p.definition.base}
            types = sorted(waiting) or await self._store.types()
        job: Document = {
            "_id": uuid.uuid4().hex,
            "state": "queued",
            "types": list(types),
            "type": types[0] if types else None,
            "after": "",
            "done": 0,
            "changed": 0,
            "failed": 0,
            "unread": [],
            "total": sum([await self._store.count(each, {}) for each in types]),
            "owner": None,
            "attempt": 0,
            "requested": self._mongo.now(),
        }
        await self._jobs.insert_one(job)
        self._wake.set()
        return job

    async def jobs(self, job_id: str | None = None) -> list[Document]:
        """One reindexing, or the latest, newest first."""
        cursor = self._jobs.find({"_id": job_id} if job_id else {})
        jobs: list[Document] = await cursor.sort("requested", DESCENDING).limit(20).to_list(None)
        return jobs

    async def run_once(self) -> bool:
        """Take the next reindexing that nobody works on, to its end; False where there is none."""
        claim = await self._leases.claim()
        if claim is None:
            return False
        if self._leases.is_spent(claim):
            await self._leases.give_up(claim, NO_END, _failed(NO_END))
            return True
        try:
            async with self._leases.kept(claim):
                return await self._work(claim)
        except LostError:
            return False
        except Exception as error:
            await self._fail(claim, error)
            return False

    async def _work(self, claim: Claim[Job]) -> bool:
        """One reindexing from its place on; False where it has to wait. Raises LostError."""
        job = claim.row
        await self.learn()
        if job.get("parameters") is None:
            if not await self._store.cluster.agree_on(self._store.cluster.parameters):
                await self._leases.release(claim, _UNTIL_AGREED)
                return False
            job["parameters"] = {each.id: each.digest for each in self._state.custom}
            await self._reached(claim, {"state": "running", "parameters": job["parameters"]})
        while (resource_type := job["type"]) is not None:
            await self._step(claim, resource_type)
        await self._finish(claim)
        return True

    async def _step(self, claim: Claim[Job], resource_type: str) -> None:
        """One batch. Raises LostError where another process has taken over."""
        job = claim.row
        last, changed, failed = await self._store.reindex(resource_type, job["after"], BATCH)
        if last is None:
            place = job["types"].index(resource_type) + 1
            job["type"] = job["types"][place] if place < len(job["types"]) else None
            job["after"] = ""
        else:
            job["after"] = last
            job["done"] = min(job["done"] + BATCH, job["total"])
            job["changed"] += changed
            # A job of an older server has neither.
            job["failed"] = job.get("failed", 0) + len(failed)
            job["unread"] = [*job.get("unread", ()), *failed][:_MOST_NAMED]
        progress: Document = {name: each for name, each in job.items() if name in _PROGRESS}
        await self._reached(claim, progress)

    async def _reached(self, claim: Claim[Job], progress: Document) -> None:
        if not await self._leases.progress(claim, progress):
            raise LostError

    async def _finish(self, claim: Claim[Job]) -> None:
        """Make searchable what was extracted everywhere, by the definition that it was extracted by."""
        job = claim.row
        for each in self._state.custom:
            is_whole = set(each.definition.base) <= set(job["types"])
            if is_whole and job["parameters"].get(each.id) == each.digest:
                row = {"_id": each.id, "digest": each.digest}
                await self._indexed.replace_one({"_id": each.id}, row, upsert=True)
        await self.learn()
        finished = {"state": "done", "done": job["total"], "finished": self._mongo.now()}
        await self._leases.settle(claim, finished)

    async def _fail(self, claim: Claim[Job], error: Exception) -> None:
        name = type(error).__name__
        log.warning(
            "reindexing failed",
            extra={"action": "reindex", "id": claim.id, "error": name},
            exc_info=not is_nobodys_fault(error),
        )
        if isinstance(error, FhirError | ValueError) and not is_nobodys_fault(error):
            await self._leases.give_up(claim, name, _failed(name))
        else:
            await self._leases.failed(claim, error, _failed(name))

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _POLL)
            self._wake.clear()
            # After a failure the next round tries again; a job stays as it was settled.
            with contextlib.suppress(PyMongoError), self.loops["reindexing"].step():
                await self._learn_what_changed()
                while await self.run_once():
                    pass


def _failed(error: str) -> Document:
    return {"state": "failed", "error": error}


def ids_and_state(job: Document) -> Resource:
    """A reindexing as a Parameters resource's part."""
    parts: list[Resource] = [
        {"name": "id", "valueId": job["_id"]},
        {"name": "state", "valueCode": job["state"]},
        {"name": "done", "valueInteger": job["done"]},
        {"name": "changed", "valueInteger": job["changed"]},
        {"name": "total", "valueInteger": job["total"]},
        {"name": "failed", "valueInteger": job.get("failed", 0)},
        *({"name": "unread", "valueString": each} for each in job.get("unread", ())),
        *({"name": "type", "valueCode": each} for each in job["types"]),
    ]
    if "error" in job:
        parts.append({"name": "error", "valueString": job["error"]})
    return {"name": "job", "part": parts}
