"""The panel of an organization: the patients who may be its own, by which a search is narrowed before it is judged.

A practice's own hundred Encounters are among a million: a search that is not narrowed would judge them all. A panel may
hold too many patients, for each match is judged all the same, but none too few, except for changes within a second.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime

from app.attribution import claims
from app.attribution.practices import named_by
from app.authentication.caller import Role
from app.authorization.relationships import OrganizationTree, Relationships
from app.authorization.rules import BY_COVERAGE, PATIENTS
from app.fhir.codes import GROUP_KIND, PCP_PANEL
from app.runtime.batch_cache import BatchCache
from app.runtime.mongo import Document
from app.search import group_members
from app.search.group_members import acting_for
from app.search.parameter import Filter, Parameter, SearchScope
from app.search.parameters import reference
from app.search.search_parameters import parameters
from app.search.terms import escape
from app.store.store import Store

# The largest panel: beyond it, judging every match is cheaper than filtering by each patient.
MOST_IN_PANEL = 10_000
_CACHE_SECONDS = 1.0
_MOST_MERGES = 5
_AT_ONCE = 1_000

Panel = frozenset[str]
Key = tuple[Role, OrganizationTree]


class Panels:
    """One for each process."""

    def __init__(self, store: Store, relationships: Relationships, base_url: str) -> None:
        self._store = store
        self._relationships = relationships
        self._base_url = base_url
        self._known: BatchCache[Key, Panel | None] = BatchCache(
            self._read, None, lasting=_CACHE_SECONDS, most=100
        )

    async def of(self, role: Role | None, family: OrganizationTree) -> Panel | None:
        """The patients (`Patient/p1`) of a role's organizations; None where they are too many, or the role has none."""
        if role is None or not family or PATIENTS.get(role) not in ("attributed", "member"):
            return None
        return await self._known.get((role, family))

    def filter(self, about: Parameter | None, panel: Collection[str]) -> Filter:
        """The filter on resources about the panel by a search parameter; on Patients themselves where that is None."""
        if about is None:
            return {"_id": {"$in": sorted(each.partition("/")[2] for each in panel)}}
        scope = SearchScope(self._base_url, datetime.now(UTC))
        return {"terms": {"$in": list(reference.local(about, sorted(panel), scope).equal)}}

    async def _read(self, keys: list[Key]) -> Mapping[Key, Panel | None]:
        return {key: await self._panel(*key) for key in keys}

    async def _panel(self, role: Role, family: OrganizationTree) -> Panel | None:
        if PATIENTS[role] == "attributed":
            found = await self._attributed(family)
        else:
            found = await self._members(family, by_coverage=role in BY_COVERAGE)
        return None if found is None else frozenset(found)

    async def _attributed(self, family: OrganizationTree) -> set[str] | None:
        """The patients whom a source of attribution, at any time, assigns to the organizations or to their staff."""
        names = await self._providers(family)
        found: set[str] = set()
        wanted = self._terms("Patient", "general-practitioner", names)
        rows = await self._find("Patient", {"terms": {"$in": wanted}}, {"_id": 1})
        found |= {f"Patient/{row['_id']}" for row in rows}
        teams = [
            *self._terms("CareTeam", "participant", names),
            *acting_for(family, self._base_url),
        ]
        filter_ = {"$and": [{"terms": {"$in": teams}}, {"terms": "status=active"}]}
        rows = await self._find("CareTeam", filter_, {"terms": 1})
        found |= self._patients("CareTeam", "patient", rows)
        found |= await self._listed(await self._rosters(names))
        return await self._with_merged(found) if len(found) <= MOST_IN_PANEL else None

    async def _members(self, family: OrganizationTree, *, by_coverage: bool) -> set[str] | None:
        found = await self._listed(
            await self._relationships.groups(family, managed=not by_coverage)
        )
        if by_coverage and len(found) <= MOST_IN_PANEL:
            payors = self._terms("Coverage", "payor", family)
            filter_ = {"$and": [{"terms": {"$in": payors}}, {"terms": "status=active"}]}
            rows = await self._find("Coverage", filter_, {"terms": 1})
            found |= self._patients("Coverage", "beneficiary", rows)
        return found if len(found) <= MOST_IN_PANEL else None

    async def _providers(self, family: OrganizationTree) -> list[str]:
        """The organizations, the roles in them, and the practitioners in these roles."""
        organizations = self._terms("PractitionerRole", "organization", family)
        roles = await self._store.find(
            "PractitionerRole", {"terms": {"$in": organizations}}, projection={"terms": 1}
        )
        names = dict.fromkeys(sorted(family))
        for row in roles:
            names[f"PractitionerRole/{row['_id']}"] = None
            of = named_by("PractitionerRole", row, "practitioner", self._base_url)
            names.update(dict.fromkeys(of))
        return list(names)

    async def _rosters(self, names: Collection[str]) -> list[str]:
        """The ids of the Groups that are panels of any of these."""
        panels = f"code={escape(GROUP_KIND)}|{PCP_PANEL}"
        rows = await self._store.find("Group", {"terms": panels}, projection={"roster": 1})
        return [
            row["_id"]
            for row in rows
            if any(
                claims.relative(written, self._base_url) in names
                for written, _, _ in row.get("roster", {}).get("pcp", ())
            )
        ]

    async def _listed(self, groups: Sequence[str]) -> set[str]:
        found: set[str] = set()
        parameter = parameters("Group")["member"]
        for group in groups:
            rows = await self._find(claims.ROSTERS, group_members.all_of(group), {"_id": 1})
            members = (row["_id"]["m"] for row in rows)
            named = reference.targets(parameter, members, self._base_url)
            found |= {f"Patient/{id_}" for kind, id_ in named if kind == "Patient"}
            if len(found) > MOST_IN_PANEL:
                break
        return found

    async def _with_merged(self, patients: set[str]) -> set[str] | None:
        """The patients with those merged into them: a survivor's practice has the whole record. None if too many."""
        found, level = set(patients), sorted(patients)
        for _ in range(_MOST_MERGES):
            merged: set[str] = set()
            for start in range(0, len(level), _AT_ONCE):
                terms = self._terms("Patient", "link", level[start : start + _AT_ONCE])
                rows = await self._find("Patient", {"terms": {"$in": terms}}, {"_id": 1})
                merged |= {f"Patient/{row['_id']}" for row in rows}
            level = sorted(merged - found)
            found |= merged
            if not level:
                break
        return found if len(found) <= MOST_IN_PANEL else None

    async def _find(self, collection: str, filter_: Filter, projection: Document) -> list[Document]:
        """The documents found, up to one more than a panel may hold."""
        return await self._store.find(
            collection, filter_, limit=MOST_IN_PANEL + 1, projection=projection
        )

    def _patients(self, resource_type: str, code: str, rows: Iterable[Document]) -> set[str]:
        parameter = parameters(resource_type)[code]
        return {
            f"Patient/{id_}"
            for row in rows
            for kind, id_ in reference.targets(parameter, row["terms"], self._base_url)
            if kind == "Patient"
        }

    def _terms(self, resource_type: str, code: str, references: Iterable[str]) -> list[str]:
        return [
            term
            for each in references
            for term in claims.terms_for(resource_type, code, each, self._base_url)
        ]
