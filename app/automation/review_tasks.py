"""The review queue: a Task for each thing that a person has to look at.

People close them; the server closes those about work that it gave up, once that is done (dead_letter_tasks.py), and
those whose cause it sees mended (`settle`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from datetime import datetime

from cachetools import TTLCache

from app.automation.borne_labels import labelled, labels_of
from app.automation.follow_up_tasks import OPEN, amend, is_open
from app.automation.patient_resources import resources_of, token
from app.automation.reactions import stable_id
from app.automation.work_lists import assigned
from app.consent import labels
from app.context import Context
from app.fhir.codes import REVIEW_REASON, REVIEW_REASONS
from app.fhir.instants import instant
from app.fhir.json import Resource
from app.interactions import interactions
from app.records.reader import Reader
from app.records.versions import ResourceVersion
from app.store.events import Event

MOST_COUNTED = 10_000


async def ask(
    context: Context,
    reason: str,
    focus: str,
    *,
    patient: str | None,
    about: str = "",
    requester: str | None = None,
    why: str = "",
) -> None:
    """Put something into the queue, once for each reason and focus, also where somebody has closed it since.

    `focus`, `patient` and `requester`, whose doing it is, are relative references; `about` is one of several matters of
    the same focus, `why` what the reason does not say.
    """
    asked = task(context, reason, focus, patient=patient, about=about)
    if why:
        asked["reasonCode"] = {"text": why}
    if requester is not None:
        asked["requester"] = {"reference": requester}
    context = context.owning(f"Task/{asked['id']}")
    if await context.store.read("Task", asked["id"]) is None:
        asked = await labelled(context, asked, focus)
        await interactions.update(context, "Task", asked["id"], asked)


async def ask_of_patient(
    context: Context, reason: str, focus: str, patient: str, *, why: str = ""
) -> None:
    """Put something into the queue that is amiss with a patient, whatever record showed it; `why` as in `ask`.

    While a Task of that reason is open for the patient, and hides from nobody who sees this record, nothing more is
    asked; once it is closed the next record that shows it still amiss, or amiss again, is a Task of its own.
    """
    of_reason = token("code", REVIEW_REASON, reason)
    asked = await resources_of(context, "Task", patient, of_reason)
    found = await labelled(context, task(context, reason, focus, patient=patient), focus)
    for each in asked:
        if is_open(each.resource()) and await _is_seen_with(context, each.resource(), found):
            return
    if why:
        found["reasonCode"] = {"text": why}
    found["id"] = stable_id("review", reason, patient, str(len(asked)) if asked else "")
    await interactions.update(context, "Task", found["id"], found)


async def _is_seen_with(context: Context, asked: Resource, found: Resource) -> bool:
    """Whether a Task bears no label that a new one does not, and its focus neither, as that is now."""
    focus = asked.get("focus", {}).get("reference", "")
    borne = labels.of(asked) | labels.codes(await labels_of(context, focus))
    return borne <= labels.of(found)


async def ask_while(
    context: Context,
    reason: str,
    focus: str,
    about: str,
    *,
    patient: str | None = None,
    why: str = "",
) -> None:
    """Put something into the queue that the server itself will see mended, unless a Task about it is open.

    `about` tells the occasions apart: the next one is a Task of its own.
    """
    if not await _open(context, reason, focus):
        await ask(context, reason, focus, patient=patient, about=about, why=why)


async def settle(context: Context, reason: str, focus: str) -> None:
    """Close the open Tasks about something that is mended."""
    for stored in await _open(context, reason, focus):

        def close(current: Resource | None) -> Resource | None:
            if current is None or not is_open(current):
                return None
            return {**current, "status": "completed"}

        await amend(context, "Task", stored.id, close)


async def _open(context: Context, reason: str, focus: str) -> list[ResourceVersion]:
    """The open Tasks of a reason that are about a resource, given as a relative reference; most are about nobody."""
    terms = {"$all": [f"focus={focus}", token("code", REVIEW_REASON, reason)]}
    found = await context.services.store.search("Task", {"terms": terms}, 0)
    return [each for each in found if is_open(each.resource())]


def task(
    context: Context, reason: str, focus: str | None, *, patient: str | None, about: str = ""
) -> Resource:
    """The Task that asks, as `ask` stores it."""
    found: Resource = {
        "resourceType": "Task",
        "id": stable_id("review", reason, focus or "", about),
        "status": "requested",
        "intent": "order",
        "priority": "routine",
        "code": {
            "coding": [{"system": REVIEW_REASON, "code": reason, "display": REVIEW_REASONS[reason]}]
        },
        "description": REVIEW_REASONS[reason],
        "authoredOn": instant(context.services.clock.now()),
        **assigned(context.settings, reason),
    }
    if focus is not None:
        found["focus"] = {"reference": focus}
    if patient is not None:
        found["for"] = {"reference": patient}
    return found


async def open_counts(store: Reader) -> dict[str, int]:
    """How many Tasks of each reason nobody has closed, counted up to `MOST_COUNTED`."""
    is_open = {"terms": {"$in": [f"status={status}" for status in sorted(OPEN)]}}
    return {
        reason: await store.count(
            "Task",
            {"$and": [{"terms": token("code", REVIEW_REASON, reason)}, is_open]},
            MOST_COUNTED,
        )
        for reason in REVIEW_REASONS
    }


# Patients of whom nothing is amiss, for a moment: who is looked into at every message of a visit costs as much as it.
#
# It decides what is looked into after the event, never who is told: routing reads all anew for each event.

SECONDS = 60.0
_REMEMBERED = 10_000
# A change of these may have put something wrong, or right, with anybody.
_DECIDING = frozenset(
    {
        "CareTeam",
        "Endpoint",
        "Group",
        "Organization",
        "Patient",
        "Practitioner",
        "PractitionerRole",
        "Subscription",
    }
)


class RecentlyChecked:
    """What this process has found in order; what others change is seen when the time is over."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._in_order: TTLCache[str, datetime] = TTLCache(_REMEMBERED, SECONDS, clock)
        # How often all was forgotten: what was read before that says nothing.
        self.changes = 0

    def note(self, patient: str, at: datetime, changes: int) -> None:
        """The patient (`Patient/p1`) is known here, and so is a practice that can be told.

        `at` and `changes` are from before that was read.
        """
        if changes == self.changes:
            self._in_order[patient] = at

    def knows(self, patient: str) -> bool:
        return patient in self._in_order

    def knew(self, patient: str, at: datetime) -> bool:
        """Whether all was in order at that time already, and has been since."""
        since = self._in_order.get(patient)
        return since is not None and since <= at

    def on_events(self, events: Iterable[Event]) -> None:
        """The store's listener: forget everything where what it was found by may have changed."""
        if any(event.type in _DECIDING for event in events):
            self._in_order.clear()
            self.changes += 1
