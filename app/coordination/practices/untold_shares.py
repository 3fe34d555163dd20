"""How what waits for one cause is shared out among review Tasks, so that none tells more than what may be seen.

A Task is read whole, and tells how many wait and since when. One Task counts together what everybody sees who sees the
patient's record; a record that bears a label, or that a Consent of its patient refuses to anybody, has a Task of its
own, which is told as far as that record is. docs/decisions/0049-a-task-of-its-own-for-what-may-be-hidden.md
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from app.authorization.subject_store import IsTold, patients_named
from app.automation.borne_labels import last_known
from app.consent import labels
from app.context import Context
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.subscriptions.ledger.untold_rows import Tally

# The share of what is counted together; the others bear the names of their records.
TOGETHER = "together"
_RESTRICTING = labels.SENSITIVE | {labels.RESTRICTED, labels.VERY_RESTRICTED}
# A Task names no more; what comes after them is counted.
_MOST_NAMED = 100


@dataclass(frozen=True, slots=True)
class Share:
    """What one Task tells of: its rows, and the first of their records as references."""

    tally: Tally
    records: tuple[str, ...] = ()


async def shares(context: Context, patient: str, tallies: Sequence[Tally]) -> dict[str, Share]:
    """The shares of what waits for a cause that lies with a patient, by name."""
    names = await asyncio.gather(*(share_of(context, patient, each.focus) for each in tallies))
    found: dict[str, Share] = {}
    for name, own in zip(names, tallies, strict=True):
        known = found.get(name)
        if known is None:
            found[name] = Share(own, (own.focus,))
        else:
            records = (*known.records, own.focus)[:_MOST_NAMED]
            found[name] = Share(known.tally.and_(own), records)
    return found


async def share_of(context: Context, patient: str, record: str) -> str:
    """The name of the share that a record (`Encounter/e1`) belongs to, as it is now."""
    stored = await last_known(context, record)
    is_told = await context.services.accesses.disclosure.to_any_provider(patient)
    return TOGETHER if stored and _is_seen_by_all(context, stored, patient, is_told) else record


def _is_seen_by_all(
    context: Context, stored: ResourceVersion, patient: str, is_told: IsTold | None
) -> bool:
    """Whether a record is the patient's still, bears no label that restricts, and is refused to nobody."""
    try:
        resource: Resource = stored.resource()
    except msgspec.DecodeError:
        return False
    given = labels.of(resource)
    base_url = context.settings.base_url.rstrip("/")
    if given & _RESTRICTING or patients_named(stored.type, resource, base_url) != {patient}:
        return False
    return is_told is None or is_told(stored.reference, given)
