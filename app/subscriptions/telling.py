"""One event as it is told: the pinned version, and what travels along with it, as far as a content level allows."""

from __future__ import annotations

import asyncio

from app.fhir_json import Resource
from app.search.extract import extract
from app.store import Event, Store
from app.subscriptions.channel_terms import Content
from app.subscriptions.ledger import Delivery
from app.subscriptions.notification import Focus, Told
from app.subscriptions.topics import Topic


class VersionGoneError(Exception):
    """What a notice should carry is no longer stored."""


class Teller:
    """Reads what notices carry."""

    def __init__(self, store: Store, base_url: str = "") -> None:
        self._store = store
        self._base_url = base_url

    async def told(
        self, delivery: Delivery, topic: Topic | None, content: Content, event: Event | None = None
    ) -> Told:
        """A row's event. `event` spares reading the version. Raises VersionGoneError where it is no longer stored."""
        pinned = delivery.focus
        resource: Resource | None = None
        context: list[str] = []
        if content != "empty" and pinned["method"] != "delete":
            resource = await self.pinned(delivery, event)
            if topic is not None:
                fields = event.fields if event is not None and event.fields else None
                fields = fields or extract(pinned["type"], resource)
                context = topic.context(pinned["type"], fields)
        included: dict[str, Resource | None] = dict.fromkeys(context)
        if content == "full-resource":
            included = dict(zip(context, await self._read_all(context), strict=True))
        whole = resource if content == "full-resource" else None
        return Told(delivery.number, _focus(delivery, whole), included)

    async def told_if_stored(
        self, delivery: Delivery, topic: Topic | None, content: Content, event: Event | None = None
    ) -> Told:
        """A row's event, that its version is gone included."""
        try:
            return await self.told(delivery, topic, content, event)
        except VersionGoneError:
            return Told(delivery.number, _focus(delivery, None, gone=True), {})

    async def pinned(self, delivery: Delivery, event: Event | None = None) -> Resource:
        """The very version of the event, whatever has become of the resource since. Raises VersionGoneError."""
        if event is not None and event.resource is not None:
            return event.resource
        pinned = delivery.focus
        stored = await self._store.vread(pinned["type"], pinned["id"], pinned["version"])
        if stored is None or stored.deleted:
            raise VersionGoneError("The version is no longer stored")
        return stored.resource()

    async def _read_all(self, references: list[str]) -> list[Resource | None]:
        return await asyncio.gather(*(self._read(reference) for reference in references))

    async def _read(self, reference: str) -> Resource | None:
        resource_type, _, resource_id = reference.partition("/")
        stored = await self._store.read(resource_type, resource_id)
        return None if stored is None or stored.deleted else stored.resource()


def _focus(delivery: Delivery, resource: Resource | None, *, gone: bool = False) -> Focus:
    pinned = delivery.focus
    return Focus(
        pinned["type"],
        pinned["id"],
        pinned["version"],
        pinned["method"],
        pinned["at"],
        delivery.trigger,
        resource,
        gone,
    )
