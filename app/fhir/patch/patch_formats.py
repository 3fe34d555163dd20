"""The formats of a patch, by media type. https://hl7.org/fhir/R4/http.html#patch"""

from __future__ import annotations

from collections.abc import Callable

from app.errors import UnsupportedMediaType
from app.fhir import json as fhir_json, xml
from app.fhir.formats import FHIR_JSON, FHIR_XML, SPELLINGS
from app.fhir.patch.fhirpath_patch import fhirpath_patch
from app.fhir.patch.json_patch import JSON_PATCH, Patch, json_patch
from app.fhir.patch.xml_patch import XML_PATCH, xml_patch

_PATCHES: dict[str, Callable[[bytes], Patch]] = {
    JSON_PATCH: json_patch,
    XML_PATCH: xml_patch,
    FHIR_JSON: lambda body: fhirpath_patch(fhir_json.decode(body)),
    FHIR_XML: lambda body: fhirpath_patch(xml.decode(body)),
}
PATCH_FORMATS = tuple(_PATCHES)


def patch_of(media_type: str, body: bytes) -> Patch:
    """The patch that a body of this media type holds; what is said to be JSON or XML alone is FHIR, as everywhere."""
    named = media_type.split(";")[0].strip().lower()
    reader = _PATCHES.get(SPELLINGS.get(named, named))
    if reader is None:
        raise UnsupportedMediaType(
            f"Send patches as one of {', '.join(_PATCHES)}",
            headers={"Accept-Patch": ", ".join(_PATCHES)},
        )
    return reader(body)
