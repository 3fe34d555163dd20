"""The shape of an answer: its format, its layout, and how far its resources are cut down, as a request asks for it.

https://hl7.org/fhir/R4/http.html#parameters and https://hl7.org/fhir/R4/search.html#summary

Nobody else reads `_format`, `_pretty`, `_summary` and `_elements`: they belong to the interaction, wherever it is
asked, in a URL, in a form, in an entry of a Bundle or behind the link to a page.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from urllib.parse import unquote_plus

import msgspec

from app.errors import BadRequest
from app.fhir import formats, json as fhir_json, summary, xml
from app.fhir.formats import FHIR_JSON, FHIR_XML
from app.fhir.json import Resource

Pairs = Sequence[tuple[str, str]]

# How an answer is written, and how far it is cut down.
LAYOUT = frozenset({"_format", "_pretty"})
CUTS = frozenset({"_summary", "_elements"})
NAMES = LAYOUT | CUTS
_SUMMARIES = frozenset({"true", "text", "data", "count", "false"})
_ELEMENT = re.compile(r"^[A-Za-z][A-Za-z0-9]*(\.[A-Za-z][A-Za-z0-9]*)?$")


@dataclass(frozen=True, slots=True)
class AnswerShape:
    """What was asked for. `media_type` is None where that is left to the Accept header."""

    media_type: str | None = None
    pretty: bool = False
    summary: str | None = None
    elements: tuple[str, ...] = ()

    @property
    def counts(self) -> bool:
        """Whether only the number of what is found is wanted."""
        return self.summary == "count"

    @property
    def cuts(self) -> bool:
        """Whether resources are shown in parts."""
        return bool(self.elements) or self.summary in ("true", "text", "data")

    @property
    def is_plain(self) -> bool:
        """Whether the JSON as it is stored is what was asked for."""
        return not self.cuts and not self.pretty and self.media_type != FHIR_XML

    @property
    def within(self) -> AnswerShape:
        """The shape of what becomes part of another answer, whose format and layout are its own."""
        return replace(self, media_type=None, pretty=False)

    def accepting(self, media_type: str | None) -> AnswerShape:
        """The same in this format, where none was named."""
        if self.media_type is not None or media_type is None:
            return self
        return replace(self, media_type=media_type)

    def render(self, body: str | bytes, *, is_result: bool) -> bytes:
        """An answer's JSON text in this shape; `is_result` as `cut` has it."""
        if not self.cuts and self.media_type != FHIR_XML:
            text = body.encode() if isinstance(body, str) else body
            return msgspec.json.format(text, indent=2) if self.pretty else text
        return self.encode(self.cut(fhir_json.decode_stored(body), is_result=is_result))

    def cut(self, resource: Resource, *, is_result: bool) -> Resource:
        """The resource as far as it was asked for; of a Bundle that is a result, the resources in it."""
        if not self.cuts:
            return resource
        if is_result and resource.get("resourceType") == "Bundle":
            return summary.subset_bundle(resource, self.summary, self.elements)
        return summary.subset(resource, self.summary, self.elements)

    def encode(self, resource: Resource) -> bytes:
        """A resource in this format and layout."""
        if self.media_type == FHIR_XML:
            return xml.encode(resource, pretty=self.pretty)
        text = fhir_json.encode(resource)
        return msgspec.json.format(text, indent=2) if self.pretty else text

    @property
    def content_type(self) -> str:
        return f"{self.media_type or FHIR_JSON}; charset=utf-8"


PLAIN = AnswerShape()


def read(asked: Pairs) -> AnswerShape:
    """The shape that parameters ask for. Raises NotAcceptable or BadRequest."""
    found = [pair for pair in asked if pair[0] in NAMES]
    if not found:
        return PLAIN
    last = dict(found)
    if sum(name == "_summary" for name, _ in found) > 1:
        raise _refused("_summary", "Parameter '_summary' may be given only once", "invalid")
    pretty, cut = last.get("_pretty", "false"), last.get("_summary")
    if pretty not in ("true", "false"):
        raise _refused("_pretty", "The value of '_pretty' must be true or false")
    if cut is not None and cut not in _SUMMARIES:
        raise _refused(
            "_summary", "The value of '_summary' must be true, text, data, count or false"
        )
    return AnswerShape(
        formats.named(last["_format"]) if "_format" in last else None,
        pretty == "true",
        None if cut == "false" else cut,
        read_elements(text for name, text in found if name == "_elements"),
    )


def read_elements(texts: Iterable[str]) -> tuple[str, ...]:
    """The names in values of `_elements`, `status` or `Encounter.status`. Raises BadRequest."""
    names = tuple(dict.fromkeys(name for text in texts for name in text.split(",")))
    if not all(_ELEMENT.match(name) for name in names):
        raise _refused(
            "_elements", "The value of '_elements' is malformed; expected names of elements"
        )
    return names


def without(query: str, names: Iterable[str] = NAMES) -> str:
    """A URL's query without these parameters, and otherwise as it was."""
    if "_" not in query and "%" not in query:
        return query
    left_out = frozenset(names)
    parts = query.split("&")
    return "&".join(p for p in parts if unquote_plus(p.partition("=")[0]) not in left_out)


def refuse_count(shape: AnswerShape) -> None:
    """Raises BadRequest for `_summary=count` where nothing is counted: no more may be shown than was asked for."""
    if shape.counts:
        raise not_counted()


def not_counted() -> BadRequest:
    return _refused(
        "_summary", "'_summary=count' counts what a search or a history finds", "not-supported"
    )


def _refused(name: str, diagnostics: str, code: str = "value") -> BadRequest:
    return BadRequest(diagnostics, code=code, expression=f"http.{name}")
