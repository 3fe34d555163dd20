"""$process-message: take a FHIR message.

https://hl7.org/fhir/R4/messageheader-operation-process-message.html
A message is answered at once: there is no address for a later response that is known to be its sender's.
"""

from __future__ import annotations

from app.context import Context
from app.errors import BadRequest
from app.interactions.result import InteractionResult
from app.messaging import taking
from app.operations.arguments import Invocation


async def run(context: Context, invocation: Invocation) -> InteractionResult:
    """200 or 202 with a response message. Raises FhirError for a message that is not taken."""
    _check_synchronous(invocation)
    return await taking.take(context, invocation.one("content"))


def _check_synchronous(invocation: Invocation) -> None:
    if invocation.one("async") or invocation.one("response-url") is not None:
        raise BadRequest(
            "Messages are taken synchronously: send this one without async and response-url, and read the response "
            "message in the answer",
            code="not-supported",
            expression="async" if invocation.one("async") else "response-url",
        )
