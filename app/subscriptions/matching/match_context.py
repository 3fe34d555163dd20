"""One version of a resource as criteria are tested on it: its search fields, its terms, and its references' targets.

Chained parameters are followed from the version itself: the resources that it refers to are read once for each version,
however many Subscriptions need them, and tested in memory by the same conditions as in a search. `_has` reads the
database. Other resources count in their current version.

References that clients write lead from one resource to another: what is about others than the patients of the event is
absent, so that no counter tells of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from app.attribution.derived import Derived, is_derived
from app.authorization.relations import patients_of
from app.records.reader import Reader
from app.runtime.mongo import Document
from app.search.chain import Chain, Has
from app.search.chain_step import ChainStep
from app.search.codes_within import with_codes
from app.search.parameter import AllOf, AnyOf, Condition, Not
from app.search.parameters import reference
from app.search.resolution import is_resolved, settled
from app.search.search_parameters import parameters
from app.search.terms import EVERY
from app.subscriptions.matching.criteria import ID, STEP, near
from app.subscriptions.topics.compiled_conditions import CompiledConditions

_WITHOUT = {"text": 0, "private": 0}
# The most resources on one step of a chain; a Group of thousands is reached by `_has` instead.
_MOST = 1000


class MatchContext:
    """Tests conditions on one version. `fields` are `extract`'s, `derived` are its derived terms."""

    def __init__(
        self,
        store: Reader,
        base_url: str,
        resource_type: str,
        fields: Mapping[str, Any],
        derived: Derived | None = None,
    ) -> None:
        self._store = store
        self._base_url = base_url.rstrip("/")
        self.resource_type = resource_type
        self.fields = fields
        self._terms: set[str] | None = None
        self._rows: dict[tuple[str, str], Document | None] = {}
        self._along: dict[str, frozenset[str]] = {}
        # By the condition's identity: many Subscriptions share one, and its value sets are read once for each version.
        self._with_codes: dict[int, tuple[Condition, Condition]] = {}
        self._derived = derived
        self._patients: frozenset[str] | None = None

    @property
    def terms(self) -> set[str]:
        """Its own terms, references under the server's base as relative ones."""
        if self._terms is None:
            terms, base_url = self.fields["terms"], self._base_url
            self._terms = {near(term, base_url) for term in terms} if base_url else set(terms)
            if "_id" in self.fields:
                self._terms.add(ID + self.fields["_id"])
        return self._terms

    async def along(self, path: str) -> frozenset[str]:
        """The terms at the end of a chain `>code>Type>`, or derived ones, each with its path."""
        if is_derived(path):
            return frozenset() if self._derived is None else await self._derived.along(path)
        if path not in self._along:
            steps = path.strip(STEP).split(STEP)
            fields: list[Mapping[str, Any]] = [self.fields]
            at = self.resource_type
            for code, target in zip(steps[::2], steps[1::2], strict=True):
                fields = [
                    row for each in fields for row in await self._next(at, each, code, target)
                ]
                at = target
            self._along[path] = frozenset(
                path + near(term, self._base_url)
                for each in fields
                for term in (*each["terms"], f"{ID}{each['_id']}")
            )
        return self._along[path]

    async def answer(self, question: CompiledConditions) -> bool:
        """Whether all conditions hold. Raises FhirError where one cannot be settled."""
        if question.is_plain:
            return all(condition.matches(self.fields) for condition in question.conditions)
        for condition in question.conditions:
            if id(condition) not in self._with_codes:
                settled_codes = await with_codes(self._store, condition)
                self._with_codes[id(condition)] = (condition, settled_codes)
            _, condition = self._with_codes[id(condition)]
            if not await self._holds(condition, self.resource_type, self.fields):
                return False
        return True

    async def _holds(
        self, condition: Condition, resource_type: str, fields: Mapping[str, Any]
    ) -> bool:
        if is_resolved(condition):
            return condition.matches(fields)
        match condition:
            case Not(inner):
                return not await self._holds(inner, resource_type, fields)
            case AnyOf(conditions):
                return any([await self._holds(each, resource_type, fields) for each in conditions])
            case AllOf(conditions):
                return all([await self._holds(each, resource_type, fields) for each in conditions])
            case Chain(parameter, links):
                return await self._leads_to(parameter.code, links, resource_type, fields)
            case Has(link=link):
                return await self._is_referred_to(condition, link, fields)
        # Aside conditions (members of a Group) are in the fields; the store settles all others.
        if "rows" in fields:
            return condition.matches(fields)
        return (await settled(self._store, condition)).matches(fields)

    async def _leads_to(
        self, code: str, links: Iterable[ChainStep], resource_type: str, fields: Mapping[str, Any]
    ) -> bool:
        for link in links:
            for row in await self._next(resource_type, fields, code, link.resource_type):
                if await self._holds(link.condition, link.resource_type, row):
                    return True
        return False

    async def _is_referred_to(self, has: Has, link: ChainStep, fields: Mapping[str, Any]) -> bool:
        condition = link.condition
        if not isinstance(condition, Chain | Has):
            condition = await settled(self._store, condition)
        fresh = replace(has, link=ChainStep(link.resource_type, condition))
        row = {"_id": fields.get("_id", ""), "terms": fields["terms"]}
        return row["_id"] in await fresh.test(self._store, [row])

    async def _next(
        self, resource_type: str, fields: Mapping[str, Any], code: str, target: str
    ) -> list[Document]:
        """The resources of a type that a reference parameter leads to, as they are now."""
        terms = (*fields["terms"], *fields.get("rows", ()))
        parameter = parameters(resource_type)[code]
        found = reference.targets(parameter, terms, self._base_url)
        keys = list(dict.fromkeys(key for key in found if key[0] == target))[:_MOST]
        unread = [key[1] for key in keys if key not in self._rows]
        if unread:
            where = {"_id": {"$in": unread}, "terms": EVERY}
            rows = await self._store.find(target, where, projection=_WITHOUT)
            # Nothing is remembered where a damaged row raises: whoever asks next must not take it for absent.
            ours = {(target, row["_id"]): row for row in rows if self._is_ours(target, row)}
            self._rows.update({(target, each): ours.get((target, each)) for each in unread})
        return [row for key in keys if (row := self._rows[key]) is not None]

    def _is_ours(self, resource_type: str, row: Document) -> bool:
        """Whether a resource is about nobody else than the version is; one that is about nobody leads anywhere."""
        if self._patients is None:
            fields = {"_id": "", **self.fields}
            self._patients = patients_of(self.resource_type, fields, self._base_url)
        return not self._patients or (
            patients_of(resource_type, row, self._base_url) <= self._patients
        )
