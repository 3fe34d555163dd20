"""Which reactions and timers there are."""

from __future__ import annotations

from collections.abc import Sequence

from app.coordination.reactions import Reaction
from app.coordination.timers import Timer

REACTIONS: Sequence[Reaction] = ()
TIMERS: Sequence[Timer] = ()
