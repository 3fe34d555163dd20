"""Rules of Subscription: what is refused, which status it gets, and what happens to its secrets.

https://hl7.org/fhir/R4/subscription.html and domain rules of the Subscriptions R5 Backport guide for R4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.authentication.caller import EVERYBODY
from app.errors import Forbidden, Issue, Unprocessable
from app.fhir.json import Resource
from app.network.egress_policy import Egress, EgressRefusedError
from app.resources import secret_headers, subscription_limits
from app.resources.secret_headers import Known
from app.resources.type_rules import Prepared
from app.runtime.mongo import Document
from app.subscriptions.channels import CHANNELS
from app.subscriptions.matching import criteria_check, registration, registration_cache
from app.subscriptions.matching.criteria import led_through
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.sending.owner_rights import NO_OWNER, owner_document, reads_groups

if TYPE_CHECKING:
    from app.context import Context
    from app.records.reader import Reader
    from app.records.versions import ResourceVersion
    from app.settings import Settings

# What the server itself says in a Subscription that it keeps, for as long as it keeps it.
_OF_THE_SERVER = ("extension", "criteria", "_criteria", "channel")


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """Check a Subscription before it is stored. Raises Unprocessable naming each element at fault.

    The stored copy has masked header values; the values themselves go into `private`, and back to the writer alone.
    Any status that the client sends, but `off`, becomes `requested`: the server proves the endpoint anew.
    """
    subscription_limits.check_size(context, resource)
    sent = resource.get("channel", {}).get("header", [])
    known = await _known(context, previous)
    address = resource.get("channel", {}).get("endpoint")
    headers = secret_headers.unmasked(
        sent, known, address, context.settings, path="Subscription.channel.header"
    )
    full = _with_headers(resource, headers)
    read = registration.read(
        full, context.services.get(SubscriptionRegistry).catalogue, context.settings
    )
    await check_rights(context, read)
    guards = await subscription_limits.check_number(context, resource, previous)
    if resource.get("status") != "off":
        await _check_criteria(context, read)
    if read.end is not None and read.end <= context.services.mongo.now():
        raise _refused("end", "The end lies in the past", "value")
    if CHANNELS[read.channel.type].calls_out:
        _check_egress(context, read.channel.endpoint)
    stored = masked(full)
    stored["status"] = "off" if resource.get("status") == "off" else "requested"
    stored.pop("error", None)  # the server's to say, and a new request starts without one
    return Prepared(
        stored,
        private={
            "headers": secret_headers.sealed(headers, context.settings),
            "base_url": context.base_url,
            "watch": registration_cache.encode(read, context.settings),
            **_owner(context, known.private),
        },
        echo={"channel": {**stored["channel"], "header": sent}} if sent else None,
        guards=guards,
    )


async def check_rights(context: Context, read: Registration) -> None:
    """Raises Forbidden where the caller may not read what it subscribes to, or names an Endpoint to keep it for.

    A chain or `_has` is evaluated on all resources: it may only lead through types that the caller may read whole. What
    is kept for an Endpoint is sent in one order: a client's own would hold the practice's notices up.
    """
    access = context.access
    if access is None:
        return
    if read.kept_at is not None and not access.is_administrator:
        raise Forbidden(
            "Only the server keeps Subscriptions for an Endpoint",
            expression="Subscription.extension",
        )
    types = read.topic.resource_types if read.topic else (read.criteria.scope,)
    for resource_type in types:
        context.require(resource_type, "r")
    # The chains of a topic's filters are the operator's.
    led = led_through(read.criteria, context.settings) if read.topic is None else set()
    for resource_type in sorted(led):
        context.require(resource_type, "s")
        if not access.sees_all(resource_type):
            raise Forbidden(f"Criteria of this client may not lead through {resource_type}")
    await check_groups(context, read)


async def check_groups(context: Context, read: Registration) -> None:
    """Raises Forbidden where a filter names a Group that the caller may not read, in the same words for one unknown.

    Whether such a filter holds would tell who the members are.
    """
    if context.access is not None and not await reads_groups(context.access, read):
        raise Forbidden(
            "A filter names a Group that this client does not read",
            expression="Subscription.criteria",
        )


def _owner(context: Context, known: Document) -> Document:
    """The owner, whose rights count for the notices.

    A change by an administrator or by the server keeps it. Written without authorization, it is nobody's from then on.
    """
    if context.caller == EVERYBODY:
        return {"owner": NO_OWNER}
    has_owner = known.get("owner", NO_OWNER) != NO_OWNER
    access = context.access
    if has_owner and (access is None or access.is_administrator):
        return {"owner": known["owner"]}
    return {} if access is None else {"owner": owner_document(context.caller)}


async def is_as_wanted(
    store: Reader, wanted: Resource, stored: Mapping[str, Any], settings: Settings
) -> bool:
    """Whether a stored Subscription is what the server itself would write, header values included.

    One with an owner is as somebody else has written it.
    """
    own = masked(wanted)
    if any(stored.get(name) != own[name] for name in _OF_THE_SERVER):
        return False
    private = await secret_headers.private_of(store, "Subscription", wanted["id"])
    headers = wanted["channel"].get("header", [])
    return "owner" not in private and secret_headers.are_known(headers, private, settings)


def masked(resource: Resource) -> Resource:
    """The Subscription with every header masked, as it is stored."""
    headers = resource.get("channel", {}).get("header", [])
    return _with_headers(resource, secret_headers.masked(headers))


async def _check_criteria(context: Context, read: Registration) -> None:
    """Settle each parameter, whatever it leads through. Raises Unprocessable with what is wrong, without its value."""
    fault = await criteria_check.fault(context.services.store, read.criteria, context.settings)
    if fault is not None:
        diagnostics = f"The parameter {fault.parameter} cannot be evaluated: {fault.reason}"
        raise _refused("criteria", diagnostics, "not-supported")


def _check_egress(context: Context, endpoint: str) -> None:
    """Raises Unprocessable for an address that may not be called.

    What a name leads to is judged when it is called: here its refusal would tell what names there are inside.
    """
    try:
        Egress.from_settings(context.settings).check_url(endpoint)
    except EgressRefusedError as refusal:
        raise _refused("channel.endpoint", str(refusal), "security") from None


async def _known(context: Context, previous: ResourceVersion | None) -> Known:
    if previous is None:
        return Known({}, None)
    private = await secret_headers.private_of(context.services.store, "Subscription", previous.id)
    channel = {} if previous.deleted else previous.resource()["channel"]
    return Known(private, channel.get("endpoint"))


def _with_headers(resource: Resource, headers: list[Any]) -> Resource:
    channel = dict(resource.get("channel", {}))
    if headers:
        channel["header"] = headers
    return {**resource, "channel": channel}


def _refused(path: str, diagnostics: str, code: str) -> Unprocessable:
    return Unprocessable(issues=[Issue(code, diagnostics, (f"Subscription.{path}",))])
