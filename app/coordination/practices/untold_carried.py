"""Changes by which a record hides from somebody, or no longer does: another review Task tells of it then.

A record is given labels or loses them, is put right to another patient, or a Consent of its patient changes.
untold_shares.py says which Task that is. docs/routing.md
"""

from __future__ import annotations

from collections.abc import Sequence

from app.authorization.subject_store import patients_named
from app.automation.borne_labels import is_relabelled
from app.automation.reactions import Reaction
from app.context import Context
from app.coordination.practices import untold_review
from app.store.events import Event
from app.subscriptions.ledger.untold_rows import UntoldRows, of_causes, of_party


async def sift(context: Context, events: Sequence[Event]) -> Sequence[Event]:
    """The changes that may hide or show something, where a row waits for a cause of any patient."""
    wanted = [each for each in events if _may_count(context, each)]
    if not wanted:
        return []
    waits = of_causes(untold_review.OF_PATIENTS)
    return wanted if await UntoldRows(context.services.mongo).is_any(waits) else []


async def react(context: Context, event: Event) -> None:
    """Bring the Tasks in line of those patients of whom something waits."""
    rows = UntoldRows(context.services.mongo)
    for patient in sorted(_named(context, event)):
        if await rows.is_any(of_party(patient)):
            for cause in untold_review.OF_PATIENTS:
                await untold_review.keep(context, cause, patient)


REACTION = Reaction(
    "untold-carried",
    frozenset({"CarePlan", "Consent", "Encounter"}),
    react,
    is_wanted=lambda settings: settings.unrouted,
    sift=sift,
)


def _may_count(context: Context, event: Event) -> bool:
    if event.type == "Consent":
        return True
    if event.topic is not None or event.previous is None or event.resource is None:
        return False
    return is_relabelled(event) or len(_named(context, event)) > 1


def _named(context: Context, event: Event) -> set[str]:
    """The patients whom a record names now, and whom it named before."""
    base_url = context.settings.base_url.rstrip("/")
    versions = [each for each in (event.resource, event.previous) if each is not None]
    return {name for each in versions for name in patients_named(event.type, each, base_url)}
