"""The compiled check: what it refuses, where it points, and that it lets real data through."""

from __future__ import annotations

import copy
import json
from decimal import Decimal
from typing import Any

import pytest

from app.errors import BadRequest, Issue, Unprocessable
from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.json import Resource, decode
from app.fhir.validation import check, validate
from tests.shared_data import EMPTY_NARRATIVES, needs_shared, resources

ENCOUNTER: Resource = {
    "resourceType": "Encounter",
    "id": "e1",
    "status": "in-progress",
    "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "IMP"},
    "subject": {"reference": "Patient/p1"},
    "participant": [{"individual": {"reference": "Practitioner/d1"}}],
    "period": {"start": "2026-02-28T08:00:00-05:00"},
}
PATIENT: Resource = {"resourceType": "Patient", "id": "p1"}
OBSERVATION: Resource = {
    "resourceType": "Observation",
    "status": "final",
    "code": {"text": "Weight"},
    "valueQuantity": {"value": Decimal("70.50"), "unit": "kg"},
}
CONDITION: Resource = {"resourceType": "Condition", "subject": {"reference": "Patient/p1"}}
EXTENSION = {"url": "http://example.org/e", "valueString": "x"}


def errors(resource: Resource) -> list[Issue]:
    return [issue for issue in check(resource) if issue.severity == "error"]


def found(resource: Resource) -> list[tuple[str, str]]:
    """Location and code of every error."""
    return [(issue.expression[0], issue.code) for issue in errors(resource)]


@pytest.mark.parametrize("resource", [ENCOUNTER, PATIENT, OBSERVATION, CONDITION])
def test_a_right_resource_is_advised_to_have_a_narrative_at_most(resource: Resource):
    warnings = validate(resource)
    assert warnings == check(resource)
    assert [issue.diagnostics.split(": ")[1] for issue in warnings] == ["dom-6"]
    shown = {"status": "generated", "div": "<div xmlns='http://www.w3.org/1999/xhtml'>x</div>"}
    assert check({**resource, "text": shown}) == []


BAD: list[Any] = [
    # Elements that are not there, or missing
    pytest.param(ENCOUNTER, {"foo": 1}, "Encounter", "structure", id="unknown-element"),
    pytest.param(ENCOUNTER, {"_foo": {}}, "Encounter", "structure", id="unknown-companion"),
    pytest.param(ENCOUNTER, {"class_fhir": {"code": "IMP"}}, "Encounter", "structure", id="alias"),
    pytest.param(ENCOUNTER, {"fhir_comments": ["x"]}, "Encounter", "structure", id="comments"),
    pytest.param(
        ENCOUNTER,
        {"period": {"begin": "2026"}},
        "Encounter.period",
        "structure",
        id="unknown-inside",
    ),
    pytest.param(
        ENCOUNTER,
        {"subject": {"resourceType": "Reference", "display": "x"}},
        "Encounter.subject",
        "structure",
        id="resource-type-in-a-data-type",
    ),
    pytest.param(ENCOUNTER, {"status": ...}, "Encounter.status", "required", id="missing-code"),
    pytest.param(ENCOUNTER, {"class": ...}, "Encounter.class", "required", id="missing-coding"),
    pytest.param(
        ENCOUNTER,
        {"location": [{"status": "active"}]},
        "Encounter.location[0].location",
        "required",
        id="missing-in-a-backbone",
    ),
    pytest.param(
        {"resourceType": "MedicationRequest", "status": "active", "intent": "order"},
        {"subject": {"display": "x"}},
        "MedicationRequest.medication",
        "required",
        id="missing-choice",
    ),
    # One or many
    pytest.param(ENCOUNTER, {"type": {}}, "Encounter.type", "structure", id="array-expected"),
    pytest.param(ENCOUNTER, {"class": []}, "Encounter.class", "structure", id="array-not-allowed"),
    pytest.param(
        ENCOUNTER,
        {"status": ["planned"]},
        "Encounter.status",
        "structure",
        id="array-of-a-primitive",
    ),
    pytest.param(
        PATIENT,
        {"name": [{"given": "Eva"}]},
        "Patient.name[0].given",
        "structure",
        id="primitive-array-expected",
    ),
    pytest.param(PATIENT, {"name": [[]]}, "Patient.name[0]", "structure", id="array-in-an-array"),
    # Nothing where something must be
    pytest.param(PATIENT, {"name": []}, "Patient.name", "structure", id="empty-array"),
    pytest.param(PATIENT, {"name": [{}]}, "Patient.name[0]", "structure", id="empty-object"),
    pytest.param(PATIENT, {"maritalStatus": {}}, "Patient.maritalStatus", "structure", id="empty"),
    pytest.param(PATIENT, {"birthDate": ""}, "Patient.birthDate", "value", id="empty-string"),
    pytest.param(PATIENT, {"birthDate": None}, "Patient.birthDate", "structure", id="null"),
    pytest.param(PATIENT, {"name": None}, "Patient.name", "structure", id="null-array"),
    pytest.param(PATIENT, {"name": [None]}, "Patient.name[0]", "structure", id="null-entry"),
    pytest.param(PATIENT, {"name": [{"id": "x"}]}, "Patient.name[0]", "invariant", id="ele-1"),
    # Primitives in the wrong JSON type
    pytest.param(
        PATIENT, {"active": "true"}, "Patient.active", "structure", id="boolean-as-string"
    ),
    pytest.param(PATIENT, {"active": 1}, "Patient.active", "structure", id="boolean-as-number"),
    pytest.param(
        PATIENT, {"birthDate": 1970}, "Patient.birthDate", "structure", id="date-as-number"
    ),
    pytest.param(PATIENT, {"birthDate": {}}, "Patient.birthDate", "structure", id="date-as-object"),
    pytest.param(
        PATIENT, {"gender": True}, "Patient.gender", "structure", id="bound-code-as-boolean"
    ),
    pytest.param(PATIENT, {"gender": {}}, "Patient.gender", "structure", id="bound-code-as-object"),
    pytest.param(
        PATIENT, {"implicitRules": []}, "Patient.implicitRules", "structure", id="uri-as-array"
    ),
    pytest.param(
        OBSERVATION,
        {"valueQuantity": {"value": "70.5"}},
        "Observation.value.value",
        "structure",
        id="decimal-as-string",
    ),
    pytest.param(
        OBSERVATION,
        {"valueQuantity": {"value": True}},
        "Observation.value.value",
        "structure",
        id="decimal-as-boolean",
    ),
    pytest.param(
        OBSERVATION,
        {"valueQuantity": {"unit": 1}},
        "Observation.value.unit",
        "structure",
        id="string-as-number",
    ),
    # Formats
    pytest.param(PATIENT, {"id": "x" * 65}, "Patient.id", "value", id="id-of-65-characters"),
    pytest.param(PATIENT, {"id": "a_b"}, "Patient.id", "value", id="id-with-underscore"),
    pytest.param(PATIENT, {"id": "a\n"}, "Patient.id", "value", id="id-with-newline"),
    pytest.param(PATIENT, {"language": "en "}, "Patient.language", "value", id="code-with-a-space"),
    pytest.param(PATIENT, {"language": "a  b"}, "Patient.language", "value", id="code-two-spaces"),
    pytest.param(
        PATIENT, {"implicitRules": "a b"}, "Patient.implicitRules", "value", id="uri-with-space"
    ),
    pytest.param(
        PATIENT, {"birthDate": "2026-02-30"}, "Patient.birthDate", "value", id="february-30"
    ),
    pytest.param(
        PATIENT, {"birthDate": "2025-02-29"}, "Patient.birthDate", "value", id="no-leap-year"
    ),
    pytest.param(PATIENT, {"birthDate": "2026-13"}, "Patient.birthDate", "value", id="month-13"),
    pytest.param(PATIENT, {"birthDate": "26-01-01"}, "Patient.birthDate", "value", id="short-year"),
    pytest.param(PATIENT, {"birthDate": "0000"}, "Patient.birthDate", "value", id="year-0"),
    pytest.param(
        PATIENT,
        {"birthDate": "2026-01-01T00:00:00Z"},
        "Patient.birthDate",
        "value",
        id="date-with-time",
    ),
    pytest.param(
        ENCOUNTER,
        {"period": {"start": "2026-01-01T10:00Z"}},
        "Encounter.period.start",
        "value",
        id="no-seconds",
    ),
    pytest.param(
        ENCOUNTER,
        {"period": {"start": "2026-01-01T10:00:00"}},
        "Encounter.period.start",
        "value",
        id="no-zone",
    ),
    pytest.param(
        ENCOUNTER,
        {"period": {"start": "2026-01-01T10:00:00+15:00"}},
        "Encounter.period.start",
        "value",
        id="no-such-zone",
    ),
    pytest.param(
        ENCOUNTER,
        {"period": {"start": "2026-01-01T10:00:00+05:75"}},
        "Encounter.period.start",
        "value",
        id="zone-of-75-minutes",
    ),
    pytest.param(
        ENCOUNTER,
        {"period": {"start": "2026-01-01T24:00:00Z"}},
        "Encounter.period.start",
        "value",
        id="hour-24",
    ),
    pytest.param(
        ENCOUNTER,
        {"period": {"start": "2026-02-30T10:00:00Z"}},
        "Encounter.period.start",
        "value",
        id="moment-on-february-30",
    ),
    pytest.param(
        PATIENT,
        {"meta": {"lastUpdated": "2026-01-01"}},
        "Patient.meta.lastUpdated",
        "value",
        id="instant",
    ),
    pytest.param(
        PATIENT,
        {"photo": [{"data": "a=="}]},
        "Patient.photo[0].data",
        "value",
        id="base64",
    ),
    pytest.param(
        PATIENT, {"photo": [{"size": -1}]}, "Patient.photo[0].size", "value", id="unsigned-int"
    ),
    pytest.param(
        PATIENT,
        {"multipleBirthInteger": 2**31},
        "Patient.multipleBirth",
        "value",
        id="33-bit-integer",
    ),
    pytest.param(
        PATIENT,
        {"multipleBirthInteger": Decimal("1.0")},
        "Patient.multipleBirth",
        "value",
        id="integer-with-a-point",
    ),
    pytest.param(
        PATIENT, {"telecom": [{"rank": 0}]}, "Patient.telecom[0].rank", "value", id="positive-int"
    ),
    pytest.param(
        OBSERVATION,
        {"valueQuantity": {"value": Decimal("1e9999")}},
        "Observation.value.value",
        "value",
        id="decimal-out-of-bounds",
    ),
    pytest.param(
        OBSERVATION,
        {"valueQuantity": ..., "valueTime": "25:00:00"},
        "Observation.value",
        "value",
        id="time",
    ),
    pytest.param(
        PATIENT,
        {"extension": [{"url": "u", "valueOid": "1.2.3"}]},
        "Patient.extension[0].value",
        "value",
        id="oid",
    ),
    pytest.param(
        PATIENT,
        {"extension": [{"url": "u", "valueUuid": "urn:uuid:1"}]},
        "Patient.extension[0].value",
        "value",
        id="uuid",
    ),
    pytest.param(
        PATIENT,
        {"name": [{"text": "x" * (1024 * 1024 + 1)}]},
        "Patient.name[0].text",
        "value",
        id="string-over-1-mib",
    ),
    # Choices
    pytest.param(
        PATIENT,
        {"deceasedBoolean": True, "deceasedDateTime": "2026"},
        "Patient.deceased",
        "structure",
        id="two-of-a-choice",
    ),
    pytest.param(
        PATIENT,
        {"deceasedBoolean": True, "_deceasedDateTime": {"extension": [EXTENSION]}},
        "Patient.deceased",
        "structure",
        id="two-of-a-choice-by-companion",
    ),
    pytest.param(
        PATIENT,
        {"deceasedString": "x"},
        "Patient.deceased",
        "structure",
        id="type-not-in-the-choice",
    ),
    pytest.param(PATIENT, {"deceased": True}, "Patient", "structure", id="choice-without-type"),
    # Companions of primitives
    pytest.param(
        PATIENT, {"_birthDate": {}}, "Patient.birthDate", "structure", id="empty-companion"
    ),
    pytest.param(
        PATIENT,
        {"_birthDate": {"id": "x"}},
        "Patient.birthDate",
        "invariant",
        id="companion-of-nothing",
    ),
    pytest.param(
        PATIENT,
        {"birthDate": "1970", "_birthDate": {"value": "x"}},
        "Patient.birthDate",
        "structure",
        id="unknown-in-a-companion",
    ),
    pytest.param(
        PATIENT,
        {"birthDate": "1970", "_birthDate": [{"extension": [EXTENSION]}]},
        "Patient.birthDate",
        "structure",
        id="companion-as-array",
    ),
    pytest.param(
        PATIENT,
        {"name": [{"given": ["a"], "_given": [None, {"extension": [EXTENSION]}]}]},
        "Patient.name[0].given",
        "structure",
        id="companions-not-aligned",
    ),
    pytest.param(
        PATIENT,
        {"name": [{"given": ["a", None], "_given": [{"extension": [EXTENSION]}, None]}]},
        "Patient.name[0].given[1]",
        "structure",
        id="null-without-companion",
    ),
    pytest.param(
        PATIENT,
        {"name": [{"given": [None]}]},
        "Patient.name[0].given[0]",
        "structure",
        id="bare-null",
    ),
    pytest.param(
        PATIENT, {"_id": {"extension": [EXTENSION]}}, "Patient", "structure", id="id-extended"
    ),
    # Codes
    pytest.param(ENCOUNTER, {"status": "banana"}, "Encounter.status", "code-invalid", id="code"),
    pytest.param(
        PATIENT,
        {"telecom": [{"system": "pigeon"}]},
        "Patient.telecom[0].system",
        "code-invalid",
        id="code-in-a-data-type",
    ),
    pytest.param(
        CONDITION,
        {"clinicalStatus": {"coding": [{"system": "http://x", "code": "active"}]}},
        "Condition.clinicalStatus",
        "code-invalid",
        id="concept-of-another-system",
    ),
    pytest.param(
        CONDITION,
        {"clinicalStatus": {"text": "active"}},
        "Condition.clinicalStatus",
        "code-invalid",
        id="concept-of-text-only",
    ),
    pytest.param(
        {"resourceType": "Claim"},
        json.loads(
            '{"status":"active","type":{"text":"x"},"use":"claim","patient":{"display":"x"},"created":"2026",'
            '"provider":{"display":"x"},"priority":{"text":"x"},"insurance":[{"sequence":1,"focal":true,'
            '"coverage":{"display":"x"}}],"total":{"value":1,"currency":"XXY"}}'
        ),
        "Claim.total.currency",
        "code-invalid",
        id="currency",
    ),
    # Extensions, narrative, periods
    pytest.param(
        PATIENT,
        {"extension": [{"valueString": "x"}]},
        "Patient.extension[0].url",
        "required",
        id="extension-without-url",
    ),
    pytest.param(
        PATIENT,
        {"extension": [{"url": "u"}]},
        "Patient.extension[0]",
        "invariant",
        id="ext-1-neither",
    ),
    pytest.param(
        PATIENT,
        {"extension": [{**EXTENSION, "extension": [EXTENSION]}]},
        "Patient.extension[0]",
        "invariant",
        id="ext-1-both",
    ),
    pytest.param(
        PATIENT,
        {"extension": [{"url": "u", "valueFoo": 1}]},
        "Patient.extension[0].value",
        "structure",
        id="extension-of-unknown-type",
    ),
    pytest.param(
        PATIENT, {"text": {"status": "generated"}}, "Patient.text.div", "required", id="no-div"
    ),
    pytest.param(
        ENCOUNTER,
        {"period": {"start": "2026-02-02", "end": "2026-02-01"}},
        "Encounter.period",
        "invariant",
        id="period-backwards",
    ),
    # Resources in resources
    pytest.param(
        PATIENT,
        {"contained": [{"resourceType": "Nope"}]},
        "Patient.contained[0].resourceType",
        "structure",
        id="unknown-contained-type",
    ),
    pytest.param(
        PATIENT,
        {"contained": [{"id": "x"}]},
        "Patient.contained[0].resourceType",
        "required",
        id="contained-without-type",
    ),
    pytest.param(
        PATIENT, {"contained": ["x"]}, "Patient.contained[0]", "structure", id="no-resource"
    ),
    pytest.param(
        PATIENT,
        {"contained": [{"resourceType": "Patient", "active": "yes"}]},
        "Patient.contained[0].active",
        "structure",
        id="wrong-inside-contained",
    ),
    pytest.param(
        PATIENT,
        {
            "contained": [{**PATIENT, "contained": [PATIENT]}],
            "link": [{"other": {"reference": "#p1"}, "type": "refer"}],
        },
        "Patient.contained[0].contained",
        "invariant",
        id="contained-in-contained",
    ),
    pytest.param(
        {"resourceType": "Bundle", "type": "collection"},
        {"entry": [{"resource": {**ENCOUNTER, "status": "banana"}}]},
        "Bundle.entry[0].resource.status",
        "code-invalid",
        id="in-a-bundle",
    ),
    pytest.param(
        {"resourceType": "Questionnaire", "status": "draft"},
        {"item": [{"linkId": "1", "type": "group", "item": [{"linkId": "2", "type": "nope"}]}]},
        "Questionnaire.item[0].item[0].type",
        "code-invalid",
        id="in-a-repeated-structure",
    ),
    # The resource itself
    pytest.param({}, {"id": "x"}, "Resource.resourceType", "required", id="no-type"),
    pytest.param(
        {}, {"resourceType": ["Patient"]}, "Resource.resourceType", "structure", id="type-as-array"
    ),
    pytest.param({}, {"resourceType": "Foo"}, "Foo.resourceType", "structure", id="unknown-type"),
    pytest.param(
        {}, {"resourceType": "<b>"}, "Resource.resourceType", "structure", id="type-that-is-no-name"
    ),
    pytest.param(
        {},
        {"resourceType": "DomainResource"},
        "DomainResource.resourceType",
        "structure",
        id="abstract",
    ),
    pytest.param(
        {}, {"resourceType": "HumanName"}, "HumanName.resourceType", "structure", id="data-type"
    ),
    pytest.param(
        {},
        {"resourceType": "SubscriptionTopic"},
        "SubscriptionTopic.resourceType",
        "structure",
        id="r4b-only",
    ),
    # What R4B dropped, R4's own definitions judge.
    pytest.param(
        {"resourceType": "MedicinalProductUndesirableEffect"},
        {"classification": {"coding": [{"code": 5}]}},
        "MedicinalProductUndesirableEffect.classification.coding[0].code",
        "structure",
        id="dropped-by-r4b",
    ),
    pytest.param(
        PATIENT,
        {"contained": [{"resourceType": "SubstanceProtein", "subunit": [{"sequnce": "A"}]}]},
        "Patient.contained[0].subunit[0]",
        "structure",
        id="dropped-by-r4b-contained",
    ),
]


@pytest.mark.parametrize(("base", "changes", "location", "code"), BAD)
def test_refused(base: Resource, changes: dict[str, Any], location: str, code: str):
    """`...` removes an element. There is exactly one issue: a fault is not reported twice."""
    resource = {k: v for k, v in {**base, **changes}.items() if v is not ...}
    assert found(resource) == [(location, code)]
    (issue,) = errors(resource)
    assert len(issue.diagnostics) < 400
    with pytest.raises((BadRequest, Unprocessable)) as refused:
        validate(resource)
    assert refused.value.issues == (issue,)
    rule = code in ("code-invalid", "invariant")
    assert refused.value.status == (422 if rule else 400)


@pytest.mark.parametrize(
    ("base", "changes"),
    [
        pytest.param(PATIENT, {"_birthDate": {"extension": [EXTENSION]}}, id="extension-only"),
        pytest.param(
            PATIENT, {"birthDate": "1970", "_birthDate": {"id": "x"}}, id="id-of-a-primitive"
        ),
        pytest.param(
            PATIENT,
            {"name": [{"given": ["a", None], "_given": [None, {"extension": [EXTENSION]}]}]},
            id="aligned-companions",
        ),
        pytest.param(
            ENCOUNTER,
            {"status": ..., "_status": {"extension": [EXTENSION]}},
            id="required-by-extension",
        ),
        pytest.param(OBSERVATION, {"valueQuantity": {"value": 5}}, id="whole-decimal"),
        pytest.param(ENCOUNTER, {"period": {"start": "2024-02-29"}}, id="leap-day"),
        pytest.param(ENCOUNTER, {"period": {"start": "2016-12-31T23:59:60Z"}}, id="leap-second"),
        pytest.param(
            ENCOUNTER,
            {"period": {"start": "2026-01-01T10:00:00.123456789+14:00"}},
            id="nanoseconds",
        ),
        pytest.param(
            ENCOUNTER,
            {"period": {"start": "2026-01-02T01:00:00+05:00", "end": "2026-01-01T23:00:00Z"}},
            id="period-across-zones",
        ),
        pytest.param(
            ENCOUNTER,
            {"period": {"start": "2026-01-02T01:00:00Z", "end": "2026-01-01"}},
            id="period-of-two-precisions",
        ),
        pytest.param(
            ENCOUNTER,
            {"period": {"start": "2026-05-01", "end": "2026"}},
            id="period-ends-some-time",
        ),
        pytest.param(
            PATIENT,
            {"photo": [{"contentType": "image/png", "data": "QUJD\nREVG"}]},
            id="base64-in-lines",
        ),
        pytest.param(PATIENT, {"name": [{"text": " x "}]}, id="spaces-around-a-string"),
        pytest.param(
            PATIENT,
            {
                "contained": [{"resourceType": "Organization", "id": "o", "name": "O"}],
                "managingOrganization": {"reference": "#o"},
            },
            id="contained",
        ),
        pytest.param(
            CONDITION, {"clinicalStatus": {"extension": [EXTENSION]}}, id="concept-absent"
        ),
    ],
)
def test_accepted(base: Resource, changes: dict[str, Any]):
    assert errors({k: v for k, v in {**base, **changes}.items() if v is not ...}) == []


@pytest.mark.parametrize(
    ("div", "accepted"),
    [
        pytest.param('<div xmlns="http://www.w3.org/1999/xhtml"><p>x</p></div>', True, id="xhtml"),
        pytest.param("<div>x &amp; y<!-- z --></div>", False, id="no-namespace"),
        pytest.param(
            "<div xmlns='http://www.w3.org/1999/xhtml'>x &amp; y<!-- z --></div>",
            True,
            id="comment",
        ),
        pytest.param(
            "<div xmlns='http://www.w3.org/1999/xhtml'>a&nbsp;b</div>", True, id="html-entity"
        ),
        pytest.param(
            "<div xmlns='http://www.w3.org/1999/xhtml'><br></div>", False, id="not-well-formed"
        ),
        pytest.param("<p>x</p>", False, id="no-div"),
        pytest.param("text", False, id="no-markup"),
        pytest.param(
            "<div xmlns='http://www.w3.org/1999/xhtml'><script>x</script></div>", False, id="script"
        ),
        pytest.param(
            '<div xmlns="http://www.w3.org/1999/xhtml" onclick="x">y</div>', False, id="handler"
        ),
        pytest.param(
            '<div xmlns="http://www.w3.org/1999/xhtml"><a href=" javascript:x">y</a></div>',
            False,
            id="script-link",
        ),
        pytest.param(
            '<div xmlns="http://www.w3.org/1999/xhtml"><a href="java&#9;script:x">y</a></div>',
            False,
            id="script-link-in-pieces",
        ),
        pytest.param(
            '<div xmlns="http://www.w3.org/1999/xhtml"><a href="data:text/html,x">y</a></div>',
            False,
            id="document-link",
        ),
        pytest.param(
            '<div xmlns="http://www.w3.org/1999/xhtml"><img src="data:image/png;base64,AA"/></div>',
            True,
            id="image",
        ),
        pytest.param(
            '<div xmlns="http://www.w3.org/1999/xhtml" title="data: x">y</div>', True, id="words"
        ),
        pytest.param(
            '<div xmlns="http://www.w3.org/1999/xhtml"><iframe src="x"/></div>', False, id="frame"
        ),
        pytest.param(
            "<div xmlns='http://www.w3.org/1999/xhtml'>&secret;</div>", False, id="unknown-entity"
        ),
        pytest.param(
            '<!DOCTYPE div [<!ENTITY x "y">]><div xmlns="http://www.w3.org/1999/xhtml">&x;</div>',
            False,
            id="entity-declaration",
        ),
        pytest.param('<div xmlns="http://example.org">x</div>', False, id="another-namespace"),
    ],
)
def test_narrative_is_harmless_xhtml(div: str, accepted: bool):
    resource = {**PATIENT, "text": {"status": "generated", "div": div}}
    assert found(resource) == ([] if accepted else [("Patient.text.div", "value")])


def test_a_reference_to_another_type_is_a_warning():
    resource = {**ENCOUNTER, "subject": {"reference": "http://x/fhir/Location/1/_history/2"}}
    issue, _ = check(resource)
    assert (issue.severity, issue.expression) == ("warning", ("Encounter.subject",))
    validate(resource)


def test_several_faults_are_told_at_once_and_mixed_ones_are_a_bad_request():
    resource = {**ENCOUNTER, "status": "banana", "foo": 1, "class": ...}
    resource = {k: v for k, v in resource.items() if v is not ...}
    assert set(found(resource)) == {
        ("Encounter.status", "code-invalid"),
        ("Encounter", "structure"),
        ("Encounter.class", "required"),
    }
    with pytest.raises(BadRequest):
        validate(resource)


def test_issues_are_limited_and_warnings_do_not_hide_errors():
    assert len(errors({**PATIENT, "name": [{}] * 1000})) == 50
    resource = {
        "resourceType": "Group",
        "type": "person",
        "actual": True,
        "member": [{"entity": {"reference": "Location/1"}}] * 1000 + [{}],
    }
    assert found(resource)[0] == ("Group.member[1000]", "structure")


def test_long_or_odd_values_are_not_echoed():
    (issue,) = errors({**ENCOUNTER, "status": "s\x07" + "x" * 1000})
    assert len(issue.diagnostics) < 400
    assert "\x07" not in issue.diagnostics


def test_deep_nesting_is_refused_without_a_crash():
    extension: dict[str, Any] = dict(EXTENSION)
    for _ in range(2000):
        extension = {"url": "u", "extension": [extension]}
    assert [issue.code for issue in check({**PATIENT, "extension": [extension]})] == ["structure"]


def test_a_check_changes_nothing():
    resource = {**ENCOUNTER, "status": "banana", "type": [{}], "_foo": None}
    before = copy.deepcopy(resource)
    check(resource)
    assert resource == before


def refusals(pattern: str) -> dict[str, list[tuple[str, str]]]:
    return {
        name: problems
        for name, resource in resources(pattern)
        if resource["resourceType"] in SUPPORTED_TYPES and (problems := found(resource))
    }


@needs_shared
def test_official_examples_pass():
    refused = refusals("r4-examples/*.json")
    assert {code for _, code in refused.pop("Questionnaire-qs1.json")} == {"required"}
    # Published with a narrative that shows nothing, against txt-2.
    assert set(refused) == EMPTY_NARRATIVES
    for problems in refused.values():
        assert [(path.partition(".")[2], code) for path, code in problems] == [
            ("text.div", "invariant")
        ]


@pytest.mark.slow
@needs_shared
def test_synthea_patients_pass():
    seen = 0
    for name, bundle in resources("synthea-20/*.bz2"):
        assert errors(bundle) == [], name
        seen += len(bundle["entry"])
    assert seen > 10_000


@needs_shared
def test_guides_examples_pass():
    assert refusals("us-core-610-examples/**/*.json") == {}
    # Published with empty strings.
    assert set(refusals("davinci-alerts/**/*.json")) == {"conceptmap-direct-alerts.json"}
    # The others are published with the comments of an older FHIR.
    for problems in refusals("careplan-mcc/**/*.json").values():
        assert {code for _, code in problems} == {"structure"}
    assert refusals("careplan-mcc/CarePlan-careplan-for-bundle.json") == {}


@needs_shared
def test_cases_of_the_official_validator():
    """Of the core tier in JSON, each valid case passes and each invalid one is refused."""
    ((_, catalogue),) = _catalogue()
    wrong = []
    for case in catalogue["cases"]:
        if case["format"] == "json" and case["tier"] == "core":
            ((_, resource),) = resources(f"validator-cases/{case['file']}")
            if case["valid"] == bool(errors(resource)):
                wrong.append(case["name"])
    assert wrong == []


def _catalogue() -> list[tuple[str, Resource]]:
    from tests.shared_data import SHARED

    path = SHARED / "data" / "validator-cases" / "validator-cases.json"
    return [(path.name, decode(path.read_bytes()))]
