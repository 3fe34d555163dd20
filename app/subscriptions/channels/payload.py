"""Payload types: `application/fhir+json; fhirVersion=4.0` and its like, as `channel.payload` may name them.

https://hl7.org/fhir/R4/http.html#mime-type
"""

from __future__ import annotations

from app.fhir import json as fhir_json, xml
from app.fhir.json import Resource

FHIR_JSON = "application/fhir+json"
FHIR_XML = "application/fhir+xml"
SUPPORTED = f"{FHIR_JSON} or {FHIR_XML}"
_SPELLINGS = {
    FHIR_JSON: FHIR_JSON,
    "application/json": FHIR_JSON,
    FHIR_XML: FHIR_XML,
    "application/xml": FHIR_XML,
}
_PARAMETERS = {"fhirversion": ("4.0", "4.0.1"), "charset": ("utf-8",)}


def split(payload: str) -> tuple[str, dict[str, str]]:
    """The media type and its parameters, names in lower case."""
    name, *rest = payload.split(";")
    pairs = (part.partition("=") for part in rest)
    return name.strip().lower(), {k.strip().lower(): v.strip().strip('"') for k, _, v in pairs}


def format_of(payload: str) -> str | None:
    """FHIR_JSON or FHIR_XML; None where the payload type is another, or of another version of FHIR."""
    name, parameters = split(payload)
    for key, value in parameters.items():
        if value.lower() not in _PARAMETERS.get(key, ()):
            return None
    return _SPELLINGS.get(name)


def body(content: Resource | bytes | None, media_type: str) -> bytes:
    """The body of a notice: a resource in FHIR_JSON or FHIR_XML, bytes as they are, empty for None."""
    if content is None:
        return b""
    if isinstance(content, bytes):
        return content
    return encode(content, media_type)


def encode(resource: Resource, media_type: str) -> bytes:
    """A resource in FHIR_JSON or FHIR_XML."""
    return xml.encode(resource) if media_type == FHIR_XML else fhir_json.encode(resource)
