"""The doors of SMART Backend Services: discovery, tokens, and the keys that tokens are signed with.

https://hl7.org/fhir/smart-app-launch/conformance.html

    GET   [base]/.well-known/smart-configuration     also at the root of the server
    POST  /auth/token                                 also below the base, for proxies that pass on nothing else
    GET   /auth/jwks
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qsl

from pymongo.errors import ConnectionFailure
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from app.api import audited, exchange
from app.authentication.access_tokens import Authority
from app.authentication.clients import ALGORITHMS
from app.authentication.scopes import OWN
from app.authentication.token_endpoint import OAuthError, grant
from app.errors import MethodNotAllowed, TooLarge, Unavailable

log = logging.getLogger(__name__)

_MAX_FORM = 16 * 1024
_MAX_FIELDS = 20
_NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_SCOPES = ("system/*.cruds", "system/*.rs", "system/*.read", "system/*.write", "system/*.*")


def configuration(authority: Authority) -> dict[str, Any]:
    """What clients find out before they ask for a token."""
    return {
        "token_endpoint": authority.token_url,
        "token_endpoint_auth_methods_supported": ["private_key_jwt"],
        "token_endpoint_auth_signing_alg_values_supported": list(ALGORITHMS),
        "grant_types_supported": ["client_credentials"],
        "scopes_supported": [*_SCOPES, *sorted(OWN)],
        "capabilities": ["client-confidential-asymmetric", "permission-v1", "permission-v2"],
        "issuer": authority.base_url,
        "jwks_uri": authority.token_url.removesuffix("token") + "jwks",
    }


async def discover(request: Request, authority: Authority) -> Response:
    return JSONResponse(configuration(authority))


async def jwks(request: Request, authority: Authority) -> Response:
    headers = {"Cache-Control": "public, max-age=300"}
    return JSONResponse(await authority.keys.published(), headers=headers)


async def token(request: Request, authority: Authority) -> Response:
    """200 with a token, or the refusal as OAuth has it; neither is to be kept by anybody."""
    try:
        given = await grant(authority, await _fields(request))
        await audited.login(request, given.client_id, 200)
    except OAuthError as error:
        log.info("token refused", extra={"action": "token", "reason": error.error})
        with suppress(Unavailable):  # nothing is given away
            await audited.login(request, None, error.status)
        return JSONResponse(error.body, error.status, _NO_STORE)
    except (ConnectionFailure, Unavailable):
        log.warning("database unreachable", extra={"action": "token"})
        return JSONResponse({"error": "temporarily_unavailable"}, 503, _NO_STORE)
    log.info("token given", extra={"action": "token", "client_id": given.client_id})
    return JSONResponse(given.body, headers=_NO_STORE)


async def _fields(request: Request) -> list[tuple[str, str]]:
    """The fields of the form. Raises OAuthError; nothing beyond the limit is read."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != exchange.FORM:
        raise OAuthError("invalid_request", f"Send the request as {exchange.FORM}")
    if "authorization" in request.headers:
        raise OAuthError("invalid_request", "Clients prove themselves by an assertion alone")
    try:
        body = await exchange.read_body(request, _MAX_FORM, may_be_empty=True)
        return parse_qsl(
            body.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=_MAX_FIELDS,
        )
    except TooLarge:
        raise OAuthError("invalid_request", "The request is too long", 413) from None
    except ValueError:
        raise OAuthError("invalid_request", "The form cannot be read") from None


_Endpoint = Callable[[Request, Authority], Awaitable[Response]]
_DISCOVERY, _TOKEN, _JWKS = ("GET", discover), ("POST", token), ("GET", jwks)
_ENDPOINTS: dict[str, tuple[str, _Endpoint]] = {
    "/.well-known/smart-configuration": _DISCOVERY,
    "/fhir/.well-known/smart-configuration": _DISCOVERY,
    "/auth/token": _TOKEN,
    "/fhir/auth/token": _TOKEN,
    "/auth/jwks": _JWKS,
    "/fhir/auth/jwks": _JWKS,
}


class Smart:
    """ASGI middleware that answers these addresses and passes everything else on; present with authorization only."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = _ENDPOINTS.get(scope.get("path", "")) if scope["type"] == "http" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        method, answer = endpoint
        request = Request(scope, receive)
        if request.method != method:
            await audited.refused(request, MethodNotAllowed("Not supported here"))
            error = OAuthError("invalid_request", f"Only {method} is supported here", 405)
            response: Response = JSONResponse(error.body, 405, {**_NO_STORE, "Allow": method})
        else:
            response = await answer(request, request.app.state.services.find(Authority))
        await response(scope, receive, send)
