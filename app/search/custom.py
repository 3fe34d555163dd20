"""Search parameters that clients defined, beside those of R4 and US Core. https://hl7.org/fhir/R4/searchparameter.html

An active SearchParameter resource is extracted from the next write on; it can be searched once `$reindex` has extracted
it from everything stored before, otherwise a search would find half. What is known here is the union of what the stores
of this process hold: extraction belongs to the process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
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


# Called after the known parameters have changed, to forget what was compiled from the old ones.
on_change: list[Callable[[], None]] = []
_by_owner: dict[str, tuple[Custom, ...]] = {}


def read(resource: Resource) -> SearchParameter:
    """The facts of a SearchParameter resource that search uses."""
    found = msgspec.convert(resource, SearchParameter)
    # Modifiers are refused by the kind of parameter; what the resource says of them changes nothing extracted.
    return msgspec.structs.replace(found, modifier=())


def publish(owner: str, parameters: Iterable[Custom]) -> bool:
    """Make these the parameters of a store; True where that changed anything."""
    found = tuple(sorted(parameters, key=lambda each: each.id))
    if _by_owner.get(owner, ()) == found:
        return False
    _by_owner[owner] = found
    for forget in on_change:
        forget()
    return True


def withdraw(owner: str) -> None:
    """Forget the parameters of a store that is closed."""
    publish(owner, ())
    _by_owner.pop(owner, None)


def of(resource_type: str) -> Mapping[str, Custom]:
    """The parameters of a type by code; where two stores define one, it is searchable if it is for both."""
    found: dict[str, Custom] = {}
    for parameters in _by_owner.values():
        for each in parameters:
            if resource_type in each.definition.base:
                known = found.get(each.definition.code)
                if known is None or not each.is_searchable:
                    found[each.definition.code] = each
    return found


def known(owner: str) -> tuple[Custom, ...]:
    """The parameters of one store."""
    return _by_owner.get(owner, ())


def digest(owner: str) -> str:
    """Says which parameters a store's process extracts, whatever order it learned them in."""
    parts = [f"{each.id} {each.digest}" for each in known(owner)]
    return sha256("\n".join(parts).encode()).hexdigest()[:16]
