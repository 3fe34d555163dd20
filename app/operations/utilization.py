"""$utilization: how often the members of a plan, a practice or a Group were admitted, came back, or were an emergency.

http://carerelay.example/OperationDefinition/Patient-utilization; docs/workbench.md says what counts.
"""

from __future__ import annotations

from app.context import Context
from app.coordination.workbench.utilization_counts import utilization
from app.coordination.workbench.utilization_report import COLUMNS, lines, measure_report
from app.fhir import json as fhir_json
from app.interactions.result import InteractionResult
from app.operations import member_questions
from app.operations.arguments import Invocation
from app.proof.timeliness import names_of


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """The MeasureReport; the same as CSV, or as the one line of NDJSON."""
    given = {name: str(values[0]) for name, values in invocation.arguments.items()}
    form = member_questions.form_of(given, invocation.given.form)
    asked = await member_questions.read(context, invocation.resource_id, given)
    found = await utilization(asked)
    names = await names_of(context, found.references())
    if form == "csv":
        count = sum(map(len, found.counts.values()))
        return await member_questions.as_csv("utilization", COLUMNS, lines(found, names), count)
    text = fhir_json.encode(measure_report(found, names, asked.period, asked.period.now))
    if form == "ndjson":
        return member_questions.as_ndjson("utilization", [text])
    return InteractionResult(200, text=text)
