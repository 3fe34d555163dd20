"""The audit against the versions of resources: each version has its entry, each entry of a write its version.

With `required` both come into the database by one transaction, so one without the other was removed, or put in. It
takes some hundred bytes of memory for each version that is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from hashlib import blake2b

from pymongo import ASCENDING

from app.audit.entry import OK, values
from app.records.versions import COLLECTION
from app.runtime.mongo import Document, Mongo

_WRITES = frozenset({"create", "update", "patch", "delete"})
_AT_ONCE = 500

Add = Callable[[str], None]
# A type, an id and a version.
Name = tuple[str, str, int]


@dataclass(slots=True)
class VersionCheck:
    """Give it first the versions, then every entry, then ask for what is left. `add` takes findings."""

    mongo: Mongo
    add: Add
    _without_entry: set[int] = field(default_factory=set)
    _asked: dict[Name, str] = field(default_factory=dict)

    async def read_versions(self, since: datetime | None) -> None:
        """Remember which versions there are, before the audit is read: what is written meanwhile is in it then."""
        after = {"at": {"$gte": since}} if since is not None else {}
        rows = self.mongo.collection(COLLECTION).find(after, {"_id": 1})
        async for row in rows:
            self._without_entry.add(_digest(_name(row)))

    async def see(self, entries: Sequence[Document], place: str) -> None:
        """The entries of a row of the audit, which is called `place` in findings."""
        for entry in entries:
            if entry.get("what") not in _WRITES or entry.get("o") != OK or "v" not in entry:
                continue
            for reference in values(entry, "e"):
                kind, _, id_ = reference.partition("/")
                name = (kind, id_, entry["v"])
                digest = _digest(name)
                if digest in self._without_entry:
                    self._without_entry.remove(digest)
                else:
                    self._asked.setdefault(name, place)
        if len(self._asked) >= _AT_ONCE:
            await self._look_up()

    async def finish(self, spans: Sequence[tuple[datetime, datetime | None]]) -> None:
        """Tell of the versions without an entry that were written in these times."""
        await self._look_up()
        if not self._without_entry:
            return
        for start, end in spans:
            times = {"$gte": start} | ({"$lt": end} if end is not None else {})
            rows = self.mongo.collection(COLLECTION).find({"at": times}, {"_id": 1, "at": 1})
            async for row in rows.sort("at", ASCENDING):
                name = _name(row)
                if _digest(name) in self._without_entry:
                    self.add(f"{_shown(name)} of {row['at']:%Y-%m-%d %H:%M:%S} has no entry")

    async def _look_up(self) -> None:
        """Whether versions are there that entries tell of, and that were not or had an entry already."""
        asked, self._asked = self._asked, {}
        ids = [{"t": kind, "i": id_, "v": version} for kind, id_, version in asked]
        rows = self.mongo.collection(COLLECTION).find({"_id": {"$in": ids}}, {"_id": 1})
        there = {_name(row) for row in await rows.to_list(None)}
        for name, place in asked.items():
            if name not in there:
                self.add(f"{place}: tells of {_shown(name)}, which is not there")


def _name(row: Document) -> Name:
    key = row["_id"]
    return key["t"], key["i"], key["v"]


def _digest(name: Name) -> int:
    kind, id_, version = name
    digest = blake2b(f"{kind}/{id_}/{version}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def _shown(name: Name) -> str:
    return f"{name[0]}/{name[1]}/_history/{name[2]}"
