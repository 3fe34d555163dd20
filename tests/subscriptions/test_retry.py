"""The retry policy as tables over time: no clock, no waiting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.subscriptions.sending.retry import RetryPolicy, Verdict, judge, retry_after_seconds

START = datetime(2026, 11, 21, 15, 0, tzinfo=UTC)
DAY = 24 * 3600.0


def policy(window: float = 3 * DAY, jitter: float = 0.999) -> RetryPolicy:
    return RetryPolicy(window, lambda: jitter)


def due(
    rules: RetryPolicy, attempts: int, now: datetime, retry_after: float = 0.0
) -> datetime | None:
    return rules.next_attempt(attempts, START, now, rules.end(START), retry_after)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        pytest.param(200, Verdict.DELIVERED, id="ok"),
        pytest.param(204, Verdict.DELIVERED, id="no-content"),
        pytest.param(None, Verdict.RETRY, id="no-answer"),
        pytest.param(302, Verdict.RETRY, id="redirect"),
        pytest.param(400, Verdict.RETRY, id="bad-request"),
        pytest.param(401, Verdict.REJECTED, id="unauthorized"),
        pytest.param(403, Verdict.REJECTED, id="forbidden"),
        pytest.param(404, Verdict.REJECTED, id="not-found"),
        pytest.param(408, Verdict.RETRY, id="timeout"),
        pytest.param(410, Verdict.GONE, id="gone"),
        pytest.param(429, Verdict.RETRY, id="throttled"),
        pytest.param(500, Verdict.RETRY, id="server-error"),
        pytest.param(503, Verdict.RETRY, id="unavailable"),
    ],
)
def test_an_answer_is_judged_by_its_status(status: int | None, verdict: Verdict) -> None:
    assert judge(status) is verdict


@pytest.mark.parametrize(
    ("attempts", "elapsed", "longest"),
    [
        pytest.param(1, 0, 0.8, id="first-within-a-second"),
        pytest.param(2, 1, 1.6, id="second"),
        pytest.param(3, 3, 3.2, id="third"),
        pytest.param(5, 15, 12.8, id="fifth"),
        pytest.param(7, 31, 30, id="capped"),
        pytest.param(20, 599, 30, id="end-of-the-early-phase"),
        pytest.param(40, 3600, 900, id="after-an-hour"),
        pytest.param(500, 2 * DAY, 900, id="after-two-days"),
    ],
)
@pytest.mark.parametrize("jitter", [pytest.param(0.0, id="low"), pytest.param(0.999, id="high")])
def test_waits_double_up_to_their_caps(
    attempts: int, elapsed: float, longest: float, jitter: float
) -> None:
    now = START + timedelta(seconds=elapsed)
    next_ = due(policy(jitter=jitter), attempts, now)
    assert next_ is not None
    wait = (next_ - now).total_seconds()
    assert longest / 2 <= wait <= longest


def test_the_whole_schedule_keeps_its_promises() -> None:
    """Played to its end: never more than 30 s apart in the first ten minutes, nor 15 min later; the last at the end."""
    rules, now, attempts, gaps = policy(), START, 1, []
    while (next_ := due(rules, attempts, now)) is not None:
        gaps.append(((now - START).total_seconds(), (next_ - now).total_seconds()))
        now, attempts = next_, attempts + 1
    assert gaps[0][1] <= 1
    assert all(gap <= 30 for at, gap in gaps if at < 600)
    assert all(gap <= 900 for _, gap in gaps)
    assert now == START + timedelta(days=3)
    assert 300 < attempts < 500


@pytest.mark.parametrize(
    ("elapsed", "retry_after", "expected"),
    [
        pytest.param(0, 20, 20, id="longer-than-the-policy"),
        pytest.param(300, 1, 29.985, id="shorter-than-the-policy"),
        pytest.param(0, 1200, 1200, id="longer-than-any-cap"),
        pytest.param(0, 4 * DAY, 3600, id="beyond-the-window"),
        pytest.param(0, 999999999999999.0, 3600, id="beyond-any-calendar"),
        pytest.param(3 * DAY - 600, 1200, 600, id="up-to-the-end-of-the-window"),
    ],
)
def test_retry_after_is_honoured_up_to_an_hour(
    elapsed: float, retry_after: float, expected: float
) -> None:
    now = START + timedelta(seconds=elapsed)
    next_ = due(policy(jitter=0.999), 1 if elapsed == 0 else 10, now, retry_after)
    assert next_ is not None
    assert (next_ - now).total_seconds() == pytest.approx(expected)


def test_nothing_is_tried_once_the_window_is_over() -> None:
    assert due(policy(60), 9, START + timedelta(seconds=60)) is None


def test_the_last_attempt_falls_on_the_end_of_the_window() -> None:
    end = START + timedelta(seconds=60)
    assert due(policy(60), 9, end - timedelta(seconds=3)) == end


def test_what_is_rejected_has_a_window_of_its_own_which_begins_with_the_first_rejection() -> None:
    rules = RetryPolicy(3 * DAY, refusal_window=3600)
    rejected = START + timedelta(hours=5)
    assert rules.end(START) == START + timedelta(days=3)
    assert rules.end(START, rejected) == START + timedelta(hours=6)
    assert rules.end(START, START + timedelta(hours=71.5)) == START + timedelta(days=3)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param("120", 120.0, id="seconds"),
        pytest.param("Sat, 21 Nov 2026 15:01:00 GMT", 60.0, id="date"),
        pytest.param("Sat, 21 Nov 2026 14:00:00 GMT", 0.0, id="past"),
        pytest.param("315360000", 3600.0, id="ten-years"),
        pytest.param("9" * 400, 3600.0, id="no-float-holds-it"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 -2359", None, id="no-calendar-holds-it"),
        pytest.param("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0, id="date-in-eight-thousand-years"),
        pytest.param("Sat, 01 Jan 99999999999 00:00:00 GMT", None, id="date-of-no-year"),
        pytest.param("soon", None, id="unreadable"),
        pytest.param("-5", None, id="negative"),
        pytest.param("", None, id="empty"),
    ],
)
def test_reading_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_seconds({"retry-after": value}, START) == seconds


def test_a_date_is_compared_with_the_clock_of_who_gave_it() -> None:
    """A server whose own clock is an hour ahead waits as long as it was asked to."""
    headers = {
        "retry-after": "Sat, 21 Nov 2026 15:01:00 GMT",
        "date": "Sat, 21 Nov 2026 15:00:00 GMT",
    }
    assert retry_after_seconds(headers, START + timedelta(hours=1)) == 60.0
