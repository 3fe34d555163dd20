"""Overlapping identities in a transaction: entries about one resource, or about what later nobody could tell apart.

https://hl7.org/fhir/R4/http.html#trules: such a transaction fails as a whole. Conditions are judged against what the
other entries write, too: else two of them would both find nothing, and make two resources that fit every later
condition. A conditional create that is repeated with equal content is one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from app.errors import BadRequest, Unprocessable
from app.fhir.json import Resource
from app.interactions.bundle_entries import BundleEntry
from app.interactions.plan import WritePlan
from app.records.versions import Change, with_meta
from app.resources import type_registry
from app.runtime import pace
from app.search.extract import extract
from app.search.query import Query
from app.search.terms import Terms

# Of conditions that name no value which what they find must have, each is judged against each write of its type.
_MOST_BROAD = 50


def required_terms(condition: Query) -> Collection[str] | None:
    """The terms of which what meets a condition must have one; None for one that names no such value."""
    for each in condition.conditions:
        if isinstance(each, Terms) and not each.prefixes and not each.contained:
            return each.equal
    return None


def refuse_broad(before: int, entry: BundleEntry) -> int:
    """How many conditions, this entry's included, name no value that what they find must have; `before` were before it.

    Raises Unprocessable (too-costly) for more than _MOST_BROAD.
    """
    condition = entry.target.condition if entry.target is not None else None
    if condition is None or required_terms(condition) is not None:
        return before
    if before == _MOST_BROAD:
        raise Unprocessable(
            f"More than {_MOST_BROAD} conditions of the transaction name no value that what they find must have, as "
            "an identifier; name one, or send the entries in several transactions",
            code="too-costly",
            expression=entry.where,
        )
    return before + 1


def join_repeated(writes: Iterable[BundleEntry]) -> None:
    """Give a conditional create that repeats another one's criteria the same target."""
    first: dict[str, BundleEntry] = {}
    for entry in writes:
        entry.repeats = None
        if entry.method == "POST" and entry.target and entry.target.guards:
            other = first.setdefault(entry.target.guards[0].key, entry)
            if other is not entry:
                entry.target, entry.repeats = other.target, other


def refuse_same_targets(writes: Iterable[BundleEntry]) -> None:
    """Raises BadRequest where two entries are about one resource, by its id or by the same criteria."""
    by_target: dict[str, BundleEntry] = {}
    by_criteria: dict[str, BundleEntry] = {}
    for entry in writes:
        if entry.target is None or entry.repeats is not None:
            continue
        other = by_target.setdefault(entry.target.reference, entry)
        if other is not entry and not (_is_settled(entry) and _is_settled(other)):
            _refuse(other, entry)
        if entry.target.condition is not None:
            other = by_criteria.setdefault(entry.target.guards[0].key, entry)
            if other is not entry:
                _refuse(other, entry)


def refuse_unequal(writes: Iterable[BundleEntry], bodies: Mapping[int, Resource]) -> None:
    """Raises BadRequest where the content of a repeated conditional create is not the same and would be stored."""
    for entry in writes:
        other = entry.repeats
        if other is None or _is_settled(entry):
            continue
        if _content(bodies.get(entry.index)) != _content(bodies.get(other.index)):
            _refuse(other, entry)


def refuse_two_messages(writes: Iterable[BundleEntry]) -> None:
    """Raises BadRequest for two messages of one visit: which is the later, a transaction has no order to tell by."""
    first: dict[tuple[str, str], BundleEntry] = {}
    for entry in writes:
        body = entry.resource
        if entry.repeats is not None or not isinstance(body, dict) or "partOf" in body:
            continue
        if entry.method in ("POST", "PUT") and type_registry.is_message(body):
            for identifier in type_registry.identifiers_of(body):
                other = first.setdefault(identifier, entry)
                if other is not entry:
                    _refuse(other, entry)


async def refuse_found_twice(
    writes: Sequence[BundleEntry], plans: Sequence[WritePlan], now: datetime
) -> None:
    """Raises BadRequest where what one entry writes meets the condition by which another one names its resource."""
    asking = _Asking(writes)
    async for entry, plan in pace.paced(zip(writes, plans, strict=True)):
        change = plan.change
        if change is None or change.resource is None or change.type not in asking.types:
            continue
        fields = extract(change.type, with_meta(change.resource, change.id, 1, now))
        for other in asking.candidates(change, fields):
            target = other.target
            if (
                target is not None
                and target.condition is not None
                and target.reference != change.key
                and target.condition.matches(fields)
            ):
                _refuse(*sorted((other, entry), key=lambda each: each.index))


class _Asking:
    """The entries with a condition, by a term that what it finds must have: then each write asks for few of them."""

    def __init__(self, writes: Iterable[BundleEntry]) -> None:
        self._by_term: dict[tuple[str, str], list[BundleEntry]] = {}
        self._without_term: dict[str, list[BundleEntry]] = {}
        self.types: set[str] = set()
        for entry in writes:
            if entry.method == "DELETE" or entry.target is None or entry.target.condition is None:
                continue
            resource_type = entry.target.type
            self.types.add(resource_type)
            required = required_terms(entry.target.condition)
            if required is None:
                self._without_term.setdefault(resource_type, []).append(entry)
            for term in required or ():
                self._by_term.setdefault((resource_type, term), []).append(entry)

    def candidates(self, change: Change, fields: Mapping[str, Any]) -> Iterator[BundleEntry]:
        """The entries whose condition what a change writes may meet."""
        yield from self._without_term.get(change.type, ())
        for term in fields["terms"]:
            yield from self._by_term.get((change.type, term), ())


def _refuse(one: BundleEntry, other: BundleEntry) -> NoReturn:
    raise BadRequest(
        f"{other.where} and {one.where} change the same resource",
        code="invalid",
        expression=(one.where, other.where),
    )


def _is_settled(entry: BundleEntry) -> bool:
    return entry.target is not None and entry.target.settled is not None


def _content(body: Resource | None) -> Resource | None:
    """What of a create's content is stored: its id is the server's."""
    return body and {key: value for key, value in body.items() if key != "id"}
