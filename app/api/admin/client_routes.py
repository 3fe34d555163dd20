"""The administrator's routes for clients; app/api/admin/operators.py serves them.

GET    /admin/clients
POST   /admin/clients                 {"name", "role", "scopes", "organization"?, "client_id"?, "jwks" | "jwks_uri"?}
GET    /admin/clients/<id>
POST   /admin/clients/<id>/rotate     {"jwks" | "jwks_uri"}
POST   /admin/clients/<id>/scopes     {"scopes"}
POST   /admin/clients/<id>/disable
POST   /admin/clients/<id>/enable
POST   /admin/clients/<id>/confirm    one that was added or changed while authorization was off

Answers show key ids, never keys.
"""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from app.api import exchange
from app.authentication.access_tokens import Authority
from app.authentication.clients import Client, Clients, RegistryError
from app.context import Services
from app.errors import BadRequest, Forbidden, NotFound
from app.network.egress_policy import Egress

Answer = tuple[int, Any]
_LIMIT = 64 * 1024
_FIELDS = frozenset({"client_id", "name", "role", "organization", "scopes", "jwks", "jwks_uri"})
_KEYS = frozenset({"jwks", "jwks_uri"})
_SCOPES = frozenset({"scopes"})


async def list_clients(request: Request, services: Services) -> Answer:
    return 200, {"clients": [client.shown() for client in await _registry(services).list()]}


async def read_client(request: Request, services: Services) -> Answer:
    return 200, (await _client(request, services)).shown()


async def add_client(request: Request, services: Services) -> Answer:
    wanted = await _body(request, _FIELDS)
    try:
        return 201, (await _registry(services).add(wanted)).shown()
    except RegistryError as error:
        raise BadRequest(str(error), code="value") from None


async def rotate_client(request: Request, services: Services) -> Answer:
    """New keys; tokens that the client holds end."""
    client, wanted = await _client(request, services), await _body(request, _KEYS)
    try:
        changed = await _registry(services).rotate(client.client_id, **wanted)
    except RegistryError as error:
        raise BadRequest(str(error), code="value") from None
    return 200, changed.shown()


async def set_scopes(request: Request, services: Services) -> Answer:
    """Other scopes; tokens that the client holds end, those of an outside provider are cut to them."""
    client, wanted = await _client(request, services), await _body(request, _SCOPES)
    try:
        changed = await _registry(services).set_scopes(client.client_id, wanted.get("scopes"))
    except RegistryError as error:
        raise BadRequest(str(error), code="value") from None
    return 200, changed.shown()


async def disable_client(request: Request, services: Services) -> Answer:
    return await _set_disabled(request, services, disabled=True)


async def enable_client(request: Request, services: Services) -> Answer:
    return await _set_disabled(request, services, disabled=False)


async def confirm_client(request: Request, services: Services) -> Answer:
    client = await _client(request, services)
    try:
        return 200, (await _registry(services).confirm(client.client_id)).shown()
    except RegistryError as error:
        raise Forbidden(str(error)) from None


async def _set_disabled(request: Request, services: Services, *, disabled: bool) -> Answer:
    client = await _client(request, services)
    changed = await _registry(services).disable(client.client_id, disabled=disabled)
    return 200, changed.shown()


async def _client(request: Request, services: Services) -> Client:
    client = await _registry(services).get(request.path_params["id"])
    if client is None:
        raise NotFound("There is no client with this id")
    return client


async def _body(request: Request, fields: frozenset[str]) -> dict[str, Any]:
    wanted = await exchange.read_json(request, _LIMIT)
    if not wanted.keys() <= fields:
        raise BadRequest(
            f"Only these are known here: {', '.join(sorted(fields))}", code="structure"
        )
    return wanted


def _registry(services: Services) -> Clients:
    """Where authorization is off, clients can be prepared too, and are to be confirmed."""
    authority = services.find(Authority)
    if authority is not None:
        return authority.clients
    return Clients(services.mongo, Egress.from_settings(services.settings), is_open=True)


HANDLERS = (
    ("GET", "/clients", list_clients),
    ("POST", "/clients", add_client),
    ("GET", "/clients/{id}", read_client),
    ("POST", "/clients/{id}/rotate", rotate_client),
    ("POST", "/clients/{id}/scopes", set_scopes),
    ("POST", "/clients/{id}/disable", disable_client),
    ("POST", "/clients/{id}/enable", enable_client),
    ("POST", "/clients/{id}/confirm", confirm_client),
)
