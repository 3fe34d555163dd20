"""A bounded number of records for refusals that anybody can cause without limit.

A request without a token, or beyond a rate limit, is refused before anything is read, and could fill the audit. So of
similar refusals (same client or address, same kind, same status) the first of a minute are recorded one by one; the
others are counted, and one entry for all of them follows when the minute is over. Strangers are distinguished by
address, as for rate limits; those beyond MOST_ADDRESSES are counted together.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from app.runtime.mongo import Document

# How many similar refusals of a minute are recorded one by one, and how many of strangers altogether.
ALONE = 10
MOST_ALONE = 500
# How many addresses are distinguished.
MOST_ADDRESSES = 200
# The fields that the entries of similar refusals share.
_COMMON = ("what", "o", "s", "r")
# The length that a stranger's request line is cut to.
LONGEST_LINE = 1000

# The kind (`what`), the status, and the client or the address.
Key = tuple[str, int, str]


@dataclass(slots=True)
class _Alike:
    alone: int = 0
    more: int = 0
    since: datetime | None = None
    last: Document = field(default_factory=dict)


class Refusals:
    """The refusals of this minute in this process."""

    def __init__(self) -> None:
        self._alike: dict[Key, _Alike] = {}
        self._addresses: set[str] = set()
        self._strangers_alone = 0

    def take(self, entry: Document, *, client: str | None, address: str) -> bool:
        """Whether this refusal is to be recorded by itself; else it is counted. `client` is None for a stranger."""
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
        """One entry for each group of similar refusals that were counted. A new minute begins."""
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
