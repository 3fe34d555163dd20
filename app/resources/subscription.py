"""Rules of Subscription: what is refused, which status it gets, and what happens to its secrets.

https://hl7.org/fhir/R4/subscription.html and domain rules of the Subscriptions R5 Backport guide for R4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from app.errors import Forbidden, Issue, Unprocessable
from app.fhir.json import Resource
from app.network.egress_policy import Egress, EgressRefusedError, UnresolvableError, origin
from app.resources import subscription_limits
from app.resources.type_rules import Prepared
from app.runtime import secrets
from app.runtime.masking import MASK, mask
from app.runtime.mongo import Document
from app.subscriptions.channels import CHANNELS
from app.subscriptions.matching import criteria_check, registration, registration_cache
from app.subscriptions.matching.criteria import led_through
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.sending.owner_rights import owner_document

if TYPE_CHECKING:
    from app.context import Context
    from app.records.versions import ResourceVersion


async def prepare(
    context: Context, resource: Resource, previous: ResourceVersion | None
) -> Prepared:
    """Check a Subscription before it is stored. Raises Unprocessable naming each element at fault.

    The stored copy has masked header values; the values themselves go into `private`, and back to the writer alone.
    Any status that the client sends, but `off`, becomes `requested`: the server proves the endpoint anew.
    """
    subscription_limits.check_size(context, resource)
    sent = resource.get("channel", {}).get("header", [])
    known = await _private(context, previous.id) if previous is not None else {}
    headers = _unmasked(context, resource, sent, previous, known)
    full = _with_headers(resource, headers)
    read = registration.read(
        full, context.services.get(SubscriptionRegistry).catalogue, context.settings
    )
    check_rights(context, read)
    await subscription_limits.check_number(context, resource, previous)
    if resource.get("status") != "off":
        await _check_criteria(context, read)
    if read.end is not None and read.end <= context.services.mongo.now():
        raise _refused("end", "The end lies in the past", "value")
    if CHANNELS[read.channel.type].calls_out:
        await _check_egress(context, read.channel.endpoint)
    stored = _with_headers(resource, [mask(header) for header in headers])
    stored["status"] = "off" if resource.get("status") == "off" else "requested"
    stored.pop("error", None)  # the server's to say, and a new request starts without one
    return Prepared(
        stored,
        private={
            "headers": secrets.of_settings(context.settings).seal_all(headers) if headers else [],
            "base_url": context.base_url,
            "watch": registration_cache.encode(read, context.settings),
            **_owner(context, known),
        },
        echo={"channel": {**stored["channel"], "header": sent}} if sent else None,
    )


def check_rights(context: Context, read: Registration) -> None:
    """Raises Forbidden where the caller may not read what it subscribes to.

    A chain or `_has` is evaluated on all resources: it may only lead through types that the caller may read whole.
    """
    access = context.access
    if access is None:
        return
    types = read.topic.resource_types if read.topic else (read.criteria.scope,)
    for resource_type in types:
        context.require(resource_type, "r")
    # The chains of a topic's filters are the operator's.
    led = led_through(read.criteria, context.settings) if read.topic is None else set()
    for resource_type in sorted(led):
        context.require(resource_type, "s")
        if not access.sees_all(resource_type):
            raise Forbidden(f"Criteria of this client may not lead through {resource_type}")


def _owner(context: Context, known: Document) -> Document:
    """The owner, whose rights count for the notices; an administrator's change of a Subscription keeps its owner."""
    if context.access is None:
        return {"owner": known["owner"]} if "owner" in known else {}
    if context.access.is_administrator and "owner" in known:
        return {"owner": known["owner"]}
    return {"owner": owner_document(context.caller)}


def masked(resource: Resource) -> Resource:
    """The Subscription with every header masked, as it is stored."""
    return _with_headers(resource, [mask(h) for h in resource.get("channel", {}).get("header", [])])


async def _check_criteria(context: Context, read: Registration) -> None:
    """Settle each parameter, whatever it leads through. Raises Unprocessable with what is wrong, without its value."""
    fault = await criteria_check.fault(context.services.store, read.criteria, context.settings)
    if fault is not None:
        diagnostics = f"The parameter {fault.parameter} cannot be evaluated: {fault.reason}"
        raise _refused("criteria", diagnostics, "not-supported")


async def _check_egress(context: Context, endpoint: str) -> None:
    try:
        await Egress.from_settings(context.settings).check(endpoint)
    except EgressRefusedError as refusal:
        raise _refused("channel.endpoint", str(refusal), "security") from None
    except UnresolvableError:
        pass  # not forbidden; the handshake or the first delivery will show whether it can be reached


def _unmasked(
    context: Context,
    resource: Resource,
    sent: list[Any],
    previous: ResourceVersion | None,
    private: Document,
) -> list[Any]:
    """The headers with stored values in place of masks, so that a client can send back what it has read.

    Only towards the same origin: otherwise a new endpoint would receive the old one's secret.
    """
    wanted = [
        i for i, header in enumerate(sent) if isinstance(header, str) and header.endswith(MASK)
    ]
    if not wanted:
        return list(sent)
    known: list[str] = []
    if previous is not None and not previous.deleted:
        endpoint = previous.resource()["channel"].get("endpoint", "")
        if origin(endpoint) == origin(resource["channel"].get("endpoint", "")):
            sealed = private.get("headers", [])
            known = secrets.of_settings(context.settings).open_all(sealed) if sealed else []
    headers = list(sent)
    for index in wanted:
        secret = next((header for header in known if mask(header) == sent[index]), None)
        if secret is None:
            raise _refused(
                f"channel.header[{index}]", "A masked value needs the header itself here", "value"
            )
        known = [header for header in known if header is not secret]
        headers[index] = secret
    return headers


async def _private(context: Context, subscription: str) -> Document:
    # Read past the caller's limits: no caller may see these values.
    found = await context.services.store.find(
        "Subscription", {"_id": subscription}, projection={"private": 1}
    )
    private: Document = found[0].get("private", {}) if found else {}
    return private


def _with_headers(resource: Resource, headers: list[Any]) -> Resource:
    channel = dict(resource.get("channel", {}))
    if headers:
        channel["header"] = headers
    return {**resource, "channel": channel}


def _refused(path: str, diagnostics: str, code: str) -> Unprocessable:
    return Unprocessable(issues=[Issue(code, diagnostics, (f"Subscription.{path}",))])
