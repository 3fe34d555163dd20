"""What search depends on in one app: whether words are stored, and clients' parameters.

A process may run several apps. `create_app` makes a state for each and gives it to its store; `extract` and
`parameters` ask for the one in force. An app's is in force in all its requests, in the tasks that it starts, and in the
writes of its store, whoever calls them. Elsewhere the default is: R4's and US Core's parameters, and words.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar, TypeVarTuple

from app.search.custom import Custom

T = TypeVar("T")
Key = TypeVarTuple("Key")


class SearchState:
    """One app's; a store without an app has one of its own."""

    def __init__(self, *, has_words: bool = True) -> None:
        """`has_words`: words are stored and can be searched (settings.search_words)."""
        self.has_words = has_words
        self.custom: tuple[Custom, ...] = ()
        self.kept: defaultdict[Callable[..., Any], dict[Any, Any]] = defaultdict(dict)

    def learn(self, parameters: Iterable[Custom]) -> None:
        """Make these the parameters that clients have defined, beside those of R4 and US Core."""
        found = tuple(sorted(parameters, key=lambda each: each.id))
        if found != self.custom:
            self.custom = found
            # A new one and not an empty one: who compiles in another thread still puts its finds into the old one.
            self.kept = defaultdict(dict)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """In force inside, and in the tasks that are started there for as long as they live."""
        token = in_force.set(self)
        try:
            yield
        finally:
            in_force.reset(token)


in_force: ContextVar[SearchState] = ContextVar("search_state", default=SearchState())  # noqa: B039
# As short as it can be: every extraction asks.
current = in_force.get


def kept(find: Callable[[*Key], T]) -> Callable[[*Key], T]:
    """Keep what a function finds in the state in force, until the parameters that clients have defined change."""

    @wraps(find)
    def look_up(*key: *Key) -> T:
        known = current().kept[find]
        try:
            found: T = known[key]
        except KeyError:
            found = known[key] = find(*key)
        return found

    return look_up
