"""What a Subscription listens for, compiled, and the index that finds the few an event can concern.

https://hl7.org/fhir/R4/subscription.html (criteria) and the filter grammar of the Subscriptions R5 Backport guide.
Criteria are judged on the state after a change; whatever cannot be judged in memory is refused, never skipped.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from app.definitions import SUPPORTED_TYPES
from app.errors import Unprocessable
from app.mongo import Document
from app.search import query
from app.search.query import Query
from app.settings import Settings
from app.subscriptions.topics import TRIGGER_FILTER, Coding, Topic, query_parameters

CLASSIC = re.compile(r"^([A-Z][A-Za-z]+)\?(.*)$", re.DOTALL)
_TOPIC_FILTER = re.compile(r"^(?:([A-Z][A-Za-z]+)[.?])?(.+)$", re.DOTALL)
# Of the parameters of every type, those that are read off the resource itself.
_COMMON = frozenset({"_id", "_tag", "_profile", "_security", "_source"})

# A coding to look for in the trigger part; a system of None matches any.
TriggerToken = tuple[str | None, str]


@dataclass(frozen=True, slots=True)
class Criteria:
    """`scope` is what must have happened at all: a topic's URL, or a resource type for a classic Subscription."""

    scope: str
    resource_type: str
    query: Query | None = None
    triggers: tuple[frozenset[TriggerToken], ...] = ()

    def matches(self, fields: Document, trigger: Coding | None) -> bool:
        """Whether these search fields, and the coding of what fired, pass every filter."""
        if any(not _has_token(tokens, trigger) for tokens in self.triggers):
            return False
        return self.query is None or bool(self.query.matches(fields))


def classic(text: str, settings: Settings) -> Criteria:
    """Compile `Type?query`. Raises FhirError for what cannot be understood or evaluated in memory."""
    match = CLASSIC.match(text)
    if match is None:
        raise Unprocessable(
            "Criteria must be a known topic's canonical or `Type?parameters`", code="value"
        )
    resource_type, parameters = match[1], _parameters(match[2])
    if resource_type not in SUPPORTED_TYPES:
        raise Unprocessable("Unknown resource type", code="not-supported")
    if resource_type == "Subscription":
        raise Unprocessable("Subscriptions cannot be subscribed to", code="not-supported")
    return Criteria(resource_type, resource_type, _query(resource_type, parameters, settings))


def topic_based(topic: Topic, filters: Sequence[str], settings: Settings) -> Criteria:
    """Compile the filters of a topic-based Subscription: all of them must hold.

    Raises FhirError for a filter key or modifier that the topic does not define, and for values that cannot be read.
    """
    parameters: list[tuple[str, str]] = []
    triggers: list[frozenset[TriggerToken]] = []
    for text in filters:
        for name, value in _filter_parameters(topic, text):
            _check_filter(topic, name)
            if name == TRIGGER_FILTER:
                triggers.append(_trigger_tokens(topic, value))
            else:
                parameters.append((name, value))
    compiled = _query(topic.resource_type, parameters, settings) if parameters else None
    return Criteria(topic.url, topic.resource_type, compiled, tuple(triggers))


def _filter_parameters(topic: Topic, text: str) -> list[tuple[str, str]]:
    """`param=value`, `Type.param=value` or `Type?param=value&param=value`."""
    match = _TOPIC_FILTER.match(text)
    if match is None:
        raise Unprocessable("The filter is empty", code="value")
    if match[1] not in (None, topic.resource_type):
        raise Unprocessable(
            f"The topic has no filters on this type, only on {topic.resource_type}",
            code="not-supported",
        )
    parameters = _parameters(match[2])
    if not parameters:
        raise Unprocessable("The filter is empty", code="value")
    return parameters


def _check_filter(topic: Topic, name: str) -> None:
    key, _, modifier = name.partition(":")
    if key not in topic.filters:
        known = ", ".join(sorted(topic.filters))
        raise Unprocessable(f"The topic has no such filter; it has {known}", code="not-supported")
    if modifier and modifier not in topic.filters[key]:
        raise Unprocessable(f"The filter {key} does not take this modifier", code="not-supported")


def _parameters(text: str) -> list[tuple[str, str]]:
    try:
        return query_parameters(text)
    except ValueError:
        raise Unprocessable("Filters must have the form name=value", code="value") from None


def _query(resource_type: str, parameters: Sequence[tuple[str, str]], settings: Settings) -> Query:
    for name, value in parameters:
        key = name.partition(":")[0]
        if not value:
            raise Unprocessable(f"The parameter {key} has no value", code="value")
        if "." in name or key == "_has" or (key.startswith("_") and key not in _COMMON):
            raise Unprocessable(
                f"The parameter {name} cannot be evaluated when a resource changes",
                code="not-supported",
            )
    return query.parse(resource_type, list(parameters), lenient=False, settings=settings)


def _trigger_tokens(topic: Topic, value: str) -> frozenset[TriggerToken]:
    tokens = set()
    for item in value.split(","):
        system, bar, code = item.rpartition("|")
        token = (system if bar else None, code)
        if not any(_has_token({token}, coding) for coding in topic.codings()):
            raise Unprocessable("The topic has no such trigger", code="code-invalid")
        tokens.add(token)
    return frozenset(tokens)


def _has_token(tokens: Iterable[TriggerToken], coding: Coding | None) -> bool:
    return coding is not None and any(
        code == coding["code"] and system in (None, coding["system"]) for system, code in tokens
    )


class CriteriaIndex:
    """Subscriptions by scope and by the most selective equality term each of them demands.

    An event looks up its own terms, so its cost depends on how many subscriptions can match, not on how many there are.
    """

    def __init__(self) -> None:
        self._by_term: dict[tuple[str, str], set[str]] = {}
        self._without_term: dict[str, set[str]] = {}
        self._criteria: dict[str, Criteria] = {}
        self._keys: dict[str, list[tuple[str, str]]] = {}

    def __len__(self) -> int:
        return len(self._criteria)

    def add(self, subscription: str, criteria: Criteria) -> None:
        """Add or replace one."""
        self.remove(subscription)
        self._criteria[subscription] = criteria
        keys = self._most_selective(criteria)
        if not keys:
            self._without_term.setdefault(criteria.scope, set()).add(subscription)
            return
        self._keys[subscription] = keys
        for key in keys:
            self._by_term.setdefault(key, set()).add(subscription)

    def remove(self, subscription: str) -> None:
        criteria = self._criteria.pop(subscription, None)
        if criteria is None:
            return
        for key in self._keys.pop(subscription, ()):
            _discard(self._by_term, key, subscription)
        _discard(self._without_term, criteria.scope, subscription)

    def candidates(self, scope: str, terms: Iterable[str]) -> set[str]:
        """The subscriptions of a scope whose term is among these, and those that demand none."""
        found = set(self._without_term.get(scope, ()))
        for term in terms:
            found |= self._by_term.get((scope, term), set())
        return found

    def matching(self, scope: str, fields: Document, trigger: Coding | None) -> Iterator[str]:
        """The subscriptions of a scope whose criteria hold."""
        for subscription in self.candidates(scope, fields["terms"]):
            if self._criteria[subscription].matches(fields, trigger):
                yield subscription

    def _most_selective(self, criteria: Criteria) -> list[tuple[str, str]]:
        """Of the alternatives that must hold, the one whose terms the fewest subscriptions share so far."""
        if criteria.query is None:
            return []
        alternatives = equality_terms(criteria.query.filter)
        if not alternatives:
            return []

        def cost(terms: Sequence[str]) -> tuple[int, bool]:
            crowd = sum(len(self._by_term.get((criteria.scope, term), ())) for term in terms)
            return crowd, not any("/" in term for term in terms)

        return [(criteria.scope, term) for term in min(alternatives, key=cost)]


def equality_terms(filter_: Mapping[str, object]) -> list[list[str]]:
    """What a MongoDB filter demands of `terms`: of each inner list, at least one must be there."""
    found: list[list[str]] = []
    for key, condition in filter_.items():
        if key == "$and" and isinstance(condition, list):
            for part in condition:
                found.extend(equality_terms(part))
        elif key == "terms":
            found.extend(_terms_of(condition))
    return found


def _terms_of(condition: object) -> list[list[str]]:
    if isinstance(condition, str):
        return [] if condition == "*" else [[condition]]
    if not isinstance(condition, Mapping):
        return []
    found: list[list[str]] = []
    for operator, operand in condition.items():
        if operator == "$eq":
            found.extend(_terms_of(operand))
        elif operator == "$in" and all(isinstance(term, str) for term in operand):
            found.append(list(operand))
        elif operator == "$all":
            found.extend(found_term for term in operand for found_term in _terms_of(term))
    return found


def _discard(index: dict[object, set[str]] | dict, key: object, subscription: str) -> None:  # type: ignore[type-arg]
    members = index.get(key)
    if members is not None:
        members.discard(subscription)
        if not members:
            del index[key]
