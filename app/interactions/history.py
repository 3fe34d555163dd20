"""The history interaction on an instance, a type and the whole server.

https://hl7.org/fhir/R4/http.html#history
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import msgspec

from app.errors import BadRequest
from app.fhir import json as fhir_json
from app.interactions.result import InteractionResult
from app.records.versions import HistoryRange, ResourceVersion, instant
from app.search import cursor
from app.search.parameters import date

Parameters = Sequence[tuple[str, str]]

_FINGERPRINT = "history"
_IGNORED = frozenset({"_format", "_pretty"})
# They shorten the entries of the response, not the list of its versions; its links must keep them.
_CUTS = frozenset({"_summary", "_elements"})
_TIME = re.compile(
    r"(eq|ge|gt|le|lt)?(\d{4}(?:-\d\d(?:-\d\d(?:T\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d))?)?)?)"
)
_MILLISECOND = timedelta(milliseconds=1)
_STATUS = {"POST": "201", "PUT": "200", "PATCH": "200", "DELETE": "204"}


@dataclass(frozen=True, slots=True)
class HistoryQuery:
    """A parsed history request, https://hl7.org/fhir/R4/http.html#history (`_list` is refused)."""

    range: HistoryRange
    count: int
    used: tuple[tuple[str, str], ...]


def parse(
    range_: HistoryRange, parameters: Parameters, default_count: int, max_count: int
) -> HistoryQuery:
    """The parsed request. Raises BadRequest for an unknown parameter or a value that cannot be read."""
    count, used = default_count, []
    for name, value in parameters:
        if name in _IGNORED:
            continue
        if name == "_count":
            count = _count(value, max_count)
        elif name in _CUTS:
            count = 0 if (name, value) == ("_summary", "count") else count
        elif name == "_since":
            range_ = msgspec.structs.replace(range_, since=_instant(value))
        elif name == "_at":
            range_ = msgspec.structs.replace(range_, period=_period(value))
        elif name == "_cursor":
            at, resource_type, version, resource_id = cursor.decode(value, _FINGERPRINT, 4)
            before = (at, resource_type, resource_id, int(version))
            range_ = msgspec.structs.replace(range_, before=before)
            continue
        else:
            raise BadRequest(f"Unknown history parameter {name!r}", code="not-supported")
        used.append((name, value))
    return HistoryQuery(range_, count, tuple(used))


def bundle(
    query: HistoryQuery, page: Sequence[ResourceVersion], total: int | None, url: str, base_url: str
) -> InteractionResult:
    """The history Bundle: newest first, deletions as entries without a resource, `total` over all pages if known."""
    links = [{"relation": "self", "url": _url(url, query.used)}]
    shown = page[: query.count]
    if len(page) > query.count and shown:
        last = shown[-1]
        token = cursor.encode((last.at, last.type, str(last.version), last.id), _FINGERPRINT)
        following = (*query.used, ("_cursor", token))
        links.append({"relation": "next", "url": _url(url, following)})
    head: dict[str, Any] = {"resourceType": "Bundle", "type": "history"}
    if query.range.until is not None and query.range.before is None:
        # Complete up to here (app/runtime/cluster.py): the next `_since` may begin at this time.
        head["meta"] = {"lastUpdated": instant(query.range.until)}
    if total is not None:
        head["total"] = total
    head["link"] = links
    text = fhir_json.encode(head).decode()[:-1]
    if shown:
        text += ',"entry":[' + ",".join(_entry(stored, base_url) for stored in shown) + "]"
    return InteractionResult(200, text=text + "}")


def _entry(stored: ResourceVersion, base_url: str) -> str:
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
    return text if stored.deleted else f'{text[:-1]},"resource":{stored.text}}}'


def _count(value: str, max_count: int) -> int:
    if not value.isascii() or not value.isdigit():
        raise BadRequest("_count must be a whole number", code="value")
    return min(int(value), max_count)


def _instant(value: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value.replace(" ", "+"))
        if moment.tzinfo is not None:
            return moment.astimezone(UTC)
    except (ValueError, OverflowError):
        pass
    raise BadRequest(
        "_since must be an instant with a time zone", code="value", expression="http._since"
    )


def _period(value: str) -> tuple[datetime, datetime]:
    """The first and the last millisecond of `_at`, a date(Time) of any precision with or without a prefix."""
    match = _TIME.fullmatch(value.replace(" ", "+"))
    try:
        if match is None:
            raise ValueError
        low, high = date.span(match[2])
        match match[1]:
            case "ge":
                return low, date.END
            case "gt":
                return high + _MILLISECOND, date.END
            case "le":
                return date.BEGINNING, high
            case "lt":
                return date.BEGINNING, low - _MILLISECOND
        return low, high
    except (ValueError, OverflowError):
        raise BadRequest(
            "_at must be a date or dateTime", code="value", expression="http._at"
        ) from None


def _url(url: str, parameters: Parameters) -> str:
    return f"{url}?{urlencode(list(parameters))}" if parameters else url
