"""Events: committed changes, each with the resource before and after it. A row of `events` becomes one again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from bson import ObjectId

from app.fhir import json as fhir_json
from app.fhir.json import Resource
from app.records.reader import Reader
from app.records.versions import Method
from app.runtime import pace
from app.runtime.mongo import Collection, Document, Mongo
from app.search.extract import extract

EVENTS = "events"


def event_rows(mongo: Mongo) -> Collection:
    """The rows of events that are still to be told or reacted to, `events`."""
    return mongo.collection(EVENTS)


@dataclass(slots=True)
class Event:
    """A committed change, with the resource before and after it and their search fields."""

    id: ObjectId
    type: str
    resource_id: str
    version: int
    method: Method
    at: datetime
    resource: Resource | None
    fields: Document | None
    previous_text: str | None = None
    # Of an event that was raised for one topic, without a new version: what its notices say and carry besides.
    topic: str | None = None
    trigger: Mapping[str, str] | None = None
    context: tuple[str, ...] = ()
    # Of such an event: the providers to whom alone it is told, by the Subscriptions that name them; everybody if empty.
    only_for: tuple[str, ...] = ()
    _previous: Resource | None = field(default=None, repr=False)
    _previous_fields: Document | None = field(default=None, repr=False)

    @property
    def previous(self) -> Resource | None:
        """The version before, decoded on first use; None where there was none or it was deleted."""
        if self._previous is None and self.previous_text:
            self._previous = fhir_json.decode_stored(self.previous_text)
        return self._previous

    @property
    def previous_fields(self) -> Document | None:
        """The search fields of the version before."""
        if self._previous_fields is None and self.previous is not None:
            self._previous_fields = extract(self.type, self.previous)
        return self._previous_fields

    async def read_previous(self) -> None:
        """Decode a large version before, and its search fields, without holding anybody up as the first use would."""
        text = self.previous_text
        if text and len(text) > pace.STEP_BYTES and self._previous_fields is None:
            self._previous = await pace.aside(len(text), fhir_json.decode_in_parts, text)
            await pace.aside(len(text), lambda: self.previous_fields)


async def load_event(store: Reader, row: Document) -> Event:
    """The event of a row in `events`, with the stored versions before and after it.

    For a process whose predecessor has died, or that was told of a row alone.
    """
    type_, id_, version = row["type"], row["id"], row["version"]
    stored = await store.vread(type_, id_, version)
    before = await store.vread(type_, id_, version - 1) if version > 1 else None
    resource = fields = None
    if stored is not None and not stored.deleted:
        resource = await stored.resource_aside()
        fields = await pace.aside(len(stored.text), extract, type_, resource)
    event = Event(
        row["_id"],
        type_,
        id_,
        version,
        row["method"],
        row["at"],
        resource,
        fields,
        before.text if before is not None and not before.deleted else None,
        topic=row.get("topic"),
        trigger=row.get("trigger"),
        context=tuple(row.get("context", ())),
        only_for=tuple(row.get("only_for", ())),
    )
    await event.read_previous()
    return event
