"""The codes of a value set, as far as this server holds what it is made of.

https://hl7.org/fhir/R4/valueset.html#composition
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from app.fhir import definitions
from app.search.code_system import Codes, CodeSystem, canonical, not_held

if TYPE_CHECKING:
    from app.fhir.json import Resource
    from app.store.store import Store

_DEEPEST = 10


async def expand(store: Store, reference: str, depth: int = 0) -> Codes:
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


async def _held(store: Store, reference: str) -> Resource | None:
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


async def _included(store: Store, include: Mapping[str, Any], depth: int) -> Codes:
    """What is in the system's part and in every value set that the include names."""
    parts: list[Codes] = []
    system = include.get("system")
    if system is not None:
        parts.append(await _of_system(store, system, include))
    for each in include.get("valueSet", ()):
        parts.append(await expand(store, each, depth + 1))  # noqa: PERF401 - awaits
    return set.intersection(*parts) if parts else set()


async def _of_system(store: Store, system: str, include: Mapping[str, Any]) -> Codes:
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
