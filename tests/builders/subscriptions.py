"""Subscriptions and Encounters for the tests of notices."""

from __future__ import annotations

from typing import Any

import httpx

from app.subscriptions.matching.channel_terms import (
    HEARTBEAT_PERIOD,
    MAX_COUNT,
    PAYLOAD_CONTENT,
    TIMEOUT,
)
from app.subscriptions.matching.registration import FILTER_CRITERIA
from tests.conftest import Server

ADMISSION = "http://carerelay.example/SubscriptionTopic/encounter-admission"
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
ENDPOINT = "http://127.0.0.1:9/hook"


def encounter(
    status: str = "in-progress", class_: str = "IMP", patient: str = "p1", **more: Any
) -> dict[str, Any]:
    return {
        "resourceType": "Encounter",
        "status": status,
        "class": {"system": ACT_CODE, "code": class_},
        "subject": {"reference": f"Patient/{patient}"},
        **more,
    }


def classic(
    criteria: str = "Encounter?status=in-progress&class=IMP",
    endpoint: str = ENDPOINT,
    payload: str | None = None,
    **channel: Any,
) -> dict[str, Any]:
    if payload is not None:
        channel["payload"] = payload
    return {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": "Admissions of our patients",
        "criteria": criteria,
        "channel": {"type": "rest-hook", "endpoint": endpoint, **channel},
    }


def topic_based(
    *filters: str,
    content: str = "id-only",
    endpoint: str = ENDPOINT,
    heartbeat: int | None = None,
    timeout: int | None = None,
    max_count: int | None = None,
    **channel: Any,
) -> dict[str, Any]:
    extensions = []
    if heartbeat is not None:
        extensions.append({"url": HEARTBEAT_PERIOD, "valueUnsignedInt": heartbeat})
    if timeout is not None:
        extensions.append({"url": TIMEOUT, "valueUnsignedInt": timeout})
    if max_count is not None:
        extensions.append({"url": MAX_COUNT, "valuePositiveInt": max_count})
    if extensions:
        channel["extension"] = extensions
    subscription = {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": "Admissions of our patients",
        "criteria": ADMISSION,
        "channel": {
            "type": "rest-hook",
            "endpoint": endpoint,
            "payload": "application/fhir+json",
            "_payload": {"extension": [{"url": PAYLOAD_CONTENT, "valueCode": content}]},
            **channel,
        },
    }
    if filters:
        subscription["_criteria"] = {
            "extension": [{"url": FILTER_CRITERIA, "valueString": text} for text in filters]
        }
    return subscription


def websocket(*filters: str, **more: Any) -> dict[str, Any]:
    """A topic-based Subscription whose client connects."""
    subscription = topic_based(*filters, **more)
    subscription["channel"]["type"] = "websocket"
    del subscription["channel"]["endpoint"]
    return subscription


def email(*filters: str, **more: Any) -> dict[str, Any]:
    """A topic-based Subscription that is told by mail."""
    asked = {
        "endpoint": "mailto:desk@practice.example",
        "payload": "text/plain;attach=application/fhir+json",
        **more,
    }
    subscription = topic_based(*filters, **asked)
    subscription["channel"]["type"] = "email"
    return subscription


async def subscribed(pair: tuple[Server, httpx.AsyncClient], subscription: dict[str, Any]) -> str:
    """The id of a Subscription that a client has created, once its handshake is over."""
    server, client = pair
    created = await client.post("/Subscription", json=subscription)
    assert created.status_code == 201, created.text
    await server.worker.drain()
    return str(created.json()["id"])
