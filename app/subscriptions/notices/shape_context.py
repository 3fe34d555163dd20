"""What travels along with a focus: what it refers to, and what refers to it, as its topic's notificationShape says.

https://hl7.org/fhir/R5/subscriptiontopic-definitions.html#SubscriptionTopic.notificationShape
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime

from app.runtime.mongo import Document
from app.search import include_resolver
from app.search.include import Include
from app.search.parameter import Limits, Scope
from app.store.store import Store
from app.subscriptions.topics.topics import Shape, Topic

log = logging.getLogger(__name__)

# Of what refers to a focus, no more than this; the focus may be a patient of many years.
MOST_REFERRING = 1_000


async def alongside(store: Store, topic: Topic, focus: str, fields: Document) -> list[str]:
    """Relative references of what belongs into a notice beside the focus (`Encounter/e1`), each once.

    `fields` are the search fields of the focus at its event, so what it referred to then; what refers to it is asked
    now, for a later resource may be what the notice is about. Without a revInclude the database is not asked.
    """
    resource_type, _, resource_id = focus.partition("/")
    found = dict.fromkeys(topic.context(resource_type, fields))
    reverse = topic.shapes.get(resource_type, Shape()).reverse
    if reverse:
        rows, complete = await include_resolver.included(
            store,
            [Include(type_, code, resource_type, is_reverse=True) for type_, code in reverse],
            [include_resolver.Row(resource_type, resource_id, "")],
            Scope("", datetime.now(UTC), Limits(included=MOST_REFERRING)),
        )
        if not complete:
            log.warning(
                "more refers to the focus than a notice carries",
                extra={"action": "tell", "resource_type": resource_type, "id": resource_id},
            )
        found.update(dict.fromkeys(f"{row.type}/{row.id}" for row in rows))
    return list(found)
