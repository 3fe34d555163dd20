"""What a process counts, for operators: plain numbers that cost a write less than a microsecond.

Rooms add to the families below where something happens, and nothing else is done then. What the numbers come to is
worked out when somebody asks (app/runtime/exposition.py). Labels are words of a fixed list: no id, no address and
no name of anybody, so that what is counted tells of nobody and does not grow.

They count for the process, not for an application in it: Prometheus's counters are those of a process.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

Labels = tuple[str, ...]

# Seconds: answers and commits take milliseconds, notices to slow endpoints minutes.
_QUICK = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
_SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0, 3600.0, 86_400.0)


class Family:
    """Numbers of one name, one for each combination of its labels."""

    all: ClassVar[dict[str, Family]] = {}

    def __init__(self, name: str, help_: str, labels: Labels = ()) -> None:
        self.name = name
        self.help = help_
        self.labels = labels
        Family.all[name] = self


class Counter(Family):
    """Counts what has happened."""

    def __init__(self, name: str, help_: str, labels: Labels = ()) -> None:
        super().__init__(name, help_, labels)
        self.counts: dict[Labels, int] = {}

    def add(self, *labels: str, by: int = 1) -> None:
        self.counts[labels] = self.counts.get(labels, 0) + by


class Histogram(Family):
    """Counts durations by how long they were; a row has a count for each bucket, one beyond them, and the sum."""

    def __init__(
        self, name: str, help_: str, labels: Labels = (), *, buckets: Sequence[float] = _QUICK
    ) -> None:
        super().__init__(name, help_, labels)
        self.buckets = buckets
        self.rows: dict[Labels, list[float]] = {}

    def observe(self, seconds: float, *labels: str) -> None:
        row = self.rows.get(labels)
        if row is None:
            row = self.rows[labels] = [0] * (len(self.buckets) + 1) + [0.0]
        row[bisect_left(self.buckets, seconds)] += 1
        row[-1] += seconds


class Gauge(Family):
    """What is so at the moment, measured when somebody asks. `combine` makes one number of those of all processes."""

    def __init__(
        self,
        name: str,
        help_: str,
        labels: Labels = (),
        *,
        combine: Callable[[Iterable[float]], float] = sum,
    ) -> None:
        super().__init__(name, help_, labels)
        self.combine = combine


def snapshot() -> dict[str, Any]:
    """All counts of this process as JSON can write them."""
    taken: dict[str, Any] = {}
    for name, family in Family.all.items():
        if isinstance(family, Counter):
            taken[name] = [[labels, count] for labels, count in family.counts.items()]
        elif isinstance(family, Histogram):
            taken[name] = [[labels, list(row)] for labels, row in family.rows.items()]
    return taken


def add(taken: dict[str, Any]) -> None:
    """Count on from what another process, which is gone, has counted."""
    for name, entries in taken.items():
        family = Family.all.get(name)
        for labels, value in entries:
            if isinstance(family, Counter):
                family.add(*labels, by=value)
            elif isinstance(family, Histogram) and len(value) == len(family.buckets) + 2:
                row = family.rows.get(tuple(labels), [0] * len(value))
                family.rows[tuple(labels)] = [a + b for a, b in zip(row, value, strict=True)]


REQUESTS = Histogram(
    "carerelay_request_seconds",
    "Requests by interaction and class of status, and the seconds until they were answered.",
    ("interaction", "status"),
)
COMMITS = Histogram(
    "carerelay_commit_seconds",
    "Commits of resources by how they ended, and the seconds they took with their wait for others.",
    ("outcome",),
)
EVENTS = Counter("carerelay_events", "Events that were committed here.")
MATCHES = Counter("carerelay_matches", "Matches of an event and a Subscription.")
MATCH_FAILURES = Counter(
    "carerelay_match_failures", "Times that an event could not be judged for somebody."
)
DELIVERIES = Counter(
    "carerelay_deliveries",
    "What has come of deliveries: of attempts, or without one; retrying is an attempt that failed.",
    ("channel", "outcome"),
)
NOTICE_SECONDS = Histogram(
    "carerelay_notice_seconds",
    "Seconds from a commit until its notice was taken.",
    ("channel",),
    buckets=_SLOW,
)

COMMITS_UNDER_WAY = Gauge(
    "carerelay_commits_under_way", "Commits that wait for their turn or are being written."
)
DELIVERIES_IN_HAND = Gauge(
    "carerelay_deliveries_in_hand", "Deliveries that a process has claimed and not settled."
)
BROKEN_TARGETS = Gauge(
    "carerelay_broken_targets", "Delivery targets that a process spares because attempts failed."
)
CONNECTIONS = Gauge(
    "carerelay_database_connections", "Connections to the database by what they do.", ("state",)
)
LOOP_RUN = Gauge(
    "carerelay_loop_last_run_timestamp_seconds",
    "When a step of a loop last ended well, in the process where that is longest ago.",
    ("loop",),
    combine=min,
)
LOOP_TROUBLE = Gauge(
    "carerelay_loop_in_trouble",
    "Processes in which a loop has ended, fails or hangs for too long.",
    ("loop",),
)
CLOCK_AHEAD = Gauge(
    "carerelay_clock_ahead_seconds",
    "How much later it is by the calendar than by the database's clock; 0 but for tests.",
    combine=max,
)
PROCESSES = Gauge("carerelay_processes", "Processes of this server.")

OPEN_ROWS = Gauge(
    "carerelay_open_deliveries", "Deliveries in the database that are not settled.", ("state",)
)
OPEN_AGE = Gauge(
    "carerelay_open_delivery_age_seconds", "Age of the oldest of them by state.", ("state",)
)
PENDING_EVENTS = Gauge(
    "carerelay_pending_events", "Events in the database that are not matched yet."
)
PENDING_AGE = Gauge("carerelay_pending_event_age_seconds", "Age of the oldest of them.")
UNMATCHED = Gauge(
    "carerelay_unmatched", "Events in the database that are set aside for somebody until judged."
)
UNMATCHED_AGE = Gauge("carerelay_unmatched_age_seconds", "Age of the oldest of them.")
REVIEW_TASKS = Gauge(
    "carerelay_open_review_tasks",
    "Tasks of the review queue that nobody has closed, by reason; 10000 stands for more.",
    ("reason",),
)
DATABASE_UP = Gauge("carerelay_database_up", "Whether the database answered when last asked.")
DATABASE_MEASURED = Gauge(
    "carerelay_database_measured_timestamp_seconds", "When the database was last asked for these."
)
