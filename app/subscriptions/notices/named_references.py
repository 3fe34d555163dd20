"""The names beside the references of a notice with full resources: `Reference.display` of who and what it leads to.

42 CFR 482.24(d) asks for the names of patient, treating practitioner and sending institution, Carequality's guide for
push notifications also for the diagnosis: https://build.fhir.org/ig/Carequality/CEQSubscription/artifacts.html
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from app.fhir.json import Resource
from app.fhir.resource_names import name_of
from app.subscriptions.notices.required_names import key_of

# Reads those of these references (`Patient/p1`) that the recipient may be told.
ReadTold = Callable[[Sequence[str]], Awaitable[Mapping[str, Resource]]]

# The references that get a name, by the type that has them.
_NAMED: Mapping[str, tuple[tuple[str, ...], ...]] = {
    resource_type: tuple(tuple(path.split(".")) for path in paths)
    for resource_type, paths in {
        "CarePlan": ("subject", "author", "careTeam", "addresses"),
        "CareTeam": ("subject", "participant.member", "managingOrganization"),
        "Condition": ("subject", "recorder", "asserter"),
        "Encounter": (
            "subject",
            "participant.individual",
            "diagnosis.condition",
            "location.location",
            "serviceProvider",
        ),
        "EpisodeOfCare": (
            "patient",
            "diagnosis.condition",
            "managingOrganization",
            "careManager",
            "team",
        ),
        "Location": ("managingOrganization",),
        "PractitionerRole": ("practitioner", "organization"),
        "ServiceRequest": ("subject", "requester", "performer", "reasonReference"),
        "Task": ("for", "requester", "owner"),
    }.items()
}
# A role is read, then its practitioner.
_READS = 2


async def names_for(
    carried: Iterable[Resource], read: ReadTold, base_url: str
) -> Mapping[str, str]:
    """The names that references of the carried resources lack, by what they refer to.

    `carried` are the resources of a notice. What they refer to beyond each other is read by `read`; what that does not
    give has no name here.
    """
    known = {f"{each['resourceType']}/{each['id']}": each for each in carried}
    nameless = {key for each in known.values() for key in _nameless(each, base_url)}
    wanted = nameless
    for _ in range(_READS):
        wanted = wanted - known.keys()
        if not wanted:
            break
        found = await read(sorted(wanted))
        known |= found
        roles = (each for each in found.values() if each["resourceType"] == "PractitionerRole")
        wanted = {key for role in roles if (key := key_of(role.get("practitioner"), base_url))}
    names = ((key, _name(known[key], known, base_url)) for key in nameless if key in known)
    return {key: name for key, name in names if name}


def with_names(resource: Resource, names: Mapping[str, str], base_url: str) -> Resource:
    """The resource with these names beside its references; a name that its writer gave stays."""

    def named(reference: Resource) -> Resource:
        name = names.get(key_of(reference, base_url))
        return (
            reference if name is None or _says_name(reference) else {**reference, "display": name}
        )

    for path in _NAMED.get(resource["resourceType"], ()) if names else ():
        resource = _changed(resource, path, named)
    return resource


def _name(resource: Resource, known: Mapping[str, Resource], base_url: str) -> str:
    """The name of a resource; that of a role is its practitioner's."""
    if resource["resourceType"] != "PractitionerRole":
        return name_of(resource)
    practitioner = resource.get("practitioner", {})
    behind = known.get(key_of(practitioner, base_url))
    return practitioner.get("display") or ("" if behind is None else name_of(behind))


def _nameless(resource: Resource, base_url: str) -> Iterator[str]:
    """What the references without a name lead to, as far as it can be here."""
    for path in _NAMED.get(resource["resourceType"], ()):
        for reference in references_at(resource, path):
            key = key_of(reference, base_url)
            if key.count("/") == 1 and not _says_name(reference):
                yield key


def references_at(value: Any, path: Sequence[str]) -> Iterator[Resource]:
    """The elements at a path of element names, whatever lists lie between."""
    if isinstance(value, list):
        for each in value:
            yield from references_at(each, path)
    elif isinstance(value, dict):
        if not path:
            yield value
        elif path[0] in value:
            yield from references_at(value[path[0]], path[1:])


def _says_name(reference: Resource) -> bool:
    """Whether a reference has a name, or says why it has none."""
    return "display" in reference or "_display" in reference


def _changed(value: Any, path: Sequence[str], change: Callable[[Resource], Resource]) -> Any:
    """A copy of the value in which what lies at the path is changed."""
    if isinstance(value, list):
        return [_changed(each, path, change) for each in value]
    if not isinstance(value, dict):
        return value
    if not path:
        return change(value)
    if path[0] not in value:
        return value
    return {**value, path[0]: _changed(value[path[0]], path[1:], change)}
