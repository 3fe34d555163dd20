"""The server's own records of what was: Tasks, letters, notices, documents and proof, which it writes as things happen.

They tell of the past, so they may refer to what is no longer there, and keep nothing from being deleted. What else the
server keeps, as Subscriptions and Contracts, is about the present, and checked like anything else.
docs/decisions/0021-records-of-the-past.md
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from app.authentication.caller import SERVER, Caller
from app.fhir.codes import (
    CARE_PLAN_CHANGE,
    CARE_PLAN_REVIEW,
    LETTER_KIND,
    NOTICE_KIND,
    REVIEW_REASON,
    TASK_CODE,
)
from app.runtime.mongo import Document
from app.search.terms import escape

_TYPES = frozenset(
    {
        "AuditEvent",
        "Bundle",
        "Communication",
        "DocumentReference",
        "Flag",
        "MeasureReport",
        "Provenance",
        "Task",
    }
)
_UUID_5 = "[0-9a-f]{8}-[0-9a-f]{4}-5[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}"


def is_written_by(caller: Caller, resource_type: str) -> bool:
    """Whether what this caller writes is such a record."""
    return caller is SERVER and resource_type in _TYPES


def all_others(resource_type: str) -> Document:
    """The filter for the resources of a type that are no such records."""
    return _OTHERS.get(resource_type, {})


def _without_codes(parameter: str, *systems: str) -> Document:
    """Those that have no code of these systems of ours."""
    any_of = "|".join(re.escape(escape(system)) for system in systems)
    return {"terms": {"$not": {"$regex": rf"^{parameter}=(?:{any_of})\|"}}}


_OTHERS: Mapping[str, Document] = {
    # Clients may write AuditEvents where the server keeps no audit; those are about the past too.
    "AuditEvent": {"_id": {"$in": []}},
    "Communication": _without_codes(
        "category", CARE_PLAN_CHANGE, CARE_PLAN_REVIEW, LETTER_KIND, NOTICE_KIND
    ),
    # The copies of care plans: their ids are made of the plan's, as are those of the documents that they index.
    "DocumentReference": {
        "$nor": [
            {
                "_id": {"$regex": f"^{_UUID_5}$"},
                "terms": {"$regex": rf"^identifier=urn:ietf:rfc:3986\|urn:uuid:{_UUID_5}$"},
            }
        ]
    },
    "Task": _without_codes("code", REVIEW_REASON, TASK_CODE),
}
