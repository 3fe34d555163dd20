"""The operator's routes for events that could not be matched; app/api/admin/operators.py serves them.

GET    /admin/events            ?state=unmatched &subscription= &judge= &focus= &_count= &_cursor=
POST   /admin/events/replay     one of subscription=, judge= and focus=, or all=true
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.requests import Request

from app.context import Services
from app.errors import BadRequest
from app.subscriptions.ledger.rematching import Rematching
from app.subscriptions.ledger.unmatched import Selected, Unmatched

Answer = tuple[int, Any]
_SELECTING = frozenset({"subscription", "judge", "focus"})
_DEFAULT_COUNT, _MOST = 50, 1000


async def list_events(request: Request, services: Services) -> Answer:
    """The oldest first; `next` is the address of the next page."""
    query = request.query_params
    selected = _selected(query, frozenset({"state", "_count", "_cursor"}))
    if query.get("state", "unmatched") != "unmatched":
        raise BadRequest("The state is unmatched", code="value", expression="state")
    rows, more = await services.get(Unmatched).search(selected, _count(query), query.get("_cursor"))
    body: dict[str, Any] = {"events": rows}
    if more is not None:
        body["next"] = str(request.url.include_query_params(_cursor=more))
    return 200, body


async def replay_events(request: Request, services: Services) -> Answer:
    """`{decided, unmatched}`. All of them have to be asked for."""
    query = request.query_params
    selected = _selected(query, frozenset({"all"}))
    if (query.get("all") == "true") is bool(selected.condition()):
        raise BadRequest("Say which: subscription, judge or focus, or all=true", code="required")
    return 200, await services.get(Rematching).replay(selected)


def _selected(query: Mapping[str, str], others: frozenset[str]) -> Selected:
    for name in query:
        if name not in _SELECTING | others:
            raise BadRequest(f"Unknown parameter '{name}'", code="not-supported", expression=name)
    if "subscription" in query and "judge" in query:
        raise BadRequest("A subscription is a judge: name one of them", expression="judge")
    focus = query.get("focus")
    if focus is not None and focus.count("/") != 1:
        raise BadRequest("A focus is written as Type/id", code="value", expression="focus")
    return Selected(query.get("subscription"), query.get("judge"), focus)


def _count(query: Mapping[str, str]) -> int:
    text = query.get("_count", str(_DEFAULT_COUNT))
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 16 and int(text)):
        raise BadRequest("Not a number from 1 on", code="value", expression="_count")
    return min(int(text), _MOST)


HANDLERS = (("GET", "/events", list_events), ("POST", "/events/replay", replay_events))
