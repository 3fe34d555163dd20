"""The retry policy as tables over time: no clock, no waiting."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from app.subscriptions.sending.retry import RetryPolicy, Verdict, judge, retry_after_seconds

START = datetime(2026, 11, 21, 15, 0, tzinfo=UTC)
DAY = 24 * 3600.0


def policy(window: float = 3 * DAY, jitter: float = 0.999) -> RetryPolicy:
    return RetryPolicy(window, lambda: jitter)


@pytest.mark.parametrize(
    ("status", "verdict"),
    [
        pytest.param(200, Verdict.DELIVERED, id="ok"),
        pytest.param(204, Verdict.DELIVERED, id="no-content"),
        pytest.param(None, Verdict.RETRY, id="no-answer"),
        pytest.param(302, Verdict.RETRY, id="redirect"),
        pytest.param(400, Verdict.RETRY, id="bad-request"),
        pytest.param(401, Verdict.STOP, id="unauthorized"),
        pytest.param(403, Verdict.STOP, id="forbidden"),
        pytest.param(404, Verdict.STOP, id="not-found"),
        pytest.param(408, Verdict.RETRY, id="timeout"),
        pytest.param(410, Verdict.STOP, id="gone"),
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
    due = policy(jitter=jitter).next_attempt(attempts, START, now)
    assert due is not None
    wait = (due - now).total_seconds()
    assert longest / 2 <= wait <= longest


def test_the_whole_schedule_keeps_its_promises() -> None:
    """Played to its end: never more than 30 s apart in the first ten minutes, nor 15 min later; the last at the end."""
    rules, now, attempts, gaps = policy(), START, 1, []
    while (due := rules.next_attempt(attempts, START, now)) is not None:
        gaps.append(((now - START).total_seconds(), (due - now).total_seconds()))
        now, attempts = due, attempts + 1
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
        pytest.param(0, 4 * DAY, None, id="beyond-the-window"),
    ],
)
def test_retry_after_is_honoured(
    elapsed: float, retry_after: float, expected: float | None
) -> None:
    now = START + timedelta(seconds=elapsed)
    due = policy(jitter=0.999).next_attempt(1 if elapsed == 0 else 10, START, now, retry_after)
    wait = None if due is None else (due - now).total_seconds()
    assert wait == (None if expected is None else pytest.approx(expected))


def test_nothing_is_tried_once_the_window_is_over() -> None:
    assert policy(60).next_attempt(9, START, START + timedelta(seconds=60)) is None


def test_the_last_attempt_falls_on_the_end_of_the_window() -> None:
    end = START + timedelta(seconds=60)
    assert policy(60).next_attempt(9, START, end - timedelta(seconds=3)) == end


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        pytest.param("120", 120.0, id="seconds"),
        pytest.param("Sat, 21 Nov 2026 15:01:00 GMT", 60.0, id="date"),
        pytest.param("Sat, 21 Nov 2026 14:00:00 GMT", 0.0, id="past"),
        pytest.param("soon", None, id="unreadable"),
        pytest.param("-5", None, id="negative"),
        pytest.param("", None, id="empty"),
    ],
)
def test_reading_retry_after(value: str, seconds: float | None) -> None:
    assert retry_after_seconds({"retry-after": value}, START) == seconds
