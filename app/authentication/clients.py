"""The registry of clients that may request tokens: their organisations, roles, scopes and keys.

Collection `clients`: {_id: client id, version, name, organization, role, scopes, jwks | jwks_uri, disabled,
unconfirmed?, at}. Every change counts the version up. What is added or changed by a server without authorization, which
anybody may have asked for, is `unconfirmed` and counts as disabled until an administrator confirms it.

A process caches a row for at most a second, so that a client who is disabled or changed is refused everywhere within
that time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, cast

from pymongo import ReturnDocument
from pymongo.errors import DuplicateKeyError

from app.authentication import jwt, scopes as smart_scopes
from app.authentication.caller import Role
from app.authentication.jwks import check_address
from app.fhir.ids import new_id
from app.network.egress_policy import Egress, EgressRefusedError
from app.runtime.batch_cache import BatchCache
from app.runtime.mongo import Document, Mongo

COLLECTION = "clients"
# The algorithms that clients may sign assertions with.
ALGORITHMS = ("RS384", "ES384")
ROLES = (
    *("practice", "hospital", "plan", "state", "directory", "consent-authority"),
    "administrator",
)
# Seconds for which a row is cached.
BELIEVED = 1.0
_MAX_KEPT = 10_000
_MAX_KEYS = 20
_CLIENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}")
_ORGANIZATION = re.compile(r"Organization/[A-Za-z0-9.\-]{1,64}")


class RegistryError(Exception):
    """A client cannot be registered or changed; the text is for the administrator."""


@dataclass(frozen=True, slots=True)
class Client:
    """One client. With neither `jwks` nor `jwks_uri` it can use tokens of an outside provider only.

    One that is `unconfirmed` is `disabled` too.
    """

    client_id: str
    name: str
    organization: str | None
    role: Role
    scopes: tuple[str, ...]
    jwks: tuple[dict[str, Any], ...] = ()
    jwks_uri: str | None = None
    disabled: bool = False
    unconfirmed: bool = False
    version: int = 1
    at: datetime | None = None

    def shown(self) -> dict[str, Any]:
        """For administrators: everything but the keys' numbers; `keys` are their ids."""
        shown = asdict(self)
        shown["scopes"] = list(self.scopes)
        shown["keys"] = [key["kid"] for key in shown.pop("jwks")]
        shown["at"] = self.at.isoformat() if self.at else None
        return shown


class Clients:
    """The registry, with a cache of this process."""

    def __init__(self, mongo: Mongo, egress: Egress, *, is_open: bool = False) -> None:
        """`is_open`: whoever reaches the server may ask for these changes."""
        self._mongo = mongo
        self._doubt: Document = {"unconfirmed": True} if is_open else {}
        self._egress = egress
        self._kept = BatchCache[str, Client | None](
            self._read, None, lasting=BELIEVED, most=_MAX_KEPT
        )

    @property
    def _rows(self) -> Any:
        return self._mongo.collection(COLLECTION)

    async def get(self, client_id: str) -> Client | None:
        """The client as of a second ago at most; None for an unknown one. A disabled one is returned."""
        return await self._kept.get(client_id) if _CLIENT_ID.fullmatch(client_id) else None

    async def _read(self, client_ids: list[str]) -> dict[str, Client | None]:
        rows = self._rows.find({"_id": {"$in": client_ids}})
        return {row["_id"]: _client(row) async for row in rows}

    async def list(self) -> list[Client]:
        """All clients by id."""
        return [_client(row) for row in await self._rows.find({}).sort("_id", 1).to_list(None)]

    async def add(self, wanted: Mapping[str, Any]) -> Client:
        """Register a client from `name`, `role`, `scopes`, and optionally `client_id`, `organization`, and `jwks` (a
        JWK Set) or `jwks_uri`. Raises RegistryError.
        """
        row = {
            "_id": _client_id(wanted.get("client_id")),
            "version": 1,
            "name": _name(wanted.get("name")),
            **_rights(wanted),
            **self._keys(wanted.get("jwks"), wanted.get("jwks_uri")),
            "disabled": False,
            "at": self._mongo.now(),
            **self._doubt,
        }
        try:
            await self._rows.insert_one(row)
        except DuplicateKeyError:
            raise RegistryError("There is a client with this id already") from None
        return self._changed(row)

    async def rotate(self, client_id: str, *, jwks: Any = None, jwks_uri: Any = None) -> Client:
        """Replace a client's keys, which ends the tokens that it holds. Raises RegistryError."""
        keys = self._keys(jwks, jwks_uri)
        if not keys:
            raise RegistryError("Name the new keys: a JWK Set or its URL")
        gone = {"jwks", "jwks_uri"} - set(keys)
        return await self._change(client_id, {"$set": keys, "$unset": dict.fromkeys(gone, "")})

    async def set_scopes(self, client_id: str, scopes: Any) -> Client:
        """Replace a client's scopes, one text or a list, which ends the tokens that it holds. Raises RegistryError."""
        return await self._change(client_id, {"$set": {"scopes": _scopes(scopes)}})

    async def disable(self, client_id: str, *, disabled: bool = True) -> Client:
        """Disable a client or, with `disabled=False`, enable it again. Raises RegistryError."""
        return await self._change(client_id, {"$set": {"disabled": disabled}})

    async def confirm(self, client_id: str) -> Client:
        """Let a client count as it is registered now, whoever registered it. Raises RegistryError."""
        if self._doubt:
            raise RegistryError(
                "Without authorization anybody could: use `carerelay clients confirm`, or --auth smart"
            )
        return await self._change(client_id, {"$unset": {"unconfirmed": ""}})

    async def unconfirmed(self) -> tuple[str, ...]:
        """The ids of clients that are to be confirmed, in order."""
        return tuple(sorted(await self._rows.distinct("_id", {"unconfirmed": True})))

    async def _change(self, client_id: str, change: dict[str, Any]) -> Client:
        change.setdefault("$set", {}).update(self._doubt, at=self._mongo.now())
        row = await self._rows.find_one_and_update(
            {"_id": client_id},
            {**change, "$inc": {"version": 1}},
            return_document=ReturnDocument.AFTER,
        )
        if row is None:
            raise RegistryError("There is no client with this id")
        return self._changed(row)

    def _changed(self, row: Document) -> Client:
        self._kept.forget([row["_id"]])
        return _client(row)

    def _keys(self, jwks: Any, jwks_uri: Any) -> dict[str, Any]:
        if jwks is not None and jwks_uri is not None:
            raise RegistryError("Keys are given as a JWK Set or by its URL, not both")
        if jwks is not None:
            return {"jwks": _key_set(jwks)}
        if jwks_uri is None:
            return {}
        if not isinstance(jwks_uri, str):
            raise RegistryError("The URL of the JWK Set is no text")
        try:
            check_address(self._egress, jwks_uri)
        except EgressRefusedError as error:
            raise RegistryError(str(error)) from None
        return {"jwks_uri": jwks_uri}


def _key_set(jwks: Any) -> list[dict[str, Any]]:
    """The public keys of a JWK Set, or a single JWK."""
    keys = jwks.get("keys", [jwks]) if isinstance(jwks, dict) else None
    if not isinstance(keys, list) or not 0 < len(keys) <= _MAX_KEYS:
        raise RegistryError(f"A JWK Set has 1 to {_MAX_KEYS} keys")
    if any(isinstance(key, dict) and "d" in key for key in keys):
        raise RegistryError(
            "This is a private key: it stays with the client, register its public half"
        )
    try:
        kept = [jwt.public_key(key, ALGORITHMS) for key in keys]
    except jwt.UnusableKeyError as error:
        raise RegistryError(f"The JWK Set cannot be used: {error}") from None
    if len({(key["kid"], key["kty"]) for key in kept}) < len(kept):
        raise RegistryError("Two keys of the JWK Set have the same 'kid'")
    return kept


def _rights(wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Role, organisation and scopes of a row. Raises RegistryError."""
    role, organization = wanted.get("role"), wanted.get("organization")
    if role not in ROLES:
        raise RegistryError(f"A role is one of {', '.join(ROLES)}")
    if organization is None and role != "administrator":
        raise RegistryError("A client acts for an organisation: Organization/<id>")
    if organization is not None and not (
        isinstance(organization, str) and _ORGANIZATION.fullmatch(organization)
    ):
        raise RegistryError("An organisation is written as Organization/<id>")
    return {
        "role": role,
        "organization": organization,
        "scopes": _scopes(wanted.get("scopes")),
    }


def _scopes(wanted: Any) -> list[str]:
    texts = wanted.split() if isinstance(wanted, str) else wanted
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise RegistryError("Scopes are SMART scopes, as system/Patient.rs, separated by spaces")
    for text in texts:
        if text in smart_scopes.OWN:
            continue
        try:
            smart_scopes.parse(text)
        except ValueError as error:
            raise RegistryError(f"{error}, which one of these does not") from None
    return list(dict.fromkeys(texts))


def _client_id(wanted: Any) -> str:
    if wanted is None:
        return new_id()
    if not isinstance(wanted, str) or not _CLIENT_ID.fullmatch(wanted):
        raise RegistryError("A client id has letters, digits and . _ : @ -, at most 128")
    return wanted


def _name(wanted: Any) -> str:
    if not isinstance(wanted, str) or not wanted.strip() or len(wanted) > 200:
        raise RegistryError("A client needs a name of at most 200 characters")
    if not wanted.isprintable():
        raise RegistryError("A client's name has printable characters only")
    return wanted.strip()


def _client(row: Document) -> Client:
    return Client(
        client_id=row["_id"],
        name=row["name"],
        organization=row.get("organization"),
        role=cast("Role", row["role"]),
        scopes=tuple(row["scopes"]),
        jwks=tuple(row.get("jwks", ())),
        jwks_uri=row.get("jwks_uri"),
        disabled=row["disabled"] or "unconfirmed" in row,
        unconfirmed="unconfirmed" in row,
        version=row["version"],
        at=row["at"],
    )
