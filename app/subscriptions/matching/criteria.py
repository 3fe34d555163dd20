"""The criteria of a Subscription, compiled into plain data: there may be a hundred thousand of them.

https://hl7.org/fhir/R4/subscription.html (criteria) and the filter grammar of the Subscriptions R5 Backport guide.

Filters on one resource type must all hold; filters on different types are alternatives; a filter that names no type
holds for every type (domain rule of US Core's patient data feed). A filter that cannot be evaluated is refused.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from app.attribution import derived
from app.errors import Unprocessable
from app.fhir.definitions import SUPPORTED_TYPES
from app.search import query
from app.search.chain import Chain, Has
from app.search.parameter import AllOf, AnyOf, Condition, Not
from app.search.parameters.special import Ids
from app.search.terms import Terms
from app.settings import Settings
from app.subscriptions.topics import topic_shapes
from app.subscriptions.topics.topics import TRIGGER_FILTER, Coding, Topic, query_parameters

CLASSIC = re.compile(r"^([A-Z][A-Za-z]+)\?(.*)$", re.DOTALL)
_TOPIC_FILTER = re.compile(r"^(?:([A-Z][A-Za-z]+)[.?])?(.+)$", re.DOTALL)
# Of the parameters of every type, those that the resource itself decides, and `_has`.
_COMMON = frozenset({"_id", "_tag", "_profile", "_security", "_source", "_has"})
# A term at the end of a chain begins with the path to it: `>subject>Patient>general-practitioner=Practitioner/1`.
STEP = ">"
# The resource's own id as a term.
ID = "_id="

# A coding to look for in the trigger part; a system of None matches any.
TriggerToken = tuple[str | None, str]
# Search terms of which a version must have one.
Alternatives = tuple[str, ...]
Parameter = tuple[str, str]


class Clause(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The conditions on one resource type, or on any where that is empty.

    Parameters that require a term are kept as terms, others with the text they had, as `rest`.
    """

    resource_type: str = ""
    terms: tuple[Alternatives, ...] = ()
    rest: tuple[Parameter, ...] = ()
    triggers: tuple[tuple[TriggerToken, ...], ...] = ()


class Criteria(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """`scope` is the URL of the topic that must fire, or the resource type of a classic Subscription.

    One of the clauses must hold.
    """

    scope: str
    clauses: tuple[Clause, ...]


EVERYTHING = (Clause(),)


def classic(text: str, settings: Settings) -> Criteria:
    """Compile `Type?query`. Raises FhirError for criteria that cannot be understood or evaluated."""
    match = CLASSIC.match(text)
    if match is None:
        raise Unprocessable(
            "Criteria must be a known topic's canonical or `Type?parameters`", code="value"
        )
    resource_type = match[1]
    if resource_type not in SUPPORTED_TYPES:
        raise Unprocessable("Unknown resource type", code="not-supported")
    if resource_type == "Subscription":
        raise Unprocessable("Subscriptions cannot be subscribed to", code="not-supported")
    clause = _clause(resource_type, _parameters(match[2]), (), settings)
    return Criteria(resource_type, (clause,))


def topic_based(topic: Topic, filters: Sequence[str], settings: Settings) -> Criteria:
    """Compile the filters of a topic-based Subscription.

    Raises FhirError for a filter key or modifier that the topic does not define, and for values that cannot be read.
    """
    by_type: dict[str | None, list[Parameter]] = {}
    for text in (*filters, *topic.implied):
        resource_type, parameters = _read_filter(topic, text)
        by_type.setdefault(resource_type, []).extend(parameters)
    general = by_type.pop(None, [])
    named = {str(name): [*general, *parameters] for name, parameters in by_type.items()}
    if general and not named:
        named = dict.fromkeys(topic.resource_types, general)
    topic_shapes.check(topic, named)
    if not named:
        return Criteria(topic.url, EVERYTHING)
    return Criteria(
        topic.url,
        tuple(_topic_clause(topic, name, given, settings) for name, given in named.items()),
    )


def check_filter(topic: Topic, text: str, settings: Settings) -> None:
    """Check one filter by itself. Raises FhirError."""
    resource_type, parameters = _read_filter(topic, text)
    keys = {_key(name) for name, _ in parameters}
    types = [
        name
        for name in ([resource_type] if resource_type else topic.resource_types)
        if keys <= topic.filters.get(name, {}).keys()
    ]
    for name in types or [resource_type or topic.resource_types[0]]:
        _topic_clause(topic, name, parameters, settings)


def condition(resource_type: str, parameter: Parameter, settings: Settings) -> Condition:
    """A parameter as a condition. Raises FhirError."""
    (found,) = query.parse(resource_type, [parameter], lenient=False, settings=settings).conditions
    return found


def led_through(criteria: Criteria, settings: Settings) -> set[str]:
    """The types that the criteria lead to by chains and `_has`."""
    found: set[str] = set()
    for clause in criteria.clauses:
        for alternatives in clause.terms:
            for term in alternatives:
                path = path_of(term)
                if path and not derived.is_derived(term):
                    found.update(path.strip(STEP).split(STEP)[1::2])
        for parameter in clause.rest:
            found |= _led_through(condition(clause.resource_type, parameter, settings))
    return found


def _led_through(search: Condition) -> set[str]:
    match search:
        case Not(inner):
            return _led_through(inner)
        case AnyOf(several) | AllOf(several):
            return set().union(*(_led_through(each) for each in several))
        case Chain(links=links):
            return set().union(*({x.resource_type} | _led_through(x.condition) for x in links))
        case Has(link=link):
            return {link.resource_type} | _led_through(link.condition)
    return set()


def groups(criteria: Criteria) -> frozenset[str]:
    """The Groups (`Group/g1`) that filters name."""
    start = f"{derived.GROUP}="
    return frozenset(
        term.removeprefix(start)
        for clause in criteria.clauses
        for alternatives in clause.terms
        for term in alternatives
        if term.startswith(start)
    )


def near(term: str, base_url: str) -> str:
    """A term with a reference under the server's own base written as a relative one."""
    return term.replace(f"={base_url}/", "=", 1) if base_url else term


def path_of(term: str) -> str:
    """The path to a term at the end of a chain, as `>subject>Patient>`; empty for the resource's own."""
    return term[: term.rindex(STEP, 0, term.find("=")) + 1] if term.startswith(STEP) else ""


def has_token(tokens: Sequence[TriggerToken], codings: Sequence[Coding]) -> bool:
    """Whether one of the codings is one of these tokens."""
    return any(
        code == coding["code"] and system in (None, coding.get("system"))
        for coding in codings
        for system, code in tokens
    )


def _read_filter(topic: Topic, text: str) -> tuple[str | None, list[Parameter]]:
    """`param=value`, `Type.param=value` or `Type?param=value&param=value`."""
    match = _TOPIC_FILTER.match(text)
    if match is None:
        raise Unprocessable("The filter is empty", code="value")
    if match[1] is not None and match[1] not in topic.resource_types:
        raise Unprocessable(
            f"The topic has no filters on this type, only on {', '.join(topic.resource_types)}",
            code="not-supported",
        )
    parameters = _parameters(match[2])
    if not parameters:
        raise Unprocessable("The filter is empty", code="value")
    return match[1], parameters


def _topic_clause(
    topic: Topic, resource_type: str, given: Sequence[Parameter], settings: Settings
) -> Clause:
    parameters: list[Parameter] = []
    triggers: list[tuple[TriggerToken, ...]] = []
    routed: list[Alternatives] = []
    for name, value in given:
        search = _searched(topic, resource_type, name, value)
        if search == TRIGGER_FILTER:
            triggers.append(_trigger_tokens(topic, resource_type, value))
        elif search in derived.PATHS:
            routed.append(derived.terms(search, value, settings.base_url.rstrip("/")))
        else:
            filter_ = topic.filters[resource_type][_key(name)]
            parameters.append((search, topic_shapes.searched(filter_, value)))
    clause = _clause(resource_type, parameters, tuple(triggers), settings)
    return msgspec.structs.replace(clause, terms=(*routed, *clause.terms)) if routed else clause


def _searched(topic: Topic, resource_type: str, name: str, value: str) -> str:
    """The search parameter, with its modifier, behind a filter of the topic."""
    key, _, modifier = name.partition(":")
    known = topic.filters.get(resource_type, {})
    if key not in known:
        on_type = f" on {resource_type}" if len(topic.resource_types) > 1 else ""
        raise Unprocessable(
            f"The topic has no such filter{on_type}; it has {', '.join(sorted(known))}",
            code="not-supported",
        )
    filter_ = known[key]
    if modifier and modifier not in filter_.modifiers:
        raise Unprocessable(f"The filter {key} does not take this modifier", code="not-supported")
    if filter_.comparators and not filter_.takes(value):
        raise Unprocessable(f"The filter {key} does not take this comparator", code="not-supported")
    return f"{filter_.search}:{modifier}" if modifier else filter_.search


def _key(name: str) -> str:
    return name.partition(":")[0]


def _parameters(text: str) -> list[Parameter]:
    try:
        return query_parameters(text)
    except ValueError:
        raise Unprocessable("Filters must have the form name=value", code="value") from None


def _clause(
    resource_type: str,
    parameters: Sequence[Parameter],
    triggers: tuple[tuple[TriggerToken, ...], ...],
    settings: Settings,
) -> Clause:
    terms: list[Alternatives] = []
    rest: list[Parameter] = []
    base_url = settings.base_url.rstrip("/")
    for name, value in parameters:
        key = _key(name)
        if not value:
            raise Unprocessable(f"The parameter {key} has no value", code="value")
        if key.startswith("_") and key.partition(".")[0] not in _COMMON:
            raise Unprocessable(
                f"The parameter {key} cannot be evaluated when a resource changes",
                code="not-supported",
            )
        found = demanded(condition(resource_type, (name, value), settings), base_url)
        if found is None:
            rest.append((name, value))
        else:
            terms.append(found)
    return Clause(resource_type, tuple(terms), tuple(rest), triggers)


def demanded(condition: Condition, base_url: str) -> Alternatives | None:
    """The terms of which the condition requires one; None where it requires anything else."""
    if isinstance(condition, Terms):
        if condition.prefixes or condition.contained or not condition.equal:
            return None
        return _nearest(condition.equal, base_url)
    if isinstance(condition, Ids):
        return tuple(f"{ID}{each}" for each in condition.ids) or None
    if not isinstance(condition, Chain) or condition.parameter.aside:
        return None
    found: list[str] = []
    for link in condition.links:
        ends = demanded(link.condition, base_url)
        if ends is None:
            return None
        way = f"{STEP}{condition.parameter.code}{STEP}{link.resource_type}"
        found += [way + (end if end.startswith(STEP) else STEP + end) for end in ends]
    return tuple(found)


def _nearest(terms: Sequence[str], base_url: str) -> Alternatives:
    """The terms without duplicates under the server's own base: a version's terms are relative ones too."""
    found = [term for term in terms if near(term, base_url) == term]
    values = {term.partition("=")[2] for term in found}
    for term in terms:
        short = near(term, base_url)
        if short != term and short.partition("=")[2] not in values:
            found.append(short)
    return tuple(dict.fromkeys(found))


def _trigger_tokens(topic: Topic, resource_type: str, value: str) -> tuple[TriggerToken, ...]:
    tokens = []
    for item in value.split(","):
        system, bar, code = item.rpartition("|")
        token = (system if bar else None, code)
        if not has_token([token], topic.codings(resource_type)):
            raise Unprocessable("The topic has no such trigger", code="code-invalid")
        tokens.append(token)
    return tuple(sorted(tokens, key=str))
