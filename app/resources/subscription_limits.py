"""How large the criteria of a Subscription may be, and how many Subscriptions a client may have.

Each event is judged by all criteria, and each Subscription is a call to its endpoint before anything happened.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from app.errors import Forbidden, Issue, Unprocessable
from app.fhir.json import Resource
from app.search.parameter import Filter

if TYPE_CHECKING:
    from app.context import Context
    from app.records.versions import Guard, ResourceVersion

_MOST = 1_000
# The field by which owners are counted has an index (app/search/extract.py).
_OWNER = "private.owner.client_id"
_LIVE = ("requested", "active", "error")


def check_size(context: Context, resource: Resource) -> None:
    """Raises Unprocessable for criteria that are too long to be read; cheap, so that nothing is read before."""
    most = context.settings.max_criteria_bytes
    size = sum(len(text.encode("utf-8", "replace")) for text in _criteria_texts(resource))
    if size > most:
        raise Unprocessable(
            issues=[
                Issue(
                    "too-costly",
                    f"The criteria and their filters have {size} bytes; at most {most} are judged",
                    ("Subscription.criteria",),
                )
            ]
        )


def _criteria_texts(resource: Resource) -> Iterator[str]:
    yield str(resource.get("criteria", ""))
    beside: Any = resource.get("_criteria")
    extensions = beside.get("extension", ()) if isinstance(beside, dict) else ()
    for each in extensions if isinstance(extensions, list) else ():
        if isinstance(each, dict):
            yield str(each.get("valueString", ""))


async def check_number(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> tuple[Guard, ...]:
    """Raises Forbidden where a client would have more live Subscriptions than it may.

    Returns what the write has to compare as it commits: of two that were counted at the same moment one is counted
    again.
    """
    most = _most(context)
    if most == 0 or resource.get("status") == "off" or _is_live(previous):
        return ()
    guards = await context.store.guards(f"Subscription of {context.caller.client_id}")
    beside = sum(kind == "Subscription" for kind, _ in context.write_scope.creating)
    room = most - max(beside, 1)
    filter_ = {_OWNER: context.caller.client_id, "sorts.status.lo": {"$in": _LIVE}}
    # Counted past the caller's limits: those that it may not read any more are its own all the same.
    if room < 0 or await _count(context, filter_, room + 1) > room:
        raise Forbidden(
            f"This client may have {most} Subscriptions that are not off; end those that are not needed, or ask the "
            "operator for more",
            code="too-costly",
            expression="Subscription",
        )
    return guards


async def _count(context: Context, filter_: Filter, most: int) -> int:
    """How many match, at most so many."""
    found = await context.services.store.find(
        "Subscription", filter_, limit=most, projection={"_id": 1}
    )
    return len(found)


def _most(context: Context) -> int:
    """How many the caller may have; 0 for any number."""
    access, most = context.access, context.settings.max_subscriptions_per_client
    if access is not None and access.is_administrator:
        return 0
    if most is not None:
        return most
    return 0 if access is None else _MOST


def _is_live(previous: ResourceVersion | None) -> bool:
    return (
        previous is not None and not previous.deleted and previous.resource().get("status") != "off"
    )
