"""The CapabilityStatement, computed from the registries that serve requests.

https://hl7.org/fhir/R4/capabilitystatement.html
"""

from __future__ import annotations

from typing import Any

from app import __version__, fhir_json
from app.context import Context
from app.definitions import SUPPORTED_TYPES
from app.errors import BadRequest
from app.exchange import Answer
from app.search.query import supported_parameters
from app.store import instant

INTERACTIONS = (
    "read",
    "vread",
    "update",
    "patch",
    "delete",
    "history-instance",
    "history-type",
    "create",
    "search-type",
)
SYSTEM_INTERACTIONS = ("transaction", "batch", "history-system")


async def metadata(context: Context, mode: str | None) -> Answer:
    """`GET /metadata`; the modes normative and terminology need what this server does not hold."""
    if mode not in (None, "full", "normative"):
        raise BadRequest("mode must be full or normative", code="not-supported")
    return Answer(200, text=fhir_json.encode(statement(context)))


def statement(context: Context) -> dict[str, Any]:
    """The CapabilityStatement of this server at this base."""
    return {
        "resourceType": "CapabilityStatement",
        "status": "active",
        "date": instant(context.server.started),
        "publisher": "CareRelay",
        "kind": "instance",
        "software": {"name": "CareRelay", "version": __version__},
        "implementation": {
            "description": "FHIR R4 server for care coordination",
            "url": context.base_url,
        },
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "json"],
        "rest": [
            {
                "mode": "server",
                "resource": [_resource(context, name) for name in SUPPORTED_TYPES],
                "interaction": [{"code": code} for code in SYSTEM_INTERACTIONS],
            }
        ],
    }


def _resource(context: Context, resource_type: str) -> dict[str, Any]:
    return {
        "type": resource_type,
        "profile": f"http://hl7.org/fhir/StructureDefinition/{resource_type}",
        "interaction": [{"code": code} for code in INTERACTIONS],
        "versioning": "versioned-update",
        "readHistory": True,
        "updateCreate": True,
        "conditionalCreate": True,
        "conditionalRead": "full-support",
        "conditionalUpdate": True,
        "conditionalDelete": context.settings.conditional_delete,
        "searchParam": [
            {"name": parameter.code, "definition": parameter.url, "type": parameter.type}
            for parameter in supported_parameters(resource_type)
        ],
    }
