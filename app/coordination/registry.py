"""Which reactions and timers there are."""

from __future__ import annotations

from collections.abc import Sequence

from app.coordination import (
    care_plan_annual,
    care_plan_watch,
    case_management,
    consents,
    continuity,
    contract_deadlines,
    encounter_review,
    endpoints,
    health_risk,
    letters,
    unrouted,
)
from app.coordination.reactions import Reaction
from app.coordination.timers import Timer
from app.proof import publisher

REACTIONS: Sequence[Reaction] = (
    consents.REACTION,
    letters.REACTION,
    encounter_review.REACTION,
    unrouted.REACTION,
    endpoints.REACTION,
    care_plan_watch.REACTION,
    *case_management.REACTIONS,
    continuity.REACTION,
    health_risk.REACTION,
)
TIMERS: Sequence[Timer] = (
    care_plan_watch.QUIET,
    care_plan_annual.REVIEW,
    continuity.TIMER,
    health_risk.TIMER,
    contract_deadlines.TIMER,
    publisher.TIMER,
)
