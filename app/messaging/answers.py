"""Response messages: what became of a message, as a message Bundle with an OperationOutcome.

https://hl7.org/fhir/R4/messageheader-definitions.html#MessageHeader.response
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any, Literal

from app.context import Context
from app.errors import FhirError, Issue, operation_outcome
from app.fhir.instants import instant
from app.fhir.json import Resource

Code = Literal["ok", "transient-error", "fatal-error"]
# Refusals after which the same message may be taken: others were in the way, or too much was.
_PASSING = frozenset({408, 409, 429})


def refusal(context: Context, header: Resource, error: FhirError) -> Resource:
    """The response to a message that was not taken."""
    is_passing = error.status in _PASSING or error.status >= 500
    code: Code = "transient-error" if is_passing else "fatal-error"
    return response(context, header, code, error.issues)


def response(
    context: Context,
    header: Resource,
    code: Code,
    issues: Iterable[Issue],
    focus: Iterable[str] = (),
) -> Resource:
    """The response message; `focus` are relative references to what the message was about."""
    source = header["source"]
    head_id, details_id = str(uuid.uuid4()), str(uuid.uuid4())
    head: dict[str, Any] = {
        "resourceType": "MessageHeader",
        "id": head_id,
        **{name: header[name] for name in ("eventCoding", "eventUri") if name in header},
        "destination": [{name: source[name] for name in ("name", "endpoint") if name in source}],
        "source": {"name": "CareRelay", "software": "CareRelay", "endpoint": context.base_url},
        "response": {
            "identifier": header["id"],
            "code": code,
            "details": {"reference": f"urn:uuid:{details_id}"},
        },
    }
    if written := [{"reference": f"{context.base_url}/{each}"} for each in focus]:
        head["focus"] = written
    outcome = {**operation_outcome(issues), "id": details_id}
    return {
        "resourceType": "Bundle",
        "id": str(uuid.uuid4()),
        "type": "message",
        "timestamp": instant(context.services.clock.now()),
        "entry": [
            {"fullUrl": f"urn:uuid:{head_id}", "resource": head},
            {"fullUrl": f"urn:uuid:{details_id}", "resource": outcome},
        ],
    }
