"""Batch and transaction: several interactions in one Bundle.

https://hl7.org/fhir/R4/http.html#transaction

A batch runs its entries as single interactions, side by side but for those about one resource. A transaction plans all
of its writes first (DELETE, POST, PUT and PATCH), writes them in one commit, then runs its reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from app.audit import recorded
from app.context import Context
from app.errors import BadRequest, FhirError, Gone, NotFound, TooLarge, Unprocessable
from app.fhir.entry_references import EntryReferences
from app.fhir.json import Resource
from app.interactions import batch_order, bundle_references, interactions, transaction_plan
from app.interactions.bundle_entries import (
    ORDER,
    BundleEntry,
    address_of,
    body_of,
    check_full_urls,
    check_known,
    failure,
    located,
    parse,
    patch_in,
    response,
    too_much,
)
from app.interactions.preconditions import Prefer
from app.interactions.result import InteractionResult
from app.runtime import pace
from app.search.bundle_writer import write_bundle, written_entries
from app.search.page_bytes import Room

# The router's handler for an entry that is no plain write.
Dispatch = Callable[[Context, BundleEntry], Awaitable[InteractionResult]]

_SIDE_BY_SIDE = 16


async def process(
    context: Context, bundle: Resource, prefer: Prefer, dispatch: Dispatch
) -> InteractionResult:
    """Run a batch or transaction Bundle.

    200 with a response Bundle, entries in the order of the request. A failing transaction raises one FhirError and
    stores nothing; a failing batch entry only fails itself.
    """
    if bundle.get("resourceType") != "Bundle" or bundle.get("type") not in ("batch", "transaction"):
        raise BadRequest(
            "Post a Bundle of type batch or transaction here",
            code="invalid",
            expression="Bundle.type",
        )
    check_known(bundle, (), "Bundle")
    raw = bundle.get("entry", [])
    if not isinstance(raw, list):
        raise BadRequest("Must be an array", code="structure", expression="Bundle.entry")
    if len(raw) > context.settings.max_bundle_entries:
        raise BadRequest(
            f"The Bundle has more than {context.settings.max_bundle_entries} entries",
            code="too-costly",
        )
    check_full_urls(raw)
    if bundle["type"] == "batch":
        responses = await _batch(context, raw, prefer, dispatch)
    else:
        entries = [
            parse(context, index, entry) async for index, entry in pace.paced(enumerate(raw))
        ]
        for entry in entries:
            if entry.method == "POST" and "$" in entry.path:
                raise Unprocessable(
                    "An operation cannot share a transaction's single commit",
                    expression=entry.where,
                )
            if entry.method in ("GET", "HEAD") and entry.preconditions.if_match is not None:
                raise BadRequest(
                    "A read follows the commit and cannot fail it: it knows no ifMatch here",
                    code="not-supported",
                    expression=f"{entry.where}.request.ifMatch",
                )
        responses = await _transaction(context, entries, prefer, dispatch)
    head = {"type": f"{bundle['type']}-response"}
    return InteractionResult(200, text=write_bundle(head, (), written_entries(responses)))


async def _batch(
    context: Context, raw: Sequence[Any], prefer: Prefer, dispatch: Dispatch
) -> list[str]:
    responses = [""] * len(raw)
    entries: list[BundleEntry] = []
    async for index, each in pace.paced(enumerate(raw)):
        try:
            entries.append(parse(context, index, each))
        except FhirError as error:
            responses[index] = failure(error)
    names = bundle_references.of_requests(context, raw, entries)
    room = Room()

    async def run(entry: BundleEntry) -> str:
        try:
            if room.is_full and entry.method in ("GET", "HEAD"):
                raise too_much()
            answer = await _run_alone(context, entry, names, dispatch)
            return await response(context, entry, answer, prefer, room)
        except FhirError as error:
            return failure(error)

    lanes = batch_order.lanes(entries, context.services.clock.now())
    left = iter(lanes)

    async def work() -> None:
        for lane in left:
            for entry in lane:
                responses[entry.index] = await run(entry)
                await pace.breathe()

    await asyncio.gather(*(work() for _ in range(min(_SIDE_BY_SIDE, len(lanes)))))
    return responses


async def _run_alone(
    context: Context, entry: BundleEntry, names: EntryReferences, dispatch: Dispatch
) -> InteractionResult:
    """One batch entry, as the single interaction that it names."""
    bundle_references.check_criteria(names, entry)
    if entry.method in ("POST", "PUT") and isinstance(entry.resource, dict):
        entry.resource = bundle_references.read(names, entry.index, entry.resource)
    if entry.method in ("GET", "HEAD") or "$" in entry.path:
        return await dispatch(context, entry)
    url = f"{entry.path}?{entry.query}" if entry.query else entry.path
    return await recorded.write(
        context.services.audit,
        context.caller,
        entry.method,
        url,
        lambda: _write_alone(context, entry, names),
    )


async def _write_alone(
    context: Context, entry: BundleEntry, names: EntryReferences
) -> InteractionResult:
    conditions = entry.preconditions
    resource_type, resource_id = address_of(entry)
    if entry.method == "POST":
        return await interactions.create(context, resource_type, body_of(entry), conditions)
    if entry.method == "DELETE":
        if resource_id is None:
            return await interactions.conditional_delete(
                context, resource_type, entry.query, conditions
            )
        return await interactions.delete(context, resource_type, resource_id, conditions)
    if entry.method == "PUT":
        if resource_id is None:
            return await interactions.conditional_update(
                context, resource_type, entry.query, body_of(entry), conditions
            )
        return await interactions.update(
            context, resource_type, resource_id, body_of(entry), conditions
        )
    apply = bundle_references.applied(await patch_in(context, entry), names, entry.index)
    if resource_id is None:
        return await interactions.conditional_patch(
            context, resource_type, entry.query, apply, conditions
        )
    return await interactions.patch(context, resource_type, resource_id, apply, conditions)


async def _transaction(
    context: Context, entries: list[BundleEntry], prefer: Prefer, dispatch: Dispatch
) -> list[str]:
    writes = sorted(
        (entry for entry in entries if entry.method not in ("GET", "HEAD")),
        key=lambda entry: ORDER[entry.method],
    )
    reads = [entry for entry in entries if entry.method in ("GET", "HEAD")]

    async def rehearse(planned: Context) -> None:
        await _rehearse(planned, reads, dispatch)

    if writes:
        answers = await interactions.until_undisturbed(
            context.store, lambda: transaction_plan.commit(context, entries, writes, rehearse)
        )
    else:
        answers = {}
    responses: dict[int, str] = {}
    room = Room()
    # What was written is told first: no read may take its room.
    for entry in writes:
        responses[entry.index] = await response(context, entry, answers[entry.index], prefer, room)
        await pace.breathe()
    for entry in reads:
        try:
            with located(entry):
                if room.is_full:
                    raise too_much()
                answer = await dispatch(context, entry)
                responses[entry.index] = await response(context, entry, answer, prefer, room)
        except TooLarge as error:
            # It came after the commit, which nothing takes back.
            responses[entry.index] = failure(error)
    return [responses[entry.index] for entry in entries]


async def _rehearse(context: Context, reads: Sequence[BundleEntry], dispatch: Dispatch) -> None:
    """Run the reads before the writes, to fail in time: after the commit nothing could be taken back any more.

    What the writes create need not be there yet.
    """
    for entry in reads:
        place = entry.segments[:2]
        with located(entry):
            if "/".join(place) in context.write_scope.deleting:
                raise Gone("This transaction deletes the resource")
            try:
                await dispatch(context, entry)
            except (NotFound, Gone):
                if tuple(place) not in context.write_scope.creating:
                    raise
