"""What a process remembers of patients of whom nothing is amiss."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from app.automation import review_tasks
from app.automation.review_tasks import SECONDS, RecentlyChecked

AT = datetime(2026, 3, 1, tzinfo=UTC)


class Hand:
    """A clock that tests move."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_it_lasts_by_the_clock_it_was_given() -> None:
    clock = Hand()
    recently = RecentlyChecked(clock)
    recently.note("Patient/p1", AT, recently.changes)
    clock.now += SECONDS - 1
    assert recently.knows("Patient/p1")
    recently.note("Patient/p1", AT, recently.changes)
    clock.now += SECONDS - 1
    assert recently.knows("Patient/p1")
    clock.now += 1
    assert not recently.knows("Patient/p1")
    assert not recently.knows("Patient/p2")


@pytest.mark.parametrize(
    ("kind", "known"), [("Encounter", True), ("CareTeam", False), ("Patient", False)]
)
def test_what_decides_has_everything_forgotten(kind: str, known: bool) -> None:
    recently = RecentlyChecked(Hand())
    recently.note("Patient/p1", AT, recently.changes)
    event: Any = SimpleNamespace(type=kind)
    recently.on_events([event])
    assert recently.knows("Patient/p1") is known


def test_what_was_read_before_a_change_is_not_known() -> None:
    recently = RecentlyChecked(Hand())
    begun = recently.changes
    recently.on_events([SimpleNamespace(type="Patient")])  # type: ignore[list-item]
    recently.note("Patient/p1", AT, begun)
    assert not recently.knows("Patient/p1")


def test_it_was_not_known_before_it_was_read() -> None:
    recently = RecentlyChecked(Hand())
    recently.note("Patient/p1", AT, recently.changes)
    assert recently.knew("Patient/p1", AT)
    assert not recently.knew("Patient/p1", AT - timedelta(milliseconds=1))


def test_it_does_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(review_tasks, "_REMEMBERED", 10)
    recently = RecentlyChecked(Hand())
    for number in range(100):
        recently.note(f"Patient/p{number}", AT, recently.changes)
    known = [number for number in range(100) if recently.knows(f"Patient/p{number}")]
    assert known == list(range(90, 100))
