"""Subscriptions that the server keeps for the Endpoints of primary care practices (CARERELAY_ENDPOINT_SUBSCRIPTIONS).

A practice that has an active FHIR Endpoint need not subscribe: for each of its Endpoints and each topic of
CARERELAY_ENDPOINT_TOPICS there is one Subscription whose filter is the PractitionerRole or Organization, as long as
that is a primary care provider's. It is switched off when the Endpoint goes. endpoint_upkeep.py looks at them again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from app.attribution import panels
from app.attribution.practices import MESSAGE, REST
from app.automation.reactions import Reaction, for_each, stable_id
from app.context import Context
from app.coordination.practices.endpoint_confirmation import confirmed
from app.coordination.practices.endpoint_tasks import keep_task
from app.coordination.practices.no_recipient import urls
from app.errors import Conflict, FhirError, PreconditionFailed
from app.fhir.codes import (
    SUBSCRIPTION_ENDPOINT,
    SUBSCRIPTION_ORIGIN,
    SUBSCRIPTION_OWNER,
    SUBSCRIPTION_RECIPIENT,
)
from app.fhir.json import Resource
from app.interactions import interactions
from app.interactions.preconditions import ONLY_NEW, only_of
from app.records.versions import ResourceVersion
from app.resources import secret_headers
from app.resources.subscription import is_as_wanted
from app.settings import Settings
from app.store.events import Event
from app.subscriptions.channels import davinci
from app.subscriptions.matching.channel_terms import CHANNEL_TYPE, PAYLOAD_CONTENT
from app.subscriptions.matching.registration import FILTER_CRITERIA
from app.subscriptions.matching.registry import SubscriptionRegistry

log = logging.getLogger(__name__)

REFUSED = "refused-endpoint"

_DIRECTORY = frozenset({"Endpoint", "PractitionerRole", "Organization"})
_ATTRIBUTING = frozenset({"Patient", "CareTeam", "Group"})
_MOST_RACES = 20
_CHANNEL = {REST: "rest-hook", MESSAGE: "message"}


async def run(context: Context, event: Event) -> None:
    base_url = context.settings.base_url.rstrip("/")
    versions = [each for each in (event.resource, event.previous) if each is not None]
    owners = await panels.owners(
        context.services.store, event.type, event.resource_id, versions, base_url
    )
    keep_one = partial(keep, context, anew=event.type in _DIRECTORY)
    await for_each(keep_one, owners)


REACTION = Reaction(
    "endpoint-subscriptions",
    _DIRECTORY | _ATTRIBUTING,
    run,
    is_wanted=lambda settings: bool(settings.endpoint_subscriptions),
)


async def keep(context: Context, owner: str, *, anew: bool) -> None:
    """Bring the Subscriptions of a role or organization in line with its Endpoints, and with the settings.

    `anew`: also those that are off or in error, since the directory has changed. What others have written meanwhile is
    looked at again, for each version has its endpoint proven.
    """
    for _ in range(_MOST_RACES):
        try:
            await _bring_in_line(context, owner, anew=anew)
            return
        except PreconditionFailed:
            continue
    raise Conflict("Too many concurrent changes of the same Subscriptions")


async def _bring_in_line(context: Context, owner: str, *, anew: bool) -> None:
    """Raises PreconditionFailed where one of them has been written since it was read."""
    existing = {each.id: each for each in await of_owner(context, owner)}
    endpoints = await _endpoints(context, owner)
    catalogue = context.services.get(SubscriptionRegistry).catalogue
    refused: dict[str, None] = {}
    for masked in endpoints:
        endpoint = await _with_secrets(context, masked)
        for topic in urls(context.settings):
            if topic not in catalogue.by_url:
                continue
            wanted = subscription(context, owner, endpoint, topic)
            before = existing.pop(wanted["id"], None)
            if before and not await _differs(context, wanted, before.resource(), anew=anew):
                continue
            if not await write(context, wanted, before):
                refused[f"Endpoint/{endpoint['id']}"] = None
                if before is not None:
                    existing[wanted["id"]] = before
    # Also what has another address by now than one that may be called.
    for stored in existing.values():
        resource = stored.resource()
        if resource["status"] != "off":
            ended = {"status": "off", "reason": f"Off: {owner} is not to be told of this any more"}
            await write(context, resource | ended, stored)
    await keep_task(context, REFUSED, owner, list(refused), lambda each: each not in refused)


async def _endpoints(context: Context, owner: str) -> Sequence[Resource]:
    """The Endpoints to keep Subscriptions for."""
    if not context.settings.endpoint_subscriptions:
        return ()
    base_url = context.settings.base_url.rstrip("/")
    found = await panels.endpoints_to_tell(
        context.services.store, owner, base_url, context.services.mongo.now()
    )
    return await confirmed(context, owner, found)


async def of_owner(context: Context, owner: str) -> Sequence[ResourceVersion]:
    """The Subscriptions that are kept for a role or organization."""
    tag = f"_tag={SUBSCRIPTION_OWNER}|{owner}"
    return await context.services.store.search("Subscription", {"terms": tag}, 0)


def place_of(resource: Resource) -> tuple[str, str] | None:
    """The role or organization and the Endpoint that a Subscription is kept for; None for any other.

    Its id says that it is the server's own, whatever tags others have.
    """
    owner = next(
        (
            str(tag.get("code"))
            for tag in resource.get("meta", {}).get("tag", ())
            if tag.get("system") == SUBSCRIPTION_OWNER
        ),
        None,
    )
    place = next(
        (
            str(each.get("valueReference", {}).get("reference"))
            for each in resource.get("extension", ())
            if each.get("url") == SUBSCRIPTION_ENDPOINT
        ),
        None,
    )
    if owner is None or place is None:
        return None
    is_own = resource["id"] == _id(owner, place, resource["criteria"])
    return (owner, place) if is_own else None


def subscription(context: Context, owner: str, endpoint: Resource, topic: str) -> Resource:
    """The Subscription of one Endpoint for one topic; its id is always the same."""
    place = f"Endpoint/{endpoint['id']}"
    return {
        "resourceType": "Subscription",
        "id": _id(owner, place, topic),
        "meta": {
            "tag": [
                {"system": SUBSCRIPTION_ORIGIN, "code": "endpoint"},
                {"system": SUBSCRIPTION_OWNER, "code": owner},
            ]
        },
        "extension": [
            {"url": SUBSCRIPTION_RECIPIENT, "valueReference": {"reference": owner}},
            {"url": SUBSCRIPTION_ENDPOINT, "valueReference": {"reference": place}},
        ],
        "status": "requested",
        "reason": f"Kept by the server for {place} of {owner}",
        "criteria": topic,
        "_criteria": {
            "extension": [{"url": FILTER_CRITERIA, "valueString": f"general-practitioner={owner}"}]
        },
        "channel": _channel(context.settings, endpoint, topic),
    }


def _id(owner: str, place: str, topic: str) -> str:
    return stable_id("endpoint-subscription", owner, place, topic)


def _channel(settings: Settings, endpoint: Resource, topic: str) -> Resource:
    """The channel; an Endpoint for messages gets Da Vinci's, in full, where those have an event for the topic."""
    type_ = _CHANNEL[endpoint["connectionType"]["code"]]
    channel: dict[str, Any] = {"type": type_}
    content = settings.endpoint_content
    if type_ == _CHANNEL[MESSAGE] and davinci.event_of(topic, settings) is not None:
        system, code = davinci.ASKED_BY
        named = {"url": CHANNEL_TYPE, "valueCoding": {"system": system, "code": code}}
        channel["_type"] = {"extension": [named]}
        content = "full-resource"
    channel |= {
        "endpoint": endpoint["address"],
        "payload": "application/fhir+json",
        "_payload": {"extension": [{"url": PAYLOAD_CONTENT, "valueCode": content}]},
    }
    if endpoint.get("header"):
        channel["header"] = endpoint["header"]
    return channel


async def _with_secrets(context: Context, endpoint: Resource) -> Resource:
    """The Endpoint with the values of its headers, which a Subscription of the server seals in its turn."""
    if not endpoint.get("header"):
        return endpoint
    store = context.services.store
    headers = await secret_headers.of(store, "Endpoint", endpoint["id"], context.settings)
    # A server of the release before stores them as they are, while it runs beside this one.
    return {**endpoint, "header": headers} if headers else endpoint


async def _differs(
    context: Context, wanted: Resource, stored: Mapping[str, Any], *, anew: bool
) -> bool:
    """Whether the stored Subscription is another one, is to be tried anew, or was written by somebody else.

    Header values are compared too.
    """
    if anew and stored["status"] in ("off", "error"):
        return True
    if stored["status"] == "off":
        # By the server, for a reason that is gone; what a person has switched off stays so.
        return bool(stored.get("reason") != wanted["reason"])
    return not await is_as_wanted(context.services.store, wanted, stored, context.settings)


async def write(context: Context, resource: Resource, before: ResourceVersion | None) -> bool:
    """Store it; False where the server refuses it, as for an address that it may not call.

    Raises PreconditionFailed where `before` is not the current version any more.
    """
    seen = ONLY_NEW if before is None else only_of(before.version)
    try:
        await interactions.update(context, "Subscription", resource["id"], resource, seen)
    except PreconditionFailed:
        raise
    except FhirError as error:
        codes: Iterable[str] = (issue.code for issue in error.issues)
        log.warning(
            "endpoint cannot be subscribed",
            extra={"action": "keep", "id": resource["id"], "error": ",".join(codes)},
        )
        return False
    return True
