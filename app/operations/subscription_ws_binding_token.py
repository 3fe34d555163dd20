"""Subscription/$get-ws-binding-token: the token by which a websocket client binds to Subscriptions.

http://hl7.org/fhir/uv/subscriptions-backport/OperationDefinition/backport-subscription-get-ws-binding-token

Classic Subscriptions have tokens as well: with authorization R4's `bind <id>` would prove nothing.
"""

from __future__ import annotations

from app.authentication.access_tokens import Authority
from app.context import Context
from app.errors import BadRequest, Forbidden, Unprocessable
from app.fhir import json as fhir_json
from app.fhir.instants import instant
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.records.versions import ResourceVersion
from app.subscriptions.channels import websocket
from app.subscriptions.sending.owner_rights import OwnerRights
from app.subscriptions.websocket import socket_tokens
from app.subscriptions.websocket.socket_tokens import Holder

_MOST = 1000


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """Parameters with the token, its expiration, its Subscriptions, and the websocket's address.

    Raises NotFound for a Subscription that the caller may not read, Forbidden for one that is another client's.
    """
    ids = [invocation.resource_id] if invocation.resource_id else list(invocation.all("id"))
    if not ids or len(ids) > _MOST:
        raise BadRequest(
            f"Name the Subscriptions, at most {_MOST}", code="required", expression="id"
        )
    ids = list(dict.fromkeys(ids))
    for id_ in ids:
        await _check(context, await interactions.current(context, "Subscription", id_))
    holder = await _holder(context)
    token, expires_at = await socket_tokens.issue(context.services.mongo, ids, holder)
    parameters = [
        {"name": "token", "valueString": token},
        {"name": "expiration", "valueDateTime": instant(expires_at)},
        *({"name": "subscription", "valueString": f"Subscription/{id_}"} for id_ in ids),
        {"name": "websocket-url", "valueUrl": websocket.address(context.base_url)},
    ]
    answer = {"resourceType": "Parameters", "parameter": parameters}
    return InteractionResult(
        200, text=fhir_json.encode(answer), headers={"Cache-Control": "no-store"}
    )


async def _check(context: Context, subscription: ResourceVersion) -> None:
    if subscription.resource()["channel"]["type"] != "websocket":
        raise Unprocessable(
            "Only Subscriptions with a websocket channel are bound by token",
            code="not-supported",
            expression="Subscription.channel.type",
        )
    # A bound client receives notices in place of the Subscription's owner, and with the owner's rights.
    rights, client = context.services.get(OwnerRights), context.caller.client_id
    if context.access is not None and not await rights.is_of(
        client, subscription.id, subscription.version
    ):
        raise Forbidden("Only the client that wrote the Subscription binds it")


async def _holder(context: Context) -> Holder | None:
    """The client that the token is issued to; None while authorization is off. Raises Forbidden."""
    authority = context.services.find(Authority)
    if context.access is None or authority is None:
        return None
    client_id = context.caller.client_id
    client = await authority.clients.get(client_id)
    if client is None:
        raise Forbidden("This client is not registered any more")
    return Holder(client_id, client.version)
