"""$validate: check a resource without storing it.

https://hl7.org/fhir/R4/resource-operation-validate.html

Checked are the structure, the primitive formats, the required bindings and the invariants, by R4's definitions, and
again by the R4B models. That is the profile `http://hl7.org/fhir/StructureDefinition/[type]`; no other is known, and a
call that names one is refused.
"""

from __future__ import annotations

from dataclasses import replace

from app.context import Context
from app.errors import BadRequest, Conflict, Issue, operation_outcome
from app.fhir import json as fhir_json
from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.json import Resource
from app.interactions import interactions, plan
from app.interactions.preconditions import NO_PRECONDITIONS
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.runtime.codec_process import CodecProcess

_BASES = "http://hl7.org/fhir/StructureDefinition/"
_VERSIONS = ("", "4.0", "4.0.1")
_MODES = frozenset({"create", "update", "delete", "profile"})


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """200 with an OperationOutcome, with or without errors in the resource."""
    mode = invocation.one("mode")
    if mode is not None and mode not in _MODES:
        raise BadRequest("mode must be create, update, delete or profile", expression="mode")
    base = _base(invocation, mode)
    if mode == "delete":
        issues = await _judge_deletion(context, invocation)
    else:
        resource = invocation.one("resource") or await _stored(context, invocation, mode)
        issues = await _judge(context, invocation, resource, mode, base)
    if not any(issue.severity in ("fatal", "error") for issue in issues):
        issues.append(Issue("informational", "No errors found", severity="information"))
    return InteractionResult(200, text=fhir_json.encode(operation_outcome(issues)))


def _base(invocation: Invocation, mode: str | None) -> str | None:
    """The type whose base definition is the profile that is named. Raises BadRequest where that cannot be checked."""
    profile = invocation.one("profile")
    if profile is None:
        if mode == "profile":
            raise BadRequest("mode profile needs a profile", code="required", expression="profile")
        return None
    url, _, version = profile.partition("|")
    base: str = url.removeprefix(_BASES)
    if base not in SUPPORTED_TYPES or url == base or version not in _VERSIONS:
        raise BadRequest(
            "The profile cannot be checked: this server knows the base definitions of R4 only",
            code="not-supported",
            expression="profile",
        )
    return base


async def _stored(context: Context, invocation: Invocation, mode: str | None) -> Resource:
    """The stored instance, for a call on one without a resource. Raises BadRequest, NotFound or Gone."""
    if invocation.resource_type is None or invocation.resource_id is None:
        raise BadRequest(
            "The parameter resource is missing", code="required", expression="resource"
        )
    if mode in ("create", "update"):
        raise BadRequest(f"mode {mode} needs a resource", code="required", expression="resource")
    stored = await interactions.current(context, *invocation.instance)
    return await stored.resource_aside()


async def _judge_deletion(context: Context, invocation: Invocation) -> list[Issue]:
    """Why the instance cannot be deleted. Raises BadRequest where none is named, NotFound or Gone."""
    if invocation.one("resource") is not None:
        raise BadRequest("mode delete takes no resource", expression="resource")
    current = await interactions.current(context, *invocation.instance)
    target = await plan.target_of_update(context, *invocation.instance, "delete")
    try:
        await plan.plan_delete(context, replace(target, previous=current), NO_PRECONDITIONS)
    except Conflict as refusal:
        return list(refusal.issues)
    return []


async def _judge(
    context: Context,
    invocation: Invocation,
    resource: Resource,
    mode: str | None,
    base: str | None,
) -> list[Issue]:
    expected = invocation.resource_type
    issues = [
        Issue("invalid", f"The resource's type must be {wanted}", ("resourceType",))
        for wanted in dict.fromkeys((expected, base))
        if wanted is not None and resource.get("resourceType") != wanted
    ]
    if mode == "update" and resource.get("id") != invocation.resource_id:
        issues.append(
            Issue("invalid", "An update's id must be that of the URL", (f"{expected}.id",))
        )
    codec = context.services.get(CodecProcess)
    found = await codec.judge(resource, with_models=not issues)
    if not any(issue.severity in ("fatal", "error") for issue in (*issues, *found)):
        issues += plan.subset_issues(resource)
    return [*issues, *found, *_unchecked_claims(resource)]


def _unchecked_claims(resource: Resource) -> list[Issue]:
    """Warnings of the profiles that the resource claims to follow, which nobody has asked for."""
    meta = resource.get("meta")
    claimed = meta.get("profile") if isinstance(meta, dict) else None
    own = f"{_BASES}{resource.get('resourceType')}"
    return [
        Issue(
            "not-supported",
            "This claim was not checked: this server knows the base definitions of R4 only",
            (f"{resource.get('resourceType')}.meta.profile[{index}]",),
            severity="warning",
        )
        for index, profile in enumerate(claimed if isinstance(claimed, list) else ())
        if profile != own
    ]
