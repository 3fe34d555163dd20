"""The judges of an event, each asked by itself: a topic, a Subscription's criteria, a chain that many criteria share.

A judge is named `Subscription/<id>`, by a topic's URL, or by scope and chain (`Encounter >subject>Patient>`). One that
fails says nothing about the others.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from app.runtime.leases import is_nobodys_fault

# In place of a judge where the event as a whole failed: whoever it concerns.
ALL = "all"
_SUBSCRIPTION = "Subscription/"


class Failure(NamedTuple):
    """A judge that could not say whether an event concerns it. `reason` has types and places, never a value.

    `is_own`: the judge's own text is at fault, whatever the event; otherwise the record may be.
    """

    judge: str
    reason: str
    is_own: bool = False


def of_subscription(subscription: str) -> str:
    return _SUBSCRIPTION + subscription


def of_chain(scope: str, path: str) -> str:
    return f"{scope} {path}"


def subscription_of(judge: str) -> str | None:
    """The id of the Subscription that a judge is; None for other judges."""
    return judge.removeprefix(_SUBSCRIPTION) if judge.startswith(_SUBSCRIPTION) else None


def chain_of(judge: str) -> tuple[str, str] | None:
    """The scope and path of a judge that is a chain."""
    scope, blank, path = judge.partition(" ")
    return (scope, path) if blank else None


@dataclass(slots=True)
class Round:
    """One look at an event: who is asked, and who failed.

    `only` are the Subscriptions that are asked, None for all. `waiting` judges are not asked: an older version still
    waits for them. `faults` are the Subscriptions whose own text is known to be at fault, with the reason.
    """

    only: Collection[str] | None = None
    waiting: frozenset[str] = frozenset()
    faults: Mapping[str, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)

    def asks(self, subscription: str) -> bool:
        """Whether the Subscription is to be judged."""
        if self.only is not None and subscription not in self.only:
            return False
        return not self.waiting or of_subscription(subscription) not in self.waiting

    def failed(self, judge: str, error: Exception) -> None:
        """Note a judge's failure. Raises the error where it is nobody's: the database was away, everything waits."""
        if is_nobodys_fault(error):
            raise error
        self.failures.append(Failure(judge, type(error).__name__))

    def knows_fault(self, subscription: str) -> bool:
        """Whether the Subscription's text is known to be at fault, which then is noted."""
        reason = self.faults.get(subscription)
        if reason is None:
            return False
        self.failures.append(Failure(of_subscription(subscription), reason, is_own=True))
        return True
