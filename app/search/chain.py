"""Chained parameters and `_has`, of any depth and combined. https://hl7.org/fhir/R4/search.html#chaining

    patient.name=x                              any type the parameter may point to that has the rest
    subject:Patient.general-practitioner.name=x
    _has:Observation:patient:code=1234-5        referred to by an Observation with this code
    patient._has:Group:member:_id=g             about a member of this Group

Chains are evaluated from their end: what the last parameter finds becomes reference terms for the step before. Where a
step finds too much, the search is driven from the other side (deferred_condition.py).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.errors import BadRequest
from app.fhir import definitions
from app.search import contained, cost, group_members
from app.search.chain_step import ChainStep, alive
from app.search.deferred_condition import DeferredCondition, Document, TooMany
from app.search.parameter import Condition, Parameter, SearchScope, UnknownParameter
from app.search.parameters import reference
from app.search.parameters.special import Ids
from app.search.search_parameters import parameters
from app.search.terms import Terms, any_of, successor

if TYPE_CHECKING:
    from app.records.reader import Reader

# Reads one parameter of a type: (resource type, name, value) to its condition. Raises BadRequest.
Read = Callable[[str, str, str], Condition]

HAS = "_has"
_DEEPEST = 10
# Without a type, a chain through a reference to anything would ask every collection.
_MOST_TYPES = 16


def is_chain(name: str) -> bool:
    """Whether the name of a parameter leads through other resources."""
    return "." in name or name.partition(":")[0] == HAS


def parse(resource_type: str, name: str, text: str, scope: SearchScope, read: Read) -> Condition:
    """The condition of a chain; `read` understands what comes after its first step. Raises BadRequest."""
    if name.count(".") + name.count(HAS) > _DEEPEST:
        raise _refused(name, f"A chain may have at most {_DEEPEST} steps", "too-costly")
    if name.partition(":")[0] == HAS:
        return _has(resource_type, name, text, scope, read)
    head, _, rest = name.partition(".")
    code, _, modifier = head.partition(":")
    parameter = _reference(resource_type, code, name)
    if modifier:
        if modifier not in _types(parameter):
            raise _refused(
                name, f"'{code}' of {resource_type} does not refer to a '{modifier}'", "value"
            )
        scope.budget.spend(cost.STEP, name)
        links = [ChainStep(modifier, read(modifier, rest, text))]
    else:
        links = _untyped(parameter, rest, text, scope, read, name)
    return Chain(parameter, tuple(links), scope)


def _untyped(
    parameter: Parameter, rest: str, text: str, scope: SearchScope, read: Read, name: str
) -> list[ChainStep]:
    """A link for every type that the reference may lead to and that has the rest of the chain."""
    types = _types(parameter)
    if len(types) > _MOST_TYPES:
        raise _refused(
            name, f"Name the type that '{parameter.code}' leads to: {parameter.code}:Type.{rest}"
        )
    links: list[ChainStep] = []
    refusals: list[BadRequest] = []
    for each in types:
        scope.budget.spend(cost.STEP, name)
        try:
            links.append(ChainStep(each, read(each, rest, text)))
        except BadRequest as refusal:
            refusals.append(refusal)
    if not links:
        raise refusals[0]
    return links


def _has(resource_type: str, name: str, text: str, scope: SearchScope, read: Read) -> Condition:
    parts = name.split(":", 3)
    if len(parts) != 4 or not all(parts):
        raise _refused(name, "'_has' must look like _has:Type:reference:parameter", "value")
    _, source, code, rest = parts
    if source not in definitions.SUPPORTED_TYPES:
        raise _refused(name, f"'_has' names '{source}', which is no resource type served here")
    parameter = _reference(source, code, name)
    if resource_type not in _types(parameter):
        raise _refused(name, f"'{code}' of {source} does not refer to a '{resource_type}'", "value")
    scope.budget.spend(cost.STEP, HAS)
    return Has(resource_type, parameter, ChainStep(source, read(source, rest, text)), scope)


def _reference(resource_type: str, code: str, name: str) -> Parameter:
    """The reference parameter that a step of a chain follows."""
    parameter = parameters(resource_type).get(code)
    if parameter is None:
        raise UnknownParameter(resource_type, code)
    if not parameter.types & {"Reference", "Resource"}:
        raise _refused(
            name, f"Search parameter '{code}' of {resource_type} is no reference to follow", "value"
        )
    return parameter


def _types(parameter: Parameter) -> Sequence[str]:
    served = definitions.SUPPORTED_TYPES
    return [each for each in parameter.targets if each in served] if parameter.targets else served


def _refused(name: str, diagnostics: str, code: str = "not-supported") -> BadRequest:
    return BadRequest(diagnostics, code=code, expression=f"http.{name}")


@dataclass(frozen=True, slots=True)
class Chain(DeferredCondition):
    """A reference leads to a resource that meets a condition."""

    parameter: Parameter
    links: tuple[ChainStep, ...]
    scope: SearchScope

    @property
    def needs(self) -> dict[str, int]:
        return {"terms": 1}

    async def find(self, store: Reader) -> Condition:
        limits = self.scope.limits
        found: list[str] = []
        is_too_much = False
        for link in self.links:
            try:
                found += [f"{link.resource_type}/{each}" for each in await link.ids(store, limits)]
            except TooMany:  # the other links still have to settle before they can be tested
                is_too_much = True
        if is_too_much or len(found) > limits.found:
            raise TooMany
        condition = reference.local(self.parameter, found, self.scope)
        if self.parameter.aside:
            return await group_members.SideRows(self.parameter.aside, condition, limits).find(store)
        return any_of([condition, *self._contained()])

    def _contained(self) -> list[Terms]:
        """A chain is evaluated inside contained resources, too; its links were settled before."""
        ends = [
            contained.reached(self.parameter, link.resource_type, link.condition)
            for link in self.links
        ]
        return [each for each in ends if each is not None]

    async def test(self, store: Reader, rows: Sequence[Document]) -> set[str]:
        if self.parameter.aside:
            raise TooMany
        referring: dict[tuple[str, str], list[str]] = {}
        for row in rows:
            for target in reference.targets(self.parameter, row["terms"], self.scope.base_url):
                referring.setdefault(target, []).append(row["_id"])
        inside = any_of(self._contained())
        passed = {row["_id"] for row in rows if inside.matches(row)}
        for link in self.links:
            ids = [name for kind, name in referring if kind == link.resource_type]
            for each in await link.among(store, ids):
                passed.update(referring[link.resource_type, each])
        return passed


@dataclass(frozen=True, slots=True)
class Has(DeferredCondition):
    """A resource that meets a condition refers to this one."""

    resource_type: str
    parameter: Parameter
    link: ChainStep
    scope: SearchScope

    @property
    def needs(self) -> dict[str, int]:
        return {"_id": 1}

    async def find(self, store: Reader) -> Condition:
        limits = self.scope.limits
        condition = await self.link.settle(store)
        prefixes = self._local([""])
        if self.parameter.aside:
            groups = await self.link.ids(store, limits)
            members = await group_members.terms_of(
                store, self.parameter.aside, groups, prefixes, limits.found
            )
            if members is None:
                raise TooMany
            terms = members
        else:
            rows = await store.find(
                self.link.resource_type,
                alive(condition),
                limit=limits.found + 1,
                projection={"terms": _beginning_with(prefixes)},
            )
            if len(rows) > limits.found:
                raise TooMany
            terms = [term for row in rows for term in row["terms"]]
        ids = self._ids(terms)
        if len(ids) > limits.found:
            raise TooMany
        return Ids(tuple(ids))

    async def test(self, store: Reader, rows: Sequence[Document]) -> set[str]:
        terms = self._local([row["_id"] for row in rows])
        if self.parameter.aside:
            found = await group_members.terms_among(
                store, self.parameter.aside, self.link, terms, self.scope.limits
            )
        elif isinstance(self.link.condition, DeferredCondition):
            found = await self._test_referring(store, self.link.condition, terms)
        else:
            where = {"$and": [{"terms": {"$in": terms}}, self.link.condition.filter()]}
            found = await store.terms_among(self.link.resource_type, where, terms)
        return set(self._ids(found))

    async def _test_referring(
        self, store: Reader, condition: DeferredCondition, terms: list[str]
    ) -> list[str]:
        """The terms of all that refers to the candidates and passes a lookup in turn."""
        limit = self.scope.limits.examined
        rows = await store.find(
            self.link.resource_type,
            {"terms": {"$in": terms}},
            limit=limit + 1,
            projection={"terms": 1},
        )
        if len(rows) > limit:
            raise TooMany
        passed = await condition.test(store, rows)
        return [term for row in rows if row["_id"] in passed for term in row["terms"]]

    def _local(self, ids: Sequence[str]) -> list[str]:
        references = [f"{self.resource_type}/{each}" for each in ids]
        return list(reference.local(self.parameter, references, self.scope).equal)

    def _ids(self, terms: Sequence[str]) -> list[str]:
        targets = reference.targets(self.parameter, terms, self.scope.base_url)
        return list(dict.fromkeys(name for kind, name in targets if kind == self.resource_type))


def _beginning_with(prefixes: Sequence[str]) -> dict[str, object]:
    """The projection of an array of terms to those that begin with one of the prefixes."""
    bounds = [
        {"$and": [{"$gte": ["$$this", each]}, {"$lt": ["$$this", successor(each)]}]}
        for each in prefixes
    ]
    return {"$filter": {"input": "$terms", "cond": {"$or": bounds}}}
