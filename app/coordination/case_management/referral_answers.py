"""Referrals to case management that are not taken up: who has referred hears of it, by a letter.

A referral is not taken up where a person closes its review Task, or a Task of their own about it, without doing what
it asks for, and where none is asked because the patient is enrolled, has declined or has died. One that came while
another review of the patient was open has the answer to that one. Each referral is answered once.
"""

from __future__ import annotations

from datetime import datetime

from app.automation.follow_up_tasks import is_closed_by_people
from app.automation.patient_resources import codes_in, moment, patient_of, resources_of, token
from app.automation.reactions import Reaction, stable_id
from app.context import Context
from app.coordination.case_management.case_management_triggers import REASON, RECENT
from app.coordination.case_management.letter_writing import (
    is_refused,
    not_sent,
    store_letter,
    to,
)
from app.fhir.codes import (
    CASE_MANAGEMENT,
    LETTER_TO_REFERRER,
    REFERRAL_ANSWER,
    REFERRAL_ANSWERS,
    REVIEW_REASON,
    SERVICE_CATEGORY,
)
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.store.events import Event

_REFUSED = frozenset({"rejected", "cancelled", "failed"})
_WORDS = "Your referral to case management was not taken up."
_NOT_TAKEN_UP = "not-taken-up"


async def react(context: Context, event: Event) -> None:
    """Answer the referrals that a person has refused with this change of a Task: its own, or of their review."""
    task, patient = event.resource, patient_of(event.resource)
    if task is None or patient is None or not _is_refusal(task) or _is_refusal(event.previous):
        return
    stored = await context.store.read("Task", event.resource_id)
    if stored is None or not is_closed_by_people(stored):
        return
    focus, why = task["focus"].get("reference"), task.get("statusReason")
    now, is_review = context.services.clock.now(), _is_review(task)
    for referral in await _open_referrals(context, patient):
        is_own = referral.reference == focus
        if is_own or (is_review and await _has_waited(context, referral, now)):
            await answer(context, patient, referral.id, _NOT_TAKEN_UP, why)


REACTION = Reaction("referral-answers", frozenset({"Task"}), react)


async def answer(
    context: Context, patient: str, request_id: str, code: str, why: Resource | None = None
) -> None:
    """Write to who has referred the patient; `code` is one of REFERRAL_ANSWERS, `why` what a person says of it.

    Whom the patient refuses to hear of case management hears that the referral was not taken up, and not why.
    """
    stored = await context.store.read("ServiceRequest", request_id)
    if stored is None or stored.deleted:
        return
    request = stored.resource()
    letter: Resource = {"about": [{"reference": stored.reference}]}
    recipient = _referrer(request, stored)
    words = _WORDS
    if recipient is None:
        letter |= not_sent("recipient-unavailable")
    elif await _may_not_hear(context, patient, recipient, stored.reference, stored.reference):
        letter |= not_sent("patient-objection")
    else:
        letter |= to(recipient)
        hidden = await _may_not_hear(context, patient, recipient, "", "EpisodeOfCare/-")
        code = _NOT_TAKEN_UP if hidden else code
        letter["reasonCode"] = [_reason(code), *([why] if why and not hidden else [])]
        if code != _NOT_TAKEN_UP:
            words = f"{_WORDS} {REFERRAL_ANSWERS[code]}."
    await store_letter(context, LETTER_TO_REFERRER, patient, stored.reference, words, letter)


def _is_refusal(task: Resource | None) -> bool:
    """Whether a Task is about a referral, or the review of an enrolment, and was refused."""
    if task is None or task["status"] not in _REFUSED or "focus" not in task:
        return False
    return _is_review(task) or task["focus"].get("reference", "").startswith("ServiceRequest/")


def _is_review(task: Resource) -> bool:
    return REASON in codes_in(task.get("code"), REVIEW_REASON)


async def _open_referrals(context: Context, patient: str) -> list[ResourceVersion]:
    category = token("category", SERVICE_CATEGORY, CASE_MANAGEMENT)
    return await resources_of(context, "ServiceRequest", patient, category, "status=active")


async def _has_waited(context: Context, referral: ResourceVersion, now: datetime) -> bool:
    """Whether a referral came lately and has no review of its own, since another one was open."""
    made = moment(referral.resource().get("authoredOn")) or referral.at
    own = stable_id("review", REASON, referral.reference, "")
    return now - made <= RECENT and await context.store.read("Task", own) is None


def _referrer(request: Resource, stored: ResourceVersion) -> Resource | None:
    """Who has made a referral, else whose record it is; None where neither is known."""
    requester: Resource = request.get("requester", {})
    is_device = requester.get("reference", "").startswith("Device/")
    if {"reference", "identifier", "display"} & requester.keys() and not is_device:
        return requester
    return None if stored.custodian is None else {"reference": stored.custodian}


async def _may_not_hear(
    context: Context, patient: str, recipient: Resource, about: str, focus: str
) -> bool:
    """Whether the patient refuses that the recipient hears of `focus`; of oneself everybody may hear."""
    reference = recipient.get("reference")
    if reference == patient:
        return False
    return await is_refused(context, patient, reference, about, focus)


def _reason(code: str) -> Resource:
    return {
        "coding": [{"system": REFERRAL_ANSWER, "code": code, "display": REFERRAL_ANSWERS[code]}]
    }
