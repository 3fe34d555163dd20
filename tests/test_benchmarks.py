"""The benchmarks measure what they say: small ones of those that judge what the server does, not how fast."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from benchmarks import matching, notices, validating

pytestmark = [pytest.mark.mongo, pytest.mark.slow]


def test_matching_finds_one_subscription_for_each_event(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, small in (("FEW", 20), ("MANY", 60), ("EVENTS", 30), ("ROUNDS", 2)):
        monkeypatch.setattr(matching, name, small)
    figures = asyncio.run(matching.measure_on(mongod))
    assert 0 < figures["few_us"] < 100_000
    assert figures["ratio"] > 0


@pytest.mark.processes
@pytest.mark.timeout(120)
def test_every_admission_of_the_latency_benchmark_is_received(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(notices.__file__).parents[1])
    monkeypatch.setattr(notices, "WARM_UP_SECONDS", 0.5)
    figures = notices.measure(["latency20"], mongod, seconds=1.0, say=lambda _: None)["latency20"]
    assert figures["events"] == 20
    assert 0 < figures["p50_ms"] <= figures["p99_ms"] < 10_000


def test_invariants_are_measured_beside_the_check_without_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The bar is for an idle machine; both checks take turns, so a busy one does not make it many times as much."""
    monkeypatch.setattr(validating, "ROUNDS", 5)
    figures = validating.measure()
    for name in ("encounter", "careplan"):
        assert figures[f"{name}_ratio"] < 5
        assert figures[f"{name}_bare_us"] > 0
