"""Versions of resources: as they are stored, as they are about to change, and as events tell of them.

https://hl7.org/fhir/R4/resource.html#Meta
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Literal

import msgspec
from bson import MaxKey

from app.fhir import json as fhir_json
from app.fhir.instants import instant
from app.fhir.json import Resource
from app.runtime import pace
from app.runtime.mongo import Document

# Where every version of every resource lies.
COLLECTION = "versions"


class _WithMeta(msgspec.Struct):
    meta: Resource


_with_meta = msgspec.json.Decoder(_WithMeta, float_hook=Decimal)

Method = Literal["create", "update", "patch", "delete"]
# What is about to happen to a version: updated, patched, deleted.
WriteAction = Literal["update", "patch", "delete"]

# Stands first among the writers of what no organization made: the server, an administrator or a consent authority did.
NO_ORGANIZATION = ""

# The projection of a current document that makes a Stored.
CURRENT = {"v": 1, "at": 1, "text": 1, "deleted": 1, "by": 1}


@dataclass(frozen=True, slots=True)
class ResourceVersion:
    """One version of a resource as it lies in the database; `text` is its JSON, empty where it was deleted.

    `by` are the organizations that ever wrote a version of it, its custodian first, told of current versions alone.
    """

    type: str
    id: str
    version: int
    at: datetime
    text: str
    deleted: bool = False
    method: str = "PUT"
    by: tuple[str, ...] = ()

    @property
    def reference(self) -> str:
        return f"{self.type}/{self.id}"

    def address(self, base_url: str) -> str:
        """Where this very version can be read."""
        return f"{base_url}/{self.reference}/_history/{self.version}"

    @property
    def custodian(self) -> str | None:
        """The organization whose record it is: the one that made it, of a Consent that its present word is of."""
        return self.by[0] or None if self.by else None

    def resource(self) -> Resource:
        """The decoded resource, a fresh copy."""
        return fhir_json.decode_stored(self.text)

    async def resource_aside(self) -> Resource:
        """The same, without holding anybody up where it is large."""
        resource: Resource = await pace.aside(len(self.text), fhir_json.decode_in_parts, self.text)
        return resource

    def meta(self) -> Resource:
        """Its meta alone, at a fraction of what the whole costs."""
        return _with_meta.decode(self.text).meta


@dataclass(frozen=True, slots=True)
class LateMessage:
    """A message that came after newer ones: it raises an event of its own, for `topic`, with what it was as `trigger`.

    `content` is there where the current state has nothing of it: it then becomes a version, which that state follows
    in another one (docs/decisions/0008-late-messages.md).
    """

    topic: str
    trigger: Mapping[str, str]
    content: Resource | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """One write, judged against `previous`: it commits only while that is still the current version.

    `private` is kept beside the current version and never becomes part of its text or of a version. A `silent` one
    makes no event: nobody is told of what the server keeps about its own notices, or telling would never end. `sender`
    is the organization that writes, where it is known. `withdrawn` is a version that comes before, with an event of its
    own: what the resource said of somebody whom it is not about any more.
    """

    method: Method
    type: str
    id: str
    resource: Resource | None
    previous: ResourceVersion | None = None
    private: Document | None = None
    late: LateMessage | None = None
    withdrawn: Resource | None = None
    silent: bool = False
    sender: str | None = None

    @property
    def by(self) -> tuple[str, ...]:
        """The organizations that will have written the resource then.

        A Consent passes to NO_ORGANIZATION with a version that none of them wrote; other resources stay whose they are.
        """
        before = self.previous.by if self.previous else ()
        if self.sender is None:
            passes = self.type == "Consent" and before and before[0] != NO_ORGANIZATION
            return (NO_ORGANIZATION, *before) if passes else before
        if not before and self.previous is not None:
            before = (NO_ORGANIZATION,)
        return before if self.sender in before else (*before, self.sender)

    @property
    def key(self) -> str:
        return f"{self.type}/{self.id}"


@dataclass(frozen=True, slots=True)
class Guard:
    """What a conditional write compares: the count seen before its search ran, 0 for none. See app/store/guards.py."""

    key: str
    seen: int
    in_the_clear: bool = False


@dataclass(frozen=True, slots=True)
class RowBeside:
    """A row that is no resource, inserted with a commit: where it is there already, nothing is written."""

    collection: str
    document: Document

    @property
    def key(self) -> str:
        return f"{self.collection}/{self.document['_id']}"


class HistoryRange(msgspec.Struct, frozen=True):
    """Which versions a history asks for: of one id, of a type, or of all.

    `since` and `until` are when they were made at the earliest and at the latest; in `period`, both ends included, they
    were current at some time. `before` is where the last page ended.
    """

    type: str | None = None
    id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    period: tuple[datetime, datetime] | None = None
    before: tuple[datetime, str, str, int] | None = None

    def filter(self, *, page: bool) -> Document:
        """The MongoDB filter on `versions`; with `page`, only what follows the last page."""
        conditions: list[Document] = []
        if self.type and self.id:
            first = {"t": self.type, "i": self.id, "v": 0}
            conditions.append({"_id": {"$gte": first, "$lte": {**first, "v": MaxKey()}}})
        elif self.type:
            conditions.append({"_id.t": self.type})
        if self.since:
            conditions.append({"at": {"$gte": self.since}})
        if self.until:
            conditions.append({"at": {"$lte": self.until}})
        if self.period:
            conditions.append({"at": {"$lte": self.period[1]}})
        if page and self.before:
            at, resource_type, resource_id, version = self.before
            key = {"t": resource_type, "i": resource_id, "v": version}
            if self.id:
                conditions.append({"_id": {"$lt": key}})
            else:
                conditions.append({"$or": [{"at": {"$lt": at}}, {"at": at, "_id": {"$lt": key}}]})
        return {"$and": conditions} if conditions else {}


class VersionConflict(Exception):
    """Somebody else committed first: a version or guard that the unit was judged against has moved on.

    `keys` are those (of a Change, of a Guard), where they are known.
    """

    def __init__(self, keys: frozenset[str] = frozenset()) -> None:
        super().__init__()
        self.keys = keys


def with_meta(resource: Resource, resource_id: str, version: int, at: datetime) -> Resource:
    """A copy with the id and the server's meta.versionId and meta.lastUpdated, the usual keys first."""
    meta = {
        **resource.get("meta", {}),
        "versionId": str(version),
        "lastUpdated": instant(at),
    }
    rest = {k: v for k, v in resource.items() if k not in ("resourceType", "id", "meta")}
    return {"resourceType": resource["resourceType"], "id": resource_id, "meta": meta, **rest}


def is_same_content(resource: Resource, stored: ResourceVersion) -> bool:
    """Whether a write would change nothing but the server's own meta."""
    same = with_meta(resource, stored.id, stored.version, stored.at)
    return fhir_json.encode(same).decode() == stored.text


def current_since(
    start: datetime, filter_: Document, sort: list[tuple[str, int]], limit: int
) -> list[Document]:
    """The aggregation of versions that match and were not yet replaced at `start`: their successor came later."""
    successor = {"t": "$_id.t", "i": "$_id.i", "v": {"$add": ["$_id.v", 1]}}
    return [
        {"$match": filter_},
        {"$sort": dict(sort)},
        {"$set": {"next": successor}},
        {
            "$lookup": {
                "from": COLLECTION,
                "localField": "next",
                "foreignField": "_id",
                "as": "next",
            }
        },
        {"$match": {"$or": [{"next": []}, {"next.at": {"$gt": start}}]}},
        {"$limit": limit},
        {"$unset": "next"},
    ]


def version_document(stored: ResourceVersion) -> Document:
    document: Document = {
        "_id": {"t": stored.type, "i": stored.id, "v": stored.version},
        "at": stored.at,
        "method": stored.method,
    }
    if not stored.deleted:
        document["text"] = stored.text
    return document


def stored_current(resource_type: str, document: Document) -> ResourceVersion:
    return ResourceVersion(
        resource_type,
        document["_id"],
        document["v"],
        document["at"],
        document.get("text", ""),
        deleted="deleted" in document,
        by=tuple(document.get("by", ())),
    )


def stored_version(document: Document) -> ResourceVersion:
    key = document["_id"]
    return ResourceVersion(
        key["t"],
        key["i"],
        key["v"],
        document["at"],
        document.get("text", ""),
        deleted="text" not in document,
        method=document["method"],
    )
