"""Why nobody was told anything of a record: what the ledger cannot say, since it has no row. docs/routing.md"""

from __future__ import annotations

from app.context import Context
from app.coordination.practices import no_recipient
from app.coordination.practices.encounter_review import is_record
from app.records.versions import HistoryRange
from app.subscriptions.matching import explanation

_MOST_VERSIONS = 1000


async def why_nobody(context: Context, resource_type: str, resource_id: str) -> str:
    """The reason in words, by the topics and versions as they are now."""
    range_ = HistoryRange(resource_type, resource_id)
    versions = await context.store.history(range_, _MOST_VERSIONS)
    if not versions:
        return "Nobody was told: there is no version of it."
    events = [
        await explanation.event_of(context.store, each)
        for each in sorted(versions, key=lambda each: each.version)
    ]
    if resource_type == "Encounter" and is_record(events[0]):
        return "Nobody was told: the visit was long over when it became known, which is a record and no news."
    resources = [each for event in events if (each := event.resource) is not None]
    if resources and all(no_recipient.is_about_a_group(each) for each in resources):
        return "Nobody was told: it is about a group, and no patient."
    fired = [
        topic.url for event in events for topic, _ in await no_recipient.fired_by(context, event)
    ]
    if not fired:
        return "Nobody was told: no change of it fired one of CARERELAY_ENDPOINT_TOPICS."
    if not context.settings.unrouted:
        return (
            f"Nobody was told of {fired[0]}, and CARERELAY_UNROUTED, which would say why, is off."
        )
    return f"Of {fired[0]} nothing is recorded yet, or the record is no longer kept."
