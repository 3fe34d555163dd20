"""`_include` and `_revinclude`: what the matches refer to, and what refers to them.

https://hl7.org/fhir/R4/search.html#revinclude

    _include=Encounter:subject:Patient      _include=Encounter:*      _include=*
    _revinclude=Provenance:target           _revinclude=*
    _include:iterate=Patient:general-practitioner      also applied to what was included, until nothing new comes

References are read from the stored terms, so no text is decoded. A versioned reference brings the current version.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec

from app.errors import BadRequest
from app.fhir import definitions
from app.search import cost, group_members
from app.search.page_bytes import Measure, is_full, sizes
from app.search.parameter import Parameter, SearchScope, UnknownParameter
from app.search.parameters import reference
from app.search.search_parameters import parameters
from app.search.search_state import kept
from app.search.terms import EVERY

if TYPE_CHECKING:
    from app.records.reader import Reader

_KINDS = ("_include", "_revinclude")
EVERYTHING = "*"


@dataclass(frozen=True, slots=True)
class Include:
    """`source` is the type whose parameter `code` refers; None stands for any. `target` is the type referred to.

    `is_reverse` starts from what is referred to; `iterates` means that it is applied to included resources, too.
    """

    source: str | None
    code: str | None
    target: str | None
    is_reverse: bool = False
    iterates: bool = False

    def parameters(self, source: str) -> Iterator[Parameter]:
        """The reference parameters of a type that it follows."""
        if self.source not in (None, source):
            return
        found = parameters(source)
        if self.code is not None:
            yield found[self.code]
        else:
            yield from (each for each in found.values() if is_reference(each))

    def leads_to(self, parameter: Parameter, target: str) -> bool:
        """Whether it follows the parameter to this type."""
        return self.target in (None, target) and target in (parameter.targets or (target,))


def is_reference(parameter: Parameter) -> bool:
    return parameter.type == "reference" and bool(parameter.types & {"Reference", "canonical"})


def is_include(name: str) -> bool:
    """Whether a parameter of this name includes."""
    return name.partition(":")[0] in _KINDS


def parse(resource_type: str, name: str, text: str) -> Include:
    """The inclusion that one parameter asks for, in a search on a type ("" for several). Raises BadRequest."""
    kind, _, modifier = name.partition(":")
    if modifier not in ("", "iterate"):
        raise _refused(kind, f"Modifier ':{modifier}' is not supported on '{kind}'")
    is_reverse, iterates = kind == "_revinclude", modifier == "iterate"
    if text == EVERYTHING:
        return Include(None, None, None, is_reverse, iterates)
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise _refused(
            kind, f"'{kind}' must look like Type:parameter or Type:parameter:Type", "value"
        )
    source, code = parts[:2]
    target = parts[2] if len(parts) == 3 else None
    for each in (source, target):
        if each is not None and each not in definitions.SUPPORTED_TYPES:
            raise _refused(kind, f"'{kind}' names '{each}', which is no resource type served here")
    found = Include(source, None if code == EVERYTHING else code, target, is_reverse, iterates)
    _check(found, kind, resource_type)
    return found


def cost_of(include: Include) -> int:
    return cost.INCLUSION if include.source else cost.EVERYTHING


def _check(include: Include, kind: str, resource_type: str) -> None:
    if include.source is None or (include.code is None and include.target is None):
        return
    if include.code is not None:
        parameter = parameters(include.source).get(include.code)
        if parameter is None:
            raise UnknownParameter(include.source, include.code)
        if not is_reference(parameter):
            raise _refused(
                kind, f"'{include.code}' of {include.source} is no reference to include", "value"
            )
    followed = list(include.parameters(include.source))
    if include.target and not any(include.leads_to(each, include.target) for each in followed):
        raise _refused(kind, f"The reference does not lead to a '{include.target}'", "value")
    _check_start(include, kind, resource_type, followed)


def _check_start(
    include: Include, kind: str, resource_type: str, followed: Iterable[Parameter]
) -> None:
    """An inclusion that cannot start from the matches would do nothing, which nobody asks for."""
    if include.iterates or not resource_type:
        return
    if include.is_reverse:
        starts = any(include.leads_to(each, resource_type) for each in followed)
    else:
        starts = include.source == resource_type
    if not starts:
        raise _refused(
            kind,
            f"'{kind}' does not start from a {resource_type}; "
            f"to start from what was included, write {kind}:iterate",
            "value",
        )


def _refused(name: str, diagnostics: str, code: str = "not-supported") -> BadRequest:
    return BadRequest(diagnostics, code=code, expression=f"http.{name}")


@kept
def included_by(resource_type: str) -> tuple[str, ...]:
    """What `_include` takes in a search on a type."""
    codes = [each.code for each in parameters(resource_type).values() if is_reference(each)]
    return (EVERYTHING, *(f"{resource_type}:{code}" for code in sorted(codes)))


@kept
def including(resource_type: str) -> tuple[str, ...]:
    """What `_revinclude` takes in a search on a type."""
    return (EVERYTHING, *sorted(_referring().get(resource_type, ())))


@kept
def _referring() -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = {}
    for source in definitions.SUPPORTED_TYPES:
        for parameter in parameters(source).values():
            if is_reference(parameter):
                for target in parameter.targets or definitions.SUPPORTED_TYPES:
                    found.setdefault(target, []).append(f"{source}:{parameter.code}")
    return found


# Gathers what `_include` and `_revinclude` ask for, step by step until nothing new comes or the limit is reached.

_URL, _VERSION = "url=", "version="


class IncludedRow(msgspec.Struct, frozen=True, gc=False):
    """A resource of a page as it is stored; `terms` only where something is to be included.

    A struct: a page makes hundreds, and a frozen dataclass costs five times as much.
    """

    type: str
    id: str
    text: str
    terms: Sequence[str] = ()

    @property
    def key(self) -> tuple[str, str]:
        return self.type, self.id


async def included(
    store: Reader, includes: Sequence[Include], matches: Sequence[IncludedRow], scope: SearchScope
) -> tuple[list[IncludedRow], bool]:
    """The current resources that a page's matches bring along, none twice and no match; and whether these are all."""
    gathering = _Gathering(store, scope, {row.key for row in matches})
    frontier = matches
    while frontier and includes:
        frontier = await gathering.step(includes, frontier)
        includes = [each for each in includes if each.iterates]
    return gathering.found, gathering.is_complete


@dataclass(slots=True)
class _Gathering:
    store: Reader
    scope: SearchScope
    seen: set[tuple[str, str]]
    found: list[IncludedRow] = field(default_factory=list)
    is_complete: bool = True
    measure: Measure = field(default_factory=Measure)

    @property
    def _room(self) -> int:
        return self.scope.limits.included - len(self.found)

    async def step(
        self, includes: Sequence[Include], rows: Sequence[IncludedRow]
    ) -> list[IncludedRow]:
        """What one round of inclusions brings that was not there before."""
        before = len(self.found)
        for include in includes:
            if include.is_reverse:
                await self._referring(include, rows)
            else:
                await self._referred(include, rows)
        return self.found[before:]

    async def _referred(self, include: Include, rows: Sequence[IncludedRow]) -> None:
        ids: dict[str, dict[str, None]] = {}
        canonicals: dict[str, set[str]] = {}
        for row in rows:
            for parameter in include.parameters(row.type):
                terms = await self._terms(row, parameter)
                for target, name in reference.targets(parameter, terms, self.scope.base_url):
                    if include.leads_to(parameter, target) and (target, name) not in self.seen:
                        ids.setdefault(target, {})[name] = None
                if "canonical" in parameter.types:
                    for target in parameter.targets:
                        if include.leads_to(parameter, target):
                            canonicals.setdefault(target, set()).update(_urls(parameter, terms))
        for target in sorted(ids):
            await self._add(target, {"_id": {"$in": list(ids[target])}})
        for target in sorted(canonicals):
            if target in definitions.SUPPORTED_TYPES:
                await self._add_canonical(target, canonicals[target])

    async def _terms(self, row: IncludedRow, parameter: Parameter) -> Sequence[str]:
        if parameter.aside is None:
            return row.terms
        beginning = parameter.key + "="
        limit = self._room + len(self.seen) + 1
        return await group_members.first_terms(
            self.store, parameter.aside, row.id, beginning, limit
        )

    async def _referring(self, include: Include, rows: Sequence[IncludedRow]) -> None:
        sources = [include.source] if include.source else await self.store.types()
        for source in sources:
            terms: list[str] = []
            for parameter in include.parameters(source):
                targets = [row for row in rows if include.leads_to(parameter, row.type)]
                references = [f"{row.type}/{row.id}" for row in targets]
                wanted = list(reference.local(parameter, references, self.scope).equal)
                if "canonical" in parameter.types:
                    wanted += [f"{parameter.key}={url}" for row in targets for url in _own(row)]
                if parameter.aside:
                    limit = self.scope.limits.examined
                    groups = await group_members.holders(self.store, parameter.aside, wanted, limit)
                    await self._add(source, {"_id": {"$in": groups}})
                else:
                    terms += wanted
            if terms:
                await self._add(source, {"terms": {"$in": terms}})

    async def _add_canonical(self, target: str, urls: Iterable[str]) -> None:
        """Resources by their url; a version that the canonical names must be theirs."""
        for url, bar, version in sorted(each.partition("|") for each in urls):
            wanted = [{"terms": _URL + url}]
            if bar:
                wanted.append({"terms": _VERSION + version})
            await self._add(target, {"$and": wanted})

    async def _add(self, resource_type: str, filter_: dict[str, object]) -> None:
        """Add the resources of a type that match, as long as there is room."""
        known = sum(1 for kind, _ in self.seen if kind == resource_type)
        documents = await self.store.find(
            resource_type,
            {"$and": [{"terms": EVERY}, filter_]},
            sort=[("_id", 1)],
            limit=self._room + known + 1,
            projection={"text": 1, "terms": 1},
            for_page=True,
        )
        if is_full(sizes(documents)):
            self.is_complete = False
        for each in documents:
            row = IncludedRow(resource_type, each["_id"], each["text"], each["terms"])
            if row.key in self.seen:
                continue
            if self.measure.passes(len(row.text)) or self._room <= 0:
                self.is_complete = False
                return
            self.seen.add(row.key)
            self.found.append(row)


def _urls(parameter: Parameter, terms: Iterable[str]) -> set[str]:
    """The canonicals among stored terms, with a version where they have one: those are stored without it, too."""
    beginning = parameter.key + "="
    found = {term.removeprefix(beginning) for term in terms if term.startswith(beginning)}
    versioned = {each.partition("|")[0] for each in found if "|" in each}
    return {each for each in found - versioned if "://" in each or each.startswith("urn:")}


def _own(row: IncludedRow) -> list[str]:
    """The resource's own canonical urls."""
    return [term.removeprefix(_URL) for term in row.terms if term.startswith(_URL)]
