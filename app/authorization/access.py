"""The rights of one caller: scopes, compartments, consent and labels, judged in this one place.

The rules are data (rules.py); here they are applied to resources. What no rule allows is refused.
docs/access.md
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from cachetools import FIFOCache

from app.authentication.access_tokens import base_url as own_base_url
from app.authentication.caller import UNLIMITED, Caller, Role
from app.authentication.scopes import CONSENT_AUTHORITY, Action, Scopes
from app.authorization import attachments, given_records, relations, security_contexts, told_about
from app.authorization.disclosure import Disclosure
from app.authorization.judged_rows import Judged, current_rows, is_withdrawn, row_of_version
from app.authorization.panel import MOST_IN_PANEL, Panel, Panels
from app.authorization.relations import DocumentRow, Traits
from app.authorization.relationships import OrganizationTree, Relationships
from app.authorization.rules import KNOWN_ALREADY, PROOF_OF_OWN, Relation, rule_of
from app.authorization.scope_filters import Restrictions
from app.authorization.sight_reads import SightReads
from app.consent import labels
from app.consent.directives import ConsentDirectives
from app.errors import Forbidden
from app.records.versions import ResourceVersion
from app.runtime.snapshot import reading_at
from app.search.parameter import Filter
from app.settings import Settings
from app.store.store import Store

_MOST_KEPT = 1_000


@dataclass(frozen=True, slots=True)
class Sight:
    """The visible part of a type: all that matches the `filters` and, unless `is_exact`, passes `Access.seen`."""

    filters: tuple[Filter, ...]
    is_exact: bool

    @property
    def is_everything(self) -> bool:
        return self.is_exact and not self.filters


class Accesses:
    """A cache of the callers' rights; one for each process."""

    def __init__(
        self,
        store: Store,
        directives: ConsentDirectives,
        settings: Settings,
        now: Callable[[], datetime],
    ) -> None:
        self.store = store
        self.settings = settings
        self.relationships = Relationships(store, settings, now)
        self.disclosure = Disclosure(directives, self.relationships)
        self.panels = Panels(store, self.relationships, settings.base_url.rstrip("/"))
        self._kept: FIFOCache[Caller, Access | None] = FIFOCache(_MOST_KEPT)

    def of(self, caller: Caller) -> Access | None:
        """The rights of a caller; None for one without limits."""
        try:
            return self._kept[caller]
        except KeyError:
            access = None if caller in UNLIMITED else Access(caller, self)
            self._kept[caller] = access
            return access


class Access:
    """The rights of one caller to see and write."""

    def __init__(self, caller: Caller, accesses: Accesses) -> None:
        self.caller = caller
        self.settings = accesses.settings
        self.store = accesses.store
        self.reads = SightReads(accesses.store)
        self.relationships = accesses.relationships
        self.scopes = Scopes.of(caller.scopes)
        self.restrictions = Restrictions(self.scopes, accesses.settings)
        self.disclosure = accesses.disclosure
        self._panels = accesses.panels
        self.base_url = accesses.settings.base_url.rstrip("/")
        # The base of the URLs that the server writes itself.
        self._own_base_url = own_base_url(accesses.settings)
        # By type and right. Scopes and role never change; a sight may depend on the family and is kept with it.
        self._allowed: dict[tuple[str, Action], bool] = {}
        self._sights: dict[tuple[str, Action], tuple[OrganizationTree | None, Sight]] = {}

    @property
    def is_administrator(self) -> bool:
        return self.caller.role == "administrator"

    @property
    def is_consent_authority(self) -> bool:
        """Whether what this caller writes about consent is the patients' word, whomever it lets have what."""
        return self.is_administrator or (
            self.caller.role == "consent-authority" and CONSENT_AUTHORITY in self.caller.scopes
        )

    def sender(self, resource_type: str) -> str | None:
        """The organization that writes; a consent authority writes Consents for the patients, not for one."""
        if resource_type == "Consent" and self.is_consent_authority:
            return None
        return self.caller.organization

    def sees_all(self, resource_type: str) -> bool:
        """Whether every resource of a type may be read, so that a search through it reveals nothing hidden."""
        return "everyone" in rule_of(self.caller.role, resource_type).read and not (
            self.restrictions.of(resource_type, "r")
        )

    # Scopes

    def allows(self, resource_type: str, action: Action) -> bool:
        """Whether scopes and role allow the action on any resource of the type."""
        key = (resource_type, action)
        if key not in self._allowed:
            self._allowed[key] = self._allows(resource_type, action)
        return self._allowed[key]

    def _allows(self, resource_type: str, action: Action) -> bool:
        rule = rule_of(self.caller.role, resource_type)
        by_role = {
            "r": rule.read,
            "s": rule.read,
            "c": rule.new or rule.fresh,
            "u": rule.old,
            "d": rule.old and not rule.stays,
        }[action]
        return bool(by_role) and self.restrictions.of(resource_type, action) is not None

    def require(self, resource_type: str, action: Action) -> None:
        """Raises Forbidden, naming the scope, where the token does not have it or the role could never use it."""
        if self.allows(resource_type, action):
            return
        if not self.scopes.allows(resource_type, action):
            raise Forbidden(f"The token lacks the scope system/{resource_type}.{action}")
        raise Forbidden(f"This client's role or scope does not reach any {resource_type} so")

    def require_role(self, what: str, roles: frozenset[Role]) -> None:
        """Raises Forbidden where `what` is neither for the caller's role nor for administrators."""
        if not self.is_administrator and self.caller.role not in roles:
            raise Forbidden(
                f"{what} is for administrators and the roles {', '.join(sorted(roles))}"
            )

    # Reading

    async def family(self) -> OrganizationTree:
        """The caller's organization with all that are part of it; empty where it has none."""
        if self.caller.organization is None:
            return frozenset()
        return await self.relationships.family(self.caller.organization)

    async def _names(self, by: Sequence[Relation]) -> OrganizationTree:
        """The references by which relations know the caller: the family, for `kept` with its staff and Contracts."""
        family = await self.family()
        return await self.relationships.names(family) if "kept" in by else family

    async def sight(self, resource_type: str, action: Action) -> Sight | None:
        """The sight of a type; None where nothing of it may be seen."""
        if not self.allows(resource_type, action):
            return None
        known = self._sights.get((resource_type, action))
        if known is not None and known[0] is None:
            return known[1]
        with reading_at(None):  # rights are those of now, whatever moment is read
            return await self._sight(resource_type, action)

    async def _sight(self, resource_type: str, action: Action) -> Sight:
        family: OrganizationTree | None = None
        filters = list(self.restrictions.filters(resource_type, action))
        read = rule_of(self.caller.role, resource_type).read
        if not self.is_consent_authority:  # it lowers V, as an administrator does
            filters.append({"terms": {"$nin": list(relations.very_restricted())}})
        if self.is_administrator or "everyone" in read:
            sight = Sight(tuple(filters), is_exact=True)
        else:
            family = await self._names(read)
            known = self._sights.get((resource_type, action))
            if known is not None and known[0] is family:
                return known[1]
            sight = self._sight_by(resource_type, read, family, filters)
        self._sights[resource_type, action] = (family, sight)
        return sight

    def _sight_by(
        self,
        resource_type: str,
        read: Sequence[Relation],
        family: OrganizationTree,
        filters: list[Filter],
    ) -> Sight:
        found = [relations.filter_of(each, resource_type, family, self.base_url) for each in read]
        named = [each for each in found if each is not None]
        if len(named) == len(found):
            filters.append(named[0] if len(named) == 1 else {"$or": named})
            return Sight(tuple(filters), is_exact=True)
        return Sight(tuple(filters), is_exact=False)

    async def panel_filter(self, resource_type: str) -> Filter | None:
        """A filter that all visible resources of a type match besides its sight; None where there is no such filter."""
        read = rule_of(self.caller.role, resource_type).read
        family = await self._names(read)
        parts: list[Filter] = []
        for relation in read:
            with reading_at(None):
                part = await self._filter_now(relation, resource_type, family)
            if part is None:
                return None
            parts.append(part)
        return {"$or": parts} if parts else None

    async def _filter_now(
        self, relation: Relation, resource_type: str, family: OrganizationTree
    ) -> Filter | None:
        """A filter that all resources with a relation match now; None where there is no such filter."""
        if relation in ("patients", "agreed", "addressed"):
            panel = await self._panels.of(self.caller.role, family)
            return None if panel is None else self._about_panel(resource_type, panel)
        if relation == "context":
            return security_contexts.filter_of(resource_type)
        if relation == "contracted":
            return {"_id": {"$in": sorted(await self.relationships.contracted(family))}}
        if relation == "attached":
            index = await self.panel_filter(attachments.INDEX)
            if index is None:
                return None
            return await attachments.attached(
                self.store, resource_type, index, self._own_base_url, MOST_IN_PANEL
            )
        return relations.filter_of(relation, resource_type, family, self.base_url)

    def _about_panel(self, resource_type: str, panel: Panel) -> Filter | None:
        about = relations.about(resource_type)
        if about is None and resource_type != "Patient":
            return None
        return self._panels.filter(None if resource_type == "Patient" else about, panel)

    async def seen(self, resource_type: str, rows: Sequence[DocumentRow]) -> set[str]:
        """The ids of those rows that may be seen, scopes aside; a row has `_id` and all of its `terms`."""
        read = rule_of(self.caller.role, resource_type).read
        return await self.related(resource_type, rows, read)

    async def readable(self, resource_type: str, rows: Sequence[DocumentRow]) -> set[str]:
        """The ids of those current rows that may be read, by scopes too; a row has all of its `terms`."""
        if not self.allows(resource_type, "r"):
            return set()
        within = self.restrictions.filters(resource_type, "r")
        if within:
            wanted: Filter = {"$and": [{"_id": {"$in": [row["_id"] for row in rows]}}, *within]}
            found = await self.store.find(resource_type, wanted, projection={"terms": 1})
            ids = {row["_id"] for row in found}
            rows = [row for row in rows if row["_id"] in ids]
        return await self.seen(resource_type, rows)

    async def related(
        self,
        resource_type: str,
        rows: Sequence[DocumentRow],
        by: Sequence[Relation],
        *,
        is_own_past: bool = False,
    ) -> set[str]:
        """The ids of those rows that have one of the relations and, where it is `patients`, may be disclosed.

        With `is_own_past` the caller is about to replace what it knows already: a label V does not hide that then.
        """
        with reading_at(None):
            return await self._related(resource_type, rows, by, is_own_past=is_own_past)

    async def _related(
        self,
        resource_type: str,
        rows: Sequence[DocumentRow],
        by: Sequence[Relation],
        *,
        is_own_past: bool,
    ) -> set[str]:
        if self.is_administrator:
            return {row["_id"] for row in rows} if "everyone" in by else set()
        passed: set[str] = set()
        family = await self._names(by)
        traits = {
            row["_id"]: (row, relations.traits_of(resource_type, row, self.base_url))
            for row in rows
        }
        for relation in sorted(by, key=lambda each: each not in KNOWN_ALREADY):
            known = self.is_consent_authority or (is_own_past and relation in KNOWN_ALREADY)
            left = {
                key: (row, of)
                for key, (row, of) in traits.items()
                if key not in passed and (known or labels.VERY_RESTRICTED not in of.labels)
            }
            passed |= await self._holding(relation, resource_type, left, family)
        return passed

    async def _holding(
        self, relation: Relation, resource_type: str, rows: Judged, family: OrganizationTree
    ) -> set[str]:
        """The keys of those that have the relation and, where it is by patients, may be disclosed."""
        match relation:
            case "patients":
                own = await self._without_proof_to_others(resource_type, rows, family)
                return await self._of_own_patients(resource_type, own, family)
            case "agreed":
                agreed = await given_records.given(self, resource_type, rows, family)
                return await self._of_own_patients(resource_type, agreed, family)
            case "addressed":
                names = await self.relationships.names(family)
                keys = self._by_terms(relation, resource_type, rows, names)
                own = {key: rows[key] for key in keys}
                return await self._of_own_patients(resource_type, own, family)
            case "attached" | "context":
                return await self._by_proxy(relation, resource_type, rows)
            case "contracted":
                groups = await self.relationships.contracted(family)
                return {key for key, (row, _) in rows.items() if relations.id_of(row) in groups}
            case "party":
                groups = await self.relationships.managed(family)
                named = family | {f"Group/{each}" for each in groups}
                return self._by_terms(relation, resource_type, rows, named)
        return self._by_terms(relation, resource_type, rows, family)

    def _by_terms(
        self, relation: Relation, resource_type: str, rows: Judged, family: OrganizationTree
    ) -> set[str]:
        return {
            key
            for key, (row, _) in rows.items()
            if relations.holds(relation, resource_type, row, family, self.caller, self.base_url)
        }

    async def _without_proof_to_others(
        self, resource_type: str, rows: Judged, family: OrganizationTree
    ) -> Judged:
        """Those that are no proof of a notice, or of one that was for the organization or somebody there."""
        if self.caller.role not in PROOF_OF_OWN:
            return rows
        proof = {
            key: each for key, each in rows.items() if relations.is_proof(resource_type, each[0])
        }
        if not proof:
            return rows
        names = await self.relationships.names(family)
        own = self._by_terms("addressed", resource_type, proof, names)
        return {key: each for key, each in rows.items() if key in own or key not in proof}

    async def _by_proxy(self, relation: Relation, resource_type: str, rows: Judged) -> set[str]:
        """The keys of those for which another resource stands that may be read; their own labels count as well."""
        proxies = await self._proxies(relation, resource_type, [row for row, _ in rows.values()])
        known: dict[str, dict[str, DocumentRow]] = {}
        for type_, row in (each for of in proxies.values() for each in of):
            known.setdefault(type_, {})[row["_id"]] = row
        seen = {
            (type_, id_)
            for type_, own in known.items()
            for id_ in await self.readable(type_, list(own.values()))
        }
        found: Judged = {}
        for key, of in proxies.items():
            proxy = next((each for each in of if (each[0], each[1]["_id"]) in seen), None)
            if proxy is not None:
                row, traits = rows[key]
                patients = relations.patients_of(*proxy, self.base_url)
                found[key] = (row, Traits(patients, traits.labels, traits.custodian))
        return await self.disclosure.of(self.caller, resource_type, found) if found else set()

    async def _proxies(
        self, relation: Relation, resource_type: str, rows: Sequence[DocumentRow]
    ) -> attachments.Proxies:
        if relation == "context":
            role = self.caller.role
            return await security_contexts.contexts(
                self.store, resource_type, rows, role, self.base_url
            )
        left = [row for row in rows if not security_contexts.is_named(resource_type, row)]
        return await attachments.indexes(self.store, resource_type, left, self._own_base_url)

    async def _of_own_patients(
        self,
        resource_type: str,
        rows: Judged,
        family: OrganizationTree,
    ) -> set[str]:
        """The keys of those that are about the organization's patients alone, and may be disclosed."""
        about = {each for _, of in rows.values() for each in of.patients}
        self.disclosure.begin(about)  # read together with what follows
        own = await self.own_patients(about, family)
        left = {
            key: (row, of) for key, (row, of) in rows.items() if of.patients and of.patients <= own
        }
        return await told_about.disclosed(self, resource_type, left, own, family)

    async def own_patients(self, patients: set[str], family: OrganizationTree) -> set[str]:
        """The patients (`Patient/p1`) that are the organization's."""
        return await relations.own_patients(self.relationships, self.caller.role, patients, family)

    def patients_of(self, resource_type: str, row: DocumentRow) -> frozenset[str]:
        """The patients (`Patient/p1`) that a resource is about."""
        return relations.patients_of(resource_type, row, self.base_url)

    async def forget_older(self, patients: Collection[str], than: float) -> bool:
        """Forget what was read about patients before a `moment`; returns whether there was any."""
        by_consent = self.disclosure.forget_older(patients, than)
        family = await self.family()
        return self.relationships.forget_older(patients, family, than) or by_consent

    async def seen_versions(
        self, versions: Sequence[ResourceVersion], action: Action, *, withdrawn: bool = False
    ) -> list[ResourceVersion]:
        """The versions that may be seen: the version itself and, unless deleted, the current resource must be.

        With `withdrawn` those that were withdrawn (`is_withdrawn`) are judged by themselves alone.
        """
        by_type: dict[str, list[ResourceVersion]] = {}
        for stored in versions:
            by_type.setdefault(stored.type, []).append(stored)
        shown: set[str] = set()
        with reading_at(None):
            for resource_type, own in by_type.items():
                if self.allows(resource_type, action):
                    ids = await self._seen_of_type(resource_type, own, action, withdrawn)
                    shown |= {f"{resource_type}/{each}" for each in ids}
        return [each for each in versions if f"{each.type}/{_key(each)}" in shown]

    async def _seen_of_type(
        self,
        resource_type: str,
        versions: Sequence[ResourceVersion],
        action: Action,
        withdrawn: bool,
    ) -> set[str]:
        current = await current_rows(self.store, resource_type, {each.id for each in versions})
        open_ = await self.with_history(resource_type, current)
        rows: list[DocumentRow] = []
        for each in versions:
            now = current.get(each.id)
            if now is None or (each.id not in open_ and not withdrawn):
                continue
            own = await row_of_version(self.store, each, now.get("by", ()))
            if (
                own is not None
                and (each.id in open_ or is_withdrawn(resource_type, own, now, self.base_url))
                and self.restrictions.match(resource_type, action, own)
            ):
                rows.append({**own, "_id": _key(each), "id": each.id})
        return await self.seen(resource_type, rows)

    async def with_history(
        self, resource_type: str, current: Mapping[str, DocumentRow]
    ) -> set[str]:
        """The ids of those current rows whose versions may be seen, each by itself: of what is visible or deleted."""
        now = [row for row in current.values() if not row.get("deleted")]
        visible = await self.seen(resource_type, now)
        return visible | {id_ for id_, row in current.items() if row.get("deleted")}


def _key(stored: ResourceVersion) -> str:
    """A key of a version: its resource's id and its number."""
    return f"{stored.id}/{stored.version}"
