"""What executed Contracts give: the Groups that they are about, and the types of their members' records.

https://hl7.org/fhir/R4/contract.html

The recipient of a Contract is its `authority`; the plan that owes it what it says is a `subject` beside the Group. The
types are the asset types of its terms: nothing that a Contract does not name is needed for what it is about. Where
an asset's subtypes name classes of Encounters, or nursing facilities, it is about those Encounters, and not about what
belongs to another visit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from app.attribution import claims
from app.fhir import json as fhir_json
from app.fhir.codes import ACT_CODE, RESOURCE_TYPE, ROLE_CODE
from app.fhir.json import Resource
from app.records.reader import Reader
from app.search.parameters import reference
from app.search.search_parameters import parameters
from app.search.terms import escape

Party = Literal["authority", "subject"]


class Asset(NamedTuple):
    """A type of records that is given; where there is a term, those that have this search term alone.

    Where there are `stays`, what belongs to a visit is given if one of them gives the visit.
    """

    type: str
    term: str = ""
    stays: frozenset[Asset] = frozenset()


# Stays in a nursing facility, whatever their class: what a facility is says no term of the Encounter itself.
NURSING = Asset("Encounter", "facility-type=snf")
_NURSING_FACILITY = "SNF"


@dataclass(frozen=True, slots=True)
class Agreement:
    """An executed Contract: the ids of its Groups, and the records that it gives."""

    groups: frozenset[str]
    assets: frozenset[Asset]


async def agreements(
    store: Reader, family: Iterable[str], parties: Iterable[Party], base_url: str
) -> list[Agreement]:
    """The executed Contracts that name one of the organizations as one of these parties."""
    named = [
        term
        for party in parties
        for each in sorted(family)
        for term in claims.terms_for("Contract", party, each, base_url)
    ]
    rows = await store.find(
        "Contract",
        {"$and": [{"terms": {"$in": named}}, {"terms": "status=executed"}]},
        projection={"terms": 1, "text": 1},
    )
    subject = parameters("Contract")["subject"]
    return [
        Agreement(
            frozenset(
                id_
                for kind, id_ in reference.targets(subject, row["terms"], base_url)
                if kind == "Group"
            ),
            assets_of(fhir_json.decode_stored(row["text"])),
        )
        for row in rows
    ]


def assets_of(contract: Resource) -> frozenset[Asset]:
    """The records that a Contract names as assets."""
    return frozenset(
        asset
        for term in contract.get("term", ())
        for written in term.get("asset", ())
        for asset in _assets(written)
    )


def _assets(written: Resource) -> list[Asset]:
    """The records of one asset."""
    types = _codes(written.get("type", ()), RESOURCE_TYPE)
    encounters = _encounters(written) if "Encounter" in types else []
    stays = frozenset(each for each in encounters if each.term)
    return [*encounters, *(Asset(each, stays=stays) for each in types if each != "Encounter")]


def _encounters(asset: Resource) -> list[Asset]:
    """The Encounters of an asset: all of them where its subtypes say nothing about that."""
    subtypes = asset.get("subtype", ())
    found = [Asset("Encounter", f"class={escape(each)}") for each in _codes(subtypes, ACT_CODE)]
    if _NURSING_FACILITY in _codes(subtypes, ROLE_CODE):
        found.append(NURSING)
    return found or [Asset("Encounter")]


def _codes(concepts: Iterable[Resource], system: str) -> list[str]:
    return [
        coding["code"]
        for concept in concepts
        for coding in concept.get("coding", ())
        if coding.get("system") == system and "code" in coding
    ]
