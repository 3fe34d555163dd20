"""Every FHIR URL and verb on one screen: parse the request, call one function, render its answer. No logic here.

https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NoReturn
from urllib.parse import unquote

from pymongo.errors import ConnectionFailure
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api import (
    audited,
    binary_content,
    capabilities,
    exchange,
    export_status as exports,
    limits,
    understood,
)
from app.authentication.access_tokens import Authority, authenticate
from app.authentication.caller import EVERYBODY, NOBODY, Caller
from app.bulk.export_jobs import PLACE
from app.consent import redisclosure
from app.context import Context, Services
from app.errors import BadRequest, FhirError, MethodNotAllowed, NotFound, Unavailable
from app.fhir import binary, formats, json as fhir_json, shape as shapes
from app.fhir.shape import PLAIN, AnswerShape
from app.interactions import bundle, interactions, plan
from app.interactions.bundle_entries import BundleEntry
from app.interactions.preconditions import Prefer
from app.interactions.result import InteractionResult, RawAnswer
from app.operations import registry as operations
from app.operations.arguments import Given
from app.runtime.codec_process import AnyPatch, CodecProcess

log = logging.getLogger(__name__)

Handler = Callable[[Request, Context], Awaitable[InteractionResult]]
# What the audit calls an interaction, and who answers it. One without a name is not recorded: it tells of nobody.
Route = tuple[str | None, Handler]
DirectRoute = tuple[str, Callable[[Request, Context], Awaitable[Response]]]

PREFIX = "/fhir"
# What a client has to read before it can ask for a token.
_OPEN = frozenset({f"{PREFIX}/metadata"})
# It becomes part of every address in an answer.
_HOST = re.compile(r"([A-Za-z0-9._~\-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")


class FhirEndpoint:
    """One URL: an interaction for each verb it knows; HEAD answers like GET without a body."""

    def __init__(self, **routes: Route) -> None:
        self.routes = {verb.upper(): route for verb, route in routes.items()}
        if "GET" in self.routes:
            self.routes["HEAD"] = self.routes["GET"]
        self.counted_as = _counted_as(self.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self._respond(request)
        if request.method == "HEAD":
            response.body = b""
        await response(scope, receive, send)

    async def answer(
        self, request: Request, context: Context, shape: AnswerShape
    ) -> InteractionResult:
        """Run the handler of the request's verb, whose URL asks for a shape. Raises FhirError."""
        code, handler = self.routes.get(request.method) or _refusing(self.routes)
        if shape.counts and code not in _COUNTED:
            handler = _count
        return await audited.run(code, handler, request, context)

    async def _respond(self, request: Request) -> Response:
        shape = PLAIN
        context: Context | None = None
        try:
            shape = PLAIN if _form_asked(request) else binary_content.read_shape(request)
            prefer = exchange.prefer_of(request)
            context = await _context(request, prefer)
            with redisclosure.collecting() as consents:
                answer = await self.answer(request, context, shape)
            written = prefer if request.method in ("POST", "PUT", "PATCH") else None
            codec = context.services.get(CodecProcess)
            if isinstance(answer, RawAnswer):
                response = exchange.respond_raw(answer)
            else:
                response = await exchange.respond(answer, context.base_url, written, shape, codec)
            if applied := exchange.applied(prefer, request, answer):
                response.headers["Preference-Applied"] = applied
            if consents and response.body:
                response.headers.update(redisclosure.headers(consents.values()))
            return response
        except FhirError as error:
            if context is None:
                error = await audited.refused(request, error)
            return exchange.respond_error(error, request.scope.get("shape", shape))
        except ConnectionFailure:
            log.warning("database unreachable", extra={"action": "request"})
            unavailable = Unavailable("The database does not answer; try again")
            return exchange.respond_error(unavailable, shape)


class DirectEndpoint:
    """One URL whose handlers give the HTTP response itself: files, and what is no FHIR resource. No Bundle asks it."""

    def __init__(self, **routes: DirectRoute) -> None:
        self.routes = {verb.upper(): route for verb, route in routes.items()}
        self.routes["HEAD"] = self.routes["GET"]
        self.counted_as = _counted_as(self.routes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        context: Context | None = None
        try:
            context = await _context(request, Prefer())
            code, handler = self.routes.get(request.method) or _refusing(self.routes)
            response = await audited.run(code, handler, request, context)
        except FhirError as error:
            if context is None:
                error = await audited.refused(request, error)
            response = exchange.respond_error(error)
        except ConnectionFailure:
            log.warning("database unreachable", extra={"action": "request"})
            response = exchange.respond_error(
                Unavailable("The database does not answer; try again")
            )
        if request.method == "HEAD":
            response.body = b""
        await response(scope, receive, send)

    async def answer(
        self, request: Request, context: Context, shape: AnswerShape
    ) -> InteractionResult:
        raise BadRequest("Exports are not fetched inside of a Bundle", code="not-supported")


def _counted_as(routes: Mapping[str, Route | DirectRoute]) -> dict[str, str]:
    """What the metrics call the interaction of each verb: by the code of the audit."""
    return {verb: code or "capabilities" for verb, (code, _) in routes.items()}


def _refusing(
    allowed: Iterable[str],
) -> tuple[str, Callable[[Request, Context], Awaitable[NoReturn]]]:
    """The route of every verb that has none."""
    verbs = ", ".join(sorted(allowed))

    async def not_allowed(request: Request, context: Context) -> NoReturn:
        raise MethodNotAllowed(f"{request.method} is not supported here", headers={"Allow": verbs})

    return "request", not_allowed


async def _count(request: Request, context: Context) -> NoReturn:
    """The handler of what was to be counted and has no number."""
    raise shapes.not_counted()


async def _context(request: Request, prefer: Prefer) -> Context:
    """The surroundings of a request. Raises Unauthorized for who does not say who it is."""
    services: Services = request.app.state.services
    base_url = services.settings.base_url.rstrip("/")
    if not base_url:
        host = request.headers.get("host") or request.url.netloc
        if not _HOST.fullmatch(host):
            raise BadRequest("The Host header is malformed")
        base_url = f"{request.scope['scheme']}://{host}{PREFIX}"
    handling = prefer.handling or services.settings.search_handling
    caller = await _caller(request, services)
    return Context(services, caller, base_url, handling, respond_async=prefer.respond_async)


async def _caller(request: Request, services: Services) -> Caller:
    if services.settings.auth != "smart":
        return EVERYBODY
    if request.scope["path"].rstrip("/") in _OPEN:
        return NOBODY
    caller = await authenticate(services.find(Authority), request.headers.get("authorization"))
    request.scope["caller"] = caller
    limits.identify(request.scope, caller.client_id)
    return caller


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
        form=_form_asked(request),
    )
    return await operations.invoke(context, path["operation"], place, given)


def _form_asked(request: Request) -> str | None:
    """The media type that is asked for, where an operation is called that answers in it."""
    path = request.path_params
    if "operation" not in path:
        return None
    forms = operations.forms_of(path["operation"], path.get("type"), path.get("id"))
    if not forms:
        return None
    return formats.form_asked(
        request.headers.get("accept"), request.query_params.get("_format"), forms
    )


# What counts what it finds.
_COUNTED = frozenset(
    {
        *("search-type", "search-system"),
        *("history-instance", "history-type", "history-system"),
    }
)
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
