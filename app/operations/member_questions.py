"""What `$worklist`, `$utilization` and `$attributed` are asked: about whom, when, and how the answer is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from typing import Literal
from zoneinfo import ZoneInfo

from app.context import Context
from app.coordination.workbench.member_findings import Asked, Period
from app.coordination.workbench.population import Chosen, population
from app.errors import BadRequest
from app.fhir.ids import is_id
from app.fhir.instants import days_in
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.proof.csv_text import csv_text
from app.runtime import pace

Form = Literal["bundle", "csv", "ndjson"]
_FORMS: Mapping[str, Form] = {
    **dict.fromkeys(("text/csv", "csv"), "csv"),
    **dict.fromkeys(("application/fhir+ndjson", "application/ndjson", "ndjson"), "ndjson"),
}
# What Accept and `_format` may ask for.
FORMS: Mapping[str, str] = {
    "csv": "text/csv",
    "ndjson": "application/fhir+ndjson",
    "application/ndjson": "application/ndjson",
}
_MEDIA_TYPES: Mapping[Form, str] = {
    "csv": "text/csv; charset=utf-8; header=present",
    "ndjson": "application/fhir+ndjson",
}
_LAST, _MOST_DAYS = timedelta(days=30), 366
_WITHIN = 14
# About how long a line of an answer is.
_LINE_BYTES = 200
# A question looks back from a period, and ahead, which the ends of the calendar have no days for.
_EARLIEST, _LATEST = date(1900, 1, 1), date(2999, 12, 31)
Given = Mapping[str, str]


async def read(context: Context, group: str | None, given: Given) -> Asked:
    """What was asked about a Group's members or all. Raises NotFound for the Group, BadRequest, Forbidden."""
    if group is not None:
        await interactions.current(context, "Group", group)
    chosen = Chosen(_organization(given, "organization"), _organization(given, "practice"), group)
    period = _period(context, given.get("start"), given.get("end"))
    within = given.get("within")
    if within is not None and not 0 < int(within) <= _MOST_DAYS:
        raise BadRequest(
            f"within is a number of days up to {_MOST_DAYS}", code="value", expression="within"
        )
    found = await population(context, chosen)
    return Asked(context, found, period, _WITHIN if within is None else int(within))


def form_of(given: Given, asked: str | None) -> Form:
    """The form of the answer: by `_outputFormat`, else the media type that is `asked` for. Raises BadRequest."""
    name = given.get("_outputFormat", asked)
    if name is None:
        return "bundle"
    # A plus sign in a query that nobody encoded arrives as a space.
    form = _FORMS.get(name.replace(" ", "+").lower())
    if form is None:
        raise BadRequest(
            f"_outputFormat is one of {', '.join(_FORMS)}",
            code="not-supported",
            expression="_outputFormat",
        )
    return form


async def as_csv(
    name: str, columns: Sequence[str], lines: Iterable[Sequence[object]], count: int
) -> InteractionResult:
    """An answer as a table of so many lines, to be kept as a file."""
    text = await pace.aside(count * _LINE_BYTES, csv_text, columns, lines, quoted=True)
    return _file(name, "csv", text.encode())


def as_ndjson(name: str, texts: Iterable[bytes]) -> InteractionResult:
    """An answer as a resource in each line."""
    return _file(name, "ndjson", b"".join(text + b"\n" for text in texts))


def _file(name: str, form: Form, content: bytes) -> InteractionResult:
    headers = {"Content-Disposition": f'attachment; filename="{name}.{form}"'}
    return InteractionResult(200, text=content, headers=headers, media_type=_MEDIA_TYPES[form])


def _organization(given: Given, name: str) -> str | None:
    reference = given.get(name)
    if reference is None:
        return None
    kind, _, id_ = reference.rpartition("/")
    if kind != "Organization" or not is_id(id_):
        raise BadRequest(
            f"{name} is a reference such as Organization/1", code="value", expression=name
        )
    return reference


def _period(context: Context, start: str | None, end: str | None) -> Period:
    """The days from `start` to `end` where the server is; without them the last 30 days until now."""
    zone = ZoneInfo(context.settings.time_zone)
    now = context.services.clock.now()
    today = now.astimezone(zone).date()
    last = today if end is None else days_in(end, "end")[1]
    if not _EARLIEST <= last <= _LATEST:
        raise BadRequest("A period ends between 1900 and 2999", code="value", expression="end")
    first = last - _LAST if start is None else days_in(start, "start")[0]
    if last < first:
        raise BadRequest("The period ends before it begins", code="value", expression="end")
    if (last - first).days >= _MOST_DAYS:
        raise BadRequest("A period is at most a year", code="too-long", expression="end")
    begin = _at(first, time(), zone)
    return Period(begin, now if end is None else _at(last, time.max, zone), now, zone)


def _at(day: date, moment: time, zone: ZoneInfo) -> datetime:
    return datetime.combine(day, moment, zone)
