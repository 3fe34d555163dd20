"""$attributed: whose patients the members of a plan, a practice or a Group are, and by which source.

http://carerelay.example/OperationDefinition/Patient-attributed; docs/workbench.md
"""

from __future__ import annotations

from app.context import Context
from app.coordination.workbench.practice_panels import COLUMNS, Panels, groups, lines, panels
from app.errors import Unprocessable
from app.fhir import json as fhir_json
from app.interactions.result import InteractionResult
from app.operations import member_questions
from app.operations.arguments import Invocation
from app.search.bundle_writer import write_bundle, written_entries

# The most members of all panels that one Bundle holds.
_MOST = 10_000


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """A collection of Groups, one for each practice; as CSV a line for each member."""
    given = {name: str(values[0]) for name, values in invocation.arguments.items()}
    form = member_questions.form_of(given, invocation.given.form)
    asked = await member_questions.read(context, invocation.resource_id, given)
    found = await panels(context, asked.population, given.get("practice"))
    if form == "csv":
        return await member_questions.as_csv("attributed", COLUMNS, lines(found), len(found))
    if form == "ndjson":
        return member_questions.as_ndjson("attributed", map(fhir_json.encode, groups(found)))
    return InteractionResult(200, text=_bundle(found))


def _bundle(found: Panels) -> bytes:
    """The Groups. Raises Unprocessable for more than a Bundle holds."""
    if len(found) > _MOST:
        raise Unprocessable(
            "These are too many for one Bundle: name a practice, or ask for CSV or NDJSON",
            code="too-costly",
            expression="practice",
        )
    texts = (
        fhir_json.encode({"fullUrl": f"urn:uuid:{group['id']}", "resource": group}).decode()
        for group in groups(found)
    )
    return write_bundle({"type": "collection"}, (), written_entries(texts))
