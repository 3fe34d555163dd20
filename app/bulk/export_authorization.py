"""Whether an export is still its client's to have: while it is written, and when it is fetched.

An export holds what its client might see when it was read. So it goes on and is given away for as long as that client
is registered, for the same organization and in the same role, and holds all the scopes that it was asked for with, of
the types that are in it. Whoever has lost any of that asks for another export.
"""

from __future__ import annotations

from collections.abc import Sequence

from app.authentication.access_tokens import Authority
from app.authentication.caller import UNLIMITED, Caller
from app.authentication.current_caller import current_caller
from app.authentication.scopes import Action, Scopes
from app.bulk.export_request import ExportRequest, types_at
from app.context import Services
from app.errors import Forbidden
from app.runtime.mongo import Document

_READING: tuple[Action, ...] = ("s", "r")


def asked_by(row: Document) -> Caller:
    """Who asked for an export, as it was then."""
    return Caller(**{**row["caller"], "scopes": tuple(row["caller"]["scopes"])})


def check(row: Document, caller: Caller) -> None:
    """Raises Forbidden where the caller has not all the rights that the export was asked for with."""
    then = asked_by(row)
    if (caller.organization, caller.role) != (then.organization, then.role):
        raise Forbidden("The client's standing has changed since; ask for another export")
    had, has = Scopes.of(then.scopes), Scopes.of(caller.scopes)
    for resource_type in _types(row) if has != had else ():
        for action in _READING:
            if not has.reach(had, resource_type, action):
                raise Forbidden(
                    f"The export was asked for with the scope system/{resource_type}.{action}; "
                    "fetch it with a token that has it, or ask for another export"
                )


async def check_now(services: Services, row: Document) -> None:
    """The same for the client as it is registered now. Raises Forbidden."""
    then = asked_by(row)
    if services.settings.auth != "smart":
        return
    authority = services.find(Authority)
    if then in UNLIMITED or authority is None:
        raise Forbidden("The export was asked for while authorization was off")
    check(row, await current_caller(authority.clients, then.client_id, then.scopes))


def _types(row: Document) -> Sequence[str]:
    """The types that are in it; before it has begun, those that may be."""
    if "types" in row:
        types: list[str] = row["types"]
        return types
    asked = ExportRequest.of(row["asked"])
    return asked.types or types_at(asked.level)
