"""The reading door of the audit: read and search of AuditEvent, for the privacy office alone.

    GET AuditEvent/<id>
    GET AuditEvent?patient= &date= &agent= &entity= &entity:identifier= &outcome= &action= &type= &subtype= &_count=

Whatever else is asked of the type is refused: nobody writes here but the services.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import itemgetter

from pymongo import DESCENDING
from starlette.requests import Request

from app.api import exchange
from app.audit.balp import KINDS, audit_event
from app.audit.log import COLLECTION
from app.authentication.caller import UNLIMITED
from app.authentication.scopes import Action, Scopes
from app.context import Context
from app.errors import BadRequest, Forbidden, Issue, MethodNotAllowed, NotFound
from app.fhir import json as fhir_json, shape
from app.fhir.instants import END, Span
from app.fhir.json import Resource
from app.interactions.result import InteractionResult
from app.runtime.mongo import Document, Mongo
from app.search import left_out
from app.search.bundle_writer import found_entries, outcome_entry, write_bundle
from app.search.cursor import Position
from app.search.include import IncludedRow
from app.search.page_links import Pairs, Walk
from app.search.parameters import date
from app.search.ranges import split_prefix

_COUNT = "_count"
# Attempts to tell are on record when they have ended, which may take as long as their timeout.
_LATE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class AuditQuestion:
    """One parameter: the rows that may have an answer, and which of their entries are one."""

    rows: Document
    fits: Callable[[Document], bool]


@dataclass(frozen=True, slots=True)
class FoundEntry:
    """An entry by its place in its row, the first is 1."""

    row: Document
    number: int

    @property
    def entry(self) -> Document:
        entry: Document = self.row["each"][self.number - 1]
        return entry

    @property
    def id(self) -> str:
        return f"{self.row['_id']}.{self.number}"

    def event(self, base_url: str) -> Resource:
        return audit_event(self.id, self.entry, base_url)


async def matches(
    mongo: Mongo,
    asked: Sequence[AuditQuestion],
    after: tuple[datetime, str, int] | None = None,
) -> AsyncIterator[FoundEntry]:
    """The entries that answer all questions, what was recorded last first, from behind a place (at, row, number) on."""
    parts = [question.rows for question in asked if question.rows]
    if after is not None:
        parts.append({"at": {"$lte": after[0]}})
    rows = mongo.collection(COLLECTION).find({"$and": parts} if parts else {})
    async for row in _in_order(rows.sort("at", DESCENDING)):
        last = len(row["each"])
        if after is not None and row["at"] == after[0] and row["_id"] >= after[1]:
            last = after[2] - 1 if row["_id"] == after[1] else 0
        for number in range(last, 0, -1):
            if all(question.fits(row["each"][number - 1]) for question in asked):
                yield FoundEntry(row, number)


async def _in_order(rows: AsyncIterator[Document]) -> AsyncIterator[Document]:
    """Rows that come by time, those of one moment by their ids: an index that did this would be twice as large."""
    together: list[Document] = []
    async for row in rows:
        if together and row["at"] != together[0]["at"]:
            for each in sorted(together, key=itemgetter("_id"), reverse=True):
                yield each
            together = []
        together.append(row)
    for each in sorted(together, key=itemgetter("_id"), reverse=True):
        yield each


def handler(
    what: str, request: Request
) -> Callable[[Request, Context], Awaitable[InteractionResult]]:
    """Who answers an interaction with AuditEvent, which is no compartment, instead of the router's function."""
    return _refuse if "target" in request.path_params else _HANDLERS.get(what, _refuse)


async def _read(request: Request, context: Context) -> InteractionResult:
    _check(context, "r")
    shape.refuse_count(shape.read(request.query_params.multi_items()))
    row_id, _, number = request.path_params["id"].rpartition(".")
    row = await context.services.mongo.collection(COLLECTION).find_one({"_id": row_id})
    if row is None or not number.isdigit() or not 0 < int(number) <= len(row["each"]):
        raise NotFound("No such resource")
    found = FoundEntry(row, int(number))
    return InteractionResult(200, text=fhir_json.encode(found.event(context.base_url)))


async def _search(request: Request, context: Context) -> InteractionResult:
    _check(context, "s")
    posted = await exchange.read_form(request) if request.method == "POST" else []
    asked_for = [*request.query_params.multi_items(), *posted]
    parameters, warnings = left_out.without(asked_for, context.settings)
    walk = await context.walk("AuditEvent", parameters)
    shown = shape.read(walk.asked)
    shape.refuse_count(shown)
    asked = questions(walk.asked, context.base_url)
    count = _page_size(walk.asked, context)
    after = None
    if walk.begin is not None:
        at, id_ = walk.begin.of(2)
        row_id, _, number = id_.rpartition(".")
        after = (at, row_id, int(number))
    found: list[FoundEntry] = []
    async for each in matches(context.services.mongo, asked, after):
        found.append(each)
        if len(found) > count:
            break
    text = await _bundle(walk, found[:count], warnings, more=len(found) > count)
    return InteractionResult(200, text=text, shape=shown)


async def _refuse(request: Request, context: Context) -> InteractionResult:
    raise MethodNotAllowed(
        "The audit is read and searched; nobody writes it but the server",
        headers={"Allow": "GET, HEAD"},
    )


_HANDLERS = {"read": _read, "search-type": _search}


def _check(context: Context, action: Action) -> None:
    """Raises Forbidden for all but administrators with the scope for it, where callers are known."""
    if context.caller in UNLIMITED:
        return
    if context.caller.role != "administrator":
        raise Forbidden("The audit is for administrators")
    if not Scopes.of(context.caller.scopes).allows("AuditEvent", action):
        raise Forbidden(f"This needs the scope system/AuditEvent.{action}")


def questions(parameters: Pairs, base_url: str) -> list[AuditQuestion]:
    """What a search asks. Raises BadRequest for a parameter that this search has not."""
    asked: list[AuditQuestion] = []
    for name, value in parameters:
        if name == _COUNT or name in shape.NAMES:
            continue
        read = _PARAMETERS.get(name)
        if read is None:
            raise BadRequest(
                f"The audit is searched by {', '.join(sorted(_PARAMETERS))}",
                code="not-supported",
                expression=f"http.{name}" if name.isidentifier() else "http",
            )
        asked.append(read(value, base_url))
    return asked


def _keys(keys: Iterable[str]) -> AuditQuestion:
    wanted = frozenset(keys)
    return AuditQuestion(
        {"each.k": {"$in": sorted(wanted)}}, lambda entry: not wanted.isdisjoint(entry["k"])
    )


def _patient(value: str, base_url: str) -> AuditQuestion:
    ids = [_local(each, base_url).removeprefix("Patient/") for each in value.split(",")]
    return _keys(f"p:{each}" for each in ids)


def _agent(value: str, base_url: str) -> AuditQuestion:
    """A client by its id, or an organization by its reference."""
    names = [_local(each, base_url) for each in value.split(",")]
    return _keys(f"g:{n}" if n.startswith("Organization/") else f"c:{n}" for n in names)


def _entity(value: str, base_url: str) -> AuditQuestion:
    """A resource by its reference, with a version or without."""
    wanted: list[tuple[frozenset[str], int | None]] = []
    for each in value.split(","):
        place, _, version = _local(each, base_url).partition("/_history/")
        type_, _, id_ = place.partition("/")
        keys = {f"e:{place}"}
        if not version:
            keys |= {f"{kind}:{id_}" for kind, of in _NAMED_BY_ID.items() if of == type_}
        number = int(version) if version.isascii() and version.isdigit() else -1
        wanted.append((frozenset(keys), number if version else None))

    def fits(entry: Document) -> bool:
        return any(
            not keys.isdisjoint(entry["k"]) and version in (None, entry.get("v"))
            for keys, version in wanted
        )

    return AuditQuestion(
        {"each.k": {"$in": sorted(set().union(*(keys for keys, _ in wanted)))}}, fits
    )


def _named(value: str, base_url: str) -> AuditQuestion:
    """An export by its id, or a file of one by that and its own name."""
    return _keys(f"x:{each}" for each in value.split(","))


_NAMED_BY_ID = {"p": "Patient", "u": "Subscription"}


def _date(value: str, base_url: str) -> AuditQuestion:
    spans: list[Span] = []
    for each in value.split(","):
        prefix, text = split_prefix(each.replace(" ", "+"))
        try:
            spans.append(date.within(prefix, date.read(text)))
        except ValueError:
            raise BadRequest(
                "The value of 'date' must be a date such as 2026-05 or ge2026-05-14T10:00:00Z",
                code="value",
                expression="http.date",
            ) from None
    first, last = min(low for low, _ in spans), max(high for _, high in spans)
    # A row is written after what it tells of, soon where anybody waits for it.
    rows: Document = {"at": {"$gte": first}}
    if last < END - _LATE:
        rows["at"]["$lte"] = last + _LATE
    return AuditQuestion(rows, lambda entry: any(low <= entry["at"] <= high for low, high in spans))


def _outcome(value: str, base_url: str) -> AuditQuestion:
    wanted = {each.rpartition("|")[2] for each in value.split(",")}
    rows = {} if "0" in wanted else {"each.k": {"$in": sorted(f"o:{each}" for each in wanted)}}
    return AuditQuestion(rows, lambda entry: entry["o"] in wanted)


def _kinds(fits: Callable[[str, str], bool]) -> Callable[[str, str], AuditQuestion]:
    """A parameter that chooses among the kinds of entries; `fits(kind, token)`."""

    def read(value: str, base_url: str) -> AuditQuestion:
        kinds = {kind for kind in KINDS if any(fits(kind, token) for token in value.split(","))}
        return AuditQuestion(
            {"each.what": {"$in": sorted(kinds)}}, lambda entry: entry["what"] in kinds
        )

    return read


def _is(codings: Iterable[tuple[str, str, str]], token: str) -> bool:
    system, bar, code = token.rpartition("|")
    return any(code in ("", known[1]) and (not bar or system == known[0]) for known in codings)


_PARAMETERS: dict[str, Callable[[str, str], AuditQuestion]] = {
    "patient": _patient,
    "agent": _agent,
    "entity": _entity,
    "entity:identifier": _named,
    "date": _date,
    "outcome": _outcome,
    "type": _kinds(lambda kind, token: _is([KINDS[kind][0]], token)),
    "subtype": _kinds(lambda kind, token: _is(KINDS[kind][1], token)),
    "action": _kinds(lambda kind, token: KINDS[kind][2] == token.rpartition("|")[2]),
}


def _local(reference: str, base_url: str) -> str:
    return reference.removeprefix(f"{base_url}/")


def _page_size(parameters: Pairs, context: Context) -> int:
    text = next((value for name, value in parameters if name == _COUNT), None)
    if text is None:
        return context.settings.default_count
    if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
        raise BadRequest("Not a number from 1 on", code="value", expression="http._count")
    return min(int(text), context.settings.max_count)


async def _bundle(
    walk: Walk, found: list[FoundEntry], warnings: list[Issue], *, more: bool
) -> bytes:
    following = None
    if more:
        last = found[-1]
        following = Position((last.row["at"], last.id))
    events = [
        IncludedRow("AuditEvent", each.id, fhir_json.encode(each.event(walk.base_url)).decode())
        for each in found
    ]
    entries = found_entries(walk.base_url, events)
    if warnings:
        entries += outcome_entry(warnings)
    links = await walk.links(walk.asked, following)
    return write_bundle({"type": "searchset"}, links, entries)
