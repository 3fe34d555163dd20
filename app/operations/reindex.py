"""$reindex: extract the search values of stored resources anew, in the background.

Ours (profiles/operations/reindex.json). POST starts a job and answers 202; GET shows the latest jobs, or one by its id.
"""

from __future__ import annotations

from app.context import Context
from app.errors import BadRequest, NotFound
from app.fhir import json as fhir_json
from app.fhir.definitions import SUPPORTED_TYPES
from app.interactions.result import InteractionResult
from app.operations.arguments import Invocation
from app.store.reindexing import Reindexing, ids_and_state


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """Parameters with one `job` for each reindexing."""
    reindexing = context.services.get(Reindexing)
    job_id, types = invocation.one("id"), [str(each) for each in invocation.all("type")]
    for each in types:
        if each not in SUPPORTED_TYPES:
            raise BadRequest("type names a type that is not served", expression="type")
    if invocation.given.posted:
        if job_id is not None:
            raise BadRequest(
                "A POST starts a reindexing; ask for one by id with GET", expression="id"
            )
        jobs = [await reindexing.request(types)]
    else:
        if types:
            raise BadRequest(
                "A GET shows what runs; start a reindexing with POST", expression="type"
            )
        jobs = await reindexing.jobs(job_id)
        if job_id is not None and not jobs:
            raise NotFound("There is no reindexing with this id")
    parameters = {"resourceType": "Parameters"}
    body = parameters | {"parameter": [ids_and_state(job) for job in jobs]} if jobs else parameters
    return InteractionResult(202 if invocation.given.posted else 200, text=fhir_json.encode(body))
