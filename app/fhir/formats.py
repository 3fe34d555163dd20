"""JSON and XML: which one a request brings, and which one its answer takes.

https://hl7.org/fhir/R4/http.html#mime-type
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

from app.errors import NotAcceptable, UnsupportedMediaType
from app.fhir import json as fhir_json, xml
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


def named(text: str) -> str:
    """The format that a value of `_format` names. Raises NotAcceptable."""
    # A plus sign in a query that nobody encoded arrives as a space.
    name, parameters = _split(text.replace(" ", "+"))
    if name in SPELLINGS and parameters.get("fhirversion", "4.0") in _VERSIONS:
        return SPELLINGS[name]
    raise _not_acceptable()


@lru_cache(maxsize=256)
def accepted(accept: str | None) -> str:
    """The format with the highest quality in an Accept header; JSON where that leaves it open. Raises NotAcceptable."""
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


def form_asked(accept: str | None, format_: str | None, forms: Mapping[str, str]) -> str | None:
    """Which of these media types, by their short names, is asked for by name rather than FHIR's own; None for none."""
    if format_ is not None:
        # A plus sign in a query that nobody encoded arrives as a space.
        wanted = _split(format_.replace(" ", "+"))[0]
        return forms.get(wanted, wanted if wanted in forms.values() else None)
    best, quality = None, 0.0
    for part in (accept or "").split(","):
        name, parameters = _split(part)
        try:
            weight = float(parameters.get("q", "1"))
        except ValueError:
            continue
        if weight > quality and (name in forms.values() or name in SPELLINGS):
            best, quality = name, weight
    return best if best in forms.values() else None


def _split(media_type: str) -> tuple[str, dict[str, str]]:
    name, *rest = media_type.split(";")
    pairs = (part.partition("=") for part in rest)
    return name.strip().lower(), {k.strip().lower(): v.strip().strip('"') for k, _, v in pairs}


def _not_acceptable() -> NotAcceptable:
    return NotAcceptable(f"This server answers in {FHIR_JSON} and {FHIR_XML}, fhirVersion 4.0")
