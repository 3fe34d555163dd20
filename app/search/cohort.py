"""The members of a Group, kept in rows of their own beside it: a cohort may have 100,000 of them.

As terms of one document they would be 100,000 index entries to write with every change of the Group, and more than a
document may hold. A row is `{_id: {g: id of the Group, m: term}}`, where the term is what would stand in `terms`
(`member=Patient/1`, terms.py). The store writes the difference in the transaction of the Group's change.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pymongo import ASCENDING, IndexModel

from app.search.link import Link
from app.search.lookup import Document, Lookup, TooMany
from app.search.parameter import Condition, Fields, Filter, Limits
from app.search.special import Ids
from app.search.terms import Terms, successor

if TYPE_CHECKING:
    from app.store import Store

# Search parameters whose terms are kept in a collection of rows, by type and code.
ROWS: Mapping[tuple[str, str], str] = {("Group", "member"): "group_members"}
# Beyond this many Groups their rows are asked for the candidates instead of being read.
_MOST_GROUPS = 100


def collection_of(resource_type: str) -> str | None:
    """The collection of a type's rows; None for most types, which have none."""
    return next((name for (each, _), name in ROWS.items() if each == resource_type), None)


def index_models() -> list[IndexModel]:
    """The index of a collection of rows; the unique one on `_id` finds the rows of a Group."""
    return [IndexModel([("_id.m", ASCENDING), ("_id.g", ASCENDING)], name="members")]


@dataclass(frozen=True, slots=True)
class RowChange:
    """What a change of a resource does to its rows; `is_new` says that there are none yet, `is_end` that all go."""

    collection: str
    id: str
    gone: Sequence[str]
    new: Sequence[str]
    is_new: bool
    is_end: bool


def row_change(
    collection: str, resource_id: str, before: Fields | None, after: Fields | None
) -> RowChange:
    """The difference between the fields of a resource before and after a change; None where it does not exist."""
    old = dict.fromkeys(before.get("rows", ()) if before else ())
    new = dict.fromkeys(after.get("rows", ()) if after else ())
    return RowChange(
        collection,
        resource_id,
        [each for each in old if each not in new],
        [each for each in new if each not in old],
        before is None,
        after is None,
    )


def all_of(group: str) -> Filter:
    """The filter on all rows of one resource."""
    return _between(group, "", "\U0010ffff")


def _between(group: str, low: str, high: str) -> Filter:
    return {"_id": {"$gte": {"g": group, "m": low}, "$lt": {"g": group, "m": high}}}


async def terms_of(
    store: Store, collection: str, groups: Sequence[str], prefixes: Sequence[str], limit: int
) -> list[str] | None:
    """The terms in the rows of these resources that begin with one of the prefixes; None for more than `limit`."""
    if not groups:
        return []
    if len(groups) > _MOST_GROUPS:
        return None
    ways = [_between(group, each, successor(each)) for group in groups for each in prefixes]
    # Counting costs half of reading, and large cohorts are what rows are for.
    if await store.count(collection, {"$or": ways}, limit + 1) > limit:
        return None
    rows = await store.find(collection, {"$or": ways}, projection={"_id": 1})
    return [row["_id"]["m"] for row in rows]


async def first_terms(
    store: Store, collection: str, group: str, prefix: str, limit: int
) -> list[str]:
    """The first terms in the rows of one resource that begin with the prefix, at most `limit`."""
    where = _between(group, prefix, successor(prefix))
    rows = await store.find(collection, where, sort=[("_id", ASCENDING)], limit=limit)
    return [row["_id"]["m"] for row in rows]


async def holders(store: Store, collection: str, terms: Sequence[str], limit: int) -> list[str]:
    """The ids of resources that have any of the terms in their rows, from at most `limit` rows."""
    rows = await store.find(collection, {"_id.m": {"$in": list(terms)}}, limit=limit)
    return list(dict.fromkeys(row["_id"]["g"] for row in rows))


async def terms_among(
    store: Store, collection: str, link: Link, terms: Sequence[str], limits: Limits
) -> list[str]:
    """Those of the terms that stand in the rows of a resource of the link."""
    where: Filter = {"_id.m": {"$in": list(terms)}}
    if isinstance(link.condition, Ids):
        keys = [{"g": group, "m": term} for group in link.condition.ids for term in terms]
        where = {"_id": {"$in": keys}} if len(keys) <= limits.found else where
    rows = await store.find(collection, where, limit=limits.examined + 1, projection={"_id": 1})
    if len(rows) > limits.examined:
        raise TooMany
    groups = await link.among(store, list({row["_id"]["g"] for row in rows}))
    return [row["_id"]["m"] for row in rows if row["_id"]["g"] in groups]


@dataclass(frozen=True, slots=True)
class Found:
    """What a lookup found for MongoDB; in memory the resource's own fields still tell."""

    condition: Condition
    original: Condition

    def filter(self) -> Filter:
        return self.condition.filter()

    def matches(self, fields: Fields) -> bool:
        return self.original.matches(fields)


@dataclass(frozen=True, slots=True)
class Aside(Lookup):
    """A condition on terms that are kept in rows. In memory they are the field `rows` of `extract`."""

    collection: str
    terms: Terms
    limits: Limits

    @property
    def needs(self) -> dict[str, int]:
        return {"_id": 1}

    def _filter(self) -> Filter:
        ways: list[Filter] = [{"_id.m": {"$in": list(self.terms.equal)}}]
        ways += [{"_id.m": {"$gte": each, "$lt": successor(each)}} for each in self.terms.prefixes]
        return ways[0] if len(ways) == 1 else {"$or": ways}

    async def find(self, store: Store) -> Condition:
        rows = await store.find(
            self.collection, self._filter(), limit=self.limits.found + 1, projection={"_id": 1}
        )
        if len(rows) > self.limits.found:
            raise TooMany
        return Found(Ids(tuple({row["_id"]["g"] for row in rows})), self)

    async def test(self, store: Store, rows: Sequence[Document]) -> set[str]:
        groups = [row["_id"] for row in rows]
        where = {"$and": [self._filter(), {"_id.g": {"$in": groups}}]}
        found = await store.find(
            self.collection, where, limit=self.limits.examined + 1, projection={"_id": 1}
        )
        if len(found) > self.limits.examined:
            raise TooMany
        return {row["_id"]["g"] for row in found}

    def matches(self, fields: Fields) -> bool:
        return self.terms.matches({"terms": fields.get("rows", ())})
