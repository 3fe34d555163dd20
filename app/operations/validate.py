"""$validate: check a resource without storing it.

https://hl7.org/fhir/R4/resource-operation-validate.html

Checked are the structure, the primitive formats, the required bindings and the invariants, by R4's definitions, and
again by the R4B models. No profile is checked; the outcome says so where one is named.
"""

from __future__ import annotations

from app.context import Context
from app.errors import BadRequest, Issue, operation_outcome
from app.fhir import json as fhir_json
from app.fhir.json import Resource
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.runtime.codec_process import CodecProcess

_MODES = frozenset({"create", "update", "delete", "profile"})


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """200 with an OperationOutcome, with or without errors in the resource."""
    mode = invocation.one("mode")
    if mode is not None and mode not in _MODES:
        raise BadRequest("mode must be create, update, delete or profile", expression="mode")
    resource = invocation.one("resource")
    if resource is None:
        resource = await _stored(context, invocation, mode)
    issues = [] if mode == "delete" else await _judge(context, invocation, resource, mode)
    profile = invocation.one("profile")
    if profile is not None:
        issues.append(
            Issue(
                "not-supported",
                "The profile was not checked: this server checks the base definitions only",
                severity="warning",
            )
        )
    if not any(issue.severity in ("fatal", "error") for issue in issues):
        issues.append(Issue("informational", "No errors found", severity="information"))
    return InteractionResult(200, text=fhir_json.encode(operation_outcome(issues)))


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


async def _judge(
    context: Context, invocation: Invocation, resource: Resource, mode: str | None
) -> list[Issue]:
    issues: list[Issue] = []
    expected = invocation.resource_type
    if expected is not None and resource.get("resourceType") != expected:
        issues.append(
            Issue("invalid", f"The resource's type must be {expected}", ("resourceType",))
        )
    if mode == "update" and resource.get("id") != invocation.resource_id:
        issues.append(
            Issue("invalid", "An update's id must be that of the URL", (f"{expected}.id",))
        )
    codec = context.services.get(CodecProcess)
    return issues + await codec.judge(resource, with_models=not issues)
