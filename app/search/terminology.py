"""Token modifiers that ask the ValueSets and CodeSystems this server holds. https://hl7.org/fhir/R4/search.html#token

    code:in=http://example.org/ValueSet/x      `:not-in` the same negated; also ValueSet/id, and url|version
    code:below=http://example.org/cs|abc       the code and all below it in its CodeSystem; `:above` those above it

A value set is held where it is stored here, or where R4's required bindings name it. What the stored resources do not
say, a code system that is not stored or a filter on a property, is refused: guessing would find too much or too little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from app.errors import BadRequest
from app.fhir import definitions
from app.search.escaping import split, unescape
from app.search.parameter import Condition, Not, Parameter, SearchScope
from app.search.parameters import token
from app.search.resolution import NeedsStore
from app.search.terms import Terms, any_of, escape, shorten

if TYPE_CHECKING:
    from app.fhir.json import Resource
    from app.records.reader import Reader

_MOST_CODES = 10_000


def condition(
    parameter: Parameter, modifier: str | None, texts: Iterable[str], scope: SearchScope
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

    async def resolved(self, store: Reader) -> Condition:
        found: Codes = set()
        for each in dict.fromkeys(self.value_sets):
            found |= await expand(store, each)
            _check_number(self.parameter, found)
        return _coded(self.parameter, found)


@dataclass(frozen=True, slots=True)
class InHierarchy(NeedsStore):
    """The code is one of these or lies below (above) one in its code system."""

    parameter: Parameter
    direction: Literal["below", "above"]
    concepts: tuple[tuple[str, str], ...]

    async def resolved(self, store: Reader) -> Condition:
        found: Codes = set()
        for system, code in dict.fromkeys(self.concepts):
            held = await CodeSystem.held(store, system)
            codes = held.below(code) if self.direction == "below" else held.above(code)
            found |= {(system, each) for each in codes}
            _check_number(self.parameter, found)
        return _coded(self.parameter, found)


def _coded(parameter: Parameter, codes: Codes) -> Terms:
    _check_number(parameter, codes)
    return any_of(token.coded(parameter, system, code) for system, code in sorted(codes))


def _check_number(parameter: Parameter, codes: Codes) -> None:
    if len(codes) > _MOST_CODES:
        raise BadRequest(
            f"Search parameter '{parameter.code}' would have to compare with more than {_MOST_CODES} codes",
            code="too-costly",
            expression=f"http.{parameter.code}",
        )


def _value_sets(parameter: Parameter, texts: Iterable[str], scope: SearchScope) -> tuple[str, ...]:
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


# A stored CodeSystem as its codes and their hierarchy. https://hl7.org/fhir/R4/codesystem.html
#
# The hierarchy is what nested concepts say, and the standard properties `parent` and `child`.

# (system, code)
Codes = set[tuple[str, str]]


def not_held(what: str) -> BadRequest:
    """The refusal where an answer needs what is not stored here."""
    return BadRequest(what, code="not-supported")


async def canonical(store: Reader, resource_type: str, url: str) -> Resource | None:
    """The stored resource with a canonical url, `url|version` for one version; of several the newest."""
    plain, _, version = url.partition("|")
    conditions = [{"terms": f"url={shorten(escape(plain))}"}]
    if version:
        conditions.append({"terms": f"version={shorten(escape(version))}"})
    found = await store.search(resource_type, {"$and": conditions}, 1, [("at", -1)])
    return found[0].resource() if found else None


@dataclass(slots=True)
class CodeSystem:
    """Codes with what lies directly above and below each."""

    parents: dict[str, set[str]] = field(default_factory=dict)
    children: dict[str, set[str]] = field(default_factory=dict)

    @classmethod
    async def held(cls, store: Reader, system: str) -> CodeSystem:
        """The stored code system. Raises BadRequest where it, or its content, is not stored here."""
        resource = await canonical(store, "CodeSystem", system)
        if resource is None:
            raise not_held(f"The code system {system} is not stored on this server")
        if resource.get("content") != "complete":
            raise not_held(f"The code system {system} is stored here without all its codes")
        return cls.of(resource)

    @classmethod
    def of(cls, resource: Resource) -> CodeSystem:
        """The codes of a CodeSystem resource."""
        found = cls()
        found._add(resource.get("concept", ()), None)
        return found

    @property
    def codes(self) -> Iterable[str]:
        return self.parents.keys()

    def below(self, code: str) -> set[str]:
        """The code and all that it subsumes."""
        return _reached(code, self.children)

    def above(self, code: str) -> set[str]:
        """The code and all that subsume it."""
        return _reached(code, self.parents)

    def _add(self, concepts: Iterable[Mapping[str, Any]], parent: str | None) -> None:
        for concept in concepts:
            code = concept["code"]
            self._link(code, parent)
            for each in concept.get("property", ()):
                if each["code"] in ("parent", "subsumedBy"):
                    self._link(code, each.get("valueCode"))
                elif each["code"] == "child" and "valueCode" in each:
                    self._link(each["valueCode"], code)
            self._add(concept.get("concept", ()), code)

    def _link(self, code: str, parent: str | None) -> None:
        self.parents.setdefault(code, set())
        self.children.setdefault(code, set())
        if parent is not None:
            self.parents[code].add(parent)
            self.children.setdefault(parent, set()).add(code)


def _reached(start: str, links: Mapping[str, set[str]]) -> set[str]:
    found = {start}
    ahead = [start]
    while ahead:
        for each in links.get(ahead.pop(), ()):
            if each not in found:
                found.add(each)
                ahead.append(each)
    return found


# The codes of a value set, as far as this server holds what it is made of.
#
# https://hl7.org/fhir/R4/valueset.html#composition

_DEEPEST = 10


async def expand(store: Reader, reference: str, depth: int = 0) -> Codes:
    """The codes of a value set, by its canonical or as `ValueSet/id`. Raises BadRequest, saying what is missing."""
    if depth > _DEEPEST:
        raise not_held("The value sets include one another without end")
    resource = await _held(store, reference)
    if resource is None:
        required = definitions.required_codes(reference.partition("|")[0])
        if required is None:
            raise not_held(f"The value set {reference} is not stored on this server")
        return {(system, code) for system, codes in required.items() for code in codes}
    if "compose" not in resource:
        return set(_contained(resource.get("expansion", {}).get("contains", ())))
    compose = resource["compose"]
    found: Codes = set()
    for include in compose.get("include", ()):
        found |= await _included(store, include, depth)
    for exclude in compose.get("exclude", ()):
        found -= await _included(store, exclude, depth)
    return found


async def _held(store: Reader, reference: str) -> Resource | None:
    if not reference.startswith("ValueSet/"):
        return await canonical(store, "ValueSet", reference)
    stored = await store.read("ValueSet", reference.removeprefix("ValueSet/"))
    return None if stored is None or stored.deleted else stored.resource()


def _contained(entries: Iterable[Mapping[str, Any]]) -> Iterable[tuple[str, str]]:
    """The codes of an expansion; abstract ones are there for order only."""
    for entry in entries:
        if "code" in entry and not entry.get("abstract"):
            yield entry.get("system", ""), entry["code"]
        yield from _contained(entry.get("contains", ()))


async def _included(store: Reader, include: Mapping[str, Any], depth: int) -> Codes:
    """What is in the system's part and in every value set that the include names."""
    parts: list[Codes] = []
    system = include.get("system")
    if system is not None:
        parts.append(await _of_system(store, system, include))
    for each in dict.fromkeys(include.get("valueSet", ())):
        parts.append(await expand(store, each, depth + 1))  # noqa: PERF401 - awaits
    return set.intersection(*parts) if parts else set()


async def _of_system(store: Reader, system: str, include: Mapping[str, Any]) -> Codes:
    if "concept" in include:
        return {(system, concept["code"]) for concept in include["concept"]}
    version = include.get("version")
    held = await CodeSystem.held(store, f"{system}|{version}" if version else system)
    found = set(held.codes)
    for filter_ in include.get("filter", ()):
        found &= _filtered(held, filter_)
    return {(system, code) for code in found}


def _filtered(held: CodeSystem, filter_: Mapping[str, str]) -> set[str]:
    """https://hl7.org/fhir/R4/valueset-filter-operator.html, on the concept itself."""
    value = filter_["value"]
    match filter_["property"], filter_["op"]:
        case "concept" | "code", "is-a":
            return held.below(value)
        case "concept" | "code", "descendent-of":
            return held.below(value) - {value}
        case "concept" | "code", "is-not-a":
            return set(held.codes) - held.below(value)
        case "concept" | "code", "generalizes":
            return held.above(value)
        case "concept" | "code", "=":
            return {value}
        case "concept" | "code", "in":
            return {each.strip() for each in value.split(",")}
        case "concept" | "code", "not-in":
            return set(held.codes) - {each.strip() for each in value.split(",")}
    raise not_held(
        f"A value set's filter '{filter_['op']}' on '{filter_['property']}' is not supported"
    )
