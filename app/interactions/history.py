"""The history interaction on an instance, a type and the whole server.

https://hl7.org/fhir/R4/http.html#history
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from app.errors import BadRequest
from app.fhir import json as fhir_json, shape
from app.fhir.instants import Span, instant, instant_in, range_in
from app.fhir.shape import AnswerShape
from app.interactions.result import InteractionResult
from app.records.versions import HistoryRange, ResourceVersion
from app.search.bundle_writer import write_bundle
from app.search.cursor import Position
from app.search.page_bytes import fitting
from app.search.page_links import Walk
from app.search.parameters import date
from app.search.ranges import split_prefix

_STATUS = {"POST": "201", "PUT": "200", "PATCH": "200", "DELETE": "204"}


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """A parsed history request, https://hl7.org/fhir/R4/http.html#history (`_list` is refused)."""

    range: HistoryRange
    count: int
    used: tuple[tuple[str, str], ...]
    shape: AnswerShape = shape.PLAIN


def parse(range_: HistoryRange, walk: Walk, default_count: int, max_count: int) -> HistoryQuery:
    """The parsed request. Raises BadRequest for an unknown parameter or a value that cannot be read."""
    count = default_count
    used: list[tuple[str, str]] = []
    shown = shape.read(walk.asked)
    for name, value in walk.asked:
        if name not in shape.NAMES and any(name == each for each, _ in used):
            raise BadRequest(f"{name} may be given only once", expression=f"http.{name}")
        if name == "_count":
            count = _count(value, max_count)
        elif name in shape.NAMES:
            pass
        elif name == "_since":
            range_ = msgspec.structs.replace(range_, since=instant_in(value, "http._since"))
        elif name == "_at":
            range_ = msgspec.structs.replace(range_, period=_period(value))
        else:
            raise BadRequest(f"Unknown history parameter {name!r}", code="not-supported")
        used.append((name, value))
    if walk.begin is not None:
        at, resource_type, version, resource_id = walk.begin.of(4)
        before = (at, resource_type, resource_id, int(version))
        range_ = msgspec.structs.replace(range_, before=before)
    return HistoryQuery(range_, 0 if shown.counts else count, tuple(used), shown)


async def bundle(
    query: HistoryQuery, page: Sequence[ResourceVersion], total: int | None, walk: Walk
) -> InteractionResult:
    """The history Bundle: newest first, deletions as entries without a resource, `total` over all pages if known."""
    shown = page[: min(query.count, fitting(len(stored.text) for stored in page))]
    following = None
    if len(page) > len(shown) and shown:
        last = shown[-1]
        following = Position((last.at, last.type, str(last.version), last.id))
    head: dict[str, Any] = {"type": "history"}
    if query.range.until is not None and query.range.before is None:
        # Complete up to here (app/runtime/cluster.py): the next `_since` may begin at this time.
        head["meta"] = {"lastUpdated": instant(query.range.until)}
    if total is not None:
        head["total"] = total
    entries = [piece for stored in shown for piece in _entry(stored, walk.base_url)]
    text = write_bundle(head, await walk.links(query.used, following), entries)
    return InteractionResult(200, text=text, shape=query.shape)


def _entry(stored: ResourceVersion, base_url: str) -> Iterator[str]:
    status = _STATUS[stored.method]
    if stored.method == "PUT" and stored.version == 1:
        status = "201"
    request_url = stored.type if stored.method == "POST" else stored.reference
    entry = {
        "fullUrl": f"{base_url}/{stored.reference}",
        "request": {"method": stored.method, "url": request_url},
        "response": {
            "status": status,
            "etag": f'W/"{stored.version}"',
            "lastModified": instant(stored.at),
        },
    }
    text = fhir_json.encode(entry).decode()
    if stored.deleted:
        yield f",{text}"
    else:
        yield from (f',{text[:-1]},"resource":', stored.text, "}")


def _count(value: str, max_count: int) -> int:
    if not value.isascii() or not value.isdigit():
        raise BadRequest("_count must be a whole number", code="value")
    return min(int(value), max_count)


def _period(value: str) -> Span:
    """The first and the last millisecond of `_at`, a date(Time) of any precision with or without a prefix."""
    prefix, text = split_prefix(value)
    span = range_in(text, "http._at")
    try:
        return date.within(prefix, span)
    except ValueError:
        raise BadRequest(
            "_at has one of the prefixes eq, ge, gt, le and lt, and leads to a time in the calendar",
            code="value",
            expression="http._at",
        ) from None
