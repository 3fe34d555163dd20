"""Which reactions and timers there are, and which features keep dead letters of their own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from app.automation.reactions import Reaction
from app.automation.timers import Timer
from app.coordination.care_plans import annual, copies, quiet_period
from app.coordination.case_management import (
    case_management,
    health_risk_assessments,
    letters,
    letters_sent,
    letters_waiting,
    opt_outs,
    referral_answers,
)
from app.coordination.continuity import continuity
from app.coordination.contracts import contract_deadlines, contract_parties
from app.coordination.practices import (
    ambiguous_patient_review,
    consent_review,
    encounter_review,
    endpoint_subscriptions,
    endpoint_upkeep,
    mended_causes,
    missed_notices,
    no_recipient,
    subscription_review,
    taken_id_review,
    unmatched_review,
    untold_carried,
    untold_review,
)
from app.proof import publisher
from app.proof.unpublished import UnpublishedNotices
from app.runtime.dead_letters import Queue
from app.runtime.mongo import Mongo

REACTIONS: Sequence[Reaction] = (
    consent_review.REACTION,
    letters.REACTION,
    letters_waiting.REACTION,
    encounter_review.ENCOUNTER_REACTION,
    no_recipient.REACTION,
    endpoint_subscriptions.REACTION,
    endpoint_upkeep.REACTION,
    mended_causes.REACTION,
    missed_notices.REACTION,
    untold_carried.REACTION,
    subscription_review.REACTION,
    taken_id_review.REACTION,
    ambiguous_patient_review.REACTION,
    quiet_period.REACTION,
    copies.REACTION,
    *case_management.REACTIONS,
    opt_outs.REACTION,
    referral_answers.REACTION,
    contract_parties.REACTION,
    continuity.REACTION,
    health_risk_assessments.REACTION,
)
TIMERS: Sequence[Timer] = (
    quiet_period.QUIET,
    annual.REVIEW,
    copies.TIMER,
    continuity.TIMER,
    health_risk_assessments.TIMER,
    letters_sent.TIMER,
    letters_waiting.TIMER,
    contract_deadlines.TIMER,
    publisher.TIMER,
    unmatched_review.TIMER,
    endpoint_upkeep.TIMER,
    endpoint_upkeep.PROBE,
    mended_causes.TIMER,
    missed_notices.TIMER,
    untold_review.TIMER,
)
QUEUES: Sequence[Callable[[Mongo], Queue]] = (UnpublishedNotices,)
