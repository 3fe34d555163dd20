"""Dates, dateTimes and instants. https://hl7.org/fhir/R4/datatypes.html"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, strategies as st

from app.errors import BadRequest
from app.fhir import instants
from app.fhir.instants import BEGINNING, END, instant, moment, parse, parse_range, span

MILLISECOND = timedelta(milliseconds=1)
DAY = "2026-05-14"


def at(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc, arg-type]


INSTANTS = [
    pytest.param(f"{DAY}T10:00:00Z", at(2026, 5, 14, 10), id="seconds"),
    pytest.param(f"{DAY}T10:00:00.1Z", at(2026, 5, 14, 10, 0, 0, 100_000), id="tenths"),
    pytest.param(f"{DAY}T10:00:00.123Z", at(2026, 5, 14, 10, 0, 0, 123_000), id="milliseconds"),
    pytest.param(f"{DAY}T10:00:00.123456Z", at(2026, 5, 14, 10, 0, 0, 123_456), id="microseconds"),
    pytest.param(f"{DAY}T10:00:00.9999999Z", at(2026, 5, 14, 10, 0, 0, 999_999), id="cut-off"),
    pytest.param(f"{DAY}T10:00:00+05:30", at(2026, 5, 14, 4, 30), id="east"),
    pytest.param(f"{DAY}T10:00:00-12:00", at(2026, 5, 14, 22), id="west"),
    pytest.param(f"{DAY}T10:00:00+14:00", at(2026, 5, 13, 20), id="farthest-east"),
    pytest.param(f"{DAY}T10:00:00-14:00", at(2026, 5, 15), id="farthest-west"),
    pytest.param(f"{DAY}T10:00:00-00:00", at(2026, 5, 14, 10), id="minus-nought"),
    pytest.param(f"{DAY}T23:59:59.999Z", at(2026, 5, 14, 23, 59, 59, 999_000), id="last-of-a-day"),
    pytest.param("2024-02-29T00:00:00Z", at(2024, 2, 29), id="leap-year"),
    pytest.param("2000-02-29T00:00:00Z", at(2000, 2, 29), id="leap-century"),
    pytest.param("0001-01-01T00:00:00Z", BEGINNING, id="first"),
    pytest.param("9999-12-31T23:59:59.999Z", END, id="last"),
]

# No date, dateTime or instant by any measure.
WRONG = [
    pytest.param("", id="empty"),
    pytest.param("monday", id="word"),
    pytest.param("20260514T100000Z", id="basic-format"),
    pytest.param("20260514", id="basic-date"),
    pytest.param(f"{DAY} 10:00:00Z", id="space-for-t"),
    pytest.param(f"{DAY}t10:00:00Z", id="lower-case-t"),
    pytest.param(f"{DAY}T10:00:00z", id="lower-case-z"),
    pytest.param(f"{DAY}T10:00:00", id="no-zone"),
    pytest.param(f"{DAY}T10:00:00.123", id="no-zone-after-a-fraction"),
    pytest.param(f"{DAY}T10:00Z", id="no-seconds"),
    pytest.param(f"{DAY}T10Z", id="no-minutes"),
    pytest.param(f"{DAY}T", id="no-time"),
    pytest.param(f"{DAY}Z", id="date-with-a-zone"),
    pytest.param(f"{DAY}T10:00:60Z", id="second-60"),
    pytest.param(f"{DAY}T10:00:61Z", id="second-61"),
    pytest.param(f"{DAY}T10:60:00Z", id="minute-60"),
    pytest.param(f"{DAY}T24:00:00Z", id="hour-24"),
    pytest.param(f"{DAY}T10:00:00,5Z", id="comma"),
    pytest.param(f"{DAY}T10:00:00.Z", id="no-fraction"),
    pytest.param(f"{DAY}T10:00:00+14:01", id="zone-too-far"),
    pytest.param(f"{DAY}T10:00:00-15:00", id="zone-much-too-far"),
    pytest.param(f"{DAY}T10:00:00+05:75", id="zone-of-75-minutes"),
    pytest.param(f"{DAY}T10:00:00+0530", id="zone-without-a-colon"),
    pytest.param(f"{DAY}T10:00:00+05", id="zone-without-minutes"),
    pytest.param(f"{DAY}T10:00:00+05:30:15", id="zone-with-seconds"),
    pytest.param(f"{DAY}T10:00:00 Z", id="space-before-the-zone"),
    pytest.param(f" {DAY}T10:00:00Z", id="space-before"),
    pytest.param(f"{DAY}T10:00:00Z\n", id="newline-after"),
    pytest.param("2026-W20-4T10:00:00Z", id="week-date"),
    pytest.param("2026-W20-4", id="week-date-alone"),
    pytest.param("2026W204", id="week-date-basic"),
    pytest.param("2026-134T10:00:00Z", id="ordinal-date"),
    pytest.param("2026-134", id="ordinal-date-alone"),
    pytest.param("\uff12\uff10\uff12\uff16-05-14T10:00:00Z", id="wide-digits"),
    pytest.param("\uff12\uff10\uff12\uff16", id="wide-year"),
    pytest.param("\u0662\u0660\u0662\u0666-05-14", id="arabic-digits"),
    pytest.param(f"{DAY}T10:00:0\u0660Z", id="one-arabic-digit"),
    pytest.param("0000", id="year-nought"),
    pytest.param("0000-01-01T00:00:00Z", id="instant-in-year-nought"),
    pytest.param("-2026-05-14", id="before-christ"),
    pytest.param("12026-05-14", id="five-digits"),
    pytest.param("26-05-14", id="two-digits"),
    pytest.param("2026-00", id="month-nought"),
    pytest.param("2026-13", id="month-13"),
    pytest.param("2026-5-14", id="month-of-one-digit"),
    pytest.param("2026-05-00", id="day-nought"),
    pytest.param("2026-05-32", id="day-32"),
    pytest.param("2026-04-31", id="31st-of-april"),
    pytest.param("2026-02-29", id="no-leap-year"),
    pytest.param("1900-02-29", id="no-leap-century"),
    pytest.param("2026-02-30T10:00:00Z", id="30th-of-february"),
    pytest.param("0001-01-01T00:00:00+14:00", id="before-the-calendar"),
    pytest.param("9999-12-31T23:59:59-14:00", id="after-the-calendar"),
]

RANGES = [
    pytest.param("2026", at(2026, 1, 1), at(2027, 1, 1), id="year"),
    pytest.param("2026-05", at(2026, 5, 1), at(2026, 6, 1), id="month"),
    pytest.param("2026-12", at(2026, 12, 1), at(2027, 1, 1), id="december"),
    pytest.param("2026-02", at(2026, 2, 1), at(2026, 3, 1), id="february"),
    pytest.param("2024-02", at(2024, 2, 1), at(2024, 3, 1), id="february-of-a-leap-year"),
    pytest.param("2024-02-29", at(2024, 2, 29), at(2024, 3, 1), id="leap-day"),
    pytest.param(DAY, at(2026, 5, 14), at(2026, 5, 15), id="day"),
    pytest.param(f"{DAY}T10:00:00Z", at(2026, 5, 14, 10), at(2026, 5, 14, 10, 0, 1), id="a-second"),
    pytest.param(
        f"{DAY}T10:00:00.5Z",
        at(2026, 5, 14, 10, 0, 0, 500_000),
        at(2026, 5, 14, 10, 0, 0, 600_000),
        id="a-tenth",
    ),
    pytest.param(
        f"{DAY}T10:00:00.50Z",
        at(2026, 5, 14, 10, 0, 0, 500_000),
        at(2026, 5, 14, 10, 0, 0, 510_000),
        id="a-hundredth",
    ),
    pytest.param(
        f"{DAY}T10:00:00.123Z",
        at(2026, 5, 14, 10, 0, 0, 123_000),
        at(2026, 5, 14, 10, 0, 0, 124_000),
        id="a-millisecond",
    ),
    pytest.param(
        f"{DAY}T10:00:00.1239999Z",
        at(2026, 5, 14, 10, 0, 0, 123_000),
        at(2026, 5, 14, 10, 0, 0, 124_000),
        id="less-than-a-millisecond",
    ),
    pytest.param(
        f"{DAY}T00:30:00+14:00",
        at(2026, 5, 13, 10, 30),
        at(2026, 5, 13, 10, 30, 1),
        id="the-day-before-in-utc",
    ),
    pytest.param("0001", BEGINNING, at(2, 1, 1), id="first-year"),
]


@pytest.mark.parametrize(("text", "expected"), INSTANTS)
def test_instants_are_moments_in_utc(text: str, expected: datetime) -> None:
    assert instants.is_instant(text)
    assert instants.is_date_time(text)
    assert parse(text) == expected
    assert parse(text).tzinfo is UTC
    assert instants.instant_in(text, "_since") == expected


@pytest.mark.parametrize("text", WRONG)
def test_what_is_none_is_refused(text: str) -> None:
    for read in (parse, parse_range):
        with pytest.raises(ValueError, match=r"^$"):
            read(text)
    for read_in in (instants.instant_in, instants.range_in, instants.days_in):
        with pytest.raises(BadRequest) as refused:
            read_in(text, "http._since")
        (issue,) = refused.value.issues
        assert (issue.code, issue.expression) == ("value", ("http._since",))
        assert issue.diagnostics.startswith("_since must be a")


@pytest.mark.parametrize("text", ["2026", "2026-05", DAY])
def test_a_date_is_no_instant(text: str) -> None:
    assert instants.is_date(text)
    assert instants.is_date_time(text)
    with pytest.raises(ValueError, match=r"^$"):
        parse(text)


@pytest.mark.parametrize(("text", "first", "after"), RANGES)
def test_a_date_time_is_what_its_precision_leaves_open(
    text: str, first: datetime, after: datetime
) -> None:
    assert parse_range(text) == (first, after - MILLISECOND)
    assert span(text) == (first, after - MILLISECOND)


def test_the_last_year_ends_with_the_calendar() -> None:
    assert parse_range("9999") == (at(9999, 1, 1), END)
    assert parse_range("9999-12") == (at(9999, 12, 1), END)
    assert parse_range("9999-12-31") == (at(9999, 12, 31), END)
    assert parse_range("9999-12-31T23:59:59Z")[1] == END


# New York changes its clocks on 2026-03-08 and 2026-11-01, at 2:00; Sao Paulo did at midnight.
@pytest.mark.parametrize(
    ("text", "zone", "first", "after"),
    [
        pytest.param(DAY, "America/New_York", at(2026, 5, 14, 4), at(2026, 5, 15, 4), id="day"),
        pytest.param(
            "2026-03-08", "America/New_York", at(2026, 3, 8, 5), at(2026, 3, 9, 4), id="23-hours"
        ),
        pytest.param(
            "2026-11-01", "America/New_York", at(2026, 11, 1, 4), at(2026, 11, 2, 5), id="25-hours"
        ),
        pytest.param(
            "2026-03", "America/New_York", at(2026, 3, 1, 5), at(2026, 4, 1, 4), id="month"
        ),
        pytest.param("2026", "America/New_York", at(2026, 1, 1, 5), at(2027, 1, 1, 5), id="year"),
        pytest.param(
            "2018-02-17",
            "America/Sao_Paulo",
            at(2018, 2, 17, 2),
            at(2018, 2, 18, 3),
            id="its-last-hour-comes-twice",
        ),
        pytest.param(
            f"{DAY}T10:00:00Z",
            "America/New_York",
            at(2026, 5, 14, 10),
            at(2026, 5, 14, 10, 0, 1),
            id="a-time-has-its-own-zone",
        ),
    ],
)
def test_dates_are_those_of_the_zone_that_is_asked_for(
    text: str, zone: str, first: datetime, after: datetime
) -> None:
    found = parse_range(text, ZoneInfo(zone))
    assert found == (first, after - MILLISECOND)
    assert {each.tzinfo for each in found} == {UTC}


def test_a_zone_does_not_lead_beyond_the_calendar() -> None:
    for text, hours in (("0001", 14), ("9999-12-31", -12)):
        with pytest.raises(ValueError, match=r"^$"):
            parse_range(text, timezone(timedelta(hours=hours)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(f"{DAY}T23:59:60Z", at(2026, 5, 14, 23, 59, 59), id="z"),
        pytest.param(f"{DAY}T23:59:60.5+02:00", at(2026, 5, 14, 21, 59, 59, 500_000), id="offset"),
    ],
)
def test_a_leap_second_that_was_stored_is_the_last_of_its_minute(
    text: str, expected: datetime
) -> None:
    assert instants.is_instant(text)
    assert instants.is_date_time(text)
    assert moment(text) == expected
    assert span(text)[0] == expected
    with pytest.raises(ValueError, match=r"^$"):
        parse(text)


def test_a_stored_moment_keeps_its_zone_and_its_microseconds() -> None:
    found = moment(f"{DAY}T10:00:00.1234567-06:00")
    assert found.utcoffset() == timedelta(hours=-6)
    assert found == at(2026, 5, 14, 16, 0, 0, 123_456)


def test_a_plus_that_nobody_encoded_arrives_as_a_space() -> None:
    assert instants.instant_in(f"{DAY}T10:00:00 02:00", "_since") == at(2026, 5, 14, 8)
    assert instants.range_in(f"{DAY}T10:00:00 02:00", "_at")[0] == at(2026, 5, 14, 8)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [
        ("2026", "2026-01-01", "2026-12-31"),
        ("2024-02", "2024-02-01", "2024-02-29"),
        (DAY, DAY, DAY),
    ],
)
def test_the_days_of_a_date(text: str, first: str, last: str) -> None:
    found = instants.days_in(text, "start")
    assert [each.isoformat() for each in found] == [first, last]


@pytest.mark.parametrize("text", [f"{DAY}T10:00:00Z", f"{DAY} "])
def test_a_time_is_no_date(text: str) -> None:
    with pytest.raises(BadRequest):
        instants.days_in(text, "start")


@pytest.mark.parametrize("value", [None, 2026, True, ["2026"]])
def test_what_is_no_text_is_no_date_time(value: Any) -> None:
    assert not instants.is_date_time(value)
    for test in (instants.is_date, instants.is_instant, instants.is_time):
        with pytest.raises(TypeError):
            test(value)


# What lies below a millisecond is cut off when it is written; nothing becomes later.

# In the first and the last year an offset may lead beyond the calendar.
MOMENTS = st.datetimes(timezones=st.just(UTC)).filter(lambda found: 2 < found.year < 9998)
OFFSETS = st.integers(-14 * 60, 14 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))


@given(MOMENTS, OFFSETS)
def test_writing_and_reading_gives_the_same_millisecond(found: datetime, zone: timezone) -> None:
    written = instant(found.astimezone(zone))
    assert instants.is_instant(written)
    whole = found.replace(microsecond=found.microsecond // 1000 * 1000)
    assert parse(written) == whole == moment(written)
    assert parse_range(written) == (whole, whole)
    assert instant(parse(written)) == written


@given(MOMENTS, OFFSETS, st.integers(0, 9))
def test_the_range_of_a_text_cut_short_has_the_moment(
    found: datetime, zone: timezone, digits: int
) -> None:
    local = found.astimezone(zone)
    text = local.isoformat(timespec="microseconds")
    offset = text[26:]
    fraction = f".{text[20:26]}000"[: digits + 1] if digits else ""
    whole = f"{text[:19]}{fraction}{offset}"
    first, last = parse_range(whole)
    assert first <= found < last + MILLISECOND
    assert span(whole) == (first, last)
    assert parse(whole) <= found
    for length in (4, 7, 10):
        first, last = parse_range(text[:length], zone)
        assert first <= found < last + MILLISECOND


@pytest.mark.slow
@given(st.lists(st.tuples(MOMENTS, st.integers(0, 9)), min_size=2, max_size=2))
def test_more_digits_keep_the_order(pair: list[tuple[datetime, int]]) -> None:
    texts = sorted(
        f"{each.isoformat(timespec='microseconds')[:26]}{digit}{digit}Z" for each, digit in pair
    )
    assert parse(texts[0]) <= parse(texts[1])
