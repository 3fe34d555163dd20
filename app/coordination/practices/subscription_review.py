"""A review Task for each Subscription that is in error, or whose endpoint is gone, closed once it is active again.

docs/delivery.md
"""

from __future__ import annotations

from app.automation import review_tasks
from app.automation.reactions import Reaction
from app.context import Context
from app.store.events import Event

REASON = "subscription-error"


async def run(context: Context, event: Event) -> None:
    """Ask a person, or see that nobody is asked any more; by the Subscription as it is now."""
    focus = f"Subscription/{event.resource_id}"
    stored = await context.store.read("Subscription", event.resource_id)
    resource = None if stored is None or stored.deleted else stored.resource()
    # The server says so: `error`, or `off` where the endpoint is gone. What the client sets has no reason.
    failed = resource is not None and "error" in resource and resource["status"] in ("error", "off")
    if failed and stored is not None:
        await review_tasks.ask_while(context, REASON, focus, str(stored.version))
    elif resource is None or resource["status"] in ("active", "off"):
        await review_tasks.settle(context, REASON, focus)


REACTION = Reaction("subscription-review", frozenset({"Subscription"}), run)
