"""FHIR R4's own definitions, reduced to facts: structures, invariants, search parameters, codes and compartments.

US Core adds search parameters of its own, and so does this server, in `profiles/carerelay`. The files in `profiles/r4`
and `profiles/us-core` are written by `profiles/reduce.py`. Everything is read at its first use and then kept.
https://hl7.org/fhir/R4/structuredefinition.html
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

import msgspec

_HERE = Path(__file__).parents[1]


def _directory(name: str) -> Path:
    """A data directory: inside the package in an installed wheel, beside it in a checkout."""
    installed = _HERE / name
    return installed if installed.is_dir() else _HERE.parent / name


PROFILES = _directory("profiles")
EXAMPLES = _directory("examples")


class Element(msgspec.Struct, frozen=True):
    """One element of a structure.

    `max` is None where it is unbounded. A `choice` element is named without `[x]`; its JSON key is
    `json_name` of one of its `types`. `summary` elements are part of `_summary=true`. `binding` is set
    for required bindings only. `targets` are the types a Reference may point to; empty means any.
    `ref` is the path of the element whose content this one repeats.
    """

    types: tuple[str, ...] = ()
    min: int = 0
    max: int | None = 1
    choice: bool = False
    summary: bool = False
    binding: str | None = None
    targets: tuple[str, ...] = ()
    ref: str | None = None
    elements: dict[str, Element] = {}

    @property
    def is_list(self) -> bool:
        """Whether JSON writes the element as an array."""
        return self.max != 1


class Structure(msgspec.Struct, frozen=True):
    """A type with all its elements, inherited ones included; a primitive has `regex` and `max_length`."""

    kind: Literal["resource", "complex-type", "primitive-type"]
    abstract: bool = False
    base: str | None = None
    regex: str | None = None
    max_length: int | None = None
    elements: dict[str, Element] = {}


class Invariant(msgspec.Struct, frozen=True):
    """A constraint that R4 states on the type or element at a path; `expression` is FHIRPath, judged at the element.

    https://hl7.org/fhir/R4/elementdefinition-definitions.html#ElementDefinition.constraint
    """

    path: str
    key: str
    severity: Literal["error", "warning"]
    expression: str


class SearchComponent(msgspec.Struct, frozen=True):
    """One part of a composite search parameter: the parameter's url, and where it starts."""

    definition: str
    expression: str


class SearchParameter(msgspec.Struct, frozen=True):
    """https://hl7.org/fhir/R4/searchparameter.html; `expression` is empty for the few that have none."""

    code: str
    url: str
    base: tuple[str, ...]
    type: str
    expression: str = ""
    target: tuple[str, ...] = ()
    modifier: tuple[str, ...] = ()
    component: tuple[SearchComponent, ...] = ()


class _Head(msgspec.Struct):
    kind: str
    abstract: bool = False


def _read(name: str, guide: str = "r4") -> bytes:
    return (PROFILES / guide / name).read_bytes()


@cache
def _structures() -> dict[str, msgspec.Raw]:
    return msgspec.json.decode(_read("structures.json"), type=dict[str, msgspec.Raw])


def _resource_types() -> tuple[str, ...]:
    heads = msgspec.json.decode(_read("structures.json"), type=dict[str, _Head])
    return tuple(
        sorted(
            name for name, head in heads.items() if head.kind == "resource" and not head.abstract
        )
    )


# Every resource type of R4.
SUPPORTED_TYPES: tuple[str, ...] = _resource_types()


@cache
def structure(type_name: str) -> Structure:
    """The structure of a resource type, data type or primitive; KeyError where R4 has no such type."""
    return msgspec.json.decode(_structures()[type_name], type=Structure)


@cache
def resolve(path: str) -> Element:
    """The element at a path such as `Questionnaire.item`, which is what `Element.ref` holds."""
    type_name, _, rest = path.partition(".")
    name, *names = rest.split(".")
    element = structure(type_name).elements[name]
    for name in names:
        element = element.elements[name]
    return element


def json_name(name: str, type_name: str) -> str:
    """The JSON key of a choice element holding one type: `value` and `dateTime` give `valueDateTime`."""
    return name + type_name[0].upper() + type_name[1:]


@cache
def _invariants() -> Mapping[str, tuple[Invariant, ...]]:
    by_path: dict[str, tuple[Invariant, ...]] = {}
    for each in msgspec.json.decode(_read("invariants.json"), type=list[Invariant]):
        by_path[each.path] = (*by_path.get(each.path, ()), each)
    return by_path


def invariants(path: str) -> tuple[Invariant, ...]:
    """What R4 states at a path, a type's (`Condition`) or an element's (`Organization.telecom`), nothing inherited."""
    return _invariants().get(path, ())


def all_invariants() -> tuple[Invariant, ...]:
    """Every invariant of R4, in the order of their paths."""
    return tuple(each for found in _invariants().values() for each in found)


@cache
def _search_parameters() -> Mapping[str, Mapping[str, SearchParameter]]:
    by_type: dict[str, dict[str, SearchParameter]] = {}
    for guide in ("r4", "us-core", "carerelay"):
        text = _read("search-parameters.json", guide)
        for parameter in msgspec.json.decode(text, type=list[SearchParameter]):
            for base in parameter.base:
                by_type.setdefault(base, {})[parameter.code] = parameter
    return by_type


@cache
def search_parameters(resource_type: str) -> Mapping[str, SearchParameter]:
    """The type's search parameters by code, those of Resource and DomainResource included."""
    found: dict[str, SearchParameter] = {}
    base: str | None = resource_type
    while base is not None:
        found = {**_search_parameters().get(base, {}), **found}
        base = structure(base).base
    return MappingProxyType(found)


@cache
def search_parameter(url: str) -> SearchParameter:
    """The search parameter with this canonical url, as composite components name it; KeyError if unknown."""
    for parameters in _search_parameters().values():
        for parameter in parameters.values():
            if parameter.url == url:
                return parameter
    raise KeyError(url)


@cache
def _value_sets() -> dict[str, dict[str, frozenset[str]]]:
    return msgspec.json.decode(_read("value-sets.json"), type=dict[str, dict[str, frozenset[str]]])


def required_codes(canonical: str) -> Mapping[str, frozenset[str]] | None:
    """The codes of a value set by system; None where it cannot be enumerated (media types, UCUM)."""
    return _value_sets().get(canonical)


@cache
def _compartments() -> dict[str, dict[str, tuple[str, ...]]]:
    return msgspec.json.decode(
        _read("compartments.json"), type=dict[str, dict[str, tuple[str, ...]]]
    )


def compartment(name: str) -> Mapping[str, tuple[str, ...]]:
    """For each resource type in a compartment (Patient ...) the search parameters that put it there.

    https://hl7.org/fhir/R4/compartmentdefinition.html; KeyError where R4 has no such compartment.
    """
    return MappingProxyType(_compartments()[name])
