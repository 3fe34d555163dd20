"""Notices about care plans: one for each state that differs from the last one sent, whatever is repeated or fails.

    plan_notices   {_id: id of the plan, number, told_at, versions, shown, shown_at, practices, document?,
                    communication?, pending?, set_aside?}

`versions` pin the state in the last notice, `shown` the one in the last document that all were sent, `shown_at` is its
time; `practices` are the providers by whose Subscriptions practices have the plan (copies.py). A notice is first
written as `pending` with its versions; any process that finds one carries it out. Doing so twice stores nothing twice:
the ids of its resources, and the key of its event, come from the plan and the notice's number. One that fails again and
again is set aside, and a person is asked; the next notice says what has changed since the last one that was sent.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from weakref import WeakValueDictionary

from pymongo.errors import DuplicateKeyError

from app.automation import review_tasks
from app.automation.timers import Timers
from app.context import Context
from app.coordination.care_plans import (
    changes as care_plan_changes,
    document,
    document_forms,
    document_summary,
    record as care_plan_record,
    responsible,
    state as care_plan_state,
)
from app.coordination.care_plans.addressees import addressed
from app.coordination.care_plans.difference import PlanChange
from app.coordination.care_plans.document import Edition
from app.coordination.care_plans.phrases import phrases_for
from app.coordination.care_plans.plan_notice import (
    WITH_DOCUMENT,
    NoticeKind,
    PlanNotice,
    coding,
    communication,
)
from app.coordination.care_plans.replacement import Replaced, differences, replaced_keys
from app.coordination.care_plans.state import PlanState, is_of_same_patient, of_plan, subject_of
from app.errors import PreconditionFailed
from app.fhir.instants import a_year_after
from app.fhir.json import Resource
from app.interactions import interactions
from app.interactions.preconditions import ONLY_NEW
from app.records.versions import ResourceVersion
from app.runtime.leases import is_nobodys_fault
from app.runtime.mongo import Collection, Document

log = logging.getLogger(__name__)

NOTICES = "plan_notices"
REVIEW_TIMER = "care-plan-review"
REVIEW_TOPIC = "careplan-annual-review"

# Within these a timer tries for about a quarter of an hour.
MOST_TRIES = 10
_MOST_SET_ASIDE = 100

# One notice of a plan at a time in an app, by the app's name and the plan's id; between processes the record decides.
_locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()


def lock_of(context: Context, plan_id: str) -> asyncio.Lock:
    """What is held by whoever decides here on the next notice of a plan."""
    return _locks.setdefault((context.services.store.owner, plan_id), asyncio.Lock())


async def record_of(context: Context, plan_id: str) -> Document | None:
    """The row of a plan's notices; None before the first one."""
    found: Document | None = await notice_rows(context).find_one({"_id": plan_id})
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
    context: Context,
    plan_id: str,
    kind: NoticeKind,
    row: Document | None,
    versions: dict[str, int],
    *,
    only_for: Sequence[str] = (),
) -> bool:
    """Write a notice about the plan in these versions and carry it out; False where another was written first.

    `only_for` are the providers that a `copy` is for.
    """
    number = (row or {}).get("number", 0)
    pending: Document = {
        "number": number + 1,
        "kind": kind,
        "at": context.services.clock.now(),
        "versions": [[key, version] for key, version in sorted(versions.items())],
    }
    if only_for:
        pending["only_for"] = list(only_for)
    try:
        result = await notice_rows(context).update_one(
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
    return care_plan_changes.diff(before, after, await _names(context, before, after))


async def _names(context: Context, before: PlanState, after: PlanState) -> dict[str, str]:
    resources = [before.plan, after.plan, *before.others.values(), *after.others.values()]
    return await care_plan_state.names_of(context, after.plan, resources)


async def _try(context: Context, row: Document) -> None:
    """Carry out the pending notice; counts it where that fails by the notice's own fault."""
    try:
        await _carry_out(context, row)
    except Exception as error:
        if not is_nobodys_fault(error):
            await notice_rows(context).update_one(_of_pending(row), {"$inc": {"pending.tries": 1}})
        raise


async def _set_aside(context: Context, row: Document) -> None:
    """Leave the pending notice, and ask a person about it."""
    number, plan = row["pending"]["number"], f"CarePlan/{row['_id']}"
    log.error(
        "a notice was set aside", extra={"action": "plan-notice", "id": plan, "number": number}
    )
    await review_tasks.ask(context, "plan-not-told", plan, patient=None, about=f"notice {number}")
    left: Document = {"number": number}
    if pending_for := row["pending"].get("only_for"):  # not once more, while others wait
        left["practices"] = sorted({*row.get("practices", ()), *pending_for})
    kept = {"$each": [row["pending"]], "$slice": -_MOST_SET_ASIDE}
    await notice_rows(context).update_one(
        _of_pending(row),
        {"$set": left, "$push": {"set_aside": kept}, "$unset": {"pending": ""}},
    )


def _of_pending(row: Document) -> Document:
    return {"_id": row["_id"], "pending.number": row["pending"]["number"]}


async def _carry_out(context: Context, row: Document) -> None:
    pending = row["pending"]
    kind, versions = pending["kind"], pending["versions"]
    done: Document = {"number": pending["number"]}
    state = await care_plan_state.pinned(context, row["_id"], dict(versions))
    if state is not None:  # otherwise that version of the plan is no longer stored
        done |= await _send(context, row, state)
    if kind in WITH_DOCUMENT:
        patient = None if state is None else subject_of(state.plan)
        done["practices"] = await responsible.listening(context, patient)
    if kind in ("created", "yearly"):
        done |= {"shown": versions, "shown_at": pending["at"]}
        await remind(context, row["_id"], pending["at"])
    if kind == "deleted":
        await context.services.get(Timers).cancel(REVIEW_TIMER, row["_id"])
    if kind != "copy":
        done |= {"told_at": pending["at"], "versions": [] if kind == "deleted" else versions}
    await notice_rows(context).update_one(
        _of_pending(row),
        {"$set": done, "$unset": {"pending": ""}},
    )


async def _send(context: Context, row: Document, state: PlanState) -> Document:
    """Store the resources of the pending notice and raise its event; returns the fields of the row to set."""
    pending = row["pending"]
    only_for = pending.get("only_for", ())
    replaced = await _replaced(context, row, state) if pending["kind"] == "created" else None
    notice = await _notice(context, row, state, replaced)
    earlier = row.get("document") or (None if replaced is None else replaced.document)
    known: Document = {}
    carried: list[str] = []
    if await care_plan_state.is_told(context, state.plan):
        known, carried = await _store_resources(context, notice, earlier, only_for)
    topic = REVIEW_TOPIC if notice.kind == "yearly" else responsible.CHANGE_TOPIC
    await context.store.raise_event(
        ("CarePlan", notice.plan, state.versions[f"CarePlan/{notice.plan}"]),
        responsible.canonical(context.settings, topic),
        key=f"{notice.plan} {notice.number}",
        at=notice.at,
        trigger=coding(notice),
        context=carried,
        only_for=only_for,
    )
    return known


async def _notice(
    context: Context, row: Document, state: PlanState, replaced: Replaced | None
) -> PlanNotice:
    pending = row["pending"]
    kind: NoticeKind = pending["kind"]
    notice = PlanNotice(row["_id"], kind, pending["number"], pending["at"], state)
    if kind == "deleted":
        gone = PlanChange("status", "removed", "The care plan was deleted.")
        return replace(notice, changes=[gone])
    if replaced is not None:
        names = await _names(context, replaced.state, state)
        found = differences(replaced.state, state, names)
        return replace(notice, changes=found, replaces=replaced.title)
    if kind == "copy":
        return notice
    before = await state_told(context, row, "shown" if kind == "yearly" else "versions")
    if before is None or not is_of_same_patient(before, state):
        return notice
    return replace(notice, changes=await changes_between(context, before, state))


async def _replaced(context: Context, row: Document, state: PlanState) -> Replaced | None:
    """The plan of the same patient that this one replaces, as it was told last; None for one told of before."""
    if row.get("versions") or row.get("document"):
        return None
    for plan_id in replaced_keys(state.plan):
        earlier = await record_of(context, plan_id)
        before = await state_told(context, earlier)
        if earlier is None or before is None or not is_of_same_patient(before, state):
            continue
        if await care_plan_state.may_be_told_with(context, before.plan, state.plan):
            return Replaced(before, earlier.get("document"))
    return None


async def _store_resources(
    context: Context, notice: PlanNotice, earlier: str | None, only_for: Sequence[str]
) -> tuple[Document, list[str]]:
    """Store the document and the Communication of a notice; returns the row's fields of them and what it carries."""
    own = of_plan(context, notice.state.plan)
    known: Document = {}
    carried: list[str] = []
    if notice.kind in WITH_DOCUMENT:
        known["document"] = notice.id("document-reference")
        carried = await _store_document(own, notice, earlier)
        if earlier is not None:
            await _supersede(context, earlier)
        carried.append(f"Bundle/{notice.id('document')}")
    message = communication(notice, carried)
    patient = subject_of(notice.state.plan)
    message = await addressed(context, message, patient, notice.at, only_for)
    await once(own, message)
    known["communication"] = message["id"]
    return known, [f"Communication/{message['id']}", *carried]


async def _store_document(context: Context, notice: PlanNotice, earlier: str | None) -> list[str]:
    """Store the document in its forms and its DocumentReference; returns the latter's reference."""
    own_id = notice.id("document-reference")
    if await context.store.read("DocumentReference", own_id) is None:
        is_compared = notice.kind == "yearly" or bool(notice.replaces)
        changes = [each.sentence for each in notice.changes] if is_compared else None
        edition = Edition(notice.id("document"), notice.at, context.base_url, earlier)
        record = await care_plan_record.gather(context, notice.state, notice.at)
        sheet = document_summary.sheet(record, notice.at, phrases_for(record.patient), changes)
        made = await document_forms.resources(record, sheet, edition, notice.id)
        stored = [await once(context, form) for form in made]
        forms = [document_forms.form_of(each) for each in stored if each and not each.deleted]
        if forms:
            await once(context, document.reference_to(record, sheet, forms, edition, own_id))
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


async def remind(context: Context, plan_id: str, shown_at: datetime) -> None:
    """Set the timer of a plan's yearly review to the anniversary of a document."""
    await context.services.get(Timers).set(REVIEW_TIMER, plan_id, a_year_after(shown_at))


def notice_rows(context: Context) -> Collection:
    """The rows of what was told of care plans, `plan_notices`."""
    return context.services.mongo.collection(NOTICES)
