"""Notices about care plans: one for each state that differs from the last one sent, whatever is repeated or fails.

    plan_notices   {_id: id of the plan, number, told_at, versions, shown, document?, communication?,
                    pending?, set_aside?}

`versions` pin the state in the last notice, `shown` the one in the last document. A notice is first written as
`pending` with its versions; any process that finds one carries it out. Doing so twice stores nothing twice: the ids of
its resources, and the key of its event, come from the plan and the notice's number. One that fails again and again is
set aside, and a person is asked; the next notice says what has changed since the last one that was sent.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pymongo.errors import DuplicateKeyError

from app.automation import review_tasks
from app.automation.reactions import stable_id
from app.automation.timers import Timers
from app.context import Context
from app.coordination.care_plans import (
    changes as care_plan_changes,
    document,
    record as care_plan_record,
    state as care_plan_state,
)
from app.coordination.care_plans.addressees import addressed
from app.coordination.care_plans.changes import parameters, text_of
from app.coordination.care_plans.difference import PlanChange
from app.coordination.care_plans.document import Edition
from app.coordination.care_plans.state import PlanState, is_of_same_patient, of_plan, subject_of
from app.errors import PreconditionFailed
from app.fhir.codes import CARE_PLAN_CHANGE, CARE_PLAN_CHANGES, CARE_PLAN_REVIEW, CARE_PLAN_REVIEWS
from app.fhir.json import Resource
from app.interactions import interactions
from app.interactions.preconditions import ONLY_NEW
from app.records.versions import ResourceVersion
from app.runtime.leases import is_nobodys_fault
from app.runtime.mongo import Document

log = logging.getLogger(__name__)

NOTICES = "plan_notices"
REVIEW_TIMER = "care-plan-review"
CHANGE_TOPIC, REVIEW_TOPIC = "careplan-change", "careplan-annual-review"

# Within these a timer tries for about a quarter of an hour.
MOST_TRIES = 10
_MOST_SET_ASIDE = 100


async def record_of(context: Context, plan_id: str) -> Document | None:
    """The row of a plan's notices; None before the first one."""
    found: Document | None = await _rows(context).find_one({"_id": plan_id})
    return found


async def finish(context: Context, plan_id: str) -> Document | None:
    """Carry out the pending notice, if there is one; returns the row as it is then."""
    row = await record_of(context, plan_id)
    while row is not None and "pending" in row:
        if row["pending"].get("tries", 0) >= MOST_TRIES:
            await _set_aside(context, row)
        else:
            await _try(context, row)
        row = await record_of(context, plan_id)
    return row


async def tell(
    context: Context, plan_id: str, kind: NoticeKind, row: Document | None, versions: dict[str, int]
) -> bool:
    """Write a notice about the plan in these versions and carry it out; False where another was written first."""
    number = (row or {}).get("number", 0)
    pending = {
        "number": number + 1,
        "kind": kind,
        "at": context.services.clock.now(),
        "versions": [[key, version] for key, version in sorted(versions.items())],
    }
    try:
        result = await _rows(context).update_one(
            {"_id": plan_id, "number": number, "pending": {"$exists": False}}
            if row
            else {"_id": plan_id, "number": {"$exists": False}},
            {"$set": {"pending": pending}, "$setOnInsert": {"number": 0}},
            upsert=row is None,
        )
    except DuplicateKeyError:
        return False
    if not (result.matched_count or result.upserted_id):
        return False
    await finish(context, plan_id)
    return True


async def state_told(
    context: Context, row: Document | None, what: str = "versions"
) -> PlanState | None:
    """The state in the last notice, or in the last document (`shown`); None without one."""
    if row is None or not row.get(what):
        return None
    return await care_plan_state.pinned(context, row["_id"], dict(row[what]))


async def changes_between(
    context: Context, before: PlanState, after: PlanState
) -> list[PlanChange]:
    """The changes from one state to the other, with the names of the resources that both refer to."""
    resources = [before.plan, after.plan, *before.others.values(), *after.others.values()]
    names = await care_plan_state.names_of(context, after.plan, resources)
    return care_plan_changes.diff(before, after, names)


async def _try(context: Context, row: Document) -> None:
    """Carry out the pending notice; counts it where that fails by the notice's own fault."""
    try:
        await _carry_out(context, row)
    except Exception as error:
        if not is_nobodys_fault(error):
            await _rows(context).update_one(_of_pending(row), {"$inc": {"pending.tries": 1}})
        raise


async def _set_aside(context: Context, row: Document) -> None:
    """Leave the pending notice, and ask a person about it."""
    number, plan = row["pending"]["number"], f"CarePlan/{row['_id']}"
    log.error(
        "a notice was set aside", extra={"action": "plan-notice", "id": plan, "number": number}
    )
    await review_tasks.ask(context, "plan-not-told", plan, patient=None, about=f"notice {number}")
    kept = {"$each": [row["pending"]], "$slice": -_MOST_SET_ASIDE}
    await _rows(context).update_one(
        _of_pending(row),
        {"$set": {"number": number}, "$push": {"set_aside": kept}, "$unset": {"pending": ""}},
    )


def _of_pending(row: Document) -> Document:
    return {"_id": row["_id"], "pending.number": row["pending"]["number"]}


async def _carry_out(context: Context, row: Document) -> None:
    pending = row["pending"]
    notice = await _notice(context, row)
    done: Document = {"number": pending["number"], "told_at": pending["at"]}
    if notice is not None:
        done |= await _send(context, notice, row)
    if pending["kind"] == "deleted":
        await context.services.get(Timers).cancel(REVIEW_TIMER, row["_id"])
    else:
        await remind(context, row["_id"], pending["at"])
    done["versions"] = [] if pending["kind"] == "deleted" else pending["versions"]
    if pending["kind"] in ("created", "yearly"):
        done["shown"] = pending["versions"]
    await _rows(context).update_one(
        _of_pending(row),
        {"$set": done, "$unset": {"pending": ""}},
    )


async def _notice(context: Context, row: Document) -> PlanNotice | None:
    """The pending notice; None where its version of the plan is no longer stored."""
    pending = row["pending"]
    state = await care_plan_state.pinned(context, row["_id"], dict(pending["versions"]))
    if state is None:
        return None
    kind = pending["kind"]
    before = await state_told(context, row, "shown" if kind == "yearly" else "versions")
    if kind == "deleted":
        changes = [PlanChange("status", "removed", "The care plan was deleted.")]
    elif before is None or not is_of_same_patient(before, state):
        changes = []
    else:
        changes = await changes_between(context, before, state)
    return PlanNotice(row["_id"], kind, pending["number"], pending["at"], state, changes)


async def _send(context: Context, notice: PlanNotice, row: Document) -> Document:
    """Store the resources of a notice and raise its event; returns the fields of the row to set."""
    known: Document = {}
    carried: list[str] = []
    if await care_plan_state.is_told(context, notice.state.plan):
        known, carried = await _store_resources(context, notice, row.get("document"))
    topic = REVIEW_TOPIC if notice.kind == "yearly" else CHANGE_TOPIC
    key = f"CarePlan/{notice.plan}"
    await context.store.raise_event(
        ("CarePlan", notice.plan, notice.state.versions[key]),
        context.settings.topic_base.rstrip("/") + "/" + topic,
        key=f"{notice.plan} {notice.number}",
        at=notice.at,
        trigger=coding(notice),
        context=carried,
    )
    return known


async def _store_resources(
    context: Context, notice: PlanNotice, earlier: str | None
) -> tuple[Document, list[str]]:
    """Store the document and the Communication of a notice; returns the row's fields of them and what it carries."""
    own = of_plan(context, notice.state.plan)
    known: Document = {}
    carried: list[str] = []
    if notice.kind in ("created", "yearly"):
        known["document"] = notice.id("document-reference")
        carried = await _store_document(own, notice, earlier)
        if earlier is not None:
            await _supersede(context, earlier)
        carried.append(f"Bundle/{notice.id('document')}")
    patient = subject_of(notice.state.plan)
    message = await addressed(context, communication(notice, carried), patient, notice.at)
    await once(own, message)
    known["communication"] = message["id"]
    return known, [f"Communication/{message['id']}", *carried]


async def _store_document(context: Context, notice: PlanNotice, earlier: str | None) -> list[str]:
    """Store the document and its DocumentReference; returns the latter's reference."""
    own_id = notice.id("document-reference")
    changes = [each.sentence for each in notice.changes] if notice.kind == "yearly" else None
    edition = Edition(notice.id("document"), notice.at, context.base_url, earlier, changes)
    if await context.store.read("DocumentReference", own_id) is None:
        record = await care_plan_record.gather(context, notice.state, notice.at)
        stored = await once(context, document.build(record, edition))
        if stored is not None:
            await once(context, document.reference_to(record, stored, edition, own_id))
    return [f"DocumentReference/{own_id}"]


async def _supersede(context: Context, earlier: str) -> None:
    stored = await context.store.read("DocumentReference", earlier)
    if stored is not None and not stored.deleted:
        reference = {**stored.resource(), "status": "superseded"}
        await interactions.update(context, "DocumentReference", earlier, reference)


async def once(context: Context, resource: Resource) -> ResourceVersion | None:
    """Store a resource under its id, unless one is stored there or was deleted there; returns what lies there then."""
    key = resource["resourceType"], resource["id"]
    context = context.owning("/".join(key))
    stored = await context.store.read(*key)
    if stored is not None:
        return stored
    try:
        return (await interactions.update(context, *key, resource, ONLY_NEW)).stored
    except PreconditionFailed:  # another process carries out the same notice
        return await context.store.read(*key)


async def remind(context: Context, plan_id: str, told_at: datetime) -> None:
    """Set the timer of a plan's yearly review to the anniversary of a notice."""
    await context.services.get(Timers).set(REVIEW_TIMER, plan_id, anniversary(told_at))


def anniversary(moment: datetime) -> datetime:
    """The same time a year later; of a 29 February, on the 28th."""
    try:
        return moment.replace(year=moment.year + 1)
    except ValueError:
        return moment.replace(year=moment.year + 1, day=28)


def _rows(context: Context) -> Any:
    return context.services.mongo.collection(NOTICES)


# The content of one notice about a care plan: its trigger, its text, and the Communication that holds them.

NoticeKind = Literal["created", "changed", "deleted", "yearly"]
_CODE_OF = {
    "activity": "activities",
    "addresses": "conditions",
    "care-team": "team",
    "goal": "goals",
    "period": "period",
    "risk-tier": "risk-tier",
    "status": "status",
}


@dataclass(frozen=True, slots=True)
class PlanNotice:
    """One notice about a plan: its kind and number, its time, the state it is about, and the changes since the last."""

    plan: str
    kind: NoticeKind
    number: int
    at: datetime
    state: PlanState
    changes: Sequence[PlanChange]

    def id(self, what: str) -> str:
        """The id of a resource that this notice stores."""
        return stable_id(f"care-plan-{what}", self.plan, str(self.number))


def coding(notice: PlanNotice) -> dict[str, str]:
    """The Coding for the trigger of the notice and the category of its Communication."""
    if notice.kind == "yearly":
        return _coding(CARE_PLAN_REVIEW, CARE_PLAN_REVIEWS, "yearly")
    if notice.kind == "created":
        return _coding(CARE_PLAN_CHANGE, CARE_PLAN_CHANGES, "created")
    kinds = {_CODE_OF.get(change.kind, "changed") for change in notice.changes}
    return _coding(
        CARE_PLAN_CHANGE, CARE_PLAN_CHANGES, kinds.pop() if len(kinds) == 1 else "changed"
    )


def _coding(system: str, displays: dict[str, str], code: str) -> dict[str, str]:
    return {"system": system, "code": code, "display": displays[code]}


def communication(notice: PlanNotice, carried: Sequence[str]) -> Resource:
    """The Communication of a notice, not yet addressed: text, changes (unless the plan is new), and what it carries."""
    plan = {"reference": f"CarePlan/{notice.plan}"}
    patient = subject_of(notice.state.plan)
    payload: list[dict[str, Any]] = [{"contentString": told(notice)}]
    found: Resource = {
        "resourceType": "Communication",
        "id": notice.id("notice"),
        "category": [{"coding": [coding(notice)]}],
        "basedOn": [plan],
        "about": [plan, *({"reference": each} for each in carried)],
    }
    if patient is not None:
        found["subject"] = {"reference": patient}
    if notice.kind != "created":
        changes = {**parameters(notice.changes), "id": "changes"}
        found["contained"] = [changes]
        payload.append({"contentReference": {"reference": "#changes"}})
    payload += [{"contentReference": {"reference": each}} for each in carried]
    found["payload"] = payload
    if labels := notice.state.plan.get("meta", {}).get("security"):
        found["meta"] = {"security": labels}
    return found


def told(notice: PlanNotice) -> str:
    """The notice as text."""
    if notice.kind == "created":
        return "The care plan is new; its document is attached."
    if notice.kind == "yearly":
        return f"Changes of the care plan since its last copy:\n{text_of(notice.changes)}"
    return text_of(notice.changes)
