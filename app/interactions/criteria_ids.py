"""The records that the criteria of a conditional write name by an id.

Criteria of a Bundle are a search on this server, whose ids may be others' (app/fhir/entry_references.py). So all ids in
them are looked at, also those at the end of a chain and of `_has`, https://hl7.org/fhir/R4/search.html#chaining.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from urllib.parse import parse_qsl

from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.ids import is_id
from app.search import chain, filter as filters, lists
from app.search.escaping import split, unescape
from app.search.parameter import Parameter
from app.search.search_parameters import parameters

_TYPES = frozenset(SUPPORTED_TYPES)


def has_filter(resource_type: str, criteria: str) -> bool:
    """Whether a `_filter` stands anywhere in criteria: what it names is not looked at here."""
    return any(code == filters.NAME for _, code, _, _ in _criteria(resource_type, criteria))


def ids_in(resource_type: str, criteria: str) -> Iterator[str]:
    """The records that criteria name, each as a reference; a bare id may be of any type that the parameter leads to."""
    for type_, code, modifier, value in _criteria(resource_type, criteria):
        if modifier not in ("identifier", "missing"):
            yield from _named(type_, code, modifier, value)


def _criteria(resource_type: str, criteria: str) -> Iterator[tuple[str, str, str, str]]:
    """Type, parameter, modifier and value of each, as they stand at the end of a chain."""
    for name, value in parse_qsl(criteria, keep_blank_values=True):
        for type_, last in dict.fromkeys(_ends(resource_type, name.rpartition("?")[2])):
            code, _, modifier = last.partition(":")
            yield type_, code, modifier, value


def _ends(resource_type: str, name: str) -> Iterator[tuple[str, str]]:
    """Type and parameter at the end of a chain, of each type that it may lead to; what is no chain is its own end."""
    if resource_type not in _TYPES:
        return
    if name.partition(":")[0] == chain.HAS:
        _, source, _, rest = (*name.split(":", 3), "", "", "")[:4]
        yield from _ends(source, rest)
        return
    head, dot, rest = name.partition(".")
    if not dot:
        yield resource_type, name
        return
    code, _, modifier = head.partition(":")
    parameter = parameters(resource_type).get(code)
    if modifier in _TYPES:
        yield from _ends(modifier, rest)
    elif parameter is not None:
        # What may lead anywhere is refused by the search itself.
        for each in parameter.targets:
            yield from dict.fromkeys(_ends(each, rest))


def _named(resource_type: str, code: str, modifier: str, value: str) -> Iterator[str]:
    parameter = parameters(resource_type).get(code)
    for text in split(value, ","):
        if code == "_id":
            yield from _as_references(text, (resource_type,))
        elif code == lists.NAME:
            yield from _as_references(text, ("List",))
        elif parameter is not None and parameter.type == "reference":
            kinds = (modifier,) if modifier in _TYPES else _kinds(parameter)
            yield from _as_references(text, kinds)
        elif parameter is not None:
            for part, component in zip(split(text, "$"), parameter.components, strict=False):
                if component.type == "reference":
                    yield from _as_references(part, _kinds(component))


def _kinds(parameter: Parameter) -> Sequence[str]:
    return parameter.targets or SUPPORTED_TYPES


def _as_references(text: str, kinds: Sequence[str]) -> Iterator[str]:
    plain = unescape(text)
    if is_id(plain):
        yield from (f"{kind}/{plain}" for kind in kinds)
    else:
        yield plain
