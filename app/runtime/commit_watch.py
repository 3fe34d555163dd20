"""The commits of one store: how long they take, how they end, and whether any gets through."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from app.runtime.metrics import COMMITS


class CommitWatch:
    """Watches each commit. One has got through where the database has answered it, be it with a conflict.

    `conflict` is the exception of a commit that another writer was faster than, `failures` are those of a database that
    did not take it.
    """

    def __init__(self, conflict: type[Exception], failures: tuple[type[Exception], ...]) -> None:
        self._conflict = conflict
        self._failures = failures
        self.under_way = 0
        self._stalled: float | None = None

    @contextmanager
    def commit(self) -> Iterator[None]:
        begun = time.monotonic()
        if not self.under_way:
            self._stalled = begun
        self.under_way += 1
        outcome = "given-up"
        try:
            yield
            outcome = "committed"
        except self._conflict:
            outcome = "conflict"
            raise
        except self._failures:
            outcome = "failed"
            raise
        except Exception:
            outcome = "refused"
            raise
        finally:
            now = time.monotonic()
            self.under_way -= 1
            if outcome not in ("failed", "given-up"):
                self._stalled = now
            COMMITS.observe(now - begun, outcome)

    @property
    def stalled(self) -> float:
        """The seconds for which commits have been waiting without one that got through."""
        if not self.under_way or self._stalled is None:
            return 0.0
        return time.monotonic() - self._stalled
