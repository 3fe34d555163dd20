"""Subscription/$get-ws-binding-token: what a websocket client shows to be told of Subscriptions.

http://hl7.org/fhir/uv/subscriptions-backport/OperationDefinition/backport-subscription-get-ws-binding-token
"""

from __future__ import annotations

from app import fhir_json, interactions
from app.context import Context
from app.errors import BadRequest, Unprocessable
from app.exchange import Answer
from app.fhir_json import Resource
from app.operations.invocation import Invocation
from app.operations.subscription_status import content_of
from app.subscriptions import tokens
from app.subscriptions.channels import websocket
from app.versions import instant

_MOST = 1000


async def run(context: Context, invocation: Invocation) -> Answer:
    """Parameters with the token, until when it may be used, what for, and where."""
    ids = [invocation.resource_id] if invocation.resource_id else list(invocation.all("id"))
    if not ids or len(ids) > _MOST:
        raise BadRequest(
            f"Name the Subscriptions, at most {_MOST}", code="required", expression="id"
        )
    for id_ in dict.fromkeys(ids):
        _check((await interactions.current(context, "Subscription", id_)).resource())
    token, expires_at = await tokens.issue(context.server.mongo, list(dict.fromkeys(ids)))
    parameters = [
        {"name": "token", "valueString": token},
        {"name": "expiration", "valueDateTime": instant(expires_at)},
        *({"name": "subscription", "valueString": f"Subscription/{id_}"} for id_ in ids),
        {"name": "websocket-url", "valueUrl": websocket.address(context.base_url)},
    ]
    answer = {"resourceType": "Parameters", "parameter": parameters}
    return Answer(200, text=fhir_json.encode(answer), headers={"Cache-Control": "no-store"})


def _check(subscription: Resource) -> None:
    if subscription["channel"]["type"] != "websocket" or content_of(subscription) is None:
        raise Unprocessable(
            "Only topic-based Subscriptions with a websocket channel are bound by token",
            code="not-supported",
            expression="Subscription.channel.type",
        )
