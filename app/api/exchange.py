"""One HTTP exchange: what a request asks of the server, and how an answer is put on the wire.

https://hl7.org/fhir/R4/http.html#general
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from functools import lru_cache
from typing import Literal, cast
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from app.errors import (
    BadRequest,
    FhirError,
    Issue,
    TooLarge,
    UnsupportedMediaType,
    operation_outcome,
)
from app.fhir import formats, json as fhir_json, xml
from app.fhir.formats import FHIR_JSON, FHIR_XML, PLAIN, Form
from app.fhir.json import Resource
from app.fhir.patch.fhirpath_patch import fhirpath_patch
from app.fhir.patch.json_patch import JSON_PATCH, Patch, json_patch
from app.fhir.patch.xml_patch import XML_PATCH, xml_patch
from app.records.versions import Stored

FORM = "application/x-www-form-urlencoded"
MAX_FORM_BYTES = 1024 * 1024
_PATCHES: dict[str, Callable[[bytes], Patch]] = {
    JSON_PATCH: json_patch,
    XML_PATCH: xml_patch,
    FHIR_JSON: lambda body: fhirpath_patch(fhir_json.decode(body)),
    FHIR_XML: lambda body: fhirpath_patch(xml.decode(body)),
}
PATCH_FORMATS = tuple(_PATCHES)
# Some clients send the bare versionId.
_ETAG = re.compile(r'^(?:W/)?"([^"]*)"$|^([0-9]+)$')


@dataclass(slots=True)
class Answer:
    """What an interaction returns: a status and one version, or a Bundle or outcome as JSON text."""

    status: int
    stored: Stored | None = None
    text: str | bytes | None = None
    issues: tuple[Issue, ...] = ()
    location: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def body(self) -> str | bytes | None:
        if self.text is not None:
            return self.text
        if self.stored is not None and not self.stored.deleted:
            return self.stored.text
        return None


@dataclass(frozen=True, slots=True)
class Preconditions:
    """The conditional headers of a request; versions are bare numbers out of `W/"3"`."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since: datetime | None = None
    if_none_exist: str | None = None


NO_PRECONDITIONS = Preconditions()


@dataclass(frozen=True, slots=True)
class Prefer:
    """The Prefer header, https://hl7.org/fhir/R4/http.html#ops."""

    returns: Literal["minimal", "representation", "OperationOutcome"] = "representation"
    handling: Literal["strict", "lenient"] | None = None
    respond_async: bool = False


def read_prefer(header: str | None) -> Prefer:
    """Unknown preferences are ignored, as RFC 7240 asks."""
    if not header:
        return Prefer()
    preferences = {}
    for part in re.split(r"[,;]", header):
        name, _, value = part.strip().partition("=")
        preferences[name.strip().lower()] = value.strip().strip('"')
    returns = preferences.get("return", "representation")
    if returns not in ("minimal", "representation", "OperationOutcome"):
        returns = "representation"
    handling = preferences.get("handling")
    return Prefer(
        cast("Literal['minimal', 'representation', 'OperationOutcome']", returns),
        cast("Literal['strict', 'lenient']", handling)
        if handling in ("strict", "lenient")
        else None,
        "respond-async" in preferences,
    )


def read_preconditions(headers: Mapping[str, str]) -> Preconditions:
    """Raises BadRequest for a header that cannot be read: guessing would lose an update."""
    if not any(name.startswith("if-") for name in headers):
        return NO_PRECONDITIONS
    since = headers.get("if-modified-since")
    moment = None
    if since:
        try:
            moment = parsedate_to_datetime(since)
        except ValueError:
            raise BadRequest("If-Modified-Since is not an HTTP date") from None
        if moment.tzinfo is None:  # HTTP dates are in GMT, whether they say so or not
            moment = moment.replace(tzinfo=UTC)
    return Preconditions(
        _etag(headers.get("if-match"), "If-Match"),
        _etag(headers.get("if-none-match"), "If-None-Match"),
        moment,
        headers.get("if-none-exist"),
    )


def _etag(value: str | None, header: str) -> str | None:
    if value is None or value.strip() == "*":
        return value and "*"
    match = _ETAG.match(value.strip())
    if match is None:
        raise BadRequest(f'{header} must look like W/"1"')
    return match[1] if match[1] is not None else match[2]


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def read_resource(request: Request, limit: int) -> Resource:
    """The decoded body. Raises UnsupportedMediaType, TooLarge or BadRequest."""
    return formats.decode(request.headers.get("content-type", ""), await read_body(request, limit))


async def read_parameters(request: Request, limit: int) -> Resource | list[tuple[str, str]]:
    """What an operation is given: a posted resource, or the query."""
    if request.method == "POST":
        body = await read_body(request, limit, may_be_empty=True)
        if body:
            return formats.decode(request.headers.get("content-type", ""), body)
    return request.query_params.multi_items()


async def read_patch(request: Request, limit: int) -> Patch:
    """The patch in the body, by its media type. Raises UnsupportedMediaType, TooLarge or BadRequest."""
    return patch_of(_media_type(request), await read_body(request, limit))


def patch_of(media_type: str, body: bytes) -> Patch:
    """The patch that a body of this media type holds."""
    reader = _PATCHES.get(media_type.split(";")[0].strip().lower())
    if reader is None:
        raise UnsupportedMediaType(
            f"Send patches as one of {', '.join(_PATCHES)}",
            headers={"Accept-Patch": ", ".join(_PATCHES)},
        )
    return reader(body)


async def read_form(request: Request) -> list[tuple[str, str]]:
    """The parameters of a search by POST, https://hl7.org/fhir/R4/http.html#search."""
    if _media_type(request) not in ("", FORM):
        raise UnsupportedMediaType(f"Send search parameters as {FORM}")
    body = await read_body(request, MAX_FORM_BYTES, may_be_empty=True)
    try:
        return parse_qsl(body.decode(), keep_blank_values=True)
    except UnicodeDecodeError:
        raise BadRequest("The form is not UTF-8", code="structure") from None


async def read_body(request: Request, limit: int, *, may_be_empty: bool = False) -> bytes:
    """The whole body, at most `limit` bytes; nothing beyond the limit is kept in memory."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"The body is over the limit of {limit} bytes")
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"The body is over the limit of {limit} bytes")
        chunks.append(chunk)
    body = b"".join(chunks)
    if not body and not may_be_empty:
        raise BadRequest("The body is empty", code="structure")
    return body


@lru_cache(maxsize=1024)
def http_date(at: datetime) -> str:
    return format_datetime(at, usegmt=True)


def version_headers(stored: Stored) -> dict[str, str]:
    return {"ETag": f'W/"{stored.version}"', "Last-Modified": http_date(stored.at)}


def respond(answer: Answer, base_url: str, prefer: Prefer | None, form: Form) -> Response:
    """The HTTP response; `prefer` says what the client wants back of a version it wrote."""
    headers = dict(answer.headers)
    stored = answer.stored
    if stored is not None:
        headers.update(version_headers(stored))
        if answer.location:
            headers["Location"] = f"{base_url}/{stored.reference}/_history/{stored.version}"
    body = answer.body
    returns = prefer.returns if prefer is not None and stored is not None else "representation"
    if returns == "minimal":
        body = None
    elif returns == "OperationOutcome":
        issues = answer.issues or (Issue("informational", "Done", severity="information"),)
        body = fhir_json.encode(operation_outcome(issues))
    if body is None or answer.status in (204, 304):
        return Response(status_code=answer.status, headers=headers)
    content_type = f"{form.media_type}; charset=utf-8"
    return Response(form.render(body), answer.status, headers, content_type)


def respond_error(error: FhirError, form: Form = PLAIN) -> Response:
    """The OperationOutcome of a failure, in the format that was asked for."""
    content_type = f"{form.media_type}; charset=utf-8"
    return Response(form.encode(error.outcome), error.status, error.headers, content_type)
