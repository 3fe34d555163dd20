"""A 1 s cache of the current relationships between patients and organizations: attributed, treated and member.

They are read for whole pages at once; this process's own commits count at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TypeVar

from app.attribution import claims, many
from app.authorization.agreements import Asset, agreements
from app.consent.recipients import Recipient, RecipientKind, resolve
from app.fhir import json as fhir_json
from app.runtime.batch_cache import BatchCache
from app.runtime.mongo import Document
from app.search import group_members, spans
from app.search.parameter import Filter
from app.search.parameters import reference
from app.search.search_parameters import parameters
from app.search.terms import senders
from app.settings import Settings
from app.store.events import Event
from app.store.store import Store

# Seconds for which relationships are cached, and organization trees and recipients.
_CACHE_SECONDS, _ORGANIZATION_CACHE_SECONDS = 1.0, 10.0
# Patients read in one round.
_AT_ONCE = 500
_KEYS_AT_ONCE = 10_000
_ONE_BY_ONE = 20
# How many steps down a tree of organizations are read, and how many organizations in it.
_MOST_STEPS, _MOST_ORGANIZATIONS = 5, 1_000
_NAMED_BY = {"PractitionerRole": ("organization",), "Contract": ("authority", "subject")}
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
OrganizationTree = frozenset[str]
# Organizations and a patient.
Pair = tuple[OrganizationTree, str]
# Organizations, and whether Groups that they manage count.
Listing = tuple[OrganizationTree, bool]


class Relationships:
    """One for each process. `now` is the clock that periods are judged by."""

    def __init__(self, store: Store, settings: Settings, now: Callable[[], datetime]) -> None:
        self._store = store
        self._settings = settings
        self._base_url = settings.base_url.rstrip("/")
        self.now = now
        self._practices: BatchCache[str, frozenset[str]] = BatchCache(
            self._read_practices, frozenset(), lasting=_CACHE_SECONDS
        )
        # The organizations of the pairs that may be cached.
        self._trees: set[OrganizationTree] = set()
        self._treated: BatchCache[Pair, bool] = BatchCache(
            self._read_treated, False, lasting=_CACHE_SECONDS
        )
        self._covered: BatchCache[Pair, bool] = BatchCache(
            self._read_covered, False, lasting=_CACHE_SECONDS
        )
        self._listed: BatchCache[tuple[Listing, str], bool] = BatchCache(
            self._read_listed, False, lasting=_CACHE_SECONDS
        )
        self._agreed: BatchCache[Pair, frozenset[Asset]] = BatchCache(
            self._read_agreed, frozenset(), lasting=_CACHE_SECONDS
        )
        self._contracted: BatchCache[OrganizationTree, frozenset[str]] = BatchCache(
            self._read_contracted, frozenset(), lasting=_CACHE_SECONDS
        )
        self._managed: BatchCache[OrganizationTree, frozenset[str]] = BatchCache(
            self._read_managed, frozenset(), lasting=_CACHE_SECONDS
        )
        self._families: BatchCache[str, OrganizationTree] = BatchCache(
            self._read_families, frozenset(), lasting=_ORGANIZATION_CACHE_SECONDS
        )
        self._names: BatchCache[OrganizationTree, OrganizationTree] = BatchCache(
            self._read_names, frozenset(), lasting=_CACHE_SECONDS
        )
        self._recipients: BatchCache[tuple[str, RecipientKind], Recipient] = BatchCache(
            self._read_recipients, Recipient(None), lasting=_ORGANIZATION_CACHE_SECONDS
        )

    def on_events(self, events: Sequence[Event]) -> None:
        """The store's listener: forgets the relationships that a commit may change."""
        for event in events:
            if event.type in ("Patient", "CareTeam", "Encounter", "Coverage"):
                self._forget(event)
            elif event.type in ("Group", "Contract"):
                self._practices.clear()
                for known in (self._listed, self._agreed, self._contracted, self._managed):
                    known.clear()
                self._names.clear()
            elif event.type in ("Organization", "PractitionerRole"):
                self._practices.clear()
                self._families.clear()
                self._names.clear()
                self._recipients.clear()

    def _forget(self, event: Event) -> None:
        """Forget the relationships of the patients that a change is about."""
        patients = {f"Patient/{event.resource_id}"} if event.type == "Patient" else set()
        for fields in (event.fields, event.previous_fields):
            if fields is not None and event.type != "Patient":
                patients |= self._patients(event.type, "patient", fields["terms"])
        pairs = [(family, each) for family in self._trees for each in patients]
        match event.type:
            case "Coverage":
                self._covered.forget(pairs)
            case "Encounter":
                # A new visit takes nothing away.
                is_new = event.previous_text is None
                self._treated.forget(
                    each for each in pairs if not (is_new and self._treated.known(each))
                )
            case "CareTeam":
                self._practices.forget(patients)
            case _:
                self._practices.forget(patients)
                self._treated.forget(pairs)

    def forget_older(
        self, patients: Collection[str], family: OrganizationTree, than: float
    ) -> bool:
        """Forget what was asked for before a `moment`; returns whether there was any."""
        pairs = [(family, each) for each in patients]
        listings = [((family, by_own), each) for by_own in (False, True) for each in patients]
        found = [
            self._treated.forget_older(pairs, than),
            self._covered.forget_older(pairs, than),
            self._listed.forget_older(listings, than),
            self._agreed.forget_older(pairs, than),
            self._contracted.forget_older([family], than),
            self._managed.forget_older([family], than),
            self._practices.forget_older(patients, than),
        ]
        return any(found)

    async def family(self, organization: str) -> OrganizationTree:
        """The organization with all that are part of it."""
        family = await self._families.get(organization)
        self._trees.add(family)
        return family

    async def names(self, family: OrganizationTree) -> OrganizationTree:
        """The family with its PractitionerRoles, who acts in them, and the Contracts that it is a party of."""
        return await self._names.get(family)

    async def recipient(self, organization: str, kind: RecipientKind) -> Recipient:
        """The organization as Consents name it."""
        return await self._recipients.get((organization, kind))

    async def attributed(self, patients: Collection[str], family: OrganizationTree) -> set[str]:
        """The patients (`Patient/p1`) whose primary care provider belongs to the family."""
        found = await self._practices.get_all(patients)
        return {patient for patient, of in found.items() if of & family}

    async def treated(self, patients: Collection[str], family: OrganizationTree) -> set[str]:
        """The patients whose record the family wrote, or who have a visit that it sent or provided."""
        found = await self._treated.get_all([(family, each) for each in patients])
        return {patient for (_, patient), is_so in found.items() if is_so}

    async def members(
        self, patients: Collection[str], family: OrganizationTree, *, by_coverage: bool
    ) -> set[str]:
        """The patients in a Group of the family; with `by_coverage` in a designated one, or under its Coverage."""
        listing = (family, not by_coverage)
        listed = await self._listed.get_all([(listing, each) for each in patients])
        found = {patient for (_, patient), is_so in listed.items() if is_so}
        if by_coverage:
            left = [(family, each) for each in patients if each not in found]
            covered = await self._covered.get_all(left)
            found |= {patient for (_, patient), is_so in covered.items() if is_so}
        return found

    async def agreed(
        self, patients: Collection[str], family: OrganizationTree
    ) -> Mapping[str, frozenset[Asset]]:
        """The records that Contracts with the family as authority give, by the patients they are about."""
        found = await self._agreed.get_all([(family, each) for each in patients])
        return {patient: assets for (_, patient), assets in found.items()}

    async def contracted(self, family: OrganizationTree) -> frozenset[str]:
        """The ids of the Groups that executed Contracts with the family as authority or subject are about."""
        return await self._contracted.get(family)

    async def managed(self, family: OrganizationTree) -> frozenset[str]:
        """The ids of the Groups that the family manages."""
        return await self._managed.get(family)

    # Reads of the caches

    async def _read_practices(self, patients: list[str]) -> Mapping[str, frozenset[str]]:
        found: dict[str, frozenset[str]] = {}
        for some in _some(patients):
            found |= await many.organizations(self._store, some, self.now(), self._settings)
        return found

    async def _read_treated(self, pairs: list[Pair]) -> Mapping[Pair, bool]:
        found: dict[Pair, bool] = {}
        for family, patients in _by_first(pairs):
            wrote = senders(family)
            rows = await self._store.find(
                "Patient",
                {"_id": {"$in": [each[8:] for each in patients]}, "terms": {"$in": wrote}},
                projection={"_id": 1},
            )
            own = {f"Patient/{row['_id']}" for row in rows}
            own |= await self._visiting(family, [each for each in patients if each not in own])
            found |= dict.fromkeys(((family, each) for each in own), True)
        return found

    async def _visiting(self, family: OrganizationTree, patients: Sequence[str]) -> set[str]:
        """The patients with a visit that the family sent or provided."""
        by = [*senders(family), *self._terms("Encounter", "service-provider", family)]

        def of(some: Sequence[str]) -> Document:
            visits = {"terms": {"$in": self._terms("Encounter", "patient", some)}}
            return {"$and": [visits, {"terms": {"$in": by}}]}

        if len(patients) > _ONE_BY_ONE:
            terms = self._terms("Encounter", "patient", patients)
            found = await self._store.terms_among("Encounter", of(patients), terms)
            return self._patients("Encounter", "patient", found)
        # A patient may have a thousand visits there: one is enough.
        counts = await asyncio.gather(
            *(self._store.count("Encounter", of([each]), 1) for each in patients)
        )
        return {each for each, count in zip(patients, counts, strict=True) if count}

    async def _read_covered(self, pairs: list[Pair]) -> Mapping[Pair, bool]:
        found: dict[Pair, bool] = {}
        now = self.now()
        for family, patients in _by_first(pairs):
            rows = await self._store.find(
                "Coverage",
                {
                    "$and": [
                        {"terms": {"$in": self._terms("Coverage", "beneficiary", patients)}},
                        {"terms": {"$in": self._terms("Coverage", "payor", family)}},
                        {"terms": "status=active"},
                    ]
                },
                projection={"text": 1, "terms": 1},
            )
            for row in rows:
                coverage = fhir_json.decode_stored(row["text"])
                if spans.holds(spans.of(coverage.get("period")), now):
                    for patient in self._patients("Coverage", "beneficiary", row["terms"]):
                        found[family, patient] = True
        return found

    async def _read_listed(
        self, pairs: list[tuple[Listing, str]]
    ) -> Mapping[tuple[Listing, str], bool]:
        found: dict[tuple[Listing, str], bool] = {}
        for listing, patients in _by_first(pairs):
            family, is_managed = listing
            groups = await self.groups(family, managed=is_managed)
            rosters = await self._memberships(patients, groups)
            found |= dict.fromkeys(((listing, patient) for patient, _ in rosters), True)
        return found

    async def _memberships(
        self, patients: Sequence[str], groups: Iterable[str]
    ) -> list[tuple[str, str]]:
        """Each of the patients with each of the Groups, by its id, that it is a member of now."""
        now = self.now()
        found: list[tuple[str, str]] = []
        members = self._terms("Group", "member", patients)
        keys = [{"g": group, "m": member} for group in groups for member in members]
        for start in range(0, len(keys), _KEYS_AT_ONCE):
            some = {"_id": {"$in": keys[start : start + _KEYS_AT_ONCE]}}
            for row in await self._store.find(claims.ROSTERS, some):
                (when,) = group_members.memberships_in([row]).values()
                if any(spans.holds(span, now) for span in when):
                    own = self._patients("Group", "member", [row["_id"]["m"]])
                    found += [(patient, row["_id"]["g"]) for patient in own]
        return found

    async def _read_agreed(self, pairs: list[Pair]) -> Mapping[Pair, frozenset[Asset]]:
        found: dict[Pair, frozenset[Asset]] = {}
        for family, patients in _by_first(pairs):
            given: dict[str, frozenset[Asset]] = {}
            for each in await agreements(self._store, family, ("authority",), self._base_url):
                for group in each.groups:
                    given[group] = given.get(group, frozenset()) | each.assets
            live = await self._live({"_id": {"$in": sorted(given)}})
            for patient, group in await self._memberships(patients, live):
                found[family, patient] = found.get((family, patient), frozenset()) | given[group]
        return found

    async def _read_contracted(
        self, families: list[OrganizationTree]
    ) -> Mapping[OrganizationTree, frozenset[str]]:
        found: dict[OrganizationTree, frozenset[str]] = {}
        for family in families:
            known = await agreements(self._store, family, ("authority", "subject"), self._base_url)
            found[family] = frozenset[str]().union(*(each.groups for each in known))
        return found

    async def _read_managed(
        self, families: list[OrganizationTree]
    ) -> Mapping[OrganizationTree, frozenset[str]]:
        found: dict[OrganizationTree, frozenset[str]] = {}
        for family in families:
            wanted = {"terms": {"$in": self._terms("Group", "managing-entity", family)}}
            rows = await self._store.find("Group", wanted, projection={"_id": 1})
            found[family] = frozenset(row["_id"] for row in rows)
        return found

    async def groups(self, family: OrganizationTree, *, managed: bool) -> list[str]:
        """The ids of live Groups that are designated to a family, or with `managed` that it manages."""
        any_of: list[Filter] = [{"_id": {"$in": sorted(await self.designated(family))}}]
        if managed:
            any_of.append({"terms": {"$in": self._terms("Group", "managing-entity", family)}})
        return await self._live({"$or": any_of})

    async def designated(self, family: OrganizationTree) -> set[str]:
        """The ids of the Groups that an executed Contract with the family as its authority is about."""
        known = await agreements(self._store, family, ("authority",), self._base_url)
        return set[str]().union(*(each.groups for each in known))

    async def _live(self, groups: Filter) -> list[str]:
        """The ids of the Groups of a filter that are in use."""
        wanted = {"$and": [{"roster.live": True}, groups]}
        rows = await self._store.find("Group", wanted, projection={"_id": 1})
        return [row["_id"] for row in rows]

    async def _read_families(self, organizations: list[str]) -> Mapping[str, OrganizationTree]:
        return {each: await self._family(each) for each in organizations}

    async def _family(self, organization: str) -> OrganizationTree:
        found, level = {organization}, [organization]
        for _ in range(_MOST_STEPS):
            rows = await self._store.find(
                "Organization",
                {"terms": {"$in": self._terms("Organization", "partof", level)}},
                limit=_MOST_ORGANIZATIONS,
                projection={"_id": 1},
            )
            level = [name for row in rows if (name := f"Organization/{row['_id']}") not in found]
            if not level or len(found) + len(level) > _MOST_ORGANIZATIONS:
                break
            found |= set(level)
        return frozenset(found)

    async def _read_names(
        self, families: list[OrganizationTree]
    ) -> Mapping[OrganizationTree, OrganizationTree]:
        found: dict[OrganizationTree, OrganizationTree] = {}
        for family in families:
            found[family] = family
            for kind, codes in _NAMED_BY.items():
                named = {"terms": {"$in": [t for c in codes for t in self._terms(kind, c, family)]}}
                for row in await self._store.find(kind, named, projection={"terms": 1}):
                    found[family] |= {f"{kind}/{row['_id']}", *self._acting(kind, row["terms"])}
        return found

    async def _read_recipients(
        self, keys: list[tuple[str, RecipientKind]]
    ) -> Mapping[tuple[str, RecipientKind], Recipient]:
        return {key: await resolve(self._store, *key, self._base_url) for key in keys}

    def _terms(self, resource_type: str, code: str, references: Iterable[str]) -> list[str]:
        return [
            term
            for each in references
            for term in claims.terms_for(resource_type, code, each, self._base_url)
        ]

    def _acting(self, resource_type: str, terms: Iterable[str]) -> Iterable[str]:
        """Who acts in a PractitionerRole."""
        if resource_type != "PractitionerRole":
            return ()
        acting = parameters(resource_type)["practitioner"]
        return (f"{kind}/{id_}" for kind, id_ in reference.targets(acting, terms, self._base_url))

    def _patients(self, resource_type: str, code: str, terms: Iterable[str]) -> set[str]:
        parameter = parameters(resource_type)[code]
        found = reference.targets(parameter, terms, self._base_url)
        return {f"Patient/{id_}" for kind, id_ in found if kind == "Patient"}


def _some(patients: Sequence[str]) -> Iterable[Sequence[str]]:
    return (patients[at : at + _AT_ONCE] for at in range(0, len(patients), _AT_ONCE))


def _by_first(pairs: Iterable[tuple[K, str]]) -> Iterable[tuple[K, Sequence[str]]]:
    """The patients of each of the first halves, some at a time."""
    found: dict[K, list[str]] = {}
    for first, patient in pairs:
        found.setdefault(first, []).append(patient)
    for first, patients in found.items():
        for some in _some(patients):
            yield first, some
