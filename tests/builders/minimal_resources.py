"""A minimal valid resource of every type, built from R4's definitions: what must be there and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from decimal import Decimal
from typing import Any

from app.fhir.definitions import Element, json_name, required_codes, resolve, structure

_PRIMITIVES: Mapping[str, Any] = {
    "base64Binary": "AAAA",
    "boolean": True,
    "canonical": "http://example.org/canonical",
    "code": "code",
    "date": "2024-05-01",
    "dateTime": "2024-05-01T08:00:00Z",
    "decimal": Decimal("1.0"),
    "id": "id",
    "instant": "2024-05-01T08:00:00Z",
    "integer": 1,
    "markdown": "text",
    "oid": "urn:oid:1.2.3",
    "positiveInt": 1,
    "string": "text",
    "time": "08:00:00",
    "unsignedInt": 1,
    "uri": "http://example.org/uri",
    "url": "http://example.org/url",
    "uuid": "urn:uuid:c757873d-ec9a-4326-a141-556f43239520",
    "xhtml": '<div xmlns="http://www.w3.org/1999/xhtml">text</div>',
}
# Types with rules of the server's own, or of R4, that no definition of an element tells.
_SPECIAL: Mapping[str, dict[str, Any]] = {
    "SearchParameter": {
        "resourceType": "SearchParameter",
        "url": "http://example.org/SearchParameter/test",
        "name": "Test",
        "status": "draft",
        "description": "One that is not active changes nothing",
        "code": "test",
        "base": ["Patient"],
        "type": "token",
    },
    "Subscription": {
        "resourceType": "Subscription",
        "status": "off",
        "reason": "A test",
        "criteria": "Encounter?status=planned",
        "channel": {"type": "rest-hook", "endpoint": "http://127.0.0.1:9/hook"},
    },
}
_CAPABILITIES = {"kind": "requirements", "description": "text"}
_PARTICIPANT: dict[str, Any] = {"status": "accepted", "actor": {"display": "somebody"}}
# What R4's invariants ask for besides.
_INVARIANTS: Mapping[str, dict[str, Any]] = {
    "AllergyIntolerance": {
        "clinicalStatus": {
            "coding": [
                {
                    "system": "http://terminology.hl7.org/CodeSystem/allergyintolerance-clinical",
                    "code": "active",
                }
            ]
        }
    },
    "Appointment": {"status": "proposed", "participant": [_PARTICIPANT]},
    "AppointmentResponse": {"actor": {"display": "somebody"}},
    "CapabilityStatement": {**_CAPABILITIES, "rest": [{"mode": "server"}]},
    "Consent": {"policyRule": {"text": "text"}},
    "EventDefinition": {"trigger": [{"type": "named-event", "name": "text"}]},
    "ImmunizationRecommendation": {
        "recommendation": [
            {"vaccineCode": [{"text": "text"}], "forecastStatus": {"text": "text"}},
        ]
    },
    "InsurancePlan": {"name": "text"},
    "Linkage": {"item": [{"type": "source", "resource": {"display": "somebody"}}] * 2},
    "Organization": {"name": "text"},
    "StructureDefinition": {
        "kind": "logical",
        "differential": {"element": [{"id": "text", "path": "text"}]},
    },
    "TerminologyCapabilities": _CAPABILITIES,
}


def minimal(resource_type: str) -> dict[str, Any]:
    """A fresh resource without an id."""
    if resource_type in _SPECIAL:
        return dict(_SPECIAL[resource_type])
    return {
        "resourceType": resource_type,
        **_children(structure(resource_type).elements),
        **deepcopy(_INVARIANTS.get(resource_type, {})),
    }


def _children(elements: Mapping[str, Element]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, element in elements.items():
        if element.min == 0:
            continue
        if element.choice:
            name = json_name(name, element.types[0])
        value = _value(element)
        made[name] = [value] * element.min if element.is_list else value
    return made


def _value(element: Element) -> Any:
    if element.ref:
        element = resolve(element.ref)
    if element.binding and (codes := required_codes(element.binding)) and "code" in element.types:
        return min(min(of_system) for of_system in codes.values() if of_system)
    if element.elements:
        return _children(element.elements) or {"extension": [_extension()]}
    type_name = element.types[0]
    if type_name in _PRIMITIVES:
        return _PRIMITIVES[type_name]
    if type_name == "Resource":
        return minimal("Basic")
    if type_name == "Reference":
        return {"display": "somebody"}
    return _children(structure(type_name).elements) or {"extension": [_extension()]}


def _extension() -> dict[str, str]:
    return {"url": "http://example.org/extension", "valueString": "text"}
