"""Who has no PCP, no care plan or an old one, and who has opted out of something."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta

from app.automation.patient_resources import token
from app.consent import provisions
from app.consent.judgement import WrittenConsent, directives
from app.coordination.workbench.member_findings import Asked, Finding
from app.coordination.workbench.population import without_provider
from app.fhir import json as fhir_json
from app.fhir.codes import CASE_MANAGEMENT, EPISODE_END_REASON, EPISODE_TYPE
from app.search.parameter import Filter

# A plan that nobody has written for so long is to be looked at.
_REVIEWED = timedelta(days=365)
_PLANS: Filter = {"$and": [{"terms": "status=active"}, {"terms": "intent=plan"}]}
# The end of an enrolment that goes on, and of one that has ended at no time that is known.
_OPEN = datetime.max.replace(tzinfo=UTC)
_MATTERS = {
    "case-management": "Case management is refused",
    "pcp-notification": "Notices to the primary care practice are refused",
    "provider-access": "Access by providers is refused",
    "part-2": "Disclosure of substance use treatment is refused",
}


async def no_pcp(asked: Asked) -> list[Finding]:
    """Nobody is the PCP now, by care teams, the record and rosters."""
    found = await without_provider(asked.context, asked.population)
    return [Finding(each, "No primary care provider is known") for each in found]


async def no_care_plan(asked: Asked) -> list[Finding]:
    """No active CarePlan is in its period."""
    now = asked.period.now
    planned: set[str] = set()
    ended: dict[str, tuple[date, str]] = {}
    async for patients, row in asked.population.records.read(
        "CarePlan", _PLANS, {"when": "$dates.date"}
    ):
        low, high = _span(row)
        if (low is None or low <= now) and (high is None or now <= high):
            planned.update(patients)
        elif high is not None and high < now:
            for patient in patients:
                last = (high.date(), f"CarePlan/{row['_id']}")
                ended[patient] = max(last, ended.get(patient, last))
    found = []
    for patient in asked.population.since:
        if patient in planned:
            continue
        if patient in ended:
            day, plan = ended[patient]
            found.append(Finding(patient, "The last care plan has ended", day, None, (plan,)))
        else:
            found.append(Finding(patient, "There is no active care plan"))
    return found


async def care_plan_overdue(asked: Asked) -> list[Finding]:
    """An active CarePlan is past its end, or nobody has written it for a year."""
    found = []
    now, zone = asked.period.now, asked.period.zone
    async for patients, row in asked.population.records.read(
        "CarePlan", _PLANS, {"when": "$dates.date", "at": 1}
    ):
        _, high = _span(row)
        written = row["at"].replace(tzinfo=UTC)
        records = (f"CarePlan/{row['_id']}",)
        for patient in patients:
            if high is not None and high < now:
                reason = "The care plan is active beyond its end"
                found.append(Finding(patient, reason, high.date(), high.date(), records))
            elif written + _REVIEWED < now:
                last, due = (
                    each.astimezone(zone).date() for each in (written, written + _REVIEWED)
                )
                reason = "The care plan was not written for a year"
                found.append(Finding(patient, reason, last, due, records))
    return found


def _span(row: Mapping[str, list[dict[str, datetime]]]) -> tuple[datetime | None, datetime | None]:
    when = row.get("when")
    if not when:
        return None, None
    return when[0]["lo"].replace(tzinfo=UTC), when[0]["hi"].replace(tzinfo=UTC)


async def opt_outs(asked: Asked) -> list[Finding]:
    """A Consent in force refuses something, or case management was ended by the member."""
    found = []
    async for patients, row in asked.population.records.read(
        "Consent", {"terms": "status=active"}, {"text": 1}
    ):
        consent = fhir_json.decode_stored(row["text"])
        if not provisions.is_running(consent, asked.period.now):
            continue
        for each in directives([WrittenConsent(consent)], asked.base_url):
            if each.refused:
                reason = _MATTERS.get(each.matter[0], "Disclosure is refused")
                records = (f"Consent/{row['_id']}",)
                found += [Finding(of, reason, each.since.date(), None, records) for of in patients]
                break
    return [*found, *await _opted_out(asked)]


async def _opted_out(asked: Asked) -> list[Finding]:
    """The members whose last enrolment in case management they ended themselves."""
    kind = token("type", EPISODE_TYPE, CASE_MANAGEMENT)
    reason = token("end-reason", EPISODE_END_REASON, "opted-out")
    statuses = ("active", "onhold", "planned", "waitlist", "finished")
    where: Filter = {
        "$and": [{"terms": kind}, {"terms": {"$in": [f"status={each}" for each in statuses]}}]
    }
    fields = {
        "when": "$dates.date",
        "is_over": {"$in": ["status=finished", "$terms"]},
        "opted": {"$in": [reason, "$terms"]},
    }
    last: dict[str, tuple[datetime, str, bool]] = {}
    async for patients, row in asked.population.records.read("EpisodeOfCare", where, fields):
        _, high = _span(row)
        end = high if row["is_over"] and high is not None else _OPEN
        for patient in patients:
            own = (end, f"EpisodeOfCare/{row['_id']}", row["opted"])
            last[patient] = max(own, last.get(patient, own))
    return [
        Finding(
            patient,
            "Case management was ended by the member",
            None if end == _OPEN else end.date(),
            None,
            (episode,),
        )
        for patient, (end, episode, opted) in last.items()
        if opted
    ]
