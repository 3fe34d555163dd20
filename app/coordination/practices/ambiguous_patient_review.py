"""Review Tasks for patients of whom a message may mean either: it was refused, for its identifiers are those of both.

Each of them has a Task, which names the sender and nothing of the message. It is about no patient, so that only
administrators see it.
docs/messages.md
"""

from __future__ import annotations

from app.automation import review_tasks
from app.automation.reactions import Reaction
from app.context import Context
from app.fhir.codes import AMBIGUOUS_PATIENT
from app.store.events import Event


async def run(context: Context, event: Event) -> None:
    senders = [each for each in event.context if each.startswith("Organization/")]
    await review_tasks.ask(
        context,
        "ambiguous-patient",
        f"Patient/{event.resource_id}",
        patient=None,
        about=" ".join(event.context),
        requester=senders[0] if senders else None,
    )


REACTION = Reaction("ambiguous-patient", frozenset(), run, frozenset({AMBIGUOUS_PATIENT}))
