"""The members of a Group, kept in rows of their own beside it: a cohort may have 100,000 of them.

As terms of one document they would be 100,000 index entries to write with every change of the Group, and more than a
document may hold. A row is `{_id: {g: id of the Group, m: term}, when?}`, where the term is what would stand in `terms`
(`member=Patient/1`, terms.py). The store writes the difference in the transaction of the Group's change.

Searches find every member, as FHIR has it. `when` says who is one at a moment (app/attribution): pairs of the first and
the last instant, None where that end is open; a row without it holds always, an empty one never. The field `roster` of
a Group has what else attribution needs of it, so that nobody reads 10,000 members to look for one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pymongo import ASCENDING, IndexModel

from app.fhir.codes import GROUP_CHARACTERISTIC, GROUP_KIND, PCP, PCP_PANEL
from app.search import spans
from app.search.chain_step import ChainStep
from app.search.deferred_condition import DeferredCondition, Document, TooMany
from app.search.parameter import Condition, Fields, Filter, SearchLimits
from app.search.parameters.reference import VALUES
from app.search.parameters.special import Ids
from app.search.spans import Span
from app.search.terms import Terms, escape, shorten, successor

if TYPE_CHECKING:
    from app.records.reader import Reader

# Search parameters whose terms are kept in a collection of rows, by type and code.
ROWS: Mapping[tuple[str, str], str] = {("Group", "member"): "group_members"}
# The elements by which a member is one only at times.
_SOMETIMES = frozenset({"period", "inactive"})
# Beyond this many Groups their rows are asked for the candidates instead of being read.
_MOST_GROUPS = 100


def collection_of(resource_type: str) -> str | None:
    """The collection of a type's rows; None for most types, which have none."""
    return next((name for (each, _), name in ROWS.items() if each == resource_type), None)


def take_aside(fields: dict[str, Any]) -> None:
    """Leave out of `extract`'s fields what is kept in rows."""
    fields.pop("rows", None)
    fields.pop("whens", None)


def add_whens(members: Sequence[Mapping[str, Any] | None], fields: dict[str, Any]) -> None:
    """`whens`: the terms of members that are not always in it, each with the spans in which they are."""
    if not any(member and _SOMETIMES & member.keys() for member in members):
        return
    found: dict[str, list[Span]] = {}
    for member in members:
        if member and "entity" in member:
            span = None if member.get("inactive") is True else spans.of(member.get("period"))
            for ending in VALUES["Reference"](member["entity"]):
                own = found.setdefault(f"member{ending}", [])
                if span is not None:
                    own.append(span)
    whens = {term: own for term, own in found.items() if spans.ALWAYS not in own}
    if whens:
        fields["whens"] = whens


def aside(group: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `extract`'s fields that is kept in rows, at a third of the cost of them all."""
    fields: dict[str, Any] = {}
    members = group.get("member", ())
    entities = [member["entity"] for member in members if member and "entity" in member]
    fields["rows"] = [f"member{end}" for each in entities for end in VALUES["Reference"](each)]
    add_whens(members, fields)
    return fields


def add_roster(group: Mapping[str, Any], fields: dict[str, Any]) -> None:
    """`roster`: whether the Group is one of real persons in use, and whose panel it is, with the spans of that."""
    live = (
        group.get("type") == "person"
        and group.get("actual") is True
        and group.get("active") is not False
    )
    fields["roster"] = {"live": live, "pcp": _panel_of(group) if live else []}


def _panel_of(group: Mapping[str, Any]) -> list[list[Any]]:
    """`[reference, first, last]` of each PCP that a panel names; empty for other Groups."""
    if not _has_code(group.get("code"), GROUP_KIND, PCP_PANEL):
        return []
    named = [
        [reference, *spans.of(each.get("period"))]
        for each in group.get("characteristic", ())
        if _has_code(each.get("code"), GROUP_CHARACTERISTIC, PCP) and each.get("exclude") is False
        if (reference := each.get("valueReference", {}).get("reference"))
    ]
    manager = group.get("managingEntity", {}).get("reference")
    return named or ([[manager, None, None]] if manager else [])


def _has_code(concept: Mapping[str, Any] | None, system: str, code: str) -> bool:
    return any(
        coding.get("system") == system and coding.get("code") == code
        for coding in (concept or {}).get("coding", ())
    )


def index_models() -> list[IndexModel]:
    """The index of a collection of rows; the unique one on `_id` finds the rows of a Group."""
    return [IndexModel([("_id.m", ASCENDING), ("_id.g", ASCENDING)], name="members")]


@dataclass(frozen=True, slots=True)
class RowChange:
    """What a change of a resource does to its rows; `is_new` says that there are none yet, `is_end` that all go.

    `new` are whole rows, of terms that were not there or that hold at other times now.
    """

    collection: str
    id: str
    gone: Sequence[str]
    new: Sequence[Document]
    is_new: bool
    is_end: bool


def row_change(
    collection: str, resource_id: str, before: Fields | None, after: Fields | None
) -> RowChange:
    """The difference between the fields of a resource before and after a change; None where it does not exist."""
    old, new = _rows(before), _rows(after)
    return RowChange(
        collection,
        resource_id,
        [term for term in old if term not in new],
        [
            row_document(resource_id, term, when)
            for term, when in new.items()
            if term not in old or old[term] != when
        ],
        before is None,
        after is None,
    )


def row_document(group: str, term: str, when: Sequence[Span] | None) -> Document:
    """A row as it is stored; `when` is None for a member that always is one."""
    row: Document = {"_id": {"g": group, "m": term}}
    return row if when is None else {**row, "when": [list(span) for span in when]}


def _rows(fields: Fields | None) -> dict[str, Sequence[Span] | None]:
    if fields is None:
        return {}
    whens = fields.get("whens", {})
    return {term: whens.get(term) for term in fields.get("rows", ())}


async def memberships(
    store: Reader, collection: str, terms: Sequence[str]
) -> dict[str, list[Span]]:
    """The resources that have any of the terms in their rows, each with the spans in which they do."""
    return memberships_in(await store.find(collection, {"_id.m": {"$in": list(terms)}}))


def memberships_in(rows: Sequence[Document]) -> dict[str, list[Span]]:
    """The resources whose rows these are, of one member, each with the spans in which it is one."""
    found: dict[str, list[Span]] = {}
    for row in rows:
        when = [(low, high) for low, high in row["when"]] if "when" in row else [spans.ALWAYS]
        found.setdefault(row["_id"]["g"], []).extend(when)
    return found


def all_of(group: str) -> Filter:
    """The filter on all rows of one resource."""
    return _between(group, "", "\U0010ffff")


def _between(group: str, low: str, high: str) -> Filter:
    return {"_id": {"$gte": {"g": group, "m": low}, "$lt": {"g": group, "m": high}}}


async def terms_of(
    store: Reader, collection: str, groups: Sequence[str], prefixes: Sequence[str], limit: int
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
    store: Reader, collection: str, group: str, prefix: str, limit: int
) -> list[str]:
    """The first terms in the rows of one resource that begin with the prefix, at most `limit`."""
    where = _between(group, prefix, successor(prefix))
    rows = await store.find(collection, where, sort=[("_id", ASCENDING)], limit=limit)
    return [row["_id"]["m"] for row in rows]


async def holders(store: Reader, collection: str, terms: Sequence[str], limit: int) -> list[str]:
    """The ids of resources that have any of the terms in their rows, from at most `limit` rows."""
    rows = await store.find(collection, {"_id.m": {"$in": list(terms)}}, limit=limit)
    return list(dict.fromkeys(row["_id"]["g"] for row in rows))


async def terms_among(
    store: Reader, collection: str, link: ChainStep, terms: Sequence[str], limits: SearchLimits
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
class SideRows(DeferredCondition):
    """A condition on terms that are kept in rows. In memory they are the field `rows` of `extract`."""

    collection: str
    terms: Terms
    limits: SearchLimits

    @property
    def needs(self) -> dict[str, int]:
        return {"_id": 1}

    def _filter(self) -> Filter:
        ways: list[Filter] = [{"_id.m": {"$in": list(self.terms.equal)}}]
        ways += [{"_id.m": {"$gte": each, "$lt": successor(each)}} for each in self.terms.prefixes]
        return ways[0] if len(ways) == 1 else {"$or": ways}

    async def find(self, store: Reader) -> Condition:
        rows = await store.find(
            self.collection, self._filter(), limit=self.limits.found + 1, projection={"_id": 1}
        )
        if len(rows) > self.limits.found:
            raise TooMany
        return Found(Ids(tuple({row["_id"]["g"] for row in rows})), self)

    async def test(self, store: Reader, rows: Sequence[Document]) -> set[str]:
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


# For whom participants of a CareTeam act: terms of the server's own, since R4 has no search parameter for it.
#
# https://hl7.org/fhir/R4/careteam-definitions.html#CareTeam.participant.onBehalfOf

_KEY = "_behalf"


def add(participants: Sequence[Mapping[str, Any] | None], fields: dict[str, Any]) -> None:
    """The terms of a team's participants, among those of its search parameters."""
    for participant in participants:
        if participant and "onBehalfOf" in participant:
            endings = VALUES["Reference"](participant["onBehalfOf"])
            fields["terms"] += [f"{_KEY}{ending}" for ending in endings or ()]


def acting_for(organizations: Iterable[str], base_url: str) -> list[str]:
    """What the terms of a team hold whose participant acts for an organization (`Organization/o1`): one of these."""
    bases = ("", f"{base_url}/") if base_url else ("",)
    return [f"{_KEY}={shorten(escape(base + each))}" for each in organizations for base in bases]
