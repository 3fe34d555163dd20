"""`verify`: the check that the audit is as it was written, with a finding for each row that is not.

It checks the registry, whose rows are sealed, against the heads that were kept outside of the database, then each chain
against the registry, and the versions of resources against their entries. Changing, moving, adding and removing rows
breaks a link; cutting off a chain's end leaves it shorter than its heads in the registry, cutting off the registry's
end leaves it shorter than a head that was kept.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from pymongo import ASCENDING

from app.audit import chain_registry
from app.audit.hash_chain import digest, place
from app.audit.kept_head import Head
from app.audit.log import COLLECTION, within
from app.audit.version_check import VersionCheck
from app.runtime.mongo import Document, Mongo
from app.runtime.secrets import Secrets, SecretsError

# Beyond this many findings the rest is only counted.
MOST_FINDINGS = 100
# A chain that began before a time has entries for a day after it at the most.
_CHAIN_LASTS = timedelta(days=1, hours=1)


@dataclass(slots=True)
class VerificationReport:
    """`findings` are sentences for people; none means that all is as it was written.

    `unanchored` rows are linked, but newer than their chain's last head in the registry: a cut there is not detected.
    `head` is the hash of the registry's last row.
    """

    chains: int = 0
    rows: int = 0
    entries: int = 0
    unanchored: int = 0
    retired: int = 0
    head: str = ""
    findings: list[str] = field(default_factory=list)
    more: int = 0

    def add(self, finding: str) -> None:
        if len(self.findings) < MOST_FINDINGS:
            self.findings.append(finding)
        else:
            self.more += 1


@dataclass(slots=True)
class _Registry:
    """What the registry says. `recorded` are the times in which everything was on record, the last one open."""

    chains: dict[str, _Known] = field(default_factory=dict)
    retired: set[str] = field(default_factory=set)
    hashes: dict[str, int] = field(default_factory=dict)
    last: int = 0
    recorded: list[tuple[datetime, datetime | None]] = field(default_factory=list)
    gone_before: datetime | None = None

    def learn(self, row: Document) -> None:
        self.hashes[row["hash"].hex()] = row["_id"]
        is_on = bool(self.recorded) and self.recorded[-1][1] is None
        if row["kind"] == "off" and is_on:
            self.recorded[-1] = (self.recorded[-1][0], row["at"])
        elif row["kind"] == "begin" and not is_on:
            self.recorded.append((row["at"], None))
        elif row["kind"] == "retire":
            self.gone_before = row["before"]
        for head in row["heads"]:
            _learn(self.chains, self.retired, row, head)

    def complete_times(self, since: datetime | None) -> list[tuple[datetime, datetime | None]]:
        """The times whose entries are all still there and are looked at."""
        gone = self.gone_before + _CHAIN_LASTS if self.gone_before is not None else None
        least = max((each for each in (gone, since) if each is not None), default=None)
        spans = []
        for start, end in self.recorded:
            begin = start if least is None else max(start, least)
            if end is None or begin < end:
                spans.append((begin, end))
        return spans


@dataclass(slots=True)
class _Known:
    """The registry's rows about a chain."""

    begin: bytes
    anchors: dict[int, bytes] = field(default_factory=dict)
    # Number of the last row, None while rows may follow; and when the registry last named the chain.
    closed: int | None = None
    said: datetime | None = None


async def verify(
    mongo: Mongo,
    secrets: Secrets,
    *,
    since: datetime | None = None,
    expect: str | None = None,
    kept: Mapping[str, Head] | None = None,
) -> VerificationReport:
    """Walk the registry and the chains; with `since`, of the chains only those that were open then or began later.

    `expect` is a hash of the registry that was noted down before, `kept` are heads by where they are kept: all of these
    must still be in it.
    """
    report = VerificationReport()
    versions = VersionCheck(mongo, report.add)
    await versions.read_versions(since)
    known = await _registry(mongo, secrets, report)
    if expect is not None and expect not in known.hashes:
        report.add(f"registry: the row with the hash {expect} is not there any more")
    for place_, head in (kept or {}).items():
        _compare(known, place_, head, report)
    for chain, anchored in known.chains.items():
        is_old = anchored.closed is not None and since and anchored.said and anchored.said < since
        if chain not in known.retired and not is_old:
            await _chain(mongo, chain, anchored, report, versions)
    await versions.finish(known.complete_times(since))
    report.retired = len(known.retired)
    async for chain in _chains_there(mongo):
        if chain not in known.chains:
            report.add(f"chain {chain}: rows were inserted that belong to no chain of the registry")
    strange = {"_id": {"$not": {"$type": "string"}}}
    if count := await mongo.collection(COLLECTION).count_documents(strange):
        report.add(f"{count} rows were inserted that belong to no chain")
    return report


def _compare(known: _Registry, place_: str, head: Head, report: VerificationReport) -> None:
    """Tell where the registry does not go on from what was kept."""
    if known.hashes.get(head.hash) == head.number:
        return
    kept = f"{place_} has row {head.number} of {head.at}"
    how = "the audit was cut back, or the database is a backup of before"
    if known.last < head.number:
        report.add(f"registry: ends with row {known.last}, and {kept}: {how}")
    else:
        report.add(f"registry row {head.number}: is another one than was kept, {kept}: {how}")


async def _registry(mongo: Mongo, secrets: Secrets, report: VerificationReport) -> _Registry:
    found = _Registry()
    number, previous = 0, b""
    async for row in mongo.collection(chain_registry.COLLECTION).find({}).sort("_id", ASCENDING):
        if row["_id"] != number + 1:
            report.add(f"registry: rows {number + 1} to {row['_id'] - 1} were removed")
        elif row["prev"] != previous:
            report.add(f"registry row {row['_id']}: does not follow the row before it")
        number, previous = row["_id"], row["hash"]
        if not _is_ours(row, secrets):
            report.add(f"registry row {number}: was changed, or sealed with a key unknown here")
            continue
        found.learn(row)
    found.last = number
    report.head = previous.hex()
    return found


def _is_ours(row: Document, secrets: Secrets) -> bool:
    plain = {name: value for name, value in row.items() if name not in ("hash", "seal")}
    try:
        sealed = secrets.open(row["seal"])
    except SecretsError:
        return False
    is_sealed = row["seal"] != sealed and sealed == row["hash"].hex()
    return is_sealed and digest(plain) == bytes(row["hash"])


def _learn(chains: dict[str, _Known], retired: set[str], row: Document, head: Document) -> None:
    chain, kind = head["c"], row["kind"]
    if kind == "begin":
        chains[chain] = _Known(row["hash"])
        return
    known = chains.setdefault(chain, _Known(b""))
    known.said = row["at"]
    if kind == "retire":
        retired.add(chain)
        return
    if head["n"]:
        known.anchors[head["n"]] = head["h"]
    if kind == "close" and row["sure"]:
        known.closed = head["n"]


async def _chain(
    mongo: Mongo, chain: str, known: _Known, report: VerificationReport, versions: VersionCheck
) -> None:
    report.chains += 1
    number, previous = 0, known.begin
    async for row in mongo.collection(COLLECTION).find(within(chain)).sort("_id", ASCENDING):
        report.rows += 1
        report.entries += len(row.get("each", ()))
        here = place(row["_id"])
        name = f"chain {chain} row {here}"
        if here == 0:
            report.add(f"row {row['_id']}: inserted, no chain has such rows")
            continue
        if here != number + 1:
            which = f"{number + 1}" if here == number + 2 else f"{number + 1} to {here - 1}"
            report.add(f"chain {chain} row {which}: removed")
        elif row.get("prev") != previous:
            report.add(f"{name}: does not follow the row before it")
        plain = {field: value for field, value in row.items() if field != "hash"}
        if digest(plain) != row.get("hash"):
            report.add(f"{name}: changed")
        elif known.anchors.get(here, row["hash"]) != row["hash"]:
            report.add(f"{name}: is not the row that was anchored")
        if known.closed is not None and here > known.closed:
            report.add(f"{name}: inserted after the chain was closed")
        await versions.see(row.get("each", ()), name)
        number, previous = here, row.get("hash", b"")
    last = max(known.anchors, default=0)
    if number < last:
        report.add(f"chain {chain} rows {number + 1} to {last}: cut off its end")
    report.unanchored += max(number - last, 0)


async def _chains_there(mongo: Mongo) -> AsyncIterator[str]:
    """The chains that have rows, with one read for each."""
    audit = mongo.collection(COLLECTION)
    beyond = ""
    while True:
        later = {"_id": {"$gt": beyond}}
        row = await audit.find_one(later, {"_id": 1}, sort=[("_id", ASCENDING)])
        if row is None:
            return
        chain = str(row["_id"]).partition(".")[0]
        yield chain
        beyond = f"{chain}/"
