"""What one damaged record may stop, and how that is told.

A reaction to it, or a timer about it, fails on it at each try, is given up and asked about (dead_letter_tasks.py), so
that neither has to look whether what it needs is there. Work for many that begins anew every few seconds is never given
up: what fails over one of them is told in the log, by its id, and keeps no other from its turn.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from app.runtime.leases import is_nobodys_fault

log = logging.getLogger(__name__)


@contextmanager
def set_aside(action: str, id_: str) -> Iterator[None]:
    """Log what fails over one of many, and go on; raises what is nobody's fault."""
    try:
        yield
    except Exception as error:
        if is_nobodys_fault(error):
            raise
        told = {"action": action, "id": id_, "error": type(error).__name__}
        log.exception("set aside", extra=told)
