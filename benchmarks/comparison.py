"""The server against the baseline, in turn: A B A B A B, and the median of the pairs' ratios.

A ratio of two runs that follow one another says more than either figure: what else the machine does meets both.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from pymongo import MongoClient

from app.runtime.embedded_mongod import EmbeddedMongo
from benchmarks import population, processes
from benchmarks.baseline import SERVER_DATABASE
from benchmarks.workloads import STORED

SETTLE_SECONDS = 120.0

Figures = dict[str, float]


@dataclass(frozen=True)
class Benchmark:
    """A workload of the server, the one of the baseline that it is held against, and the ratio to reach."""

    ours: str
    baseline: str
    bar: float
    unit: str


BENCHMARKS = {
    "read": Benchmark("read", "read", 0.85, "reads/s"),
    "page50": Benchmark("page50", "page50", 0.7, "pages/s"),
    "create": Benchmark("create", "create", 1.0, "creates/s"),  # 0.65 without group commit
    "tx100": Benchmark("tx100", "create", 1.8, "resources/s"),
}


def measure(
    names: Sequence[str], *, seconds: float, runs: int, say: Callable[[str], None]
) -> dict[str, Figures]:
    """The figures of these benchmarks, each from so many pairs of runs.

    `ours` and `baseline` are medians of units per second, `ratio` is the median of the pairs' ratios, `ours_p50_ms`
    and so on are medians of request latencies, `ours_settle_s` is how long the server's own work (its events) went on
    after the last answer of a run. Raises processes.BenchmarkError.
    """
    with (
        tempfile.TemporaryDirectory(prefix="carerelay-bench-") as directory,
        EmbeddedMongo(Path(directory)) as mongo,
        processes.server(mongo.uri) as ours,
        processes.baseline(mongo.uri) as baseline,
    ):
        say(f"storing {STORED} Encounters")
        processes.load("fill", ours, SETTLE_SECONDS, STORED)
        _settle(mongo.uri)
        if "page50" in names:
            say("storing CarePlans")
            population.seed(mongo.uri, SERVER_DATABASE, population.BLOCK, ["CarePlan"])
        figures = {}
        for name in names:
            benchmark, pairs = BENCHMARKS[name], []
            for number in range(1, runs + 1):
                say(f"{name}: pair {number} of {runs}")
                measured = processes.load(benchmark.ours, ours, seconds)
                measured["settle_s"] = _settle(mongo.uri)
                pairs.append((measured, processes.load(benchmark.baseline, baseline, seconds)))
            figures[name] = _figures(benchmark, pairs)
        return figures


def _figures(benchmark: Benchmark, pairs: Sequence[tuple[Figures, Figures]]) -> Figures:
    figures = {
        "ours": median(ours["per_second"] for ours, _ in pairs),
        "baseline": median(baseline["per_second"] for _, baseline in pairs),
        "ratio": median(ours["per_second"] / baseline["per_second"] for ours, baseline in pairs),
        "bar": benchmark.bar,
        "ours_settle_s": median(ours["settle_s"] for ours, _ in pairs),
    }
    for key in ("p50_ms", "p99_ms"):
        figures[f"ours_{key}"] = median(ours[key] for ours, _ in pairs)
        figures[f"baseline_{key}"] = median(baseline[key] for _, baseline in pairs)
    return {key: round(value, 3) for key, value in figures.items()}


def _settle(uri: str) -> float:
    """Wait until the server has seen to every event of the last run, so that it is idle while the baseline runs."""
    begin = time.monotonic()
    with MongoClient(uri) as client:
        events = client[SERVER_DATABASE]["events"]
        while events.find_one({"state": "pending"}) is not None:
            if time.monotonic() - begin > SETTLE_SECONDS:
                raise processes.BenchmarkError(
                    f"Events are still pending {SETTLE_SECONDS:.0f} s after the run."
                )
            time.sleep(0.05)
    return time.monotonic() - begin
