"""Where versions come from that the server writes for somebody: out of a message, a merge, a rule.

https://hl7.org/fhir/R4/provenance.html
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal

from app.fhir_json import Resource
from app.versions import instant

_OPERATION = "http://terminology.hl7.org/CodeSystem/v3-DataOperation"
_PARTICIPANT = "http://terminology.hl7.org/CodeSystem/provenance-participant-type"

Activity = Literal["CREATE", "UPDATE", "DELETE", "APPEND", "NULLIFY"]


def provenance(
    targets: Sequence[str],
    activity: Activity,
    recorded: datetime,
    *,
    behalf: str | None = None,
    sources: Sequence[str] = (),
) -> Resource:
    """The Provenance of versions (`Encounter/e1/_history/2`) that this server has put together.

    `behalf` is whom it wrote for, such as the Organization that sent the message; `sources` are what it was made from.
    """
    author: dict[str, Any] = {
        "type": {"coding": [{"system": _PARTICIPANT, "code": "assembler"}]},
        "who": {"display": "CareRelay"},
    }
    if behalf is not None:
        author["onBehalfOf"] = {"reference": behalf}
    resource: Resource = {
        "resourceType": "Provenance",
        "target": [{"reference": each} for each in targets],
        "recorded": instant(recorded),
        "activity": {"coding": [{"system": _OPERATION, "code": activity}]},
        "agent": [author],
    }
    if sources:
        resource["entity"] = [{"role": "source", "what": {"reference": each}} for each in sources]
    return resource
