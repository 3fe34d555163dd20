"""All search parameters of a resource type, compiled; and those that cannot be, with the reason.

https://hl7.org/fhir/R4/searchparameter-registry.html
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from types import MappingProxyType
from typing import Any

from app.fhir import definitions
from app.fhir.definitions import SearchParameter
from app.fhir.fhirpath import NotCompilableError
from app.search import custom, group_members, terminology
from app.search.expression import AccessPath, compiled, compiled_from
from app.search.parameter import Condition, Parameter, SearchScope
from app.search.parameters import (
    composite,
    date,
    number,
    quantity,
    reference,
    special,
    string,
    token,
    uri,
)
from app.search.ranges import Present
from app.search.search_state import current, kept
from app.search.terms import Terms

Read = Callable[[Parameter, str | None, Iterable[str], SearchScope], Condition]

# What each kind of parameter stores, by data type.
VALUES: Mapping[str, Mapping[str, Callable[[Any], Any]]] = {
    "token": token.VALUES,
    "reference": reference.VALUES,
    "string": string.VALUES,
    "uri": uri.VALUES,
    "date": date.VALUES,
    "number": number.VALUES,
    "quantity": quantity.VALUES,
    "special": special.VALUES,
}
# What each kind of parameter makes of search values.
_READ: Mapping[str, Read] = {
    "token": terminology.condition,
    "reference": reference.condition,
    "string": string.condition,
    "uri": uri.condition,
    "date": date.condition,
    "number": number.condition,
    "quantity": quantity.condition,
    "special": special.condition,
}
# Kinds kept as ranges, and the stored field that holds them; the others are terms.
GROUPS: Mapping[str, str] = {"date": "dates", "number": "numbers", "quantity": "quantities"}

_SORTABLE = frozenset({"string", "token", "uri", *GROUPS})
# Stored as the document's own _id and time, not extracted.
OF_THE_DOCUMENT = frozenset({"_id", "_lastUpdated"})
# The date a clinician would sort by: the first of these that a type has, else its first date.
_CLINICAL = (
    "authoredon",
    "authored-on",
    "authored",
    "date",
    "onset-date",
    "started",
    "occurrence",
    "start-date",
    "effective",
    "event-date",
    "issued",
    "whenprepared",
    "sent",
    "created",
    "period",
    "recorded",
    "birthdate",
)


@kept
def parameters(resource_type: str) -> Mapping[str, Parameter]:
    """The type's compiled search parameters by code: R4's, US Core's, and those of clients that are indexed."""
    added = custom.of(current().custom, resource_type)
    searchable = {
        code: parameter
        for code, parameter in extracted(resource_type).items()
        if code not in added or added[code].is_searchable
    }
    return MappingProxyType(searchable)


@kept
def extracted(resource_type: str) -> Mapping[str, Parameter]:
    """All parameters whose values are stored, those of clients included that are not indexed yet."""
    found = dict(standard(resource_type))
    for code, each in custom.of(current().custom, resource_type).items():
        found.setdefault(code, compile_custom(resource_type, each.definition))
    return MappingProxyType(found)


def standard(resource_type: str) -> Mapping[str, Parameter]:
    """Those of R4 and US Core alone, the same in every app whatever its clients define."""
    return _compile(resource_type)[0]


def compile_custom(resource_type: str, definition: SearchParameter) -> Parameter:
    """A client's parameter for one of its types. Raises NotCompilableError with the reason."""
    others = standard(resource_type)
    if not definition.expression:
        raise NotCompilableError("it has no expression")
    if definition.type not in {*VALUES, "composite"} - {"special"}:
        raise NotCompilableError(f"type {definition.type} is not supported")
    try:
        found = _parameter(resource_type, definition)
    except KeyError as unknown:
        raise NotCompilableError(f"its component {unknown} is no known parameter") from None
    if not found.paths:
        raise NotCompilableError(f"its expression leads to nothing in {resource_type}")
    found = replace(found, shared=_shared(found, others))
    return replace(found, components=_lifted(found, others))


@cache
def uncompiled(resource_type: str) -> Mapping[str, str]:
    """The codes of the type's parameters that cannot be searched, with the reason."""
    return MappingProxyType(_compile(resource_type)[1])


def condition(
    parameter: Parameter, modifier: str | None, texts: list[str], scope: SearchScope
) -> Condition:
    """What one request parameter asks for; its values are alternatives. Raises BadRequest."""
    if parameter.components:
        return composite.condition(
            parameter, modifier, texts, lambda part, text: condition(part, None, [text], scope)
        )
    kind = "special" if parameter.code == "_id" else parameter.type
    found = _READ[kind](parameter, modifier, texts, scope)
    if parameter.aside and isinstance(found, Terms):
        return group_members.SideRows(parameter.aside, found, scope.limits)
    return found


def is_sortable(parameter: Parameter) -> bool:
    """Whether sort values are stored for it; the type's only clinical date is the document's `date` already."""
    is_date = parameter.is_clinical and parameter.is_single
    return parameter.type in _SORTABLE and not is_date


def present(parameter: Parameter) -> Condition:
    """The parameter has a value (`:missing=false`)."""
    if parameter.components:
        return Present("composites", parameter.key)
    if parameter.type in GROUPS:
        return Present(GROUPS[parameter.type], parameter.key)
    if parameter.aside:
        return Terms(equal=(parameter.key + "=",))
    prefixes = [parameter.key + "=", parameter.key + ":"]
    if parameter.shared:
        prefixes.append(f"{parameter.shared}={parameter.targets[0]}/")
    return Terms(prefixes=tuple(prefixes))


@cache
def _compile(resource_type: str) -> tuple[dict[str, Parameter], dict[str, str]]:
    found: dict[str, Parameter] = {}
    refused: dict[str, str] = {}
    for code, definition in definitions.search_parameters(resource_type).items():
        try:
            if not definition.expression:
                raise NotCompilableError("it has no expression")
            found[code] = _parameter(resource_type, definition)
        except NotCompilableError as reason:
            refused[code] = str(reason)
    for code, parameter in found.items():
        found[code] = replace(parameter, shared=_shared(parameter, found))
    clinical = _clinical(found)
    if clinical:
        found[clinical] = replace(found[clinical], is_clinical=True)
    for code, parameter in found.items():
        found[code] = replace(parameter, components=_lifted(parameter, found))
    return found, refused


def _parameter(resource_type: str, definition: SearchParameter) -> Parameter:
    paths = compiled(resource_type, definition.expression)
    parameter = Parameter(
        definition.code, definition.url, definition.type, targets=definition.target
    )
    if definition.type == "composite":
        written = [part.expression for part in definition.component]
        components = tuple(
            _component(resource_type, paths, part.definition, [part.expression, *written])
            for part in definition.component
        )
        return replace(parameter, paths=paths, components=components)
    searchable = _searchable(definition.type, paths)
    aside = group_members.ROWS.get((resource_type, definition.code))
    return replace(
        parameter, paths=searchable, targets=_targets(definition, searchable), aside=aside
    )


def _targets(definition: SearchParameter, paths: tuple[AccessPath, ...]) -> tuple[str, ...]:
    """The types a reference may point to by the parameter and by the elements; a shared parameter names too many."""
    allowed: set[str] = set()
    for path in paths:
        if path.only:
            allowed.add(path.only)
        elif path.type == "Reference" and path.targets and "Resource" not in path.targets:
            allowed.update(path.targets)
        else:
            return definition.target
    wanted = allowed.intersection(definition.target) if definition.target else allowed
    return tuple(sorted(wanted))


def _searchable(kind: str, paths: Iterable[AccessPath]) -> tuple[AccessPath, ...]:
    """The paths whose data type the kind of parameter knows."""
    if kind == "special":
        return ()
    known = tuple(path for path in paths if path.type in VALUES[kind])
    if not known:
        raise NotCompilableError(f"no element that a {kind} parameter can search")
    return known


def _component(
    resource_type: str, bases: Iterable[AccessPath], definition: str, expressions: Iterable[str]
) -> Parameter:
    """A part of a composite: the parameter that its definition names, at the first expression that fits that.

    Its own comes first. R4 mixes up those of DocumentReference's relationship; the definitions tell the order.
    """
    root = AccessPath((), (), resource_type, resource_type)
    whole = definitions.search_parameter(definition)
    for expression in expressions:
        paths = [path for base in bases for path in compiled_from(root, base, expression)]
        distinct = tuple({path.keys: path for path in paths}.values())
        if any(path.type in VALUES[whole.type] for path in distinct):
            searchable = _searchable(whole.type, distinct)
            targets = _targets(whole, searchable)
            return Parameter(whole.code, whole.url, whole.type, searchable, targets)
    raise NotCompilableError("a component's type does not fit its element")


def _shared(parameter: Parameter, others: Mapping[str, Parameter]) -> str | None:
    """The parameter that covers this one, where this is the same references restricted to one type."""
    if parameter.type != "reference" or len(parameter.paths) != 1:
        return None
    path = parameter.paths[0]
    if path.only is None or parameter.targets != (path.only,):
        return None
    for code, other in others.items():
        if other.type == "reference" and (path.keys, None) in [
            (each.keys, each.only) for each in other.paths
        ]:
            return code
    return None


def _clinical(found: Mapping[str, Parameter]) -> str | None:
    dates = [code for code, each in found.items() if each.type == "date" and code != "_lastUpdated"]
    preferred = [code for code in _CLINICAL if code in dates]
    return next(iter(preferred or sorted(dates)), None)


def _lifted(composite: Parameter, others: Mapping[str, Parameter]) -> tuple[Parameter, ...]:
    """The components, marked where the resource's parameter of the same code covers all their paths."""
    marked: list[Parameter] = []
    for component in composite.components:
        whole = others.get(component.code)
        covered = {path.keys for path in whole.paths} if whole else set()
        bases = [base.keys for base in composite.paths]
        needed = {
            path.keys if path.is_rooted else (*base, *path.keys)
            for path in component.paths
            for base in bases
        }
        marked.append(replace(component, is_lifted=bool(needed) and needed <= covered))
    return tuple(marked)
