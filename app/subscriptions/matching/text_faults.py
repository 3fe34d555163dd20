"""Subscriptions whose own text cannot be evaluated, whatever record comes.

They are found when judging them failed, and when value sets or code systems change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from cachetools import TTLCache

from app.fhir.json import Resource
from app.settings import Settings
from app.store.store import Store
from app.subscriptions.matching import criteria_check
from app.subscriptions.matching.criteria import Criteria
from app.subscriptions.matching.criteria_check import TerminologyRead
from app.subscriptions.matching.judges import Failure, of_subscription, subscription_of
from app.subscriptions.topics.topics import Topic

# One that was found at fault is not settled again for so many seconds.
_SECONDS, _MOST = 30.0, 10_000


class TextFaults:
    """The faults that this process knows; `criteria_of` returns a Subscription's criteria, None where it is gone."""

    def __init__(
        self, settings: Settings, store: Store, criteria_of: Callable[[str], Criteria | None]
    ) -> None:
        self._settings = settings
        self._store = store
        self._criteria_of = criteria_of
        self._known: TTLCache[str, str] = TTLCache(_MOST, _SECONDS)
        # Those whose criteria ask for value sets or code systems.
        self._asking_codes: set[str] = set()

    @property
    def known(self) -> Mapping[str, str]:
        """The Subscriptions that were found at fault a moment ago, with the reason."""
        return self._known

    def file(self, subscription: str, criteria: Criteria) -> None:
        """Note what a Subscription asks for."""
        if any(criteria_check.codes_asked(criteria)):
            self._asking_codes.add(subscription)

    def forget(self, subscription: str) -> None:
        """Forget a Subscription, or the version of it that was known."""
        self._asking_codes.discard(subscription)
        self._known.pop(subscription, None)

    async def named(self, failures: Sequence[Failure]) -> Sequence[Failure]:
        """The failures; those whose cause is the Subscription's own text say what is wrong with it."""
        return [await self._named(each) for each in failures]

    async def _named(self, failure: Failure) -> Failure:
        subscription = subscription_of(failure.judge)
        criteria = None if subscription is None else self._criteria_of(subscription)
        if failure.is_own or subscription is None or criteria is None:
            return failure
        fault = await criteria_check.fault(self._store, criteria, self._settings)
        if fault is None:
            self._known.pop(subscription, None)
            return failure
        self._known[subscription] = str(fault)
        return Failure(failure.judge, str(fault), is_own=True)

    async def find(self) -> dict[str, str]:
        """Settle anew all criteria that ask for value sets or code systems; those at fault, with the reason."""
        self._known.clear()
        found = {}
        with self._store.search_state.applied():
            for subscription in list(self._asking_codes):
                failure = await self._named(Failure(of_subscription(subscription), ""))
                if failure.is_own:
                    found[subscription] = failure.reason
        return found

    async def needs(self, versions: Iterable[Resource], topics: Iterable[Topic]) -> bool:
        """Whether live Subscriptions, or these topics, are evaluated by one of these ValueSets or CodeSystems."""
        read = TerminologyRead(self._store)
        asked = {
            parameter
            for criteria in map(self._criteria_of, self._asking_codes)
            if criteria is not None
            for parameter in criteria_check.codes_asked(criteria)
        }
        await read.note(asked, self._settings)
        for topic in topics:
            await read.note_topic(topic)
        return any(map(read.concerns, versions))
