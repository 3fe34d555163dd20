"""The metrics of all processes of a server as one page in the format of Prometheus.

https://prometheus.io/docs/instrumenting/exposition_formats/

Processes that share a port cannot be told apart by whoever scrapes it: one of them answers for all. Each writes its
numbers into a file of a directory that they share, once a second and before it answers, and adds up all of them. The
database takes no part in it, since it is when that fails that somebody has to see them.

A process takes the first file that nobody else has locked, and counts on from what it finds there: counters do not go
back when a worker has died and another takes its place, and there are never more files than workers. What is measured
and not counted is a process's own and ends with it (docs/decisions/0022-metrics-and-readiness.md).
"""

from __future__ import annotations

import asyncio
import fcntl
import itertools
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from app.runtime import metrics
from app.runtime.loops import Loop, Loops
from app.runtime.metrics import Counter, Family, Gauge, Histogram, Labels

Measurement = tuple[Gauge, Labels, float]
Measure = Callable[[], Iterable[Measurement]]

# What a process measured longer ago than this is of one that has ended, or has stalled.
_MEASURED_LATELY = 10.0
_EVERY = 1.0


class Exposition:
    """The metrics of this process, and with a directory those of the processes that share it.

    `measure` gives the gauges of this process.
    """

    def __init__(self, measure: Measure, directory: Path | None) -> None:
        self._measure = measure
        self._directory = directory
        self._place: Path | None = None
        self._lock: int | None = None
        self.loops = Loops(*([Loop("metrics")] if directory is not None else ()))

    def start(self) -> None:
        """Take a file and count on from it, where there is a directory."""
        if self._directory is None:
            return
        for number in itertools.count():
            lock = os.open(self._directory / f"{number}.lock", os.O_CREAT | os.O_RDWR, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                os.close(lock)
                continue
            self._lock = lock
            self._place = place = self._directory / f"{number}.json"
            if (left := _read(place)) is not None:
                metrics.add(left["counts"])
            break
        self._write()
        self.loops["metrics"].start(self._run())

    async def stop(self) -> None:
        """Leave the file to the next process; what was measured ends."""
        await self.loops.end()
        if self._lock is not None:
            self._write(ended=True)
            os.close(self._lock)
            self._lock = None

    def page(self, accept: str, more: Sequence[Measurement] = ()) -> tuple[bytes, str]:
        """The page and its media type; `more` are gauges that are not of one process."""
        own = self._write()
        found = [own, *self._of_others()]
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Page(found, more))
        encode, media_type = choose_encoder(accept)
        return encode(registry), media_type

    async def _run(self) -> None:
        while True:
            with self.loops["metrics"].step():
                self._write()
            await asyncio.sleep(_EVERY)

    def _write(self, *, ended: bool = False) -> dict[str, Any]:
        """The numbers of this process, which it has also put into its file."""
        measured = [] if ended else [*self._measure(), (metrics.PROCESSES, (), 1)]
        own: dict[str, Any] = {
            "at": time.time(),
            "counts": metrics.snapshot(),
            "gauges": [[gauge.name, labels, value] for gauge, labels, value in measured],
        }
        if self._place is not None:
            new = self._place.with_suffix(".new")
            new.write_text(json.dumps(own))
            new.replace(self._place)
        return own

    def _of_others(self) -> list[dict[str, Any]]:
        if self._directory is None:
            return []
        places = sorted(self._directory.glob("*.json"))
        return [each for place in places if place != self._place and (each := _read(place))]


def _read(place: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(place.read_text())
    except FileNotFoundError:
        return None
    return found


class _Page:
    """Collects what the numbers of several processes come to."""

    def __init__(self, processes: Sequence[dict[str, Any]], more: Sequence[Measurement]) -> None:
        self._processes = processes
        self._more = more

    def collect(self) -> Iterator[Metric]:
        gauges = self._gauges()
        for name, family in Family.all.items():
            if isinstance(family, Counter):
                yield _counter(family, self._summed(name))
            elif isinstance(family, Histogram):
                yield _histogram(family, self._summed(name))
            elif isinstance(family, Gauge) and name in gauges:
                shown = GaugeMetricFamily(name, family.help, labels=family.labels)
                for labels, values in sorted(gauges[name].items()):
                    shown.add_metric(labels, family.combine(values))
                yield shown

    def _summed(self, name: str) -> dict[Labels, list[float]]:
        """The counts of all processes by labels; a counter's is a list of one."""
        summed: dict[Labels, list[float]] = {}
        for each in self._processes:
            for labels, value in each["counts"].get(name, ()):
                row = value if isinstance(value, list) else [value]
                before = summed.get(tuple(labels), [0] * len(row))
                if len(before) == len(row):  # a file may be left of a server with other buckets
                    summed[tuple(labels)] = [a + b for a, b in zip(before, row, strict=True)]
        return dict(sorted(summed.items()))

    def _gauges(self) -> dict[str, dict[Labels, list[float]]]:
        found: dict[str, dict[Labels, list[float]]] = defaultdict(lambda: defaultdict(list))
        since = time.time() - _MEASURED_LATELY
        for each in self._processes:
            if each["at"] >= since:
                for name, labels, value in each["gauges"]:
                    found[name][tuple(labels)].append(value)
        for gauge, labels, value in self._more:
            found[gauge.name][labels].append(value)
        return found


def _counter(family: Counter, counts: dict[Labels, list[float]]) -> Metric:
    shown = CounterMetricFamily(family.name, family.help, labels=family.labels)
    if not family.labels:
        counts = counts or {(): [0]}
    for labels, (count,) in counts.items():
        shown.add_metric(labels, count)
    return shown


def _histogram(family: Histogram, rows: dict[Labels, list[float]]) -> Metric:
    shown = HistogramMetricFamily(family.name, family.help, labels=family.labels)
    bounds = [*(f"{bound:g}" for bound in family.buckets), "+Inf"]
    for labels, (*counts, total) in rows.items():
        upto = itertools.accumulate(counts)
        shown.add_metric(labels, list(zip(bounds, upto, strict=True)), total)
    return shown
