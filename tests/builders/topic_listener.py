"""A practice that listens for all topics: what it was told about a resource, in order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from tests.builders.receiver import Received, Receiver, receiving
from tests.builders.subscriptions import topic_based
from tests.conftest import Server, make_settings, running

OURS = "http://carerelay.example/SubscriptionTopic/"
FEED = "http://hl7.org/fhir/us/core/SubscriptionTopic/patient-data-feed"


@dataclass
class Listener:
    """A server, a client of it, and an endpoint; Subscriptions deliver to the endpoint's path `/<topic>`."""

    server: Server
    client: httpx.AsyncClient
    receiver: Receiver

    async def listen(self, slug: str, *filters: str, content: str = "id-only") -> str:
        """Subscribe to one of our topics, or the feed; returns the id."""
        subscription = topic_based(
            *filters, endpoint=f"{self.receiver.url}/{slug}", content=content
        )
        subscription["criteria"] = FEED if slug == "patient-data-feed" else OURS + slug
        answer = await self.client.post("Subscription", json=subscription)
        assert answer.status_code == 201, answer.text
        await self.server.worker.drain()
        return str(answer.json()["id"])

    async def put(self, resource: dict[str, Any]) -> None:
        answer = await self.client.put(
            f"{resource['resourceType']}/{resource['id']}", json=resource
        )
        assert answer.status_code in (200, 201), answer.text

    async def told(self, resource: dict[str, Any] | None, focus: str) -> list[str]:
        """What writing this version, or deleting it, tells about the focus: `topic` or `topic:code`, sorted."""
        before = len(self.receiver.events)
        if resource is None:
            assert (await self.client.delete(focus)).is_success
        else:
            await self.put(resource)
        await self.server.worker.drain()
        came = [each for each in self.receiver.events[before:] if each.focus.endswith(focus)]
        return sorted(label(each) for each in came)


def label(notice: Received) -> str:
    """`topic:code` of a notice, with all its codes."""
    codes = [
        part["valueCoding"]["code"]
        for part in notice.parameter("notification-event")
        if part["name"] == "trigger"
    ]
    return f"{notice.path.strip('/')}:{'+'.join(codes) or '-'}"


@asynccontextmanager
async def listening(mongod: str, **settings: Any) -> AsyncIterator[Listener]:
    async with receiving() as receiver, running(make_settings(mongod, **settings)) as pair:
        yield Listener(*pair, receiver)
