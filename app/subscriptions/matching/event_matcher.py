"""Matching an event: which Subscriptions it concerns, and which judges could not say."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from app.attribution.derived import GROUP, PCP
from app.store.events import Event
from app.subscriptions.matching.judges import Failure, Round, chain_of, subscription_of
from app.subscriptions.matching.match_context import MatchContext
from app.subscriptions.matching.registration import Registration
from app.subscriptions.matching.registry import SubscriptionRegistry
from app.subscriptions.topics.topics import Coding


@dataclass(frozen=True, slots=True)
class SubscriptionMatch:
    """A Subscription that an event concerns, and the codings of the trigger that fired and of those beside it."""

    registration: Registration
    triggers: Sequence[Coding]


@dataclass(frozen=True, slots=True)
class Matched:
    """What came of judging an event: the Subscriptions that it concerns, and the judges that could not say."""

    matches: Sequence[SubscriptionMatch] = ()
    failures: Sequence[Failure] = ()


class EventMatcher:
    """Matches events with the Subscriptions of the registry."""

    def __init__(self, registry: SubscriptionRegistry) -> None:
        self._registry = registry
        self._index = registry.index

    async def match(
        self,
        event: Event,
        only: Collection[str] | None = None,
        waiting: frozenset[str] = frozenset(),
        at: datetime | None = None,
    ) -> Matched:
        """The Subscriptions that an event concerns, each once; of `only` these, if given.

        Each topic, chain and Subscription judges by itself, but for those that are `waiting`. One that fails is among
        the failures. Raises what is nobody's fault (`is_nobodys_fault`): without a database everything waits. Topics
        may be about deletions, which are matched by the deleted version; classic Subscriptions never are. `at` is as
        of when the patient's practice is asked for, the time of the event if None.
        """
        context = self._registry.facts_of(event, at)
        if event.type == "Subscription" or context is None:
            return Matched()
        # Who is asked by name is asked anew, whatever was found before.
        faults = self._registry.faults.known if only is None else {}
        asked = Round(self._among(only, event), waiting, faults)
        found: list[SubscriptionMatch] = []
        if event.topic is not None:
            if event.topic not in waiting:
                raised = [] if event.trigger is None else [event.trigger]
                await self._collect(event.topic, context, raised, asked, found)
            return Matched(found, await self._failures(asked))
        await self._ask_topics(event, context, asked, found)
        self._registry.surroundings.note(event, self._topics_of(found))
        if event.fields is not None:
            await self._collect(event.type, context, (), asked, found)
        return Matched(found, await self._failures(asked))

    async def _ask_topics(
        self, event: Event, context: MatchContext, asked: Round, found: list[SubscriptionMatch]
    ) -> None:
        test = self._registry.asking(context)
        scopes = None if asked.only is None else self._scopes_of(asked.only)
        for topic in self._registry.catalogue.watching(event.type):
            if not self._index.is_listened_to(topic.url) or topic.url in asked.waiting:
                continue
            if scopes is not None and topic.url not in scopes:
                continue
            try:
                surroundings = self._registry.surroundings
                trigger = await topic.fired(event, test, surroundings)
                if trigger is None:
                    continue
                codings = await topic.codings_of(trigger, event, test, surroundings)
            except Exception as error:
                asked.failed(topic.url, error)
                continue
            await self._collect(topic.url, context, codings, asked, found)

    def _among(self, only: Collection[str] | None, event: Event) -> Collection[str] | None:
        """Of these Subscriptions, or of all, those that the event is for; None for all."""
        if not event.only_for:
            return only
        named = self._index.requiring(f"{PCP}={each}" for each in event.only_for)
        return named if only is None else named.intersection(only)

    def _scopes_of(self, subscriptions: Collection[str]) -> set[str]:
        return {
            found.criteria.scope
            for each in subscriptions
            if (found := self._registry.get(each)) is not None
        }

    async def _failures(self, asked: Round) -> Sequence[Failure]:
        return await self._registry.faults.named(asked.failures) if asked.failures else ()

    def judged_by(self, judge: str) -> set[str]:
        """The Subscriptions that a judge decides on, as they are now."""
        if (subscription := subscription_of(judge)) is not None:
            return {subscription}
        if (chain := chain_of(judge)) is not None:
            return self._index.filed_along(*chain)
        return self._index.subscriptions(judge)

    async def following(self, event: Event, at: datetime) -> set[str]:
        """The Subscriptions that follow a panel or Group to which the event's patient belongs at that time."""
        context = self._registry.facts_of(event, at)
        if context is None:
            return set()
        terms = [term for path in (PCP, GROUP) for term in await context.along(path)]
        return self._index.requiring(terms)

    def _topics_of(self, found: Iterable[SubscriptionMatch]) -> Iterator[str]:
        for match in found:
            registered = match.registration
            if registered.topic and self._registry.delivery_mode(registered.id) != "ended":
                yield registered.topic.url

    async def _collect(
        self,
        scope: str,
        context: MatchContext,
        codings: Sequence[Coding],
        asked: Round,
        found: list[SubscriptionMatch],
    ) -> None:
        for subscription in await self._index.matching(scope, context, codings, asked):
            known = self._registry.get(subscription)
            if known is not None and not self._registry.is_over(known):
                found.append(SubscriptionMatch(known, codings))
