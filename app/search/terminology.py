"""Token modifiers that ask the ValueSets and CodeSystems this server holds. https://hl7.org/fhir/R4/search.html#token

    code:in=http://example.org/ValueSet/x      `:not-in` the same negated; also ValueSet/id, and url|version
    code:below=http://example.org/cs|abc       the code and all below it in its CodeSystem; `:above` those above it

A value set is held where it is stored here, or where R4's required bindings name it. What the stored resources do not
say, a code system that is not stored or a filter on a property, is refused: guessing would find too much or too little.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from app.errors import BadRequest
from app.search.code_system import Codes, CodeSystem
from app.search.escaping import split, unescape
from app.search.parameter import Condition, Not, Parameter, Scope
from app.search.parameters import token
from app.search.resolution import NeedsStore
from app.search.terms import Terms, any_of
from app.search.value_set import expand

if TYPE_CHECKING:
    from app.store.store import Store

_MOST_CODES = 10_000


def condition(
    parameter: Parameter, modifier: str | None, texts: Iterable[str], scope: Scope
) -> Condition:
    """What any of the values of one token parameter ask for."""
    match modifier:
        case "in":
            return InValueSet(parameter.code, parameter, _value_sets(parameter, texts, scope))
        case "not-in":
            found = InValueSet(parameter.code, parameter, _value_sets(parameter, texts, scope))
            return Not(found)
        case "below" | "above":
            concepts = tuple(_concept(parameter, modifier, text) for text in texts)
            return InHierarchy(parameter.code, parameter, modifier, concepts)
    return token.condition(parameter, modifier, texts, scope)


@dataclass(frozen=True, slots=True)
class InValueSet(NeedsStore):
    """The code is in one of these value sets."""

    parameter: Parameter
    value_sets: tuple[str, ...]

    async def resolved(self, store: Store) -> Condition:
        found: Codes = set()
        for each in self.value_sets:
            found |= await expand(store, each)
        return _coded(self.parameter, found)


@dataclass(frozen=True, slots=True)
class InHierarchy(NeedsStore):
    """The code is one of these or lies below (above) one in its code system."""

    parameter: Parameter
    direction: Literal["below", "above"]
    concepts: tuple[tuple[str, str], ...]

    async def resolved(self, store: Store) -> Condition:
        found: Codes = set()
        for system, code in self.concepts:
            held = await CodeSystem.held(store, system)
            codes = held.below(code) if self.direction == "below" else held.above(code)
            found |= {(system, each) for each in codes}
        return _coded(self.parameter, found)


def _coded(parameter: Parameter, codes: Codes) -> Terms:
    if len(codes) > _MOST_CODES:
        raise BadRequest(
            f"Search parameter '{parameter.code}' would have to compare with more than {_MOST_CODES} codes",
            code="too-costly",
            expression=f"http.{parameter.code}",
        )
    return any_of(token.coded(parameter, system, code) for system, code in sorted(codes))


def _value_sets(parameter: Parameter, texts: Iterable[str], scope: Scope) -> tuple[str, ...]:
    """Canonicals, or `ValueSet/id` for those of this server."""
    found = tuple(unescape(text).removeprefix(f"{scope.base_url}/") for text in texts)
    if not all(":" in each or each.startswith("ValueSet/") for each in found):
        raise parameter.malformed("the canonical URL of a value set")
    return found


def _concept(parameter: Parameter, modifier: str, text: str) -> tuple[str, str]:
    parts = [unescape(part) for part in split(text, "|")]
    if len(parts) != 2 or not all(parts):
        raise parameter.malformed(f"system|code after the modifier ':{modifier}'")
    return parts[0], parts[1]
