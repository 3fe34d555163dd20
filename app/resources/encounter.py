"""Rules of Encounter: messages about one visit, late, repeated or out of order, lead to the same state.

docs/encounters.md; the order itself is in visit_order.py, the times in event_time.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from app.attribution.claims import survivor_of
from app.attribution.derived import patient_of
from app.errors import Issue
from app.fhir.codes import ENCOUNTER_STATUS, EVENT_TIME, LATE_MESSAGE, UNSETTLED_MESSAGE
from app.fhir.encounter_status import CANCELLED
from app.fhir.json import Resource
from app.records.versions import LateMessage, ResourceVersion, VersionConflict, is_same_content
from app.resources import event_time, visit_order
from app.resources.event_time import Moment
from app.resources.type_rules import Prepared
from app.resources.visit_order import Memory
from app.search.extract import extract
from app.search.terms import escape

if TYPE_CHECKING:
    from app.context import Context

# The header with a message's effect: `all` of it counts, it `filled` unknown fields, is `history-only` or `repeated`.
APPLIED = "CareRelay-Applied"
_NOTES = {
    "filled": "Newer messages are known of this visit: only what they do not mention was taken from this one",
    "history-only": "Newer messages are known of this visit: this one is kept in the history and changes nothing",
    "repeated": "This message is known already; nothing was changed",
}
_UNSETTLED = "The status was not applied, a person is asked to look: state the event time, or send If-Match or a PATCH"


def is_message(resource: Resource) -> bool:
    """Whether an Encounter states the time of the event that it reports (EVENT_TIME)."""
    extensions = resource.get("extension")
    return isinstance(extensions, list) and any(
        isinstance(each, dict) and each.get("url") == EVENT_TIME for each in extensions
    )


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """Merge a message into its visit by event time; an edit, or a resource without any time, is stored as it is.

    Where the visit turns out to be another patient's, what was stored is withdrawn from the one before.
    """
    if previous is None or previous.deleted:
        return _noted(Prepared(resource), "all") if is_message(resource) else Prepared(resource)
    prepared = await _ordered(context, resource, previous)
    withdrawn = await _withdrawn(context, previous.resource(), prepared.resource)
    return prepared if withdrawn is None else replace(prepared, withdrawn=withdrawn)


async def _ordered(context: Context, resource: Resource, previous: ResourceVersion) -> Prepared:
    arrival = context.services.clock.now()
    when = event_time.moment(resource, arrival)
    current = previous.resource()
    memory = await _memory(context, previous, current)
    if when is None or context.write_scope.saw_current:
        known = visit_order.edited(current, memory, resource, arrival)
        return Prepared(resource, _private(known), is_memory=True)
    return _merged(context, previous, memory, resource, when)


def _merged(
    context: Context, previous: ResourceVersion, memory: Memory, message: Resource, when: Moment
) -> Prepared:
    current = previous.resource()
    outcome = visit_order.merge(current, memory, message, when)
    prepared = Prepared(outcome.resource, _private(outcome.memory), is_memory=True)
    if outcome.applied == "all":
        same = context.settings.skip_identical_updates and is_same_content(
            outcome.resource, previous
        )
        return _noted(prepared, "repeated" if same else "all")
    is_history = outcome.applied == "history-only"
    known_as_such = memory.has_not_applied(message)
    # Without a stated time, what counted before may be sent again to take back what came after it.
    if is_history and (
        known_as_such or (memory.has_applied(message) and (when.stated or not outcome.unsettled))
    ):
        return _noted(Prepared(current, repeats=True), "repeated", unsettled=known_as_such)
    trigger = {"system": ENCOUNTER_STATUS, "code": message["status"]}
    topic = UNSETTLED_MESSAGE if outcome.unsettled else LATE_MESSAGE
    late = LateMessage(topic, trigger, message if is_history else None)
    found = Prepared(outcome.resource, prepared.private, late=late, only_kept=is_history)
    return _noted(found, outcome.applied, unsettled=outcome.unsettled)


def _noted(prepared: Prepared, applied: str, *, unsettled: bool = False) -> Prepared:
    text = _NOTES.get(applied)
    issues = [Issue("informational", text, severity="information")] if text else []
    if unsettled:
        issues.append(Issue("business-rule", _UNSETTLED, severity="warning"))
    return replace(
        prepared,
        headers={APPLIED: applied},
        issues=tuple(issues),
        only_kept=prepared.only_kept or unsettled,
    )


async def _withdrawn(context: Context, before: Resource, now: Resource) -> Resource | None:
    """The version that ends a visit for the patient whose it was not; None where the patient is the same.

    Of two records of one person, of which one was replaced by the other, it stays that person's.
    """
    if before.get("subject") == now.get("subject") or before["status"] in CANCELLED:
        return None
    base_url = context.settings.base_url.rstrip("/")
    was, becomes = (
        patient_of("Encounter", extract("Encounter", e), base_url) for e in (before, now)
    )
    becomes = becomes or await _identified(context, now.get("subject", {}))
    if was == becomes or await _is_same_person(context, was, becomes, base_url):
        return None
    return {**before, "status": "entered-in-error"}


async def _identified(context: Context, subject: Resource) -> str | None:
    """The one Patient whose identifier a subject without a reference names; None where none or several have it."""
    identifier = subject.get("identifier", {})
    if "reference" in subject or "value" not in identifier:
        return None
    term = f"identifier={escape(identifier.get('system', ''))}|{escape(identifier['value'])}"
    found = await context.services.store.search("Patient", {"terms": term}, 2)
    return found[0].reference if len(found) == 1 else None


async def _is_same_person(
    context: Context, one: str | None, other: str | None, base_url: str
) -> bool:
    """Whether one of two Patients was replaced by the other."""
    if one is None or other is None:
        return False
    keys = [("Patient", each.removeprefix("Patient/")) for each in (one, other)]
    found = await context.services.store.read_many(keys)
    survivors = {
        each.reference: survivor_of(each.resource(), base_url)
        for each in found.values()
        if not each.deleted
    }
    return survivors.get(one) == other or survivors.get(other) == one


async def _memory(context: Context, previous: ResourceVersion, current: Resource) -> Memory:
    """The memory stored with that version. Raises VersionConflict where the version has been replaced meanwhile."""
    # Read past the caller's limits: a write is merged by the memory, whatever the caller may see.
    found = await context.services.store.find(
        "Encounter",
        {"_id": previous.id, "v": previous.version},
        limit=1,
        projection={"private": 1},
    )
    if not found:
        raise VersionConflict
    kept = found[0].get("private", {}).get("visit")
    if kept is None:
        return visit_order.remembered(current, previous.at)
    return visit_order.of_document(kept)


def _private(memory: Memory) -> dict[str, object] | None:
    return {"visit": visit_order.as_document(memory)} if memory.clocks else None
