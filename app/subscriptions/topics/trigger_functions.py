"""Trigger functions, for conditions that queryCriteria cannot express (extension topic-trigger-function).

TESTS read the two versions alone; INQUIRIES also read other data, and run last. `raised` never holds: the server itself
raises the events of such triggers (`Store.raise_event`), no change fires them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from app.attribution.whereabouts import current_locations
from app.fhir import instants
from app.fhir.encounter_status import ACTIVE, is_discharged
from app.fhir.json import Resource
from app.runtime.time_limit import OutOfTimeError, limited
from app.subscriptions.topics.topics import Around, Inquiry, ResourceChange, Test

RAISED = "raised"
_ASIDE = frozenset({"meta", "text"})
_NO_TEAM = frozenset({"inactive", "entered-in-error"})
_STAYS = "encounter-"
_DISCHARGE, _CANCELLED = "encounter-discharge", "encounter-cancelled"


def content_changed(change: ResourceChange) -> bool:
    """Whether more has changed than meta and the narrative."""
    versions = (change.resource or {}, change.previous or {})
    now, before = ({k: v for k, v in each.items() if k not in _ASIDE} for each in versions)
    return now != before


def status_changed(change: ResourceChange) -> bool:
    """Whether the status is another than before; it is for a new resource."""
    now, before = change.resource, change.previous
    return now is not None and (before is None or now.get("status") != before.get("status"))


def not_ended(change: ResourceChange) -> bool:
    """Whether the stay is not over."""
    return change.resource is not None and not is_discharged(change.resource, change.at)


def about_a_request(change: ResourceChange) -> bool:
    """Whether the Task is about a ServiceRequest."""
    task = change.resource or {}
    references = [task.get("focus", {}), *task.get("basedOn", ())]
    return any("ServiceRequest/" in each.get("reference", "") for each in references)


def participant_added(change: ResourceChange) -> bool:
    """Whether the team has a member, or a member in a role, that it had not before."""
    return bool(_memberships(change.resource).keys() - _memberships(change.previous).keys())


def participant_removed(change: ResourceChange) -> bool:
    """Whether a member has left the team, or a role in it; an inactive team has no members."""
    return bool(_memberships(change.previous).keys() - _memberships(change.resource).keys())


def participant_ended(change: ResourceChange) -> bool:
    """Whether the period of a member has been given an end, or another one."""
    before = _memberships(change.previous)
    return any(
        end and membership in before and end != before[membership]
        for membership, end in _memberships(change.resource).items()
    )


def never(change: ResourceChange) -> bool:
    """Always False: no change fires the trigger."""
    return False


def has_left(change: ResourceChange) -> bool:
    """Whether the patient has left, by what this version is the first to say.

    An end that was expected and has come meanwhile says nothing: nobody has said that the patient left.
    """
    now, before = change.resource, change.previous or {}
    if now is None or not is_discharged(now, change.at):
        return False
    is_final = now.get("status") == "finished"
    return not is_discharged(before, _said_at(before, change.at) if is_final else change.at)


def has_returned(change: ResourceChange) -> bool:
    """Whether the stay goes on of which the version before said that the patient had left."""
    now, before = change.resource, change.previous
    if now is None or before is None or now.get("status") not in ACTIVE:
        return False
    return not is_discharged(now, change.at) and is_discharged(before, _said_at(before, change.at))


async def discharged(change: ResourceChange, around: Around) -> bool:
    """Whether the patient has left, as `has_left`, and that once for each discharge."""
    if has_left(change):
        return True
    now, before = change.resource or {}, change.previous or {}
    if now.get("status") != "finished" or before.get("status") == "finished":
        return False
    # A notice of it may have been sent when the version before came, and one of its cancellation since.
    return await _last_told(change, around) != _DISCHARGE


async def told_before(change: ResourceChange, around: Around) -> bool:
    """Whether a notice of an earlier version of this stay was sent, or is under way, to any Subscription."""
    return any(slug.startswith(_STAYS) and slug != _CANCELLED for slug in await around.told(change))


async def reopened(change: ResourceChange, around: Around) -> bool:
    """Whether a discharge is taken back: a finished stay goes on, or an active one of whose discharge was told."""
    now, before = change.resource, change.previous
    if now is None or before is None or now.get("status") not in ACTIVE:
        return False
    if is_discharged(now, change.at) or not is_discharged(before, change.at):
        return False
    return before.get("status") == "finished" or await _last_told(change, around) == _DISCHARGE


async def facility_changed(change: ResourceChange, around: Around) -> bool:
    """Whether the stay goes on in another facility; a move inside one does not count."""
    now, before = change.resource, change.previous
    if now is None or before is None or _places(now) == _places(before):
        return False
    return (await around.facility(before)).differs(await around.facility(now))


async def in_nursing_facility(change: ResourceChange, around: Around) -> bool:
    """Whether the stay is in a skilled nursing or nursing facility."""
    now, fields = change.resource, change.fields
    return now is not None and fields is not None and await around.is_nursing_facility(now, fields)


async def was_elsewhere(change: ResourceChange, around: Around) -> bool:
    """Whether the version before was not known to be in such a facility; False without one."""
    before, fields = change.previous, change.previous_fields
    if before is None or fields is None:
        return False
    return not await around.is_nursing_facility(before, fields)


TESTS: Mapping[str, Test] = {
    "about-a-request": about_a_request,
    "content-changed": content_changed,
    "has-left": has_left,
    "has-returned": has_returned,
    "not-ended": not_ended,
    "participant-added": participant_added,
    "participant-ended": participant_ended,
    "participant-removed": participant_removed,
    RAISED: never,
    "status-changed": status_changed,
}
INQUIRIES: Mapping[str, Inquiry] = {
    "discharged": discharged,
    "facility-changed": facility_changed,
    "in-nursing-facility": in_nursing_facility,
    "reopened": reopened,
    "told-before": told_before,
    "was-elsewhere": was_elsewhere,
}


def _said_at(version: Resource, otherwise: datetime) -> datetime:
    stored_at = version.get("meta", {}).get("lastUpdated")
    return otherwise if stored_at is None else instants.moment(stored_at)


async def _last_told(change: ResourceChange, around: Around) -> str | None:
    """Which of discharge and cancellation the last notice of a stay was about."""
    slugs = [slug for slug in await around.told(change) if slug in (_DISCHARGE, _CANCELLED)]
    return slugs[-1] if slugs else None


def _places(stay: Resource) -> tuple[Any, list[str]]:
    return stay.get("serviceProvider", {}).get("reference"), current_locations(stay)


def _end(element: Mapping[str, Any]) -> str:
    return str(element.get("period", {}).get("end", ""))


def _memberships(team: Resource | None) -> dict[tuple[str, str], str]:
    """The end of each membership in a team, by member and role; empty for a team that is inactive."""
    if team is None or team.get("status") in _NO_TEAM:
        return {}
    return {
        (who, role): _end(participant)
        for participant in team.get("participant", ())
        for who in (_who(participant.get("member", {})),)
        for role in _roles(participant)
    }


def _who(member: Mapping[str, Any]) -> str:
    return str(member.get("reference") or member.get("identifier") or member.get("display", ""))


def _roles(participant: Mapping[str, Any]) -> Iterator[str]:
    roles = [
        f"{coding.get('system', '')}|{coding.get('code', '')}"
        for role in participant.get("role", ())
        for coding in role.get("coding", ()) or ({"code": role.get("text", "")},)
    ]
    yield from roles or [""]


# fhirPathCriteria of topics: FHIRPath over the versions before and after a change, `%previous` and `%current`.
#
# https://hl7.org/fhir/R5/subscriptiontopic.html. A version that does not exist is empty. The engine takes a quarter of
# a millisecond, so it runs after the other tests, and is loaded only where a topic uses it. An expression that takes
# very much longer is broken off: everybody waits for it. `trace` would print what the records say.

_MOST_SECONDS = 0.25
_STRING = re.compile(r"'(?:\\.|[^'\\])*'")
_TRACE = re.compile(r"\btrace\s*\(")


def compiled(expression: str) -> Test:
    """The test of whether the expression is true of a change. Raises ValueError where it cannot be understood."""
    try:
        import fhirpathpy
    except ImportError:
        raise ValueError("The FHIRPath engine is not installed (package fhirpathpy)") from None
    if _TRACE.search(_STRING.sub("", expression)):
        raise ValueError("FHIRPath's trace() is not evaluated here")
    try:
        with limited(_MOST_SECONDS):
            evaluate = fhirpathpy.compile(expression)
            evaluate({}, {"previous": [], "current": []})
    except OutOfTimeError:
        raise ValueError("The FHIRPath expression takes too long") from None
    except Exception as error:  # the engine raises plain Exceptions
        raise ValueError(f"Not a FHIRPath expression: {str(error)[:200]}") from None

    def test(change: ResourceChange) -> bool:
        versions: dict[str, Any] = {
            "previous": change.previous if change.previous is not None else [],
            "current": change.resource if change.resource is not None else [],
        }
        with limited(_MOST_SECONDS):
            found = evaluate(versions["current"] or versions["previous"], versions)
        return bool(found == [True])

    return test
