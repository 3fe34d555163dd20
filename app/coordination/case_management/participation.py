"""Whether a member takes part in case management, by the latest Consent that answers that.

A permission that was taken back says no, a refusal that was taken back says nothing; nor does a draft, or a Consent
past its period.
"""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple

from app.automation.patient_resources import moment, resources_of, token
from app.consent import provisions
from app.context import Context
from app.fhir.codes import CASE_MANAGEMENT, CONSENT_CATEGORY
from app.fhir.json import Resource

_OPT_OUTS = frozenset({"OPTOUT", "OPTOUTE"})


class Decision(NamedTuple):
    """What a Consent (`Consent/c1`) says, since when; of two from one moment the refusal counts.

    `said` is its own dateTime, empty where it has none.
    """

    since: datetime
    declines: bool
    consent: str
    said: str


async def latest_decision(context: Context, patient: str) -> Decision | None:
    """The member's last word; None without any."""
    found = await resources_of(
        context, "Consent", patient, token("category", CONSENT_CATEGORY, CASE_MANAGEMENT)
    )
    decisions = [
        Decision(moment(said) or stored.at, declines, stored.reference, said or "")
        for stored in found
        if (declines := _declines(context, consent := stored.resource())) is not None
        for said in [consent.get("dateTime")]
    ]
    return max(decisions, default=None)


def _declines(context: Context, consent: Resource) -> bool | None:
    """Whether a Consent says no; None where it says nothing."""
    policies = {each.get("code") for each in consent.get("policyRule", {}).get("coding", ())}
    denies = consent.get("provision", {}).get("type") == "deny" or bool(policies & _OPT_OUTS)
    if consent["status"] == "active":
        running = provisions.is_running(consent, context.services.clock.now())
        return denies if running else None
    if consent["status"] in ("inactive", "rejected"):
        return None if denies else True
    return None
