"""Letters of an opt-in for which no practice was known: each is addressed once one is.

That is looked at when a Patient or CareTeam is written, and once a day, for rosters, roles and periods count, too. The
letter is then in preparation, as if the practice had been known at once: its practice is told of it, or a person mails
it. An opt-in that does not hold any more is written of to nobody. docs/consent.md
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from app.automation.follow_up_tasks import Closing, amend, closed, is_open
from app.automation.patient_resources import codes_in, patients_of, resources_of, token
from app.automation.reactions import Reaction
from app.automation.timers import Timer, Timers
from app.context import Context
from app.coordination.case_management import letters_sent
from app.coordination.case_management.letter_writing import NOT_DONE
from app.coordination.case_management.letters import NO_PCP, WAITING, WORDS, stands, to_practice
from app.fhir.codes import LETTER_KIND, LETTER_TO_PROVIDER, REVIEW_REASON
from app.fhir.json import Resource
from app.store.events import Event

_EVERY = timedelta(days=1)
_CLOSING = Closing("completed", "no-longer-untold")


async def sift(context: Context, events: Sequence[Event]) -> Sequence[Event]:
    """The changes of patients of whom a letter waits."""
    named = {each.id: _patients(each) for each in events}
    every = {patient for several in named.values() for patient in several}
    waiting = await context.services.get(Timers).set_among(WAITING, sorted(every))
    return [each for each in events if not waiting.isdisjoint(named[each.id])]


async def react(context: Context, event: Event) -> None:
    """Look at once whether a practice is known by now."""
    timers, now = context.services.get(Timers), context.services.clock.now()
    for patient in await timers.set_among(WAITING, sorted(_patients(event))):
        await timers.set(WAITING, patient, now)


REACTION = Reaction("letters-waiting", frozenset({"Patient", "CareTeam"}), react, sift=sift)


def _patients(event: Event) -> set[str]:
    if event.type == "Patient":
        return {f"Patient/{event.resource_id}"}
    return patients_of(event)


async def _look(context: Context, patient: str, data: Mapping[str, Any]) -> None:
    kind = token("category", LETTER_KIND, LETTER_TO_PROVIDER)
    found = await resources_of(context, "Communication", patient, kind)
    letters = [each.resource() for each in found]
    for letter in letters:
        if not _waits(letter):
            continue
        about = _about(letter)
        state = await to_practice(context, patient, about)
        if state is None:
            due = context.services.clock.now() + _EVERY
            await context.services.get(Timers).set(WAITING, patient, due)
            return
        if await stands(context, about):
            await _address(context, patient, letter["id"], state)
    await _close_tasks(context, patient, {_about(each) for each in letters})


TIMER = Timer(WAITING, _look, at_most=lambda _: _EVERY)


def _about(letter: Resource) -> str:
    return str(letter.get("about", [{}])[0].get("reference", ""))


def _waits(letter: Resource) -> bool:
    reasons = codes_in(letter.get("statusReason"), NOT_DONE)
    return letter["status"] == "not-done" and "recipient-unavailable" in reasons


async def _address(context: Context, patient: str, letter_id: str, state: Resource) -> None:
    """Give the letter its recipient, or the reason why it has none, unless a person has seen to it."""
    if state["status"] != "not-done":
        words = [{"contentString": WORDS[LETTER_TO_PROVIDER]}]
        state = {**state, "payload": words}
        await letters_sent.watch(context, letter_id, patient)

    def change(current: Resource | None) -> Resource | None:
        if current is None or not _waits(current):
            return None
        return {key: value for key, value in current.items() if key != "statusReason"} | state

    await amend(context, "Communication", letter_id, change)


async def _close_tasks(context: Context, patient: str, opt_ins: Collection[str]) -> None:
    """Close what asked for the practice of letters, by what these are about."""

    def change(current: Resource | None) -> Resource | None:
        return closed(current, _CLOSING) if current is not None and is_open(current) else None

    asked = await resources_of(context, "Task", patient, token("code", REVIEW_REASON, NO_PCP))
    for task in asked:
        if task.resource()["focus"].get("reference") in opt_ins:
            await amend(context, "Task", task.id, change)
