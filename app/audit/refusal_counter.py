"""Refusals that anybody can cause as often as they like, in a bounded number of records.

Who shows no token, or comes too often, is refused before anything is known or done, and could fill the audit that way.
So of what is alike (by whom, as what, with which status) the first of a minute are recorded one by one; the others are
counted, and one entry for all of them follows when the minute is over. Strangers are told apart by address, as rates
are; of more addresses than that the others are counted together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from app.runtime.mongo import Document

# How many of a minute that are alike are recorded one by one, and how many of strangers altogether.
ALONE = 10
MOST_ALONE = 500
# How many addresses are told apart.
MOST_ADDRESSES = 200
# Of an entry what all that are alike have in common.
_COMMON = ("what", "o", "s", "r")
# What a stranger's request line is cut to.
LONGEST_LINE = 1000

# What it was, the status, and the client or the address.
Key = tuple[str, int, str]


@dataclass(slots=True)
class _Alike:
    alone: int = 0
    more: int = 0
    since: datetime | None = None
    last: Document = field(default_factory=dict)


class Refusals:
    """Those of this minute, in this process."""

    def __init__(self) -> None:
        self._alike: dict[Key, _Alike] = {}
        self._addresses: set[str] = set()
        self._strangers_alone = 0

    def take(self, entry: Document, *, client: str | None, address: str) -> bool:
        """Whether this one is to be recorded by itself; if not, it is counted. `client` is None for a stranger."""
        most = ALONE
        if client is None and address not in self._addresses:
            if len(self._addresses) < MOST_ADDRESSES:
                self._addresses.add(address)
            else:
                address, most = "", 0
        who = f"address {address}" if client is None else f"client {client}"
        alike = self._alike.setdefault((entry["what"], entry["s"], who), _Alike())
        if client is None and self._strangers_alone >= MOST_ALONE:
            most = 0
        if alike.alone < most:
            alike.alone += 1
            self._strangers_alone += client is None
            return True
        alike.more += 1
        alike.since = alike.since or entry["at"]
        alike.last = {**entry, "ip": address} if client is None else entry
        return False

    def due(self) -> list[Document]:
        """An entry for all that were counted of each kind. A new minute begins."""
        entries = [_entry(each) for each in self._alike.values() if each.more]
        self._alike, self._addresses, self._strangers_alone = {}, set(), 0
        return entries


def _entry(alike: _Alike) -> Document:
    last = alike.last
    entry = {name: last[name] for name in ("at", *_COMMON) if name in last}
    entry["k"] = [key for key in last["k"] if key[0] in "cgo"]
    if last["ip"]:
        entry["ip"] = last["ip"]
    return {**entry, "n": alike.more, "since": alike.since}
