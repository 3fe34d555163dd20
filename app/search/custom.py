"""Search parameters that clients defined, beside those of R4 and US Core. https://hl7.org/fhir/R4/searchparameter.html

An active SearchParameter resource is extracted from the next write on; it can be searched once `$reindex` has extracted
it from everything stored before, otherwise a search would find half. The app's state has those that there are
(search_state.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import TYPE_CHECKING

import msgspec

from app.fhir.definitions import SearchParameter

if TYPE_CHECKING:
    from app.fhir.json import Resource

CODE = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}")


class Custom(msgspec.Struct, frozen=True):
    """A parameter, the id of its resource, and whether everything stored is indexed by it."""

    id: str
    definition: SearchParameter
    is_searchable: bool = False

    @property
    def digest(self) -> str:
        """Changes with anything that changes what is extracted."""
        return sha256(msgspec.json.encode(self.definition)).hexdigest()[:16]


def read(resource: Resource) -> SearchParameter:
    """The facts of a SearchParameter resource that search uses."""
    found = msgspec.convert(resource, SearchParameter)
    # Modifiers are refused by the kind of parameter; what the resource says of them changes nothing extracted.
    return msgspec.structs.replace(found, modifier=())


def of(parameters: Iterable[Custom], resource_type: str) -> Mapping[str, Custom]:
    """Those of a type by code; where two define one, as two processes may at once, it is searchable if both are."""
    found: dict[str, Custom] = {}
    for each in parameters:
        if resource_type in each.definition.base:
            known = found.get(each.definition.code)
            if known is None or not each.is_searchable:
                found[each.definition.code] = each
    return found


def digest(parameters: Iterable[Custom]) -> str:
    """Says which parameters a process extracts, to compare with what others do."""
    parts = [f"{each.id} {each.digest}" for each in parameters]
    return sha256("\n".join(parts).encode()).hexdigest()[:16]
