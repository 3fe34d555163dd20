"""What one commit wants written, prepared before its transaction: versions, their search values, and their events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from bson import ObjectId

from app.errors import TooLarge
from app.fhir import json as fhir_json
from app.fhir.json import Resource
from app.records.versions import (
    Change,
    Guard,
    LateMessage,
    ResourceVersion,
    RowBeside,
    with_meta,
)
from app.runtime import pace
from app.runtime.cluster import Cluster
from app.runtime.mongo import Document
from app.search import group_members
from app.search.extract import extract
from app.search.terms import senders
from app.store.events import Event

_HTTP_METHOD = {"create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}
_MILLISECOND = timedelta(milliseconds=1)


@dataclass(slots=True, eq=False)
class CommitUnit:
    """What one `commit` call wants written, prepared: either all of it is written or nothing."""

    changes: Sequence[Change]
    guards: Sequence[Guard]
    beside: Sequence[RowBeside] = ()
    stored: list[ResourceVersion] = field(default_factory=list)
    # Versions that have never been the current one: late messages, and what was withdrawn.
    passing: list[ResourceVersion] = field(default_factory=list)
    current: list[Document] = field(default_factory=list)
    rows: list[group_members.RowChange] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    # What the audit says of it.
    entries: list[Document] = field(default_factory=list)

    @property
    def keys(self) -> set[str]:
        keys = {change.key for change in self.changes} | {guard.key for guard in self.guards}
        return keys | {row.key for row in self.beside}

    @property
    def size(self) -> int:
        return len(self.changes)


class UnitPreparation:
    """Prepares units with the times of a process."""

    def __init__(
        self, cluster: Cluster, max_resource_bytes: int, max_bytes_of: Mapping[str, int]
    ) -> None:
        """Resources of the types in `max_bytes_of` may be as large as it says, others `max_resource_bytes`."""
        self._cluster = cluster
        self._max_resource_bytes = max_resource_bytes
        self._max_bytes_of = max_bytes_of

    async def add(self, unit: CommitUnit, change: Change) -> None:
        """Add to the unit all that one change has written. Raises TooLarge."""
        previous = change.previous
        version = previous.version + 1 if previous else 1
        at = self._cluster.stamp()
        if previous and at <= previous.at:  # versions of one resource never share or turn back time
            at = previous.at + _MILLISECOND
        before = previous.text if previous and not previous.deleted else None
        if change.withdrawn is not None:
            passed = self._pass_version(unit, change, change.withdrawn, version, at)
            told = await passed.resource_aside()
            found = await pace.aside(len(passed.text), extract, change.type, told)
            unit.events.append(_event(change, version, at, told, found, before))
            version, at, before = version + 1, at + _MILLISECOND, passed.text
        if change.late is not None:
            version, at = await self._take_late(unit, change, change.late, version, at)
        document: Document = {"_id": change.id, "v": version, "at": at}
        if change.by:
            document["by"] = list(change.by)
        resource, fields, text = None, None, ""
        if change.resource is None:
            document["deleted"] = True
        else:
            resource = with_meta(change.resource, change.id, version, at)
            text = self._text(resource)
            fields = await pace.aside(len(text), extract, change.type, resource)
            document.update(fields)
            group_members.take_aside(document)
            if change.by:
                document["terms"] = [*fields["terms"], *senders(change.by)]
            if change.private is not None:
                document["private"] = change.private
            document["text"] = text
        if rows := group_members.collection_of(change.type):
            members = None
            if previous is not None and not previous.deleted:
                resource_before = await previous.resource_aside()
                members = await pace.aside(len(previous.text), group_members.aside, resource_before)
            size = max(len(text), len(previous.text) if previous else 0)
            unit.rows.append(
                await pace.aside(size, group_members.row_change, rows, change.id, members, fields)
            )
        method = _HTTP_METHOD[change.method]
        unit.current.append(document)
        unit.stored.append(
            ResourceVersion(change.type, change.id, version, at, text, resource is None, method)
        )
        if not change.silent and (change.late is None or change.late.content is None):
            unit.events.append(_event(change, version, at, resource, fields, before))

    async def _take_late(
        self, unit: CommitUnit, change: Change, late: LateMessage, version: int, at: datetime
    ) -> tuple[int, datetime]:
        """Add a late message's event, for those alone who listen for its topic, and its version if it gets one.

        Returns version and time of the current state that follows.
        """
        resource = with_meta(late.content or change.resource or {}, change.id, version, at)
        before = change.previous.text if change.previous else None
        size = len(fhir_json.encode(resource))
        fields = await pace.aside(size, extract, change.type, resource)
        event = _event(change, version, at, resource, fields, before)
        unit.events.append(replace(event, topic=late.topic, trigger=late.trigger))
        if late.content is None:
            return version, at
        self._pass_version(unit, change, late.content, version, at)
        return version + 1, at + _MILLISECOND

    def _pass_version(
        self, unit: CommitUnit, change: Change, content: Resource, version: int, at: datetime
    ) -> ResourceVersion:
        """Add a version that is followed by another one at once."""
        text = self._text(with_meta(content, change.id, version, at))
        method = _HTTP_METHOD[change.method]
        passed = ResourceVersion(change.type, change.id, version, at, text, method=method)
        unit.passing.append(passed)
        return passed

    def _text(self, resource: Resource) -> str:
        """The JSON of a resource. Raises TooLarge: patches and entries of Bundles pass no other limit."""
        encoded = fhir_json.encode(resource)
        most = self._max_bytes_of.get(resource["resourceType"], self._max_resource_bytes)
        if len(encoded) > most:
            raise TooLarge(f"The resource is over the limit of {most} bytes")
        return encoded.decode()


def _event(
    change: Change,
    version: int,
    at: datetime,
    resource: Resource | None,
    fields: Document | None,
    before: str | None,
) -> Event:
    return Event(
        ObjectId(),
        change.type,
        change.id,
        version,
        change.method,
        at,
        resource,
        fields,
        before,
    )
