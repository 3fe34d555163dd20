"""Measure/carerelay-notice-timeliness/$evaluate-measure: the timeliness of notices of admissions and discharges.

http://carerelay.example/OperationDefinition/Measure-evaluate-measure; docs/proof.md has the definitions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import date

from app.authentication.scopes import Action
from app.context import Context
from app.errors import BadRequest, Unprocessable
from app.fhir import json as fhir_json
from app.fhir.codes import INPATIENT
from app.fhir.instants import days_in
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.proof.measure_report import MEASURE_ID, as_csv, measure_report
from app.proof.stays import StaysQuery, happenings
from app.proof.timeliness import Timeliness, measure

# The rights that counting takes.
NEEDS: tuple[tuple[str, tuple[Action, ...]], ...] = (
    ("Encounter", ("r", "s")),
    ("Communication", ("s",)),
)
_PRACTICES = ("Organization", "Practitioner", "PractitionerRole")
# A report reads every stay of its period.
_MOST_DAYS = 366


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """The MeasureReport. Only this one measure can be evaluated here, and only for all stays that the caller sees."""
    await interactions.current(context, *invocation.instance)
    if invocation.resource_id != MEASURE_ID:
        raise Unprocessable("Only this server's own measure can be evaluated", code="not-supported")
    if invocation.one("reportType") not in (None, "population", "summary"):
        raise Unprocessable(
            "Only population reports are made", code="not-supported", expression="reportType"
        )
    organization, practitioner = invocation.one("organization"), invocation.one("practitioner")
    if organization and practitioner:
        raise BadRequest("One practice at a time", expression="practitioner")
    query = read(
        invocation.one("periodStart"),
        invocation.one("periodEnd"),
        organization or practitioner,
        invocation.all("class"),
    )
    found = await evaluate(context, query)
    report = measure_report(found, query, context.services.clock.now())
    return InteractionResult(200, text=fhir_json.encode(report))


def read(
    start: str | None, end: str | None, practice: str | None, classes: Sequence[str]
) -> StaysQuery:
    """The query of a request. Raises BadRequest for a period that is missing, no dates, reversed or too long."""
    first, last = _days("periodStart", start)[0], _days("periodEnd", end)[1]
    if last < first:
        raise BadRequest("The period ends before it begins", code="value", expression="periodEnd")
    if (last - first).days >= _MOST_DAYS:
        raise BadRequest("A period is at most a year", code="too-long", expression="periodEnd")
    if practice is not None and practice.partition("/")[0] not in _PRACTICES:
        raise BadRequest(
            f"A practice is a reference to {', '.join(_PRACTICES)}",
            code="value",
            expression="organization",
        )
    wanted = [each for text in classes for each in text.split(",") if each]
    if any(not each.isalnum() for each in wanted):
        raise BadRequest("A class is a code of v3-ActCode", code="value", expression="class")
    return StaysQuery(first, last, practice, tuple(wanted) or INPATIENT)


def _days(name: str, text: str | None) -> tuple[date, date]:
    """The first and the last day of a day, a month or a year."""
    if not text:
        raise BadRequest(f"The parameter {name} is missing", code="required", expression=name)
    return days_in(text, name)


async def evaluate(context: Context, query: StaysQuery) -> Timeliness:
    """The tallies of the measure, of the stays that the caller may see; a practice's, as far as they are its own."""
    access = context.access
    if access is not None and access.caller.role == "practice":
        query = replace(query, family=await access.family())
    return await measure(context, happenings(context, query))


async def csv_of(context: Context, query: StaysQuery) -> str:
    """The tallies of the measure as CSV."""
    return as_csv(await evaluate(context, query))
