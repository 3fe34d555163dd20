"""What the audit says of a file of an export that is fetched: whose data it holds.

A file about many names its patients on record once, before it is given away for the first time: a client that fetches
it again and again writes no more into the audit than its name. Whoever looks for a patient's disclosures finds the file
where she is named, and by the file's name the other times (app/audit/accounting.py).
"""

from __future__ import annotations

from app.audit.entry import PATIENTS_AT_ONCE, entry, with_patients
from app.context import Context
from app.runtime.mongo import Document

# Entries that are written together: others who wait for their record come in between.
_AT_ONCE = 10


async def record(context: Context, row: Document, number: int) -> None:
    """Put on record that the caller fetches a file. Raises Unavailable where that must be done and cannot."""
    audit, jobs = context.server.audit, context.server.exports.jobs
    if audit is None:
        return
    file = row["files"][number]
    told = entry("export", audit.now(), status=200)
    told["k"] += [f"x:{row['_id']}", f"x:{row['_id']}/{number}.ndjson"]
    told["t"] = file["type"]
    if file.get("named"):
        await audit.record([told])
        return
    patients = await jobs.patients(row["_id"], number)
    entries = with_patients(told, patients)
    kept = True
    for start in range(0, len(entries), _AT_ONCE):
        kept &= await audit.record(entries[start : start + _AT_ONCE])
    if kept and len(patients) > PATIENTS_AT_ONCE:
        await jobs.named(row["_id"], number)
