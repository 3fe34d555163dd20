"""The current rights of a Subscription's owner, checked for every notice, however old the Subscription is.

`private.owner` holds the client that made a Subscription, and its scopes of then. They count as far as the client is
still registered with them; its role, organization and patients are those of now. What was written without
authorization is nobody's, whatever it says of itself. A Subscription that the server keeps itself (for Endpoints and
contracts) has no such field, and its recipient's rights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cachetools import FIFOCache

from app.authentication.caller import NOBODY, Caller, Role
from app.authentication.current_caller import Clients, current_caller
from app.authorization.access import Access, Accesses
from app.authorization.restricted_store import RestrictedStore
from app.consent import labels
from app.consent.judgement import FULL, Judgement
from app.consent.provisions import ConsentQuestion
from app.consent.recipients import Recipient, resolve
from app.fhir.codes import SUBSCRIPTION_ORIGIN
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.runtime.mongo import Document
from app.search.extract import extract
from app.settings import Settings
from app.store.store import Store
from app.subscriptions.ledger.ledger import Delivery
from app.subscriptions.matching.registration import Registration
from app.subscriptions.notices.event_reader import alongside
from app.subscriptions.recipient import recipient_of
from app.subscriptions.sending.batching import DeliveryWithEvent
from app.subscriptions.sending.release_limits import Limit, Limits
from app.subscriptions.topics.topics import Topic
from app.subscriptions.websocket.socket_tokens import Holder

NO_ACCESS = Judgement("withhold", "access")
# The role of the recipient of a Subscription that the server keeps, by the Subscription's origin.
_KEPT_FOR: Mapping[str, Role] = {"endpoint": "practice", "contract": "state"}
_READ_ALL = ("system/*.rs",)
_REMEMBERED = 10_000

# The content of `private.owner` where whoever reached the server could write the Subscription.
NO_OWNER: Document = {"client_id": "", "scopes": []}


@dataclass(frozen=True, slots=True)
class Owner:
    """The owner of a Subscription, with its scopes. A client's role and organization are read from the registry."""

    caller: Caller
    is_client: bool


def owner_document(caller: Caller) -> Document:
    """The content of a Subscription's `private.owner`."""
    return {"client_id": caller.client_id, "scopes": list(caller.scopes)}


class OwnerRights:
    """Judges rows by what owners may see. `clients` is the registry; without it no client is known."""

    def __init__(
        self, accesses: Accesses, store: Store, settings: Settings, clients: Clients | None
    ) -> None:
        self._accesses = accesses
        self._store = store
        self._is_on = settings.auth == "smart"
        self._clients = clients
        self._owners: FIFOCache[tuple[str, int], Owner] = FIFOCache(_REMEMBERED)

    async def limits(self, rows: Sequence[DeliveryWithEvent], registration: Registration) -> Limits:
        """The limits of rows of one Subscription by its owner's rights; empty for an owner without limits.

        Raises PyMongoError where they cannot be read.
        """
        if not self._is_on:
            return {}
        owner = await self._owner(registration)
        access = self._accesses.of(await self._present(owner))
        if access is None:
            return {}
        deliveries = [delivery for delivery, _ in rows]
        return await self.limits_of(access, deliveries, registration.topic)

    async def limits_of(
        self, access: Access, deliveries: Sequence[Delivery], topic: Topic | None
    ) -> dict[str, Limit]:
        """The limits for any caller: one for each row, through whose `view` the notice's context is to be read."""
        found: dict[str, Limit] = {}
        view = RestrictedStore(self._store, access)
        for delivery in deliveries:
            focus = delivery.focus
            reference = f"{focus['type']}/{focus['id']}"
            question = ConsentQuestion(
                reference, labels.NONE, Recipient(None), self._accesses.relationships.now()
            )
            version = await self._store.vread(focus["type"], focus["id"], focus["version"])
            if version is None or not await access.seen_versions([version], "r"):
                found[delivery.id] = Limit(NO_ACCESS, (), question, None)
                continue
            hidden = await self._hidden(view, version, delivery, topic)
            found[delivery.id] = Limit(FULL, (), question, None, hidden, view)
        return found

    async def _hidden(
        self,
        view: RestrictedStore,
        version: ResourceVersion,
        delivery: Delivery,
        topic: Topic | None,
    ) -> frozenset[str]:
        """The references of the notice's context that the owner may not see."""
        if topic is None or version.deleted:
            return frozenset()
        fields = extract(version.type, version.resource())
        along = [
            *await alongside(self._store, topic, version.reference, fields),
            *delivery.context,
        ]
        keys = [(type_, id_) for type_, _, id_ in (each.partition("/") for each in along)]
        seen = await view.read_many(keys)
        return frozenset(each for each in along if each not in seen)

    async def admits(self, holder: Holder | None) -> bool:
        """Whether a token's client is registered, enabled and unchanged; always so while authorization is off."""
        if not self._is_on:
            return True
        if holder is None or self._clients is None:
            return False
        client = await self._clients.get(holder.client_id)
        return client is not None and not client.disabled and client.version == holder.version

    async def is_of(self, client_id: str, subscription: str, version: int) -> bool:
        """Whether a Subscription in this version is one that this client wrote."""
        owner = await self._owner_of(subscription, version)
        return owner.is_client and owner.caller.client_id == client_id

    async def may_hear(self, holder: Holder | None, registration: Registration) -> bool:
        """Whether a token's client may receive the Subscription's notices: it is admitted, and its owner."""
        if not self._is_on:
            return True
        return (
            holder is not None
            and await self.admits(holder)
            and await self.is_of(holder.client_id, registration.id, registration.version)
        )

    async def _owner(self, registration: Registration) -> Owner:
        return await self._owner_of(registration.id, registration.version)

    async def _owner_of(self, subscription: str, version: int) -> Owner:
        key = (subscription, version)
        known = self._owners.get(key)
        if known is None:
            known = self._owners[key] = await self._read(subscription)
        return known

    async def _read(self, subscription: str) -> Owner:
        rows = await self._store.find(
            "Subscription",
            {"_id": subscription},
            projection={"private.owner": 1, "text": 1, "v": 1, "at": 1},
        )
        private: Any = rows[0].get("private", {}).get("owner") if rows else None
        if private == NO_OWNER:
            return Owner(NOBODY, is_client=False)
        if private is not None:
            scopes = tuple(private["scopes"])
            return Owner(Caller(private["client_id"], scopes=scopes), is_client=True)
        if not rows or "text" not in rows[0]:
            return Owner(NOBODY, is_client=False)
        resource = ResourceVersion(
            "Subscription", subscription, rows[0]["v"], rows[0]["at"], rows[0]["text"]
        ).resource()
        return Owner(await self._kept(resource), is_client=False)

    async def _kept(self, subscription: Resource) -> Caller:
        """The caller by whose rights a Subscription without a client is judged."""
        origins = {
            tag.get("code")
            for tag in subscription.get("meta", {}).get("tag", ())
            if tag.get("system") == SUBSCRIPTION_ORIGIN
        }
        role = next((_KEPT_FOR[each] for each in origins if each in _KEPT_FOR), None)
        recipient = recipient_of(subscription)
        if role is None or recipient is None:
            return NOBODY
        names = (await resolve(self._store, recipient, "provider")).itself
        organization = next((each for each in names if each.startswith("Organization/")), None)
        return Caller("carerelay", organization, role, _READ_ALL)

    async def _present(self, owner: Owner) -> Caller:
        """The owner with its current rights."""
        if not owner.is_client:
            return owner.caller
        return await current_caller(self._clients, owner.caller.client_id, owner.caller.scopes)

    async def whose(self, registration: Registration) -> Caller:
        """The owner of a Subscription for the audit: a client even if it is disabled by now; NOBODY for none."""
        if not self._is_on:
            return NOBODY
        owner = await self._owner(registration)
        if not owner.is_client or self._clients is None:
            return owner.caller
        client = await self._clients.get(owner.caller.client_id)
        if client is None:
            return owner.caller
        return Caller(owner.caller.client_id, client.organization, client.role)


def stricter(one: Limits, other: Limits) -> Limits:
    """The limits by consent combined with those by rights: the stricter verdict, the rights' `hidden` and `view`."""
    if not other:
        return one
    found = dict(one)
    for id_, limit in other.items():
        known = found.get(id_)
        if known is None or limit.verdict == "withhold":
            found[id_] = limit
        else:
            found[id_] = replace(known, hidden=limit.hidden, view=limit.view)
    return found
