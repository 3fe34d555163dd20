"""$everything: a patient's whole compartment, and the resources that it refers to.

https://hl7.org/fhir/R4/patient-operation-everything.html

Matches come patient by patient and type by type, in pages; each page also brings the resources that its own entries
refer to outside of any patient's compartment, as includes, with the Binaries and documents that they attach by address.
Other patients' resources are never included.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

from app.context import Context
from app.errors import BadRequest, Issue
from app.fhir import shape
from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.instants import days_in, instant_in
from app.interactions import interactions, references
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.records.versions import ResourceVersion
from app.runtime import pace
from app.search import compartment, left_out, search_parameters
from app.search.bundle_writer import found_entries, outcome_entry, write_bundle
from app.search.cursor import Position
from app.search.page_bytes import Measure, fitting, is_full
from app.search.page_links import Walk
from app.search.parameter import AnyOf, Filter, Not, SearchScope
from app.search.resolution import settled

_CUT = Issue(
    "too-costly",
    "What the first match attaches does not fit on one page: read the others by the addresses in it",
    severity="warning",
)


@dataclass(frozen=True, slots=True)
class _Request:
    """The parsed call: `after` is (patient, type, id) of the last match before this page."""

    types: Sequence[str]
    count: int
    since: datetime | None
    care: tuple[str | None, str | None]
    after: tuple[str, str, str] | None


@cache
def _compartment_types() -> tuple[str, ...]:
    """Patient first, then the types of its compartment that are served here."""
    return ("Patient", *(name for name in compartment.types("Patient") if name != "Patient"))


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """A searchset with the patient, the patient's resources and the resources that they refer to."""
    if invocation.resource_id is not None:
        await interactions.read(context, "Patient", invocation.resource_id)  # 404 and 410
    place = f"Patient/{invocation.resource_id}" if invocation.resource_id else "Patient"
    given = [(name, str(v)) for name, values in invocation.arguments.items() for v in values]
    walk = await context.walk(f"{place}/$everything", [*given, *invocation.given.shaping])
    request = _read(context, walk)
    page: list[tuple[str, ResourceVersion]] = []
    measure = Measure()
    async for found in _matches(context, invocation.resource_id, request):
        page.append(found)
        if measure.passes(len(found[1].text)) or len(page) > request.count:
            break
    shown = page[: min(request.count, fitting(len(stored.text) for _, stored in page))]
    attached = await _attached(context, [match for _, match in shown])
    shown = shown[: attached.matches]
    following = None
    if len(page) > len(shown) and shown:
        patient, last = shown[-1]
        following = Position((patient, last.type, last.id))
    stored = [match for _, match in shown]
    included = {each.reference: each for each in await _referred_to(context, stored)}
    included |= {each.reference: each for each in attached.found}
    entries = found_entries(context.base_url, stored)
    entries += found_entries(context.base_url, included.values(), "include")
    rest = [pair for pair in invocation.given.query if pair[0] not in invocation.arguments]
    issues = left_out.without(rest, context.settings)[1] + [_CUT] * attached.is_cut
    if issues:
        entries += outcome_entry(issues)
    links = await walk.links(walk.asked, following)
    text = write_bundle({"type": "searchset"}, links, entries)
    return InteractionResult(200, text=text, shape=shape.read(walk.asked))


def _read(context: Context, walk: Walk) -> _Request:
    types = [text for name, text in walk.asked if name == "_type"]
    for name in types:
        if name not in SUPPORTED_TYPES:
            raise BadRequest("_type names a type that is not served", expression="_type")
    once = dict(walk.asked)
    count = once.get("_count")
    since, start, end = (once.get(name) for name in ("_since", "start", "end"))
    for name, bound in (("start", start), ("end", end)):
        if bound is not None:
            days_in(bound, name)
    if count is not None and int(count) < 0:
        raise BadRequest("_count must be a whole number", code="value", expression="_count")
    after = walk.begin.of(3) if walk.begin is not None else None
    maximum = context.settings.max_count
    return _Request(
        types or _compartment_types(),
        maximum if count is None else max(1, min(int(count), maximum)),
        instant_in(since, "_since") if since is not None else None,
        (start, end),
        (str(after[0]), str(after[1]), str(after[2])) if after else None,
    )


async def _matches(
    context: Context, patient: str | None, request: _Request
) -> AsyncIterator[tuple[str, ResourceVersion]]:
    """The matches after `request.after`, each with the patient it was found for."""
    begin = request.after
    async for each in _patients(context, patient, begin[0] if begin else ""):
        for resource_type in _compartment_types():
            if resource_type not in request.types:
                continue
            last = ""
            if begin and each == begin[0]:
                position = _compartment_types().index(resource_type)
                reached = _compartment_types().index(begin[1])
                if position < reached:
                    continue
                last = begin[2] if position == reached else ""
            async for found in _of_type(context, each, resource_type, request, last):
                yield each, found


async def _patients(context: Context, patient: str | None, first: str) -> AsyncIterator[str]:
    """One patient, or all of them from `first` on."""
    if patient is not None:
        yield patient
        return
    bound = {"$gte": first}
    while True:
        rows = await context.store.find(
            "Patient",
            {"terms": "*", "_id": bound},
            sort=[("_id", 1)],
            limit=100,
            projection={"_id": 1},
        )
        for row in rows:
            yield row["_id"]
        if len(rows) < 100:
            return
        bound = {"$gt": rows[-1]["_id"]}


async def _of_type(
    context: Context, patient: str, resource_type: str, request: _Request, last: str
) -> AsyncIterator[ResourceVersion]:
    conditions = [await _in_compartment(context, patient, resource_type)]
    if request.since is not None:
        conditions.append({"at": {"$gt": request.since}})
    conditions += _in_care_dates(context, resource_type, request.care)
    while True:
        found = await context.store.search(
            resource_type,
            {"$and": [*conditions, {"_id": {"$gt": last}}]},
            request.count + 1,
            sort=[("_id", 1)],
            for_page=True,
        )
        for stored in found:
            yield stored
        if len(found) <= request.count and not is_full(len(stored.text) for stored in found):
            return
        last = found[-1].id


async def _in_compartment(context: Context, patient: str, resource_type: str) -> Filter:
    if resource_type == "Patient":
        return {"_id": patient, "terms": "*"}
    scope = SearchScope(context.base_url, datetime.now(UTC))
    membership = compartment.membership("Patient", patient, resource_type, scope)
    return (await settled(context.store, membership)).filter()


def _in_care_dates(
    context: Context, resource_type: str, care: tuple[str | None, str | None]
) -> list[Filter]:
    """Resources whose clinical date meets the range, and those that have none."""
    clinical = next(
        (p for p in search_parameters.parameters(resource_type).values() if p.is_clinical), None
    )
    if clinical is None or resource_type == "Patient":
        return []
    scope = SearchScope(context.base_url, datetime.now(UTC))
    undated = Not(search_parameters.present(clinical))
    return [
        AnyOf(
            (undated, search_parameters.condition(clinical, None, [f"{prefix}{bound}"], scope))
        ).filter()
        for prefix, bound in zip(("ge", "le"), care, strict=True)
        if bound is not None
    ]


async def _referred_to(
    context: Context, matches: Sequence[ResourceVersion]
) -> list[ResourceVersion]:
    """The resources that the page refers to, without types of a patient's compartment."""
    present = {stored.reference for stored in matches}
    targets: set[tuple[str, str]] = set()
    for stored in matches:
        resource = await stored.resource_aside()
        own = await pace.aside(len(stored.text), references.targets_in, resource)
        targets |= {
            target
            for target in own
            if target[0] not in _compartment_types() and "/".join(target) not in present
        }
    found = await context.store.read_many(sorted(targets))
    return [stored for _, stored in sorted(found.items()) if not stored.deleted]


@dataclass(frozen=True, slots=True)
class _Attached:
    """What the first `matches` of a page attach by address; not all of it where it `is_cut`."""

    matches: int
    found: list[ResourceVersion]
    is_cut: bool = False


async def _attached(context: Context, matches: Sequence[ResourceVersion]) -> _Attached:
    """What is attached, of as many matches as fit on a page with all of it, one at least. Read one after another."""
    measure = Measure()
    met: set[tuple[str, str]] = set()
    attached: list[ResourceVersion] = []
    for number, match in enumerate(matches):
        own: list[ResourceVersion] = []
        for target in sorted(await _attached_by(context, match) - met):
            met.add(target)
            stored = await context.store.read(*target)
            if stored is None or stored.deleted:
                continue
            if measure.passes(len(stored.text)):
                if number:
                    return _Attached(number, attached)
                return _Attached(1, own, is_cut=True)
            own.append(stored)
        attached += own
    return _Attached(len(matches), attached)


async def _attached_by(context: Context, match: ResourceVersion) -> set[tuple[str, str]]:
    if not any(f"{name}/" in match.text for name in references.ATTACHED):
        return set()
    resource = await match.resource_aside()
    return await pace.aside(len(match.text), references.attached_in, resource, context.base_url)
