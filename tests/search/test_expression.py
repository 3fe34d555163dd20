"""Search parameter expressions: all of R4's compile, and they find what a FHIRPath engine finds."""

from __future__ import annotations

import json
import os
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import bson
import fhirpathpy
import pytest
from fhirpathpy.models import models

from app.fhir import definitions
from app.search.expression import compiled, evaluate, refers_to
from app.search.extract import extract
from app.search.fhirpath import NotCompilableError
from app.search.search_parameters import parameters, uncompiled

SHARED = Path(os.environ.get("CARERELAY_SHARED", Path(__file__).parents[3] / "shared"))
EXAMPLES = SHARED / "data" / "r4-examples"
needs_examples = pytest.mark.skipif(
    not EXAMPLES.is_dir(), reason="the official R4 examples are not in this checkout"
)

# R4 gives these no expression.
WITHOUT_EXPRESSION = {"_text", "_content", "_query"}


def official_examples() -> list[dict[str, Any]]:
    texts = [path.read_text() for path in sorted(EXAMPLES.glob("*.json"))]
    resources = [json.loads(text, parse_float=Decimal) for text in texts]
    return [each for each in resources if each["resourceType"] in definitions.SUPPORTED_TYPES]


@pytest.mark.parametrize("resource_type", definitions.SUPPORTED_TYPES)
def test_every_parameter_compiles_and_has_values_to_store(resource_type: str) -> None:
    assert set(uncompiled(resource_type)) <= WITHOUT_EXPRESSION
    defined = set(definitions.search_parameters(resource_type))
    assert set(parameters(resource_type)) == defined - WITHOUT_EXPRESSION
    for parameter in parameters(resource_type).values():
        assert parameter.paths or parameter.type == "special"


PATIENT: dict[str, Any] = {
    "resourceType": "Patient",
    "deceasedDateTime": "2026-01-02",
    "telecom": [
        {"system": "phone", "value": "555"},
        {"system": "email", "value": "a@example.org"},
        {"value": "?"},
    ],
    "extension": [
        {
            "url": "http://example.org/race",
            "extension": [
                {"url": "ombCategory", "valueCoding": {"code": "2106-3"}},
                {"url": "text", "valueString": "White"},
            ],
        },
        {"url": "http://example.org/date", "valueDateTime": "2026"},
    ],
    "contact": [{"relationship": [{"text": "x"}]}, {}, {"relationship": [{"text": "y"}]}],
    "generalPractitioner": [
        {"reference": "Practitioner/1"},
        {"reference": "http://example.org/fhir/Organization/2/_history/1"},
        {"reference": "urn:uuid:1", "type": "Organization"},
        {"reference": "#here"},
        {"display": "somebody"},
    ],
}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        pytest.param(
            "Patient.telecom.where(system = 'phone').value", [("string", "555")], id="where-equal"
        ),
        pytest.param(
            "Patient.telecom.where(system.exists()).system",
            [("code", "phone"), ("code", "email")],
            id="where-exists",
        ),
        pytest.param(
            "Patient.telecom.where(system='email' and value='b').value", [], id="where-and"
        ),
        pytest.param("Patient.telecom[1].value", [("string", "a@example.org")], id="indexer"),
        pytest.param("Patient.telecom.first().value", [("string", "555")], id="first"),
        pytest.param("Patient.deceased", [("dateTime", "2026-01-02")], id="choice"),
        pytest.param("(Patient.deceased as dateTime)", [("dateTime", "2026-01-02")], id="as"),
        pytest.param("Patient.deceased.as(boolean)", [], id="as-function"),
        pytest.param(
            "Patient.deceased.ofType(dateTime)", [("dateTime", "2026-01-02")], id="of-type"
        ),
        pytest.param("Patient.deceased.exists()", [("boolean", True)], id="exists"),
        pytest.param(
            "Patient.deceased.exists() and Patient.deceased != false", [("boolean", True)], id="and"
        ),
        pytest.param(
            "Patient.contact.relationship.text | Practitioner.name.text",
            [("string", "x"), ("string", "y")],
            id="union-with-another-type",
        ),
        pytest.param(
            "Patient.extension('http://example.org/date').value",
            [("dateTime", "2026")],
            id="extension",
        ),
        pytest.param(
            "Patient.extension.where(url = 'http://example.org/race').extension.value.code",
            [("code", "2106-3")],
            id="nested-extension",
        ),
        pytest.param(
            "Patient.generalPractitioner.where(resolve() is Practitioner).reference",
            [("string", "Practitioner/1")],
            id="resolve",
        ),
        pytest.param("Resource.id", [], id="absent"),
        pytest.param("Observation.code", [], id="other-type"),
    ],
)
def test_expression_finds_typed_values(expression: str, expected: list[tuple[str, Any]]) -> None:
    assert list(evaluate("Patient", expression, PATIENT)) == expected


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param("Patient.nonsense", id="unknown-element"),
        pytest.param("Nonsense.name", id="unknown-type"),
        pytest.param("Patient.name.trace('x')", id="unknown-function"),
        pytest.param("Patient.name.", id="ends-early"),
        pytest.param("Patient.name )", id="too-much"),
        pytest.param("Patient.name & 'x'", id="unknown-operator"),
    ],
)
def test_expression_beyond_the_subset_is_refused(expression: str) -> None:
    with pytest.raises(NotCompilableError):
        compiled("Patient", expression)


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        pytest.param({"reference": "Organization/1"}, True, id="relative"),
        pytest.param({"reference": "https://x.org/Organization/1/_history/3"}, True, id="absolute"),
        pytest.param({"reference": "Patient/1", "type": "Organization"}, False, id="url-decides"),
        pytest.param({"reference": "urn:uuid:x", "type": "Organization"}, True, id="by-type"),
        pytest.param({"reference": "#x", "type": "Organization"}, True, id="contained"),
        pytest.param({"display": "x"}, False, id="unknown"),
    ],
)
def test_refers_to(reference: dict[str, str], expected: bool) -> None:
    assert refers_to(reference, "Organization") is expected


@pytest.mark.slow
@needs_examples
def test_every_official_example_can_be_extracted_and_stored() -> None:
    examples = official_examples()
    assert len(examples) > 700
    for resource in examples:
        fields = extract(resource["resourceType"], resource)
        assert "*" in fields["terms"]
        bson.encode(fields)


@pytest.mark.slow
@needs_examples
def test_accessors_find_what_a_fhirpath_engine_finds() -> None:
    """Every fifth official example; the engine cannot resolve references, so those expressions are left out."""
    compared = 0
    for resource in official_examples()[::5]:
        resource_type = resource["resourceType"]
        for code, definition in definitions.search_parameters(resource_type).items():
            expression = _of_type(resource_type, definition.expression)
            if not expression or "resolve()" in expression:
                continue
            found = [value for _, value in evaluate(resource_type, definition.expression, resource)]
            expected = fhirpathpy.evaluate(resource, expression, {}, models["r4"])
            wanted = [each for each in expected if each is not None]
            assert _sorted(found) == _sorted(wanted), (resource_type, resource.get("id"), code)
            compared += bool(found)
    assert compared > 500


def _of_type(resource_type: str, expression: str) -> str:
    """The parts of a union that start at the type: evaluating the rest takes the engine minutes."""
    parts = [part.strip() for part in expression.split("|")]
    starts = (f"{resource_type}.", f"({resource_type}.", "Resource.", resource_type)
    chosen = " | ".join(part for part in parts if part.startswith(starts))
    chosen = chosen.replace("Resource.", f"{resource_type}.")
    # The engine allows `as` on one value only.
    chosen = re.sub(r"\(([\w.]+) as (\w+)\)", r"\1.ofType(\2)", chosen)
    return chosen.replace(".as(", ".ofType(")


def _sorted(values: list[Any]) -> list[str]:
    return sorted({json.dumps(value, default=str, sort_keys=True) for value in values})
