"""The yearly summary of a care plan, on the anniversary of the last document about it, whatever was told since.

It is not sent where nothing has changed since that document and the practice has acknowledged the last notice. Who
owes the review gains by an acknowledgement, so it counts as the word of who wrote it, not of whom it names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from app.automation.timers import Timer
from app.context import Context
from app.coordination.care_plans import state
from app.coordination.care_plans.changes import ENDED
from app.coordination.care_plans.plan_notices import (
    REVIEW_TIMER,
    changes_between,
    finish,
    lock_of,
    remind,
    state_told,
    tell,
)
from app.coordination.care_plans.state import subject_of
from app.coordination.care_plans.wording import key_of
from app.fhir.instants import a_year_after
from app.fhir.json import Resource, decode_stored
from app.records.versions import NO_ORGANIZATION
from app.runtime.mongo import Document

_ACKNOWLEDGERS = ("Practitioner/", "PractitionerRole/", "Organization/")
_BATCH = 100
# Tasks about one notice that are looked at.
_MOST_TASKS = 100


async def _fire(context: Context, key: str, data: Mapping[str, Any]) -> None:
    async with lock_of(context, key):
        await _review(context, key)


async def _review(context: Context, key: str) -> None:
    row = await finish(context, key)
    stored = await context.store.read("CarePlan", key)
    if row is None or not row.get("versions") or stored is None or stored.deleted:
        return
    now = await state.current(context, stored)
    if now.plan.get("status") in ENDED:
        return
    clock = context.services.clock
    if (
        a_year_after(row["shown_at"]) > clock.now()
    ):  # another document was sent since the timer was set
        await remind(context, key, row["shown_at"])
        return
    shown = await state_told(context, row, "shown")
    is_unchanged = shown is not None and not await changes_between(context, shown, now)
    if is_unchanged and await _is_acknowledged(state.of_plan(context, now.plan), row, now.plan):
        await remind(context, key, clock.now())
        return
    if not await tell(context, key, "yearly", row, dict(now.versions)):
        raise RuntimeError("another notice about the plan came in between")


async def _is_acknowledged(context: Context, row: Document, plan: Resource) -> bool:
    """Whether the practice has answered the last notice: by a Communication about it, or a completed Task.

    The Communication is the practice's own. A Task may have been another's who asked for it.
    """
    kinds = {"communication": "Communication", "document": "DocumentReference"}
    notice = {f"{kind}/{row[name]}" for name, kind in kinds.items() if name in row}
    terms = [f"focus={each}" for each in sorted(notice)]
    tasks = {"terms": {"$in": terms, "$all": ["status=completed"]}}
    patient = subject_of(plan)
    for task in await context.store.search("Task", tasks, _MOST_TASKS):
        if any(await _practices_among(context, patient, task.by)):
            return True
    of_patient = {"terms": f"subject={patient}"}
    async with context.store.batches("Communication", of_patient, read_ahead=_BATCH) as read:
        while rows := await read(_BATCH):
            for found in rows:
                if _acknowledges(found, notice) and all(
                    await _practices_among(context, patient, found.get("by", ()))
                ):
                    return True
    return False


async def _practices_among(
    context: Context, patient: str | None, writers: Sequence[str]
) -> list[bool]:
    """Of each organization that wrote something, whether the patient is its own as the practice's now.

    What none of them wrote is an administrator's word, or of a server without authorization.
    """
    relationships = context.services.accesses.relationships
    found = [
        patient is not None
        and patient in await relationships.attributed([patient], await relationships.family(each))
        for each in writers
        if each != NO_ORGANIZATION
    ]
    return found or [True]


def _acknowledges(row: Document, notice: set[str]) -> bool:
    """Whether a completed Communication, sent by a provider, responds to or is about a resource of the notice."""
    communication = decode_stored(row["text"])
    sender = key_of(communication.get("sender"))
    answered = (*communication.get("inResponseTo", ()), *communication.get("about", ()))
    return (
        communication["status"] == "completed"
        and sender.startswith(_ACKNOWLEDGERS)
        and any(key_of(each) in notice for each in answered)
    )


REVIEW = Timer(
    REVIEW_TIMER, _fire, is_about_many=True, what="A care plan's yearly review", of="CarePlan"
)
