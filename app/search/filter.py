"""`_filter`: search parameters combined by and, or, not and parentheses. https://hl7.org/fhir/R4/search_filter.html

Each test becomes the condition that the parameter's own kind makes of it, so a filter means what the same search means.
`ne` finds resources with a value other than the given one, not those without the given one: that is `not (... eq ...)`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from app.errors import BadRequest
from app.search import chain, cost
from app.search.escaping import split, unescape
from app.search.filter_grammar import Assertion, Connection, Negation, Node, Step, parse
from app.search.parameter import (
    AllOf,
    AnyOf,
    Condition,
    Fields,
    Filter,
    Not,
    Parameter,
    SearchScope,
    UnknownParameter,
    missing,
)
from app.search.parameters import date, string, token
from app.search.parameters.composite import SameElement
from app.search.ranges import Instant, Ranges, alternatives
from app.search.search_parameters import condition as plain, parameters, present
from app.search.terms import EVERY, Terms, escape, escape_pattern

NAME = "_filter"
_DEEPEST = 10
# What each kind of parameter can be asked; `pr` all of them.
_ORDER = frozenset(["eq", "ne", "gt", "lt", "ge", "le", "ap", "sa", "eb"])
_OPERATORS = {
    "string": frozenset(["eq", "ne", "co", "sw", "ew"]),
    "token": frozenset(["eq", "ne", "co", "sw", "ew", "ss", "sb", "in", "ni"]),
    "uri": frozenset(["eq", "ne", "co", "sw", "ew"]),
    "reference": frozenset(["eq", "ne", "re"]),
    "date": _ORDER | {"po"},
    "number": _ORDER,
    "quantity": _ORDER,
    "composite": frozenset({"eq"}),
    "special": frozenset({"eq"}),
}
# Operators that look into each term, and so take longer.
_SEARCHING = frozenset({"co", "ew", "ne", "sw"})
# Operators that are a modifier of the plain search.
_MODIFIERS = {"ss": "below", "sb": "above", "in": "in", "ni": "not-in"}


def condition(resource_type: str, text: str, scope: SearchScope) -> Condition:
    """What a filter asks of resources of a type. Raises BadRequest naming what it does not understand.

    Lenient handling forgives no part of it: without one test the rest of a filter means something else.
    """
    try:
        return _node(parse(text, scope.budget), resource_type, scope)
    except UnknownParameter as unknown:
        raise BadRequest(issues=unknown.issues) from None


def _node(node: Node, resource_type: str, scope: SearchScope) -> Condition:
    if isinstance(node, Negation):
        return Not(_node(node.node, resource_type, scope))
    if isinstance(node, Connection):
        found = tuple(_node(each, resource_type, scope) for each in node.nodes)
        return AllOf(found) if node.word == "and" else AnyOf(found)
    return _path(resource_type, node.path, node, scope)


def _path(
    resource_type: str, path: Sequence[Step], test: Assertion, scope: SearchScope
) -> Condition:
    step, *rest = path
    if len(path) > _DEEPEST:
        raise _refused("The filter's path has too many steps", "too-costly")
    name = step.name
    if name.startswith(chain.HAS + ":"):
        name, _, last = step.name.rpartition(":")
        rest = [Step(last), *rest]
        return chain.parse(
            resource_type,
            f"{name}:{last}",
            test.value,
            scope,
            partial(_linked, step, rest, test, scope),
        )
    parameter = parameters(resource_type).get(name.partition(":")[0])
    if parameter is None:
        raise UnknownParameter(resource_type, name)
    if not rest:
        if ":" in name:
            raise _refused(f"'{name}': a filter has operators instead of modifiers")
        return _compare(parameter, test, scope)
    if parameter.components:
        return _within(parameter, step, rest, test, scope)
    return chain.parse(
        resource_type,
        f"{name}.{rest[0].name}",
        test.value,
        scope,
        partial(_linked, step, rest, test, scope),
    )


def _linked(
    step: Step,
    rest: Sequence[Step],
    test: Assertion,
    scope: SearchScope,
    target: str,
    _name: str,
    _value: str,
) -> Condition:
    """What a chain asks of the resources it leads to."""
    found = _path(target, rest, test, scope)
    if step.criterion is None:
        return found
    return AllOf((_node(step.criterion, target, scope), found))


def _within(
    parameter: Parameter, step: Step, rest: Sequence[Step], test: Assertion, scope: SearchScope
) -> Condition:
    """Components of a composite, all of the same element."""
    components = {component.code: component for component in parameter.components}

    def read(node: Node) -> Condition:
        if isinstance(node, Negation):
            return Not(read(node.node))
        if isinstance(node, Connection):
            found = tuple(read(each) for each in node.nodes)
            return AllOf(found) if node.word == "and" else AnyOf(found)
        if len(node.path) != 1 or node.path[0].name not in components:
            raise _refused(f"'{parameter.code}' is made of {', '.join(components)}")
        return _compare(components[node.path[0].name], node, scope)

    wanted = read(Assertion(tuple(rest), test.operator, test.value, test.quoted))
    criteria = () if step.criterion is None else (read(step.criterion),)
    return SameElement(parameter.key, (*criteria, wanted))


def _compare(parameter: Parameter, test: Assertion, scope: SearchScope) -> Condition:
    operator = test.operator
    if operator == "pr":
        found = (
            Terms(equal=(EVERY,))
            if parameter.code in ("_id", "_lastUpdated")
            else present(parameter)
        )
        return found if missing(parameter, test.value) else Not(found)
    if operator not in _OPERATORS["special" if parameter.code == "_id" else parameter.type]:
        raise _refused(
            f"Operator '{operator}' is not supported on search parameter '{parameter.code}' of type {parameter.type}"
        )
    if operator in _SEARCHING:
        scope.budget.spend(cost.PATTERN, NAME)
    elif operator in _MODIFIERS:
        scope.budget.spend(cost.STORED, NAME)
    value = test.value
    if test.quoted and parameter.type in ("string", "uri"):
        value = value.replace("\\", "\\\\")
    if operator in _MODIFIERS:
        return plain(parameter, _MODIFIERS[operator], [value], scope)
    if parameter.type in ("date", "number", "quantity"):
        if operator == "po":
            return _overlap(parameter, value)
        return plain(parameter, None, [operator + value], scope)
    return _compare_terms(parameter, operator, value, scope)


def _compare_terms(
    parameter: Parameter, operator: str, value: str, scope: SearchScope
) -> Condition:
    match parameter.type, operator:
        case "string", "eq":
            return equal_text(parameter, value)
        case "string", "ne":
            return other(parameter, equal_text(parameter, value), is_text=True)
        case "string", "ew":
            return ends_with(parameter, value)
        case "string", _:
            return plain(parameter, "contains" if operator == "co" else None, [value], scope)
        case _, ("co" | "sw" | "ew"):
            return part_of_code(parameter, operator, value)
    found = plain(parameter, None, [value], scope)
    if operator != "ne":
        return found
    is_qualified = parameter.type == "token" and len(split(value, "|")) > 1
    return other(parameter, found, is_qualified=is_qualified)


def _overlap(parameter: Parameter, value: str) -> Condition:
    low, high = date.precise(parameter, value)
    bounds = alternatives("ap", low, high)
    if parameter.key == "_lastUpdated":
        return Instant("at", bounds)
    return Ranges("dates", parameter.key, bounds)


def _refused(diagnostics: str, code: str = "not-supported") -> BadRequest:
    return BadRequest(diagnostics, code=code, expression="http._filter")


# Comparisons with terms that only `_filter` knows: unequal, ends with, and parts of codes and URIs.
#
# They are regular expressions that MongoDB and Python read alike; the parameter's name in front lets the index serve.

# The end of a term: `$` would also match before a line break.
_END = r"(?![\s\S])"


@dataclass(frozen=True, slots=True)
class Pattern:
    """A document matches with any term in which one of the patterns is found; each begins with `^`."""

    patterns: tuple[str, ...]

    def filter(self) -> Filter:
        found: list[Filter] = [{"terms": {"$regex": pattern}} for pattern in self.patterns]
        return found[0] if len(found) == 1 else {"$or": found}

    def matches(self, fields: Fields) -> bool:
        return any(re.search(each, term) for each in self.patterns for term in fields["terms"])


def equal_text(parameter: Parameter, text: str) -> Terms:
    """Strings that are the text, normalised."""
    term = f"{parameter.key}={_text(parameter, text)}"
    return Terms(equal=(term,), prefixes=(term + "\t",))


def ends_with(parameter: Parameter, text: str) -> Pattern:
    """Strings that end with the text, normalised."""
    key, wanted = escape_pattern(parameter.key), escape_pattern(_text(parameter, text))
    return Pattern((f"^{key}=[^\\t]*{wanted}(?:\\t|{_END})",))


def part_of_code(parameter: Parameter, operator: str, text: str) -> Pattern:
    """Codes, identifiers and URIs that contain (co), begin (sw) or end with (ew) the text, in any system."""
    wanted = escape_pattern(escape(unescape(text)))
    if not wanted:
        raise parameter.malformed("some text")
    before = "" if operator == "sw" else "[^|]*"
    after = _END if operator == "ew" else f"[^|]*{_END}"
    return Pattern((f"^{escape_pattern(parameter.key)}={before}{wanted}{after}",))


def other(
    parameter: Parameter, same: Condition, *, is_text: bool = False, is_qualified: bool = False
) -> Pattern:
    """Values of the parameter that are not among the `same`; an element without any value is not unequal.

    A coded value has a term with its system and one without: `is_qualified` says which of them is compared.
    """
    assert isinstance(same, Terms)  # noqa: S101 - what plain conditions of these types are
    end = f"(?:\\t|{_END})" if is_text else _END
    beginnings = [f"{parameter.key}="]
    if parameter.shared:
        beginnings.append(f"{parameter.shared}={parameter.targets[0]}/")
    form = "[\\s\\S]"
    if parameter.type == "token":
        with_system = is_qualified and not parameter.types <= token.SIMPLE
        form = r"[^|]*\|[\s\S]" if with_system else rf"[^|]+{_END}"
    return Pattern(tuple(f"^{escape_pattern(b)}{_unlike(b, same, end)}{form}" for b in beginnings))


def _unlike(beginning: str, same: Terms, end: str) -> str:
    wholes = [*_rests(beginning, same.equal)]
    starts = [*_rests(beginning, same.prefixes)]
    alternatives = [each + end for each in wholes] + starts
    return f"(?!{'|'.join(alternatives)})" if alternatives else ""


def _rests(beginning: str, terms: Iterable[str]) -> Iterable[str]:
    for term in terms:
        if term.startswith(beginning):
            yield escape_pattern(term.removeprefix(beginning))


def _text(parameter: Parameter, text: str) -> str:
    wanted = string.normalise(unescape(text))
    if not wanted:
        raise parameter.malformed("some text")
    return wanted
