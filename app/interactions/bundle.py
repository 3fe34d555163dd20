"""Batch and transaction: several interactions in one Bundle.

https://hl7.org/fhir/R4/http.html#transaction

A batch runs its entries concurrently as single interactions. A transaction plans all of its writes first (DELETE, POST,
PUT and PATCH), writes them in one commit, then runs its reads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from app.audit import recorded
from app.context import Context, WriteScope
from app.errors import BadRequest, FhirError, Gone, NotFound, Unprocessable
from app.fhir.json import Resource
from app.interactions import bundle_references, interactions, plan as write
from app.interactions.bundle_entries import (
    ORDER,
    BundleEntry,
    address_of,
    body_of,
    check_known,
    failure,
    invalid,
    located,
    parse,
    patch_in,
    response,
)
from app.interactions.plan import Target, WritePlan
from app.interactions.preconditions import Prefer
from app.interactions.result import InteractionResult
from app.records.versions import ResourceVersion, WriteAction
from app.runtime import pace
from app.search.bundle_writer import write_bundle, written_entries

# The router's handler for an entry that is no plain write.
Dispatch = Callable[[Context, BundleEntry], Awaitable[InteractionResult]]

_ACTIONS: dict[str, WriteAction] = {"PUT": "update", "PATCH": "patch", "DELETE": "delete"}
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
    left = iter(enumerate(raw))

    async def run(index: int, entry: Any) -> str:
        try:
            parsed = parse(context, index, entry)
            answer = await _run_alone(context, parsed, dispatch)
            return response(context, parsed, answer, prefer)
        except FhirError as error:
            return failure(error)

    async def work() -> None:
        for index, entry in left:
            responses[index] = await run(index, entry)
            await pace.breathe()

    await asyncio.gather(*(work() for _ in range(min(_SIDE_BY_SIDE, len(raw)))))
    return responses


async def _run_alone(context: Context, entry: BundleEntry, dispatch: Dispatch) -> InteractionResult:
    """One batch entry, as the single interaction that it names."""
    if entry.method in ("GET", "HEAD") or "$" in entry.path:
        return await dispatch(context, entry)
    url = f"{entry.path}?{entry.query}" if entry.query else entry.path
    return await recorded.write(
        context.services.audit,
        context.caller,
        entry.method,
        url,
        lambda: _write_alone(context, entry),
    )


async def _write_alone(context: Context, entry: BundleEntry) -> InteractionResult:
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
    if resource_id is None:
        return await interactions.conditional_patch(
            context, resource_type, entry.query, await patch_in(context, entry), conditions
        )
    return await interactions.patch(
        context, resource_type, resource_id, await patch_in(context, entry), conditions
    )


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
            context.store, lambda: _commit(context, writes, rehearse)
        )
    else:
        answers = {}
    for entry in reads:
        with located(entry):
            answers[entry.index] = await dispatch(context, entry)
    return [
        response(context, entry, answers[entry.index], prefer)
        async for entry in pace.paced(entries)
    ]


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


async def _commit(
    context: Context, writes: Sequence[BundleEntry], rehearse: Callable[[Context], Awaitable[None]]
) -> dict[int, InteractionResult]:
    """Plan all writes against what is stored now, rehearse the reads that follow, and commit the writes as one."""
    await _find_targets(context, writes)
    _refuse_double_targets(writes)
    bodies = await bundle_references.resolve(context, writes)
    deleting = frozenset(
        entry.target.reference for entry in writes if entry.target and entry.method == "DELETE"
    )
    creating = frozenset(
        (entry.target.type, entry.target.id)
        for entry in writes
        if entry.target and entry.method in ("POST", "PUT")
    )
    writing = frozenset(entry.target.reference for entry in writes if entry.target)
    planned = replace(context, write_scope=WriteScope(creating, deleting, writing))
    plans: list[WritePlan] = []
    async for entry in pace.paced(writes):
        with located(entry):
            plans.append(await _plan(planned, entry, bodies.get(entry.index)))
    await rehearse(planned)
    changes = [plan.change for plan in plans if plan.change]
    guards = {guard.key: guard for plan in plans for guard in plan.guards}
    committed: dict[str, ResourceVersion] = {}
    if changes:
        for stored in await context.store.commit(changes, list(guards.values())):
            committed[stored.reference] = stored
    return {
        entry.index: plan.answer(committed.get(plan.change.key) if plan.change else None)
        async for entry, plan in pace.paced(zip(writes, plans, strict=True))
    }


async def _find_targets(context: Context, writes: Sequence[BundleEntry]) -> None:
    """Decide for each write which resource it is about; the plain ones are read together."""
    plain = {}
    actions: dict[tuple[str, str], WriteAction] = {}
    async for entry in pace.paced(writes):
        resource_type, resource_id = address_of(entry)
        with located(entry):
            write.check_type(resource_type)
            if resource_id is not None:
                action = _ACTIONS[entry.method]
                context.require(resource_type, *write.RIGHTS[action])
                actions[resource_type, resource_id] = action
                plain[entry.index] = (resource_type, resource_id)
    current = await context.store.previous_many(actions)
    async for entry in pace.paced(writes):
        with located(entry):
            if entry.index in plain:
                resource_type, resource_id = plain[entry.index]
                if entry.method == "PUT":
                    write.check_body_id(resource_type, resource_id, body_of(entry))
                previous = current.get(f"{resource_type}/{resource_id}")
                entry.target = Target(resource_type, resource_id, previous)
            else:
                entry.target = await _conditional_target(context, entry)


async def _conditional_target(context: Context, entry: BundleEntry) -> Target | None:
    resource_type, _ = address_of(entry)
    if entry.method == "POST":
        return await write.target_of_create(
            context, resource_type, entry.preconditions.if_none_exist, body_of(entry)
        )
    if entry.method == "PUT":
        return await write.target_of_conditional_update(
            context, resource_type, entry.query, body_of(entry).get("id")
        )
    if entry.method == "PATCH":
        return await write.target_of_patch(context, resource_type, entry.query)
    context.require(resource_type, "d")
    guards, matches = await write.find_matches(context, resource_type, entry.query)
    if not matches:
        return None
    return Target(resource_type, matches[0].id, matches[0], guards)


def _refuse_double_targets(writes: Sequence[BundleEntry]) -> None:
    seen: dict[str, BundleEntry] = {}
    for entry in writes:
        if entry.target is None:
            continue
        other = seen.setdefault(entry.target.reference, entry)
        both_settled = (
            entry.target.settled is not None
            and other.target is not None
            and (other.target.settled is not None)
        )
        if other is not entry and not both_settled:
            raise BadRequest(
                f"{entry.where} and {other.where} change the same resource",
                code="invalid",
                expression=(other.where, entry.where),
            )


async def _plan(context: Context, entry: BundleEntry, body: Resource | None) -> WritePlan:
    if entry.target is None:
        entry.preconditions.check(None)
        return WritePlan(204)
    if entry.method == "DELETE":
        return await write.plan_delete(context, entry.target, entry.preconditions)
    if entry.method == "PATCH":
        apply = await patch_in(context, entry)
        return await write.plan_patch(context, entry.target, apply, entry.preconditions)
    if body is None:
        raise invalid(entry, "resource", "The entry needs a resource")
    return await write.plan_write(context, entry.target, body, entry.preconditions)
