"""The recipients of disclosures, as the actors of Consents name them.

https://hl7.org/fhir/R4/consent-definitions.html#Consent.provision.actor
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from app.attribution import claims
from app.fhir.json import Resource
from app.records.reader import Reader

RecipientKind = Literal["provider", "authority"]


@dataclass(frozen=True, slots=True)
class Recipient:
    """`reference` is None where the recipient is unknown; one that is no authority counts as a provider.

    `itself` are the references that mean it, for permissions; `around` also those it belongs to, for refusals.
    """

    reference: str | None
    kind: RecipientKind = "provider"
    itself: frozenset[str] = frozenset()
    around: frozenset[str] = frozenset()


async def resolve(
    store: Reader, reference: str | None, kind: RecipientKind, base_url: str = ""
) -> Recipient:
    """The recipient with what it belongs to: roles, their practitioner and organization, organizations above them."""
    if reference is None:
        return Recipient(None, kind)
    itself, around = {reference}, {reference}
    type_, _, id_ = reference.partition("/")
    if type_ == "PractitionerRole":
        role = await _read(store, "PractitionerRole", id_)
        named = _named(role, base_url, "practitioner", "organization")
        itself |= named
        around |= named
    elif type_ == "Practitioner":
        terms = claims.terms_for("PractitionerRole", "practitioner", reference, base_url)
        where = {"terms": {"$in": list(terms)}}
        for stored in await store.search("PractitionerRole", where, _MOST_ROLES):
            around |= {stored.reference, *_named(stored.resource(), base_url, "organization")}
    around |= await _above(store, around, base_url)
    return Recipient(reference, kind, frozenset(itself), frozenset(around))


# How many roles of one practitioner are read, and how many steps up the tree of organizations.
_MOST_ROLES, _MOST_STEPS = 100, 5


async def organizations_around(
    store: Reader, organization: str, base_url: str = ""
) -> frozenset[str]:
    """The organization (`Organization/o1`) with those that it is part of."""
    return frozenset({organization, *await _above(store, {organization}, base_url)})


async def _above(store: Reader, references: Iterable[str], base_url: str) -> set[str]:
    """The organizations that those among the references are part of."""
    found: set[str] = set()
    level = {each for each in references if each.startswith("Organization/")}
    for _ in range(_MOST_STEPS):
        if not level:
            break
        keys = [("Organization", each.partition("/")[2]) for each in level]
        stored = await store.read_many(keys)
        parents = {
            parent
            for each in stored.values()
            if not each.deleted
            for parent in _named(each.resource(), base_url, "partOf")
        }
        level = parents - found
        found |= parents
    return found


async def _read(store: Reader, resource_type: str, resource_id: str) -> Resource:
    stored = await store.read(resource_type, resource_id)
    return {} if stored is None or stored.deleted else stored.resource()


def _named(resource: dict[str, Any], base_url: str, *elements: str) -> set[str]:
    """The references to providers of this server in some elements, as relative ones."""
    found = (resource.get(element, {}).get("reference") for element in elements)
    return {near for each in found if (near := claims.relative(each, base_url)) is not None}
