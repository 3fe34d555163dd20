"""The two letters of an opt-in to case management: one to the member, one to the primary care practice.

An opt-in is a Consent of the category `case-management` that comes to permit it, or an enrolment that becomes active
where no Consent answers the question; each opt-in has its letters once. The letters are Communications in
`preparation`: the person who prints or mails one completes it with the time it was sent, for a practice that took it by
a Subscription the server does (letters_sent.py). One for which no practice is known waits for it (letters_waiting.py).
docs/consent.md
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from app.attribution.attribution import primary_care
from app.attribution.practices import Provider
from app.automation import review_tasks
from app.automation.patient_resources import patient_of
from app.automation.reactions import Reaction
from app.automation.timers import Timers
from app.consent import labels
from app.consent.judgement import Directive, WrittenConsent, consents, directives
from app.consent.provisions import ConsentQuestion, Effect, answer
from app.consent.recipients import Recipient
from app.context import Context
from app.coordination.case_management import letters_sent
from app.coordination.case_management.case_management import is_case_management
from app.coordination.case_management.letter_writing import (
    is_refused,
    letter_id,
    not_sent,
    store_letter,
    to,
)
from app.fhir.codes import CASE_MANAGEMENT, LETTER_TO_MEMBER, LETTER_TO_PROVIDER
from app.fhir.json import Resource
from app.interactions.references import split
from app.store.events import Event

# The kind of the timers, by patient, that look for a practice for letters (letters_waiting.py).
WAITING = "letters-waiting"
# The reason of the Tasks that ask for one, each about the opt-in.
NO_PCP = "no-pcp"
# A practice may be named beside the writing of the letter.
_FIRST_LOOK = timedelta(minutes=1)
_TO_DO = (
    "The letter about the opt-in is addressed to nobody. Name the patient's primary care practice; it is addressed to "
    "that then."
)
# Plain words without anything clinical: others may see the letters.
WORDS = {
    LETTER_TO_MEMBER: (
        "You are now part of our case management programme. A case manager will be in touch with you. You may leave "
        "the programme at any time; to do so, tell your case manager or your health plan."
    ),
    LETTER_TO_PROVIDER: (
        "Your patient is now part of our case management programme. Please expect a copy of the care plan, and tell "
        "the case manager of anything it should take up."
    ),
}


async def react(context: Context, event: Event) -> None:
    """Write the letters where this change is an opt-in."""
    resource = event.resource
    patient = patient_of(resource)
    if resource is None or patient is None:
        return
    about = f"{event.type}/{event.resource_id}"
    if event.type == "EpisodeOfCare":
        begins = _is_enrolled(resource) and not _is_enrolled(event.previous)
        if begins and not _answers(context, await _directives(context, patient)):
            await _write(context, patient, about, about, resource.get("managingOrganization"))
        return
    mine = _opt_in(context, resource)
    if mine is None or (event.previous is not None and _opt_in(context, event.previous)):
        return
    known = await _directives(context, patient)
    if _is_news(context, mine, known) and not await _has_letters(context, patient):
        key = f"{about} {resource.get('dateTime', '')}"
        sender = next(iter(resource.get("organization", ())), None)
        await _write(context, patient, about, key, sender)


REACTION = Reaction("opt-in-letters", frozenset({"Consent", "EpisodeOfCare"}), react)


def _is_enrolled(episode: Resource | None) -> bool:
    return episode is not None and is_case_management(episode) and episode["status"] == "active"


async def _directives(context: Context, patient: str) -> list[Directive]:
    """The patient's active Consents about case management, newest first."""
    base_url = context.settings.base_url
    found = directives(await consents(context.store, [patient], base_url), base_url)
    return [each for each in found if each.matter == (CASE_MANAGEMENT,)]


def _opt_in(context: Context, consent: Resource) -> Directive | None:
    """The Consent's directive that permits case management; None where it has none."""
    for each in directives([WrittenConsent(consent)], context.settings.base_url):
        if each.matter == (CASE_MANAGEMENT,) and _permits(context, each):
            return each
    return None


def _effect(context: Context, directive: Directive) -> Effect:
    member = Recipient(patient_of(directive.resource) or "")
    now = context.services.clock.now()
    return answer(directive.resource, ConsentQuestion("EpisodeOfCare/-", labels.NONE, member, now))


def _permits(context: Context, directive: Directive) -> bool:
    return _effect(context, directive) is Effect.PERMIT


def _answers(context: Context, known: list[Directive]) -> list[Directive]:
    """The directives that answer the question today, an unclear answer included."""
    return [each for each in known if _effect(context, each) is not Effect.NOTHING]


def _is_news(context: Context, mine: Directive, known: list[Directive]) -> bool:
    """Whether the opt-in is the newest answer, and the one before it does not permit: a renewal is no news."""
    answers = _answers(context, known)
    if not answers or answers[0].since > mine.since:
        return False
    older = [each for each in answers if each.reference != mine.reference]
    return not older or not _permits(context, older[0])


async def _has_letters(context: Context, patient: str) -> bool:
    """Whether the letters were written already when a current enrolment began."""
    for stored in await context.store.search("EpisodeOfCare", {"terms": f"patient={patient}"}, 100):
        if _is_enrolled(stored.resource()):
            letter = letter_id(LETTER_TO_MEMBER, stored.reference)
            if await context.store.read("Communication", letter) is not None:
                return True
    return False


async def _write(
    context: Context, patient: str, about: str, key: str, sender: dict[str, Any] | None
) -> None:
    """Store both letters about one opt-in; `key` identifies it."""
    base = {"about": [{"reference": about}], **({"sender": sender} if sender else {})}
    await _store(context, LETTER_TO_MEMBER, patient, key, {**base, **to({"reference": patient})})
    state = await to_practice(context, patient, about)
    if state is None:
        await review_tasks.ask(context, NO_PCP, about, patient=patient, about=key, why=_TO_DO)
        due = context.services.clock.now() + _FIRST_LOOK
        await context.services.get(Timers).set(WAITING, patient, due)
        state = not_sent("recipient-unavailable")
    await _store(context, LETTER_TO_PROVIDER, patient, key, {**base, **state})


async def to_practice(context: Context, patient: str, about: str) -> Resource | None:
    """The state of the letter to the practice: to whom it is sent, or that the member refuses it; None without one."""
    now = context.services.clock.now()
    found = await primary_care(context.services.store, patient, now, context.settings)
    if not found.providers:
        return None
    reference = _address(found.providers[0])
    refused = await is_refused(context, patient, reference, about)
    return not_sent("patient-objection") if refused else to({"reference": reference})


async def stands(context: Context, about: str) -> bool:
    """Whether the opt-in that a letter is about holds still."""
    place = split(about)
    stored = None if place is None else await context.store.read(*place)
    if stored is None or stored.deleted:
        return False
    resource = stored.resource()
    if stored.type == "EpisodeOfCare":
        return _is_enrolled(resource)
    return _opt_in(context, resource) is not None


def _address(provider: Provider) -> str:
    return provider.practitioner_role or provider.practitioner or provider.organization or ""


async def _store(context: Context, kind: str, patient: str, key: str, more: Resource) -> None:
    if kind == LETTER_TO_PROVIDER and more["status"] != "not-done":
        await letters_sent.watch(context, letter_id(kind, key), patient)
    await store_letter(context, kind, patient, key, WORDS[kind], more)
