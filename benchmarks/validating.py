"""`validating`: what R4's invariants add to the check of a resource, beside the same check without them.

Both are compiled in this process and take turns, so what else the machine does meets both. What counts as without them
are structure, types and codes, and the two rules (ext-1, per-1) that the check of the structure had before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from statistics import median
from unittest import mock

from app.fhir import json as fhir_json
from app.fhir.definitions import EXAMPLES, Element
from app.fhir.json import Resource
from app.fhir.validation import invariant_rules, invariants, structure
from app.fhir.validation.findings import Findings
from app.fhir.validation.shapes import Check
from benchmarks import resources

NAME = "validating"
BAR = 2.0
ROUNDS, REPETITIONS = 60, 4
_BEFORE = {"Extension": [invariant_rules.extension], "Period": [invariant_rules.period]}

Figures = dict[str, float]


def measure() -> Figures:
    """Microseconds for each resource with and without invariants, and their ratio with its bar, for two types."""
    figures: Figures = {}
    encounters = [fhir_json.decode_stored(text) for text in resources.encounters()]
    for resource_type, samples in (("Encounter", encounters), ("CarePlan", list(_care_plans()))):
        with _without_invariants():
            bare = structure.object_check(resource_type)
        whole = structure.object_check(resource_type)
        times = [
            (_microseconds(bare, samples), _microseconds(whole, samples)) for _ in range(ROUNDS)
        ]
        name = resource_type.lower()
        figures |= {
            f"{name}_bare_us": median(bare_us for bare_us, _ in times),
            f"{name}_us": median(us for _, us in times),
            f"{name}_ratio": median(us / bare_us for bare_us, us in times),
            f"{name}_ratio_bar": BAR,
        }
    return figures


def _care_plans() -> Iterator[Resource]:
    """Those of the invented members."""
    for path in sorted((EXAMPLES / "panel").glob("*.json")):
        for entry in fhir_json.decode(path.read_bytes())["entry"]:
            if entry["resource"]["resourceType"] == "CarePlan":
                yield entry["resource"]


@contextmanager
def _without_invariants() -> Iterator[None]:
    """Checks that are compiled in here have the rules of before, and are not kept."""

    def rules(path: str, elements: Mapping[str, Element]) -> Sequence[Callable[..., None]]:
        return _BEFORE.get(path, [])

    with mock.patch.object(invariants, "rules", rules), mock.patch.object(structure, "_checks", {}):
        yield


def _microseconds(check: Check, samples: Sequence[Resource]) -> float:
    """Processor time of the check of one of the samples."""
    begun = time.process_time_ns()
    for _ in range(REPETITIONS):
        for sample in samples:
            found = Findings()
            found.resource = found.root = sample
            check(sample, (None, sample["resourceType"], None), found)
    return (time.process_time_ns() - begun) / 1000 / REPETITIONS / len(samples)
