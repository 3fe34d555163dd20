"""The claims about a patient's PCP in care teams, Patient.generalPractitioner and rosters, each with its period.

https://hl7.org/fhir/R4/careteam.html, https://hl7.org/fhir/R4/patient.html, https://hl7.org/fhir/R4/group.html
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from app.fhir import json as fhir_json
from app.fhir.codes import ATTRIBUTION_PERIOD, PCP_ROLES, SNOMED
from app.fhir.json import Resource
from app.records.reader import Reader
from app.search import group_members, spans
from app.search.parameter import SearchScope
from app.search.parameters import reference
from app.search.search_parameters import parameters
from app.search.spans import Span
from app.search.terms import EVERY

Source = Literal["care-team", "general-practitioner", "group"]
ROSTERS = "group_members"
# A chain of merges longer than this is a mistake.
_MOST_MERGES = 5
# Where a CareTeam's document has the keys of the claims that practices or hospitals began (app/resources/care_team.py),
# and the fields that its claims are read from.
FROM_PROVIDERS = "from_providers"
TEAM_FIELDS = {"text": 1, f"private.{FROM_PROVIDERS}": 1, "by": 1}
_NO_ROSTER: Mapping[str, Any] = {"pcp": ()}
_PROVIDERS = frozenset({"Practitioner", "PractitionerRole", "Organization"})


class Claim(NamedTuple):
    """One source's claim that `reference` is the patient's PCP in a span; `behalf` is the organization acted for.

    `from_provider`: a practice or hospital said so in a CareTeam, which may be the one that gains by it.
    """

    reference: str
    span: Span
    behalf: str | None = None
    from_provider: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """The claims of a patient's own record, and the patient's memberships in Groups.

    `patient` is the survivor where the patient was merged, at the end of the `way`; `known` is False where that Patient
    is not stored.
    """

    way: tuple[str, ...]
    known: bool
    claims: Mapping[Source, Sequence[Claim]]
    memberships: Mapping[str, Sequence[Span]]

    @property
    def patient(self) -> str:
        return self.way[-1]


async def read(store: Reader, patient: str, base_url: str) -> Record:
    """The record of a patient (`Patient/p1`) as it is now, merges followed."""
    followed = [patient]
    while True:
        members = list(terms_for("Group", "member", patient, base_url))
        found, teams, rows = await store.find_together(
            (
                ("Patient", {"_id": patient[8:], "terms": EVERY}, {"text": 1}),
                ("CareTeam", teams_of([patient], base_url), TEAM_FIELDS),
                (ROSTERS, {"_id.m": {"$in": members}}, {"when": 1}),
            )
        )
        resource = fhir_json.decode_stored(found[0]["text"]) if found else {}
        survivor = survivor_of(resource, base_url)
        if survivor is None or survivor in followed or len(followed) > _MOST_MERGES:
            break
        followed.append(survivor)
        patient = survivor
    claims: dict[Source, Sequence[Claim]] = {
        "care-team": [claim for team in teams for claim in of_stored_team(team, base_url)],
        "general-practitioner": list(of_patient(resource, base_url)),
    }
    memberships = group_members.memberships_in(rows)
    return Record(tuple(followed), bool(found), claims, memberships)


async def of_rosters(
    store: Reader, memberships: Mapping[str, Sequence[Span]], base_url: str
) -> list[Claim]:
    """The claims of the panels among these Groups about a member."""
    return by_rosters(await rosters(store, memberships), memberships, base_url)


def by_rosters(
    found: Mapping[str, Any], memberships: Mapping[str, Sequence[Span]], base_url: str
) -> list[Claim]:
    """`of_rosters` from rosters that have been read, by the id of their Group."""
    return [
        Claim(named, spans.within(span, (low, high)))
        for group, of in memberships.items()
        for written, low, high in found.get(group, _NO_ROSTER)["pcp"]
        if (named := relative(written, base_url)) is not None
        for span in of
    ]


async def groups(
    store: Reader, memberships: Mapping[str, Sequence[Span]], at: datetime
) -> list[str]:
    """The Groups (`Group/g1`) of the memberships that hold at a moment, if actual persons' and active (`roster`)."""
    current = [group for group, of in memberships.items() if any(spans.holds(s, at) for s in of)]
    found = await rosters(store, current)
    return [f"Group/{group}" for group, roster in found.items() if roster["live"]]


def of_care_team(team: Resource, base_url: str) -> Iterator[Claim]:
    """The primary care providers among the participants of an active team."""
    if team.get("status") != "active":
        return
    whole = spans.of(team.get("period"))
    for participant in team.get("participant", ()):
        named = relative(participant.get("member", {}).get("reference"), base_url)
        if named is None or not any(_is_pcp(role) for role in participant.get("role", ())):
            continue
        behalf = relative(participant.get("onBehalfOf", {}).get("reference"), base_url)
        yield Claim(named, spans.within(whole, spans.of(participant.get("period"))), behalf)


def of_stored_team(row: Mapping[str, Any], base_url: str) -> Iterator[Claim]:
    """`of_care_team` of a document with TEAM_FIELDS, each claim with whose it is.

    Of teams that were stored before that was kept, what any organization wrote counts as a provider's.
    """
    begun = row.get("private", {}).get(FROM_PROVIDERS)
    for claim in of_care_team(fhir_json.decode_stored(row["text"]), base_url):
        is_own = bool(row.get("by")) if begun is None else key(claim) in begun
        yield claim._replace(from_provider=is_own)


def key(claim: Claim) -> str:
    """A text by which a claim is known again."""
    return " ".join(str(each) for each in (claim.reference, claim.behalf, *claim.span))


def of_patient(patient: Resource, base_url: str) -> Iterator[Claim]:
    """Patient.generalPractitioner, dated by our extension on the reference where it has one."""
    for each in patient.get("generalPractitioner", ()):
        named = relative(each.get("reference"), base_url)
        if named is not None:
            periods = [
                extension.get("valuePeriod")
                for extension in each.get("extension", ())
                if extension.get("url") == ATTRIBUTION_PERIOD
            ]
            yield Claim(named, spans.of(periods[0]) if periods else spans.ALWAYS)


def relative(written: str | None, base_url: str) -> str | None:
    """`Practitioner/p1` for a reference to a provider on this server, whatever its form; else None."""
    if not written:
        return None
    near = written.removeprefix(f"{base_url}/") if base_url else written
    near = near.partition("/_history/")[0]
    resource_type, slash, rest = near.partition("/")
    return near if slash and "/" not in rest and resource_type in _PROVIDERS else None


def terms_for(resource_type: str, code: str, reference_: str, base_url: str) -> tuple[str, ...]:
    """The search terms of which a resource has one if it refers to `reference_` by a search parameter."""
    scope = SearchScope(base_url, datetime.now(UTC))
    return reference.local(parameters(resource_type)[code], [reference_], scope).equal


def teams_of(patients: Collection[str], base_url: str) -> dict[str, Any]:
    """The filter on the active CareTeams of patients (`Patient/p1`)."""
    terms = [t for each in patients for t in terms_for("CareTeam", "patient", each, base_url)]
    return {"$and": [{"terms": {"$in": terms}}, {"terms": "status=active"}]}


async def rosters(store: Reader, ids: Collection[str]) -> dict[str, Any]:
    """The `roster` fields of Groups (group_members.py), by id."""
    if not ids:
        return {}
    rows = await store.find("Group", {"_id": {"$in": list(ids)}}, projection={"roster": 1})
    return {row["_id"]: row["roster"] for row in rows if "roster" in row}


def survivor_of(patient: Resource, base_url: str) -> str | None:
    """The patient that this one was replaced by."""
    for link in patient.get("link", ()):
        if link.get("type") == "replaced-by":
            other: str = link.get("other", {}).get("reference", "")
            other = other.removeprefix(f"{base_url}/") if base_url else other
            if other.startswith("Patient/") and other.count("/") == 1:
                return other
    return None


def _is_pcp(role: Mapping[str, Any]) -> bool:
    return any(
        coding.get("system") == SNOMED and coding.get("code") in PCP_ROLES
        for coding in role.get("coding", ())
    )
