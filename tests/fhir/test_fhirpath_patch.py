"""FHIRPath Patch: every operation, wherever in a resource it may be applied."""

from __future__ import annotations

from copy import deepcopy
from decimal import Decimal
from typing import Any

import pytest

from app.errors import BadRequest, Unprocessable
from app.fhir.patch.fhirpath_patch import fhirpath_patch
from app.fhir.validation import check
from tests.builders.patches import add, delete, insert, move, parameters, replace

PHONE = {"system": "phone", "value": "1"}
PATIENT: dict[str, Any] = {
    "resourceType": "Patient",
    "id": "p",
    "text": {"status": "generated", "div": '<div xmlns="http://www.w3.org/1999/xhtml">x</div>'},
    "contained": [
        {"resourceType": "Organization", "id": "o", "name": "Old"},
        {"resourceType": "Practitioner", "id": "d", "active": True},
    ],
    "extension": [
        {"url": "urn:a", "valueString": "A"},
        {"url": "urn:b", "extension": [{"url": "c", "valueCode": "C"}]},
    ],
    "identifier": [
        {"use": "official", "system": "urn:x", "value": "1"},
        {"use": "usual", "system": "urn:y", "value": "2"},
        {"system": "urn:z", "value": "3"},
    ],
    "active": True,
    "name": [
        {
            "family": "Ng",
            "given": ["A", "B", "C"],
            "_given": [None, {"extension": [{"url": "urn:g", "valueBoolean": True}]}, None],
        }
    ],
    "birthDate": "1970-01-01",
    "_birthDate": {"extension": [{"url": "urn:t", "valueDateTime": "1970-01-01T10:00:00Z"}]},
    "deceasedBoolean": False,
    "maritalStatus": {"id": "m", "text": "married"},
    "contact": [{"name": {"text": "a name"}, "gender": "male", "telecom": [PHONE]}],
    "generalPractitioner": [{"reference": "#d"}, {"reference": "Practitioner/1"}],
    "managingOrganization": {"reference": "#o"},
}
OBSERVATION: dict[str, Any] = {
    "resourceType": "Observation",
    "status": "final",
    "code": {"coding": [{"system": "http://loinc.org", "code": "1"}]},
    "valueQuantity": {"value": Decimal("1.50"), "unit": "mg"},
    "component": [{"code": {"text": "c"}, "valueString": "x"}],
}
RELATED = {"resourceType": "RelatedPerson", "id": "r", "patient": {"reference": "#"}}
IDENTIFIERS = PATIENT["identifier"]
NEW = {"system": "urn:n", "value": "new"}


def patched(resource: dict[str, Any], *operations: dict[str, Any]) -> dict[str, Any]:
    """The valid result of a patch, which leaves the resource alone and can be applied again."""
    before = deepcopy(resource)
    patch = fhirpath_patch(parameters(*operations))
    result = patch(resource)
    assert not [issue for issue in check(result) if issue.severity == "error"]
    assert resource == before
    again = deepcopy(result)
    result.clear()
    assert patch(resource) == again
    return again


def changed(resource: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (resource | changes).items() if value is not None}


CONTACT = PATIENT["contact"][0]
GIVEN_EXTENSION = PATIENT["name"][0]["_given"][1]


@pytest.mark.parametrize(
    ("operations", "changes"),
    [
        pytest.param([], {}, id="no-operation"),
        # single elements
        pytest.param(
            [add("Patient", "gender", valueCode="male")], {"gender": "male"}, id="add-primitive"
        ),
        pytest.param(
            [replace("Patient.active", valueBoolean=False)],
            {"active": False},
            id="replace-primitive",
        ),
        pytest.param([delete("Patient.active")], {"active": None}, id="delete-primitive"),
        pytest.param([delete("Patient.gender")], {}, id="delete-nothing"),
        pytest.param([delete("active")], {"active": None}, id="path-without-type"),
        pytest.param([delete("Resource.active")], {"active": None}, id="path-from-resource"),
        pytest.param(
            [
                delete("Patient.maritalStatus"),
                add("Patient", "maritalStatus", valueCodeableConcept={"text": "x"}),
            ],
            {"maritalStatus": {"text": "x"}},
            id="add-complex",
        ),
        pytest.param(
            [replace("Patient.maritalStatus", valueCodeableConcept={"id": "n", "text": "not"})],
            {"maritalStatus": {"id": "n", "text": "not"}},
            id="replace-complex",
        ),
        pytest.param(
            [delete("Patient.maritalStatus")], {"maritalStatus": None}, id="delete-complex"
        ),
        pytest.param(
            [
                replace(
                    "Patient.text.div",
                    valueString='<div xmlns="http://www.w3.org/1999/xhtml">y</div>',
                )
            ],
            {
                "text": {
                    "status": "generated",
                    "div": '<div xmlns="http://www.w3.org/1999/xhtml">y</div>',
                }
            },
            id="replace-narrative",
        ),
        pytest.param(
            [replace("Patient.birthDate", valueDate="1980")],
            {"birthDate": "1980", "_birthDate": None},
            id="replace-takes-the-extensions-too",
        ),
        # nested elements
        pytest.param(
            [replace("Patient.contact[0].gender", valueCode="female")],
            {"contact": [CONTACT | {"gender": "female"}]},
            id="replace-nested",
        ),
        pytest.param(
            [replace("Patient.contact.name.text", valueString="b")],
            {"contact": [CONTACT | {"name": {"text": "b"}}]},
            id="replace-nested-without-index",
        ),
        pytest.param(
            [add("Patient.contact[0].name", "family", valueString="f")],
            {"contact": [CONTACT | {"name": {"text": "a name", "family": "f"}}]},
            id="add-nested",
        ),
        pytest.param(
            [delete("Patient.contact[0].name.text")],
            {"contact": [{"gender": "male", "telecom": [PHONE]}]},
            id="delete-empties-the-parent",
        ),
        pytest.param(
            [
                delete("Patient.contact.name.text"),
                delete("Patient.contact.gender"),
                delete("Patient.contact.telecom.value"),
                delete("Patient.contact.telecom.system"),
            ],
            {"contact": None},
            id="delete-empties-all-parents",
        ),
        # lists
        pytest.param(
            [add("Patient", "identifier", valueIdentifier=NEW)],
            {"identifier": [*IDENTIFIERS, NEW]},
            id="add-to-list",
        ),
        pytest.param(
            [add("Patient", "telecom", valueContactPoint=PHONE)],
            {"telecom": [PHONE]},
            id="add-first-to-list",
        ),
        pytest.param(
            [insert("Patient.identifier", 0, valueIdentifier=NEW)],
            {"identifier": [NEW, *IDENTIFIERS]},
            id="insert-first",
        ),
        pytest.param(
            [insert("Patient.identifier", 1, valueIdentifier=NEW)],
            {"identifier": [IDENTIFIERS[0], NEW, *IDENTIFIERS[1:]]},
            id="insert-between",
        ),
        pytest.param(
            [insert("Patient.identifier", 3, valueIdentifier=NEW)],
            {"identifier": [*IDENTIFIERS, NEW]},
            id="insert-last",
        ),
        pytest.param(
            [insert("Patient.telecom", 0, valueContactPoint=PHONE)],
            {"telecom": [PHONE]},
            id="insert-in-no-list",
        ),
        pytest.param(
            [delete("Patient.identifier[1]")],
            {"identifier": [IDENTIFIERS[0], IDENTIFIERS[2]]},
            id="delete-from-list",
        ),
        pytest.param([delete("Patient.identifier[7]")], {}, id="delete-beyond-list"),
        pytest.param([delete("Patient.contact[0]")], {"contact": None}, id="delete-only-one"),
        pytest.param(
            [replace("Patient.identifier[1]", valueIdentifier=NEW)],
            {"identifier": [IDENTIFIERS[0], NEW, IDENTIFIERS[2]]},
            id="replace-in-list",
        ),
        pytest.param(
            [move("Patient.identifier", 0, 2)],
            {"identifier": [*IDENTIFIERS[1:], IDENTIFIERS[0]]},
            id="move-to-the-end",
        ),
        pytest.param(
            [move("Patient.identifier", 2, 0)],
            {"identifier": [IDENTIFIERS[2], *IDENTIFIERS[:2]]},
            id="move-to-the-start",
        ),
        pytest.param(
            [move("Patient.identifier", 2, 1), move("Patient.identifier", 1, 0)],
            {"identifier": [IDENTIFIERS[2], *IDENTIFIERS[:2]]},
            id="move-in-steps",
        ),
        pytest.param([move("Patient.identifier", 1, 1)], {}, id="move-nowhere"),
        pytest.param(
            [insert("Patient.name.given", 1, valueString="X")],
            {
                "name": [
                    {
                        "family": "Ng",
                        "given": ["A", "X", "B", "C"],
                        "_given": [None, None, GIVEN_EXTENSION, None],
                    }
                ]
            },
            id="insert-primitive-keeps-extensions-in-place",
        ),
        pytest.param(
            [move("Patient.name[0].given", 1, 0)],
            {
                "name": [
                    {
                        "family": "Ng",
                        "given": ["B", "A", "C"],
                        "_given": [GIVEN_EXTENSION, None, None],
                    }
                ]
            },
            id="move-primitive-with-its-extension",
        ),
        pytest.param(
            [delete("Patient.name.given[1]")],
            {"name": [{"family": "Ng", "given": ["A", "C"]}]},
            id="delete-primitive-with-its-extension",
        ),
        # choice types
        pytest.param(
            [replace("Patient.deceased", valueDateTime="2020-01-01")],
            {"deceasedBoolean": None, "deceasedDateTime": "2020-01-01"},
            id="replace-choice-by-another-type",
        ),
        pytest.param([delete("Patient.deceased")], {"deceasedBoolean": None}, id="delete-choice"),
        pytest.param(
            [add("Patient", "multipleBirth", valueInteger=2)],
            {"multipleBirthInteger": 2},
            id="add-choice",
        ),
        pytest.param(
            [add("Patient", "multipleBirthInteger", valueInteger=2)],
            {"multipleBirthInteger": 2},
            id="add-choice-by-its-json-name",
        ),
        # extensions
        pytest.param(
            [
                add(
                    "Patient",
                    "extension",
                    part=[
                        {"name": "url", "valueUri": "urn:x"},
                        {"name": "value", "valueCode": "x"},
                    ],
                )
            ],
            {"extension": [*PATIENT["extension"], {"url": "urn:x", "valueCode": "x"}]},
            id="add-extension",
        ),
        pytest.param(
            [replace("Patient.extension('urn:a').value", valueCode="x")],
            {"extension": [{"url": "urn:a", "valueCode": "x"}, PATIENT["extension"][1]]},
            id="replace-extension-value",
        ),
        pytest.param(
            [replace("Patient.extension('urn:b').extension('c').value", valueCode="D")],
            {
                "extension": [
                    PATIENT["extension"][0],
                    {"url": "urn:b", "extension": [{"url": "c", "valueCode": "D"}]},
                ]
            },
            id="replace-nested-extension-value",
        ),
        pytest.param(
            [delete("Patient.extension.where(url = 'urn:a')")],
            {"extension": PATIENT["extension"][1:]},
            id="delete-extension",
        ),
        pytest.param(
            [delete("Patient.birthDate.extension")],
            {"_birthDate": None},
            id="delete-primitive-extension",
        ),
        pytest.param(
            [replace("Patient.birthDate.extension('urn:t').value", valueString="x")],
            {"_birthDate": {"extension": [{"url": "urn:t", "valueString": "x"}]}},
            id="replace-primitive-extension-value",
        ),
        pytest.param(
            [
                add(
                    "Patient.active",
                    "extension",
                    part=[
                        {"name": "url", "valueUri": "urn:x"},
                        {"name": "value", "valueInteger": 1},
                    ],
                ),
                add("Patient.active", "id", valueString="a"),
            ],
            {"_active": {"extension": [{"url": "urn:x", "valueInteger": 1}], "id": "a"}},
            id="add-primitive-extension-and-id",
        ),
        pytest.param(
            [
                add(
                    "Patient",
                    "gender",
                    valueCode="other",
                    _valueCode={"extension": [{"url": "u", "valueCode": "x"}]},
                )
            ],
            {"gender": "other", "_gender": {"extension": [{"url": "u", "valueCode": "x"}]}},
            id="add-primitive-with-extension",
        ),
        pytest.param(
            [
                add(
                    "Patient.name",
                    "given",
                    _valueString={"extension": [{"url": "u", "valueCode": "x"}]},
                )
            ],
            {
                "name": [
                    {
                        "family": "Ng",
                        "given": ["A", "B", "C", None],
                        "_given": [
                            None,
                            GIVEN_EXTENSION,
                            None,
                            {"extension": [{"url": "u", "valueCode": "x"}]},
                        ],
                    }
                ]
            },
            id="add-extension-without-value",
        ),
        # anonymous types
        pytest.param(
            [
                add(
                    "Patient",
                    "contact",
                    part=[
                        {"name": "name", "valueHumanName": {"text": "b"}},
                        {"name": "telecom", "valueContactPoint": PHONE},
                        {"name": "telecom", "valueContactPoint": {"system": "fax", "value": "2"}},
                        {"name": "gender", "valueCode": "female"},
                    ],
                )
            ],
            {
                "contact": [
                    CONTACT,
                    {
                        "name": {"text": "b"},
                        "telecom": [PHONE, {"system": "fax", "value": "2"}],
                        "gender": "female",
                    },
                ]
            },
            id="add-anonymous",
        ),
        pytest.param(
            [
                insert(
                    "Patient.contact", 0, part=[{"name": "name", "valueHumanName": {"text": "c"}}]
                )
            ],
            {"contact": [{"name": {"text": "c"}}, CONTACT]},
            id="insert-anonymous",
        ),
        pytest.param(
            [
                replace(
                    "Patient.contact[0]", part=[{"name": "name", "valueHumanName": {"text": "c"}}]
                )
            ],
            {"contact": [{"name": {"text": "c"}}]},
            id="replace-anonymous",
        ),
        pytest.param(
            [add("Patient", "photo", part=[{"name": "title", "valueString": "x"}])],
            {"photo": [{"title": "x"}]},
            id="parts-of-a-named-type",
        ),
        pytest.param(
            [
                add(
                    "Patient",
                    "communication",
                    part=[
                        {"name": "id", "valueString": "c"},
                        {
                            "name": "language",
                            "part": [
                                {"name": "coding", "part": [{"name": "code", "valueCode": "en"}]}
                            ],
                        },
                    ],
                )
            ],
            {"communication": [{"id": "c", "language": {"coding": [{"code": "en"}]}}]},
            id="nested-parts",
        ),
        # contained resources
        pytest.param(
            [replace("Patient.contained[0].name", valueString="New")],
            {"contained": [PATIENT["contained"][0] | {"name": "New"}, PATIENT["contained"][1]]},
            id="in-contained",
        ),
        pytest.param(
            [replace("Patient.contained.where(id = 'd').active", valueBoolean=False)],
            {"contained": [PATIENT["contained"][0], PATIENT["contained"][1] | {"active": False}]},
            id="contained-by-id",
        ),
        pytest.param(
            [delete("Patient.contained.where($this is Practitioner).active")],
            {"contained": [PATIENT["contained"][0], {"resourceType": "Practitioner", "id": "d"}]},
            id="contained-by-type",
        ),
        pytest.param(
            [add("Patient.managingOrganization.resolve()", "alias", valueString="x")],
            {"contained": [PATIENT["contained"][0] | {"alias": ["x"]}, PATIENT["contained"][1]]},
            id="contained-by-reference",
        ),
        pytest.param(
            [add("Patient", "contained", resource=RELATED)],
            {"contained": [*PATIENT["contained"], RELATED]},
            id="add-contained",
        ),
        pytest.param(
            [
                replace(
                    "Patient.contained[0]",
                    resource={"resourceType": "Organization", "id": "o", "name": "Newer"},
                )
            ],
            {
                "contained": [
                    {"resourceType": "Organization", "id": "o", "name": "Newer"},
                    PATIENT["contained"][1],
                ]
            },
            id="replace-contained",
        ),
        pytest.param(
            [add("Patient", "generalPractitioner", valueReference={"reference": "#o"})],
            {"generalPractitioner": [*PATIENT["generalPractitioner"], {"reference": "#o"}]},
            id="refer-to-contained",
        ),
        pytest.param(
            [move("Patient.contained", 1, 0)],
            {"contained": PATIENT["contained"][::-1]},
            id="move-contained",
        ),
    ],
)
def test_patch(operations: list[dict[str, Any]], changes: dict[str, Any]) -> None:
    assert patched(PATIENT, *operations) == changed(PATIENT, **changes)


QUANTITY = {"value": Decimal("2.0"), "unit": "g"}


@pytest.mark.parametrize(
    ("operations", "changes"),
    [
        pytest.param(
            [delete("Observation.value"), add("Observation", "value", valueQuantity=QUANTITY)],
            {"valueQuantity": QUANTITY},
            id="add-complex-choice",
        ),
        pytest.param(
            [replace("Observation.value", valueCodeableConcept={"text": "x"})],
            {"valueQuantity": None, "valueCodeableConcept": {"text": "x"}},
            id="replace-by-another-type",
        ),
        pytest.param(
            [replace("Observation.value.unit", valueString="g")],
            {"valueQuantity": {"value": Decimal("1.50"), "unit": "g"}},
            id="inside-a-choice",
        ),
        pytest.param(
            [replace("(Observation.value as Quantity).value", valueDecimal=Decimal("2.50"))],
            {"valueQuantity": {"value": Decimal("2.50"), "unit": "mg"}},
            id="as",
        ),
        pytest.param(
            [
                delete("Observation.value.ofType(FHIR.Quantity).unit"),
                delete("Observation.value.ofType(string)"),
            ],
            {"valueQuantity": {"value": Decimal("1.50")}},
            id="of-type",
        ),
        pytest.param(
            [replace("Observation.component[0].value", valueInteger=3)],
            {"component": [{"code": {"text": "c"}, "valueInteger": 3}]},
            id="in-a-backbone",
        ),
        pytest.param(
            [add("Observation", "effective", valueDateTime="2020", _valueDateTime={"id": "e"})],
            {"effectiveDateTime": "2020", "_effectiveDateTime": {"id": "e"}},
            id="with-an-id",
        ),
        pytest.param(
            [add("Observation", "referenceRange", part=[{"name": "text", "valueString": "x"}])],
            {"referenceRange": [{"text": "x"}]},
            id="anonymous",
        ),
        pytest.param(
            [
                add(
                    "Observation.component",
                    "referenceRange",
                    part=[
                        {"name": "low", "valueQuantity": QUANTITY},
                        {"name": "text", "valueString": "x"},
                    ],
                )
            ],
            {
                "component": [
                    OBSERVATION["component"][0]
                    | {"referenceRange": [{"low": QUANTITY, "text": "x"}]}
                ]
            },
            id="content-reference",
        ),
    ],
)
def test_patch_of_choices(operations: list[dict[str, Any]], changes: dict[str, Any]) -> None:
    result = patched(OBSERVATION, *operations)
    assert result == changed(OBSERVATION, **changes)
    assert str(result.get("valueQuantity")) == str(
        changed(OBSERVATION, **changes).get("valueQuantity")
    )


@pytest.mark.parametrize(
    ("path", "left"),
    [
        pytest.param("Patient.identifier.first()", ["urn:y", "urn:z"], id="first"),
        pytest.param("Patient.identifier.last()", ["urn:x", "urn:y"], id="last"),
        pytest.param("Patient.identifier[0][0]", ["urn:y", "urn:z"], id="index-twice"),
        pytest.param("Patient.identifier.where(use='usual')", ["urn:x", "urn:z"], id="where"),
        pytest.param("Patient.identifier.where(use.empty())", ["urn:x", "urn:y"], id="empty"),
        pytest.param("Patient.identifier.where(use.exists().not())", ["urn:x", "urn:y"], id="not"),
        pytest.param(
            "Patient.identifier.where(exists(use = 'usual'))", ["urn:x", "urn:z"], id="exists-where"
        ),
        pytest.param(
            "Patient.identifier.where(use != 'official')", ["urn:x", "urn:z"], id="not-equal"
        ),
        pytest.param(
            "Patient.identifier.where(system = 'urn:z' or (use='usual' and value='3'))",
            ["urn:x", "urn:y"],
            id="or",
        ),
        pytest.param(
            "Patient.identifier.where(use='usual' and value='2')", ["urn:x", "urn:z"], id="and"
        ),
        pytest.param(
            "Patient.identifier.where(system.endsWith(':z'))", ["urn:x", "urn:y"], id="ends-with"
        ),
        pytest.param(
            "Patient.identifier.where(system.contains('n:z'))", ["urn:x", "urn:y"], id="contains"
        ),
        pytest.param(
            "Patient.identifier.where(use.startsWith('us'))", ["urn:x", "urn:z"], id="starts-with"
        ),
        pytest.param("Patient.identifier.where(use.count() = 0)", ["urn:x", "urn:y"], id="count"),
        pytest.param(
            "Patient.identifier.where($this.use = 'usual')", ["urn:x", "urn:z"], id="this"
        ),
        pytest.param(
            "Patient.identifier.where(value = 'it\\'s')", ["urn:x", "urn:y", "urn:z"], id="escape"
        ),
        pytest.param(" Patient . `identifier` [ 1 ] ", ["urn:x", "urn:z"], id="spaces-and-quotes"),
        pytest.param("Patient.identifier.where(false)", ["urn:x", "urn:y", "urn:z"], id="false"),
        pytest.param(
            "Patient.where(active = true).identifier[2]", ["urn:x", "urn:y"], id="where-on-root"
        ),
        pytest.param(
            "Patient.where(birthDate = @1970-01-01).identifier[2]", ["urn:x", "urn:y"], id="date"
        ),
    ],
)
def test_paths_that_are_understood(path: str, left: list[str]) -> None:
    result = patched(PATIENT, delete(path))
    assert [identifier["system"] for identifier in result["identifier"]] == left


def test_elements_named_like_functions_are_elements() -> None:
    value_set = {
        "resourceType": "ValueSet",
        "status": "draft",
        "expansion": {
            "timestamp": "2020",
            "contains": [{"system": "urn:s", "code": "a"}, {"system": "urn:s", "code": "b"}],
        },
    }
    result = patched(value_set, delete("ValueSet.expansion.contains.where(code='a')"))
    assert result["expansion"]["contains"] == [{"system": "urn:s", "code": "b"}]


def test_resolve_finds_nothing_where_nothing_is_contained() -> None:
    bundle = {
        "resourceType": "Bundle",
        "type": "collection",
        "entry": [
            {"resource": {"resourceType": "Patient", "managingOrganization": {"reference": "#o"}}}
        ],
    }
    change = delete("Bundle.entry.resource.managingOrganization.resolve().name")
    assert fhirpath_patch(parameters(change))(bundle) == bundle


def test_untouched_parts_keep_their_key_order() -> None:
    resource = {
        "resourceType": "Patient",
        "birthDate": "1970",
        "name": [{"given": ["A"], "family": "F"}],
        "id": "p",
    }
    result = patched(resource, add("Patient", "active", valueBoolean=True))
    assert list(result) == ["resourceType", "birthDate", "name", "id", "active"]
    assert list(result["name"][0]) == ["given", "family"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        pytest.param(
            add("Patient.photo", "title", valueString="x"),
            "matches no elements, not one",
            id="add-nowhere",
        ),
        pytest.param(
            add("Patient.identifier", "use", valueCode="old"),
            "matches 3 elements, not one",
            id="add-to-several",
        ),
        pytest.param(
            add("Patient", "active", valueBoolean=True), "active is there already", id="add-twice"
        ),
        pytest.param(
            add("Patient", "deceased", valueDateTime="2020"),
            "deceased is there already",
            id="add-second-choice",
        ),
        pytest.param(
            add("Patient", "colour", valueString="x"),
            "Patient has no element colour",
            id="add-unknown",
        ),
        pytest.param(
            add("Patient.contact", "colour", valueString="x"),
            "Patient.contact has no element",
            id="add-unknown-nested",
        ),
        pytest.param(
            add("Patient.active", "value", valueBoolean=True),
            "Element has no element value",
            id="add-value",
        ),
        pytest.param(
            insert("Patient.identifier", 4, valueIdentifier=NEW),
            "index 4 is beyond the list's 3",
            id="insert-beyond",
        ),
        pytest.param(
            insert("Patient.active", 0, valueBoolean=True), "is not a list", id="insert-no-list"
        ),
        pytest.param(
            insert("Patient.identifier[0]", 0, valueIdentifier=NEW),
            "does not end in the name",
            id="insert-indexed",
        ),
        pytest.param(
            insert("Patient", 0, valueIdentifier=NEW),
            "does not end in the name",
            id="insert-resource",
        ),
        pytest.param(
            insert("Patient.photo.extension", 0, valueString="x"),
            "matches no lists, not one",
            id="insert-nowhere",
        ),
        pytest.param(
            insert("Patient.identifier.extension", 0, valueString="x"),
            "matches 3 lists, not one",
            id="insert-several",
        ),
        pytest.param(
            insert("Patient.colour", 0, valueString="x"),
            "colour is not an element",
            id="insert-unknown",
        ),
        pytest.param(
            delete("Patient.identifier"), "matches 3 elements, not one", id="delete-several"
        ),
        pytest.param(delete("Patient"), "is the resource itself", id="delete-resource"),
        pytest.param(
            delete("Patient.colour"), "colour is not an element of Patient", id="delete-unknown"
        ),
        pytest.param(
            delete("Patient.deceasedBoolean"),
            "not an element of Patient: FHIRPath calls it deceased",
            id="json-name",
        ),
        pytest.param(
            delete("Observation.status"),
            "starts at Observation, but this is Patient",
            id="other-type",
        ),
        pytest.param(
            delete("Patient.identifier.where(colour = 'x')"),
            "colour is not an element of Identifier",
            id="criteria",
        ),
        pytest.param(
            delete("Patient.generalPractitioner[1].resolve().name"),
            "only reaches contained",
            id="other-resource",
        ),
        pytest.param(
            delete("Patient.name.resolve()"), "only reaches contained", id="resolve-no-reference"
        ),
        pytest.param(
            replace("Patient.gender", valueCode="male"),
            "matches no elements, not one",
            id="replace-nothing",
        ),
        pytest.param(
            replace("Patient.identifier", valueIdentifier=NEW),
            "matches 3 elements, not one",
            id="replace-several",
        ),
        pytest.param(
            replace("Patient", resource={"resourceType": "Patient"}),
            "is the resource itself",
            id="replace-resource",
        ),
        pytest.param(replace("1", valueString="x"), "matches no elements", id="replace-a-literal"),
        pytest.param(
            move("Patient.identifier", 3, 0),
            "index 3 is beyond the list's 3",
            id="move-from-beyond",
        ),
        pytest.param(
            move("Patient.identifier", 0, 3), "index 3 is beyond the list's 3", id="move-beyond"
        ),
        pytest.param(
            move("Patient.telecom", 0, 0), "index 0 is beyond the list's 0", id="move-in-nothing"
        ),
        pytest.param(
            replace("Patient.active", valueString="true"),
            "active must be boolean, not string",
            id="wrong-primitive",
        ),
        pytest.param(
            replace("Patient.birthDate", valueInteger=1),
            "birthDate must be date, not integer",
            id="number-for-text",
        ),
        pytest.param(
            replace("Patient.maritalStatus", valueCoding={"code": "M"}),
            "maritalStatus must be CodeableConcept, not Coding",
            id="wrong-complex",
        ),
        pytest.param(
            replace("Patient.deceased", valueInteger=1),
            "must be boolean, dateTime, not integer",
            id="wrong-choice",
        ),
        pytest.param(
            replace("Patient.extension[0].value", part=[{"name": "code", "valueCode": "x"}]),
            "value cannot be made of parts",
            id="choice-of-parts",
        ),
        pytest.param(
            replace("Patient.active", part=[{"name": "value", "valueBoolean": True}]),
            "active cannot be made of parts",
            id="primitive-of-parts",
        ),
        pytest.param(
            replace(
                "Patient.maritalStatus", resource={"resourceType": "Basic", "code": {"text": "x"}}
            ),
            "maritalStatus cannot be a resource",
            id="resource-for-element",
        ),
        pytest.param(
            add("Patient", "contained", valueString="x"),
            "contained must be Resource, not string",
            id="no-resource",
        ),
        pytest.param(
            add("Patient", "contact", part=[{"name": "colour", "valueString": "x"}]),
            "Patient.contact has no element colour",
            id="unknown-part",
        ),
        pytest.param(
            add("Patient", "contact", part=[{"name": "gender", "valueCode": "x"}] * 2),
            "Patient.contact.gender must not occur twice",
            id="part-twice",
        ),
    ],
)
def test_what_does_not_fit_is_unprocessable(change: dict[str, Any], reason: str) -> None:
    patch = fhirpath_patch(parameters(change))
    before = deepcopy(PATIENT)
    with pytest.raises(Unprocessable) as refusal:
        patch(PATIENT)
    (issue,) = refusal.value.issues
    path = change["part"][1]["valueString"]
    assert issue.expression == (path,)
    assert issue.diagnostics.startswith(f"{path}: ")
    assert reason in issue.diagnostics
    assert before == PATIENT


def test_a_choice_of_many_types_does_not_list_them() -> None:
    patch = fhirpath_patch(parameters(replace("Observation.value", valueCode="x")))
    with pytest.raises(Unprocessable, match="value must be one of 11 types, not code"):
        patch(OBSERVATION)


def test_a_result_deeper_than_any_request_is_refused() -> None:
    deeper = [
        add(
            f"Questionnaire{'.item' * level}", "item", part=[{"name": "linkId", "valueString": "x"}]
        )
        for level in range(70)
    ]
    with pytest.raises(Unprocessable, match="nests deeper than 128"):
        fhirpath_patch(parameters(*deeper))({"resourceType": "Questionnaire", "status": "draft"})
    assert fhirpath_patch(parameters(*deeper[:60]))(
        {"resourceType": "Questionnaire", "status": "draft"}
    )


def test_a_failing_operation_undoes_those_before_it() -> None:
    patch = fhirpath_patch(parameters(delete("Patient.active"), delete("Patient.identifier")))
    before = deepcopy(PATIENT)
    with pytest.raises(Unprocessable):
        patch(PATIENT)
    assert before == PATIENT


@pytest.mark.parametrize(
    ("place", "value"),
    [
        pytest.param("Patient.gender", {"valueString": "male"}, id="string-for-code"),
        pytest.param("Patient.identifier[0].system", {"valueUrl": "http://x"}, id="url-for-uri"),
        pytest.param("Patient.identifier[0].value", {"valueCode": "x"}, id="code-for-string"),
        pytest.param("Patient.birthDate", {"valueDateTime": "1980-01-01"}, id="dateTime-for-date"),
    ],
)
def test_kindred_types_may_stand_for_each_other(place: str, value: dict[str, Any]) -> None:
    *_, name = place.split(".")
    target = place.removesuffix(f".{name}")
    result = patched(PATIENT, delete(place), add(target, name, **value))
    found = result if target == "Patient" else result["identifier"][0]
    assert found[name] == next(iter(value.values()))


def part(name: str, **content: Any) -> dict[str, Any]:
    return {"name": name, **content}


TYPE, PATH = part("type", valueCode="delete"), part("path", valueString="Patient.active")


@pytest.mark.parametrize(
    ("parts", "place", "reason"),
    [
        pytest.param([PATH], "", "needs a part type", id="no-type"),
        pytest.param(
            [part("type", valueCode="test"), PATH],
            ".part[0]",
            "type must be one of",
            id="unknown-type",
        ),
        pytest.param(
            [part("type", valueInteger=1), PATH],
            ".part[0]",
            "with a string or code",
            id="type-type",
        ),
        pytest.param([TYPE], "", "delete needs a part path", id="no-path"),
        pytest.param([TYPE, PATH, PATH], ".part[2]", "path occurs twice", id="path-twice"),
        pytest.param(
            [TYPE, PATH, part("colour", valueString="x")],
            ".part[2]",
            "is not one of",
            id="unknown-part",
        ),
        pytest.param(
            [part("type", valueCode="add"), PATH], "", "add needs a part name", id="no-name"
        ),
        pytest.param(
            [part("type", valueCode="add"), PATH, part("name", valueString="x"), part("value")],
            ".part[3]",
            "inv-1",
            id="empty-value",
        ),
        pytest.param(
            [part("type", valueCode="add"), PATH, part("name", valueString="x")],
            "",
            "needs a part value",
            id="no-value",
        ),
        pytest.param(
            [part("type", valueCode="replace"), PATH],
            "",
            "replace needs a part value",
            id="replace-nothing",
        ),
        pytest.param(
            [part("type", valueCode="insert"), PATH, part("value", valueString="x")],
            "",
            "insert needs a part index",
            id="no-index",
        ),
        pytest.param(
            [
                part("type", valueCode="insert"),
                PATH,
                part("index", valueString="0"),
                part("value", valueString="x"),
            ],
            ".part[2]",
            "index must be an integer from 0",
            id="index-type",
        ),
        pytest.param(
            [
                part("type", valueCode="move"),
                PATH,
                part("source", valueInteger=-1),
                part("destination", valueInteger=0),
            ],
            ".part[2]",
            "source must be an integer from 0",
            id="negative-source",
        ),
        pytest.param(
            [part("type", valueCode="move"), PATH, part("source", valueInteger=1)],
            "",
            "move needs a part destination",
            id="no-destination",
        ),
    ],
)
def test_a_malformed_operation_is_named(
    parts: list[dict[str, Any]], place: str, reason: str
) -> None:
    with pytest.raises(BadRequest) as refusal:
        fhirpath_patch(parameters({"name": "operation", "part": parts}))
    (issue,) = refusal.value.issues
    assert issue.code == ("invariant" if reason == "inv-1" else "structure")
    assert issue.expression == (f"Parameters.parameter[0]{place}",)
    assert reason in issue.diagnostics


@pytest.mark.parametrize(
    "path",
    [
        pytest.param("Patient.", id="ends-in-a-dot"),
        pytest.param("Patient.name[", id="open-bracket"),
        pytest.param("Patient.name[x]", id="index-name"),
        pytest.param("Patient.name[1.5]", id="index-fraction"),
        pytest.param("Patient.name where", id="two-words"),
        pytest.param("Patient.name.where(use = 'x'", id="open-parenthesis"),
        pytest.param("Patient.name.where()", id="where-nothing"),
        pytest.param("Patient.name.given | Patient.name.family", id="union"),
        pytest.param("Patient.name.given + 'x'", id="arithmetic"),
        pytest.param("Patient.descendants()", id="descendants"),
        pytest.param("Patient.extension(url)", id="extension-of-no-string"),
        pytest.param("Patient.value.ofType('x')", id="type-as-text"),
        pytest.param("Patient.contained.where(resolve().exists())", id="resolve-in-criteria"),
        pytest.param("%resource.active", id="variable"),
        pytest.param("Patient." + "a" * 1000, id="long"),
        pytest.param("(" * 30 + "a" + ")" * 30, id="deep"),
        pytest.param("'open", id="open-string"),
    ],
)
def test_a_path_that_cannot_be_read_is_named(path: str) -> None:
    with pytest.raises(BadRequest) as refusal:
        fhirpath_patch(parameters(delete(path)))
    (issue,) = refusal.value.issues
    assert (issue.code, issue.expression) == ("structure", ("Parameters.parameter[0].part[1]",))


@pytest.mark.parametrize(
    "body",
    [
        pytest.param({"resourceType": "Patient"}, id="other-resource"),
        pytest.param({}, id="no-resource"),
        pytest.param(parameters({"name": "change"}), id="other-parameter"),
        pytest.param({"resourceType": "Parameters", "parameter": "x"}, id="no-list"),
        pytest.param(
            {"resourceType": "Parameters", "parameter": [{"_name": {"id": "x"}}]}, id="no-name"
        ),
        pytest.param(
            parameters(add("Patient", "maritalStatus", valueCodeableConcept={"x": 1})),
            id="invalid-value",
        ),
        pytest.param(
            parameters(add("Patient", "extension", valueExtension={"url": "urn:x"})),
            id="no-value-type",
        ),
    ],
)
def test_what_is_no_patch_is_refused(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        fhirpath_patch(body)
