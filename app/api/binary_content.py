"""A Binary's content as it is: read by who asks for no format of FHIR, and written by its own Content-Type.

https://hl7.org/fhir/R4/binary.html#rest, https://www.rfc-editor.org/rfc/rfc9110#name-range-requests

What is answered is never shown by a browser as a page of this server: it is kept as a file, guessed to be nothing
else, and without scripts. docs/decisions/0035-binary-as-documents.md
"""

from __future__ import annotations

import re

from starlette.requests import Request

from app.api import exchange
from app.context import Context
from app.errors import (
    BadRequest,
    NotAcceptable,
    RangeNotSatisfiable,
    TooLarge,
    UnsupportedMediaType,
)
from app.fhir import binary, formats
from app.fhir.binary import Content
from app.fhir.json import Resource
from app.fhir.shape import CUTS, PLAIN, AnswerShape
from app.interactions.result import InteractionResult, RawAnswer
from app.records.versions import ResourceVersion
from app.runtime import pace
from app.runtime.codec_process import LARGE, CodecProcess

SECURITY_CONTEXT = "X-Security-Context"
_PAGES = "sandbox; default-src 'none'; frame-ancestors 'none'"
# What a form, or a page that need not ask first, can have a browser send.
_UNASKED = frozenset({"text/plain", "multipart/form-data", "application/x-www-form-urlencoded"})
_READS = frozenset({"read", "vread"})
_RANGE = re.compile(r"bytes=(?:(\d{1,15})-(\d{0,15})|-(\d{1,15}))", re.ASCII)
_REFERENCE = re.compile(r"(?:https?://[!-~]+/)?[A-Z][A-Za-z]+/[A-Za-z0-9\-.]{1,64}")


# Reading


def may_be_asked(request: Request) -> bool:
    """Whether this reads a Binary, which may be answered by its content; entries of Bundles hold resources."""
    return (
        request.path_params.get("type") == binary.TYPE
        and request.scope.get("interaction") in _READS
    )


def read_shape(request: Request) -> AnswerShape:
    """How the answer is to look, as far as that is known before there is one. Raises NotAcceptable or BadRequest."""
    try:
        return exchange.read_shape(request)
    except NotAcceptable:
        if not may_be_asked(request):
            raise
        return PLAIN


async def answer(request: Request, found: InteractionResult) -> InteractionResult:
    """What was read, as its content where that is asked for. Raises NotAcceptable or RangeNotSatisfiable."""
    stored = found.stored
    if stored is None or not may_be_asked(request) or not _is_asked(request, stored):
        return found
    if found.status == 304:
        return RawAnswer(304, stored, headers=_version_headers(stored))
    if len(stored.text) > LARGE:
        pace.begin()
    content = Content(stored.text)
    headers = {**_version_headers(stored), **_headers(stored, content)}
    part = _part(request, stored, content.size)
    start, stop = part or (0, content.size)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{content.size}"
    headers["Content-Length"] = str(stop - start)
    status = 200 if part is None else 206
    if request.method == "HEAD":
        return RawAnswer(status, stored, headers=headers)
    pieces = [piece async for piece in pace.paced(content.pieces(start, stop))]
    return RawAnswer(status, stored, headers=headers, content=b"".join(pieces))


def _is_asked(request: Request, stored: ResourceVersion) -> bool:
    """Whether the content is asked for. Raises NotAcceptable where neither that is nor a format of the resource."""
    query = request.query_params
    if not CUTS & query.keys() and binary.is_content_asked(
        request.headers.get("accept"), query.get("_format"), binary.type_of(stored.text)
    ):
        return True
    try:
        exchange.read_shape(request)
    except NotAcceptable:
        raise binary.not_acceptable() from None
    return False


def _version_headers(stored: ResourceVersion) -> dict[str, str]:
    """Those of every version, with a strong ETag: its bytes never change, so that parts of them fit together."""
    return {**exchange.version_headers(stored), "ETag": _tag(stored)}


def _tag(stored: ResourceVersion) -> str:
    return f'"{stored.version}"'


def _headers(stored: ResourceVersion, content: Content) -> dict[str, str]:
    headers = {
        "Content-Type": content.type,
        "Content-Disposition": f'attachment; filename="{binary.file_name(stored.id, content.type)}"',
        "Content-Security-Policy": _PAGES,
        "Accept-Ranges": "bytes",
    }
    context = binary.header_of(content.context)
    return headers if context is None else {**headers, SECURITY_CONTEXT: context}


def _part(request: Request, stored: ResourceVersion, size: int) -> tuple[int, int] | None:
    """The part that is asked for, from its first byte up to behind its last; None for all.

    Several ranges and other units are answered by all of it, as RFC 9110 allows, and so is a range of another version.
    """
    wanted = _RANGE.fullmatch(request.headers.get("range", ""))
    if wanted is None or request.method != "GET":
        return None
    if request.headers.get("if-range", _tag(stored)) != _tag(stored):
        return None
    first, last, suffix = wanted.groups()
    if suffix is not None:
        start, stop = max(size - int(suffix), 0), size
    else:
        start, stop = int(first), min(int(last) + 1, size) if last else size
        if last and int(last) < int(first):
            return None
    if start >= stop:
        raise RangeNotSatisfiable(
            f"The content has {size} bytes", headers={"Content-Range": f"bytes */{size}"}
        )
    return start, stop


# Writing


async def read_sent(request: Request, context: Context) -> Resource:
    """The Binary that a body is, or holds the content of. Raises UnsupportedMediaType, TooLarge, BadRequest."""
    declared = request.headers.get("content-type", "")
    type_ = _declared(request, context)
    codec = context.services.get(CodecProcess)
    settings = context.settings
    is_format = binary.essence(declared) in formats.SPELLINGS
    limit = settings.max_binary_resource_bytes if is_format else settings.max_binary_bytes
    body = await exchange.read_body(request, limit)
    if binary.may_be_resource(declared, body):
        resource = await codec.decode(declared, body)
        if resource.get("resourceType") == binary.TYPE:
            _check_context(request, resource)
            return resource
    if len(body) > settings.max_binary_bytes:
        raise TooLarge(f"The content is over the limit of {settings.max_binary_bytes} bytes")
    if len(body) > LARGE:
        pace.begin()
    pieces = [piece async for piece in pace.paced(binary.encoded(body))]
    return binary.resource_of(
        type_,
        b"".join(pieces).decode(),
        context=_context_of(request),
        id_=request.path_params.get("id"),
    )


def _declared(request: Request, context: Context) -> str:
    """The media type of the content. Raises UnsupportedMediaType.

    Without authorization nothing is taken that a page can have a browser send unasked, in no place
    (docs/decisions/0028-web-pages.md). A browser asks before every PUT.
    """
    type_ = binary.media_type(request.headers.get("content-type", ""))
    if type_ is None:
        raise UnsupportedMediaType("Say by Content-Type what is sent, as application/pdf")
    is_unasked = request.method == "POST" and binary.essence(type_) in _UNASKED
    if is_unasked and context.settings.auth != "smart":
        raise UnsupportedMediaType(
            "Without authorization content of this type is not taken by POST, which a web page could send: "
            f"PUT it at {binary.TYPE}/[id]"
        )
    return type_


def _context_of(request: Request) -> str | None:
    """The security context that the header names. Raises BadRequest where it is no reference."""
    given = request.headers.getlist(SECURITY_CONTEXT)
    if not given:
        return None
    named = ", ".join(given)
    if not _REFERENCE.fullmatch(named):
        raise BadRequest(
            f"{SECURITY_CONTEXT} must be a reference to a resource, as Patient/1",
            code="value",
            expression="Binary.securityContext",
        )
    return named


def _check_context(request: Request, resource: Resource) -> None:
    """Raises BadRequest where the header says something else than the resource."""
    named = _context_of(request)
    context = resource.get("securityContext")
    own = context.get("reference") if isinstance(context, dict) else None
    if named not in (None, own):
        raise BadRequest(
            f"{SECURITY_CONTEXT} is for content that is sent as it is; a Binary says it by securityContext",
            code="invalid",
            expression="Binary.securityContext",
        )
