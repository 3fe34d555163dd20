"""One entry of a batch or transaction: the parser of its request, and the writer of its response.

https://hl7.org/fhir/R4/http.html#transaction
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlencode

from app.context import Context
from app.errors import BadRequest, FhirError, Issue, TooLarge, Unprocessable, operation_outcome
from app.fhir import full_urls, json as fhir_json, shape as shapes
from app.fhir.definitions import structure
from app.fhir.formats import FHIR_JSON
from app.fhir.instants import instant, instant_in
from app.fhir.json import Resource
from app.fhir.pieces import exact
from app.fhir.shape import PLAIN, AnswerShape
from app.interactions.plan import Target
from app.interactions.preconditions import Preconditions, Prefer, read_preconditions
from app.interactions.result import InteractionResult
from app.runtime.codec_process import AnyPatch, CodecProcess
from app.search.page_bytes import PAGE_BYTES, Room

# Clients learn from `location` what they have written, also where nothing is new.
_ANSWERED_WITH_A_VERSION = frozenset({"POST", "PUT", "PATCH"})
# Said of a create with a query, wherever it comes from.
SEARCHED_CREATE = "A create takes no query; to create only what is not there yet, send the criteria as If-None-Exist"
# The conditions of an entry's request as headers, and the methods that honour them.
_HEADERS = {
    "ifMatch": "if-match",
    "ifNoneMatch": "if-none-match",
    "ifModifiedSince": "if-modified-since",
    "ifNoneExist": "if-none-exist",
}
_HONOURING = {
    "ifMatch": ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
    "ifNoneMatch": ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
    "ifModifiedSince": ("GET", "HEAD"),
    "ifNoneExist": ("POST",),
}
# They change the meaning of what they stand in, and none is understood.
_MODIFIERS = frozenset({"modifierExtension", "implicitRules"})
# The order in which a transaction carries out its entries.
ORDER = {"DELETE": 0, "POST": 1, "PUT": 2, "PATCH": 2, "GET": 3, "HEAD": 3}


@dataclass(slots=True)
class BundleEntry:
    """One entry of a batch or transaction, with its request parsed.

    `repeats` is the entry of a transaction that asks for the same conditional create. `shape` is how its URL asks the
    resource in the response to be cut down. `query` says so, too, where what is asked has links that must say it. The
    format and the layout are those of the whole answer: an entry's are left out.
    """

    index: int
    method: str
    path: str
    query: str
    full_url: str | None
    resource: Resource | None
    preconditions: Preconditions
    target: Target | None = field(default=None)
    repeats: BundleEntry | None = field(default=None)
    shape: AnswerShape = PLAIN

    @property
    def where(self) -> str:
        return f"Bundle.entry[{self.index}]"

    @property
    def segments(self) -> list[str]:
        return [segment for segment in self.path.split("/") if segment]


# Reading the request's entries


def parse(context: Context, index: int, raw: Any) -> BundleEntry:
    request = raw.get("request") if isinstance(raw, dict) else None
    where = f"Bundle.entry[{index}].request"
    if not isinstance(request, dict):
        raise BadRequest("The entry needs a request", code="required", expression=where)
    method, url = request.get("method"), request.get("url")
    if not isinstance(method, str) or method not in ORDER:
        raise BadRequest(
            "The method must be GET, HEAD, POST, PUT, PATCH or DELETE", expression=f"{where}.method"
        )
    if not isinstance(url, str):
        raise BadRequest("The request needs a url", code="required", expression=f"{where}.url")
    url = url.removeprefix(context.base_url).lstrip("/")
    path, _, query = url.partition("?")
    query, shape = _shaped(context, method, path, query)
    full_url = raw.get("fullUrl")
    headers = {header: request[name] for name, header in _HEADERS.items() if name in request}
    if not all(isinstance(text, str) for text in (full_url or "", *headers.values())):
        raise BadRequest("The entry has what must be a string", code="structure", expression=where)
    check_known(raw, ("entry",), f"Bundle.entry[{index}]")
    if full_url:
        gives_id = method == "PUT" and not query
        named = None if method == "PATCH" else raw.get("resource")
        if why := full_urls.fault(full_url, named, may_have_moved=gives_id):
            raise BadRequest(why, code="value", expression=f"Bundle.entry[{index}].fullUrl")
    check_known(request, ("entry", "request"), where)
    for name in _HEADERS:
        if name in request and method not in _HONOURING[name]:
            raise BadRequest(
                f"{method} does not know {name}", code="not-supported", expression=f"{where}.{name}"
            )
    return BundleEntry(
        index,
        method,
        path,
        query,
        full_url,
        raw.get("resource"),
        _preconditions(request, headers, where),
        shape=shape,
    )


def _shaped(context: Context, method: str, path: str, query: str) -> tuple[str, AnswerShape]:
    """The query of an entry as it is carried out, and how it asks its answer to be cut down: else as the Bundle is."""
    shape = shapes.read(parse_qsl(query, keep_blank_values=True)) if query else PLAIN
    if method not in ("GET", "HEAD"):
        shapes.refuse_count(shape)
        if "$" not in path:
            return shapes.without(query), shape
    query = shapes.without(query, shapes.LAYOUT)
    # `_elements` of an export are what it writes into files.
    if context.shaping and not shape.cuts and not path.endswith("$export"):
        query = "&".join(part for part in (query, urlencode(context.shaping)) if part)
    return query, shape


def _preconditions(request: Resource, headers: dict[str, str], where: str) -> Preconditions:
    """The conditions of an entry's request, of which ifModifiedSince is an instant and no HTTP date."""
    since = request.get("ifModifiedSince")
    if since is None:
        return read_preconditions(headers)
    del headers["if-modified-since"]
    moment = instant_in(since, f"{where}.ifModifiedSince")
    return replace(read_preconditions(headers), if_modified_since=moment)


def check_known(given: Resource, path: tuple[str, ...], where: str) -> None:
    """Raises BadRequest for what R4 has no name for in this element of a Bundle, and for what changes its meaning."""
    known = _known(path)
    for name in given:
        if name.removeprefix("_") not in known:
            raise BadRequest(
                "This element is not understood", code="structure", expression=f"{where}.{name}"
            )


def check_full_urls(raw: Sequence[Any]) -> None:
    """Raises Unprocessable where two entries have one fullUrl (bdl-7), or one names a version (bdl-8).

    Nobody can tell then which of the two is meant. https://hl7.org/fhir/R4/bundle.html#bundle-unique
    """
    known: set[tuple[str, str]] = set()
    for index, each in enumerate(raw):
        full_url = each.get("fullUrl") if isinstance(each, dict) else None
        if not isinstance(full_url, str):
            continue
        where = f"Bundle.entry[{index}].fullUrl"
        if "/_history/" in full_url:
            raise Unprocessable(
                "bdl-8: a fullUrl names no version", code="invariant", expression=where
            )
        resource = each.get("resource")
        meta = resource.get("meta") if isinstance(resource, dict) else None
        version = meta.get("versionId") if isinstance(meta, dict) else None
        name = (full_url, version if isinstance(version, str) else "")
        if name in known:
            raise Unprocessable(
                "bdl-7: another entry has the same fullUrl", code="invariant", expression=where
            )
        known.add(name)


@cache
def _known(path: tuple[str, ...]) -> frozenset[str]:
    elements = structure("Bundle").elements
    for name in path:
        elements = elements[name].elements
    return frozenset({"resourceType", *elements}) - _MODIFIERS


def address_of(entry: BundleEntry) -> tuple[str, str | None]:
    """Type and id that a write names. Raises BadRequest where the url is no place to write to."""
    match entry.segments:
        case [_] if entry.method == "POST" and entry.query:
            raise invalid(entry, "request.url", SEARCHED_CREATE)
        case [resource_type] if entry.method == "POST" or entry.query:
            return resource_type, None
        case [resource_type, resource_id] if entry.method != "POST" and not entry.query:
            return resource_type, resource_id
    raise invalid(entry, "request.url", f"{entry.method} is not possible at this url")


def body_of(entry: BundleEntry) -> Resource:
    if not isinstance(entry.resource, dict):
        raise invalid(entry, "resource", "The entry needs a resource")
    return entry.resource


async def patch_in(context: Context, entry: BundleEntry) -> AnyPatch:
    """A PATCH in a Bundle: a Binary that holds a JSON or XML Patch, or the Parameters of a FHIRPath Patch."""
    body = body_of(entry)
    codec = context.services.get(CodecProcess)
    if body.get("resourceType") == "Parameters":
        return await codec.read_patch(FHIR_JSON, fhir_json.encode(exact(body)))
    if body.get("resourceType") != "Binary" or not isinstance(body.get("data"), str):
        raise invalid(entry, "resource", "A PATCH needs a Binary or Parameters")
    try:
        data = base64.b64decode(body["data"], validate=True)
    except ValueError:
        raise invalid(entry, "resource.data", "Not base64") from None
    return await codec.read_patch(str(body.get("contentType", "")), data)


def invalid(entry: BundleEntry, element: str, diagnostics: str) -> BadRequest:
    return BadRequest(diagnostics, expression=f"{entry.where}.{element}")


class _Placed(Protocol):
    """An entry of any Bundle."""

    @property
    def where(self) -> str:
        """Its place in the Bundle, as FHIRPath."""


@contextmanager
def located(entry: _Placed) -> Iterator[None]:
    """Move the issues of a FhirError raised inside to this entry."""
    try:
        yield
    except FhirError as error:
        error.issues = tuple(_moved(issue, entry) for issue in error.issues)
        raise


def _moved(issue: Issue, entry: _Placed) -> Issue:
    if any(path.startswith("Bundle.entry") for path in issue.expression):
        return issue
    inside = tuple(_inside(path, entry) for path in issue.expression)
    return replace(issue, expression=inside or (entry.where,))


def _inside(path: str, entry: _Placed) -> str:
    """Where in the Bundle a place in the entry's resource is, or in the query of its request."""
    if path.startswith("http."):
        return f"{entry.where}.request.url"
    is_whole = path[:1].isupper() and "." not in path
    element = "" if is_whole else f".{path.partition('.')[2] or path}"
    return f"{entry.where}.resource{element}"


# Writing the response's entries


def too_much() -> TooLarge:
    """The refusal of a read for which the answer has no room any more."""
    return TooLarge(
        f"The answer to this Bundle is at its limit of {PAGE_BYTES} bytes; ask for this by itself",
        code="too-costly",
    )


async def response(
    context: Context, entry: BundleEntry, answer: InteractionResult, prefer: Prefer, room: Room
) -> str:
    """The entry of an answer. Raises TooLarge where a read does not fit; what was written goes without its resource."""
    returns = "representation" if entry.method in ("GET", "HEAD") else prefer.returns
    response: dict[str, Any] = {"status": str(answer.status)}
    stored = answer.stored
    if stored is not None:
        if entry.method in _ANSWERED_WITH_A_VERSION:
            response["location"] = stored.address(context.base_url)
        response["etag"] = f'W/"{stored.version}"'
        response["lastModified"] = instant(stored.at)
    if returns == "OperationOutcome":
        response["outcome"] = operation_outcome(answer.outcome)
    elif answer.issues:
        response["outcome"] = operation_outcome(answer.issues)
    head: dict[str, Any] = {}
    if stored is not None:
        head["fullUrl"] = f"{context.base_url}/{stored.reference}"
    head["response"] = response
    text = fhir_json.encode(head).decode()
    body = answer.body
    if body is None or returns != "representation" or answer.status == 304:
        return text
    if entry.method == "HEAD":
        return text
    shape = (answer.shape or entry.shape).within
    if shape.cuts:
        codec = context.services.get(CodecProcess)
        body = await codec.render(body, shape, is_result=answer.text is not None)
    if not room.take(len(body)):
        if entry.method in ("GET", "HEAD"):
            raise too_much()
        return text
    resource = body if isinstance(body, str) else body.decode()
    return f'{text[:-1]},"resource":{resource}}}'


def failure(error: FhirError) -> str:
    response = {"status": str(error.status), "outcome": error.outcome}
    return fhir_json.encode({"response": response}).decode()
