"""Whose resources an export holds: everybody's, any patient's, or those of a Group's members or of named patients.

https://hl7.org/fhir/uv/bulkdata/STU2/export.html#endpoint---group-of-patients

Members are those of the Group's version at the time that the export shows, whose period holds then. With `_since`, who
was no member yet at that time comes with all there is of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from app.bulk.export_request import REFERRED, ExportRequest
from app.bulk.history_at import as_of
from app.errors import Gone
from app.fhir import definitions, json as fhir_json
from app.fhir.json import Resource
from app.records.reader import Reader
from app.search import compartment, spans
from app.search.parameter import Condition, Parameter, SearchScope
from app.search.parameters import reference
from app.search.parameters.special import Ids
from app.search.search_parameters import parameters
from app.search.terms import Terms, any_of

# Patients whose resources of a type are read together.
TOGETHER = 25


@dataclass(frozen=True, slots=True)
class Part:
    """Patients that are read together, and the time since which; without patients it is everybody's."""

    patients: tuple[str, ...] = ()
    since: datetime | None = None


@dataclass(slots=True)
class Cohort:
    """The parts of an export. Where several patients' parts share a resource, it belongs to the first of them.

    `referred` are ids of types that are in no compartment, each with its part (referred.py).
    """

    asked: ExportRequest
    parts: Sequence[Part]
    scope: SearchScope
    referred: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    _part_of: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number, part in enumerate(self.parts):
            self._part_of.update(dict.fromkeys(part.patients, number))

    @property
    def _names_patients(self) -> bool:
        return self.asked.level == "group" or bool(self.asked.patients)

    def condition(self, resource_type: str, number: int) -> Condition | None:
        """What a resource of this part is like; None for every resource of the type."""
        if self.asked.level == "system":
            return None
        if not self._names_patients:
            return _of_any_patient(resource_type, self.scope)
        patients = self.parts[number].patients
        if resource_type in REFERRED:
            ids = self.referred.get(resource_type, {})
            return Ids(tuple(each for each, part in ids.items() if part == number))
        if resource_type == "Patient":
            return Ids(patients)
        if resource_type == "Group":  # another roster would tell of other people
            is_own = self.asked.level == "group" and number == 0
            return Ids((str(self.asked.group),) if is_own else ())
        names = [f"Patient/{each}" for each in patients]
        return any_of(reference.local(each, names, self.scope) for each in _leading(resource_type))

    def is_first(self, resource_type: str, terms: Sequence[str], number: int) -> bool:
        """Whether a resource with these terms, which this part has, is in no part before it."""
        if number == 0 or resource_type in ("Patient", "Group", *REFERRED):
            return True
        return all(part >= number for part in self._parts_of(resource_type, terms))

    def has(self, resource_type: str, resource_id: str, terms: Sequence[str]) -> bool:
        """Whether any part has a resource with this id and these terms."""
        if not self._names_patients:
            found = self.condition(resource_type, 0)
            return found is None or found.matches({"_id": resource_id, "terms": terms})
        if resource_type in REFERRED:
            return resource_id in self.referred.get(resource_type, {})
        if resource_type == "Patient":
            return resource_id in self._part_of
        if resource_type == "Group":
            return resource_id == self.asked.group
        return any(True for _ in self._parts_of(resource_type, terms))

    def _parts_of(self, resource_type: str, terms: Sequence[str]) -> Iterator[int]:
        for each in _leading(resource_type):
            for kind, name in reference.targets(each, terms, self.scope.base_url):
                if kind == "Patient" and name in self._part_of:
                    yield self._part_of[name]


async def cohort(store: Reader, asked: ExportRequest, at: datetime, scope: SearchScope) -> Cohort:
    """Whose resources these are at a time. Raises Gone where the Group is no more."""
    if asked.level == "group":
        parts = await _parts_of_group(store, asked, at, scope.base_url)
    elif asked.patients:
        parts = list(_parts(sorted(asked.patients), asked.since))
    else:
        parts = [Part(since=asked.since)]
    return Cohort(asked, parts, scope)


async def members_at(store: Reader, group: str, at: datetime, base_url: str) -> set[str] | None:
    """The patients that are members then; None where there was no such Group."""
    stored = await as_of(store, "Group", group, at)
    if stored is None or stored.deleted:
        return None
    # A thread: a Group may have 100,000 members.
    resource = await asyncio.to_thread(fhir_json.decode_stored, stored.text)
    return set(_patients(resource, at, base_url))


async def _parts_of_group(
    store: Reader, asked: ExportRequest, at: datetime, base_url: str
) -> Sequence[Part]:
    members = await members_at(store, str(asked.group), at, base_url)
    if members is None:
        raise Gone("The Group was deleted")
    if asked.patients:
        members &= set(asked.patients)
    joined: set[str] = set()
    if asked.since is not None:
        before = await members_at(store, str(asked.group), asked.since, base_url)
        joined = members - (before or set())
    parts = [*_parts(sorted(joined), None), *_parts(sorted(members - joined), asked.since)]
    return parts or [Part(since=asked.since)]


def _parts(patients: Sequence[str], since: datetime | None) -> Iterator[Part]:
    for start in range(0, len(patients), TOGETHER):
        yield Part(tuple(patients[start : start + TOGETHER]), since)


def _patients(group: Resource, at: datetime, base_url: str) -> Iterator[str]:
    for member in group.get("member", ()):
        written = member.get("entity", {}).get("reference", "")
        near = written.removeprefix(f"{base_url}/") if base_url else written
        kind, _, name = near.partition("/_history/")[0].partition("/")
        is_member = member.get("inactive") is not True
        if kind == "Patient" and is_member and spans.holds(spans.of(member.get("period")), at):
            yield name


def _leading(resource_type: str) -> Iterable[Parameter]:
    """The search parameters that put a resource of the type into a patient's compartment."""
    known = parameters(resource_type)
    codes = definitions.compartment("Patient").get(resource_type, ())
    return [known[code] for code in codes if code in known]


def _of_any_patient(resource_type: str, scope: SearchScope) -> Condition | None:
    if resource_type == "Patient":
        return None
    if resource_type == "Group":
        return Terms(equal=("type=person",))
    if resource_type not in compartment.types("Patient"):
        return Ids(())
    anybody = [reference.local(each, ["Patient/"], scope) for each in _leading(resource_type)]
    return Terms(prefixes=tuple(term for each in anybody for term in each.equal))
