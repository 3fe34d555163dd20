"""Patient/$pcp: the primary care providers at a moment, with their source, and the problems found.

http://carerelay.example/OperationDefinition/Patient-pcp; docs/routing.md
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from app.attribution import attribution
from app.attribution.attribution import Attribution
from app.attribution.practices import Provider
from app.context import Context
from app.coordination.practices import no_recipient
from app.fhir import json as fhir_json
from app.fhir.instants import instant, range_in
from app.fhir.json import Resource
from app.interactions import interactions
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """Parameters with a `pcp` for each provider who receives the patient's notices, and a `problem` for each one found.

    Raises NotFound or Gone for the patient.
    """
    resource_type, resource_id = invocation.instance
    await interactions.current(context, resource_type, resource_id)
    # Read past the caller's limits: who may see the patient may know the PCP, and a partial answer would mislead.
    found = await attribution.primary_care(
        context.services.store,
        f"{resource_type}/{resource_id}",
        _moment(context, invocation.one("at")),
        context.settings,
        listening=no_recipient.listening(context),
    )
    if not await _sees_all(context, found.way):
        # As where the survivor is not stored.
        found = Attribution(found.patient, (), ("merged-patient", "unknown-patient", "no-pcp"))
    parameters = [{"name": "pcp", "part": _parts(provider)} for provider in found.providers]
    parameters += [{"name": "problem", "valueCode": problem} for problem in found.problems]
    answer: Resource = {"resourceType": "Parameters"}
    if parameters:
        answer["parameter"] = parameters
    return InteractionResult(200, text=fhir_json.encode(answer))


async def _sees_all(context: Context, way: Sequence[str]) -> bool:
    """Whether the caller may see every patient by whom the answer was found: a link alone gives no right to it."""
    keys = [("Patient", each.removeprefix("Patient/")) for each in way]
    return len(await context.store.read_many(keys)) == len(way)


def _moment(context: Context, text: str | None) -> datetime:
    """The first instant that `at` may mean; now by default."""
    if text is None:
        return context.services.clock.now()
    return range_in(text, "at")[0]


def _parts(provider: Provider) -> list[Resource]:
    references = [
        ("practitioner", provider.practitioner),
        ("practitioner-role", provider.practitioner_role),
        ("organization", provider.organization),
        *(("endpoint", endpoint) for endpoint in provider.endpoints),
    ]
    parts: list[Resource] = [
        {"name": name, "valueReference": {"reference": reference}}
        for name, reference in references
        if reference is not None
    ]
    parts.append({"name": "source", "valueCode": provider.source})
    if provider.since is not None:
        parts.append({"name": "since", "valueDateTime": instant(provider.since)})
    return parts
