"""The current rights of a Subscription's owner, checked for every event and notice, however old the Subscription is.

`private.owner` holds the client that made a Subscription, and its scopes of then. They count as far as the client is
still registered with them; its role, organization and patients are those of now. What was written without
authorization is nobody's, whatever it says of itself. A Subscription that the server keeps itself (for Endpoints and
contracts) has no such field, and its recipient's rights.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bson import ObjectId

from app.authentication.caller import NOBODY, Caller, Role
from app.authentication.current_caller import Clients, current_caller
from app.authorization import named_resources
from app.authorization.access import Access, Accesses
from app.authorization.event_sight import EventSight
from app.authorization.restricted_store import RestrictedStore
from app.authorization.rules import NO_PROVIDERS
from app.consent import labels
from app.consent.judgement import FULL, Judgement
from app.consent.provisions import ConsentQuestion
from app.consent.recipients import Recipient, RecipientKind
from app.fhir import json as fhir_json
from app.fhir.codes import SUBSCRIPTION_ORIGIN
from app.fhir.json import Resource
from app.records.versions import ResourceVersion
from app.runtime.batch_cache import BatchCache
from app.runtime.mongo import Document
from app.search.extract import extract
from app.settings import Settings
from app.store.events import Event
from app.store.store import Store
from app.subscriptions.ledger.ledger import Delivery
from app.subscriptions.matching.criteria import groups
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
    """The owner of a Subscription, with its scopes. A client's role and organization are read from the registry.

    Of one that the server keeps, the organization is that of its `recipient`.
    """

    caller: Caller
    is_client: bool = False
    recipient: str | None = None


_NOBODYS = Owner(NOBODY)


async def reads_groups(access: Access, registration: Registration) -> bool:
    """Whether a caller may read all Groups that the filters of a Subscription name."""
    named = groups(registration.criteria)
    return (
        not named or access.sees_all("Group") or await named_resources.are_readable(access, named)
    )


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
        self._owners: BatchCache[tuple[str, int], Owner] = BatchCache(
            self._read_owners, _NOBODYS, most=_REMEMBERED
        )

    async def unseen(
        self, pairs: Sequence[tuple[Event, Registration]], since: float
    ) -> set[tuple[ObjectId, str]]:
        """Those pairs, as event and Subscription id, whose event the Subscription's owner may not see.

        Nobody is refused by what was read before `since` (`batch_cache.moment`). Raises where that cannot be known,
        PyMongoError where the database is away.
        """
        if not self._is_on:
            return set()
        owners = await asyncio.gather(*(self._owner(registration) for _, registration in pairs))
        present = await asyncio.gather(*(self._present(owner) for owner in owners))
        asked: dict[Caller, list[tuple[Event, str]]] = {}
        for (event, registration), caller in zip(pairs, present, strict=True):
            asked.setdefault(caller, []).append((event, registration.id))
        limited = {
            caller: access for caller in asked if (access := self._accesses.of(caller)) is not None
        }
        sight = await EventSight.of(
            self._store, (event for caller in limited for event, _ in asked[caller]), since
        )
        seen = await asyncio.gather(
            *(
                sight.seen(access, {event.id: event for event, _ in asked[caller]}.values())
                for caller, access in limited.items()
            )
        )
        return {
            (event.id, subscription)
            for caller, own in zip(limited, seen, strict=True)
            for event, subscription in asked[caller]
            if event.id not in own
        } | await self._behind_groups(pairs, owners, present, since)

    async def _behind_groups(
        self,
        pairs: Sequence[tuple[Event, Registration]],
        owners: Sequence[Owner],
        present: Sequence[Caller],
        since: float,
    ) -> set[tuple[ObjectId, str]]:
        """Those pairs whose filters name a Group that the owner may not read (any more), so that no count tells of it.

        What the server keeps has the filters that the server gave it.
        """
        asked: dict[tuple[str, Caller], tuple[Registration, list[ObjectId]]] = {}
        for (event, registration), owner, caller in zip(pairs, owners, present, strict=True):
            if owner.recipient is None and groups(registration.criteria):
                key = (registration.id, caller)
                asked.setdefault(key, (registration, []))[1].append(event.id)
        found: set[tuple[ObjectId, str]] = set()
        for (id_, caller), (registration, events) in asked.items():
            access = self._accesses.of(caller)
            if access is None or await reads_groups(access, registration):
                continue
            if await access.forget_older((), since) and await reads_groups(access, registration):
                continue
            found |= {(event, id_) for event in events}
        return found

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
            if version is None or not await access.seen_versions([version], "r", withdrawn=True):
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
        return await self._owners.get((subscription, version))

    async def _read_owners(self, keys: list[tuple[str, int]]) -> Mapping[tuple[str, int], Owner]:
        rows = await self._store.find(
            "Subscription",
            {"_id": {"$in": [subscription for subscription, _ in keys]}},
            projection={"private.owner": 1, "text": 1},
        )
        found = {row["_id"]: _owner_in(row) for row in rows}
        return {key: found.get(key[0], _NOBODYS) for key in keys}

    async def kind(self, registration: Registration) -> RecipientKind:
        """The kind of recipient that the owner is by its role; `provider` where nobody owns it."""
        if not self._is_on:
            return "provider"
        owner = await self._present(await self._owner(registration))
        return "authority" if owner.role in NO_PROVIDERS else "provider"

    async def _present(self, owner: Owner) -> Caller:
        """The owner with its current rights."""
        if owner.recipient is not None:
            recipient = await self._accesses.relationships.recipient(owner.recipient, "provider")
            names = (each for each in recipient.itself if each.startswith("Organization/"))
            return replace(owner.caller, organization=next(names, None))
        if not owner.is_client:
            return owner.caller
        return await current_caller(self._clients, owner.caller.client_id, owner.caller.scopes)

    async def whose(self, registration: Registration) -> Caller:
        """The owner of a Subscription for the audit: a client even if it is disabled by now; NOBODY for none."""
        if not self._is_on:
            return NOBODY
        owner = await self._owner(registration)
        if not owner.is_client or self._clients is None:
            return await self._present(owner)
        client = await self._clients.get(owner.caller.client_id)
        if client is None:
            return owner.caller
        return Caller(owner.caller.client_id, client.organization, client.role)


def _owner_in(row: Document) -> Owner:
    """The owner of a stored Subscription: its client, or whom the server keeps it for."""
    private: Any = row.get("private", {}).get("owner")
    if private == NO_OWNER:
        return _NOBODYS
    if private is not None:
        return Owner(Caller(private["client_id"], scopes=tuple(private["scopes"])), is_client=True)
    if "text" not in row:
        return _NOBODYS
    subscription: Resource = fhir_json.decode_stored(row["text"])
    origins = {
        tag.get("code")
        for tag in subscription.get("meta", {}).get("tag", ())
        if tag.get("system") == SUBSCRIPTION_ORIGIN
    }
    role = next((_KEPT_FOR[each] for each in origins if each in _KEPT_FOR), None)
    recipient = recipient_of(subscription)
    if role is None or recipient is None:
        return _NOBODYS
    return Owner(Caller("carerelay", None, role, _READ_ALL), recipient=recipient)


def stricter(one: Limits, other: Limits) -> Limits:
    """The limits by consent combined with those by rights: the stricter verdict, the rights' `hidden` and `view`.

    Where both withhold it is the consent's reason that says why: rights hide because of it.
    """
    if not other:
        return one
    found = dict(one)
    for id_, limit in other.items():
        known = found.get(id_)
        if known is not None and known.verdict == "withhold":
            continue
        if known is None or limit.verdict == "withhold":
            found[id_] = limit
        else:
            found[id_] = replace(known, hidden=limit.hidden, view=limit.view)
    return found
