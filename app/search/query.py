"""Request parameters of a search, read strictly. https://hl7.org/fhir/R4/search.html

What is not understood is refused, never silently left out: an ignored filter would disclose more than was asked for.
Unknown parameters are left out under lenient handling and reported; unknown modifiers and malformed values never are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal
from urllib.parse import parse_qsl

from bson import Timestamp

from app.errors import BadRequest, Issue
from app.fhir import shape
from app.fhir.shape import PLAIN, AnswerShape
from app.search import chain, cost, filter as filter_, include, lists, sorting, words
from app.search.bundle_writer import CURSOR
from app.search.contained import Within
from app.search.cursor import Position
from app.search.deferred_condition import DeferredCondition
from app.search.escaping import split
from app.search.include import Include
from app.search.parameter import (
    Condition,
    Fields,
    Filter,
    Not,
    Parameter,
    SearchLimits,
    SearchScope,
    UnknownParameter,
    missing,
)
from app.search.search_parameters import condition, parameters, present
from app.search.sorting import NEWEST_FIRST, SortKey
from app.search.terms import EVERY, Terms
from app.settings import Settings

Parameters = Sequence[tuple[str, str]]
Total = Literal["none", "estimate", "accurate"]

# What each type of a search on all of them may cost at the least.
_LEAST_COST = 200
# Parameters that every server knows of, and this one does not serve. They are refused under any handling.
_REFUSED = frozenset(
    {
        "_query",
        "_score",
        "_type",
    }
)


@dataclass(slots=True)
class Query:
    """A search that was understood.

    `used` are the parameters that took part, as the self link shows them; `issues` report those left out.
    `after` are the sort values of the row that the page follows; `shape` is how what is found is shown.
    `probes` are what `resolution.resolve` left to be tested on each row. With `is_snapshot` all pages read at the
    cluster time of the first, `snapshot`.
    """

    resource_type: str
    conditions: list[Condition] = field(default_factory=list)
    sort: tuple[SortKey, ...] = sorting.with_id([NEWEST_FIRST])
    count: int = 0
    total: Total | None = None
    shape: AnswerShape = PLAIN
    after: tuple[Any, ...] | None = None
    used: list[tuple[str, str]] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    includes: list[Include] = field(default_factory=list)
    probes: list[DeferredCondition] = field(default_factory=list)
    scope: SearchScope = field(default_factory=lambda: SearchScope("", datetime.now(UTC)))
    is_snapshot: bool = False
    is_explained: bool = False
    snapshot: Timestamp | None = None

    @property
    def is_about_time(self) -> bool:
        """Whether it asks for times of change, as those do who poll for what is new."""
        return any(
            "_lastUpdated" in (text if name == "_filter" else name) for name, text in self.used
        )

    @property
    def filter(self) -> Filter:
        """The MongoDB filter on current documents; deleted ones never match."""
        filters = [each.filter() for each in self.conditions]
        # A positive term lets the index serve, and keeps out the deleted, which have none.
        if not any(isinstance(each, Terms | Within) for each in self.conditions):
            filters.insert(0, {"terms": EVERY})
        return filters[0] if len(filters) == 1 else {"$and": filters}

    def matches(self, fields: Fields) -> bool:
        """Whether a resource of the type with these fields (of `extract`) is found."""
        return all(each.matches(fields) for each in self.conditions)


def is_general(name: str) -> bool:
    """Whether a name has a meaning of its own in searches of every type, served or not."""
    code = name.partition(":")[0]
    return not is_criterion(code) or code in {
        *_REFUSED,
        *words.NAMES,
        filter_.NAME,
        lists.NAME,
        chain.HAS,
    }


def is_criterion(name: str) -> bool:
    """Whether a parameter of this name selects resources; the others shape the answer."""
    code = name.partition(":")[0]
    shapes = code in shape.NAMES or code in _CONTROLS or code == CURSOR
    return not shapes and not include.is_include(code)


def criteria(text: str) -> list[tuple[str, str]]:
    """The criteria that a conditional interaction or reference spells, `identifier=urn:a|1&active=true`.

    Raises BadRequest where there are none, and for what would shape an answer: it selects nothing.
    """
    found = parse_qsl(text.removeprefix("?"), keep_blank_values=True)
    for name, _ in found:
        if not is_criterion(name):
            raise _refused(
                name, f"'{name}' selects nothing and is no search criterion", "not-supported"
            )
    if not found:
        raise BadRequest("A conditional interaction needs search criteria", code="required")
    return found


def supported_parameters(resource_type: str) -> list[Parameter]:
    """The search parameters that `parse` takes for a type, for the CapabilityStatement."""
    return list(parameters(resource_type).values())


def parse(
    resource_type: str,
    params: Parameters,
    *,
    lenient: bool,
    settings: Settings,
    base_url: str = "",
    share: int = 1,
    begin: Position | None = None,
) -> Query:
    """The search that request parameters ask for, from where its page begins.

    `base_url` is the server's own, for references that are written with it. What the search may cost is divided among
    the `share` types that it is on. Raises BadRequest naming the parameter, Unprocessable where it asks for too much.
    """
    limits = SearchLimits(
        settings.max_chain_found, settings.max_chain_examined, settings.max_included
    )
    scope = SearchScope(
        (base_url or settings.base_url).rstrip("/"),
        datetime.now(UTC),
        limits,
        cost.Budget(max(settings.max_search_cost // share, _LEAST_COST)),
    )
    query = Query(
        resource_type,
        count=settings.default_count,
        scope=scope,
        is_snapshot=settings.search_snapshot,
        shape=shape.read(params),
    )
    scope.budget.spend(cost.VALUE, "_elements", len(query.shape.elements))
    controls: dict[str, str] = {}
    for name, text in params:
        if name in shape.NAMES:
            query.used.append((name, text))
        elif name in _CONTROLS:
            if name in controls:
                raise _refused(name, f"Parameter '{name}' may be given only once", "invalid")
            controls[name] = text
            query.used.append((name, text))
        else:
            _add(query, name, text, lenient=lenient)
    for name, read in _CONTROLS.items():
        if name in controls:
            read(query, controls[name], settings)
    if begin is not None:
        query.after, query.snapshot = begin.of(len(query.sort)), begin.snapshot
    query.used = [(n, str(query.count) if n == "_count" else text) for n, text in query.used]
    return query


def _add(query: Query, name: str, text: str, *, lenient: bool) -> None:
    """Add a parameter that selects or includes; lenient handling leaves out and reports what is unknown."""
    try:
        if include.is_include(name):
            wanted = include.parse(query.resource_type, name, text)
            if wanted not in query.includes:
                query.scope.budget.spend(include.cost_of(wanted), name)
                query.includes.append(wanted)
        else:
            query.conditions.append(_read(query.scope, query.resource_type, name, text))
    except UnknownParameter as refusal:
        if not lenient:
            raise
        query.issues += [replace(issue, severity="warning") for issue in refusal.issues]
    else:
        query.used.append((name, text))


def _read(scope: SearchScope, resource_type: str, name: str, text: str) -> Condition:
    """The condition of one parameter of a type; chains come back here for what they end in."""
    code, _, modifier = name.partition(":")
    if code in _REFUSED:
        raise _refused(name, f"Parameter '{name}' is not supported", "not-supported")
    if chain.is_chain(name):
        return chain.parse(resource_type, name, text, scope, partial(_read, scope))
    if modifier and code in (filter_.NAME, *words.NAMES):
        raise _refused(
            name, f"Modifier ':{modifier}' is not supported on '{code}'", "not-supported"
        )
    if code == filter_.NAME:
        return filter_.condition(resource_type, text, scope)
    if code in words.NAMES:
        return words.condition(resource_type, code, text, scope)
    if code == lists.NAME:
        return lists.condition(resource_type, modifier, text, scope)
    parameter = parameters(resource_type).get(code)
    if parameter is None:
        raise UnknownParameter(resource_type, code)
    if not text:
        raise parameter.malformed("a value")
    return _condition(parameter, modifier, text, scope)


def _condition(parameter: Parameter, modifier: str, text: str, scope: SearchScope) -> Condition:
    scope.budget.spend(cost.of_parameter(modifier), parameter.code)
    if modifier == "missing":
        if parameter.code in ("_id", "_lastUpdated") or parameter.type == "special":
            raise parameter.unknown_modifier(modifier)
        has_value = present(parameter)
        return Not(has_value) if missing(parameter, text) else has_value
    texts = split(text, ",")
    if not all(texts):
        raise parameter.malformed("values between all commas")
    scope.budget.spend(cost.of_value(parameter.type, modifier), parameter.code, len(texts))
    return condition(parameter, modifier or None, texts, scope)


def _refused(name: str, diagnostics: str, code: str = "value") -> BadRequest:
    return BadRequest(diagnostics, code=code, expression=f"http.{name.partition(':')[0]}")


# Parameters that shape the result, in the order they are read.


def _read_sort(query: Query, text: str, settings: Settings) -> None:
    cost.check_sort_keys(text.count(",") + 1)
    query.sort = sorting.parse(query.resource_type, text)


def _read_count(query: Query, text: str, settings: Settings) -> None:
    if not (text.isascii() and text.isdigit()):
        raise _refused("_count", "The value of '_count' is malformed; expected a whole number")
    query.count = min(int(text[:10]), settings.max_count)


def _read_total(query: Query, text: str, settings: Settings) -> None:
    match text:
        case "none" | "estimate" | "accurate":
            query.total = text
        case _:
            raise _refused("_total", "The value of '_total' must be none, estimate or accurate")


def _read_contained(query: Query, text: str, settings: Settings) -> None:
    if text != "false":  # contained_search.py reads the others where they are served
        raise _refused(
            "_contained",
            "Contained resources are found by a search of one type only: _contained=true or both there, or false",
            "not-supported",
        )


def _read_contained_type(query: Query, text: str, settings: Settings) -> None:
    """How contained resources are shown, where any are wanted."""
    if text not in ("container", "contained"):
        raise _refused(
            "_containedType", "The value of '_containedType' must be container or contained"
        )


def _read_snapshot(query: Query, text: str, settings: Settings) -> None:
    if text not in ("true", "false"):
        raise _refused("_snapshot", "The value of '_snapshot' must be true or false")
    query.is_snapshot = text == "true"


def _read_explain(query: Query, text: str, settings: Settings) -> None:
    if not settings.search_explain:
        raise _refused("_explain", "Parameter '_explain' is switched off here", "not-supported")
    if text not in ("true", "false"):
        raise _refused("_explain", "The value of '_explain' must be true or false")
    query.is_explained = text == "true"


_CONTROLS: Mapping[str, Callable[[Query, str, Settings], None]] = {
    "_sort": _read_sort,
    "_count": _read_count,
    "_total": _read_total,
    "_contained": _read_contained,
    "_containedType": _read_contained_type,
    "_snapshot": _read_snapshot,
    "_explain": _read_explain,
}
