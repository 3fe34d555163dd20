"""The upkeep of the Subscriptions that the server keeps for Endpoints: all at each start, those in error by probes.

What the settings add or take away holds for Endpoints that were there before. A Subscription in error is requested anew
after a minute, then after ever longer pauses: one of each Endpoint, and the others once that one is active.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from functools import partial
from typing import Any

from pymongo import ASCENDING

from app.automation.reactions import Reaction, for_each
from app.automation.timers import Timer, Timers
from app.context import Context
from app.coordination.practices.endpoint_subscriptions import keep, of_owner, place_of, write
from app.errors import PreconditionFailed
from app.fhir.codes import SUBSCRIPTION_ORIGIN, SUBSCRIPTION_OWNER
from app.records.versions import ResourceVersion
from app.runtime.leases import BackOff, is_nobodys_fault
from app.runtime.mongo import Document
from app.store.events import Event

log = logging.getLogger(__name__)

_WALK, _ALL = "endpoint-subscriptions", "all"
_PROBE = "endpoint-probe"
_PAGE = 50
# What is gone through: those who have Endpoints; what is kept, where nothing is to be kept any more.
_OWNERS, _KEPT = ("Organization", "PractitionerRole"), "Subscription"
_WITH_ENDPOINT: Document = {"terms": {"$regex": "^endpoint="}}
_OWNER_TERM = f"_tag={SUBSCRIPTION_OWNER}|"
_LIVE: Document = {
    "$and": [
        {"terms": f"_tag={SUBSCRIPTION_ORIGIN}|endpoint"},
        {"terms": {"$in": ["status=requested", "status=active", "status=error"]}},
    ]
}
BACK_OFF = BackOff(timedelta(minutes=1), timedelta(hours=1), most=sys.maxsize)


async def start(context: Context) -> None:
    """Set the timer of a look at all of them, from the beginning."""
    if context.settings.endpoint_subscriptions:
        await _go_on(context, _OWNERS[0])
    elif await _page(context, _KEPT, ""):
        await _go_on(context, _KEPT)


async def run(context: Context, key: str, data: Mapping[str, Any]) -> None:
    """Bring what is kept for one page of practices in line, and set the timer of the next."""
    kind = data["type"]
    rows = await _page(context, kind, data["after"])
    await _keep(context, _owners(kind, rows))
    if len(rows) == _PAGE:
        await _go_on(context, kind, rows[-1]["_id"])
    elif kind == _OWNERS[0]:
        await _go_on(context, _OWNERS[1])


TIMER = Timer(_WALK, run, is_about_many=True, at_most=lambda _: BACK_OFF.longest)


async def _page(context: Context, kind: str, after: str) -> list[Document]:
    """The next practices with an Endpoint; or Subscriptions that are kept and not off."""
    which = {"$and": [{"_id": {"$gt": after}}, _LIVE if kind == _KEPT else _WITH_ENDPOINT]}
    by_id, fields = [("_id", ASCENDING)], {"terms": 1}
    return await context.services.store.find(
        kind, which, sort=by_id, limit=_PAGE, projection=fields
    )


def _owners(kind: str, rows: Iterable[Document]) -> list[str]:
    if kind != _KEPT:
        return [f"{kind}/{row['_id']}" for row in rows]
    terms = {term for row in rows for term in row["terms"] if term.startswith(_OWNER_TERM)}
    return sorted(term.removeprefix(_OWNER_TERM) for term in terms)


async def _keep(context: Context, owners: Iterable[str]) -> None:
    """Bring their Subscriptions in line; one that cannot be is nobody else's trouble, and has its Task."""
    try:
        await for_each(partial(keep, context, anew=False), owners)
    except Exception as error:
        if is_nobodys_fault(error):
            raise
        log.warning("not kept", extra={"action": "keep", "error": type(error).__name__})


async def _go_on(context: Context, kind: str, after: str = "") -> None:
    data = {"type": kind, "after": after}
    await context.services.get(Timers).set(_WALK, _ALL, context.services.clock.now(), data)


# Probes


async def follow(context: Context, event: Event) -> None:
    """Set the timer of a probe where a Subscription is in error; request the others once one is active again."""
    place = None if event.resource is None else place_of(event.resource)
    if event.resource is None or place is None:
        return
    owner, endpoint = place
    if event.resource["status"] == "error":
        if await context.services.get(Timers).due_of(_PROBE, owner) is None:
            await _probe_later(context, owner, 1)
    elif event.resource["status"] == "active":
        kept = await _kept(context, owner)
        await _request(context, _in(kept.get(endpoint, ()), "error"))


REACTION = Reaction(
    "endpoint-upkeep",
    frozenset({"Subscription"}),
    follow,
    is_wanted=lambda settings: bool(settings.endpoint_subscriptions),
)


async def probe(context: Context, owner: str, data: Mapping[str, Any]) -> None:
    """Request one Subscription of each Endpoint anew where all are in error, all of them where one is active."""
    if not context.settings.endpoint_subscriptions:
        return
    kept = await _kept(context, owner)
    if not any(_in(each, "error", "requested") for each in kept.values()):
        return
    await _probe_later(context, owner, data["tries"] + 1)
    for each in kept.values():
        failed = _in(each, "error")
        if not _in(each, "requested"):
            await _request(context, failed if _in(each, "active") else failed[:1])


PROBE = Timer(_PROBE, probe, is_about_many=True, at_most=lambda _: BACK_OFF.longest)


async def _probe_later(context: Context, owner: str, tries: int) -> None:
    pause = BACK_OFF.pause(tries) or BACK_OFF.longest
    due = context.services.clock.now() + pause
    await context.services.get(Timers).set(_PROBE, owner, due, {"tries": tries})


async def _kept(context: Context, owner: str) -> dict[str, list[ResourceVersion]]:
    """The Subscriptions that are kept for a role or organization, by their Endpoint."""
    found: dict[str, list[ResourceVersion]] = {}
    for stored in await of_owner(context, owner):
        if (place := place_of(stored.resource())) is not None:
            found.setdefault(place[1], []).append(stored)
    return found


def _in(kept: Iterable[ResourceVersion], *statuses: str) -> list[ResourceVersion]:
    return [each for each in kept if each.resource()["status"] in statuses]


async def _request(context: Context, kept: Iterable[ResourceVersion]) -> None:
    for stored in kept:
        with suppress(PreconditionFailed):  # written meanwhile, and followed anew
            await write(context, {**stored.resource(), "status": "requested"}, stored)
