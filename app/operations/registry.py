"""Every $operation of the server: its OperationDefinition, where it may be called, and its handler.

https://hl7.org/fhir/R4/operations.html

The definitions are in profiles/operations; a call's arguments are checked against them before the handler runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import msgspec

from app.authentication.caller import Role
from app.authentication.scopes import EVERY_TYPE, Action
from app.authorization.rules import PROOF_ROLES, REPORT_ROLES, WORKBENCH_ROLES
from app.context import Context
from app.errors import BadRequest, Forbidden, MethodNotAllowed, NotFound
from app.fhir.definitions import PROFILES
from app.fhir.json import Resource
from app.interactions import plan
from app.interactions.result import InteractionResult
from app.operations import (
    attributed,
    care_plan_changes,
    care_plan_summary,
    encounter_notices,
    everything,
    export,
    measure_evaluate,
    member_questions,
    meta,
    patient_pcp,
    process_message,
    reindex,
    subscription_dry_run,
    subscription_events,
    subscription_explain,
    subscription_resend,
    subscription_status,
    subscription_ws_binding_token,
    utilization,
    validate,
    worklist,
)
from app.operations.arguments import Given, Invocation, arguments_of
from app.search.bundle_writer import CURSOR

Run = Callable[[Context, Invocation], Awaitable[InteractionResult]]


@dataclass(frozen=True, slots=True)
class Operation:
    """`definition` is the id of its OperationDefinition, which is also its file's name.

    One that `changes` something is called by POST only; not all of HL7's definitions say so. One that is `lenient`
    leaves out unknown parameters where the caller prefers handling=lenient. A `paged` one answers in pages. `forms` are
    the media types that it answers in beside FHIR's, by the short names that `_format` may have.

    `needs` are the rights that a call requires, by type; "*" is the type that it is called on. Its reads and writes are
    checked besides, like all others. One with `needs` None is for administrators alone, one with `roles` for these
    roles and administrators.
    """

    definition: str
    run: Run
    changes: bool = False
    lenient: bool = False
    paged: bool = False
    needs: tuple[tuple[str, tuple[Action, ...]], ...] | None = None
    roles: frozenset[Role] | None = None
    forms: Mapping[str, str] = field(default_factory=dict)

    @property
    def resource(self) -> Resource:
        """The OperationDefinition."""
        return _definition(self.definition)

    @property
    def code(self) -> str:
        code: str = self.resource["code"]
        return code

    def is_for(self, resource_type: str | None, resource_id: str | None) -> bool:
        """Whether it may be called on the system, on this type or on an instance of it."""
        definition = self.resource
        if resource_type is None:
            return bool(definition["system"])
        if not {resource_type, "Resource"} & set(definition.get("resource", ())):
            return False
        return bool(definition["type"] if resource_id is None else definition["instance"])


OPERATIONS: Sequence[Operation] = (
    Operation("Resource-validate", validate.run, needs=()),
    Operation("reindex", reindex.run),
    Operation(
        "Patient-everything",
        everything.run,
        paged=True,
        needs=(
            (
                "Patient",
                (
                    "r",
                    "s",
                ),
            ),
        ),
    ),
    Operation("export", export.run, lenient=True, needs=(("Patient", ("s",)),)),
    Operation("patient-export", export.run, lenient=True, needs=(("Patient", ("s",)),)),
    Operation(
        "group-export", export.run, lenient=True, needs=(("Group", ("r",)), ("Patient", ("s",)))
    ),
    Operation("Patient-pcp", patient_pcp.run, needs=(("Patient", ("r",)),)),
    Operation(
        "Resource-meta",
        meta.run,
        needs=(("*", ("r", "s")),),
    ),
    Operation(
        "Resource-meta-add",
        meta.run_add,
        changes=True,
        needs=(("*", ("r", "u")),),
    ),
    Operation(
        "Resource-meta-delete",
        meta.run_delete,
        changes=True,
        needs=(("*", ("r", "u")),),
    ),
    Operation(
        "backport-subscription-status",
        subscription_status.run,
        paged=True,
        needs=(("Subscription", ("r",)),),
    ),
    Operation(
        "backport-subscription-events", subscription_events.run, needs=(("Subscription", ("r",)),)
    ),
    Operation(
        "backport-subscription-get-ws-binding-token",
        subscription_ws_binding_token.run,
        needs=(("Subscription", ("r",)),),
    ),
    Operation(
        "backport-subscription-resend",
        subscription_resend.run,
        changes=True,
        needs=(
            (
                "Subscription",
                (
                    "r",
                    "u",
                ),
            ),
        ),
    ),
    Operation("Subscription-explain", subscription_explain.run, needs=(("Subscription", ("r",)),)),
    Operation("Subscription-dry-run", subscription_dry_run.run, needs=(("Subscription", ("c",)),)),
    Operation(
        "MessageHeader-process-message",
        process_message.run,
        changes=True,
        needs=(("Bundle", ("c",)),),
    ),
    Operation(
        "CarePlan-summary",
        care_plan_summary.run,
        needs=(("CarePlan", ("r",)),),
        forms=care_plan_summary.FORMS,
    ),
    Operation("CarePlan-changes", care_plan_changes.run, needs=(("CarePlan", ("r",)),)),
    Operation(
        "Encounter-notices",
        encounter_notices.run,
        needs=(("Encounter", ("r",)), ("Communication", ("r",))),
        roles=PROOF_ROLES,
    ),
    Operation(
        "Measure-evaluate-measure",
        measure_evaluate.run,
        needs=(("Measure", ("r",)), *measure_evaluate.NEEDS),
        roles=REPORT_ROLES,
    ),
    Operation(
        "Patient-worklist",
        worklist.run,
        paged=True,
        needs=(("Patient", ("r", "s")),),
        roles=WORKBENCH_ROLES,
        forms=member_questions.FORMS,
    ),
    Operation(
        "Group-worklist",
        worklist.run,
        paged=True,
        needs=(("Group", ("r",)), ("Patient", ("r", "s"))),
        roles=WORKBENCH_ROLES,
        forms=member_questions.FORMS,
    ),
    Operation(
        "Patient-attributed",
        attributed.run,
        needs=(("Patient", ("r", "s")),),
        roles=WORKBENCH_ROLES,
        forms=member_questions.FORMS,
    ),
    Operation(
        "Group-attributed",
        attributed.run,
        needs=(("Group", ("r",)), ("Patient", ("r", "s"))),
        roles=WORKBENCH_ROLES,
        forms=member_questions.FORMS,
    ),
    Operation(
        "Patient-utilization",
        utilization.run,
        needs=(("Patient", ("r", "s")), ("Encounter", ("r", "s"))),
        roles=WORKBENCH_ROLES,
        forms=member_questions.FORMS,
    ),
    Operation(
        "Group-utilization",
        utilization.run,
        needs=(("Group", ("r",)), ("Patient", ("r", "s")), ("Encounter", ("r", "s"))),
        roles=WORKBENCH_ROLES,
        forms=member_questions.FORMS,
    ),
)


@cache
def _definition(definition_id: str) -> Resource:
    resource: Resource = msgspec.json.decode(
        (PROFILES / "operations" / f"{definition_id}.json").read_bytes()
    )
    return resource


def definitions() -> Mapping[str, Resource]:
    """The OperationDefinitions by id."""
    return {operation.definition: operation.resource for operation in OPERATIONS}


def find(code: str, resource_type: str | None, resource_id: str | None) -> Operation:
    """The operation of this code at this place. Raises NotFound."""
    for operation in OPERATIONS:
        if operation.code == code and operation.is_for(resource_type, resource_id):
            return operation
    raise NotFound(f"There is no operation ${code} here", code="not-supported")


def forms_of(code: str, resource_type: str | None, resource_id: str | None) -> Mapping[str, str]:
    """The media types that the operation of this code at this place answers in beside FHIR's, by short names."""
    for operation in OPERATIONS:
        if operation.code == code and operation.is_for(resource_type, resource_id):
            return operation.forms
    return {}


async def invoke(
    context: Context,
    code: str,
    place: tuple[str | None, str | None],
    given: Given,
) -> InteractionResult:
    """Run an operation at (type, id) with what it is given."""
    resource_type, resource_id = place
    if resource_type is not None:
        plan.check_type(resource_type)
    operation = find(code, resource_type, resource_id)
    _check_rights(context, operation, resource_type)
    definition = operation.resource
    if operation.changes and not given.posted:
        raise MethodNotAllowed(f"${code} changes things; use POST", headers={"Allow": "POST"})
    lenient = operation.lenient and context.handling == "lenient"
    arguments = arguments_of(
        definition, given, context.settings, lenient=lenient, paged=operation.paged
    )
    if CURSOR not in arguments:  # what a page link leads to was asked on the first page
        _check_present(definition, arguments)
    return await operation.run(context, Invocation(resource_type, resource_id, arguments, given))


def _check_rights(context: Context, operation: Operation, resource_type: str | None) -> None:
    """Raises Forbidden where the caller may not call the operation on any resource."""
    access = context.access
    if access is None:
        return
    if operation.needs is None and not access.is_administrator:
        raise Forbidden(f"${operation.code} is for administrators")
    if operation.roles is not None:
        access.require_role(f"${operation.code}", operation.roles)
    for name, actions in operation.needs or ():
        for action in actions:
            access.require((resource_type or EVERY_TYPE) if name == "*" else name, action)


def _check_present(definition: Resource, arguments: Mapping[str, list[Any]]) -> None:
    for parameter in definition.get("parameter", ()):
        if parameter["use"] != "in":
            continue
        name, count = parameter["name"], len(arguments.get(parameter["name"], ()))
        if count < parameter["min"]:
            raise BadRequest(f"The parameter {name} is missing", code="required", expression=name)
        if parameter["max"] != "*" and count > int(parameter["max"]):
            raise BadRequest(f"The parameter {name} occurs too often", expression=name)
