"""One table for every kind of search parameter: (id, resource type, elements, query, is the resource found).

Each row is run through MongoDB and in memory; BASE is the server's own base.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

Row = tuple[str, str, dict[str, Any], str, bool]

BASE = "http://carerelay.test/fhir"
LOINC = "http://loinc.org"
ACT = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
IDS = "http://hospital.example/ids"
V2_0203 = "http://terminology.hl7.org/CodeSystem/v2-0203"

CODED = {
    "code": {
        "coding": [{"system": LOINC, "code": "2951-2", "display": "Sodium [Moles]"}],
        "text": "Na",
    }
}
NO_SYSTEM = {"code": {"coding": [{"code": "local"}]}}
BARS = {"code": {"coding": [{"system": "http://a|b", "code": "c%7Cd"}]}}
MEMBER = {
    "identifier": [
        {
            "system": IDS,
            "value": "A|7",
            "type": {"coding": [{"system": V2_0203, "code": "MR"}], "text": "Chart"},
        },
        {"value": "bare"},
    ]
}

TOKEN: list[Row] = [
    ("code", "Observation", CODED, "code=2951-2", True),
    ("code-case", "Condition", {"code": {"coding": [{"code": "Abc"}]}}, "code=abc", False),
    ("code-other", "Observation", CODED, "code=2951", False),
    ("system-code", "Observation", CODED, f"code={LOINC}|2951-2", True),
    ("system-code-other", "Observation", CODED, "code=http://snomed.info/sct|2951-2", False),
    ("no-system", "Observation", NO_SYSTEM, "code=|local", True),
    ("no-system-but-has", "Observation", CODED, "code=|2951-2", False),
    ("system-any", "Observation", CODED, f"code={LOINC}|", True),
    ("system-any-prefix", "Observation", CODED, "code=http://loinc|", False),
    ("or", "Observation", CODED, "code=x,2951-2", True),
    ("and", "Observation", CODED, "code=2951-2&code=x", False),
    ("bars-escaped", "Observation", BARS, "code=http://a\\|b|c%7Cd", True),
    ("bars-any", "Observation", BARS, "code=c%7Cd", True),
    ("bars-not-split", "Observation", BARS, "code=http://a|b", False),
    ("bars-not-forged", "Observation", BARS, "code=d", False),
    ("comma-escaped", "Observation", {"code": {"coding": [{"code": "a,b"}]}}, "code=a\\,b", True),
    ("backslash", "Observation", {"code": {"coding": [{"code": "a\\b"}]}}, "code=a\\\\b", True),
    ("not", "Observation", CODED, "code:not=2951-2", False),
    ("not-other", "Observation", CODED, "code:not=x,y", True),
    ("not-absent", "Observation", {}, "code:not=2951-2", True),
    (
        "of-a-type-that-r4b-dropped",
        "MedicinalProductAuthorization",
        {"country": [{"coding": [{"system": "urn:iso:std:iso:3166", "code": "DK"}]}]},
        "country=urn:iso:std:iso:3166|DK",
        True,
    ),
    ("text-of-concept", "Observation", CODED, "code:text=na", True),
    ("text-of-display", "Observation", CODED, "code:text=SODIUM", True),
    ("text-beginning-only", "Observation", CODED, "code:text=moles", False),
    ("identifier", "Patient", MEMBER, "identifier=A\\|7", True),
    ("identifier-system", "Patient", MEMBER, f"identifier={IDS}|A\\|7", True),
    ("identifier-unescaped", "Patient", MEMBER, "identifier=A|7", False),
    ("identifier-bare", "Patient", MEMBER, "identifier=|bare", True),
    ("of-type", "Patient", MEMBER, f"identifier:of-type={V2_0203}|MR|A\\|7", True),
    ("of-type-other", "Patient", MEMBER, f"identifier:of-type={V2_0203}|SS|A\\|7", False),
    ("identifier-text", "Patient", MEMBER, "identifier:text=chart", True),
    ("system-only", "Patient", {"identifier": [{"system": IDS}]}, f"identifier={IDS}|", True),
    ("simple", "Encounter", {"status": "finished"}, "status=finished", True),
    ("simple-no-system", "Encounter", {"status": "finished"}, "status=|finished", True),
    (
        "simple-implied-system",
        "Encounter",
        {"status": "finished"},
        "status=http://hl7.org/fhir/encounter-status|finished",
        True,
    ),
    ("simple-wrong-system", "Encounter", {"status": "finished"}, f"status={LOINC}|finished", False),
    (
        "simple-system-any",
        "Encounter",
        {"status": "finished"},
        "status=http://hl7.org/fhir/encounter-status|",
        True,
    ),
    ("simple-not", "Encounter", {"status": "finished"}, "status:not=planned", True),
    ("coding", "Encounter", {"class": {"system": ACT, "code": "IMP"}}, f"class={ACT}|IMP", True),
    ("boolean-true", "Patient", {"active": True}, "active=true", True),
    ("boolean-false", "Patient", {"active": False}, "active=true", False),
    ("boolean-expression", "Patient", {"deceasedBoolean": False}, "deceased=false", True),
    ("boolean-expression-date", "Patient", {"deceasedDateTime": "2026"}, "deceased=true", True),
    ("boolean-expression-absent", "Patient", {}, "deceased=false", True),
    ("contact", "Patient", {"telecom": [{"system": "phone", "value": "555"}]}, "phone=555", True),
    (
        "contact-of-use",
        "Patient",
        {"telecom": [{"use": "home", "value": "555"}]},
        "telecom=home|555",
        True,
    ),
    (
        "contact-other",
        "Patient",
        {"telecom": [{"system": "email", "value": "555"}]},
        "phone=555",
        False,
    ),
    ("mixed-boolean", "Group", {"characteristic": [{"valueBoolean": True}]}, "value=true", True),
    ("missing-true", "Observation", {}, "code:missing=true", True),
    ("missing-true-has", "Observation", CODED, "code:missing=true", False),
    ("missing-false", "Observation", CODED, "code:missing=false", True),
    ("missing-false-text", "Observation", {"code": {"text": "x"}}, "code:missing=false", True),
    ("missing-false-empty", "Observation", {"code": {"extension": []}}, "code:missing=false", True),
    ("long", "Observation", {"code": {"coding": [{"code": "x" * 500}]}}, f"code={'x' * 500}", True),
    (
        "long-other",
        "Observation",
        {"code": {"coding": [{"code": "x" * 500}]}},
        f"code={'x' * 501}",
        False,
    ),
    ("tag", "Patient", {"meta": {"tag": [{"system": IDS, "code": "t"}]}}, f"_tag={IDS}|t", True),
    ("security", "Patient", {"meta": {"security": [{"code": "R"}]}}, "_security=R", True),
]

SUBJECT = {"subject": {"reference": "Patient/p1"}}
LOGICAL = {"subject": {"type": "Patient", "identifier": {"system": IDS, "value": "9"}}}
FOREIGN = {"subject": {"reference": "https://other.example/fhir/Patient/p1"}}
OWN = {"subject": {"reference": f"{BASE}/Patient/p1"}}
VERSIONED = {"subject": {"reference": "Patient/p1/_history/3"}}

REFERENCE: list[Row] = [
    ("id", "Encounter", SUBJECT, "subject=p1", True),
    (
        "context-of-content",
        "Binary",
        {"contentType": "a/b", "securityContext": {"reference": "Patient/p1"}},
        "security-context=Patient/p1",
        True,
    ),
    ("id-group", "Encounter", {"subject": {"reference": "Group/p1"}}, "subject=p1", True),
    ("id-foreign", "Encounter", FOREIGN, "subject=p1", False),
    ("relative", "Encounter", SUBJECT, "subject=Patient/p1", True),
    ("relative-other-type", "Encounter", SUBJECT, "subject=Group/p1", False),
    ("absolute", "Encounter", FOREIGN, "subject=https://other.example/fhir/Patient/p1", True),
    ("absolute-own-base", "Encounter", SUBJECT, f"subject={BASE}/Patient/p1", True),
    ("stored-own-base", "Encounter", OWN, "subject=Patient/p1", True),
    ("both-own-base", "Encounter", OWN, f"subject={BASE}/Patient/p1", True),
    ("versioned-found-by-current", "Encounter", VERSIONED, "subject=Patient/p1", True),
    ("versioned", "Encounter", VERSIONED, "subject=Patient/p1/_history/3", True),
    ("versioned-other", "Encounter", VERSIONED, "subject=Patient/p1/_history/2", False),
    ("typed", "Encounter", SUBJECT, "subject:Patient=p1", True),
    ("typed-other", "Encounter", SUBJECT, "subject:Group=p1", False),
    ("identifier", "Encounter", LOGICAL, f"subject:identifier={IDS}|9", True),
    ("identifier-any-system", "Encounter", LOGICAL, "subject:identifier=9", True),
    ("identifier-no-system", "Encounter", LOGICAL, "subject:identifier=|9", False),
    ("identifier-is-no-reference", "Encounter", LOGICAL, "subject=9", False),
    ("patient-id", "Encounter", SUBJECT, "patient=p1", True),
    ("patient-relative", "Encounter", SUBJECT, "patient=Patient/p1", True),
    ("patient-versioned", "Encounter", VERSIONED, "patient=p1", True),
    ("patient-own-base", "Encounter", OWN, "patient=p1", True),
    (
        "patient-absolute",
        "Encounter",
        FOREIGN,
        "patient=https://other.example/fhir/Patient/p1",
        True,
    ),
    (
        "patient-is-no-group",
        "Encounter",
        {"subject": {"reference": "Group/p1"}},
        "patient=p1",
        False,
    ),
    ("patient-identifier", "Encounter", LOGICAL, f"patient:identifier={IDS}|9", True),
    (
        "patient-missing",
        "Encounter",
        {"subject": {"reference": "Group/p1"}},
        "patient:missing=true",
        True,
    ),
    ("patient-not-missing", "Encounter", SUBJECT, "patient:missing=false", True),
    ("patient-not-missing-foreign", "Encounter", FOREIGN, "patient:missing=false", True),
    ("missing", "Encounter", {}, "subject:missing=true", True),
    (
        "not-missing-display",
        "Encounter",
        {"subject": {"display": "x"}},
        "subject:missing=false",
        True,
    ),
    ("or", "Encounter", SUBJECT, "subject=Patient/p2,Patient/p1", True),
    (
        "plain-patient",
        "AllergyIntolerance",
        {"patient": {"reference": "Patient/p1"}},
        "patient=p1",
        True,
    ),
    (
        "canonical",
        "QuestionnaireResponse",
        {"questionnaire": "http://q.org/a|2"},
        "questionnaire=http://q.org/a",
        True,
    ),
    (
        "canonical-version",
        "QuestionnaireResponse",
        {"questionnaire": "http://q.org/a|2"},
        "questionnaire=http://q.org/a|2",
        True,
    ),
    (
        "canonical-other-version",
        "QuestionnaireResponse",
        {"questionnaire": "http://q.org/a|2"},
        "questionnaire=http://q.org/a|3",
        False,
    ),
    ("urn", "Encounter", {"subject": {"reference": "urn:uuid:7"}}, "subject=urn:uuid:7", True),
]

NAME = {"name": [{"family": "Müller-O'Neil", "given": ["Ana  María", "Zoë"], "text": "Dr. Ana"}]}

STRING: list[Row] = [
    ("prefix", "Patient", NAME, "family=mül", True),
    ("prefix-without-accent", "Patient", NAME, "family=MULLER", True),
    ("not-inside", "Patient", NAME, "family=neil", False),
    ("contains", "Patient", NAME, "family:contains=ULLER-O'N", True),
    ("contains-not", "Patient", NAME, "family:contains=xx", False),
    (
        "contains-pattern-characters",
        "Patient",
        {"name": [{"family": "a.c"}]},
        "family:contains=.",
        True,
    ),
    ("contains-no-pattern", "Patient", {"name": [{"family": "abc"}]}, "family:contains=a.c", False),
    ("contains-not-original", "Patient", {"name": [{"family": "Ä"}]}, "family:contains=ä", True),
    ("exact", "Patient", NAME, "family:exact=Müller-O'Neil", True),
    ("exact-case", "Patient", NAME, "family:exact=müller-o'neil", False),
    ("exact-beginning", "Patient", NAME, "family:exact=Müller", False),
    (
        "exact-already-normal",
        "Patient",
        {"name": [{"family": "smith"}]},
        "family:exact=smith",
        True,
    ),
    (
        "exact-normal-is-not-original",
        "Patient",
        {"name": [{"family": "Smith"}]},
        "family:exact=smith",
        False,
    ),
    ("white-space", "Patient", NAME, "given=ana maria", True),
    ("white-space-in-value", "Patient", NAME, "given=  ana   maria ", True),
    ("any-part", "Patient", NAME, "name=zoe", True),
    ("any-part-text", "Patient", NAME, "name=dr.", True),
    ("sharp-s", "Patient", {"name": [{"family": "Groß"}]}, "family=GROSS", True),
    (
        "address",
        "Patient",
        {"address": [{"line": ["1 Main St"], "city": "Bern"}]},
        "address=main,1 main",
        True,
    ),
    ("address-city", "Patient", {"address": [{"city": "Bern"}]}, "address-city=ber", True),
    ("or", "Patient", NAME, "family=x,mul", True),
    ("comma", "Patient", {"name": [{"family": "a, b"}]}, "family=a\\, b", True),
    ("missing", "Patient", {}, "family:missing=true", True),
    ("not-missing", "Patient", NAME, "family:missing=true", False),
    ("long", "ValueSet", {"description": "a" * 5000}, f"description={'a' * 3000}", True),
    ("tab", "Patient", {"name": [{"family": "a\tb"}]}, "family:exact=a\tb", True),
    ("null-beside-extension", "Patient", {"name": [{"given": [None, "Li"]}]}, "given=li", True),
]

URI: list[Row] = [
    ("exact", "ValueSet", {"url": "http://a.org/v/1"}, "url=http://a.org/v/1", True),
    ("exact-no-prefix", "ValueSet", {"url": "http://a.org/v/1"}, "url=http://a.org/v", False),
    ("case", "ValueSet", {"url": "http://a.org/V"}, "url=http://a.org/v", False),
    ("below", "ValueSet", {"url": "http://a.org/v/1"}, "url:below=http://a.org/v", True),
    ("below-slash", "ValueSet", {"url": "http://a.org/v/1"}, "url:below=http://a.org/", True),
    ("below-itself", "ValueSet", {"url": "http://a.org/v"}, "url:below=http://a.org/v", True),
    (
        "below-half-segment",
        "ValueSet",
        {"url": "http://a.org/version"},
        "url:below=http://a.org/v",
        False,
    ),
    ("above", "ValueSet", {"url": "http://a.org/v"}, "url:above=http://a.org/v/1/2", True),
    ("above-not-below", "ValueSet", {"url": "http://a.org/v/1"}, "url:above=http://a.org/v", False),
    ("urn", "ValueSet", {"url": "urn:oid:1.2"}, "url=urn:oid:1.2", True),
    (
        "profile",
        "Patient",
        {"meta": {"profile": ["http://p.org/x|1"]}},
        "_profile=http://p.org/x",
        True,
    ),
    (
        "profile-version",
        "Patient",
        {"meta": {"profile": ["http://p.org/x|1"]}},
        "_profile=http://p.org/x|1",
        True,
    ),
    ("source", "Patient", {"meta": {"source": "http://s.org#1"}}, "_source=http://s.org#1", True),
    ("missing", "ValueSet", {}, "url:missing=true", True),
]


def _dated(value: str) -> dict[str, Any]:
    return {"effectiveDateTime": value}


def _period(start: str | None, end: str | None) -> dict[str, Any]:
    ends = {"start": start, "end": end}
    return {"period": {name: value for name, value in ends.items() if value}}


DAY = _dated("2026-05-14")
MOMENT = _dated("2026-05-14T10:30:00Z")
STAY = _period("2026-05-10T08:00:00Z", "2026-05-14T12:00:00Z")
OPEN = _period("2026-05-10", None)

DATE: list[Row] = [
    ("eq-day", "Observation", DAY, "date=2026-05-14", True),
    ("eq-month-contains-day", "Observation", DAY, "date=2026-05", True),
    ("eq-year-contains-day", "Observation", DAY, "date=eq2026", True),
    ("eq-day-is-wider-than-second", "Observation", DAY, "date=2026-05-14T10:30:00Z", False),
    ("eq-day-contains-moment", "Observation", MOMENT, "date=2026-05-14", True),
    ("eq-minute", "Observation", MOMENT, "date=2026-05-14T10:30", True),
    ("eq-zone", "Observation", MOMENT, "date=2026-05-14T12:30:00+02:00", True),
    ("eq-zone-stored", "Observation", _dated("2026-05-14T23:30:00-05:00"), "date=2026-05-15", True),
    (
        "eq-fraction",
        "Observation",
        _dated("2026-05-14T10:30:00.5Z"),
        "date=2026-05-14T10:30:00Z",
        True,
    ),
    ("leap-second", "Observation", _dated("2016-12-31T23:59:60Z"), "date=2016-12-31", True),
    ("ne", "Observation", DAY, "date=ne2026-05-14", False),
    ("ne-other", "Observation", DAY, "date=ne2026-05-13", True),
    ("ne-absent", "Observation", {}, "date=ne2026-05-13", False),
    ("gt", "Observation", DAY, "date=gt2026-05-13", True),
    ("gt-same", "Observation", DAY, "date=gt2026-05-14", False),
    ("gt-within", "Observation", DAY, "date=gt2026-05-14T10:00:00Z", True),
    ("ge-same", "Observation", DAY, "date=ge2026-05-14", True),
    ("ge-month", "Observation", DAY, "date=ge2026-05", True),
    ("ge-later", "Observation", DAY, "date=ge2026-05-15", False),
    ("lt", "Observation", DAY, "date=lt2026-05-15", True),
    ("lt-same", "Observation", DAY, "date=lt2026-05-14", False),
    ("le-same", "Observation", DAY, "date=le2026-05-14", True),
    ("le-earlier", "Observation", DAY, "date=le2026-05-13", False),
    ("sa", "Observation", DAY, "date=sa2026-05-13", True),
    ("sa-overlapping", "Observation", DAY, "date=sa2026-05-14T10:00:00Z", False),
    ("eb", "Observation", DAY, "date=eb2026-05-15", True),
    ("eb-overlapping", "Observation", DAY, "date=eb2026-05-14T10:00:00Z", False),
    ("ap", "Observation", _dated("1980-03-01"), "date=ap1980", True),
    ("ap-near", "Observation", _dated("1981-03-01"), "date=ap1980", True),
    ("ap-far", "Observation", _dated("2024-03-01"), "date=ap1980", False),
    ("between", "Observation", DAY, "date=ge2026-05-01&date=lt2026-06-01", True),
    ("between-not", "Observation", DAY, "date=ge2026-06-01&date=lt2026-07-01", False),
    ("or", "Observation", DAY, "date=2025,2026-05", True),
    ("or-neither", "Observation", DAY, "date=2025,2027", False),
    ("period-eq-contained", "Encounter", STAY, "date=2026-05", True),
    ("period-eq-wider", "Encounter", STAY, "date=2026-05-12", False),
    ("period-gt", "Encounter", STAY, "date=gt2026-05-12", True),
    ("period-gt-end", "Encounter", STAY, "date=gt2026-05-14", False),
    ("period-ge-touches-last-day", "Encounter", STAY, "date=ge2026-05-14", False),
    ("period-ge", "Encounter", STAY, "date=ge2026-05-13", True),
    ("period-le", "Encounter", STAY, "date=le2026-05-12", True),
    ("period-lt-start", "Encounter", STAY, "date=lt2026-05-10", False),
    ("period-sa", "Encounter", STAY, "date=sa2026-05-09", True),
    ("period-eb", "Encounter", STAY, "date=eb2026-05-15", True),
    ("period-ne", "Encounter", STAY, "date=ne2026-05-12", True),
    ("period-ap", "Encounter", STAY, "date=ap2026-05-12", True),
    ("open-goes-on", "Encounter", OPEN, "date=gt2100", True),
    ("open-starts", "Encounter", OPEN, "date=sa2026-05-10", False),
    ("open-never-ends-before", "Encounter", OPEN, "date=eb2100", False),
    ("open-start", "Encounter", _period(None, "2026-05-14"), "date=lt1900", True),
    (
        "timing-outer-limits",
        "ServiceRequest",
        {"occurrenceTiming": {"event": ["2026-01-01", "2026-03-01"]}},
        "occurrence=ge2026-02-01",
        True,
    ),
    (
        "timing-bounds",
        "ServiceRequest",
        {
            "occurrenceTiming": {
                "repeat": {"boundsPeriod": {"start": "2026-01-01", "end": "2026-01-31"}}
            }
        },
        "occurrence=2026-01",
        True,
    ),
    ("date-type", "Patient", {"birthDate": "1950-02"}, "birthdate=1950-02", True),
    ("date-type-partial", "Patient", {"birthDate": "1950"}, "birthdate=1950-02", False),
    (
        "several-paths",
        "Condition",
        {"onsetPeriod": {"start": "2026-01-01"}},
        "onset-date=ge2026",
        True,
    ),
    ("end-of-time", "Observation", _dated("9999-12-31T23:59:59+14:00"), "date=gt9998", True),
    ("missing", "Observation", {}, "date:missing=true", True),
    ("not-missing", "Observation", DAY, "date:missing=false", True),
    (
        "instant",
        "Slot",
        {"start": "2026-05-14T10:30:00.123Z"},
        "start=2026-05-14T10:30:00.123Z",
        True,
    ),
]


def _probability(value: str) -> dict[str, Any]:
    return {"prediction": [{"probabilityDecimal": Decimal(value)}]}


NUMBER: list[Row] = [
    ("eq", "RiskAssessment", _probability("0.8"), "probability=0.8", True),
    ("eq-implicit-low", "RiskAssessment", _probability("0.75"), "probability=0.8", True),
    ("eq-implicit-high", "RiskAssessment", _probability("0.85"), "probability=0.8", False),
    ("eq-more-digits", "RiskAssessment", _probability("0.75"), "probability=0.80", False),
    ("eq-exponent", "RiskAssessment", _probability("104"), "probability=1e2", True),
    ("eq-hundred", "RiskAssessment", _probability("104"), "probability=100", False),
    ("ne", "RiskAssessment", _probability("0.75"), "probability=ne0.8", False),
    ("ne-other", "RiskAssessment", _probability("0.75"), "probability=ne0.80", True),
    ("gt", "RiskAssessment", _probability("0.81"), "probability=gt0.8", True),
    ("gt-same", "RiskAssessment", _probability("0.80"), "probability=gt0.8", False),
    ("ge-same", "RiskAssessment", _probability("0.80"), "probability=ge0.8", True),
    ("lt", "RiskAssessment", _probability("0.79"), "probability=lt0.8", True),
    ("le", "RiskAssessment", _probability("0.8"), "probability=le0.8", True),
    ("sa", "RiskAssessment", _probability("0.81"), "probability=sa0.8", True),
    ("eb", "RiskAssessment", _probability("0.79"), "probability=eb0.8", True),
    ("ap", "RiskAssessment", _probability("0.87"), "probability=ap0.8", True),
    ("ap-far", "RiskAssessment", _probability("0.89"), "probability=ap0.8", False),
    ("negative", "RiskAssessment", _probability("-1.04"), "probability=-1.0", True),
    ("integer", "MolecularSequence", {"variant": [{"start": 7}]}, "variant-start=7", True),
    (
        "range",
        "RiskAssessment",
        {"prediction": [{"probabilityRange": {"low": {"value": 1}}}]},
        "probability=gt5",
        True,
    ),
    (
        "range-above",
        "RiskAssessment",
        {"prediction": [{"probabilityRange": {"low": {"value": 1}}}]},
        "probability=sa0.5",
        True,
    ),
    (
        "range-without-low",
        "RiskAssessment",
        {"prediction": [{"probabilityRange": {"high": {"value": 1}}}]},
        "probability=lt-5",
        True,
    ),
    ("or", "RiskAssessment", _probability("0.8"), "probability=0.1,0.8", True),
    (
        "exact",
        "RiskAssessment",
        _probability("0.1234567890123456789"),
        "probability=gt0.1234567890123456788",
        True,
    ),
]

UCUM = "http://unitsofmeasure.org"


def _quantity(value: str, unit: dict[str, str], **more: str) -> dict[str, Any]:
    return {"valueQuantity": {"value": Decimal(value), **unit, **more}}


MG = {"system": UCUM, "code": "mg", "unit": "milligram"}

QUANTITY: list[Row] = [
    ("number", "Observation", _quantity("5.4", MG), "value-quantity=5.4", True),
    ("unit", "Observation", _quantity("5.4", MG), f"value-quantity=5.4|{UCUM}|mg", True),
    ("system", "Observation", _quantity("5.4", MG), f"value-quantity=5.4|{UCUM}", True),
    ("system-bar", "Observation", _quantity("5.4", MG), f"value-quantity=5.4|{UCUM}|", True),
    ("system-other", "Observation", _quantity("5.4", MG), "value-quantity=5.4|http://x", False),
    ("system-none", "Observation", _quantity("5.4", {}), f"value-quantity=5.4|{UCUM}", False),
    ("other-unit", "Observation", _quantity("5.4", MG), f"value-quantity=5.4|{UCUM}|g", False),
    ("converted", "Observation", _quantity("5.4", MG), f"value-quantity=0.0054|{UCUM}|g", True),
    ("converted-gt", "Observation", _quantity("5.4", MG), f"value-quantity=gt5399|{UCUM}|ug", True),
    (
        "converted-not",
        "Observation",
        _quantity("5.4", MG),
        f"value-quantity=gt5400|{UCUM}|ug",
        False,
    ),
    (
        "converted-implicit",
        "Observation",
        _quantity("5.4", MG),
        f"value-quantity=5|{UCUM}|mg",
        True,
    ),
    ("converted-ap", "Observation", _quantity("5.4", MG), f"value-quantity=ap5000|{UCUM}|ug", True),
    (
        "converted-comparator",
        "Observation",
        _quantity("5", MG, comparator=">"),
        f"value-quantity=gt1|{UCUM}|kg",
        True,
    ),
    (
        "temperature",
        "Observation",
        _quantity("37.5", {"system": UCUM, "code": "Cel"}),
        f"value-quantity=99.5|{UCUM}|[degF]",
        True,
    ),
    (
        "per-time",
        "Observation",
        _quantity("60", {"system": UCUM, "code": "/h"}),
        f"value-quantity=le1|{UCUM}|/min",
        True,
    ),
    (
        "concentration",
        "Observation",
        _quantity("54", {"system": UCUM, "code": "mg/L"}),
        f"value-quantity=ge5.4|{UCUM}|mg/dL",
        True,
    ),
    (
        "not-commensurable",
        "Observation",
        _quantity("5.4", MG),
        f"value-quantity=gt0|{UCUM}|mmol",
        False,
    ),
    (
        "arbitrary-is-no-count",
        "Observation",
        _quantity("5", {"system": UCUM, "code": "[iU]/L"}),
        f"value-quantity=gt0|{UCUM}|10*3/uL",
        False,
    ),
    (
        "arbitrary-scaled",
        "Observation",
        _quantity("5", {"system": UCUM, "code": "[iU]/L"}),
        f"value-quantity=5|{UCUM}|m[IU]/mL",
        True,
    ),
    (
        "other-system-not-converted",
        "Observation",
        _quantity("5.4", {"system": "http://units.example", "code": "mg"}),
        f"value-quantity=gt0|{UCUM}|ug",
        False,
    ),
    (
        "in-component",
        "Observation",
        {"component": [{"code": {"coding": [{"code": "w"}]}, **_quantity("5.4", MG)}]},
        f"component-code-value-quantity=w$le5400|{UCUM}|ug",
        True,
    ),
    ("code-only", "Observation", _quantity("5.4", MG), "value-quantity=5.4||mg", True),
    ("text-only", "Observation", _quantity("5.4", MG), "value-quantity=5.4||milligram", True),
    ("implicit", "Observation", _quantity("5.44", MG), "value-quantity=5.4||mg", True),
    ("gt", "Observation", _quantity("5.44", MG), "value-quantity=gt5.4||mg", True),
    ("lt", "Observation", _quantity("5.44", MG), "value-quantity=lt5.4||mg", False),
    ("ap", "Observation", _quantity("5.9", MG), "value-quantity=ap5.4", True),
    ("comparator", "Observation", _quantity("5", MG, comparator=">"), "value-quantity=gt100", True),
    (
        "comparator-not",
        "Observation",
        _quantity("5", MG, comparator=">"),
        "value-quantity=lt5",
        False,
    ),
    ("or", "Observation", _quantity("5.4", MG), "value-quantity=1||mg,5.4||mg", True),
    ("not-across", "Observation", _quantity("5.4", MG), "value-quantity=1||mg,5.4||g", False),
    (
        "age",
        "Condition",
        {"onsetAge": {"value": 52, "code": "a", "system": UCUM}},
        "onset-age=gt50||a",
        True,
    ),
    (
        "range",
        "Condition",
        {"onsetRange": {"low": {"value": 50}, "high": {"value": 60}}},
        "onset-age=gt55",
        True,
    ),
    (
        "range-eq",
        "Condition",
        {"onsetRange": {"low": {"value": 50}, "high": {"value": 60}}},
        "onset-age=55",
        False,
    ),
    ("duration", "Encounter", {"length": {"value": 140, "unit": "min"}}, "length=140||min", True),
    (
        "money",
        "Invoice",
        {"totalNet": {"value": Decimal("40.00"), "currency": "EUR"}},
        "totalnet=40|urn:iso:std:iso:4217|EUR",
        True,
    ),
    (
        "sampled-data",
        "Observation",
        {
            "valueSampledData": {
                "origin": {"value": 10},
                "lowerLimit": -5,
                "upperLimit": 5,
                "factor": 2,
            }
        },
        "value-quantity=le1",
        True,
    ),
    ("missing", "Observation", {}, "value-quantity:missing=true", True),
]

PRESSURE = {
    "component": [
        {"code": {"coding": [{"code": "sys"}]}, **_quantity("120", MG)},
        {"code": {"coding": [{"code": "dia"}]}, **_quantity("80", MG)},
    ]
}

COMPOSITE: list[Row] = [
    ("within-one", "Observation", PRESSURE, "component-code-value-quantity=sys$gt100", True),
    ("not-across", "Observation", PRESSURE, "component-code-value-quantity=dia$gt100", False),
    ("combo", "Observation", PRESSURE, "combo-code-value-quantity=dia$80||mg", True),
    (
        "root",
        "Observation",
        {**CODED, **_quantity("140", MG)},
        f"code-value-quantity={LOINC}|2951-2$ge140",
        True,
    ),
    (
        "root-not",
        "Observation",
        {**CODED, **_quantity("139", MG)},
        "code-value-quantity=2951-2$ge140",
        False,
    ),
    (
        "root-date",
        "Observation",
        {**CODED, "valueDateTime": "2026-05"},
        "code-value-date=2951-2$2026",
        True,
    ),
    ("or", "Observation", PRESSURE, "component-code-value-quantity=dia$gt100,sys$gt100", True),
    ("missing", "Observation", CODED, "code-value-quantity:missing=true", True),
    (
        "rooted",
        "MolecularSequence",
        {
            "referenceSeq": {"chromosome": {"coding": [{"code": "7"}]}},
            "variant": [{"start": 5, "end": 9}],
        },
        "chromosome-variant-coordinate=7$5$9",
        True,
    ),
    (
        "definitions-mixed-up",
        "DocumentReference",
        {"relatesTo": [{"code": "replaces", "target": {"reference": "DocumentReference/1"}}]},
        "relationship=DocumentReference/1$replaces",
        True,
    ),
    (
        "definitions-mixed-up-other-code",
        "DocumentReference",
        {"relatesTo": [{"code": "signs", "target": {"reference": "DocumentReference/1"}}]},
        "relationship=DocumentReference/1$replaces",
        False,
    ),
]

CODES = "http://carerelay.example/CodeSystem/"
PCP_ROLE = [{"coding": [{"system": "http://snomed.info/sct", "code": "446050000"}]}]
HEART_ROLE = [{"coding": [{"system": "http://snomed.info/sct", "code": "17561000"}]}]
TEAM = {
    "participant": [
        {"role": PCP_ROLE, "member": {"reference": "Organization/o1"}},
        {"role": HEART_ROLE, "member": {"reference": "Organization/o2"}},
    ]
}
STAY = {"period": {"start": "2026-05-01", "end": "2026-05-04"}}
ENDED = {
    "extension": [
        {
            "url": "http://carerelay.example/StructureDefinition/episode-end-reason",
            "valueCodeableConcept": {
                "coding": [{"system": f"{CODES}episode-end-reason", "code": "hospice"}]
            },
        }
    ]
}
TIER = {
    "status": "active",
    "category": [{"coding": [{"system": f"{CODES}flag-category", "code": "risk-tier"}]}],
    "code": {"coding": [{"system": f"{CODES}risk-tier", "code": "high"}]},
}
REPLY = {"inResponseTo": [{"reference": "Communication/c1"}]}
LETTER = {"about": [{"reference": "EpisodeOfCare/e1"}]}
LISTS = {"input": [{"type": {"text": "Stay"}, "valueReference": {"reference": "Encounter/e1"}}]}
DUE = {"restriction": {"period": {"end": "2026-05-04"}}}

# Those that this server has beside R4 and US Core (profiles/carerelay).
SHIPPED: list[Row] = [
    ("pcp", "CareTeam", TEAM, "primary-care-provider=Organization/o1", True),
    ("pcp-other", "CareTeam", TEAM, "primary-care-provider=Organization/o2", False),
    ("covered", "Coverage", {"period": {"start": "2026-05-01"}}, "period=ge2026-06", True),
    ("covered-not", "Coverage", {"period": {"end": "2026-05-01"}}, "period=ge2026-06", False),
    ("began", "Encounter", STAY, "date-start=2026-05-01", True),
    ("began-not", "Encounter", STAY, "date-start=2026-05-02", False),
    ("ended", "Encounter", STAY, "end-date=ge2026-05-04", True),
    ("ended-not", "Encounter", STAY, "end-date=2026-05-01", False),
    ("end-reason", "EpisodeOfCare", ENDED, f"end-reason={CODES}episode-end-reason|hospice", True),
    ("end-reason-other", "EpisodeOfCare", ENDED, "end-reason=deceased", False),
    ("tier", "Flag", TIER, "category=risk-tier&code=high&status=active", True),
    ("tier-other", "Flag", TIER, "category=risk-tier&code=low", False),
    ("reply", "Communication", REPLY, "in-response-to=Communication/c1", True),
    ("reply-other", "Communication", REPLY, "in-response-to=Communication/c2", False),
    ("letter", "Communication", LETTER, "about=EpisodeOfCare/e1", True),
    ("letter-other", "Communication", LETTER, "about=EpisodeOfCare/e2", False),
    ("lists", "Task", LISTS, "input=Encounter/e1", True),
    ("lists-other", "Task", LISTS, "input=Encounter/e2", False),
    ("due", "Task", DUE, "due=le2026-05-04", True),
    ("due-later", "Task", DUE, "due=lt2026-05-04", False),
    ("refuses", "Consent", {"provision": {"type": "deny"}}, "provision-type=deny", True),
    ("permits", "Consent", {"provision": {"type": "permit"}}, "provision-type=deny", False),
]

COMMON: list[Row] = [
    ("id", "Basic", {"id": "one"}, "_id=one", True),
    ("id-or", "Basic", {"id": "two"}, "_id=x,two", True),
    ("id-other", "Basic", {"id": "three"}, "_id=four", False),
    ("last-updated", "Basic", {"id": "five"}, "_lastUpdated=gt2020-01-01", True),
    ("last-updated-ne", "Basic", {"id": "six"}, "_lastUpdated=ne2020-01-01", True),
    ("last-updated-old", "Basic", {"id": "seven"}, "_lastUpdated=lt2020-01-01", False),
    ("none", "Basic", {"id": "eight"}, "", True),
]

KINDS = {
    "token": TOKEN,
    "reference": REFERENCE,
    "string": STRING,
    "uri": URI,
    "date": DATE,
    "number": NUMBER,
    "quantity": QUANTITY,
    "composite": COMPOSITE,
    "shipped": SHIPPED,
    "common": COMMON,
}
ROWS = [(f"{kind}-{row[0]}", *row[1:]) for kind, rows in KINDS.items() for row in rows]
