"""Every FHIR URL and verb on one screen: parse the request, call one function. No logic here.

https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from urllib.parse import unquote

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import (
    binary_content,
    capabilities,
    exchange,
    export_status as exports,
    understood,
)
from app.api.fhir_endpoint import PREFIX, DirectEndpoint, FhirEndpoint, form_asked
from app.bulk.export_jobs import PLACE
from app.consent import redisclosure
from app.context import Context
from app.errors import BadRequest, NotFound
from app.fhir import binary, formats, json as fhir_json, shape as shapes
from app.interactions import bundle, interactions, plan
from app.interactions.bundle_entries import BundleEntry
from app.interactions.result import InteractionResult
from app.operations import registry as operations
from app.operations.arguments import Given
from app.runtime.codec_process import AnyPatch, CodecProcess


async def _body(request: Request, context: Context) -> fhir_json.Resource:
    if request.path_params["type"] == binary.TYPE:
        return await binary_content.read_sent(request, context)
    codec = context.services.get(CodecProcess)
    return await exchange.read_resource(request, context.settings.max_resource_bytes, codec)


async def metadata(request: Request, context: Context) -> InteractionResult:
    return await capabilities.metadata(context, request.query_params.get("mode"))


async def system_bundle(request: Request, context: Context) -> InteractionResult:
    codec = context.services.get(CodecProcess)
    resource = await exchange.read_resource(request, context.settings.max_bundle_bytes, codec)
    prefer = exchange.prefer_of(request)
    asked = [pair for pair in request.query_params.multi_items() if pair[0] in shapes.CUTS]
    return await bundle.process(replace(context, shaping=asked), resource, prefer, dispatch)


async def read(request: Request, context: Context) -> InteractionResult:
    path = request.path_params
    preconditions = understood.preconditions_of(request)
    found = await interactions.read(context, path["type"], path["id"], preconditions)
    return await binary_content.answer(request, found)


async def vread(request: Request, context: Context) -> InteractionResult:
    path = request.path_params
    preconditions = understood.preconditions_of(request)
    found = await interactions.vread(
        context, path["type"], path["id"], path["version"], preconditions
    )
    return await binary_content.answer(request, found)


async def create(request: Request, context: Context) -> InteractionResult:
    preconditions = understood.preconditions_of(request)
    resource_type = request.path_params["type"]
    plan.check_type(resource_type)
    return await interactions.create(
        context, resource_type, await _body(request, context), preconditions
    )


async def update(request: Request, context: Context) -> InteractionResult:
    path = request.path_params
    preconditions = understood.preconditions_of(request)
    plan.check_type(path["type"])
    return await interactions.update(
        context, path["type"], path["id"], await _body(request, context), preconditions
    )


async def conditional_update(request: Request, context: Context) -> InteractionResult:
    resource_type = request.path_params["type"]
    preconditions = understood.preconditions_of(request)
    plan.check_type(resource_type)
    resource = await _body(request, context)
    return await interactions.conditional_update(
        context, resource_type, understood.criteria_of(request), resource, preconditions
    )


async def _patch(request: Request, context: Context) -> AnyPatch:
    codec = context.services.get(CodecProcess)
    return await exchange.read_patch(request, context.settings.max_resource_bytes, codec)


async def patch(request: Request, context: Context) -> InteractionResult:
    path = request.path_params
    preconditions = understood.preconditions_of(request)
    apply = await _patch(request, context)
    return await interactions.patch(context, path["type"], path["id"], apply, preconditions)


async def conditional_patch(request: Request, context: Context) -> InteractionResult:
    resource_type = request.path_params["type"]
    preconditions = understood.preconditions_of(request)
    apply = await _patch(request, context)
    return await interactions.conditional_patch(
        context, resource_type, understood.criteria_of(request), apply, preconditions
    )


async def delete(request: Request, context: Context) -> InteractionResult:
    path = request.path_params
    preconditions = understood.preconditions_of(request)
    return await interactions.delete(context, path["type"], path["id"], preconditions)


async def conditional_delete(request: Request, context: Context) -> InteractionResult:
    preconditions = understood.preconditions_of(request)
    return await interactions.conditional_delete(
        context, request.path_params["type"], understood.criteria_of(request), preconditions
    )


async def history(request: Request, context: Context) -> InteractionResult:
    path = request.path_params
    parameters = request.query_params.multi_items()
    return await interactions.history(context, parameters, path.get("type"), path.get("id"))


async def search_type(request: Request, context: Context) -> InteractionResult:
    parameters = request.query_params.multi_items()
    return await interactions.search_type(context, request.path_params["type"], parameters)


async def search_type_by_post(request: Request, context: Context) -> InteractionResult:
    parameters = await _search_parameters(request)
    return await interactions.search_type(context, request.path_params["type"], parameters)


async def search_system(request: Request, context: Context) -> InteractionResult:
    return await interactions.search_system(context, await _search_parameters(request))


async def search_compartment(request: Request, context: Context) -> InteractionResult:
    path = request.path_params
    parameters = await _search_parameters(request)
    return await interactions.search_compartment(
        context, (path["type"], path["id"]), path["target"], parameters
    )


async def _search_parameters(request: Request) -> list[tuple[str, str]]:
    asked = request.query_params.multi_items()
    if request.method == "POST":
        asked += await exchange.read_form(request)
        request.scope["shape"] = exchange.read_shape(request, asked)
    return asked


async def operation(request: Request, context: Context) -> InteractionResult:
    path = request.path_params
    place = (path.get("type"), path.get("id"))
    codec = context.services.get(CodecProcess)
    body = await exchange.read_parameters(request, context.settings.max_resource_bytes, codec)
    given = Given(
        body,
        request.query_params.multi_items(),
        posted=request.method == "POST",
        form=form_asked(request),
    )
    return await operations.invoke(context, path["operation"], place, given)


_OPERATION = ("operation", operation)
_SEARCH_SYSTEM = ("search-system", search_system)
_SEARCH_COMPARTMENT = ("search-type", search_compartment)

ENDPOINTS: list[tuple[str, FhirEndpoint | DirectEndpoint]] = [
    ("", FhirEndpoint(get=_SEARCH_SYSTEM, post=("transaction", system_bundle))),
    ("/_search", FhirEndpoint(post=_SEARCH_SYSTEM)),
    ("/metadata", FhirEndpoint(get=(None, metadata))),
    ("/${operation}", FhirEndpoint(get=_OPERATION, post=_OPERATION)),
    (
        f"/{PLACE}/{{export}}",
        DirectEndpoint(
            get=("export-status", exports.status), delete=("export-cancel", exports.cancel)
        ),
    ),
    (f"/{PLACE}/{{export}}/{{file}}", DirectEndpoint(get=("export", exports.file))),
    ("/{type}/${operation}", FhirEndpoint(get=_OPERATION, post=_OPERATION)),
    ("/{type}/{id}/${operation}", FhirEndpoint(get=_OPERATION, post=_OPERATION)),
    ("/_history", FhirEndpoint(get=("history-system", history))),
    (
        "/{type}",
        FhirEndpoint(
            get=("search-type", search_type),
            post=("create", create),
            put=("update", conditional_update),
            patch=("patch", conditional_patch),
            delete=("delete", conditional_delete),
        ),
    ),
    ("/{type}/_search", FhirEndpoint(post=("search-type", search_type_by_post))),
    ("/{type}/_history", FhirEndpoint(get=("history-type", history))),
    (
        "/{type}/{id}",
        FhirEndpoint(
            get=("read", read),
            put=("update", update),
            patch=("patch", patch),
            delete=("delete", delete),
        ),
    ),
    ("/{type}/{id}/_history", FhirEndpoint(get=("history-instance", history))),
    ("/{type}/{id}/_history/{version}", FhirEndpoint(get=("vread", vread))),
    ("/{type}/{id}/{target}", FhirEndpoint(get=_SEARCH_COMPARTMENT)),
    ("/{type}/{id}/{target}/_search", FhirEndpoint(post=_SEARCH_COMPARTMENT)),
]


class Table:
    """Endpoints by the shape of their path: one look-up, however many there are.

    A shape has an item for each segment: a word that some path spells out, `$` for an operation, `*` for the rest.
    """

    def __init__(self, endpoints: Sequence[tuple[str, FhirEndpoint | DirectEndpoint]]) -> None:
        templates = [(path.split("/")[1:], endpoint) for path, endpoint in endpoints]
        self._words = {s for segments, _ in templates for s in segments if s[:1] not in ("{", "$")}
        self._endpoints = {
            tuple(self._shape(segment) for segment in segments): (
                endpoint,
                [
                    segment.strip("${}") if segment[:1] in ("{", "$") else None
                    for segment in segments
                ],
            )
            for segments, endpoint in templates
        }

    def find(self, path: str) -> tuple[FhirEndpoint | DirectEndpoint, dict[str, str]] | None:
        """The endpoint of a path below the base, with or without a trailing slash, and its path parameters."""
        segments = path.removesuffix("/").split("/")[1:]
        found = self._endpoints.get(tuple([self._shape(segment) for segment in segments]))
        if found is None or "" in segments:
            return None
        endpoint, names = found
        pairs = zip(names, segments, strict=True)
        return endpoint, {name: segment.removeprefix("$") for name, segment in pairs if name}

    def _shape(self, segment: str) -> str:
        if segment in self._words:
            return segment
        return "$" if segment[:1] == "$" else "*"


_TABLE = Table(ENDPOINTS)


class FhirRouter:
    """ASGI middleware that answers everything below the FHIR base and passes the rest on.

    Ahead of FastAPI's own routing, which tries one pattern after another: docs/decisions/0005-fhir-routing.md.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        below = path.removeprefix(PREFIX)
        if scope["type"] != "http" or below == path or below[:1] not in ("", "/"):
            await self._app(scope, receive, send)
            return
        found = _TABLE.find(below)
        if found is None:
            nowhere = exchange.respond_error(NotFound("No such address on this server"))
            await nowhere(scope, receive, send)
            return
        endpoint, scope["path_params"] = found
        scope["interaction"] = endpoint.counted_as.get(scope["method"], "request")
        await endpoint(scope, receive, send)


async def dispatch(context: Context, entry: BundleEntry) -> InteractionResult:
    """Answer one request out of a Bundle by the same handlers as if it had come alone."""
    body = entry.resource if entry.method == "POST" else None
    content = fhir_json.encode(body) if body is not None else b""
    below = f"/{unquote(entry.path)}"
    found = _TABLE.find(below)
    if found is None:
        raise NotFound("No such address on this server")
    endpoint, parameters = found
    scope = {
        "type": "http",
        "method": entry.method,
        "path": PREFIX + below,
        "path_params": parameters,
        "query_string": entry.query.encode(),
        "headers": [(b"content-type", formats.FHIR_JSON.encode())],
        "preconditions": entry.preconditions,
    }

    async def receive() -> Message:
        return {"type": "http.request", "body": content, "more_body": False}

    request = Request(scope, receive)
    shape = exchange.read_shape(request)
    with redisclosure.collecting():  # what the entry needed is on record with the entry
        answer = await endpoint.answer(request, context, shape)
    if answer.media_type is not None:
        raise BadRequest("Entries of a Bundle are answered by resources", code="not-supported")
    return answer
