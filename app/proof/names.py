"""The required names (subscriptions/notices/required_names.py) that notices lack, for many of them at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from app.authorization.subject_store import is_everybodys
from app.fhir.json import Resource
from app.proof.notice import local
from app.records.reader import Reader
from app.records.versions import ResourceVersion
from app.subscriptions.notices.required_names import is_treating, missing_names


async def missing(
    store: Reader, encounters: Mapping[str, Resource], base_url: str
) -> dict[str, list[str]]:
    """The names that are missing (of `patient`, `practitioner`, `institution`), by the Encounters' keys.

    An Encounter's own patient and the directory have names; whatever else it refers to counts as without one.
    """
    first = await _read(store, _references(encounters.values(), base_url))
    roles = [each.resource() for each in first.values() if each.type == "PractitionerRole"]
    behind = [local(role.get("practitioner"), base_url) for role in roles]
    found = {**first, **await _read(store, (each for each in behind if each))}
    known = {reference: stored.resource() for reference, stored in found.items()}
    return {
        key: [str(name) for name in missing_names(each, _its_own(each, known, base_url), base_url)]
        for key, each in encounters.items()
    }


def _its_own(
    encounter: Resource, known: Mapping[str, Resource], base_url: str
) -> Mapping[str, Resource]:
    subject = local(encounter.get("subject"), base_url)
    return {
        key: each
        for key, each in known.items()
        if key == subject or is_everybodys(each["resourceType"])
    }


def _references(encounters: Iterable[Resource], base_url: str) -> Iterator[str]:
    for encounter in encounters:
        for reference in (
            encounter.get("subject", {}),
            encounter.get("serviceProvider", {}),
            *(
                each.get("individual", {})
                for each in encounter.get("participant", ())
                if is_treating(each)
            ),
        ):
            place = local(dict(reference), base_url)
            if place is not None and not reference.get("display"):
                yield place


async def _read(store: Reader, references: Iterable[str]) -> dict[str, ResourceVersion]:
    keys = {(type_, id_) for type_, _, id_ in (each.partition("/") for each in references)}
    found = await store.read_many(sorted(keys)) if keys else {}
    return {reference: stored for reference, stored in found.items() if not stored.deleted}
