"""Data that lies beside a checkout and is no part of it: official examples, Synthea patients, guides."""

from __future__ import annotations

import bz2
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.fhir.json import Resource, decode

SHARED = Path(os.environ.get("CARERELAY_SHARED", Path(__file__).parents[2] / "shared"))

needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason=f"the shared test data is not at {SHARED} (CARERELAY_SHARED)"
)

# Official examples with a narrative that shows nothing, against txt-2 (docs/decisions/0037-invariants.md).
EMPTY_NARRATIVES = frozenset(
    {
        "ActivityDefinition-blood-tubes-supply.json",
        "ActivityDefinition-heart-valve-replacement.json",
        "EventDefinition-example.json",
        "Questionnaire-zika-virus-exposure-assessment.json",
    }
)


def with_nulls(value: Any) -> Any:
    """A value with a null for each repetition of a primitive that has none, which some of the examples leave out.

    https://hl7.org/fhir/R4/json.html#primitive wants them; XML has nothing to leave out.
    """
    if isinstance(value, list):
        return [with_nulls(each) for each in value]
    if not isinstance(value, dict):
        return value
    nulls = {
        key[1:]: [None] * len(each)
        for key, each in value.items()
        if key[0] == "_" and isinstance(each, list)
    }
    return nulls | {key: with_nulls(each) for key, each in value.items()}


def resources(pattern: str) -> Iterator[tuple[str, Resource]]:
    """Name and content of every resource in `data/` that the pattern finds; .bz2 is unpacked."""
    for path in sorted((SHARED / "data").glob(pattern)):
        body = path.read_bytes()
        resource = decode(bz2.decompress(body) if path.suffix == ".bz2" else body)
        if "resourceType" in resource:
            yield path.name, resource
