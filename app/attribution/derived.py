"""Derived terms of an event: its patient's PCP and Groups, and its kind of facility, matched as search terms are.

Topics name such filters by `$general-practitioner`, `$group` and `$facility-type` (extension topic-filter-search).
Criteria have terms with a path of their own, `>$pcp>=Practitioner/p1`, as those at the end of a chain do: one look-up
finds a practice's one Subscription, whether it has three patients or three thousand.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from app.attribution import attribution, claims
from app.attribution.claims import Record
from app.attribution.facility import KINDS, facility_types
from app.attribution.whereabouts import without_places_left
from app.errors import Unprocessable
from app.fhir.ids import is_id
from app.fhir.json import Resource
from app.records.reader import Reader
from app.search.parameters import reference
from app.search.search_parameters import parameters
from app.settings import Settings

PCP, GROUP, FACILITY = ">$pcp>", ">$group>", ">$facility>"
# The path of each filter that a topic may name.
PATHS: Mapping[str, str] = {
    "$general-practitioner": PCP,
    "$group": GROUP,
    "$facility-type": FACILITY,
}
_TARGETS = {PCP: ("Practitioner", "PractitionerRole", "Organization"), GROUP: ("Group",)}


def is_derived(term: str) -> bool:
    """Whether a criteria's term is a derived one."""
    return term.startswith(">$")


def check(search: str, resource_type: str) -> None:
    """Raises Unprocessable where a topic cannot offer this filter for the type."""
    if search not in PATHS:
        raise Unprocessable(f"Known are {', '.join(PATHS)}", code="not-supported")
    if PATHS[search] == FACILITY and resource_type != "Encounter":
        raise Unprocessable("Only Encounters are in a facility", code="not-supported")
    if PATHS[search] != FACILITY and not _has_patient(resource_type):
        raise Unprocessable("This type is about no patient", code="not-supported")


def terms(search: str, value: str, base_url: str) -> tuple[str, ...]:
    """The terms of a filter's values, of which an event has to have one. Raises Unprocessable."""
    path = PATHS[search]
    found: list[str] = []
    for each in value.split(","):
        if path == FACILITY:
            if each not in KINDS:
                raise Unprocessable(f"A facility is one of {', '.join(KINDS)}", code="code-invalid")
            found.append(each)
        else:
            found += _references(each, _TARGETS[path], base_url)
    return tuple(f"{path}={each}" for each in dict.fromkeys(found))


def _references(value: str, targets: tuple[str, ...], base_url: str) -> list[str]:
    near = value.removeprefix(f"{base_url}/") if base_url else value
    resource_type, slash, id_ = near.rpartition("/")
    if (slash and resource_type not in targets) or not is_id(id_):
        raise Unprocessable(f"Expected a reference to {' or '.join(targets)}", code="value")
    return [near] if slash else [f"{each}/{id_}" for each in targets]


def patient_of(resource_type: str, fields: Mapping[str, Any], base_url: str) -> str | None:
    """The patient (`Patient/p1`) that a version is about, given its search fields."""
    if resource_type == "Patient":
        return f"Patient/{fields['_id']}" if "_id" in fields else None
    parameter = parameters(resource_type).get("patient")
    if parameter is None or parameter.type != "reference":
        return None
    found = reference.targets(parameter, fields["terms"], base_url)
    return next((f"Patient/{id_}" for type_, id_ in found if type_ == "Patient"), None)


def _has_patient(resource_type: str) -> bool:
    return resource_type == "Patient" or "patient" in parameters(resource_type)


class Derived:
    """The derived terms of one version, each kind computed once, as of the moment `at`.

    Without `resource` the Locations that the patient has left count too.
    """

    def __init__(
        self,
        store: Reader,
        settings: Settings,
        resource_type: str,
        fields: Mapping[str, Any],
        at: datetime,
        resource: Resource | None = None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._base_url = settings.base_url.rstrip("/")
        self._type = resource_type
        self._fields = fields
        self._at = at
        self._resource = resource
        self._found: dict[str, frozenset[str]] = {}
        self._record: Record | None = None

    async def along(self, path: str) -> frozenset[str]:
        """The terms of one path: PCP, GROUP or FACILITY."""
        if path not in self._found:
            values = await self._values(path)
            self._found[path] = frozenset(f"{path}={each}" for each in values)
        return self._found[path]

    async def _values(self, path: str) -> set[str]:
        if path == FACILITY:
            if self._type != "Encounter":
                return set()
            fields = without_places_left(self._resource, self._fields)
            return await facility_types(self._store, fields, self._settings)
        if self._record is None:
            patient = patient_of(self._type, self._fields, self._base_url)
            if patient is None:
                return set()
            self._record = await claims.read(self._store, patient, self._base_url)
        if path == GROUP:
            return set(await claims.groups(self._store, self._record.memberships, self._at))
        found = await attribution.judged(self._store, self._record, self._at, self._settings)
        return {each for provider in found.providers for each in provider.references}
