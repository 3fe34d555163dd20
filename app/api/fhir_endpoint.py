"""One URL: what each of its verbs does, for whom, in which surroundings, and how that is rendered or refused.

https://hl7.org/fhir/R4/http.html
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import NoReturn

from pymongo.errors import ConnectionFailure
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.api import audited, binary_content, exchange, limits
from app.authentication.access_tokens import Authority, authenticate
from app.authentication.caller import EVERYBODY, NOBODY, Caller
from app.consent import redisclosure
from app.context import Context, Services
from app.errors import BadRequest, FhirError, MethodNotAllowed, Unavailable
from app.fhir import formats, shape as shapes
from app.fhir.shape import PLAIN, AnswerShape
from app.interactions.preconditions import Prefer
from app.interactions.result import InteractionResult, RawAnswer
from app.operations import registry as operations
from app.runtime.codec_process import CodecProcess

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
# What counts what it finds.
_COUNTED = frozenset(
    {
        *("search-type", "search-system"),
        *("history-instance", "history-type", "history-system"),
    }
)


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
            shape = PLAIN if form_asked(request) else binary_content.read_shape(request)
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


def form_asked(request: Request) -> str | None:
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
