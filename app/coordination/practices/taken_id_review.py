"""Review Tasks for ids that a client was refused because the record that has it is another's.

The Task says which id and who sent it, and nothing of the record. It is about no patient, so that only administrators
see it.
docs/encounters.md
"""

from __future__ import annotations

from app.automation import review_tasks
from app.automation.reactions import Reaction
from app.context import Context
from app.fhir.codes import TAKEN_ID
from app.store.events import Event


async def run(context: Context, event: Event) -> None:
    focus = f"{event.type}/{event.resource_id}"
    for writer in event.context:
        await review_tasks.ask(
            context, "taken-id", focus, patient=None, about=writer, requester=writer
        )


REACTION = Reaction("taken-id", frozenset(), run, frozenset({TAKEN_ID}))
