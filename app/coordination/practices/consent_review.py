"""Review Tasks for Consents that are proposed, and for those that the server does not understand.

The former count for nothing until they are decided, the latter restrict as far as they may. docs/consent.md
"""

from __future__ import annotations

from app.automation import review_tasks
from app.automation.patient_resources import patient_of
from app.automation.reactions import Reaction
from app.consent.judgement import WrittenConsent, directives
from app.context import Context
from app.store.events import Event


async def react(context: Context, event: Event) -> None:
    """Create a Task for a Consent that is proposed, or active with a part that is uncertain whatever the question."""
    await _review_proposal(context, event)
    if event.resource is None:
        return
    if all(
        each.is_understood
        for each in directives([WrittenConsent(event.resource)], context.settings.base_url)
    ):
        return
    focus = f"Consent/{event.resource_id}"
    await review_tasks.ask(context, "unsuitable-consent", focus, patient=patient_of(event.resource))


async def _review_proposal(context: Context, event: Event) -> None:
    """Ask for a decision while the Consent is proposed; the Task closes itself once it is decided or gone."""
    focus = f"Consent/{event.resource_id}"
    stored = await context.store.read("Consent", event.resource_id)
    proposed = None if stored is None or stored.deleted else stored.resource()
    if stored is None or proposed is None or proposed["status"] != "proposed":
        await review_tasks.settle(context, "proposed-consent", focus)
        return
    patient = patient_of(proposed)
    about = str(stored.version)
    await review_tasks.ask_while(context, "proposed-consent", focus, about, patient=patient)


REACTION = Reaction("consent-review", frozenset({"Consent"}), react)
