"""The relations of rules.py between a resource and an organization, tested on the search terms of a document.

Only search terms are read, so a row of any search can be judged without its text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from app.attribution import claims
from app.authentication.caller import Caller, Role
from app.authorization.relationships import OrganizationTree, Relationships
from app.authorization.rules import (
    BY_COVERAGE,
    LEADS_TO,
    LEADS_TO_OWN,
    LEADS_TO_READ,
    OWNERS,
    PATIENTS,
    SPEAKS_FOR,
    Relation,
)
from app.consent import labels
from app.consent.labels import Labels
from app.fhir.codes import EVENT_NOTICE, NOTICE_KIND, SUBSCRIPTION_ORIGIN, SUBSCRIPTION_OWNER
from app.search.expression import follow
from app.search.parameter import Filter, Parameter
from app.search.parameters import reference
from app.search.search_parameters import parameters, standard
from app.search.terms import SENDER, escape, senders, unescape

# Search parameters that rules read besides those of OWNERS and of these tables.
_FURTHER = {"Group": "managing-entity", "Provenance": "target"}
_NAMING = (SPEAKS_FOR, LEADS_TO, LEADS_TO_READ, LEADS_TO_OWN)
# The `_id` and `terms` of a document. A version's `_id` identifies the version, and its `id` the resource.
DocumentRow = Mapping[str, Any]
# The term by which the proof of a notice is known (app/proof).
PROOF = f"category={escape(NOTICE_KIND)}|{escape(EVENT_NOTICE)}"
_SECURITY = "_security="
_KEPT = tuple(f"_tag={SUBSCRIPTION_ORIGIN}|{origin}" for origin in ("contract", "endpoint"))
_TOPIC_ID = "topic-"
_TOPIC = "code=http://hl7.org/fhir/fhir-types|SubscriptionTopic"


def id_of(row: DocumentRow) -> str:
    """The id of the resource."""
    own: str = row.get("id") or row["_id"]
    return own


@cache
def about(resource_type: str) -> Parameter | None:
    """The search parameter that says which patients a resource is about."""
    known = standard(resource_type)
    found = known.get("patient") or known.get("subject")
    return found if found is not None and found.type == "reference" else None


@dataclass(frozen=True, slots=True)
class Traits:
    """The traits that decide about most resources: the patients (`Patient/p1`) that one is about, and its labels.

    `custodian` is the organization that made it, None where none did.
    """

    patients: frozenset[str]
    labels: Labels
    custodian: str | None


def traits_of(resource_type: str, row: DocumentRow, base_url: str) -> Traits:
    """The traits of a resource, from one pass over its terms. A Patient is about itself."""
    patients, codings = set(), []
    custodian: str | None = None
    starts = _starts(resource_type, base_url)
    if resource_type == "Patient":
        patients.add(f"Patient/{id_of(row)}")
    for term in row["terms"]:
        if term.startswith(starts):
            if term.startswith(_SECURITY):
                codings.append(term[len(_SECURITY) :].partition("|"))
            elif term.startswith(SENDER):
                if custodian is None:  # the first is that of the one who made it
                    custodian = term[len(SENDER) :]
            else:
                # A reference with a version has a second term without it.
                name = term[term.index("Patient/") :]
                if name.count("/") == 1:
                    patients.add(name)
    given = _labels(codings) if codings else labels.NONE
    return Traits(frozenset(patients), given, custodian or None)


def patients_of(resource_type: str, row: DocumentRow, base_url: str) -> frozenset[str]:
    """The patients that a resource is about."""
    return traits_of(resource_type, row, base_url).patients


@cache
def _starts(resource_type: str, base_url: str) -> tuple[str, ...]:
    """The prefixes of the terms that traits are read from."""
    parameter = None if resource_type == "Patient" else about(resource_type)
    if parameter is None:
        return (_SECURITY, SENDER)
    keys = {parameter.key, parameter.shared or parameter.key}
    near = [f"{key}=Patient/" for key in keys]
    return (
        _SECURITY,
        SENDER,
        *near,
        *([f"{key}={base_url}/Patient/" for key in keys] if base_url else []),
    )


def _labels(parts: Iterable[tuple[str, str, str]]) -> Labels:
    codings = []
    for system, bar, code in parts:
        if bar:
            coding = {"code": unescape(code)}
            codings.append(coding | ({"system": unescape(system)} if system else {}))
    return labels.codes(codings)


@cache
def very_restricted() -> tuple[str, ...]:
    """The search terms of the label V, which only administrators and consent authorities read."""
    return tuple(f"{_SECURITY}{system}|V" for system in ("", *sorted(labels.SYSTEMS)))


def named(resource_type: str, code: str, row: DocumentRow, base_url: str) -> set[str]:
    """The resources on this server (`Organization/o1`) that a search parameter leads to."""
    parameter = parameters(resource_type)[code]
    return {f"{kind}/{id_}" for kind, id_ in reference.targets(parameter, row["terms"], base_url)}


def facts_of(resource_type: str, resource_id: str, resource: Mapping[str, Any]) -> DocumentRow:
    """The terms of an unstored resource that relations read, at a tenth of the cost of extracting all."""
    codes = {
        OWNERS.get(resource_type),
        _FURTHER.get(resource_type),
        *(table[resource_type][0] for table in _NAMING if resource_type in table),
    }
    subject = about(resource_type)
    wanted = [parameters(resource_type)[code] for code in codes if code]
    terms = [
        f"{each.shared or each.key}{ending}"
        for each in (*wanted, *([subject] if subject else []))
        for path in each.paths
        for element in follow(path.steps, resource)
        if isinstance(element, dict)
        for ending in reference.VALUES["Reference"](element)
    ]
    return {"_id": resource_id, "terms": terms}


def holds(
    relation: Relation,
    resource_type: str,
    row: DocumentRow,
    family: OrganizationTree,
    caller: Caller,
    base_url: str,
) -> bool:
    """Whether a resource has a relation as far as its own terms decide.

    Of `agreed` and `addressed` the patients still have to be the organization's (Access); `patients`, `targets`,
    `attached` and `contracted` are not decided by terms at all. For `kept` and `addressed` the family is with its staff
    and Contracts (`Relationships.names`).
    """
    return _HOLDS[relation](resource_type, row, family, caller, base_url)


Holds = Callable[[str, DocumentRow, OrganizationTree, Caller, str], bool]


def _sent(
    resource_type: str, row: DocumentRow, family: OrganizationTree, caller: Caller, base: str
) -> bool:
    return not family.isdisjoint(
        term.removeprefix("_sender=") for term in row["terms"] if term.startswith("_sender=")
    )


def _by(code: str, only: str) -> Holds:
    def holds_(
        resource_type: str, row: DocumentRow, family: OrganizationTree, caller: Caller, base: str
    ) -> bool:
        return resource_type == only and not family.isdisjoint(
            named(resource_type, code, row, base)
        )

    return holds_


def _owned(
    resource_type: str, row: DocumentRow, family: OrganizationTree, caller: Caller, base: str
) -> bool:
    code = OWNERS.get(resource_type)
    return code is not None and not family.isdisjoint(named(resource_type, code, row, base))


def _itself(
    resource_type: str, row: DocumentRow, family: OrganizationTree, caller: Caller, base: str
) -> bool:
    return caller.organization is not None and (
        f"{resource_type}/{id_of(row)}" == caller.organization
    )


def _kept(
    resource_type: str, row: DocumentRow, family: OrganizationTree, caller: Caller, base: str
) -> bool:
    # A client's own Subscription could have the same tags, but has a sender.
    terms = set(row["terms"])
    is_kept = not terms.isdisjoint(_KEPT) and not terms.isdisjoint(_kept_for(family))
    return is_kept and not _is_sent(terms)


def _is_sent(terms: Iterable[str]) -> bool:
    return any(term.startswith(SENDER) for term in terms)


def _kept_for(names: Iterable[str]) -> list[str]:
    """The terms of Subscriptions that are kept for organizations, roles or Contracts."""
    return [f"_tag={SUBSCRIPTION_OWNER}|{each}" for each in sorted(names)]


def _published(
    resource_type: str, row: DocumentRow, family: OrganizationTree, caller: Caller, base: str
) -> bool:
    # A client's own Basic could have the same code, but would have a subject.
    return (
        id_of(row).startswith(_TOPIC_ID)
        and _TOPIC in row["terms"]
        and not any(term.startswith(("subject=", "subject:")) for term in row["terms"])
    )


def _addressed(
    resource_type: str, row: DocumentRow, family: OrganizationTree, caller: Caller, base: str
) -> bool:
    return is_proof(resource_type, row) and not family.isdisjoint(
        named(resource_type, "recipient", row, base)
    )


def is_proof(resource_type: str, row: DocumentRow) -> bool:
    """Whether a resource is the proof of a notice."""
    return resource_type == "Communication" and PROOF in row["terms"]


def _party(
    resource_type: str, row: DocumentRow, family: OrganizationTree, caller: Caller, base: str
) -> bool:
    return resource_type == "Contract" and any(
        not family.isdisjoint(named(resource_type, code, row, base))
        for code in ("authority", "subject")
    )


_HOLDS: Mapping[Relation, Holds] = {
    "party": _party,
    "everyone": lambda *_: True,
    "addressed": _addressed,
    "sent": _sent,
    "provided": _by("service-provider", "Encounter"),
    "managed": _by("managing-entity", "Group"),
    "owned": _owned,
    "itself": _itself,
    "published": _published,
    "kept": _kept,
}


def filter_of(
    relation: Relation, resource_type: str, family: OrganizationTree, base_url: str
) -> Filter | None:
    """A filter on exactly the resources that have a relation; None where MongoDB cannot express it.

    For `kept` the family is with its staff and Contracts (`Relationships.names`).
    """
    if relation == "sent":
        return {"terms": {"$in": senders(sorted(family))}}
    if relation == "managed":
        return _naming("Group", "managing-entity", family, base_url)
    if relation == "provided":
        if resource_type == "Encounter":
            return _naming("Encounter", "service-provider", family, base_url)
        return {"terms": {"$in": []}}
    if relation == "kept":
        own = {"terms": {"$in": _kept_for(family)}}
        return {"$and": [{"terms": {"$in": list(_KEPT)}}, own, {"by": {"$exists": False}}]}
    return None


def _naming(resource_type: str, code: str, family: OrganizationTree, base_url: str) -> Filter:
    terms = [
        t for each in sorted(family) for t in claims.terms_for(resource_type, code, each, base_url)
    ]
    return {"terms": {"$in": terms}}


async def own_patients(
    relationships: Relationships, role: Role | None, patients: set[str], family: OrganizationTree
) -> set[str]:
    """The patients that are an organization's by its role (PATIENTS)."""
    if role is None or not family or not patients:
        return set()
    match PATIENTS.get(role):
        case "attributed":
            return await relationships.attributed(patients, family)
        case "treated":
            return await relationships.treated(patients, family)
        case "member":
            by_coverage = role in BY_COVERAGE
            return await relationships.members(patients, family, by_coverage=by_coverage)
    return set()
