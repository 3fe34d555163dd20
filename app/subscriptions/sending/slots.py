"""Slots for concurrent attempts, shared fairly: origins take turns, and within each origin its targets do."""

from __future__ import annotations

from collections import Counter, OrderedDict

from app.subscriptions.sending.targets import Origin, Target


class Slots:
    """A number of slots, of which one origin takes a part at most."""

    def __init__(self, most: int, most_of_origin: int) -> None:
        self._most = most
        self._most_of_origin = most_of_origin
        self._taken = 0
        self._of_origin: Counter[Origin] = Counter()
        self._waiting: OrderedDict[Origin, OrderedDict[Target, None]] = OrderedDict()

    @property
    def contended(self) -> bool:
        """Whether somebody waits for a slot."""
        return bool(self._waiting)

    def take(self, target: Target) -> bool:
        """Take a slot, if one is free."""
        origin = target.origin
        if not self._is_free(origin):
            return False
        self._taken += 1
        self._of_origin[origin] += 1
        return True

    def wait(self, target: Target) -> None:
        """Let a target wait for its turn."""
        self._waiting.setdefault(target.origin, OrderedDict())[target] = None

    def give_back(self, target: Target) -> None:
        """Free the slot of a target."""
        origin = target.origin
        self._taken -= 1
        self._of_origin[origin] -= 1
        if not self._of_origin[origin]:
            del self._of_origin[origin]

    def next(self) -> Target | None:
        """The target whose turn it is, if there is a free slot for one that waits; it waits no more."""
        for origin, targets in self._waiting.items():
            if self._is_free(origin):
                target, _ = targets.popitem(last=False)
                if targets:
                    self._waiting.move_to_end(origin)
                else:
                    del self._waiting[origin]
                return target
        return None

    def is_full_of(self, origin: Origin) -> bool:
        """Whether an origin has all the slots that it may take."""
        return self._of_origin[origin] >= self._most_of_origin

    def _is_free(self, origin: Origin) -> bool:
        return self._taken < self._most and not self.is_full_of(origin)
