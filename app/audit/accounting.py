"""The accounting of disclosures of a patient's data, 45 CFR 164.528.

Every disclosure is listed, files of exports too, with the recipient's role; the privacy office leaves out those that
the rule excepts (treatment, payment, operations). Those of content of 42 CFR Part 2 name the Consents that they needed:
they are what an intermediary owes to patients who ask, 42 CFR 2.24.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from datetime import datetime

from pymongo import ASCENDING

from app.audit.entry import BY_CONSENT, OK, values
from app.audit.log import COLLECTION
from app.fhir.instants import instant
from app.runtime.mongo import Document, Mongo

COLUMNS = (
    "date",
    "what",
    "recipient",
    "organization",
    "role",
    "resource",
    "query",
    "request",
    "consent",
    "id",
)
# The interactions that show or send data; the response to a write repeats what the writer sent.
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
        "export",
        "delivery",
        "administration",
    }
)


async def disclosures(
    mongo: Mongo, patient: str, since: datetime | None = None, *, part_2: bool = False
) -> AsyncIterator[dict[str, str]]:
    """Each disclosure about a patient, by id, with the values of `COLUMNS`; the oldest first.

    With `part_2` only those of content of 42 CFR Part 2 that a Consent has permitted.
    """
    key = f"p:{patient}"
    files = await _files_about(mongo, key)
    filter_: Document = {"each.k": {"$in": [key, *sorted(files)]}}
    if since is not None:
        filter_["at"] = {"$gte": since}
    async for row in mongo.collection(COLLECTION).find(filter_).sort("at", ASCENDING):
        for number, entry in enumerate(row["each"], 1):
            is_disclosure = entry["o"] == OK and entry["what"] in _DISCLOSING
            consents = values(entry, BY_CONSENT) or _by_files(entry, files)
            if part_2 and not consents:
                continue
            if is_disclosure and _is_about(entry, key, files):
                yield _line(f"{row['_id']}.{number}", entry, consents)


def _by_files(entry: Document, files: Mapping[str, Sequence[str]]) -> list[str]:
    """The Consents that were named when the file of an entry without a patient was fetched first."""
    if values(entry, "p"):
        return []
    return [each for key in entry["k"] for each in files.get(key, ())]


async def _files_about(mongo: Mongo, key: str) -> dict[str, Sequence[str]]:
    """The keys of the files of exports that hold data of a patient, with the Consents that they needed for it."""
    found: dict[str, Sequence[str]] = {}
    named = {"each": {"$elemMatch": {"k": key, "what": "export"}}}
    async for row in mongo.collection(COLLECTION).find(named, {"each.k": 1}):
        for entry in row["each"]:
            if key in entry["k"]:
                consents = values(entry, BY_CONSENT)
                found |= {f"x:{each}": consents for each in values(entry, "x") if "/" in each}
    return found


def _is_about(entry: Document, key: str, files: Collection[str]) -> bool:
    """Whether an entry is about the patient: it names the patient, or no patient but one of these files."""
    return key in entry["k"] or (
        any(each in files for each in entry["k"]) and not values(entry, "p")
    )


def _line(id_: str, entry: Document, consents: Sequence[str]) -> dict[str, str]:
    resource = next(iter(values(entry, "e")), "")
    if resource and "v" in entry:
        resource = f"{resource}/_history/{entry['v']}"
    is_sent = entry["what"] == "delivery"
    recipient = entry.get("ip", "") if is_sent else next(iter(values(entry, "c")), "")
    return {
        "date": instant(entry["at"]),
        "what": entry["what"],
        "recipient": recipient,
        "organization": next(iter(values(entry, "g")), ""),
        "role": entry.get("r", ""),
        "resource": resource or entry.get("t", ""),
        "query": entry.get("q", ""),
        "request": entry.get("rq", "") or next(iter(values(entry, "u")), ""),
        "consent": " ".join(consents),
        "id": id_,
    }
