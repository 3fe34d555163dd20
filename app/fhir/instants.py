"""Dates, dateTimes and instants: what R4 lets them be, what they mean, and how the server writes them.

https://hl7.org/fhir/R4/datatypes.html#instant, #dateTime and #date

The grammar stands here alone. `parse` and `parse_range` are for what a request says and take nothing else; `moment` and
`span` are for what was stored, which the validator has judged, and take a leap second as the last of its minute. Times
are aware and in UTC unless it says otherwise. Digits of a fraction beyond the microsecond are cut off, so nothing is
ever read as later than it says.
"""

from __future__ import annotations

import re
from calendar import monthrange
from datetime import MAXYEAR, UTC, date as calendar_date, datetime, timedelta, tzinfo
from typing import Any, TypeVar

from app.errors import BadRequest

D = TypeVar("D", bound=calendar_date)

Span = tuple[datetime, datetime]

# The first and the last millisecond there are.
BEGINNING = datetime.min.replace(tzinfo=UTC)
END = datetime.max.replace(microsecond=999_000, tzinfo=UTC)

_DAY = timedelta(days=1) - timedelta(milliseconds=1)
_DATE = r"(?!0000)\d{4}(?:-(?:0[1-9]|1[0-2])(?:-(?P<day>0[1-9]|[12]\d|3[01]))?)?"
_CLOCK = r"(?:[01]\d|2[0-3]):[0-5]\d:(?:[0-5]\d|60)(?:\.\d+)?"
_ZONE = r"(?:Z|[+-](?:(?:0\d|1[0-3]):[0-5]\d|14:00))"
_match_date = re.compile(_DATE, re.ASCII).fullmatch
_match_instant = re.compile(
    rf"(?!0000)\d{{4}}-(?:0[1-9]|1[0-2])-(?P<day>0[1-9]|[12]\d|3[01])T{_CLOCK}{_ZONE}", re.ASCII
).fullmatch
_SIGNS = frozenset(("--T::+:", "--T::-:", "--T::Z"))
_match_digits = re.compile(r"\d*", re.ASCII).match

# Whether a text is a time of day. Raises TypeError for what is no text.
is_time = re.compile(_CLOCK, re.ASCII).fullmatch


def is_date(value: Any) -> bool:
    """Whether a text is a date: a year, a month or a day of the calendar. Raises TypeError for what is no text."""
    return _is_real(_match_date(value), value)


def is_date_time(value: Any) -> bool:
    """Whether a value is a dateTime: a date, or an instant."""
    # Nearly all are YYYY-MM-DDThh:mm:ss and a zone. Every third character from the fifth is then a sign, the
    # standard library does the rest, and that is three times as fast as the pattern.
    if type(value) is not str:
        return False
    if (
        value[4::3] in _SIGNS
        and value[11:13] < "24"
        and (value[-1] == "Z" or (value[20:22] < "14" and value[23:24] < "6"))
    ):
        try:
            datetime.fromisoformat(value)
        except ValueError:
            pass
        else:
            return True
    return _is_real(_match_instant(value) if len(value) > 10 else _match_date(value), value)


def is_instant(value: Any) -> bool:
    """Whether a text is an instant: a day, a time and a zone. Raises TypeError for what is no text."""
    return _is_real(_match_instant(value), value)


def _is_real(match: re.Match[str] | None, value: str) -> bool:
    """Whether what looks like a date is in the calendar; only days past the 28th can fail."""
    if match is None:
        return False
    day = match["day"]
    if day is None or day <= "28":
        return True
    try:
        calendar_date.fromisoformat(value[:10])
    except ValueError:
        return False
    return True


def instant(at: datetime) -> str:
    """A FHIR instant in UTC with milliseconds; what lies below them is cut off."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse(text: str) -> datetime:
    """The moment of an instant, to the microsecond.

    Raises ValueError for what is none, for one that UTC has no year for, and for a leap second: R4 allows it, but no
    clock here has it, and any other second would be a guess.
    """
    if not is_instant(text) or text[17:19] == "60":
        raise ValueError
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except OverflowError:
        raise ValueError from None


def parse_range(text: str, zone: tzinfo = UTC) -> Span:
    """The first and the last millisecond that a date or dateTime may mean; dates are those of `zone`.

    Raises ValueError as `parse` does.
    """
    if len(text) > 10:
        return _left_open(text, parse(text))
    if not is_date(text):
        raise ValueError
    return span(text, zone)


def moment(text: str, zone: tzinfo = UTC) -> datetime:
    """The moment of a stored instant, to the microsecond and in the zone that it is written in. Raises ValueError."""
    # A leap second is its minute's last.
    found = datetime.fromisoformat(f"{text[:17]}59{text[19:]}" if text[17:19] == "60" else text)
    return found if found.tzinfo else found.replace(tzinfo=zone)


def span(text: str, zone: tzinfo = UTC) -> Span:
    """The first and the last millisecond that a stored date, dateTime or instant may mean. Raises ValueError.

    What has no zone is in `zone`. Times may also lack their seconds, as those of searches do.
    """
    if len(text) > 10:
        low = moment(text, zone)
        # At the very ends of the calendar a zone would lead beyond it.
        is_far = low.year in (1, 9999)
        return _left_open(text, low.replace(tzinfo=UTC) if is_far else low.astimezone(UTC))
    if len(text) == 10:
        low = datetime.fromisoformat(text).replace(tzinfo=zone)
        if zone is UTC:
            return low, low + _DAY
        return _in_utc(low, low.replace(hour=23, minute=59, second=59, microsecond=999_000))
    year = int(text[:4])
    first, last = (int(text[5:]), int(text[5:])) if len(text) > 4 else (1, 12)
    days = monthrange(year, last)[1]
    low = datetime(year, first, 1, tzinfo=zone)
    high = datetime(year, last, days, 23, 59, 59, 999_000, zone)
    return (low, high) if zone is UTC else _in_utc(low, high)


def _left_open(text: str, low: datetime) -> Span:
    """A time's first and last millisecond, as far as its text leaves open."""
    low = low.replace(microsecond=low.microsecond // 1000 * 1000)
    if text[19:20] == ".":
        digits = len(_match_digits(text, 20).group())  # type: ignore[union-attr]
        return low, low + timedelta(milliseconds=10 ** max(0, 3 - digits) - 1)
    open_seconds = 1 if text[16:17] == ":" else 60
    return low, low + timedelta(milliseconds=open_seconds * 1000 - 1)


def _in_utc(low: datetime, high: datetime) -> Span:
    try:
        # Where clocks are put back at midnight the day's last hour comes twice, and the second one ends it.
        return low.astimezone(UTC), high.replace(fold=1).astimezone(UTC)
    except OverflowError:
        raise ValueError from None


# What a request's parameter says. Each raises BadRequest naming the parameter; a plus sign that nobody encoded arrives
# as a space.


def is_after(one: str, other: str) -> bool:
    """Whether one date or dateTime is later than another for sure, whatever zone a day or an hour without one is in."""
    if one <= other and one[19:] == other[19:]:  # the same zone, or dates only
        return False
    try:
        if len(one) > 10 and len(other) > 10:
            is_leap = "60" in (one[17:19], other[17:19])
            times = [(moment(each), _beyond_microseconds(each)) for each in (one, other)]
            return not is_leap and times[0] > times[1]
        if len(one) > 10 or len(other) > 10:
            # A moment against a day that has no zone: only what more than a day lies between is certain.
            gap = calendar_date.fromisoformat(one[:10]) - calendar_date.fromisoformat(other[:10])
            return gap.days > 1
    except ValueError:  # refused elsewhere, or a year against a moment
        return False
    precision = min(len(one), len(other))
    return one[:precision] > other[:precision]


def _beyond_microseconds(text: str) -> str:
    """The digits of a moment's fraction that a datetime has no place for."""
    digits = _match_digits(text, 20) if text[19:20] == "." else None
    return digits.group()[6:].rstrip("0") if digits else ""


def instant_in(text: str, name: str) -> datetime:
    """The moment of a parameter that is an instant."""
    try:
        return parse(text.replace(" ", "+"))
    except ValueError:
        raise _refused("an instant such as 2026-05-14T10:00:00Z", name) from None


def range_in(text: str, name: str) -> Span:
    """The first and the last millisecond of a parameter that is a date or dateTime."""
    try:
        return parse_range(text.replace(" ", "+"))
    except ValueError:
        raise _refused("a date or dateTime such as 2026-05 or 2026-05-14T10:00:00Z", name) from None


def days_in(text: str, name: str) -> tuple[calendar_date, calendar_date]:
    """The first and the last day of a parameter that is a date."""
    if not is_date(text):
        raise _refused("a date such as 2026, 2026-05 or 2026-05-14", name)
    first, last = span(text)
    return first.date(), last.date()


def _refused(what: str, name: str) -> BadRequest:
    return BadRequest(f"{name.removeprefix('http.')} must be {what}", code="value", expression=name)


def moved(day: calendar_date, by: timedelta) -> calendar_date:
    """The day so much later or earlier, as far as the calendar goes."""
    try:
        return day + by
    except OverflowError:
        return calendar_date.max if by > timedelta() else calendar_date.min


def a_year_after(moment: D) -> D:
    """The same day of the next year, at the same time; 28 February for a leap day. No year comes after the last one."""
    year = min(moment.year + 1, MAXYEAR)
    try:
        return moment.replace(year=year)
    except ValueError:
        return moment.replace(year=year, day=28)
