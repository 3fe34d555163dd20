"""Whom a patient's data were shown or sent to: the accounting of disclosures of 45 CFR 164.528.

Everything that went out is listed, with the role of who got it; what the rule excepts (treatment, payment, operations)
is for the privacy office to leave out.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from pymongo import ASCENDING

from app.audit.entry import OK, values
from app.audit.log import COLLECTION
from app.mongo import Document, Mongo
from app.versions import instant

COLUMNS = (
    "date",
    "what",
    "recipient",
    "organization",
    "role",
    "resource",
    "query",
    "request",
    "id",
)
# What shows or sends data; a write tells the writer what the writer said.
_DISCLOSING = frozenset(
    {
        "read",
        "vread",
        "history-instance",
        "history-type",
        "history-system",
        "search-type",
        "search-system",
        "operation",
        "delivery",
    }
)


async def disclosures(
    mongo: Mongo, patient: str, since: datetime | None = None
) -> AsyncIterator[dict[str, str]]:
    """Each disclosure about a patient, by id, with the values of `COLUMNS`; the oldest first."""
    key = f"p:{patient}"
    filter_: Document = {"each.k": key} | ({"at": {"$gte": since}} if since is not None else {})
    async for row in mongo.collection(COLLECTION).find(filter_).sort("at", ASCENDING):
        for number, entry in enumerate(row["each"], 1):
            if key in entry["k"] and entry["o"] == OK and entry["what"] in _DISCLOSING:
                yield _line(f"{row['_id']}.{number}", entry)


def _line(id_: str, entry: Document) -> dict[str, str]:
    told = next(iter(values(entry, "e")), "")
    if told and "v" in entry:
        told = f"{told}/_history/{entry['v']}"
    is_sent = entry["what"] == "delivery"
    recipient = entry.get("ip", "") if is_sent else next(iter(values(entry, "c")), "")
    return {
        "date": instant(entry["at"]),
        "what": entry["what"],
        "recipient": recipient,
        "organization": next(iter(values(entry, "g")), ""),
        "role": entry.get("r", ""),
        "resource": told or entry.get("t", ""),
        "query": entry.get("q", ""),
        "request": entry.get("rq", "") or next(iter(values(entry, "u")), ""),
        "id": id_,
    }
