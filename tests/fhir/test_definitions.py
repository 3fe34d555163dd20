"""The reduced definitions are R4's, complete, and what the reducing script writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from app.fhir.definitions import (
    EXAMPLES,
    PROFILES,
    SUPPORTED_TYPES,
    compartment,
    json_name,
    required_codes,
    resolve,
    search_parameter,
    search_parameters,
    structure,
)
from tests.shared_data import SHARED, needs_shared


def test_every_r4_resource_type_is_served():
    assert len(SUPPORTED_TYPES) == 146
    assert {"CarePlan", "CareTeam", "Condition", "Encounter", "Subscription"} <= set(
        SUPPORTED_TYPES
    )
    assert "SubscriptionTopic" not in SUPPORTED_TYPES  # R4B only
    assert "DomainResource" not in SUPPORTED_TYPES  # abstract


def test_structure_has_own_and_inherited_elements():
    encounter = structure("Encounter")
    assert (encounter.kind, encounter.base) == ("resource", "DomainResource")
    assert encounter.elements["id"].types == ("id",)
    assert encounter.elements["contained"].is_list
    status = encounter.elements["status"]
    assert (status.types, status.min, status.max, status.is_list) == (("code",), 1, 1, False)
    assert status.binding == "http://hl7.org/fhir/ValueSet/encounter-status"
    assert encounter.elements["subject"].targets == ("Patient", "Group")
    individual = resolve("Encounter.participant").elements["individual"]
    assert "Practitioner" in individual.targets


def test_choice_and_content_reference():
    value = structure("Observation").elements["value"]
    assert value.choice
    assert json_name("value", "dateTime") == "valueDateTime"
    assert "Quantity" in value.types
    item = structure("Questionnaire").elements["item"]
    assert item.elements["item"].ref == "Questionnaire.item"
    assert resolve("Questionnaire.item") == item


def test_primitive_has_its_lexical_form():
    assert structure("id").regex == r"[A-Za-z0-9\-\.]{1,64}"
    assert structure("string").max_length == 1024 * 1024


def test_unknown_names_raise_key_error():
    for look_up in (structure, compartment, search_parameter):
        with pytest.raises(KeyError):
            look_up("Nonsense")


def test_search_parameters_include_those_of_every_resource():
    parameters = search_parameters("Encounter")
    assert {"status", "class", "patient", "date", "_id", "_lastUpdated", "_tag"} <= set(parameters)
    assert parameters["subject"].target == ("Group", "Patient")
    assert parameters["date"].type == "date"
    assert "_text" in parameters
    assert "_text" not in search_parameters("Bundle")  # DomainResource's


def test_every_component_of_a_composite_is_defined():
    for resource_type in SUPPORTED_TYPES:
        for parameter in search_parameters(resource_type).values():
            assert bool(parameter.component) == (parameter.type == "composite")
            for component in parameter.component:
                assert search_parameter(component.definition).type != "composite"


def test_required_codes_by_system():
    codes = required_codes("http://hl7.org/fhir/ValueSet/encounter-status")
    assert codes is not None
    assert "in-progress" in codes["http://hl7.org/fhir/encounter-status"]
    assert required_codes("http://hl7.org/fhir/ValueSet/mimetypes") is None


def test_the_five_compartments():
    assert compartment("Patient")["Encounter"] == ("patient",)
    assert "Practitioner" not in compartment("Patient")
    for name in ("Device", "Encounter", "Practitioner", "RelatedPerson"):
        assert compartment(name)


def test_data_directories_exist():
    assert (PROFILES / "r4" / "structures.json").is_file()
    assert EXAMPLES.is_dir()


@pytest.mark.processes
@needs_shared
@pytest.mark.slow
def test_the_files_are_what_the_script_makes_of_the_official_package(tmp_path: Path):
    script = Path(__file__).parents[2] / "profiles" / "reduce.py"
    out = tmp_path / "r4"
    subprocess.run([sys.executable, script, SHARED / "definitions", out], check=True)
    for guide in ("r4", "us-core"):
        for kept in sorted((PROFILES / guide).glob("*.json")):
            made = out.parent / guide / kept.name
            assert made.read_bytes() == kept.read_bytes(), kept.name
