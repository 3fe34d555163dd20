"""The plan of a write: checked, but not yet committed.

A single interaction commits one plan, a transaction Bundle commits all of its plans at once; both check alike.
https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

from app.authentication.scopes import Action
from app.context import Context
from app.errors import BadRequest, Gone, Issue, NotFound, PreconditionFailed, Unprocessable
from app.fhir import binary, json as fhir_json, meta, summary, validation
from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.ids import new_id
from app.fhir.json import Resource
from app.interactions import references
from app.interactions.matches import find_matches
from app.interactions.preconditions import Preconditions
from app.interactions.result import InteractionResult
from app.records.versions import (
    Change,
    Guard,
    Method,
    ResourceVersion,
    WriteAction,
    is_same_content,
)
from app.resources import type_registry
from app.resources.type_rules import Prepared
from app.runtime import pace
from app.search.query import Query

_TYPES = frozenset(SUPPORTED_TYPES)
# A patch: from the stored text to the new content.
Apply = Callable[[str], Awaitable[Resource]]
# The rights that a write to a known id needs. The response to a patch shows elements that it did not touch.
RIGHTS: Mapping[WriteAction, tuple[Action, ...]] = {
    "update": ("u",),
    "patch": ("u", "r"),
    "delete": ("d",),
}


@dataclass(frozen=True, slots=True)
class WritePlan:
    """One write, ready to commit. Without a `change` there is nothing to write and `existing` is the answer."""

    status: int
    change: Change | None = None
    existing: ResourceVersion | None = None
    prepared: Prepared | None = None
    guards: tuple[Guard, ...] = ()
    location: bool = False

    def answer(self, committed: ResourceVersion | None) -> InteractionResult:
        """The answer once the change is committed as this version."""
        stored = committed or self.existing
        if self.prepared is None:
            return InteractionResult(self.status, stored, location=self.location)
        if committed is not None:
            stored = self.prepared.shown(committed)
        return InteractionResult(
            202 if self.prepared.only_kept else self.status,
            stored,
            issues=self.prepared.issues,
            warnings=self.prepared.warnings,
            location=self.location,
            headers=dict(self.prepared.headers),
        )


def check_type(resource_type: str) -> None:
    """Raises NotFound for what is no R4 resource type served here."""
    if resource_type not in _TYPES:
        raise NotFound("Unknown or unsupported resource type", code="not-supported")


@dataclass(frozen=True, slots=True)
class Target:
    """The resource that a write is about: known before the write is planned, because references may need its id.

    `previous` is its current version, a deletion included. `settled` is the match of a conditional create: there is
    nothing to write; `found` marks such a match that is to be updated after all. `creates` marks a create, whose id is
    the server's. `condition` is the search by which a conditional write names it.
    """

    type: str
    id: str
    previous: ResourceVersion | None = None
    guards: tuple[Guard, ...] = ()
    creates: bool = False
    settled: ResourceVersion | None = None
    found: bool = False
    condition: Query | None = None

    @property
    def reference(self) -> str:
        return f"{self.type}/{self.id}"


async def target_of_create(
    context: Context, resource_type: str, if_none_exist: str | None, resource: Resource
) -> Target:
    """https://hl7.org/fhir/R4/http.html#ccreate: the one that matches already, or a new id.

    A match is settled, unless the resource is a message about it (type_registry.is_message): then it is to be updated.
    """
    check_type(resource_type)
    context.require(resource_type, "c")
    if if_none_exist is None:
        return Target(resource_type, new_id(), creates=True)
    criteria = _criteria(context, resource_type, if_none_exist)
    matches = await find_matches(context, resource_type, criteria)
    named = Target(resource_type, "", guards=matches.guards, condition=matches.query)
    if not matches.found:
        return replace(named, id=new_id(), creates=True)
    (match,) = matches.found
    if type_registry.is_message(resource):
        return replace(named, id=match.id, previous=match, found=True)
    return replace(named, id=match.id, settled=match)


async def target_of_update(
    context: Context, resource_type: str, resource_id: str, action: WriteAction = "update"
) -> Target:
    """The resource under this id, whether or not it exists."""
    check_type(resource_type)
    context.require(resource_type, *RIGHTS[action])
    previous = await context.store.previous(resource_type, resource_id, action)
    return Target(resource_type, resource_id, previous)


async def target_of_conditional_update(
    context: Context, resource_type: str, criteria: str, body_id: str | None
) -> Target:
    """https://hl7.org/fhir/R4/http.html#cond-update: the match, the body's id, or an id of the server's."""
    check_type(resource_type)
    context.require(resource_type, "u")
    matches = await find_matches(context, resource_type, criteria)
    named = Target(resource_type, "", guards=matches.guards, condition=matches.query)
    if matches.found:
        (match,) = matches.found
        if body_id not in (None, match.id):
            raise BadRequest(
                "The body's id is not that of the matching resource",
                expression=f"{resource_type}.id",
            )
        return replace(named, id=match.id, previous=match)
    if body_id is None:
        return replace(named, id=new_id(), creates=True)
    previous = await context.store.previous(resource_type, body_id, "update")
    if previous is not None and not previous.deleted:
        raise PreconditionFailed(
            "The body's id belongs to a resource that does not match the criteria",
            expression=f"{resource_type}.id",
        )
    return replace(named, id=body_id, previous=previous)


async def target_of_patch(context: Context, resource_type: str, criteria: str) -> Target:
    """The one resource that matches a conditional patch; NotFound where none does."""
    check_type(resource_type)
    context.require(resource_type, *RIGHTS["patch"])
    matches = await find_matches(context, resource_type, criteria)
    if not matches.found:
        raise NotFound("No resource matches the criteria")
    (match,) = matches.found
    return Target(resource_type, match.id, match, matches.guards, condition=matches.query)


def check_body_id(resource_type: str, resource_id: str, resource: Resource) -> None:
    """Raises BadRequest where an update's body lacks the id of its URL."""
    check_type(resource_type)
    if resource.get("id") != resource_id:
        raise BadRequest(
            "The resource's id must be the id in the URL", expression=f"{resource_type}.id"
        )


async def plan_write(
    context: Context, target: Target, resource: Resource, preconditions: Preconditions
) -> WritePlan:
    """A create or update of the target with this content."""
    if resource.get("resourceType") != target.type:
        raise BadRequest(
            f"The body's resourceType must be {target.type}, as in the URL",
            expression="resourceType",
        )
    if target.settled is not None:
        preconditions.check_match(target.settled)
        return WritePlan(200, existing=target.settled, guards=target.guards, location=True)
    if target.creates:
        preconditions.check(None)
        body = {key: value for key, value in resource.items() if key != "id"}
        prepared = await _judge(context, body, None)
        change = Change("create", target.type, target.id, prepared.resource, None, prepared.private)
        return WritePlan(201, change, None, prepared, _guards(target, prepared), location=True)
    preconditions.check(target.previous)
    if preconditions.if_match is not None and not preconditions.if_match.any:
        context = _having_seen_current(context)
    resource = {**resource, "id": target.id}
    if target.previous is None or target.previous.deleted:
        return await _plan_change(context, target, resource, "update", 201)
    plan = await _plan_change(context, target, resource, "update", 200)
    return replace(plan, location=True) if target.found else plan


async def plan_patch(
    context: Context, target: Target, apply: Apply, preconditions: Preconditions
) -> WritePlan:
    """https://hl7.org/fhir/R4/http.html#patch: the patched resource is judged like any update."""
    previous = existing(target.previous)
    preconditions.check(previous)
    resource = await apply(previous.text)
    if resource.get("resourceType") != previous.type or resource.get("id") != previous.id:
        raise Unprocessable("A patch must not change the resource's type or id", code="value")
    return await _plan_change(_having_seen_current(context), target, resource, "patch", 200)


async def plan_delete(context: Context, target: Target, preconditions: Preconditions) -> WritePlan:
    """https://hl7.org/fhir/R4/http.html#delete: done already where there is nothing to delete."""
    previous = target.previous
    preconditions.check(previous)
    if previous is None or previous.deleted:
        return WritePlan(204)
    await references.check_not_referred_to(context, previous)
    await type_registry.check_deletion(context, previous)
    return WritePlan(204, Change("delete", previous.type, previous.id, None, previous))


async def _plan_change(
    context: Context, target: Target, resource: Resource, method: Method, status: int
) -> WritePlan:
    """The new version of an existing or revived resource, unless it would change nothing."""
    previous = target.previous
    is_update = method == "update" and status == 200
    prepared = await _judge(context, resource, previous, keeps_labels=is_update)
    unchanged = (
        status == 200
        and previous is not None
        and context.settings.skip_identical_updates
        and (prepared.private is None or prepared.is_memory)
        and is_same_content(prepared.resource, previous)
    )
    if unchanged or prepared.repeats:
        return WritePlan(200, existing=previous, prepared=prepared, guards=target.guards)
    change = Change(
        method,
        target.type,
        target.id,
        prepared.resource,
        previous,
        prepared.private,
        prepared.late,
        prepared.withdrawn,
    )
    guards = _guards(target, prepared)
    return WritePlan(status, change, None, prepared, guards, location=status == 201)


def _guards(target: Target, prepared: Prepared) -> tuple[Guard, ...]:
    return (*target.guards, *prepared.guards)


def existing(stored: ResourceVersion | None) -> ResourceVersion:
    """The version, if there is one that was not deleted. Raises NotFound or Gone."""
    if stored is None:
        raise NotFound("No such resource")
    if stored.deleted:
        raise Gone("The resource was deleted", headers={"ETag": f'W/"{stored.version}"'})
    return stored


def _criteria(context: Context, resource_type: str, if_none_exist: str) -> str:
    """What If-None-Exist asks for: criteria alone, or behind the type, with or without this server's base before it.

    HAPI's client writes whole addresses. Raises BadRequest for another type or another server.
    """
    place, mark, criteria = if_none_exist.partition("?")
    if not mark or "=" in place:  # a question mark in a value
        return if_none_exist
    place = place.removeprefix(context.base_url).removeprefix("/")
    if place not in ("", resource_type):
        raise BadRequest(
            f"If-None-Exist must be search criteria, or {resource_type}?criteria on this server",
            expression="http.If-None-Exist",
        )
    return criteria


async def _judge(
    context: Context,
    resource: Resource,
    previous: ResourceVersion | None,
    *,
    keeps_labels: bool = False,
) -> Prepared:
    """Check a resource by the definitions, its references, then by the rules of its type."""
    # To tell the size of what is small would cost as much as judging it.
    size = len(fhir_json.encode(resource)) if pace.is_long() else 0
    warnings = await _by_definitions(resource, previous, size)
    if cut_down := subset_issues(resource):
        raise Unprocessable(issues=cut_down)
    if keeps_labels and previous is not None:
        resource = meta.carry_over(resource, previous.meta())
        if previous.type == binary.TYPE:
            resource = binary.carry_over(resource, previous.text)
    resource = await references.settle(context, resource, previous, size)
    prepared = await type_registry.prepare(context, resource, previous)
    return replace(prepared, warnings=tuple(warnings)) if warnings else prepared


async def _by_definitions(
    resource: Resource, previous: ResourceVersion | None, size: int
) -> list[Issue]:
    """What R4's definitions warn of. Raises BadRequest and Unprocessable.

    Labels protect: one that was stored before R4's invariants were held can be given another all the same.
    """
    try:
        return await pace.aside(size, validation.validate, resource)
    except Unprocessable as refusal:
        in_meta = f"{resource['resourceType']}.meta"
        if previous is None or previous.deleted:
            raise
        if any(path.startswith(in_meta) for issue in refusal.issues for path in issue.expression):
            raise
        if {**await previous.resource_aside(), "meta": None} != {**resource, "meta": None}:
            raise
        return [replace(issue, severity="warning") for issue in refusal.issues]


def subset_issues(resource: Resource) -> list[Issue]:
    """What a server cut down is no resource to be stored: it would take the place of the whole one.

    https://hl7.org/fhir/R4/search.html#summary
    """
    return [
        Issue(
            "business-rule",
            "The resource is cut down (SUBSETTED), as an answer to _summary or _elements is; send the whole one",
            (place,),
        )
        for place in summary.subset_tags(resource)
    ]


def _having_seen_current(context: Context) -> Context:
    return replace(context, write_scope=replace(context.write_scope, saw_current=True))
