"""One HTTP exchange: what a request asks of the server, and how an answer is put on the wire.

https://hl7.org/fhir/R4/http.html#general
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from email.utils import format_datetime
from functools import lru_cache
from urllib.parse import parse_qsl

from starlette.requests import Request
from starlette.responses import Response

from app.api import limits
from app.errors import (
    BadRequest,
    FhirError,
    TooLarge,
    UnsupportedMediaType,
    operation_outcome,
)
from app.fhir import formats, json as fhir_json, shape as shapes
from app.fhir.json import Resource
from app.fhir.shape import PLAIN, AnswerShape
from app.interactions.preconditions import Prefer, read_prefer
from app.interactions.result import InteractionResult, RawAnswer
from app.records.versions import ResourceVersion
from app.runtime.codec_process import AnyPatch, CodecProcess

FORM = "application/x-www-form-urlencoded"
MAX_FORM_BYTES = 1024 * 1024


def _media_type(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def read_shape(request: Request, asked: Sequence[tuple[str, str]] | None = None) -> AnswerShape:
    """The shape that Accept and what is `asked` ask for, else the URL. Raises NotAcceptable or BadRequest."""
    found = PLAIN
    if asked is None and request.scope["query_string"]:
        asked = request.query_params.multi_items()
    if asked:
        found = shapes.read(asked)
    accept = request.headers.get("accept")
    if found.media_type is not None or accept in (None, "*/*", formats.FHIR_JSON):
        return found
    return found.accepting(formats.accepted(accept))


def prefer_of(request: Request) -> Prefer:
    """What the client prefers, in one Prefer header or several."""
    return read_prefer(", ".join(request.headers.getlist("prefer")))


async def read_resource(request: Request, limit: int, codec: CodecProcess) -> Resource:
    """The decoded body. Raises UnsupportedMediaType, TooLarge, BadRequest or Unprocessable."""
    body = await read_body(request, limit)
    return await codec.decode(request.headers.get("content-type", ""), body)


async def read_json(request: Request, limit: int) -> Resource:
    """The decoded body of a request that takes JSON alone. Raises UnsupportedMediaType, TooLarge or BadRequest."""
    if formats.SPELLINGS.get(_media_type(request)) != formats.FHIR_JSON:
        raise UnsupportedMediaType("Send the body as application/json")
    return fhir_json.decode(await read_body(request, limit))


def check_declared(request: Request) -> None:
    """Raises UnsupportedMediaType where a POST or PUT that may be empty declares no format of a resource.

    A page from elsewhere can have a browser send such a request, but not with this header.
    """
    if request.method in ("POST", "PUT"):
        formats.check(request.headers.get("content-type", ""))


async def read_parameters(request: Request, limit: int, codec: CodecProcess) -> Resource | None:
    """The resource that is posted to an operation, if there is one."""
    check_declared(request)
    if request.method != "POST":
        return None
    body = await read_body(request, limit, may_be_empty=True)
    return await codec.decode(request.headers.get("content-type", ""), body) if body else None


async def read_patch(request: Request, limit: int, codec: CodecProcess) -> AnyPatch:
    """The patch in the body, by its media type. Raises UnsupportedMediaType, TooLarge, BadRequest or Unprocessable."""
    return await codec.read_patch(_media_type(request), await read_body(request, limit))


async def read_form(request: Request) -> list[tuple[str, str]]:
    """The parameters of a search by POST, https://hl7.org/fhir/R4/http.html#search."""
    body = await read_body(request, MAX_FORM_BYTES, may_be_empty=True)
    if body and _media_type(request) != FORM:
        raise UnsupportedMediaType(f"Send search parameters as {FORM}")
    try:
        return parse_qsl(body.decode(), keep_blank_values=True)
    except UnicodeDecodeError:
        raise BadRequest("The form is not UTF-8", code="structure") from None


async def read_body(request: Request, limit: int, *, may_be_empty: bool = False) -> bytes:
    """The whole body, at most `limit` bytes; nothing beyond the limit is kept in memory."""
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit:
        raise TooLarge(f"The body is over the limit of {limit} bytes")
    if declared.isdigit():
        limits.hold(request.scope, int(declared))
    chunks, size = [], 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit:
            raise TooLarge(f"The body is over the limit of {limit} bytes")
        limits.hold(request.scope, size)
        chunks.append(chunk)
    body = b"".join(chunks)
    if not body and not may_be_empty:
        raise BadRequest("The body is empty", code="structure")
    return body


@lru_cache(maxsize=1024)
def http_date(at: datetime) -> str:
    return format_datetime(at, usegmt=True)


def version_headers(stored: ResourceVersion) -> dict[str, str]:
    return {"ETag": f'W/"{stored.version}"', "Last-Modified": http_date(stored.at)}


async def respond(
    answer: InteractionResult,
    base_url: str,
    prefer: Prefer | None,
    shape: AnswerShape,
    codec: CodecProcess,
) -> Response:
    """The HTTP response; `prefer` says what the client wants back of a version it wrote, whose address it is told."""
    headers = dict(answer.headers)
    stored = answer.stored
    if stored is not None:
        headers.update(version_headers(stored))
        if prefer is not None:
            headers["Content-Location"] = stored.address(base_url)
            if answer.location:
                headers["Location"] = stored.address(base_url)
    body = answer.body
    returns = prefer.returns if prefer is not None and stored is not None else "representation"
    if returns == "minimal":
        body = None
    elif returns == "OperationOutcome":
        body = fhir_json.encode(operation_outcome(answer.outcome))
    elif answer.status == 202 and answer.issues:
        body = fhir_json.encode(operation_outcome(answer.issues))
    if body is None or answer.status in (204, 304):
        return Response(status_code=answer.status, headers=headers)
    if answer.media_type is not None:
        return Response(body, answer.status, headers, answer.media_type)
    # What the interaction was asked for itself says more than the URL, but the format where that was left to Accept.
    if answer.shape is not None:
        shape = answer.shape.accepting(shape.media_type)
    content = await codec.render(body, shape, is_result=answer.text is not None)
    return Response(content, answer.status, headers, shape.content_type)


def respond_raw(answer: RawAnswer) -> Response:
    """The HTTP response of content that is answered as it is."""
    return Response(answer.content, answer.status, answer.headers)


def applied(prefer: Prefer, request: Request, answer: InteractionResult) -> str:
    """The preferences that the answer follows, https://www.rfc-editor.org/rfc/rfc7240#section-3; empty for none.

    What is not understood of a Prefer header is ignored, so this is how the client learns of it.
    """
    interaction = request.scope.get("interaction")
    wrote = answer.stored is not None and request.method not in ("GET", "HEAD")
    kept = "return=" if wrote or interaction == "transaction" else "handling="
    named = [each for each in prefer.understood if each.startswith(kept)]
    if prefer.respond_async and interaction == "operation" and answer.status == 202:
        named.append("respond-async")
    return ", ".join(named)


def respond_error(error: FhirError, shape: AnswerShape = PLAIN) -> Response:
    """The OperationOutcome of a failure, or what it is answered in, in the format that was asked for."""
    content = shape.encode(error.answer or error.outcome)
    return Response(content, error.status, error.headers, shape.content_type)
