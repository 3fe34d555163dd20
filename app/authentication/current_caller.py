"""The current rights of a client for work that goes on without its requests: a Subscription, an export.

The client's id and the scopes of its token are stored with the work. Role and organization are the client's current
ones, and scopes count as far as it is still registered with them.
"""

from __future__ import annotations

from typing import Protocol

from app.authentication.caller import NOBODY, Caller, Role
from app.authentication.scopes import intersect


class Client(Protocol):
    """The fields of a registered client that are read here."""

    @property
    def organization(self) -> str | None: ...
    @property
    def role(self) -> Role: ...
    @property
    def scopes(self) -> tuple[str, ...]: ...
    @property
    def disabled(self) -> bool: ...
    @property
    def version(self) -> int: ...


class Clients(Protocol):
    """The registry of clients."""

    async def get(self, client_id: str) -> Client | None: ...


async def current_caller(
    clients: Clients | None, client_id: str, scopes: tuple[str, ...]
) -> Caller:
    """The client with those of the scopes that it still has; NOBODY where it is unknown or disabled."""
    client = await clients.get(client_id) if clients is not None else None
    if client is None or client.disabled:
        return NOBODY
    return Caller(client_id, client.organization, client.role, intersect(scopes, client.scopes))
