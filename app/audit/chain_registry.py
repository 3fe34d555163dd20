"""The registry of chains: one line of rows over all processes, each sealed with the server's secret key.

_id    1, 2, 3 ...
kind   begin       a chain begins; its first row holds this row's hash
       checkpoint  the last rows of chains now: a chain that is cut off before its row is detected
       close       a chain ends; `sure` is false where the result of its last insert is unknown: rows may follow
       off         a process begins that records nothing: until the next begin, versions have no entries
       retire      all chains begun before `before` are past their time and deleted; `heads` are their last rows
heads  [{c: chain, n: number, h: hash}]
prev, hash   as in a chain
seal   the hash, sealed: without the key nobody can add or rewrite rows here, and so not a chain either
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from pymongo import ASCENDING, DESCENDING, IndexModel
from pymongo.errors import DuplicateKeyError

from app.audit.hash_chain import HashChain, digest
from app.errors import Unavailable
from app.runtime import collections
from app.runtime.mongo import Document, Mongo
from app.runtime.secrets import Secrets

ChainRowKind = Literal["begin", "checkpoint", "close", "off", "retire"]
COLLECTION = "audit_registry"
_TRIES, _BACK_OFF = 100, 0.005


class ChainRegistry:
    """Appends to the line; `owner` names this process."""

    def __init__(self, mongo: Mongo, secrets: Secrets, owner: str) -> None:
        self._mongo = mongo
        self._secrets = secrets
        self._owner = owner
        self._rows = mongo.collection(COLLECTION)

    async def prepare(self) -> None:
        """Create the index where it is missing."""
        kind = IndexModel([("kind", ASCENDING), ("_id", DESCENDING)], name="kind")
        await collections.ensure(self._mongo, COLLECTION, [kind])

    async def append(self, kind: ChainRowKind, heads: Sequence[Document], **more: Any) -> Document:
        """Append a row to the line; returns it.

        Raises Unavailable after _TRIES lost races with other processes.
        """
        for attempt in range(_TRIES):
            last = await self.newest()
            row: Document = {
                "_id": last["_id"] + 1 if last else 1,
                "at": self._mongo.now(),
                "kind": kind,
                "by": self._owner,
                "heads": list(heads),
                **more,
                "prev": last["hash"] if last else b"",
            }
            row["hash"] = digest(row)
            row["seal"] = self._secrets.seal(row["hash"].hex())
            try:
                await self._rows.insert_one(row)
            except DuplicateKeyError:  # another process was faster
                await asyncio.sleep(attempt * _BACK_OFF)
                continue
            return row
        raise Unavailable("The registry of the audit is contended; try again")

    async def newest(self) -> Document | None:
        """The last row."""
        row: Document | None = await self._rows.find_one({}, sort=[("_id", DESCENDING)])
        return row

    async def is_off(self) -> bool:
        """Whether the last process to begin records nothing."""
        off, begin = await self.last("off"), await self.last("begin")
        return off is not None and (begin is None or off["_id"] > begin["_id"])

    async def has(self, number: int, hash_: str) -> bool:
        """Whether the row of this number is there, with this hash."""
        row = await self._rows.find_one({"_id": number}, {"hash": 1})
        return row is not None and row["hash"].hex() == hash_

    async def last(self, kind: ChainRowKind) -> Document | None:
        """The newest row of a kind."""
        row: Document | None = await self._rows.find_one(
            {"kind": kind}, sort=[("kind", ASCENDING), ("_id", DESCENDING)]
        )
        return row

    async def open_chains(self) -> list[str]:
        """Chains of all processes that have begun and not ended."""
        return [chain for chain, is_open in (await self._begun()).items() if is_open]

    async def begun_between(self, start: datetime | None, end: datetime) -> list[str]:
        """Chains that began in a span of time."""
        times: Document = {"$lt": end} | ({"$gte": start} if start is not None else {})
        begins = self._rows.find({"kind": "begin", "at": times}).sort("_id", ASCENDING)
        return [row["heads"][0]["c"] for row in await begins.to_list(None)]

    async def _begun(self) -> dict[str, bool]:
        retired = await self.last("retire")
        after = {"at": {"$gte": retired["before"]}} if retired else {}
        ends = {"kind": {"$in": ["begin", "close"]}, **after}
        cursor = self._rows.find(ends, {"kind": 1, "heads": 1}).sort("_id", ASCENDING)
        found: dict[str, bool] = {}
        for row in await cursor.to_list(None):
            for head in row["heads"]:
                found[head["c"]] = row["kind"] == "begin"
        return found


def head_of(chain: HashChain) -> Document:
    """A chain's head as the registry stores it: its last row."""
    return {"c": chain.id, "n": chain.number, "h": chain.head}
