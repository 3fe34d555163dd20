"""Where clients see how far an export is, cancel it and fetch its files.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html#bulk-data-status-request

    GET, DELETE  [base]/_export/<id>
    GET          [base]/_export/<id>/<n>.ndjson
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from app.api import exchange
from app.audit.entry import BY_CONSENT, PATIENTS_AT_ONCE, entry, with_patients
from app.bulk import export_authorization
from app.bulk.export_jobs import RETRY_SECONDS, address
from app.bulk.exports import Exports
from app.bulk.writing import gzipped, unpacked
from app.consent import redisclosure
from app.context import Context
from app.errors import NotFound, TooManyRequests
from app.fhir import json as fhir_json
from app.fhir.instants import instant
from app.runtime.mongo import Document

NDJSON = "application/fhir+ndjson"
_ENDING = ".ndjson"


async def status(request: Request, context: Context) -> Response:
    """202 while it is at work, 200 with the manifest, 500 where it failed.

    Raises TooManyRequests, NotFound, or Forbidden where the client's rights or the token's are less than they were.
    """
    row = await _export(request, context)
    export_authorization.check(row, context.caller)
    if row["state"] == "failed":
        return Response(row["error"], 500, media_type="application/fhir+json")
    if row["state"] == "done":
        headers = {"Expires": exchange.http_date(row["expires"].replace(microsecond=0))}
        manifest = fhir_json.encode(_manifest(row, context))
        return Response(manifest, 200, headers, "application/json")
    again = {"Retry-After": str(RETRY_SECONDS)}
    if not await context.services.get(Exports).jobs.may_poll(row["_id"]):
        raise TooManyRequests("Ask again after the seconds of Retry-After", headers=again)
    return Response(status_code=202, headers={"X-Progress": _progress(row), **again})


async def cancel(request: Request, context: Context) -> Response:
    """202; from then on the export is unknown, and its files go."""
    row = await _export(request, context)
    await context.services.get(Exports).cancel(row["_id"])
    return Response(status_code=202)


async def file(request: Request, context: Context) -> Response:
    """One file as it was written, or unpacked for a client that does not take gzip. Raises NotFound or Forbidden."""
    row = await _export(request, context)
    export_authorization.check(row, context.caller)
    name, dot, _ = request.path_params["file"].rpartition(_ENDING)
    is_number = bool(dot) and name.isascii() and name.isdigit() and len(name) < 9
    if row["state"] != "done" or not is_number or int(name) >= len(row["files"]):
        raise NotFound("There is no such file")
    headers = {"Vary": "Accept-Encoding", "Cache-Control": "private, no-store"}
    packed = _takes_gzip(request.headers.get("accept-encoding", ""))
    if packed:
        headers["Content-Encoding"] = "gzip"
    if consents := row["files"][int(name)].get("consents"):
        headers[redisclosure.HEADER] = redisclosure.header(consents)
    if request.method == "HEAD":
        return Response(status_code=200, headers=headers, media_type=NDJSON)
    await record(context, row, int(name))
    entry = row["files"][int(name)]
    pieces = context.services.get(Exports).jobs.pieces(row["_id"], int(name), entry["pieces"])
    content = gzipped(pieces, entry) if packed else unpacked(pieces)
    return StreamingResponse(_patiently(request, content), headers=headers, media_type=NDJSON)


async def _patiently(request: Request, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The time limit of an answer begins anew with each piece: a large file takes longer than any page."""
    visit = request.scope.get("visit")
    async for piece in content:
        yield piece
        if visit is not None:
            visit.deadline = asyncio.get_running_loop().time() + visit.limits.request_seconds


async def _export(request: Request, context: Context) -> Document:
    row = await context.services.get(Exports).find(context, request.path_params["export"])
    if row is None:
        raise NotFound("There is no such export; it may have expired or been cancelled")
    return row


def _manifest(row: Document, context: Context) -> dict[str, Any]:
    """https://hl7.org/fhir/uv/bulkdata/STU2/export.html#response---complete-status"""
    listed: dict[str, list[dict[str, Any]]] = {"output": [], "deleted": [], "error": []}
    for number, each in enumerate(row["files"]):
        url = f"{address(row['base_url'], row['_id'])}/{number}{_ENDING}"
        listed[each["kind"]].append({"type": each["type"], "url": url, "count": each["lines"]})
    return {
        "transactionTime": instant(row["at"]),
        "request": row["request"],
        "requiresAccessToken": context.settings.auth == "smart",
        "output": listed["output"],
        "deleted": listed["deleted"],
        "error": listed["error"],
    }


def _progress(row: Document) -> str:
    """Not longer than 100 characters."""
    if row["place"] is None:
        return "Waiting to begin"
    stage, number, _, _ = row["place"]
    if stage == "deleted":
        return f"Reading deletions, {row['lines']} lines so far"
    kinds = row["types"]
    return f"Type {min(number + 1, len(kinds))} of {len(kinds)}, {row['lines']} resources so far"


def _takes_gzip(accepted: str) -> bool:
    for part in accepted.lower().split(","):
        name, _, quality = part.replace(" ", "").partition(";q=")
        if name == "gzip":
            return quality not in ("0", "0.0", "0.00", "0.000")
    return False


# What the audit says of a file of an export that is fetched: whose data it holds.
#
# A file about many names its patients on record once, before it is given away for the first time: a client that
# fetches it again and again writes no more into the audit than its name. Whoever looks for a patient's disclosures
# finds the file where she is named, and by the file's name the other times (app/audit/accounting.py).

# Entries that are written together: others who wait for their record come in between.
_AT_ONCE = 10


async def record(context: Context, row: Document, number: int) -> None:
    """Put on record that the caller fetches a file. Raises Unavailable where that must be done and cannot."""
    audit, jobs = context.services.audit, context.services.get(Exports).jobs
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
    permits = await jobs.permits(row["_id"], number)
    others = patients - permits.keys()
    entries = with_patients({**told, "k": [*told["k"]]}, others) if others or not permits else []
    # Each by itself: nobody else's Consent is in the list of a patient's disclosures.
    for patient, consents in sorted(permits.items()):
        by = [f"{BY_CONSENT}:{each}" for each in sorted(consents)]
        entries.append({**told, "k": [*told["k"], f"p:{patient}", *by]})
    kept = True
    for start in range(0, len(entries), _AT_ONCE):
        kept &= await audit.record(entries[start : start + _AT_ONCE])
    if kept and len(patients) > PATIENTS_AT_ONCE:
        await jobs.named(row["_id"], number)
