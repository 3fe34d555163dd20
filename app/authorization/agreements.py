"""What executed Contracts give: the Groups that they are about, and the types of their members' records.

https://hl7.org/fhir/R4/contract.html

The recipient of a Contract is its `authority`; the plan that owes it what it says is a `subject` beside the Group. The
types are the asset types of its terms: nothing that a Contract does not name is needed for what it is about.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from app.attribution import claims
from app.fhir import json as fhir_json
from app.fhir.codes import RESOURCE_TYPE
from app.fhir.json import Resource
from app.records.reader import Reader
from app.search.parameters import reference
from app.search.search_parameters import parameters

Party = Literal["authority", "subject"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """An executed Contract: the ids of its Groups, and the types of records that it gives."""

    groups: frozenset[str]
    types: frozenset[str]


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
            types_of(fhir_json.decode_stored(row["text"])),
        )
        for row in rows
    ]


def types_of(contract: Resource) -> frozenset[str]:
    """The types of records that a Contract names as assets."""
    return frozenset(
        coding["code"]
        for term in contract.get("term", ())
        for asset in term.get("asset", ())
        for concept in asset.get("type", ())
        for coding in concept.get("coding", ())
        if coding.get("system") == RESOURCE_TYPE and "code" in coding
    )
