"""`_contained=true|both`: searches that find contained resources. https://hl7.org/fhir/R4/search.html#contained

`Medication?code=x&_contained=true` finds resources of any type that contain such a Medication; with
`_containedType=contained` the contained ones themselves, each under the fullUrl `[base]/[type]/[id]#[contained id]`.
With `both` Medications that are resources of their own are found as well. Conditions are those on a resource's own
elements; the order is that of searches over several types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

from app.errors import BadRequest
from app.fhir import definitions, json as fhir_json
from app.search import chain, include, page, query, system
from app.search.contained import FIELD, Within
from app.search.cursor import Position
from app.search.extract import extract
from app.search.include import IncludedRow
from app.search.parameter import AllOf, AnyOf, Condition
from app.search.query import Parameters, Query
from app.search.search_parameters import parameters
from app.settings import Settings

_NAME, _TYPE = "_contained", "_containedType"
_OWN = frozenset({_NAME, _TYPE})
# What is asked of a resource as a whole, or of others.
_WHOLE = frozenset({"_filter", "_list", "_text", "_content"})


def is_asked(params: Parameters) -> bool:
    """Whether a search wants contained resources."""
    return any(name == _NAME and text != "false" for name, text in params)


def parse(
    resource_type: str,
    params: Parameters,
    *,
    lenient: bool,
    settings: Settings,
    base_url: str,
    begin: Position | None = None,
) -> system.Search:
    """The search over all types that may contain what is asked for. Raises BadRequest naming the parameter."""
    mode = _one_of(params, _NAME, ("true", "both"))
    shown = _one_of(params, _TYPE, ("container", "contained"))
    rest = [pair for pair in params if pair[0] not in _OWN]
    for name, _ in rest:
        _check(resource_type, name)
    own = query.parse(resource_type, rest, lenient=lenient, settings=settings, base_url=base_url)
    if shown == "contained" and (own.total in ("accurate", "estimate") or own.shape.counts):
        raise _refused(_TYPE, "Contained resources are not counted; ask for their containers")
    own.sort = system.order(own, params)
    wanted = Within(tuple(own.conditions), resource_type)
    search = system.Search(
        [_in_type(own, each, wanted, mode) for each in _containers()],
        [*own.used, (_NAME, mode), *([(_TYPE, shown)] if shown else [])],
        issues=own.issues,
    )
    if shown == "contained":
        search.show = partial(_shown, own if mode == "both" else None, wanted)
    system.begin_at(search, begin)
    return search


def _one_of(params: Parameters, name: str, allowed: Sequence[str]) -> str:
    """The value of a parameter that may be given once; empty where it is not."""
    texts = [text for each, text in params if each == name]
    if len(texts) > 1:
        raise _refused(name, f"Parameter '{name}' may be given only once", "invalid")
    if texts and texts[0] not in allowed:
        raise _refused(name, f"The value of '{name}' must be {' or '.join(allowed)}", "value")
    return texts[0] if texts else ""


def _check(resource_type: str, name: str) -> None:
    """Refuse what cannot be asked of contained resources; unknown names are left for `query.parse` to judge."""
    code = name.partition(":")[0]
    parameter = parameters(resource_type).get(code)
    is_plain = parameter is None or not (
        parameter.aside or code == "_lastUpdated" or (parameter.type == "special" and code != "_id")
    )
    if not is_plain or chain.is_chain(name) or include.is_include(name) or code in _WHOLE:
        raise _refused(name, f"'{name}' cannot be used in a search for contained resources")


def _refused(name: str, diagnostics: str, code: str = "not-supported") -> BadRequest:
    return BadRequest(diagnostics, code=code, expression=f"http.{name.partition(':')[0]}")


@cache
def _containers() -> list[str]:
    """The types that may contain others; Bundles and the like hold resources, but do not contain them."""
    types = definitions.SUPPORTED_TYPES
    return [each for each in types if FIELD in definitions.structure(each).elements]


def _in_type(own: Query, kind: str, wanted: Within, mode: str) -> Query:
    """The query in one type of container, or of what is no container but itself of the type that is wanted."""
    conditions: list[Condition] = [wanted]
    if mode == "both" and kind == own.resource_type:
        itself = AllOf(tuple(own.conditions))
        conditions = [AnyOf((itself, wanted))] if own.conditions else []
    return replace(own, resource_type=kind, conditions=conditions)


def _shown(
    own: Query | None, wanted: Within, kind: str, document: dict[str, Any]
) -> list[IncludedRow]:
    """What a row stands for: the contained resources that were wanted, and itself where it is one of them."""
    container = fhir_json.decode_stored(document["text"])
    found: list[IncludedRow] = []
    if own is not None and kind == own.resource_type and own.matches(extract(kind, container)):
        found.append(page.row_of(kind, document))
    for each in container.get(FIELD, ()):
        if each["resourceType"] == wanted.resource_type and wanted.meets(
            extract(wanted.resource_type, each)
        ):
            name = f"{document['_id']}#{each.get('id', '')}"
            found.append(IncludedRow(kind, name, fhir_json.encode(each).decode()))
    return found
