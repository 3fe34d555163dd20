"""What is left of a caller's rights when something goes on without its requests: a Subscription, an export.

What is kept with it are the client's id and the scopes of the token. Role and organization are the client's of now, and
scopes count as far as it is still registered with them.
"""

from __future__ import annotations

from typing import Protocol

from app.authentication.caller import NOBODY, Caller, Role
from app.authentication.scopes import intersect


class Client(Protocol):
    """A registered client, as far as it matters here."""

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
    """The client with what rights are left of these scopes; NOBODY where it is unknown or disabled."""
    client = await clients.get(client_id) if clients is not None else None
    if client is None or client.disabled:
        return NOBODY
    return Caller(client_id, client.organization, client.role, intersect(scopes, client.scopes))
