"""The numbers of notice timeliness as a MeasureReport and as CSV.

https://hl7.org/fhir/R4/measurereport.html
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

from app.fhir.codes import BASE
from app.fhir.instants import instant
from app.fhir.json import Resource
from app.proof.csv_text import csv_text
from app.proof.stays import KINDS, EventKind, StaysQuery
from app.proof.timeliness import STRATIFIERS, TOTAL, Tally, Timeliness

MEASURE_ID = "carerelay-notice-timeliness"
MEASURE = f"{BASE}Measure/{MEASURE_ID}"
_POPULATION = "http://terminology.hl7.org/CodeSystem/measure-population"
COLUMNS = (
    *("event", "practice", "practice_name", "hospital", "hospital_name", "month"),
    *("denominator", "numerator", "late", "share"),
)


def measure_report(found: Timeliness, period: StaysQuery, at: datetime) -> Resource:
    """The MeasureReport of a summary."""
    return {
        "resourceType": "MeasureReport",
        "status": "complete",
        "type": "summary",
        "measure": MEASURE,
        "date": instant(at),
        "period": {"start": period.start.isoformat(), "end": period.end.isoformat()},
        "improvementNotation": {
            "coding": [
                {
                    "system": "http://terminology.hl7.org/CodeSystem/measure-improvement-notation",
                    "code": "increase",
                }
            ]
        },
        "group": [_group(found, kind) for kind in KINDS],
    }


def _group(found: Timeliness, kind: EventKind) -> Resource:
    group: Resource = {
        "code": {"text": kind},
        **_counts(found.tallies[kind][TOTAL]),
    }
    stratifiers = [
        {
            "code": [{"text": name}],
            "stratum": [
                {"value": _concept(found, value), **_counts(tally)}
                for value, tally in found.strata(kind, name)
            ],
        }
        for name in STRATIFIERS
    ]
    stratifiers.append(
        {
            "code": [{"text": "practice, hospital and month"}],
            "stratum": [
                {"component": _components(found, values), **_counts(tally)}
                for values, tally in found.combinations(kind)
            ],
        }
    )
    group["stratifier"] = [each for each in stratifiers if each["stratum"]]
    if not group["stratifier"]:
        del group["stratifier"]
    return group


def _components(found: Timeliness, values: Sequence[str]) -> list[Resource]:
    return [
        {"code": {"text": name}, "value": _concept(found, value)}
        for name, value in zip(STRATIFIERS, values, strict=True)
    ]


def _concept(found: Timeliness, value: str) -> Resource:
    """The value as its text; a practice or hospital has its name as the display of a coding."""
    concept: Resource = {"text": value}
    if found.names.get(value):
        concept["coding"] = [{"code": value, "display": found.names[value]}]
    return concept


def _counts(tally: Tally) -> dict[str, Any]:
    counts: dict[str, Any] = {
        "population": [
            {"code": {"coding": [{"system": _POPULATION, "code": code}]}, "count": count}
            for code, count in (
                ("initial-population", tally.denominator),
                ("denominator", tally.denominator),
                ("numerator", tally.numerator),
            )
        ]
    }
    if tally.share is not None:
        counts["measureScore"] = {"value": tally.share}
    return counts


def as_csv(found: Timeliness) -> str:
    """A line for the total, for each stratum and for each combination; an empty cell means all."""
    return csv_text(COLUMNS, _lines(found))


def _lines(found: Timeliness) -> Iterator[Sequence[object]]:
    for kind in KINDS:
        tallies = found.tallies[kind]
        for key in sorted(tallies, key=lambda each: [value or "" for value in each]):
            practice, hospital, month = key
            tally = tallies[key]
            yield (
                kind,
                practice,
                found.names.get(practice or ""),
                hospital,
                found.names.get(hospital or ""),
                month,
                tally.denominator,
                tally.numerator,
                tally.late,
                tally.share,
            )
