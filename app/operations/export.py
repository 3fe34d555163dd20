"""$export: kicks off a Bulk Data export of the system, of all patients or of a Group's members.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html#bulk-data-kick-off-request
"""

from __future__ import annotations

from urllib.parse import quote, urlencode

from app.bulk.cohort import members_at
from app.bulk.export_jobs import address
from app.bulk.export_request import (
    FORMATS,
    ExportRequest,
    Level,
    read_elements,
    read_filters,
    read_patients,
    read_types,
    types_at,
)
from app.bulk.exports import Exports
from app.context import Context
from app.errors import BadRequest
from app.fhir.instants import instant_in
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """202, with the address of the status in Content-Location."""
    if not context.respond_async:
        raise BadRequest(
            "An export is asynchronous; ask for it with the header Prefer: respond-async",
            code="required",
            expression="http.Prefer",
        )
    requested = await _read(context, invocation)
    export_id = await context.services.get(Exports).request(
        context, requested, _url(context, invocation)
    )
    where = address(context.base_url, export_id)
    return InteractionResult(202, headers={"Content-Location": where})


async def _read(context: Context, invocation: Invocation) -> ExportRequest:
    lenient = context.handling == "lenient"
    level: Level = "system"
    if invocation.resource_type is not None:
        level = "patient" if invocation.resource_id is None else "group"
    wanted = invocation.one("_outputFormat")
    if wanted is not None and str(wanted).replace(" ", "+") not in FORMATS:
        raise BadRequest(
            "_outputFormat must be application/fhir+ndjson",
            code="not-supported",
            expression="_outputFormat",
        )
    if invocation.all("includeAssociatedData") and not lenient:
        raise BadRequest(
            "This server has no associated data to include",
            code="not-supported",
            expression="includeAssociatedData",
        )
    since = invocation.one("_since")
    types = read_types(level, map(str, invocation.all("_type")), lenient=lenient)
    queries = map(str, invocation.all("_typeFilter"))
    requested = ExportRequest(
        level,
        invocation.resource_id,
        types,
        instant_in(since, "_since") if since is not None else None,
        read_elements(map(str, invocation.all("_elements"))),
        read_filters(context, queries, types or types_at(level), lenient=lenient),
        read_patients(invocation.all("patient"), context.base_url),
    )
    await _check_there(context, requested, lenient=lenient)
    return requested


async def _check_there(context: Context, requested: ExportRequest, *, lenient: bool) -> None:
    """Raises NotFound or Gone for the Group, BadRequest for a patient that does not exist or is no member."""
    if requested.group is not None:
        await interactions.current(context, "Group", requested.group)
    if not requested.patients or lenient:
        return
    if requested.group is not None:
        now = context.services.mongo.now()
        there = await members_at(context.store, requested.group, now, context.base_url) or set()
    else:
        found = await context.store.read_many([("Patient", each) for each in requested.patients])
        there = {stored.id for stored in found.values() if not stored.deleted}
    if not set(requested.patients) <= there:
        raise BadRequest(
            "patient names one that is not there or no member of the Group",
            code="not-found",
            expression="patient",
        )


def _url(context: Context, invocation: Invocation) -> str:
    """The URL of the request as the manifest repeats it, without a POST's body."""
    parts = [context.base_url, invocation.resource_type, invocation.resource_id, "$export"]
    url = "/".join(part for part in parts if part)
    query = invocation.given.query
    return f"{url}?{urlencode(query, quote_via=quote)}" if query else url
