"""The FHIR interactions on resources, one short function each.

https://hl7.org/fhir/R4/http.html

Each takes the request's Context and returns an InteractionResult or raises a FhirError. Writes are planned against the
version they read; where another writer was faster they read again, unless the client named the version it expects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import msgspec

from app.context import Context, WriteScope
from app.errors import Conflict, Issue, NotFound
from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.json import Resource
from app.interactions import history as history_page, plan as write
from app.interactions.matches import find_matches
from app.interactions.plan import Apply, Target, WritePlan
from app.interactions.preconditions import NO_PRECONDITIONS, Preconditions
from app.interactions.result import InteractionResult
from app.records.reader import ResourceStore
from app.records.versions import HistoryRange, ResourceVersion, VersionConflict
from app.search import compartment, contained_search, left_out, page, query, system
from app.search.page_links import Walk
from app.search.query import Query

T = TypeVar("T")
Parameters = list[tuple[str, str]]

# A write that loses this many races in a row fails with a Conflict.
_MAX_RACES = 50
_STARVING_SECONDS = 2.0
# How many resources one conditional delete may delete, where it may delete several.
MAX_CONDITIONAL_DELETES = 1000


async def read(
    context: Context,
    resource_type: str,
    resource_id: str,
    preconditions: Preconditions = NO_PRECONDITIONS,
) -> InteractionResult:
    """https://hl7.org/fhir/R4/http.html#read: 200, 304, 404 or 410."""
    write.check_type(resource_type)
    context.require(resource_type, "r")
    stored = write.existing(await context.store.read(resource_type, resource_id))
    return _shown(stored, preconditions)


async def current(context: Context, resource_type: str, resource_id: str) -> ResourceVersion:
    """The current version itself, for operations. Raises NotFound or Gone."""
    write.check_type(resource_type)
    context.require(resource_type, "r")
    return write.existing(await context.store.read(resource_type, resource_id))


async def vread(
    context: Context,
    resource_type: str,
    resource_id: str,
    version_id: str,
    preconditions: Preconditions = NO_PRECONDITIONS,
) -> InteractionResult:
    """https://hl7.org/fhir/R4/http.html#vread: 200, 304, 404, or 410 for the version that is the deletion."""
    write.check_type(resource_type)
    context.require(resource_type, "r")
    if not version_id.isascii() or not version_id.isdigit() or len(version_id) > 9:
        raise NotFound("No such version")
    stored = await context.store.vread(resource_type, resource_id, int(version_id))
    return _shown(write.existing(stored), preconditions)


async def create(
    context: Context,
    resource_type: str,
    resource: Resource,
    preconditions: Preconditions = NO_PRECONDITIONS,
) -> InteractionResult:
    """https://hl7.org/fhir/R4/http.html#create: 201; with If-None-Exist 200 where one matches, 412 for several."""

    async def plan() -> WritePlan:
        target = await write.target_of_create(
            context, resource_type, preconditions.if_none_exist, resource
        )
        return await write.plan_write(context, target, resource, preconditions)

    return await _commit(context, plan)


async def update(
    context: Context,
    resource_type: str,
    resource_id: str,
    resource: Resource,
    preconditions: Preconditions = NO_PRECONDITIONS,
) -> InteractionResult:
    """https://hl7.org/fhir/R4/http.html#update: 200; 201 where the id was free or its resource deleted; 412."""
    write.check_body_id(resource_type, resource_id, resource)

    async def plan() -> WritePlan:
        target = await write.target_of_update(context, resource_type, resource_id)
        return await write.plan_write(context, target, resource, preconditions)

    return await _commit(context, plan)


async def conditional_update(
    context: Context,
    resource_type: str,
    criteria: str,
    resource: Resource,
    preconditions: Preconditions = NO_PRECONDITIONS,
) -> InteractionResult:
    """https://hl7.org/fhir/R4/http.html#cond-update: 200, 201, 400 for another id, 412 for several matches."""

    async def plan() -> WritePlan:
        target = await write.target_of_conditional_update(
            context, resource_type, criteria, resource.get("id")
        )
        return await write.plan_write(context, target, resource, preconditions)

    return await _commit(context, plan)


async def patch(
    context: Context,
    resource_type: str,
    resource_id: str,
    apply: Apply,
    preconditions: Preconditions = NO_PRECONDITIONS,
) -> InteractionResult:
    """https://hl7.org/fhir/R4/http.html#patch: 200; 404 or 410 where there is nothing to patch; 422."""

    async def plan() -> WritePlan:
        target = await write.target_of_update(context, resource_type, resource_id, "patch")
        return await write.plan_patch(context, target, apply, preconditions)

    return await _commit(context, plan)


async def conditional_patch(
    context: Context,
    resource_type: str,
    criteria: str,
    apply: Apply,
    preconditions: Preconditions = NO_PRECONDITIONS,
) -> InteractionResult:
    """A patch of the one resource that matches: 404 where none does, 412 where several do."""

    async def plan() -> WritePlan:
        target = await write.target_of_patch(context, resource_type, criteria)
        return await write.plan_patch(context, target, apply, preconditions)

    return await _commit(context, plan)


async def delete(
    context: Context,
    resource_type: str,
    resource_id: str,
    preconditions: Preconditions = NO_PRECONDITIONS,
) -> InteractionResult:
    """https://hl7.org/fhir/R4/http.html#delete: 204, also where there is nothing to delete."""

    async def plan() -> WritePlan:
        target = await write.target_of_update(context, resource_type, resource_id, "delete")
        return await write.plan_delete(context, target, preconditions)

    return await _commit(context, plan)


async def conditional_delete(
    context: Context,
    resource_type: str,
    criteria: str,
    preconditions: Preconditions = NO_PRECONDITIONS,
) -> InteractionResult:
    """https://hl7.org/fhir/R4/http.html#3.1.0.7.1: all that match, or 412 for several where only one may go."""
    write.check_type(resource_type)
    context.require(resource_type, "d")
    limit = 1 if context.settings.conditional_delete == "single" else MAX_CONDITIONAL_DELETES

    async def attempt() -> InteractionResult:
        matches = await find_matches(context, resource_type, criteria, limit)
        if not matches.found:
            preconditions.check(None)
        targets = [Target(match.type, match.id, match) for match in matches.found]
        writing = WriteScope(writing=frozenset(each.reference for each in targets))
        planned = replace(context, write_scope=writing)
        plans = [await write.plan_delete(planned, target, preconditions) for target in targets]
        changes = [plan.change for plan in plans if plan.change]
        if changes:
            await context.store.commit(changes)
        return InteractionResult(204)

    return await until_undisturbed(context.store, attempt)


async def search_type(
    context: Context, resource_type: str, parameters: Parameters
) -> InteractionResult:
    """https://hl7.org/fhir/R4/http.html#search: a searchset Bundle."""
    write.check_type(resource_type)
    context.require(resource_type, "s")
    walk, warnings = await _walk(context, resource_type, parameters, [resource_type])
    if contained_search.is_asked(walk.asked):
        found = contained_search.parse(
            resource_type,
            walk.asked,
            lenient=context.handling == "lenient",
            settings=context.settings,
            base_url=context.base_url,
            begin=walk.begin,
        )
        return await _found_in_types(context, found, walk, warnings)
    return await _found(context, _parsed(context, resource_type, walk), walk, warnings)


async def search_system(context: Context, parameters: Parameters) -> InteractionResult:
    """https://hl7.org/fhir/R4/http.html#search over several resource types."""
    walk, warnings = await _walk(context, "", parameters, SUPPORTED_TYPES)
    return await _found_in_types(context, _parsed_for_types(context, walk), walk, warnings)


async def search_compartment(
    context: Context, owner: tuple[str, str], resource_type: str, parameters: Parameters
) -> InteractionResult:
    """https://hl7.org/fhir/R4/http.html#vsearch in the compartment of a resource: one type, or `*` for all."""
    place = f"{owner[0]}/{owner[1]}/{resource_type}"
    if resource_type == "*":
        types = compartment.types(owner[0])
        walk, warnings = await _walk(context, place, parameters, types)
        found = _parsed_for_types(context, walk, (*owner, types))
        return await _found_in_types(context, found, walk, warnings)
    write.check_type(resource_type)
    context.require(resource_type, "s")
    walk, warnings = await _walk(context, place, parameters, [resource_type])
    parsed = _parsed(context, resource_type, walk)
    parsed.conditions.append(compartment.membership(*owner, resource_type, parsed.scope))
    return await _found(context, parsed, walk, warnings)


async def _walk(
    context: Context, place: str, parameters: Parameters, types: Iterable[str] = ()
) -> tuple[Walk, list[Issue]]:
    """The way through what is asked at a place, and the warnings of what is left out because it narrows nothing.

    That is no part of what a page link stands for, and may stand beside one.
    """
    kept, warnings = left_out.without(parameters, context.settings, types)
    return await context.walk(place, kept), warnings


def _parsed(context: Context, resource_type: str, walk: Walk) -> Query:
    return query.parse(
        resource_type,
        walk.asked,
        lenient=context.handling == "lenient",
        settings=context.settings,
        base_url=context.base_url,
        begin=walk.begin,
    )


def _parsed_for_types(
    context: Context, walk: Walk, within: tuple[str, str, Sequence[str]] | None = None
) -> system.Search:
    return system.parse(
        walk.asked,
        lenient=context.handling == "lenient",
        settings=context.settings,
        base_url=context.base_url,
        compartment=within,
        begin=walk.begin,
    )


async def _found(
    context: Context, parsed: Query, walk: Walk, warnings: Sequence[Issue]
) -> InteractionResult:
    parsed.issues += warnings
    text = await page.search_type(context.store, parsed, walk)
    return InteractionResult(200, text=text, shape=parsed.shape)


async def _found_in_types(
    context: Context, found: system.Search, walk: Walk, warnings: Sequence[Issue]
) -> InteractionResult:
    found.issues += warnings
    text = await system.search_types(context.store, found, walk)
    return InteractionResult(200, text=text, shape=found.queries[0].shape)


async def history(
    context: Context,
    parameters: Parameters,
    resource_type: str | None = None,
    resource_id: str | None = None,
) -> InteractionResult:
    """https://hl7.org/fhir/R4/http.html#history of one resource, a type or everything; 404 for an unused id."""
    if resource_type is not None:
        write.check_type(resource_type)
        context.require(resource_type, "s" if resource_id is None else "r")
    place = "/".join(part for part in (resource_type, resource_id, "_history") if part)
    # A history has no place for a warning: each of its entries is a version.
    walk, _ = await _walk(context, place, parameters)
    settings = context.settings
    parsed = history_page.parse(
        HistoryRange(resource_type, resource_id),
        walk,
        settings.default_count,
        settings.max_count,
    )
    if (
        resource_type is not None
        and resource_id is not None
        and await context.store.read(resource_type, resource_id) is None
    ):
        raise NotFound("No such resource")
    if parsed.range.since is not None:  # a polling client must not miss a late commit
        horizon = await context.store.horizon()
        parsed = replace(parsed, range=msgspec.structs.replace(parsed.range, until=horizon))
    versions = await context.store.history(parsed.range, parsed.count + 1, for_page=True)
    total = await context.store.history_total(parsed.range)
    return await history_page.bundle(parsed, versions, total, walk)


async def _commit(
    context: Context, make_plan: Callable[[], Awaitable[WritePlan]]
) -> InteractionResult:
    """Plan a write and commit it; plan again where another writer was faster."""

    async def attempt() -> InteractionResult:
        plan = await make_plan()
        if plan.change is None:
            return plan.answer(None)
        (stored,) = await context.store.commit([plan.change], plan.guards)
        return plan.answer(stored)

    return await until_undisturbed(context.store, attempt)


def _shown(stored: ResourceVersion, preconditions: Preconditions) -> InteractionResult:
    """200 with the version, or 304 where the client has it. Raises PreconditionFailed."""
    preconditions.check_match(stored)
    return InteractionResult(304 if preconditions.is_unchanged(stored) else 200, stored)


async def until_undisturbed(store: ResourceStore, attempt: Callable[[], Awaitable[T]]) -> T:
    """Repeat a write that lost a race; each attempt reads the newest version and checks the preconditions again.

    One that has lost for `_STARVING_SECONDS` comes before other writers of what it has lost.
    """
    loop = asyncio.get_running_loop()
    starving_at = loop.time() + _STARVING_SECONDS
    lost: frozenset[str] = frozenset()
    for _ in range(_MAX_RACES):
        try:
            if not lost or loop.time() < starving_at:
                return await attempt()
            async with store.reserving(lost):
                return await attempt()
        except VersionConflict as conflict:
            lost |= conflict.keys
    raise Conflict("Too many concurrent changes of this resource; try again")
