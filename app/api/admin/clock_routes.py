"""The operator's routes for the calendar; app/api/admin/operators.py serves them.

GET    /admin/clock    ?until=      what time it is, and what would happen until then
POST   /admin/clock    {"advance": seconds}, {"to": date or instant} or {"reset": true}, and "production": the name of
                       the database, where the server looks as if it were in use

docs/clock.md
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from starlette.requests import Request

from app.api import exchange
from app.automation.timers import Timers
from app.context import Services
from app.errors import BadRequest, Forbidden
from app.fhir.instants import instant, range_in
from app.network.egress_policy import is_loopback_host

Answer = tuple[int, Any]
_MAX_BYTES = 1024
_MOST_SHOWN = 1000
_WAYS = frozenset({"advance", "to", "reset"})
# Beyond it are no dates that terms can be added to.
_FARTHEST = timedelta(days=366 * 100)


async def read_clock(request: Request, services: Services) -> Answer:
    """`{now, ahead}`, and with `until` `{due, count}`: the first timers that would ring, and how many there are."""
    query = request.query_params
    for name in query:
        if name != "until":
            raise BadRequest(f"Unknown parameter '{name}'", code="not-supported", expression=name)
    shown = _shown(services)
    if "until" in query:
        until = range_in(query["until"], "until")[1]
        due, count = await services.get(Timers).due_until(until, _MOST_SHOWN)
        shown["due"] = [
            {"at": instant(each.at), "what": each.what, "kind": each.kind, "about": each.key}
            for each in due
        ]
        shown["count"] = count
    return 200, shown


async def move_clock(request: Request, services: Services) -> Answer:
    """Back to the true time is always possible; anything else has to be allowed, and said aloud in production."""
    body = await exchange.read_json(request, _MAX_BYTES)
    ways = _WAYS & body.keys()
    if len(ways) != 1:
        raise BadRequest(f"Say one of {', '.join(sorted(_WAYS))}", code="required")
    ahead = _ahead(services, body)
    if ahead:
        _require_leave(services, body)
    await services.clock.put_ahead(ahead)
    return 200, _shown(services)


def _ahead(services: Services, body: Mapping[str, Any]) -> timedelta:
    """How far the calendar is to be ahead. Raises BadRequest."""
    if "reset" in body:
        if body["reset"] is not True:
            raise BadRequest("Expected true", code="value", expression="reset")
        return timedelta()
    way = "to" if "to" in body else "advance"
    try:
        ahead = _span_to(services, body["to"]) if way == "to" else _span(services, body["advance"])
    except OverflowError:
        raise BadRequest("Too far ahead", code="value", expression=way) from None
    if ahead > _FARTHEST:
        raise BadRequest("Too far ahead", code="value", expression=way)
    if ahead < timedelta():
        raise BadRequest("The calendar is never behind", code="value", expression=way)
    return ahead


def _span(services: Services, seconds: Any) -> timedelta:
    if isinstance(seconds, bool) or not isinstance(seconds, int | Decimal) or seconds < 0:
        raise BadRequest("Not a number of seconds", code="value", expression="advance")
    return services.clock.ahead + timedelta(seconds=float(seconds))


def _span_to(services: Services, text: Any) -> timedelta:
    if not isinstance(text, str):
        raise BadRequest("Not a date or an instant", code="value", expression="to")
    return range_in(text, "to")[0] - services.mongo.now()


def _require_leave(services: Services, body: Mapping[str, Any]) -> None:
    """Raises Forbidden where the setting is off, or where it looks like production and that is not said."""
    settings = services.settings
    if not settings.test_clock:
        raise Forbidden("The calendar is not to be moved: CARERELAY_TEST_CLOCK is off")
    in_use = settings.auth == "smart" or not is_loopback_host(settings.host)
    if in_use and body.get("production") != settings.mongodb_database:
        raise Forbidden(
            "This server has authorization or is open to others, as in production: every deadline would move. Where "
            'you want that, name its database as "production"',
            code="business-rule",
        )


def _shown(services: Services) -> dict[str, Any]:
    now: datetime = services.clock.now()
    return {"now": instant(now), "ahead": services.clock.ahead.total_seconds()}


HANDLERS = (
    ("GET", "/clock", read_clock),
    ("POST", "/clock", move_clock),
)
