"""JSON and XML: which one a request brings, which one its answer takes, and how the answer is cut and laid out.

https://hl7.org/fhir/R4/http.html#mime-type
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import msgspec

from app.errors import BadRequest, NotAcceptable, UnsupportedMediaType
from app.fhir import json as fhir_json, summary, xml
from app.fhir.json import Resource

FHIR_JSON = "application/fhir+json"
FHIR_XML = "application/fhir+xml"
SPELLINGS: Mapping[str, str] = {
    **dict.fromkeys((FHIR_JSON, "application/json", "text/json", "json"), FHIR_JSON),
    **dict.fromkeys((FHIR_XML, "application/xml", "text/xml", "xml"), FHIR_XML),
}
_ANY = frozenset({"*/*", "application/*"})
_DECODERS: Mapping[str, Callable[[bytes], Resource]] = {
    FHIR_JSON: fhir_json.decode,
    FHIR_XML: xml.decode,
}
_CHARSETS = frozenset({"utf-8", "utf8", "us-ascii"})
_VERSIONS = frozenset({"4.0", "4.0.1"})
# Parameters of every request that say how its answer is to look.
SHAPE = frozenset({"_format", "_pretty", "_summary", "_elements"})
_SUMMARIES = frozenset({"true", "text", "data", "count", "false"})
_ELEMENT = re.compile(r"^[A-Za-z]+(\.[A-Za-z]+)?$")


@dataclass(frozen=True, slots=True)
class Form:
    """How an answer is to look."""

    media_type: str = FHIR_JSON
    pretty: bool = False
    summary: str | None = None
    elements: tuple[str, ...] = ()

    def render(self, body: str | bytes) -> bytes:
        """The answer's JSON text in this form."""
        if not (self.summary or self.elements) and self.media_type == FHIR_JSON:
            text = body.encode() if isinstance(body, str) else body
            return msgspec.json.format(text, indent=2) if self.pretty else text
        resource = fhir_json.decode_stored(body)
        if self.summary or self.elements:
            is_result = resource.get("resourceType") == "Bundle" and "entry" in resource
            cut = summary.subset_bundle if is_result else summary.subset
            resource = cut(resource, self.summary, self.elements)
        return self.encode(resource)

    def encode(self, resource: Resource) -> bytes:
        """A resource in this form's format and layout."""
        if self.media_type == FHIR_JSON:
            text = fhir_json.encode(resource)
            return msgspec.json.format(text, indent=2) if self.pretty else text
        return xml.encode(resource, pretty=self.pretty)


PLAIN = Form()


def read_form(query: Sequence[tuple[str, str]], accept: str | None) -> Form:
    """What `_format`, Accept, `_pretty`, `_summary` and `_elements` ask for. Raises NotAcceptable or BadRequest."""
    if not query and (accept is None or accept in ("*/*", FHIR_JSON)):
        return PLAIN
    last = dict(query)
    wanted = last.get("_format")
    media_type = _format(wanted) if wanted is not None else _accepted(accept)
    pretty, cut = last.get("_pretty", "false"), last.get("_summary")
    if pretty not in ("true", "false"):
        raise BadRequest("_pretty must be true or false", code="value", expression="http._pretty")
    if cut is not None and cut not in _SUMMARIES:
        raise BadRequest(
            "_summary must be true, text, data, count or false",
            code="value",
            expression="http._summary",
        )
    names = tuple(name for key, text in query if key == "_elements" for name in text.split(","))
    if not all(_ELEMENT.match(name) for name in names):
        raise BadRequest("_elements must name elements", code="value", expression="http._elements")
    return Form(media_type, pretty == "true", None if cut in ("false", "count") else cut, names)


def decode(content_type: str, body: bytes) -> Resource:
    """A resource in the format that its Content-Type names. Raises UnsupportedMediaType or BadRequest."""
    return _DECODERS[check(content_type)](body)


def check(content_type: str) -> str:
    """The format that a Content-Type names; none is guessed. Raises UnsupportedMediaType."""
    name, parameters = _split(content_type)
    known = SPELLINGS.get(name)
    is_read = (
        parameters.get("fhirversion", "4.0") in _VERSIONS
        and parameters.get("charset", "utf-8").lower() in _CHARSETS
    )
    if known is None or not is_read:
        raise UnsupportedMediaType(
            f"Say by Content-Type what is sent: {FHIR_JSON} or {FHIR_XML}, fhirVersion 4.0, in UTF-8"
        )
    return known


def _format(text: str) -> str:
    # A plus sign in a query that nobody encoded arrives as a space.
    name, parameters = _split(text.replace(" ", "+"))
    if name in SPELLINGS and parameters.get("fhirversion", "4.0") in _VERSIONS:
        return SPELLINGS[name]
    raise _not_acceptable()


@lru_cache(maxsize=256)
def _accepted(accept: str | None) -> str:
    """The format with the highest quality in an Accept header; JSON where the client leaves it open."""
    if accept is None:
        return FHIR_JSON
    best, quality = None, 0.0
    for part in accept.split(","):
        name, parameters = _split(part)
        media_type = FHIR_JSON if name in _ANY else SPELLINGS.get(name)
        if media_type is None or parameters.get("fhirversion", "4.0") not in _VERSIONS:
            continue
        try:
            weight = float(parameters.get("q", "1"))
        except ValueError:
            continue
        if weight > quality:
            best, quality = media_type, weight
    if best is None:
        raise _not_acceptable()
    return best


def _split(media_type: str) -> tuple[str, dict[str, str]]:
    name, *rest = media_type.split(";")
    pairs = (part.partition("=") for part in rest)
    return name.strip().lower(), {k.strip().lower(): v.strip().strip('"') for k, _, v in pairs}


def _not_acceptable() -> NotAcceptable:
    return NotAcceptable(f"This server answers in {FHIR_JSON} and {FHIR_XML}, fhirVersion 4.0")
