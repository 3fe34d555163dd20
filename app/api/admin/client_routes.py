"""The administrator's routes for clients; app/api/admin/operators.py serves them.

GET    /admin/clients
POST   /admin/clients                 {"name", "role", "scopes", "organization"?, "client_id"?, "jwks" | "jwks_uri"?}
GET    /admin/clients/<id>
POST   /admin/clients/<id>/rotate     {"jwks" | "jwks_uri"}
POST   /admin/clients/<id>/scopes     {"scopes"}
POST   /admin/clients/<id>/disable
POST   /admin/clients/<id>/enable

Answers show key ids, never keys.
"""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.requests import Request

from app.api import exchange
from app.authentication.clients import Client, Clients, RegistryError
from app.context import Server
from app.errors import BadRequest, NotFound
from app.network.egress_policy import Egress

Answer = tuple[int, Any]
_LIMIT = 64 * 1024
_FIELDS = frozenset({"client_id", "name", "role", "organization", "scopes", "jwks", "jwks_uri"})
_KEYS = frozenset({"jwks", "jwks_uri"})
_SCOPES = frozenset({"scopes"})


async def list_clients(request: Request, server: Server) -> Answer:
    return 200, {"clients": [client.shown() for client in await _registry(server).list()]}


async def read_client(request: Request, server: Server) -> Answer:
    return 200, (await _client(request, server)).shown()


async def add_client(request: Request, server: Server) -> Answer:
    wanted = await _body(request, _FIELDS)
    try:
        return 201, (await _registry(server).add(wanted)).shown()
    except RegistryError as error:
        raise BadRequest(str(error), code="value") from None


async def rotate_client(request: Request, server: Server) -> Answer:
    """New keys; tokens that the client holds end."""
    client, wanted = await _client(request, server), await _body(request, _KEYS)
    try:
        changed = await _registry(server).rotate(client.client_id, **wanted)
    except RegistryError as error:
        raise BadRequest(str(error), code="value") from None
    return 200, changed.shown()


async def set_scopes(request: Request, server: Server) -> Answer:
    """Other scopes; tokens that the client holds end, those of an outside provider are cut to them."""
    client, wanted = await _client(request, server), await _body(request, _SCOPES)
    try:
        changed = await _registry(server).set_scopes(client.client_id, wanted.get("scopes"))
    except RegistryError as error:
        raise BadRequest(str(error), code="value") from None
    return 200, changed.shown()


async def disable_client(request: Request, server: Server) -> Answer:
    return await _set_disabled(request, server, disabled=True)


async def enable_client(request: Request, server: Server) -> Answer:
    return await _set_disabled(request, server, disabled=False)


async def _set_disabled(request: Request, server: Server, *, disabled: bool) -> Answer:
    client = await _client(request, server)
    changed = await _registry(server).disable(client.client_id, disabled=disabled)
    return 200, changed.shown()


async def _client(request: Request, server: Server) -> Client:
    client = await _registry(server).get(request.path_params["id"])
    if client is None:
        raise NotFound("There is no client with this id")
    return client


async def _body(request: Request, fields: frozenset[str]) -> dict[str, Any]:
    body = await exchange.read_body(request, _LIMIT)
    try:
        wanted = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        raise BadRequest("The body is no JSON object", code="structure") from None
    if not wanted.keys() <= fields:
        raise BadRequest(
            f"Only these are known here: {', '.join(sorted(fields))}", code="structure"
        )
    return wanted


def _registry(server: Server) -> Clients:
    """Where authorization is off, clients can be prepared too."""
    if server.authority is not None:
        return server.authority.clients
    return Clients(server.mongo, Egress.from_settings(server.settings))


HANDLERS = (
    ("GET", "/clients", list_clients),
    ("POST", "/clients", add_client),
    ("GET", "/clients/{id}", read_client),
    ("POST", "/clients/{id}/rotate", rotate_client),
    ("POST", "/clients/{id}/scopes", set_scopes),
    ("POST", "/clients/{id}/disable", disable_client),
    ("POST", "/clients/{id}/enable", enable_client),
)
