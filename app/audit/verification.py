"""`verify`: the check that the audit is as it was written, with a finding for each row that is not.

It checks the registry, whose rows are sealed, then each chain against the registry. Changing, moving, adding and
removing rows breaks a link; cutting off a chain's end leaves it shorter than its heads in the registry.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import datetime

from pymongo import ASCENDING

from app.audit import chain_registry
from app.audit.hash_chain import digest, place
from app.audit.log import COLLECTION, within
from app.runtime.mongo import Document, Mongo
from app.runtime.secrets import Secrets, SecretsError

# Beyond this many findings the rest is only counted.
MOST_FINDINGS = 100


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
class _Known:
    """The registry's rows about a chain."""

    begin: bytes
    anchors: dict[int, bytes] = field(default_factory=dict)
    # Number of the last row, None while rows may follow; and when the registry last named the chain.
    closed: int | None = None
    said: datetime | None = None


async def verify(
    mongo: Mongo, secrets: Secrets, *, since: datetime | None = None, expect: str | None = None
) -> VerificationReport:
    """Walk the registry and the chains; with `since`, of the chains only those that were open then or began later.

    `expect`: a hash of the registry that was noted down before, and must still be in it.
    """
    report = VerificationReport()
    chains, retired, hashes = await _registry(mongo, secrets, report)
    if expect is not None and expect not in hashes:
        report.add(f"registry: the row with the hash {expect} is not there any more")
    for chain, known in chains.items():
        is_old = known.closed is not None and since and known.said and known.said < since
        if chain not in retired and not is_old:
            await _chain(mongo, chain, known, report)
    report.retired = len(retired)
    async for chain in _chains_there(mongo):
        if chain not in chains:
            report.add(f"chain {chain}: rows were inserted that belong to no chain of the registry")
    strange = {"_id": {"$not": {"$type": "string"}}}
    if count := await mongo.collection(COLLECTION).count_documents(strange):
        report.add(f"{count} rows were inserted that belong to no chain")
    return report


async def _registry(
    mongo: Mongo, secrets: Secrets, report: VerificationReport
) -> tuple[dict[str, _Known], set[str], set[str]]:
    chains: dict[str, _Known] = {}
    retired: set[str] = set()
    hashes: set[str] = set()
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
        hashes.add(previous.hex())
        for head in row["heads"]:
            _learn(chains, retired, row, head)
    report.head = previous.hex()
    return chains, retired, hashes


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


async def _chain(mongo: Mongo, chain: str, known: _Known, report: VerificationReport) -> None:
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
