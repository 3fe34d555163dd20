"""`growth`: what selective queries cost when there are so many times as many patients.

Two servers on two databases of one mongod, a small population and a large one, are asked the same question in turn, so
what else the machine does meets both. Each question finds as many resources in either population.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from http.client import HTTPConnection
from itertools import count, cycle
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import quote

from app.fhir.instants import instant
from app.runtime.embedded_mongod import EmbeddedMongo
from benchmarks import processes
from benchmarks.population import (
    BLOCK,
    GROUPS,
    MRN,
    RARE_SYSTEM,
    SNOMED,
    mrn,
    name,
    rare_code,
    resource_id,
    seed,
    stored_at,
)

SCALE = 16
MEDIAN_BAR, P99_BAR, P99_SLACK_MS = 1.35, 2.0, 15.0
REQUESTS, WARM_UP = 300, 60
# Pages turned before those whose time is taken: to the middle of a small result, to a limit in a large one.
MIDDLE, DEEPEST, DISTINCT = 40, 400, 30
_STRIDE = 7919  # prime to all sizes, so that patients come out of order
_SAFE = "/?&=:|,"
_CATEGORY = "http://terminology.hl7.org/CodeSystem/condition-category"
_PLAN_CATEGORY = "http://hl7.org/fhir/us/core/CodeSystem/careplan-category"

Figures = dict[str, float]


@dataclass(frozen=True)
class Question:
    """A query about the patient of that number, in a population of that size. `least` entries are in every answer."""

    ask: Callable[[int, int], str]
    least: int = 0


def _about(text: str) -> Callable[[int, int], str]:
    """A query with the patient's id in it."""
    return lambda patient, _: text.format(resource_id("Patient", patient))


def _full_name(patient: int, _: int) -> str:
    family, given = name(patient)
    return f"Patient?family={family}&given={given}"


def _chained(patient: int, _: int) -> str:
    return f"CarePlan?patient.identifier={MRN}|{mrn(patient)}"


def _rare(patient: int, _: int) -> str:
    return f"Patient?_has:Condition:patient:code={RARE_SYSTEM}|{rare_code(patient)}"


def _cohort(patient: int, _: int) -> str:
    group = resource_id("Group", patient - patient % BLOCK + patient % GROUPS)
    return f"CarePlan?status=active&patient._has:Group:member:_id={group}"


def _changed(_: int, patients: int) -> str:
    since = instant(stored_at(patients) - timedelta(seconds=60))
    category = f"{_PLAN_CATEGORY}|longitudinal"
    return f"CarePlan?status=active&category={category}&_lastUpdated=ge{since}"


QUESTIONS: Mapping[str, Question] = {
    "patient+status": Question(_about("CarePlan?patient={}&status=active")),
    "patient+category": Question(
        _about(f"Condition?patient={{}}&category={_CATEGORY}|problem-list-item")
    ),
    "patient+date": Question(_about("Encounter?patient={}&date=ge2019&date=lt2023")),
    "patient+code": Question(_about(f"Condition?patient={{}}&code={SNOMED}|44054006")),
    "identifier": Question(lambda patient, _: f"Patient?identifier={MRN}|{mrn(patient)}", 1),
    "full name": Question(_full_name, 1),
    "chained": Question(_chained, 2),
    "_has rare code": Question(_rare, 10),
    "_has cohort": Question(_cohort, 5),
    "_include": Question(
        _about("CarePlan?patient={}&_include=CarePlan:patient&_include=CarePlan:goal"), 6
    ),
    "sorted by date": Question(_about("Encounter?patient={}&_sort=-date&_count=5"), 5),
    "changed since": Question(_changed, 5),
}
DEEP = "deep page"
_DEEP_QUERY = "Encounter?status=finished&_count=50"


def measure(
    say: Callable[[str], None], *, scale: int = SCALE, requests: int = REQUESTS
) -> dict[str, Any]:
    """The worst ratios and their bars, and for each question median and p99 in milliseconds, small and large.

    Raises processes.BenchmarkError where an answer is wrong: there are no errors to be counted.
    """
    with (
        tempfile.TemporaryDirectory(prefix="carerelay-bench-") as directory,
        EmbeddedMongo(Path(directory)) as mongo,
    ):
        begin = time.monotonic()
        stored = 0
        for database, patients in (("small", BLOCK), ("large", scale * BLOCK)):
            say(f"growth: storing {patients:,} patients")
            stored = seed(mongo.uri, database, patients)
        seeded = time.monotonic() - begin
        questions = ask(mongo.uri, scale, requests, say)
    return {
        "scale": scale,
        "resources": stored,
        "seed_s": round(seeded, 1),
        "median_ratio": max(each["median_ratio"] for each in questions.values()),
        "median_ratio_bar": MEDIAN_BAR,
        "p99_of_bar": max(each["p99_of_bar"] for each in questions.values()),
        "p99_of_bar_bar": 1.0,
        "questions": questions,
    }


def ask(uri: str, scale: int, requests: int, say: Callable[[str], None]) -> dict[str, Figures]:
    """The figures of each question, from two servers on the databases `small` and `large`."""
    with processes.server_on(uri, "small") as small, processes.server_on(uri, "large") as large:
        pair = (_Population(small, BLOCK), _Population(large, scale * BLOCK))
        questions = {}
        for title in (*QUESTIONS, DEEP):
            say(f"growth: {title}")
            questions[title] = _compare(title, pair, requests)
        return questions


def _compare(title: str, pair: tuple[_Population, _Population], requests: int) -> Figures:
    """The same question to both in turn, each time about other patients."""
    places = [each.places(title) for each in pair]
    for each in pair:
        each.reconnect()
    least = QUESTIONS[title].least if title in QUESTIONS else 50
    spent: tuple[list[float], list[float]] = ([], [])
    for number in range(WARM_UP + requests):
        for index in (0, 1) if number % 2 else (1, 0):
            milliseconds, body = pair[index].get(next(places[index]))
            if body.count(b'"fullUrl"') < least:
                raise processes.BenchmarkError(f"{title}: fewer than {least} entries")
            if number >= WARM_UP:
                spent[index].append(milliseconds)
    small, large = (sorted(each) for each in spent)
    p99 = [each[len(each) * 99 // 100] for each in (small, large)]
    figures = {
        "small_p50_ms": median(small),
        "large_p50_ms": median(large),
        "median_ratio": median(large) / median(small),
        "small_p99_ms": p99[0],
        "large_p99_ms": p99[1],
        "p99_of_bar": p99[1] / max(P99_BAR * p99[0], p99[0] + P99_SLACK_MS),
    }
    return {key: round(value, 3) for key, value in figures.items()}


class _Population:
    """A server and how many patients it knows."""

    def __init__(self, port: int, patients: int) -> None:
        self._connection = HTTPConnection(processes.LOOPBACK, port, timeout=60)
        self.patients = patients

    def get(self, place: str) -> tuple[float, bytes]:
        """Milliseconds until the answer was read, and the answer. Raises BenchmarkError unless that is 200."""
        begin = time.perf_counter()
        self._connection.request("GET", place)
        response = self._connection.getresponse()
        body = response.read()
        spent = time.perf_counter() - begin
        if response.status != 200:
            raise processes.BenchmarkError(f"{place}: status {response.status}: {body[:500]!r}")
        return spent * 1000, body

    def reconnect(self) -> None:
        """The server closes a connection that was idle while the other population was asked alone."""
        self._connection.close()

    def places(self, title: str) -> Iterator[str]:
        """Endless places to ask the question at."""
        return cycle(self._deep_pages()) if title == DEEP else self._asked(title)

    def _asked(self, title: str) -> Iterator[str]:
        for number in count():
            place = QUESTIONS[title].ask(number * _STRIDE % self.patients, self.patients)
            yield f"/fhir/{quote(place, safe=_SAFE)}"

    def _deep_pages(self) -> list[str]:
        """Pages in the middle of a large result, or as deep as is turned to, reached as a client would."""
        depth = min(DEEPEST, MIDDLE * self.patients // BLOCK)
        self.reconnect()
        place, places = f"/fhir/{_DEEP_QUERY}", []
        for number in range(depth + DISTINCT):
            _, body = self.get(place)
            (url,) = (
                link["url"] for link in json.loads(body)["link"] if link["relation"] == "next"
            )
            place = url[url.index("/fhir/") :]
            if number >= depth:
                places.append(place)
        return places
