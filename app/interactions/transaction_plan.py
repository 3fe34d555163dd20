"""The plan of a transaction: which resource each entry is about, judged against what is stored and against each other.

https://hl7.org/fhir/R4/http.html#trules. In R4's order: what is deleted is found by no condition of the other entries,
and what one entry writes is not found by the condition of another (overlaps.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from app.context import Context, WriteScope
from app.fhir.entry_references import EntryReferences
from app.fhir.json import Resource
from app.interactions import bundle_references, overlaps, plan as write
from app.interactions.bundle_entries import (
    BundleEntry,
    address_of,
    body_of,
    invalid,
    located,
    patch_in,
)
from app.interactions.matches import find_matches
from app.interactions.plan import Target, WritePlan
from app.interactions.result import InteractionResult
from app.records.versions import ResourceVersion, WriteAction
from app.runtime import pace

_ACTIONS: dict[str, WriteAction] = {"PUT": "update", "PATCH": "patch", "DELETE": "delete"}


async def commit(
    context: Context,
    entries: Sequence[BundleEntry],
    writes: Sequence[BundleEntry],
    rehearse: Callable[[Context], Awaitable[None]],
) -> dict[int, InteractionResult]:
    """Plan all writes against what is stored now, rehearse the reads that follow, and commit the writes as one.

    `entries` are all of the Bundle, whose names references may have; `writes` are in the order of their methods.
    """
    raw = [{"fullUrl": each.full_url, "resource": each.resource} for each in entries]
    given = bundle_references.of_requests(context, raw, writes)
    for entry in writes:
        bundle_references.check_criteria(given, entry)
    await _find_targets(context, writes)
    overlaps.join_repeated(writes)
    overlaps.refuse_same_targets(writes)
    overlaps.refuse_two_messages(writes)
    names = bundle_references.of_transaction(context, entries)
    bodies = await bundle_references.resolve(context, writes, names)
    overlaps.refuse_unequal(writes, bodies)
    own = [entry for entry in writes if entry.repeats is None]
    planned = replace(context, write_scope=_scope(own))
    plans: list[WritePlan] = []
    async for entry in pace.paced(own):
        with located(entry):
            plans.append(await _plan(planned, entry, bodies.get(entry.index), names))
    for entry in writes:
        if entry.repeats is not None:
            _check_repeated(entry)
    await overlaps.refuse_found_twice(own, plans, context.services.clock.now())
    await rehearse(planned)
    answers = await _committed(context, own, plans)
    for entry in writes:
        if entry.repeats is not None:
            first = answers[entry.repeats.index]
            answers[entry.index] = replace(
                first, status=200 if first.status == 201 else first.status
            )
    return answers


def _check_repeated(entry: BundleEntry) -> None:
    """Judge the conditions of a repeated create, of which only the first is planned. Raises PreconditionFailed."""
    with located(entry):
        if entry.target is not None and entry.target.settled is not None:
            entry.preconditions.check_match(entry.target.settled)
        elif entry.target is not None:
            entry.preconditions.check(entry.target.previous)


def _scope(writes: Sequence[BundleEntry]) -> WriteScope:
    targets = [(entry.method, entry.target) for entry in writes if entry.target]
    return WriteScope(
        frozenset((each.type, each.id) for method, each in targets if method in ("POST", "PUT")),
        frozenset(each.reference for method, each in targets if method == "DELETE"),
        frozenset(each.reference for _, each in targets),
    )


async def _committed(
    context: Context, writes: Sequence[BundleEntry], plans: Sequence[WritePlan]
) -> dict[int, InteractionResult]:
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
    """Decide for each write which resource it is about; the plain ones are read together.

    The deletions come first, so that the conditions of the others do not find what is deleted.
    """
    await _find_plain(context, writes)
    deleting: set[str] = set()
    broad = 0
    async for entry in pace.paced(writes):
        with located(entry):
            if address_of(entry)[1] is None:
                is_delete = entry.method == "DELETE"
                scope = WriteScope(deleting=frozenset(() if is_delete else deleting))
                entry.target = await _conditional_target(replace(context, write_scope=scope), entry)
        broad = overlaps.refuse_broad(broad, entry)
        if entry.method == "DELETE" and entry.target is not None:
            deleting.add(entry.target.reference)


async def _find_plain(context: Context, writes: Sequence[BundleEntry]) -> None:
    actions: dict[tuple[str, str], WriteAction] = {}
    plain: list[tuple[BundleEntry, str, str]] = []
    async for entry in pace.paced(writes):
        resource_type, resource_id = address_of(entry)
        with located(entry):
            write.check_type(resource_type)
            if resource_id is not None:
                action = _ACTIONS[entry.method]
                context.require(resource_type, *write.RIGHTS[action])
                actions[resource_type, resource_id] = action
                plain.append((entry, resource_type, resource_id))
    current = await context.store.previous_many(actions)
    async for entry, resource_type, resource_id in pace.paced(plain):
        with located(entry):
            if entry.method == "PUT":
                write.check_body_id(resource_type, resource_id, body_of(entry))
        previous = current.get(f"{resource_type}/{resource_id}")
        entry.target = Target(resource_type, resource_id, previous)


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
    matches = await find_matches(context, resource_type, entry.query)
    if not matches.found:
        return None
    (match,) = matches.found
    return Target(resource_type, match.id, match, matches.guards)


async def _plan(
    context: Context, entry: BundleEntry, body: Resource | None, names: EntryReferences
) -> WritePlan:
    if entry.target is None:
        entry.preconditions.check(None)
        return WritePlan(204)
    if entry.method == "DELETE":
        return await write.plan_delete(context, entry.target, entry.preconditions)
    if entry.method == "PATCH":
        apply = bundle_references.applied(await patch_in(context, entry), names, entry.index)
        return await write.plan_patch(context, entry.target, apply, entry.preconditions)
    if body is None:
        raise invalid(entry, "resource", "The entry needs a resource")
    return await write.plan_write(context, entry.target, body, entry.preconditions)
