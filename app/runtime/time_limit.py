"""A limit on the processor time of one step that cannot be awaited, such as an expression that somebody else wrote.

Everything else of the process waits for such a step. It is broken off by a signal, which reaches Python code and the
matching of regular expressions alike.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_is_limited = False


class OutOfTimeError(Exception):
    """The step has taken all the time it was given."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Run a block, not nested in another one, with so much processor time; in the main thread, where servers run.

    Raises OutOfTimeError in it.
    """
    global _is_limited
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    if signal.getsignal(signal.SIGVTALRM) is not _interrupt:
        signal.signal(signal.SIGVTALRM, _interrupt)
    _is_limited = True
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        # First the flag: a signal that comes now interrupts nothing any more.
        _is_limited = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _interrupt(_: int, __: FrameType | None) -> None:
    global _is_limited
    if _is_limited:
        _is_limited = False
        raise OutOfTimeError
