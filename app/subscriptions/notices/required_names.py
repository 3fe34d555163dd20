"""The three names that a notice of a hospital stay must have: patient, treating practitioner, sending institution.

42 CFR 482.24(d), 482.61(f), 485.638(d)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from app.fhir.json import Resource

Name = Literal["patient", "practitioner", "institution"]

_PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
# The attending, and the one who admitted.
_TREATING = frozenset({"ATND", "ADM"})


def missing_names(
    encounter: Resource, resources: Mapping[str, Resource], base_url: str = ""
) -> list[Name]:
    """The names that neither an Encounter nor the resources it refers to have.

    `resources` are the known ones by relative reference (`Patient/p1`): for a PractitionerRole also its Practitioner,
    for a Location also its managing Organization. A reference's `display` is a name.
    """
    known = _Known(resources, base_url)
    treating = [
        each.get("individual") for each in encounter.get("participant", ()) if is_treating(each)
    ]
    found: dict[Name, bool] = {
        "patient": known.names(encounter.get("subject")),
        "practitioner": any(known.names(each) for each in treating),
        "institution": any(known.names(each) for each in institutions(encounter, resources)),
    }
    return [name for name, is_known in found.items() if not is_known]


def is_treating(participant: Mapping[str, Any]) -> bool:
    """Whether an Encounter.participant is the attending or the admitting practitioner."""
    return any(
        coding.get("code") in _TREATING and coding.get("system", _PARTICIPATION) == _PARTICIPATION
        for type_ in participant.get("type", ())
        for coding in type_.get("coding", ())
    )


def institutions(encounter: Resource, resources: Mapping[str, Resource]) -> Iterator[Resource]:
    """References to the organization that provides a stay, likeliest first: its own, else that of its places."""
    if "serviceProvider" in encounter:
        yield encounter["serviceProvider"]
    for place in encounter.get("location", ()):
        location = resources.get(key_of(place.get("location")), {})
        if "managingOrganization" in location:
            yield location["managingOrganization"]


def key_of(reference: Mapping[str, Any] | None, base_url: str = "") -> str:
    """A reference without the server's own base and without a version: `Patient/p1`; empty where it is no literal."""
    literal = str((reference or {}).get("reference", ""))
    near = literal.removeprefix(f"{base_url}/") if base_url else literal
    return near.partition("/_history/")[0]


def has_name(resource: Resource) -> bool:
    """Whether a Patient, Practitioner, Organization or Location has a name."""
    name = resource.get("name")
    if isinstance(name, list):
        return any({"text", "family", "given"} & each.keys() for each in name)
    return bool(name)


class _Known:
    """The resources in which names are looked up."""

    def __init__(self, resources: Mapping[str, Resource], base_url: str) -> None:
        self._resources = resources
        self._base_url = base_url

    def names(self, reference: Mapping[str, Any] | None) -> bool:
        """Whether the target of a reference has a name, in the reference's display or in the resource."""
        if reference is None:
            return False
        if reference.get("display"):
            return True
        resource = self._resources.get(key_of(reference, self._base_url), {})
        if resource.get("resourceType") == "PractitionerRole":
            return self.names(resource.get("practitioner"))
        return has_name(resource)
