"""An index of Subscriptions by their criteria, so that an event is tested on those only that it can concern.

Each clause is filed under the most selective term it requires: an event looks up its own terms, and its cost depends on
how many Subscriptions can match, not on how many there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from app.attribution.derived import is_derived
from app.search.search_state import current
from app.settings import Settings
from app.subscriptions.matching import criteria as criteria_
from app.subscriptions.matching.criteria import STEP, Clause, Criteria, has_token, path_of
from app.subscriptions.matching.judges import Round, of_chain, of_subscription
from app.subscriptions.matching.match_context import MatchContext
from app.subscriptions.topics.compiled_conditions import CompiledConditions
from app.subscriptions.topics.topics import Coding

_REMEMBERED = 10_000


class _Scope:
    """The Subscriptions of one topic or type. A term with one Subscription, as most have, needs no set."""

    __slots__ = ("by_term", "paths", "without_term")

    def __init__(self) -> None:
        self.by_term: dict[str, str | set[str]] = {}
        self.without_term: set[str] = set()
        self.paths: Counter[str] = Counter()

    def size(self, terms: Iterable[str]) -> int:
        found = (self.by_term.get(term, ()) for term in terms)
        return sum(1 if isinstance(members, str) else len(members) for members in found)

    def file(self, term: str, subscription: str) -> None:
        members = self.by_term.get(term)
        if members is None:
            self.by_term[term] = subscription
        elif isinstance(members, set):
            members.add(subscription)
        elif members != subscription:
            self.by_term[term] = {members, subscription}
        if members is None and (path := path_of(term)):
            self.paths[path] += 1

    def strike(self, term: str, subscription: str) -> None:
        members = self.by_term.get(term)
        if isinstance(members, set):
            members.discard(subscription)
            if members:
                return
        elif members is None or members != subscription:
            return
        del self.by_term[term]
        if path := path_of(term):
            self.paths[path] -= 1
            if not self.paths[path]:
                del self.paths[path]

    def all(self) -> set[str]:
        found = set(self.without_term)
        self.find(self.by_term, found)
        return found

    def along(self, path: str) -> set[str]:
        """The Subscriptions that are filed under a term at the end of this chain."""
        found: set[str] = set()
        self.find([term for term in self.by_term if path_of(term) == path], found)
        return found

    def find(self, terms: Iterable[str], found: set[str]) -> None:
        by_term = self.by_term
        for term in terms:
            members = by_term.get(term)
            if members is None:
                continue
            if isinstance(members, set):
                found |= members
            else:
                found.add(members)


class CriteriaIndex:
    """The index over the terms of criteria; `criteria_of` returns a Subscription's criteria, None where it is gone."""

    def __init__(self, settings: Settings, criteria_of: Callable[[str], Criteria | None]) -> None:
        self._criteria_of = criteria_of
        self._scopes: dict[str, _Scope] = {}
        # The Subscriptions that require each derived term, whatever term they are filed under.
        self._routed: dict[str, set[str]] = {}

        @lru_cache(maxsize=_REMEMBERED)
        def compiled(resource_type: str, name: str, value: str) -> CompiledConditions:
            return CompiledConditions.of(
                [criteria_.condition(resource_type, (name, value), settings)]
            )

        self._compile = compiled
        # Clients' search parameters that these were compiled by.
        self._custom = current().custom

    def _compiled(self, resource_type: str, name: str, value: str) -> CompiledConditions:
        if current().custom is not self._custom:
            self._custom = current().custom
            self._compile.cache_clear()
        return self._compile(resource_type, name, value)

    def add(self, subscription: str, criteria: Criteria) -> None:
        """File a Subscription; its earlier criteria have to be removed first."""
        scope = self._scopes.get(criteria.scope)
        if scope is None:
            scope = self._scopes[criteria.scope] = _Scope()
        for clause in criteria.clauses:
            for term in _routed(clause):
                self._routed.setdefault(term, set()).add(subscription)
            if not clause.terms:
                scope.without_term.add(subscription)
                continue
            for term in _most_selective(scope, clause):
                scope.file(term, subscription)

    def remove(self, subscription: str, criteria: Criteria) -> None:
        """Remove a Subscription; `criteria` are those that it was filed with."""
        scope = self._scopes.get(criteria.scope)
        if scope is None:
            return
        scope.without_term.discard(subscription)
        for clause in criteria.clauses:
            for term in _routed(clause):
                self._routed.get(term, set()).discard(subscription)
                if not self._routed.get(term, True):
                    del self._routed[term]
            for alternatives in clause.terms:
                for term in alternatives:
                    scope.strike(term, subscription)

    def requiring(self, terms: Iterable[str]) -> set[str]:
        """The Subscriptions whose criteria name one of these PCPs or Groups."""
        return {each for term in terms for each in self._routed.get(term, ())}

    def routed_by(self, path: str) -> set[str]:
        """The Subscriptions whose criteria name a PCP, or a Group, or a kind of facility: `path` says which."""
        return self.requiring([term for term in self._routed if term.startswith(path)])

    def subscriptions(self, scope: str) -> set[str]:
        """All Subscriptions of a topic or type."""
        filed = self._scopes.get(scope)
        return set() if filed is None else filed.all()

    def is_listened_to(self, scope: str) -> bool:
        """Whether a topic or type has any Subscription."""
        filed = self._scopes.get(scope)
        return filed is not None and bool(filed.by_term or filed.without_term)

    def filed_along(self, scope: str, path: str) -> set[str]:
        """The Subscriptions of a scope that are found by the end of a chain."""
        filed = self._scopes.get(scope)
        return set() if filed is None else filed.along(path)

    async def candidates(
        self, scope: str, context: MatchContext, asked: Round | None = None
    ) -> set[str]:
        """The Subscriptions of a scope whose term is among the version's, and those that require none.

        A chain that fails is noted in `asked`; those that are found by it are left out. Without `asked` it raises.
        """
        filed = self._scopes.get(scope)
        if filed is None:
            return set()
        found = set(filed.without_term)
        filed.find(context.terms, found)
        waiting: set[str] = set()
        for path in tuple(filed.paths):
            judge = of_chain(scope, path)
            if asked is not None and judge in asked.waiting:
                waiting |= filed.along(path)
                continue
            try:
                filed.find(await context.along(path), found)
            except Exception as error:
                if asked is None:
                    raise
                if asked.only is None or not filed.along(path).isdisjoint(asked.only):
                    asked.failed(judge, error)
        return found - waiting

    async def matching(
        self,
        scope: str,
        context: MatchContext,
        triggers: Sequence[Coding],
        asked: Round | None = None,
    ) -> list[str]:
        """The Subscriptions of a scope whose criteria hold for a version, and for the codings of what was fired.

        Each is judged by itself: one that fails is noted in `asked`. Without `asked` it raises.
        """
        found = []
        for subscription in await self.candidates(scope, context, asked):
            if asked is not None and not asked.asks(subscription):
                continue
            criteria = self._criteria_of(subscription)
            if criteria is None or (asked is not None and asked.knows_fault(subscription)):
                continue
            try:
                if await self.holds(criteria, context, triggers):
                    found.append(subscription)
            except Exception as error:
                if asked is None:
                    raise
                asked.failed(of_subscription(subscription), error)
        return found

    async def holds(
        self, criteria: Criteria, context: MatchContext, triggers: Sequence[Coding]
    ) -> bool:
        """Whether one of the clauses holds."""
        for clause in criteria.clauses:
            if await self._clause_holds(clause, context, triggers):
                return True
        return False

    async def _clause_holds(
        self, clause: Clause, context: MatchContext, triggers: Sequence[Coding]
    ) -> bool:
        if clause.resource_type not in ("", context.resource_type):
            return False
        if any(not has_token(tokens, triggers) for tokens in clause.triggers):
            return False
        for alternatives in clause.terms:
            if alternatives[0].startswith(STEP):
                if not await _is_along(alternatives, context):
                    return False
            elif context.terms.isdisjoint(alternatives):
                return False
        for parameter in clause.rest:
            if not await context.answer(self._compiled(clause.resource_type, *parameter)):
                return False
        return True


def _routed(clause: Clause) -> list[str]:
    return [term for terms in clause.terms if is_derived(terms[0]) for term in terms]


async def _is_along(alternatives: Sequence[str], context: MatchContext) -> bool:
    for term in alternatives:
        if term in await context.along(path_of(term)):
            return True
    return False


def _most_selective(scope: _Scope, clause: Clause) -> Sequence[str]:
    """Of the clause's alternatives those that the fewest Subscriptions share so far."""

    if len(clause.terms) == 1:
        return clause.terms[0]

    def cost(terms: Sequence[str]) -> tuple[int, bool, bool]:
        is_far = terms[0].startswith(STEP)
        return scope.size(terms), is_far, not any("/" in term for term in terms)

    return min(clause.terms, key=cost)
