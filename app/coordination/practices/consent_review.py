"""A Consent that cannot be understood is looked at by a person; until then it restricts as far as it may mean to."""

from __future__ import annotations

from app.automation import review_tasks
from app.automation.patient_resources import patient_of
from app.automation.reactions import Reaction
from app.consent.judgement import directives
from app.context import Context
from app.records.versions import Event


async def react(context: Context, event: Event) -> None:
    """Ask about an active Consent of which something is uncertain whoever is told, and whatever."""
    if event.resource is None:
        return
    if all(each.is_understood for each in directives([event.resource])):
        return
    focus = f"Consent/{event.resource_id}"
    await review_tasks.ask(context, "unsuitable-consent", focus, patient=patient_of(event.resource))


REACTION = Reaction("consent-review", frozenset({"Consent"}), react)
