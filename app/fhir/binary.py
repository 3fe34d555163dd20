"""Binary as what it holds: content of any type, in the resource's shape and out of it.

https://hl7.org/fhir/R4/binary.html#rest

Base64 is a third longer than what it stands for. Both ways are cut into pieces, each short enough to keep nobody
waiting; what is asked for in part is decoded in part.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator
from typing import Any

import msgspec

from app.errors import NotAcceptable
from app.fhir.formats import FHIR_JSON, FHIR_XML, SPELLINGS
from app.fhir.json import Resource

TYPE = "Binary"
# What a browser may make of any content does no harm.
UNKNOWN = "application/octet-stream"

_TOKEN = r"[A-Za-z0-9!#$%&'+\-.^_`|~]+"  # noqa: S105 - no password: a token of RFC 9110, without the asterisk
_MEDIA_TYPE = re.compile(rf'({_TOKEN}/{_TOKEN})((?: *; *{_TOKEN}=(?:{_TOKEN}|"[!#-:<-\[\]-~]*"))*)')
_PARAMETER = re.compile(r" *; *")
_LONGEST_TYPE = 255
# Groups of three bytes, of four characters: so many at once take a millisecond at the most.
_GROUPS = 64 * 1024
_FORMS = frozenset({FHIR_JSON, FHIR_XML})
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_SPACE = re.compile(rb"\s*")
# What may stand before the root element of XML, and the name of that, or that a document type says it has.
_ASIDE = ((b"<?", b"?>"), (b"<!--", b"-->"))
_ROOT = re.compile(rb"<(?:!DOCTYPE\s+)?(?:[\w.\-]+:)?Binary[\s/>]")
_NAMESPACE = b"http://hl7.org/fhir"
_SPACES = " \t\n\r\x0b\x0c\x1c\x1d\x1e\x1f"
_HEADER_REFERENCE = re.compile(r"[!-~]{1,2048}")
# The endings of files that no program takes for instructions.
_ENDINGS = {
    "application/dicom": "dcm",
    "application/fhir+json": "json",
    "application/fhir+xml": "xml",
    "application/gzip": "gz",
    "application/json": "json",
    "application/msword": "doc",
    "application/pdf": "pdf",
    "application/rtf": "rtf",
    "application/vnd.oasis.opendocument.text": "odt",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/xml": "xml",
    "application/zip": "zip",
    "audio/mpeg": "mp3",
    "image/gif": "gif",
    "image/jpeg": "jpg",
    "image/png": "png",
    "image/tiff": "tif",
    "text/csv": "csv",
    "text/plain": "txt",
    "text/rtf": "rtf",
    "text/xml": "xml",
    "video/mp4": "mp4",
}


class _Reference(msgspec.Struct):
    reference: str = ""


class _Head(msgspec.Struct, rename="camel"):
    content_type: str = ""
    security_context: _Reference = msgspec.field(default_factory=_Reference)


class _WithContext(msgspec.Struct, rename="camel"):
    security_context: dict[str, Any] | None = None


class _Content(_Head):
    data: str = ""


_heads = msgspec.json.Decoder(_Head)
_contexts = msgspec.json.Decoder(_WithContext)
_contents = msgspec.json.Decoder(_Content)


# Media types


def media_type(text: str) -> str | None:
    """A media type with its parameters, in one spelling; None for what is none, or a range of several."""
    found = _MEDIA_TYPE.fullmatch(text.strip()) if len(text) <= _LONGEST_TYPE else None
    return None if found is None else found[1].lower() + _PARAMETER.sub("; ", found[2])


def essence(type_: str) -> str:
    """A media type without its parameters."""
    return type_.partition(";")[0].strip().lower()


# Who asks for which


def is_content_asked(accept: str | None, format_: str | None, type_: str) -> bool:
    """Whether a reader asks for the content itself, which has this media type, rather than for the resource.

    The resource is for who asks for it by the names of FHIR; who names JSON or XML as such gets a content of that type.
    Whether FHIR's formats have what else is asked for, they say themselves.
    """
    own = essence(type_)
    if format_ is not None:
        wanted = essence(
            format_.replace(" ", "+")
        )  # a plus sign that nobody encoded arrives as a space
        return wanted == own and wanted not in _FORMS
    if accept is None:
        return True
    ranges = list(_ranges(accept))
    asked = max((weight for name, weight in ranges if name in _FORMS), default=0.0)
    content = _quality(ranges, own)
    return content > asked


def _quality(ranges: list[tuple[str, float]], own: str) -> float:
    """The quality of a media type in an Accept header: that of the range which names it best, RFC 9110 12.5.1."""
    weights = dict(reversed(ranges))
    for name in (own, f"{own.partition('/')[0]}/*", "*/*"):
        if name in weights:
            return weights[name]
    return 0.0


def _ranges(accept: str) -> Iterator[tuple[str, float]]:
    for part in accept.split(","):
        name, *parameters = (each.strip().lower() for each in part.split(";"))
        quality = next((each[2:] for each in parameters if each.startswith("q=")), "1")
        try:
            yield name, float(quality)
        except ValueError:
            continue


def not_acceptable() -> NotAcceptable:
    """The refusal of a reader who takes neither the content nor a format of the resource."""
    return NotAcceptable(
        f"The content has another type; as a resource it is there in {FHIR_JSON} and {FHIR_XML}"
    )


# Out of the resource


class Content:
    """The content of a stored Binary, decoded no further than it is asked for."""

    def __init__(self, text: str) -> None:
        found = _contents.decode(text)
        # R4 allows white space between the groups.
        self._data = "".join(found.data.split()) if _has_space(found.data) else found.data
        self.type = media_type(found.content_type) or UNKNOWN
        self.context = found.security_context.reference
        self.size = len(self._data) // 4 * 3 - self._data[-2:].count("=")

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """The bytes from `start` up to `stop`."""
        first, last = start // 3, -(-stop // 3)
        for group in range(first, last, _GROUPS):
            until = min(group + _GROUPS, last)
            piece = binascii.a2b_base64(self._data[4 * group : 4 * until])
            yield piece[max(start - 3 * group, 0) : stop - 3 * group]


def _has_space(data: str) -> bool:
    # Ten searches for one character take a tenth of the time of one for any.
    return not data.isascii() or any(each in data for each in _SPACES)


def type_of(text: str) -> str:
    """The media type of a stored Binary's content, whatever it is."""
    return media_type(_heads.decode(text).content_type) or UNKNOWN


def file_name(resource_id: str, type_: str) -> str:
    """A name to keep the content under: of an id's characters alone, and opened by no program as instructions."""
    return f"{TYPE}-{resource_id}.{_ENDINGS.get(essence(type_), 'bin')}"


def header_of(reference: str) -> str | None:
    """A reference as a header may have it; None for one that no header can hold."""
    return reference if _HEADER_REFERENCE.fullmatch(reference) else None


# Into the resource


def may_be_resource(content_type: str, body: bytes) -> bool:
    """Whether a body of this type may be a Binary itself, and has to be decoded to know.

    What R4 takes as content is everything else, whatever the type.
    """
    form = SPELLINGS.get(essence(content_type))
    if form == FHIR_XML:
        return _NAMESPACE in body and _has_binary_root(body)
    if form == FHIR_JSON:
        begins = body.startswith(b"{", _begin(body))
        return begins and b'"Binary"' in body and b'"resourceType"' in body
    return False


def _begin(body: bytes, at: int = 0) -> int:
    """Where the text goes on after white space, and after a mark of its encoding."""
    at += len(_BYTE_ORDER_MARK) if body.startswith(_BYTE_ORDER_MARK, at) else 0
    space = _SPACE.match(body, at)
    return space.end() if space else at


def _has_binary_root(body: bytes) -> bool:
    at = _begin(body)
    while True:
        end = next((end for begin, end in _ASIDE if body.startswith(begin, at)), None)
        if end is None:
            return _ROOT.match(body, at) is not None
        found = body.find(end, at + 2)
        if found < 0:
            return False
        at = _begin(body, found + len(end))


def encoded(content: bytes) -> Iterator[bytes]:
    """The content as base64, in pieces."""
    for start in range(0, len(content), 3 * _GROUPS):
        yield binascii.b2a_base64(content[start : start + 3 * _GROUPS], newline=False)


def resource_of(type_: str, data: str, *, context: str | None, id_: str | None) -> Resource:
    """A Binary with this content, in base64."""
    resource: Resource = {"resourceType": TYPE}
    if id_ is not None:
        resource["id"] = id_
    resource["contentType"] = type_
    if context is not None:
        resource["securityContext"] = {"reference": context}
    return {**resource, "data": data}


def carry_over(resource: Resource, previous: str) -> Resource:
    """The Binary with the security context of its previous version, where it names none itself.

    It protects as labels do (meta.py), and content that is sent as it is comes without it.
    """
    if "securityContext" in resource:
        return resource
    kept = _contexts.decode(previous).security_context
    if kept is None:
        return resource
    rest = {name: value for name, value in resource.items() if name != "data"}
    data = {"data": resource["data"]} if "data" in resource else {}
    return {**rest, "securityContext": kept, **data}
