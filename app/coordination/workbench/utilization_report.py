"""The counts of utilization as a MeasureReport and as CSV. https://hl7.org/fhir/R4/measurereport.html"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from app.coordination.workbench.member_findings import Period
from app.coordination.workbench.utilization_counts import ALL, EVENTS, Event, Key, Utilization
from app.fhir.codes import BASE
from app.fhir.instants import instant
from app.fhir.json import Resource

MEASURE = f"{BASE}Measure/carerelay-utilization"
_POPULATION = "http://terminology.hl7.org/CodeSystem/measure-population"
COLUMNS = (
    *("event", "practice", "practice_name", "hospital", "hospital_name"),
    *("count", "members", "per_1000", "per_1000_a_year"),
)
# Which parts of a key each of them has.
_STRATIFIERS = (
    ("practice", [True, False]),
    ("hospital", [False, True]),
    ("practice and hospital", [True, True]),
)
Names = Mapping[str, str]


def measure_report(found: Utilization, names: Names, period: Period, at: datetime) -> Resource:
    """A summary with a group for each event; the score is the number for 1,000 members in the period."""
    zone = period.zone
    return {
        "resourceType": "MeasureReport",
        "status": "complete",
        "type": "summary",
        "measure": MEASURE,
        "date": instant(at),
        "period": {
            "start": period.start.astimezone(zone).date().isoformat(),
            "end": period.end.astimezone(zone).date().isoformat(),
        },
        "group": [_group(found, event, names) for event in EVENTS],
    }


def _group(found: Utilization, event: Event, names: Names) -> Resource:
    counts = found.counts[event]
    group: Resource = {
        "code": {"text": event},
        "population": [
            _count("initial-population", found.members),
            _count("denominator", found.members),
            _count("numerator", counts[ALL]),
        ],
    }
    score = found.per_1000(event)
    if score is not None:
        group["measureScore"] = {"value": score}
    stratifiers = [
        _stratifier(
            name,
            [(key, counts[key]) for key in _ordered(counts) if [bool(each) for each in key] == of],
            names,
        )
        for name, of in _STRATIFIERS
    ]
    if len(counts) > 1:
        group["stratifier"] = stratifiers
    return group


def _stratifier(name: str, counted: Sequence[tuple[Key, int]], names: Names) -> Resource:
    return {
        "code": [{"text": name}],
        "stratum": [
            {**_value(key, names), "population": [_count("numerator", count)]}
            for key, count in counted
        ],
    }


def _value(key: Key, names: Names) -> dict[str, Any]:
    if None not in key:
        parts = zip(("practice", "hospital"), key, strict=True)
        return {
            "component": [
                {"code": {"text": name}, "value": _concept(each or "", names)}
                for name, each in parts
            ]
        }
    return {"value": _concept(key[0] or key[1] or "", names)}


def _concept(reference: str, names: Names) -> Resource:
    concept: Resource = {"text": reference}
    if reference in names:
        concept["coding"] = [{"code": reference, "display": names[reference]}]
    return concept


def _count(code: str, count: int) -> Resource:
    return {"code": {"coding": [{"system": _POPULATION, "code": code}]}, "count": count}


def lines(found: Utilization, names: Names) -> Iterator[Sequence[object]]:
    """The cells of the total, of each practice, hospital and of both together, as COLUMNS has them; empty means all."""
    for event in EVENTS:
        counts = found.counts[event]
        for key in _ordered(counts):
            practice, hospital = key
            total = key == ALL
            yield (
                event,
                practice,
                names.get(practice or ""),
                hospital,
                names.get(hospital or ""),
                counts[key],
                found.members if total else None,
                found.per_1000(event) if total else None,
                found.per_1000_a_year(event) if total else None,
            )


def _ordered(counts: Mapping[Key, int]) -> list[Key]:
    return sorted(counts, key=lambda key: (key[0] or "", key[1] or ""))
