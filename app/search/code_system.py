"""A stored CodeSystem as its codes and their hierarchy. https://hl7.org/fhir/R4/codesystem.html

The hierarchy is what nested concepts say, and the standard properties `parent` and `child`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from app.errors import BadRequest
from app.search.terms import escape, shorten

if TYPE_CHECKING:
    from app.fhir.json import Resource
    from app.store.store import Store

# (system, code)
Codes = set[tuple[str, str]]


def not_held(what: str) -> BadRequest:
    """The refusal where an answer needs what is not stored here."""
    return BadRequest(what, code="not-supported")


async def canonical(store: Store, resource_type: str, url: str) -> Resource | None:
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
    async def held(cls, store: Store, system: str) -> CodeSystem:
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
