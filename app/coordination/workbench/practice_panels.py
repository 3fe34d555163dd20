"""Panels: the members of each practice with the reason, as Groups that could be kept as rosters, and as CSV.

https://hl7.org/fhir/R4/group.html; docs/routing.md says which source counts when.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from app.attribution.practices import Provider
from app.automation.reactions import stable_id
from app.context import Context
from app.coordination.workbench.people import NOBODY, Person, of_members
from app.coordination.workbench.population import Population, providers
from app.fhir.codes import ATTRIBUTION_SOURCE, GROUP_CHARACTERISTIC, GROUP_KIND, PCP, PCP_PANEL
from app.fhir.json import Resource
from app.proof.timeliness import names_of

COLUMNS = (
    *("practice", "practice_name", "patient", "name", "birth_date", "identifier"),
    *("practitioner", "practitioner_role", "source", "since"),
)


@dataclass(frozen=True, slots=True)
class Panels:
    """The members of each practice (`Organization/o1`), each with who there is the PCP, in the order of their ids."""

    members: Mapping[str, Sequence[tuple[str, Provider]]]
    people: Mapping[str, Person]
    names: Mapping[str, str]

    def __len__(self) -> int:
        return sum(map(len, self.members.values()))


async def panels(context: Context, population: Population, practice: str | None) -> Panels:
    """The panels of a population; with a practice that one's alone."""
    found: dict[str, list[tuple[str, Provider]]] = {}
    patients = frozenset(population.since)
    for patient, of in sorted((await providers(context, patients)).items()):
        for provider in of:
            if practice in (None, provider.organization):
                found.setdefault(provider.practice, []).append((patient, provider))
    listed = {patient for of_practice in found.values() for patient, _ in of_practice}
    people = await of_members(context, listed)
    return Panels(dict(sorted(found.items())), people, await names_of(context, found.keys()))


def groups(found: Panels) -> Iterator[Resource]:
    """A Group for each practice; the same practice has the same id whenever it is asked for."""
    for practice, members in found.members.items():
        yield {
            "resourceType": "Group",
            "id": stable_id("panel", practice),
            "active": True,
            "type": "person",
            "actual": True,
            "code": _concept(GROUP_KIND, PCP_PANEL),
            "name": found.names.get(practice) or practice,
            "quantity": len(members),
            "characteristic": [
                {
                    "code": _concept(GROUP_CHARACTERISTIC, PCP),
                    "valueReference": {"reference": practice},
                    "exclude": False,
                }
            ],
            "member": [_member(found, patient, provider) for patient, provider in members],
        }


def _member(found: Panels, patient: str, provider: Provider) -> Resource:
    entity: Resource = {"reference": patient}
    name = found.people.get(patient, NOBODY).name
    if name:
        entity["display"] = name
    member: Resource = {
        "extension": [{"url": ATTRIBUTION_SOURCE, "valueCode": provider.source}],
        "entity": entity,
    }
    if provider.since is not None:
        member["period"] = {"start": provider.since.date().isoformat()}
    return member


def _concept(system: str, code: str) -> Resource:
    return {"coding": [{"system": system, "code": code}]}


def lines(found: Panels) -> Iterator[Sequence[object]]:
    """The cells of each member, as COLUMNS has them."""
    for practice, members in found.members.items():
        for patient, provider in members:
            person = found.people.get(patient, NOBODY)
            yield (
                practice,
                found.names.get(practice),
                patient,
                person.name,
                person.birth_date,
                person.identifier,
                provider.practitioner,
                provider.practitioner_role,
                provider.source,
                None if provider.since is None else provider.since.date(),
            )
