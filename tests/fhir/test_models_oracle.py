"""What the R4B models refuse, the compiled check refuses too: the reason why writes need only the check."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest

from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.json import Resource
from app.fhir.validation import check
from app.fhir.validation.models import is_judge_of, model_issues
from tests.shared_data import needs_shared, resources

MUTATIONS = 3000
# What R4B dropped or reworked: its models cannot judge these.
NOT_IN_R4B = {
    *("EffectEvidenceSynthesis", "Evidence", "EvidenceVariable", "MedicinalProduct"),
    *("MedicinalProductAuthorization", "MedicinalProductContraindication"),
    *("MedicinalProductIndication", "MedicinalProductIngredient", "MedicinalProductInteraction"),
    *("MedicinalProductManufactured", "MedicinalProductPackaged", "MedicinalProductPharmaceutical"),
    *("MedicinalProductUndesirableEffect", "RiskEvidenceSynthesis", "SubstanceNucleicAcid"),
    *("SubstancePolymer", "SubstanceProtein", "SubstanceReferenceInformation"),
    *("SubstanceSourceMaterial", "SubstanceSpecification"),
}
EXTENSION = {"url": "http://example.org/e", "valueString": "x"}
JUNK: list[Any] = [
    *(None, True, False, 0, -1, 2**31, 2**40, Decimal("1.5"), Decimal("-0.5")),
    *("", " ", "x", "true", "1.5", "a b", "banana", "é", "\t", "a\n", "x" * 65, "!!!!", "AAAA"),
    *("2020", "2020-01", "2020-01-01", "2020-13-01", "2020-02-30", "10:00:00", "10:00"),
    *("2020-01-01T10:00", "2020-01-01T10:00:00Z", "urn:oid:x", "urn:uuid:x", "http://x"),
    *([], {}, [None], [{}], ["x"], [[]], {"x": 1}, {"id": "x"}, {"extension": []}),
    {"extension": [EXTENSION]},
    *(
        "<div xmlns='http://www.w3.org/1999/xhtml'>x</div>",
        {"reference": 5},
        {"resourceType": "Nope"},
    ),
    {"resourceType": "Patient", "foo": 1},
]
KEYS = [
    *("foo", "_foo", "class_fhir", "fhir_comments", "resource_type", "resourceType"),
    *("valueString", "valueInteger", "_valueString", "id", "_id", "extension", "contained"),
]


def containers(value: Any) -> Iterator[Any]:
    """Every object and array that has something in it."""
    if isinstance(value, dict | list) and value:
        yield value
        for child in value.values() if isinstance(value, dict) else value:
            yield from containers(child)


def mutate(resource: Resource, chance: random.Random) -> None:
    """Spoil one place: remove it, replace it, wrap or unwrap it, or add a key or an entry."""
    container = chance.choice(list(containers(resource)))
    is_object = isinstance(container, dict)
    key = chance.choice(list(container) if is_object else range(len(container)))
    junk = copy.deepcopy(chance.choice(JUNK))
    match chance.randrange(6):
        case 0:
            del container[key]
        case 1 | 2:
            container[key] = junk
        case 3 if is_object:
            container[chance.choice([*KEYS, f"_{key}", f"{key}X"])] = junk
        case 3:
            container.append(junk)
        case 4:
            container[key] = [container[key]]
        case 5:
            value = container[key]
            container[key] = value[0] if isinstance(value, list) and value else str(value)


@pytest.mark.slow
@needs_shared
def test_the_check_refuses_what_the_models_refuse():
    chance = random.Random(20260101)
    examples = [
        (name, resource)
        for name, resource in resources("r4-examples/*.json")
        if resource["resourceType"] in set(SUPPORTED_TYPES) - NOT_IN_R4B
    ]
    both = 0
    missed = []
    for _ in range(MUTATIONS):
        name, example = chance.choice(examples)
        resource = copy.deepcopy(example)
        mutate(resource, chance)
        issues = model_issues(resource)
        if issues and not any(issue.severity == "error" for issue in check(resource)):
            missed.append((name, issues))
        both += bool(issues)
    assert missed == []
    assert both > MUTATIONS / 4  # the mutations do spoil something


@pytest.mark.slow
@needs_shared
def test_the_models_accept_the_official_examples_too():
    refused = {
        name
        for name, resource in resources("r4-examples/*.json")
        if resource["resourceType"] in SUPPORTED_TYPES and model_issues(resource)
    }
    assert refused == {"Questionnaire-qs1.json"}


@pytest.mark.slow
def test_the_models_judge_only_the_types_that_r4b_left_as_they_were():
    assert {each for each in SUPPORTED_TYPES if not is_judge_of(each)} == NOT_IN_R4B
    for inside in NOT_IN_R4B:
        holder = {"resourceType": "Patient", "foo": 1, "contained": [{"resourceType": inside}]}
        assert model_issues(holder) == []


@pytest.mark.parametrize(
    ("resource", "location", "code"),
    [
        pytest.param(
            {"resourceType": "Patient", "foo": 1}, "Patient.foo", "structure", id="unknown"
        ),
        pytest.param(
            {"resourceType": "Encounter", "status": "planned"},
            "Encounter.class",
            "required",
            id="missing",
        ),
        pytest.param(
            {"resourceType": "Patient", "contact": [{"period": {"start": "x"}}]},
            "Patient.contact[0].period.start",
            "value",
            id="format",
        ),
        pytest.param(
            {"resourceType": "Patient", "_birthDate": 5},
            "Patient.birthDate",
            "structure",
            id="companion",
        ),
    ],
)
def test_model_issues_have_a_location_and_a_code(resource: Resource, location: str, code: str):
    (issue,) = model_issues(resource)
    assert (issue.expression, issue.code) == ((location,), code)


@pytest.mark.parametrize(
    "resource",
    [
        pytest.param({"resourceType": "Nope"}, id="unknown-type"),
        pytest.param({"resourceType": None}, id="type-is-null"),
        pytest.param(
            {"resourceType": "Patient", "contained": [{"resourceType": "Nope"}]},
            id="unknown-contained",
        ),
    ],
)
def test_what_the_models_stumble_over_is_an_issue(resource: Resource):
    assert [issue.code for issue in model_issues(resource)] == ["structure"]
