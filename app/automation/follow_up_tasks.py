"""Tasks that the server keeps: what has to be done by a day, flagged when it is late, closed when it was done.

https://hl7.org/fhir/R4/task.html

The server touches the status, its reason, the day, the output, the mark of being late and the security labels, which
are those of the focus; all else in such a Task is the people's who work on it. What they have closed stays closed, what
they have deleted stays deleted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime

from app.automation.borne_labels import labels_of, with_labels
from app.automation.patient_resources import codes_in, token
from app.automation.work_lists import assigned
from app.consent import labels
from app.context import Context
from app.errors import PreconditionFailed
from app.fhir.codes import TASK_BUSINESS_STATUS, TASK_CODE, TASK_STATUS_REASON
from app.fhir.instants import instant
from app.fhir.json import Resource
from app.interactions import interactions
from app.interactions.preconditions import ONLY_NEW, Preconditions, only_of
from app.interactions.result import InteractionResult
from app.records.versions import ResourceVersion

OPEN = frozenset({"draft", "requested", "received", "accepted", "ready", "in-progress", "on-hold"})
DESCRIPTIONS = {
    "hra-due": "A health risk assessment is due",
    "continuity-of-care-end": "An earlier plan of care is honoured until then: evaluate it and set a new plan",
}
CLOSINGS = {
    "assessed": "The assessment was completed",
    "done-after-all": "What had been given up was done after all",
    "enrolment-ended": "The enrolment ended",
    "matched": "What could not be decided was decided",
    "no-longer-due": "Nothing is due any more",
    "no-longer-untold": "Nothing waits any more for what kept it from being told",
    "plan-replaced": "A new plan of care took the place of the earlier one",
}
_LATE = {"coding": [{"system": TASK_BUSINESS_STATUS, "code": "overdue", "display": "Overdue"}]}
_MAX_RACES = 20
_BATCH = 500
# The search term of a Task that names its patient.
_OF = "subject="


@dataclass(frozen=True, slots=True)
class Closing:
    """How the server closes a Task: `completed` or `cancelled`, a code of CLOSINGS, and what came of it."""

    status: str
    reason: str
    output: str | None = None


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A Task as it should be. `start` and `due` are its first and last day, `over` is when that has ended.

    `why` says what makes it due.
    """

    id: str
    code: str
    patient: str
    focus: str
    start: date
    due: date
    over: datetime
    why: str
    owner: Resource | None = None
    closing: Closing | None = None


async def keep(context: Context, wanted: FollowUp) -> bool:
    """Make the Task be as wanted; returns whether that changed anything. One to be closed is not made for that."""
    now = context.services.clock.now()
    given = await labels_of(context, wanted.focus)

    def change(current: Resource | None) -> Resource | None:
        if current is None:
            made = with_labels(_new(context, wanted), given)
            return None if wanted.closing else _with_day(made, wanted, now)
        current = with_labels(current, given)
        if wanted.closing:
            return closed(current, wanted.closing)
        opened = reopened(current)
        return _with_day(opened, wanted, now) if is_open(opened) else current

    return await amend(context, "Task", wanted.id, change)


def is_open(task: Resource | None) -> bool:
    """Whether there is a Task that nobody has closed."""
    return task is not None and task["status"] in OPEN


async def close(context: Context, task_id: str, closing: Closing) -> bool:
    """Close a Task that exists; returns whether it was open."""
    return await amend(
        context, "Task", task_id, lambda current: closed(current, closing) if current else None
    )


def is_closed_by_people(task: ResourceVersion) -> bool:
    """Whether somebody other than the server has closed or deleted it."""
    if task.deleted:
        return True
    resource = task.resource()
    return not is_open(resource) and not _server_reasons(resource)


async def patients_with_late(context: Context, code: str) -> list[str]:
    """The patients of whom a Task of a code is marked as late."""
    late = token("business-status", TASK_BUSINESS_STATUS, "overdue")
    wanted = {"terms": {"$all": [token("code", TASK_CODE, code), late]}}
    found: set[str] = set()
    async with context.store.batches("Task", wanted, projection={"terms": 1}) as read:
        while rows := await read(_BATCH):
            terms = (term for row in rows for term in row["terms"])
            found.update(t.removeprefix(_OF) for t in terms if t.startswith(f"{_OF}Patient/"))
    return sorted(found)


async def amend(
    context: Context,
    resource_type: str,
    resource_id: str,
    change: Callable[[Resource | None], Resource | None],
) -> bool:
    """Write what `change` makes of the current version (None where there never was one); returns whether it differs.

    `change` returns None to leave things as they are, and is asked again where another writer was faster. What was
    deleted stays so.
    """
    context = context.owning(f"{resource_type}/{resource_id}")
    for _ in range(_MAX_RACES):
        stored = await context.store.read(resource_type, resource_id)
        if stored is not None and stored.deleted:
            return False
        current = None if stored is None else stored.resource()
        wanted = change(current)
        if wanted is None or wanted == current:
            return False
        expected = ONLY_NEW if stored is None else only_of(stored.version)
        write = _patch if _loses_labels(current, wanted) else interactions.update
        try:
            await write(context, resource_type, resource_id, wanted, expected)
        except PreconditionFailed:
            continue
        return True
    raise PreconditionFailed("Too many concurrent changes of this resource")


def _loses_labels(current: Resource | None, wanted: Resource) -> bool:
    """Whether labels are to go; an update that says nothing of any leaves them."""
    return "meta" in wanted and bool(labels.codings(current) - labels.codings(wanted))


async def _patch(
    context: Context,
    resource_type: str,
    resource_id: str,
    wanted: Resource,
    expected: Preconditions,
) -> InteractionResult:
    """An update that takes labels away, as none does that only leaves them out."""

    async def apply(_: str) -> Resource:
        return wanted

    return await interactions.patch(context, resource_type, resource_id, apply, expected)


def closed(current: Resource, closing: Closing) -> Resource:
    """The Task closed; one that people have closed stays as it is."""
    if not is_open(current) and not _server_reasons(current):
        return current
    display = CLOSINGS[closing.reason]
    task = {
        **current,
        "status": closing.status,
        "statusReason": {
            "coding": [{"system": TASK_STATUS_REASON, "code": closing.reason, "display": display}]
        },
    }
    task.pop("output", None)
    if closing.output:
        task["output"] = [
            {"type": {"text": display}, "valueReference": {"reference": closing.output}}
        ]
    return _without_lateness(task)


def _new(context: Context, wanted: FollowUp) -> Resource:
    description = DESCRIPTIONS[wanted.code]
    return {
        "resourceType": "Task",
        "id": wanted.id,
        "status": "requested",
        "intent": "order",
        "priority": "routine",
        "code": {"coding": [{"system": TASK_CODE, "code": wanted.code, "display": description}]},
        "description": description,
        "focus": {"reference": wanted.focus},
        "for": {"reference": wanted.patient},
        "authoredOn": instant(context.services.clock.now()),
        **assigned(context.settings, wanted.code, wanted.owner),
        "reasonCode": {"text": wanted.why},
        "restriction": {"period": {"start": wanted.start.isoformat()}},
    }


def reopened(current: Resource) -> Resource:
    """The Task without a closing of the server's own."""
    if is_open(current) or not _server_reasons(current):
        return current
    return {
        **{key: value for key, value in current.items() if key not in ("statusReason", "output")},
        "status": "requested",
    }


def _with_day(task: Resource, wanted: FollowUp, now: datetime) -> Resource:
    """The open Task with its last day, and marked as late after it."""
    restriction = task.get("restriction", {})
    period = {**restriction.get("period", {}), "end": wanted.due.isoformat()}
    task = {**task, "restriction": {**restriction, "period": period}}
    if now >= wanted.over:
        return {**task, "priority": "urgent", "businessStatus": _LATE}
    return _without_lateness(task)


def _without_lateness(task: Resource) -> Resource:
    if not codes_in(task.get("businessStatus"), TASK_BUSINESS_STATUS):
        return task
    rest = {key: value for key, value in task.items() if key != "businessStatus"}
    return {**rest, "priority": "routine"}


def _server_reasons(task: Resource) -> list[str]:
    return codes_in(task.get("statusReason"), TASK_STATUS_REASON)
