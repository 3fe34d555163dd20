"""Whether criteria can be evaluated at all: parameters that are known, value sets and code systems that are held here.

What is found wrong is the criteria's own fault, whatever records come. It is told by the parameter's name and what is
wrong with it; values, which may be about patients, are never repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from app.errors import FhirError, Issue, Unprocessable
from app.fhir.json import Resource
from app.records.reader import Reader
from app.records.versions import ResourceVersion
from app.runtime.leases import is_nobodys_fault
from app.runtime.mongo import Document
from app.search.codes_within import with_codes
from app.search.parameter import Condition
from app.search.terms import escape, shorten
from app.settings import Settings
from app.subscriptions.matching import criteria as criteria_
from app.subscriptions.matching.criteria import Criteria, Parameter, path_of
from app.subscriptions.topics.topics import Topic

_CODES = {
    "in": "the value set cannot be expanded here",
    "not-in": "the value set cannot be expanded here",
    "above": "the code system is not held here",
    "below": "the code system is not held here",
}
TERMINOLOGY = frozenset({"ValueSet", "CodeSystem"})


class Fault(NamedTuple):
    """What is wrong with one parameter."""

    parameter: str
    reason: str

    def __str__(self) -> str:
        return f"criteria, parameter {self.parameter}: {self.reason}"


async def fault(store: Reader, criteria: Criteria, settings: Settings) -> Fault | None:
    """The first parameter that cannot be settled; None where all can."""
    for resource_type, parameter in _parameters(criteria):
        found = await _fault(store, resource_type, parameter, settings)
        if found is not None:
            return found
    return None


async def topic_fault(store: Reader, topic: Topic) -> Fault | None:
    """The first trigger of a topic whose queries cannot be settled."""
    for trigger in topic.triggers:
        for query in (trigger.previous, trigger.current):
            if query is None or query.is_plain:
                continue
            for condition in query.conditions:
                if not await _is_settled(store, condition):
                    what = f"queryCriteria of a {trigger.resource_type}"
                    return Fault(what, "a value set or code system is not held here")
    return None


async def check_topic(store: Reader, topic: Topic) -> None:
    """Raises Unprocessable where the queries of a topic's triggers cannot be settled."""
    found = await topic_fault(store, topic)
    if found is not None:
        issue = Issue("not-supported", str(found), ("SubscriptionTopic.resourceTrigger",))
        raise Unprocessable(issues=[issue])


def codes_asked(criteria: Criteria) -> Iterator[tuple[str, Parameter]]:
    """The parameters that ask for value sets or hierarchies, each with its resource type."""
    for resource_type, parameter in _parameters(criteria):
        if _modifier(parameter[0]) in _CODES:
            yield resource_type, parameter


def names(criteria: Criteria) -> set[str]:
    """The codes of the search parameters that criteria are made of."""
    found: set[str] = set()
    for clause in criteria.clauses:
        for name, _ in clause.rest:
            found.update(part.partition(":")[0] for part in name.replace(":", ".").split("."))
        for alternatives in clause.terms:
            for term in alternatives:
                path = path_of(term)
                found.update(path.strip(criteria_.STEP).split(criteria_.STEP)[::2])
                found.add(term[len(path) :].partition("=")[0].partition(":")[0])
    return found


class TerminologyRead:
    """The ValueSets and CodeSystems that settling criteria asks for, by id or canonical, missing ones too."""

    def __init__(self, store: Reader) -> None:
        self._store = store
        self._ids: set[tuple[str, str]] = set()
        self._terms: set[tuple[str, str]] = set()

    async def note(self, criteria: Iterable[tuple[str, Parameter]], settings: Settings) -> None:
        """Settle parameters, and remember what they need."""
        reader: Any = self
        for resource_type, parameter in criteria:
            await _fault(reader, resource_type, parameter, settings)

    async def note_topic(self, topic: Topic) -> None:
        """Settle the queries of a topic, and remember what they need."""
        reader: Any = self
        await topic_fault(reader, topic)

    def concerns(self, resource: Resource) -> bool:
        """Whether this resource is one of those, or would be taken for one by its canonical."""
        kind = resource["resourceType"]
        url = f"url={shorten(escape(str(resource.get('url', ''))))}"
        return (kind, resource.get("id", "")) in self._ids or (kind, url) in self._terms

    # What terminology.py asks of a store.

    async def read(self, resource_type: str, resource_id: str) -> ResourceVersion | None:
        self._ids.add((resource_type, resource_id))
        return await self._store.read(resource_type, resource_id)

    async def search(
        self, resource_type: str, filter_: Document, limit: int, sort: Any = ()
    ) -> list[ResourceVersion]:
        self._terms.update((resource_type, each["terms"]) for each in filter_["$and"])
        return await self._store.search(resource_type, filter_, limit, sort)


def _parameters(criteria: Criteria) -> Iterator[tuple[str, Parameter]]:
    for clause in criteria.clauses:
        for parameter in clause.rest:
            yield clause.resource_type, parameter


async def _fault(
    store: Reader, resource_type: str, parameter: Parameter, settings: Settings
) -> Fault | None:
    name = parameter[0]
    try:
        condition = criteria_.condition(resource_type, parameter, settings)
    except FhirError as error:
        if is_nobodys_fault(error):
            raise
        return Fault(name, "it is not understood any more")
    if await _is_settled(store, condition):
        return None
    return Fault(name, _CODES.get(_modifier(name), "it cannot be settled here"))


async def _is_settled(store: Reader, condition: Condition) -> bool:
    try:
        await with_codes(store, condition)
    except FhirError as error:
        if is_nobodys_fault(error):
            raise
        return False
    return True


def _modifier(name: str) -> str:
    return name.rpartition(":")[2]
