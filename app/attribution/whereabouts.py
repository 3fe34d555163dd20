"""The facility of a stay, as far as needed to distinguish another facility from another bed.

A move inside one facility must never look like a transfer, so an unknown property never differs. A facility has up to
three properties, and each is compared with its like:

    provider    Encounter.serviceProvider, departments and teams counted as what they are part of
    site        the Location of physical type `si` that the current place is part of
    owner       Location.managingOrganization, where there is no site
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.fhir import instants
from app.fhir.encounter_status import recorded_end
from app.fhir.json import Resource
from app.records.reader import Reader

_SITE = "si"
# Codes of http://terminology.hl7.org/CodeSystem/organization-type for parts of a facility.
_PARTS = frozenset({"dept", "team"})
# Longer chains of partOf are taken for circles.
_MOST = 12


@dataclass(frozen=True, slots=True)
class Facility:
    """A facility's properties. A provider or owner comes with all that it is part of, itself first."""

    provider: tuple[str, ...] = ()
    site: str = ""
    owner: tuple[str, ...] = ()

    def differs(self, other: Facility) -> bool:
        """Whether the two are certainly not the same."""
        if _apart(self.provider, other.provider):
            return True
        if self.site and other.site:
            return self.site != other.site
        return not (self.provider and other.provider) and _apart(self.owner, other.owner)


def _apart(one: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return bool(one and other) and one[0] not in other and other[0] not in one


async def facility_of(store: Reader, stay: Resource, base_url: str = "") -> Facility:
    """The facility of an Encounter's version, by its Locations and Organizations as they are now."""
    reader = _Reader(store, base_url.rstrip("/"))
    provider = await reader.organization(stay.get("serviceProvider"))
    site, owner = "", None
    for reference in current_locations(stay)[:1]:
        for key, location in (await reader.chain("Location", {"reference": reference})).items():
            owner = owner or location.get("managingOrganization")
            if not site and _SITE in _codes(location.get("physicalType", {})):
                site = key
    return Facility(provider, site, await reader.organization(owner) if not site else ())


def current_locations(stay: Resource) -> list[str]:
    """The references to the patient's current Locations: the active ones, else those without status and end.

    An end that was still to come when the version was stored is none.
    """
    locations = stay.get("location", ())
    stored_at = stay.get("meta", {}).get("lastUpdated")
    at = instants.END if stored_at is None else instants.moment(stored_at)
    active = [each for each in locations if each.get("status") == "active"]
    unsaid = [
        each
        for each in locations
        if "status" not in each and recorded_end(each.get("period", {}), at) is None
    ]
    return [
        reference
        for each in active or unsaid
        if (reference := each.get("location", {}).get("reference"))
    ]


def without_places_left(stay: Resource | None, fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """The search fields of an Encounter without the Locations that the patient has left."""
    current = current_locations(stay) if stay is not None else []
    if not current:
        return fields
    stays = {f"location={reference}" for reference in current}
    terms = [term for term in fields["terms"] if term in stays or not term.startswith("location=")]
    return {**fields, "terms": terms}


class _Reader:
    def __init__(self, store: Reader, base_url: str) -> None:
        self._store = store
        self._base_url = base_url

    async def organization(self, reference: Mapping[str, Any] | None) -> tuple[str, ...]:
        """An organization and all that it is part of, without departments and teams at the beginning."""
        if reference is None:
            return ()
        chain = await self.chain("Organization", reference)
        keys = list(chain)
        while len(keys) > 1 and _is_part(chain[keys[0]]):
            keys.pop(0)
        return tuple(keys)

    async def chain(self, resource_type: str, reference: Mapping[str, Any]) -> dict[str, Resource]:
        """A resource and what it is part of, by reference, as far as they are known here."""
        found: dict[str, Resource] = {}
        at: Mapping[str, Any] | None = reference
        while at is not None and len(found) < _MOST:
            key = self._relative(str(at.get("reference", "")))
            type_, _, id_ = key.partition("/")
            if type_ != resource_type or key in found:
                break
            stored = await self._store.read(type_, id_)
            if stored is None or stored.deleted:
                found[key] = {}
                break
            found[key] = stored.resource()
            at = found[key].get("partOf")
        return found

    def _relative(self, reference: str) -> str:
        near = reference.removeprefix(f"{self._base_url}/") if self._base_url else reference
        return near.partition("/_history/")[0]


def _is_part(organization: Resource) -> bool:
    return any(not _PARTS.isdisjoint(_codes(each)) for each in organization.get("type", ()))


def _codes(concept: Mapping[str, Any]) -> set[str]:
    return {coding.get("code", "") for coding in concept.get("coding", ())}
