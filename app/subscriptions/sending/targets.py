"""Delivery targets: where notices go, what is in hand for them, and how far each is trusted.

A target is a channel type with a full endpoint of one owner; the Subscriptions that are kept for one practice share it.
Its queue and its circuit are its own: what it answers, or that it hangs, concerns nobody else. Targets of one origin
(scheme, host, port) share its connections and a circuit for one thing alone: that no connection can be made.

A target begins with a few concurrent attempts, gains one with each that is answered, and keeps half when one is not.
Failures of one Subscription, and of one notice again, do not count against a target that has answered others since.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from weakref import WeakValueDictionary

from cachetools import FIFOCache

from app.network.egress_policy import origin
from app.subscriptions.channels import AttemptOutcome
from app.subscriptions.matching.registration import Registration
from app.subscriptions.sending import batching
from app.subscriptions.sending.batching import DeliveryWithEvent
from app.subscriptions.sending.circuit_breaker import Circuit
from app.subscriptions.sending.retry import REJECTIONS, Verdict

FIRST_ATTEMPTS, MOST_ATTEMPTS = 4, 32
# Rows in hand, leased and waiting: of an origin, and of all. Each may take half of what is left.
MOST_IN_HAND_OF_ORIGIN, MOST_IN_HAND = 8192, 32_768
_REMEMBERED = 10_000
_FAILED_ROWS = 1000
# So many Subscriptions of a queue are looked at for one that has not failed.
_LOOK = 32

Job = Callable[[], Awaitable[None]]


@dataclass(slots=True, eq=False, weakref_slot=True)
class Origin:
    """What all targets of one scheme, host and port share."""

    circuit: Circuit = field(default_factory=Circuit)
    in_hand: int = 0

    def room(self, now: float) -> int:
        """How many rows may be taken in hand besides those there; one where the circuit is half open."""
        if self.circuit.is_open(now):
            return 0
        return (MOST_IN_HAND_OF_ORIGIN if self.circuit.is_closed else 1) - self.in_hand


@dataclass(slots=True)
class Failing:
    """A Subscription whose last attempts failed: how many, and what the target had answered by the first of them."""

    answers: int
    count: int = 0


class RowQueue:
    """Claimed rows of one target. The Subscriptions take turns, those whose last attempt failed come last."""

    def __init__(self) -> None:
        self._rows: OrderedDict[str, deque[DeliveryWithEvent]] = OrderedDict()

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(self, row: DeliveryWithEvent) -> None:
        self._rows.setdefault(row[0].subscription, deque()).append(row)

    def take(
        self, failing: dict[str, Failing], max_count: Callable[[str], int]
    ) -> list[DeliveryWithEvent]:
        """The rows of the next notice: one, or as many as its Subscription takes."""
        first = next(iter(self._rows))
        if failing:
            looked = islice(self._rows, _LOOK)
            first = next((each for each in looked if each not in failing), first)
        queue = self._rows.pop(first)
        batch = batching.take(queue, max_count(first))
        if queue:
            self._rows[first] = queue
        return batch

    def clear(self) -> Iterator[DeliveryWithEvent]:
        """Take out all rows."""
        rows, self._rows = self._rows, OrderedDict()
        for queue in rows.values():
            yield from queue


@dataclass(slots=True, eq=False)
class Target:
    """One delivery target. `under_way` counts its concurrent jobs (dispatcher.py), `in_hand` its claimed rows."""

    origin: Origin = field(default_factory=Origin)
    circuit: Circuit = field(default_factory=Circuit)
    rows: RowQueue = field(default_factory=RowQueue)
    jobs: deque[Job] = field(default_factory=deque)
    in_hand: int = 0
    under_way: int = 0
    allowed: int = FIRST_ATTEMPTS
    answers: int = 0
    failing: dict[str, Failing] = field(default_factory=dict)
    # What the target had answered when these rows failed first.
    failed_rows: FIFOCache[str, int] = field(default_factory=lambda: FIFOCache(_FAILED_ROWS))
    attempted_at: float = 0.0
    probes: int = 0

    @property
    def is_idle(self) -> bool:
        return not (self.in_hand or self.jobs or self.under_way or self.circuit.failures)

    @property
    def is_suspect(self) -> bool:
        """Whether the next attempt may well hang or fail."""
        return bool(self.circuit.failures or self.origin.circuit.failures)

    @property
    def is_trusted(self) -> bool:
        """Whether both circuits are closed."""
        return self.circuit.is_closed and self.origin.circuit.is_closed

    def is_paused(self, now: float) -> bool:
        """Whether no attempt may be made now."""
        return self.circuit.is_open(now) or self.origin.circuit.is_open(now)

    def room(self, now: float) -> int:
        """How many rows may be taken in hand besides those there; one where the circuit is half open."""
        if self.circuit.is_open(now):
            return 0
        if not self.circuit.is_closed:
            return 1 - self.in_hand
        if self.is_suspect:
            return MOST_ATTEMPTS - self.in_hand
        return (MOST_IN_HAND_OF_ORIGIN - self.origin.in_hand - self.in_hand) // 2

    def answered(self, subscription: str) -> bool:
        """Note that an attempt was answered; returns whether that closes the circuit."""
        self.answers += 1
        self.failing.pop(subscription, None)
        self.allowed = min(MOST_ATTEMPTS, self.allowed + 1)
        return self.circuit.answered()

    def failed(
        self, now: float, subscription: str, row: str | None = None, wait: float | None = None
    ) -> None:
        """Note that an attempt failed, as the next would unless the Subscription's own notices are at fault."""
        failing = self.failing.setdefault(subscription, Failing(self.answers))
        failing.count += 1
        before = failing.answers
        if row is not None:
            before = min(before, self.failed_rows.setdefault(row, self.answers))
        if wait is None and self.answers > before:
            return
        self.allowed = max(1, self.allowed // 2)
        self.circuit.failed(now, wait)

    def failures_of(self, subscription: str) -> int:
        """How many attempts of a Subscription have failed in a row."""
        failing = self.failing.get(subscription)
        return 0 if failing is None else failing.count


class Targets:
    """The targets that this process has to do with. `owner_of` names who a Subscription's notices are sent for."""

    def __init__(
        self,
        owner_of: Callable[[Registration], str | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._owner_of = owner_of
        self._targets: dict[Hashable, Target] = {}
        self._origins: WeakValueDictionary[Hashable, Origin] = WeakValueDictionary()
        self._prune_at = _REMEMBERED
        # By Subscription, with its version.
        self._known: dict[str, tuple[int, Target]] = {}
        # Targets that had no room, though nothing was amiss.
        self._crowded: set[Target] = set()
        # Set where a circuit has closed: rows that waited for it can be sent.
        self.recovered = False
        self._pause_ends = math.inf
        # Rows of all targets.
        self.in_hand = 0

    @property
    def broken(self) -> int:
        """How many targets have a circuit that is not closed, their own or that of their origin."""
        return sum(not target.is_trusted for target in self._targets.values())

    def known(self, subscription: str) -> Target | None:
        """The target of a Subscription's notices, as far as it was asked for lately."""
        found = self._known.get(subscription)
        return None if found is None else found[1]

    def of(self, registration: Registration) -> Target:
        """The target of a Subscription's notices."""
        known = self._known.get(registration.id)
        if known is not None and known[0] == registration.version:
            return known[1]
        key, place = self._key(registration)
        target = self._targets.get(key)
        if target is None:
            if len(self._targets) >= self._prune_at:
                kept = {key: each for key, each in self._targets.items() if not each.is_idle}
                self._targets, self._prune_at = kept, max(_REMEMBERED, 2 * len(kept))
                self._known.clear()
            shared = self._origins.get(place)
            if shared is None:
                shared = self._origins[place] = Origin()
            target = self._targets[key] = Target(shared)
        if len(self._known) >= _REMEMBERED * 10:
            self._known.clear()
        self._known[registration.id] = registration.version, target
        return target

    def _key(self, registration: Registration) -> tuple[Hashable, Hashable]:
        """What tells targets apart, and what tells their origins apart."""
        channel = registration.channel
        if not channel.endpoint:
            key = (channel.type, registration.id)
            return key, key
        owner = self._owner_of(registration)
        place = _origin(channel.endpoint)
        # Mail of all addresses goes to one server.
        shared = place if place and place[1] else channel.type
        return (channel.type, channel.endpoint, owner), shared

    def take_in(self, target: Target, row: DeliveryWithEvent) -> None:
        """Take a claimed row in hand."""
        target.rows.add(row)
        self._count(target, 1)

    def let_go(self, target: Target, count: int) -> None:
        """Note that so many rows are in hand no more."""
        self._count(target, -count)

    def _count(self, target: Target, more: int) -> None:
        for counted in (target, target.origin, self):
            counted.in_hand += more

    def learn(
        self,
        target: Target,
        subscription: str,
        outcome: AttemptOutcome,
        row: str | None = None,
    ) -> None:
        """Update a target and its origin by the outcome of an attempt, at a row where it was at one."""
        now = target.attempted_at = self.clock()
        if outcome.unreachable:
            target.origin.circuit.failed(now)
            self._note_pause(target.origin.circuit, now)
            return
        if outcome.status is not None or outcome.accepted:
            self.recovered |= target.origin.circuit.answered()
        if blames_target(outcome):
            wait = outcome.retry_after if outcome.status == 429 else None
            target.failed(now, subscription, row, wait)
            self._note_pause(target.circuit, now)
        else:
            self.recovered |= target.answered(subscription)

    def _note_pause(self, circuit: Circuit, now: float) -> None:
        if circuit.is_open(now):
            self._pause_ends = min(self._pause_ends, circuit.open_until)

    def take_pause(self) -> float | None:
        """Seconds until the first pause ends that has begun since this was asked last; None without one."""
        ends, self._pause_ends = self._pause_ends, math.inf
        return None if ends == math.inf else max(0.0, ends - self.clock())

    def admission(self) -> Callable[[Registration], bool]:
        """A test of whether a row of a Subscription may be sent now, which counts those it admits."""
        now = self.clock()
        extra: Counter[int] = Counter()

        def admit(registration: Registration) -> bool:
            target = self.of(registration)
            origin = target.origin
            ours, theirs = extra[id(target)], extra[id(origin)]
            # An origin takes half of what the others leave, so that none keeps them from it.
            left = (MOST_IN_HAND - self.in_hand - extra[0] - origin.in_hand - theirs) // 2
            if min(target.room(now) - ours, origin.room(now) - theirs, left) <= 0:
                self.crowd(target)
                return False
            for counted in (id(target), id(origin), 0):
                extra[counted] += 1
            return True

        return admit

    def crowd(self, target: Target) -> None:
        """Note that a target had no room: where nothing is amiss with it, it will have some again."""
        if target.is_trusted:
            self._crowded.add(target)

    def take_recovered(self) -> bool:
        """Whether rows that waited may be taken: a circuit has closed, or a target that had no room has some again.

        Not for every place that becomes free: a read of the backlog costs the same for one row as for hundreds.
        """
        now = self.clock()
        self._crowded = {each for each in self._crowded if each.is_trusted}
        relieved = {each for each in self._crowded if each.room(now) >= each.in_hand}
        self._crowded -= relieved
        recovered, self.recovered = self.recovered, False
        return recovered or bool(relieved)


def blames_target(outcome: AttemptOutcome) -> bool:
    """Whether an outcome means that the target's next notice would fail too, whatever its content."""
    if outcome.verdict in (Verdict.DELIVERED, Verdict.REFUSED):
        return False
    status = outcome.status
    return status is None or status >= 500 or status in (408, 425, 429) or status in REJECTIONS


_origin = lru_cache(maxsize=8192)(origin)
