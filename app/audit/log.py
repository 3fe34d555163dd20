"""The audit of one process: its rows are linked into chains, anchored in the registry, and deleted after retention.

Rows that wait at the same time are written together (write_batch.py); those of a change are written in its own
transaction (app/store/commit.py), so that no change is without a record and no record without a change.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import PyMongoError

from app.audit import chain_registry
from app.audit.chain_registry import ChainRegistry, head_of
from app.audit.entry import AuditedRequest, asking, count, entry
from app.audit.hash_chain import SORRY, HashChain, Links, place
from app.audit.head_keeper import HeadKeeper
from app.audit.refusal_counter import Refusals
from app.audit.write_batch import WriteBatch
from app.authentication.caller import Caller
from app.errors import Unavailable
from app.fhir.ids import new_id
from app.runtime import collections, secrets
from app.runtime.loops import LONG_PATIENCE, Loop, Loops
from app.runtime.mongo import Document, Mongo
from app.settings import Settings

log = logging.getLogger(__name__)

COLLECTION = "audit"
ANCHOR_EVERY = 60.0
# The time that one chain covers: rows past their retention are deleted by whole chains.
_SEGMENT = timedelta(days=1)
_SLACK = timedelta(days=1)
_RETIRE_EVERY = timedelta(hours=1)


class AuditLog:
    """Writes the audit. `lost` counts the entries that could not be written."""

    def __init__(self, settings: Settings, mongo: Mongo, owner: str) -> None:
        """Raises SecretsError where the secret key cannot be used."""
        self.required = settings.audit_mode == "required"
        self.lost = 0
        known = secrets.of_settings(settings)
        self.registry = ChainRegistry(mongo, known, owner)
        self._keeper = HeadKeeper(settings, known, self.registry)
        self._mongo = mongo
        self.rows = mongo.collection(COLLECTION)
        self._kept = timedelta(days=settings.audit_retention_days)
        # Entered by each request that is going to record something.
        self.together = WriteBatch(self._write)
        self._free: list[HashChain] = []
        self._all: set[HashChain] = set()
        self._ending: list[tuple[HashChain, bool]] = []
        self._refusals = Refusals()
        # Entries that sum up refusals and are not written yet.
        self._owed: list[Document] = []
        self._retire_at: datetime | None = None
        self.loops = Loops(Loop("audit", patience=LONG_PATIENCE))

    async def start(self) -> None:
        """Create the indexes, anchor the chains of dead processes, and start the loop that anchors."""
        models = [
            IndexModel([("each.k", ASCENDING), ("at", DESCENDING)], name="k"),
            IndexModel([("at", DESCENDING)], name="at"),
        ]
        await collections.ensure(self._mongo, COLLECTION, models)
        await self.registry.prepare()
        await self._anchor_found()
        await self._keeper.keep()
        self.loops["audit"].start(self._run())

    async def stop(self) -> None:
        """Close this process's chains; nothing is recorded after this."""
        await self.loops.end()
        with suppress(PyMongoError, Unavailable):  # no response waits for these entries
            await self.sum_up()
        self._ending += [(chain, True) for chain in self._free]
        self._free = []
        with suppress(PyMongoError):  # the next start finds where they end
            await self.anchor()
            await self._keeper.keep()
        self._keeper.close()

    def now(self) -> datetime:
        return self._mongo.now()

    async def record(self, entries: Sequence[Document]) -> bool:
        """Write the entries; False where that fails. Raises Unavailable instead where the audit is required."""
        try:
            await self.together.keep(entries)
            count(entries)
            return True
        except (PyMongoError, Unavailable) as error:
            self.lost += len(entries)
            kind = type(error.__cause__ or error).__name__
            log.error("audit failed", extra={"action": "audit", "error": kind})
            if self.required:
                raise
            return False

    async def refuse(self, entry: Document, *, client: str | None, address: str) -> None:
        """Record a refusal of a client, or of a stranger, or count it with similar ones. Raises as `record`."""
        if self._refusals.take(entry, client=client, address=address):
            await self.record([entry])

    async def sum_up(self) -> None:
        """Record the refusals that were only counted. Raises as `record`; the next call then tries them again."""
        self._owed = self._owed or self._refusals.due()
        if self._owed:
            await self.record(self._owed)
            self._owed = []

    @asynccontextmanager
    async def links(self, entries: Sequence[Document]) -> AsyncIterator[Links]:
        """Entries as the next rows of a chain, to be inserted inside the context; a chain has one writer at a time.

        Raises Unavailable where a chain has to be begun and cannot be.
        """
        chain = self._free.pop() if self._free else await self._begin()
        links = Links(chain, entries, self._mongo.now())
        try:
            yield links
        except BaseException:
            if links.in_doubt or links.spoilt:
                self._ending.append((chain, links.spoilt))
            else:
                self._free.append(chain)
            raise
        chain.extend(links.rows)
        self._free.append(chain)

    async def _write(self, entries: Sequence[Document]) -> None:
        async with self.links(entries) as links:
            await links.insert(self.rows)

    async def _begin(self) -> HashChain:
        id_ = new_id()
        try:
            row = await self.registry.append("begin", [{"c": id_, "n": 0, "h": b""}])
        except PyMongoError as error:
            raise Unavailable(SORRY) from error
        chain = HashChain(id_, row["hash"], row["at"])
        self._all.add(chain)
        return chain

    async def anchor(self) -> None:
        """Write to the registry which chains of this process have ended, and the heads of those that have grown."""
        old = self._mongo.now() - _SEGMENT
        for chain in [chain for chain in self._free if chain.begun < old]:
            self._free.remove(chain)
            self._ending.append((chain, True))
        while self._ending:
            chain, sure = self._ending[0]
            await self.registry.append("close", [head_of(chain)], sure=sure)
            self._ending.pop(0)
            self._all.discard(chain)
        moved = [(head_of(chain), chain) for chain in self._all if chain.number > chain.anchored]
        if moved:
            await self.registry.append("checkpoint", [head for head, _ in moved])
            for head, chain in moved:
                chain.anchored = head["n"]

    async def _anchor_found(self) -> None:
        """Anchor open chains at their last stored row: a process that died has not anchored them."""
        found = []
        for chain in await self.registry.open_chains():
            last = await self._last_of(chain)
            if last is not None:
                found.append(last)
        if found:
            await self.registry.append("checkpoint", found)

    async def _last_of(self, chain: str) -> Document | None:
        row = await self.rows.find_one(within(chain), {"hash": 1}, sort=[("_id", DESCENDING)])
        if row is None:
            return None
        return {"c": chain, "n": place(row["_id"]), "h": row["hash"]}

    async def retire(self, now: datetime) -> int:
        """Delete chains that are past their retention at `now`; the registry keeps their last hashes.

        Returns the number of rows deleted. A process that dies in between leaves the rest to the next call.
        """
        begun = [chain.begun for chain in self._all]
        before = min([now - self._kept - _SEGMENT - _SLACK, *begun])
        last = await self.registry.last("retire")
        chains = await self.registry.begun_between(last["before"] if last else None, before)
        heads = [await self._last_of(chain) or {"c": chain, "n": 0, "h": b""} for chain in chains]
        going = [head["c"] for head in last["heads"]] if last else []
        if heads:
            await self.registry.append("retire", heads, before=before)
            going += chains
        gone = 0
        for chain in going:
            gone += (await self.rows.delete_many(within(chain))).deleted_count
        return gone

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(ANCHOR_EVERY)
            try:
                with self.loops["audit"].step():
                    await self._tidy()
            except (PyMongoError, Unavailable) as error:
                extra = {"action": "audit-anchor", "error": type(error).__name__}
                log.warning("audit not anchored", extra=extra)

    async def _tidy(self) -> None:
        await self.sum_up()
        await self.anchor()
        await self._keeper.keep()
        now = self._mongo.now()
        if self._retire_at is None or now >= self._retire_at:
            self._retire_at = now + _RETIRE_EVERY
            await self.retire(now)


def within(chain: str) -> Document:
    """The filter of a chain's rows."""
    return {"_id": {"$gt": f"{chain}.", "$lt": f"{chain}/"}}  # `/` is the character after `.`


async def note_off(mongo: Mongo, settings: Settings, owner: str) -> None:
    """Say in the registry, where the database has one, that a process begins which records nothing."""
    registry = ChainRegistry(mongo, secrets.of_settings(settings), owner)
    if await registry.newest() is not None:
        await registry.append("off", [])


# Commands of an operator, recorded where the database has an audit.

COMMAND_LINE = Caller("command-line")


async def note(mongo: Mongo, settings: Settings, command: str) -> None:
    """Record a command that changed who may do what. Raises Unavailable where it must be recorded and cannot."""
    has_audit = (
        await mongo.collection(chain_registry.COLLECTION).find_one({}, {"_id": 1}) is not None
    )
    if settings.audit_mode == "off" and not has_audit:
        return
    audit = AuditLog(settings, mongo, f"{os.getpid()}-command-line")
    was_off = await audit.registry.is_off()
    await audit.start()
    try:
        with asking(AuditedRequest(COMMAND_LINE, "", "", f"carerelay {command}")):
            await audit.record([entry("clients", audit.now())])
    finally:
        await audit.stop()
        if was_off:
            await audit.registry.append("off", [])
