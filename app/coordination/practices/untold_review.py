"""Review Tasks for what nobody was told of: one for each cause and practice, patient or record, with a count.

Of a patient's cause there are more where not everybody sees all that waits (untold_shares.py).
What a person has closed is opened again by the next row of the same cause. A Task closes itself when no row waits any
more (mended_causes.py); in between the count is brought up to date every half minute. docs/routing.md
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from app.attribution.claims import terms_for
from app.attribution.practices import CONNECTION_TERMS
from app.automation import review_tasks
from app.automation.borne_labels import labelled, with_labels
from app.automation.follow_up_tasks import Closing, amend, closed, is_open
from app.automation.patient_resources import codes_in, resources_of, token
from app.automation.reactions import stable_id
from app.automation.set_aside import set_aside
from app.automation.timers import Timer, Timers
from app.context import Context
from app.coordination.practices.untold_shares import Share, share_of, shares
from app.errors import FhirError
from app.fhir.codes import REVIEW_REASON, REVIEW_REASONS, TASK_STATUS_REASON
from app.fhir.instants import instant, parse
from app.fhir.json import Resource
from app.interactions.references import split
from app.subscriptions.ledger.untold_rows import IN_DOUBT, Tally, Untold, UntoldRows

log = logging.getLogger(__name__)

# The causes that lie with a patient; their Tasks are read by whoever has the patient.
OF_PATIENTS = ("pcp-period-ended", "no-pcp")
_KIND, _KEY = "untold-review", "all"
EVERY = timedelta(seconds=30)
# A row may become visible later than its id says.
_OVERLAP = timedelta(seconds=30)
_CLOSING = Closing("completed", "no-longer-untold")
_TO_DO = {
    "no-pcp": "Name the patient's primary care practice.",
    "pcp-period-ended": "Name who has followed, or lengthen the period.",
    "no-endpoint": "Give the practice an Endpoint, or let it subscribe.",
    "nobody-listens": "Let the practice subscribe, or have the server subscribe it (CARERELAY_ENDPOINT_SUBSCRIPTIONS).",
    "no-subject": "Name the patient in the record.",
    "subject-by-identifier": "Name the patient in the record by a reference.",
    "unknown-patient": "Store the patient, or name another in the record.",
}
# Where the server subscribes Endpoints that somebody stands for.
_STAND_FOR = (
    "Let the practice subscribe, or let it or an administrator write its Endpoint, to stand for it."
)
_COUNT = "Notices that were not sent"
_LOST_ENDPOINT = "An Endpoint names it as managingOrganization: name that in Organization.endpoint, if it is right."


async def start(context: Context) -> None:
    """Set the timer, unless it is set."""
    timers = context.services.get(Timers)
    if await timers.due_of(_KIND, _KEY) is None:
        await timers.set(_KIND, _KEY, context.services.clock.now() + EVERY)


async def run(context: Context, key: str, data: Mapping[str, Any]) -> None:
    """Bring the counts up to date of the causes that had another row, and set the timer anew."""
    if not context.settings.unrouted:
        return
    now = context.services.mongo.now()
    try:
        rows = UntoldRows(context.services.mongo)
        for cause, concerns in await rows.causes_since(data.get("since", now) - _OVERLAP - EVERY):
            with set_aside(_KIND, concerns):
                await keep(context, cause, concerns)
    finally:
        due = context.services.clock.now() + EVERY
        await context.services.get(Timers).set(_KIND, _KEY, due, {"since": now})


TIMER = Timer(_KIND, run, is_about_many=True, at_most=lambda _: EVERY)


async def ask(context: Context, why: Untold, record: str) -> None:
    """See that a person is asked; a Task that is open gets its count later, for many rows may come at once."""
    share = ""
    if why.cause in OF_PATIENTS:
        share = await share_of(context, why.concerns, record)
    own = context if _names_patient(why.cause) else context.about(())
    task_id = _id(why.cause, why.concerns, share)
    own = own.owning(f"Task/{task_id}")
    stored = await own.store.read("Task", task_id)
    if stored is None or stored.deleted or not is_open(stored.resource()):
        await keep(own, why.cause, why.concerns)


async def keep(context: Context, cause: str, concerns: str) -> None:
    """Bring the Tasks of a cause in line with the rows that wait for it."""
    if cause == IN_DOUBT:
        return
    found = await _shares(context, cause, concerns)
    for name, share in found.items():
        await _keep(context, cause, concerns, name, share)
    kept = {_id(cause, concerns, name) for name in found}
    for task_id in await _asked(context, cause, concerns) - kept:
        await amend(context, "Task", task_id, partial(_ended, cause))


async def _shares(context: Context, cause: str, concerns: str) -> dict[str, Share]:
    rows = UntoldRows(context.services.mongo)
    if cause in OF_PATIENTS:
        return await shares(context, concerns, await rows.tallies(cause, concerns))
    tally = await rows.tally(cause, concerns)
    return {} if tally is None else {"": Share(tally)}


async def _asked(context: Context, cause: str, concerns: str) -> set[str]:
    """The ids of the Tasks of a cause, of a patient's those that are open."""
    if cause not in OF_PATIENTS:
        return {_id(cause, concerns, "")}
    of_cause = token("code", REVIEW_REASON, cause)
    found = await resources_of(context, "Task", concerns, of_cause)
    # Others of this reason are about something else, as a letter that waits.
    return {each.id for each in found if is_open(task := each.resource()) and _has_count(task)}


def _has_count(task: Resource) -> bool:
    return any(each["type"].get("text") == _COUNT for each in task.get("input", ()))


async def _keep(context: Context, cause: str, concerns: str, name: str, share: Share) -> None:
    said = await _said(context, cause, concerns, share)
    asked = await _task(context, cause, concerns, share.tally)
    asked["id"] = _id(cause, concerns, name)
    if share.records:
        said["focus"] = asked["focus"]

    def change(current: Resource | None) -> Resource | None:
        if current is None:
            return {**asked, **said}
        current = with_labels(current, asked.get("meta", {}).get("security", ()))
        if is_open(current):
            return {**current, **said}
        by_server = bool(codes_in(current.get("statusReason"), TASK_STATUS_REASON))
        if not by_server and share.tally.newest <= parse(current["meta"]["lastUpdated"]):
            return None
        again = {key: value for key, value in current.items() if key != "statusReason"}
        return {**again, **said, "status": "requested"}

    try:
        await amend(context, "Task", asked["id"], change)
    except FhirError as error:  # the row is there, and the next one asks again
        told = {"action": _KIND, "error": type(error).__name__}
        log.warning("cannot ask for a review", extra=told)


def _ended(cause: str, current: Resource | None) -> Resource | None:
    """The Task closed, without the count, which is of a moment while it was open; what people have closed as it is."""
    if current is None:
        return None
    ended = closed(current, _CLOSING)
    if ended is current:
        return current
    inputs = [each for each in current.get("input", ()) if each["type"].get("text") != _COUNT]
    said = {
        "description": f"{REVIEW_REASONS[cause]}. Nothing that this Task tells of waits any more."
    }
    return {**ended, **said, **({"input": inputs} if inputs else {})}


def _id(cause: str, concerns: str, share: str) -> str:
    return stable_id("review", cause, concerns, share)


def _names_patient(cause: str) -> bool:
    return cause not in ("no-endpoint", "nobody-listens")


async def _said(context: Context, cause: str, concerns: str, share: Share) -> Resource:
    """What the Task says: how many wait since when, of which records, and what to do."""
    tally = share.tally
    notices = "One notice was" if tally.count == 1 else f"{tally.count} notices were"
    words = [f"{REVIEW_REASONS[cause]}. {notices} not sent. {_to_do(context, cause)}"]
    inputs: list[Resource] = [
        {"type": {"text": _COUNT}, "valuePositiveInt": tally.count},
        {"type": {"text": "The first one"}, "valueInstant": instant(tally.oldest)},
        {"type": {"text": "It concerns"}, "valueString": concerns},
        *(_naming("Nobody was told of", each) for each in share.records),
    ]
    if cause == "no-endpoint":
        lost = await _endpoints_naming(context, concerns)
        words += [_LOST_ENDPOINT] if lost else []
        inputs += [_naming("Endpoint", f"Endpoint/{each}") for each in lost]
    return {"description": " ".join(words), "input": inputs}


def _naming(what: str, reference: str) -> Resource:
    return {"type": {"text": what}, "valueReference": {"reference": reference}}


def _to_do(context: Context, cause: str) -> str:
    if cause == "nobody-listens" and context.settings.endpoint_subscriptions == "confirmed":
        return _STAND_FOR
    return _TO_DO[cause]


async def _endpoints_naming(context: Context, practice: str) -> list[str]:
    """The usable Endpoints that name an organization as theirs, which it does not name itself.

    Nothing is sent to one: whoever writes an Endpoint could have another's notices.
    """
    if not practice.startswith("Organization/"):
        return []
    base_url = context.settings.base_url.rstrip("/")
    named = list(terms_for("Endpoint", "organization", practice, base_url))
    wanted = [{"terms": {"$in": named}}, {"terms": "status=active"}]
    wanted.append({"terms": {"$in": list(CONNECTION_TERMS)}})
    found = await context.services.store.find(
        "Endpoint", {"$and": wanted}, limit=10, projection={"_id": 1}
    )
    return sorted(row["_id"] for row in found)


async def _task(context: Context, cause: str, concerns: str, tally: Tally) -> Resource:
    """A new Task; its focus is the practice where that is stored, of other causes the first record not told of."""
    if _names_patient(cause):
        patient = tally.patient if cause != "unknown-patient" else None
        asked = review_tasks.task(context, cause, tally.focus, patient=patient)
        asked = await labelled(context, asked, asked["focus"]["reference"])
    else:
        focus = concerns if await _is_stored(context, concerns) else None
        asked = review_tasks.task(context, cause, focus, patient=None)
    return asked


async def _is_stored(context: Context, reference: str) -> bool:
    place = split(reference)
    stored = None if place is None else await context.services.store.read(*place)
    return stored is not None and not stored.deleted
