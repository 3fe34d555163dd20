"""Copies of care plans for practices that come to a patient: named later, or in another's place, or heard of late.

A notice goes to whoever is responsible at its time (plan_notices.py). A practice that becomes responsible later is told
of the plan as the others know it, with a document of its own, and the others are not told again. That is looked at when
a Patient or CareTeam is written, and for all plans a minute after a roster, role or Subscription was, and once a day:
attributions begin and end by the calendar too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any

from app.attribution import many
from app.attribution.derived import patient_of
from app.automation import review_tasks
from app.automation.patient_resources import changed
from app.automation.reactions import Reaction
from app.automation.timers import Timer, Timers
from app.context import Context
from app.coordination.care_plans import responsible
from app.coordination.care_plans.changes import ENDED
from app.coordination.care_plans.plan_notices import (
    finish,
    lock_of,
    notice_rows,
    record_of,
    state_told,
    tell,
)
from app.coordination.care_plans.state import PlanState, of_plan, subject_of
from app.coordination.care_plans.wording import key_of
from app.fhir.codes import GROUP_KIND, PCP_PANEL
from app.fhir.json import Resource
from app.runtime.mongo import Document
from app.store.events import Event
from app.subscriptions.ledger.ledger import delivery_rows

COPIES_TIMER = "care-plan-copies"
# The keys of timers: of all plans, or of one.
_DAILY, _SOON, _PLAN = "daily", "soon", "CarePlan/"
EVERY, SOON = timedelta(days=1), timedelta(minutes=1)
# What of each type says whose patient somebody is.
_OF_PATIENT = {
    "Patient": ("generalPractitioner", "link"),
    "CareTeam": ("participant", "period", "status", "subject"),
}
_OF_MANY = {
    "Group": ("active", "actual", "characteristic", "code", "managingEntity", "member", "type"),
    "PractitionerRole": ("active", "organization", "period", "practitioner"),
    "Subscription": ("_criteria", "criteria"),
}
_OPEN = {"terms": {"$in": ["status=active", "status=on-hold"]}}
# One patient has a few plans; of all a timer looks at so many before others ring.
_MOST_PLANS, _AT_ONCE = 200, 1000


async def _sift(context: Context, events: Sequence[Event]) -> list[Event]:
    """Changes of what many share, and those of patients who have plans."""
    patients = {each.id: _patients(each) for each in events if each.type in _OF_PATIENT}
    wanted = {f"subject={patient}" for named in patients.values() for patient in named}
    if not wanted:
        return list(events)
    filter_ = {"$and": [{"terms": {"$in": sorted(wanted)}}, _OPEN]}
    most = _MOST_PLANS * len(wanted)
    plans = await context.store.find("CarePlan", filter_, limit=most, projection={"terms": 1})
    found = {term for plan in plans for term in plan["terms"]}
    return [
        each
        for each in events
        if each.id not in patients
        or len(plans) == most
        or any(f"subject={patient}" in found for patient in patients[each.id])
    ]


async def _watch(context: Context, event: Event) -> None:
    """Look at the patient's plans, or soon at all, where a change may have brought somebody to a patient."""
    timers, now = context.services.get(Timers), context.services.clock.now()
    if event.type in _OF_MANY:
        if _concerns_many(event):
            await timers.set_unless_waiting(COPIES_TIMER, _SOON, now + SOON)
        return
    if not changed(event, _OF_PATIENT[event.type]):
        return
    terms = {"$in": [f"subject={patient}" for patient in _patients(event)]}
    filter_ = {"$and": [{"terms": terms}, _OPEN]}
    plans = await context.store.find("CarePlan", filter_, limit=_MOST_PLANS, projection={"_id": 1})
    for plan in plans:
        if await record_of(context, plan["_id"]) is not None:
            await timers.set(COPIES_TIMER, f"{_PLAN}{plan['_id']}", now, {"asks": True})


def _patients(event: Event) -> list[str]:
    if event.type == "Patient":
        return [f"Patient/{event.resource_id}"]
    versions = (event.resource, event.previous)
    return sorted({key_of(each.get("subject")) for each in versions if each is not None})


def _concerns_many(event: Event) -> bool:
    """Whether a change of a roster, a role or a Subscription may let somebody hear of plans anew."""
    if event.resource is None or not changed(event, _OF_MANY[event.type]):
        return event.type == "Subscription" and _is_back(event)
    match event.type:
        case "Group":
            return any(_is_roster(each) for each in (event.resource, event.previous) if each)
        case "Subscription":
            return _follows_a_panel(event.resource)
    return True


def _is_roster(group: Resource) -> bool:
    codings = group.get("code", {}).get("coding", ())
    return any(
        each.get("system") == GROUP_KIND and each.get("code") == PCP_PANEL for each in codings
    )


def _is_back(event: Event) -> bool:
    """Whether a Subscription that was off is not so any more."""
    now, before = event.resource, event.previous
    if now is None or before is None or not _follows_a_panel(now):
        return False
    return before.get("status") == "off" and now.get("status") != "off"


def _follows_a_panel(subscription: Resource) -> bool:
    return "general-practitioner" in str(subscription.get("_criteria", ""))


async def tell_new(context: Context, row: Document, last: PlanState, *, asks: bool = False) -> bool:
    """Send a copy of the plan as it was told last to who has come to its patient; False where nobody has.

    `lock_of` the plan is held. `asks`: a person is asked about a practice that cannot be told.
    """
    patient = subject_of(last.plan)
    if patient is None or last.plan.get("status") in ENDED:
        return False
    providers = await responsible.providers(context, patient)
    heard = responsible.heard(context, providers)
    known = row.get("practices", ())
    new = [each for each in heard if each not in known and not await _has(context, row, each)]
    if new:
        await tell(context, row["_id"], "copy", row, dict(row["versions"]), only_for=new)
        return True
    await _remember(context, row, heard)
    if asks and context.settings.unrouted:
        for provider in providers:
            is_subscribed = provider.endpoints and context.settings.endpoint_subscriptions
            if not is_subscribed and not set(heard).intersection(provider.references):
                own, focus = of_plan(context, last.plan), f"CarePlan/{row['_id']}"
                await review_tasks.ask_of_patient(own, "no-endpoint", focus, patient)
    return False


async def _has(context: Context, row: Document, reference: str) -> bool:
    """Whether all who hear of plans by this provider have both the last document and the last notice."""
    wanted = responsible.subscriptions(context, [reference])
    for kind, name in (("DocumentReference", "document"), ("Communication", "communication")):
        told: Document = {
            "focus.id": row["_id"],
            "focus.type": "CarePlan",
            "context": f"{kind}/{row.get(name)}",
            "state": {"$ne": "suppressed"},
        }
        rows = delivery_rows(context.services.mongo)
        if not wanted <= set(await rows.distinct("subscription", told)):
            return False
    return True


async def _remember(context: Context, row: Document, heard: Sequence[str]) -> None:
    if row.get("practices") != heard:
        await notice_rows(context).update_one(
            {"_id": row["_id"], "number": row["number"], "pending": {"$exists": False}},
            {"$set": {"practices": list(heard)}},
        )


async def _look(context: Context, plan_id: str, *, asks: bool = False) -> None:
    """Send a copy of one plan to whoever has come to its patient."""
    async with lock_of(context, plan_id):
        row = await finish(context, plan_id)
        last = await state_told(context, row)
        plan = await context.store.read("CarePlan", plan_id)
        if row is None or last is None or plan is None or plan.deleted:
            return
        now = plan.resource()
        # What it is to become the others are still to be told of, and then whoever has come is told with them.
        if subject_of(now) == subject_of(last.plan) and now.get("status") not in ENDED:
            await tell_new(context, row, last, asks=asks)


async def start(context: Context) -> None:
    """Set the daily timer, unless it is set."""
    timers = context.services.get(Timers)
    if await timers.due_of(COPIES_TIMER, _DAILY) is None:
        await timers.set(COPIES_TIMER, _DAILY, context.services.clock.now() + SOON)


async def _ring(context: Context, key: str, data: Mapping[str, Any]) -> None:
    """Look at one plan, or let those of the next plans be looked at whose practices are others; daily at all."""
    timers, now = context.services.get(Timers), context.services.clock.now()
    if key.startswith(_PLAN):
        await _look(context, key.removeprefix(_PLAN), asks=data.get("asks", False))
        return
    if key == _DAILY:
        await timers.set(COPIES_TIMER, _DAILY, now + EVERY)
        await timers.set_unless_waiting(COPIES_TIMER, _SOON, now)
        return
    plans = await context.services.store.find(
        "CarePlan",
        {"$and": [_OPEN, {"_id": {"$gt": data.get("after", "")}}]},
        sort=[("_id", 1)],
        limit=_AT_ONCE,
        projection={"_id": 1, "terms": 1},
    )
    for plan_id in await _behind(context, plans):
        await timers.set(COPIES_TIMER, f"{_PLAN}{plan_id}", now)
    if len(plans) == _AT_ONCE:
        last = plans[-1]["_id"]
        await timers.set(COPIES_TIMER, f"after {last}", now, {"after": last})


async def _behind(context: Context, plans: Iterable[Document]) -> list[str]:
    """Of plans, given by their search terms, those whose practices are not the ones that are known to have them.

    Who was responsible before that was kept counts as having the plan.
    """
    base_url = context.settings.base_url.rstrip("/")
    patients = {each["_id"]: patient_of("CarePlan", each, base_url) for each in plans}
    rows = notice_rows(context)
    told = {"_id": {"$in": list(patients)}, "versions.0": {"$exists": True}}
    known = {each["_id"]: each async for each in rows.find(told, {"practices": 1})}
    now = context.services.clock.now()
    wanted = {patient for plan in known if (patient := patients[plan])}
    found = await many.providers(context.services.store, wanted, now, context.settings)
    behind = []
    for plan, row in known.items():
        heard = responsible.heard(context, found.get(patients[plan] or "", ()))
        if "practices" not in row:
            await rows.update_one(
                {"_id": plan, "practices": {"$exists": False}}, {"$set": {"practices": heard}}
            )
        elif row["practices"] != heard:
            behind.append(plan)
    return behind


REACTION = Reaction("care-plan-copies", frozenset({*_OF_PATIENT, *_OF_MANY}), _watch, sift=_sift)
TIMER = Timer(COPIES_TIMER, _ring, is_about_many=True, at_most=lambda _: EVERY)
