"""The three names of a hospital's notice: the patient, the practitioner who treats, the institution that sends.

42 CFR 482.24(d) wants them in every notice. A name that an Encounter does not have itself is looked for in what it
refers to.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from app.fhir_json import Resource
from app.proof.notice import local
from app.store import Store
from app.versions import Stored

_TREATING = frozenset({"ATND", "ADM"})

Found = Mapping[str, Stored]


async def missing(
    store: Store, encounters: Mapping[str, Resource], base_url: str
) -> dict[str, list[str]]:
    """Which of `patient`, `practitioner` and `institution` cannot be named, by the Encounters' keys."""
    first = await _read(store, _references(encounters.values(), base_url))
    roles = [each.resource() for each in first.values() if each.type == "PractitionerRole"]
    behind = [local(role.get("practitioner"), base_url) for role in roles]
    found = {**first, **await _read(store, (each for each in behind if each))}
    return {key: _missing(each, found, base_url) for key, each in encounters.items()}


def _missing(encounter: Resource, found: Found, base_url: str) -> list[str]:
    elements = {
        "patient": [encounter.get("subject", {})],
        "practitioner": list(_treating(encounter)),
        "institution": [encounter.get("serviceProvider", {})],
    }
    return [
        name
        for name, references in elements.items()
        if not any(_is_named(each, found, base_url) for each in references)
    ]


def _treating(encounter: Resource) -> Iterator[Mapping[str, Any]]:
    for participant in encounter.get("participant", ()):
        codes = {
            coding.get("code")
            for type_ in participant.get("type", ())
            for coding in type_.get("coding", ())
        }
        if codes & _TREATING and "individual" in participant:
            yield participant["individual"]


def _is_named(reference: Mapping[str, Any], found: Found, base_url: str) -> bool:
    if reference.get("display"):
        return True
    stored = found.get(local(dict(reference), base_url) or "")
    if stored is None:
        return False
    resource = stored.resource()
    if stored.type == "PractitionerRole":
        return _is_named(resource.get("practitioner", {}), found, base_url)
    names = resource.get("name")
    if isinstance(names, list):
        return any(each.get("text") or each.get("family") or each.get("given") for each in names)
    return bool(names)


def _references(encounters: Iterable[Resource], base_url: str) -> Iterator[str]:
    for encounter in encounters:
        for reference in (
            encounter.get("subject", {}),
            encounter.get("serviceProvider", {}),
            *_treating(encounter),
        ):
            place = local(dict(reference), base_url)
            if place is not None and not reference.get("display"):
                yield place


async def _read(store: Store, references: Iterable[str]) -> dict[str, Stored]:
    keys = {(type_, id_) for type_, _, id_ in (each.partition("/") for each in references)}
    found = await store.read_many(sorted(keys)) if keys else {}
    return {reference: stored for reference, stored in found.items() if not stored.deleted}
