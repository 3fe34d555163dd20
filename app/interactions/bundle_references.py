"""References between the entries of a batch or transaction, and to the match of a search.

https://hl7.org/fhir/R4/http.html#trules; what each of them means says app/fhir/entry_references.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from app.context import Context
from app.errors import FhirError, Issue, Unprocessable
from app.fhir import json as fhir_json
from app.fhir.entry_references import EntryReferences, NamedEntry
from app.fhir.json import Resource
from app.fhir.links import FoundReferences, links_in, references_in, rewrite
from app.interactions.bundle_entries import BundleEntry
from app.interactions.criteria_ids import has_filter, ids_in
from app.interactions.matches import strictly_read
from app.interactions.plan import Apply
from app.interactions.references import is_conditional, not_one
from app.records.versions import with_meta
from app.runtime import pace
from app.search import query, resolution
from app.search.extract import extract

_NOT_OUR_ID = (
    "The criteria name a record by an id of another server, or of an entry of the Bundle: "
    "name it by an identifier, or by its id here in an entry that is not another server's"
)
_MAY_NAME_ANY = "A _filter may name records by any id: an entry that is not this server's has none in its criteria"
_NOT_IN_A_BATCH = "The reference is to an entry whose id a batch does not know before it is written: send a transaction"
_LED_TO_BY_NOTHING = "The reference is to an entry that writes no resource"


def of_transaction(context: Context, entries: Sequence[BundleEntry]) -> EntryReferences:
    """What references mean in a transaction whose entries have their targets."""
    named = [
        NamedEntry.of(
            entry.index,
            entry.full_url,
            entry.resource if entry.method in ("POST", "PUT") else None,
            entry.target.reference if entry.target and entry.method != "DELETE" else None,
        )
        for entry in entries
    ]
    return EntryReferences(named, [context.base_url], _LED_TO_BY_NOTHING)


def of_requests(
    context: Context, raw: Sequence[Any], entries: Iterable[BundleEntry]
) -> EntryReferences:
    """What references mean by the requests alone: only ids that are given can be told.

    That is all a batch knows, whose entries do not wait for each other, https://hl7.org/fhir/R4/http.html#brules. `raw`
    has those that cannot be run, too: they have names all the same.
    """
    targets = {
        entry.index: "/".join(entry.segments)
        for entry in entries
        if entry.method in ("PUT", "PATCH") and not entry.query and len(entry.segments) == 2
    }
    named = [
        NamedEntry.of(index, each.get("fullUrl"), each.get("resource"), targets.get(index))
        for index, each in enumerate(raw)
        if isinstance(each, dict)
    ]
    return EntryReferences(named, [context.base_url], _NOT_IN_A_BATCH)


def check_criteria(names: EntryReferences, entry: BundleEntry) -> None:
    """Raises Unprocessable where a conditional write names a record by an id that is not known to be this server's.

    Its criteria are a search here: the id of another server, or of an entry that is still to be created, would find
    somebody else's records.
    """
    criteria, element = entry.query, "url"
    if entry.method == "POST":
        criteria, element = entry.preconditions.if_none_exist or "", "ifNoneExist"
    if criteria and entry.segments and entry.method in ("POST", "PUT", "PATCH", "DELETE"):
        place = f"{entry.where}.request.{element}"
        _check_ids(names, entry.index, entry.segments[0], criteria, place)


def _check_ids(
    names: EntryReferences, index: int, resource_type: str, criteria: str, place: str
) -> None:
    if not names.is_ours(index) and has_filter(resource_type, criteria):
        raise Unprocessable(_MAY_NAME_ANY, code="not-supported", expression=place)
    for reference in ids_in(resource_type, criteria):
        meaning = names.meaning(index, reference)
        is_itself = meaning.entry == index and names.is_ours(index)
        if meaning.kind != "ours" and not is_itself and meaning.reference != reference:
            raise Unprocessable(_NOT_OUR_ID, code="value", expression=place)


def applied(apply: Apply, names: EntryReferences, entry: int) -> Apply:
    """A patch with what it adds to the record read as said in the Bundle; what was there is this server's already."""

    async def patched(text: str) -> Resource:
        result = await apply(text)
        known = await pace.aside(len(text), lambda: links_in(fhir_json.decode_stored(text)))
        return await pace.aside(len(text), read, names, entry, result, known)

    return patched


def read(
    names: EntryReferences, entry: int, resource: Resource, known: Collection[str] = frozenset()
) -> Resource:
    """The resource of an entry with its references read as said in the Bundle; `known` are this server's already.

    The conditional ones are still to be resolved, as searches here. Raises Unprocessable for a reference that is
    refused, and for a conditional one that names a record by an id that is not known to be this server's.
    """
    body, _ = _read(names, entry, resource, known)
    return body


def _read(
    names: EntryReferences, entry: int, resource: Resource, known: Collection[str] = frozenset()
) -> tuple[Resource, list[str]]:
    """The resource as `read` has it, and its conditional references that are not known."""
    body = names.rewritten(entry, resource, known)
    texts = (element["reference"] for element in references_in(body))
    conditional = [
        each for each in texts if "?" in each and is_conditional(each) and each not in known
    ]
    for reference in conditional:
        resource_type, _, criteria = reference.partition("?")
        place = f"Bundle.entry[{entry}].resource"
        _check_ids(names, entry, resource_type, criteria, place)
    return body, conditional


async def resolve(
    context: Context, writes: Sequence[BundleEntry], names: EntryReferences
) -> dict[int, Resource]:
    """The resources to create and update, by entry index, with all references as they are to be stored.

    Raises Unprocessable for a reference that is refused, PreconditionFailed for a conditional reference that does not
    find exactly one resource.
    """
    bodies: dict[int, Resource] = {}
    asked: dict[str, int] = {}
    async for entry in pace.paced(writes):
        if entry.method in ("POST", "PUT") and isinstance(entry.resource, dict):
            bodies[entry.index], conditional = _read(names, entry.index, entry.resource)
            for reference in conditional:
                asked.setdefault(reference, entry.index)
    if not asked:
        return bodies
    now = context.services.clock.now()
    found = await asyncio.gather(
        *(_located(context, text, index, writes, bodies, now) for text, index in asked.items())
    )
    exchange = FoundReferences(dict(zip(asked, found, strict=True)))
    return {index: rewrite(body, exchange) async for index, body in pace.paced(bodies.items())}


async def _located(
    context: Context,
    criteria: str,
    index: int,
    writes: Sequence[BundleEntry],
    bodies: Mapping[int, Resource],
    now: datetime,
) -> str:
    try:
        return await _find(context, criteria, writes, bodies, now)
    except FhirError as error:
        place = f"Bundle.entry[{index}].resource"
        error.issues = tuple(
            Issue(each.code, each.diagnostics, (place,), each.severity) for each in error.issues
        )
        raise


async def _find(
    context: Context,
    criteria: str,
    writes: Sequence[BundleEntry],
    bodies: Mapping[int, Resource],
    now: datetime,
) -> str:
    """The reference to the one resource that matches, among stored ones and those that this transaction writes."""
    resource_type, _, text = criteria.partition("?")
    parsed = strictly_read(context, resource_type, query.criteria(text))
    parsed = await resolution.resolve(context.store, parsed)
    written = {
        entry.target.reference for entry in writes if entry.target and not entry.target.settled
    }
    matches = {
        entry.target.reference
        for entry in writes
        if entry.target
        and entry.target.type == resource_type
        and entry.index in bodies
        and parsed.matches(
            extract(resource_type, with_meta(bodies[entry.index], entry.target.id, 1, now))
        )
    }
    stored = await context.store.search(resource_type, parsed.filter, len(written) + 2)
    matches |= {match.reference for match in stored if match.reference not in written}
    if len(matches) != 1:
        raise not_one(resource_type, several=bool(matches))
    return matches.pop()
