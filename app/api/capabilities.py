"""The CapabilityStatement, computed from the registries that serve requests.

https://hl7.org/fhir/R4/capabilitystatement.html and https://hl7.org/fhir/R4/http.html#capabilities
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from app import __version__
from app.authentication.access_tokens import Authority
from app.context import Context
from app.errors import BadRequest
from app.fhir import binary, formats, json as fhir_json
from app.fhir.definitions import SUPPORTED_TYPES
from app.fhir.instants import instant
from app.fhir.patch.patch_formats import PATCH_FORMATS
from app.interactions.result import InteractionResult
from app.messaging.message_events import EVENTS
from app.operations import registry as operations
from app.search import include
from app.search.query import supported_parameters
from app.subscriptions.channels import websocket
from app.subscriptions.matching.channel_terms import BACKPORT
from app.subscriptions.matching.registry import SubscriptionRegistry

BACKPORT_SERVER = (
    "http://hl7.org/fhir/uv/subscriptions-backport/CapabilityStatement/"
    "backport-subscription-server-r4"
)
BULK_DATA = "http://hl7.org/fhir/uv/bulkdata/CapabilityStatement/bulk-data"
ALERTS_RECEIVER = "http://hl7.org/fhir/us/davinci-alerts/CapabilityStatement/notification-receiver"
TRANSPORT = "http://terminology.hl7.org/CodeSystem/message-transport"
TOPIC_CANONICAL = BACKPORT + "capabilitystatement-subscriptiontopic-canonical"
WEBSOCKET_URL = "http://hl7.org/fhir/StructureDefinition/capabilitystatement-websocket"
SECURITY_SERVICE = "http://terminology.hl7.org/CodeSystem/restful-security-service"
OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
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
SYSTEM_INTERACTIONS = ("transaction", "batch", "history-system", "search-system")
# What R4 marks as for trial use in rest.resource; all else that is stated here is normative.
_TRIAL_USE = frozenset(
    {
        "extension",
        "supportedProfile",
        "versioning",
        "readHistory",
        "updateCreate",
        "conditionalCreate",
        "conditionalRead",
        "conditionalUpdate",
        "conditionalDelete",
        "referencePolicy",
        "searchInclude",
        "searchRevInclude",
    }
)

_OF_BINARIES = (
    "Read and vread answer with the content as it is, in ranges too, unless application/fhir+json or "
    "application/fhir+xml is asked for. Create and update take content of any type as it is, with "
    "X-Security-Context; only what is a Binary itself is read as one."
)


async def metadata(context: Context, mode: str | None) -> InteractionResult:
    """`GET /metadata`: 200, or 400 for a mode that R4 does not know."""
    state = _MODES.get(mode or "full")
    if state is None:
        raise BadRequest(
            f"mode must be one of {', '.join(_MODES)}", code="not-supported", expression="http.mode"
        )
    return InteractionResult(200, text=fhir_json.encode(state(context)))


def statement(context: Context) -> dict[str, Any]:
    """The CapabilityStatement of this server at this base."""
    return {
        "resourceType": "CapabilityStatement",
        **_head(context),
        "instantiates": [BACKPORT_SERVER, BULK_DATA, ALERTS_RECEIVER],
        "fhirVersion": "4.0.1",
        "format": [formats.FHIR_JSON, "json", formats.FHIR_XML, "xml"],
        "patchFormat": list(PATCH_FORMATS),
        "rest": [
            {
                "extension": [
                    {"url": WEBSOCKET_URL, "valueUri": websocket.address(context.base_url)}
                ],
                "mode": "server",
                **_security(context),
                "resource": [_resource(context, name) for name in SUPPORTED_TYPES],
                "interaction": [{"code": code} for code in SYSTEM_INTERACTIONS],
                "operation": _operations(lambda op: op.is_for(None, None)),
            }
        ],
        "messaging": [_messaging(context)],
    }


def normative(context: Context) -> dict[str, Any]:
    """The statement without the elements that R4 has for trial use only."""
    full = statement(context)
    del full["messaging"]
    for rest in full["rest"]:
        rest["resource"] = [
            {name: value for name, value in resource.items() if name not in _TRIAL_USE}
            for resource in rest["resource"]
        ]
    return full


def terminology(context: Context) -> dict[str, Any]:
    """The TerminologyCapabilities: this server stores CodeSystems and ValueSets, but expands and validates none."""
    return {"resourceType": "TerminologyCapabilities", **_head(context)}


_MODES: Mapping[str, Callable[[Context], dict[str, Any]]] = {
    "full": statement,
    "normative": normative,
    "terminology": terminology,
}


def _head(context: Context) -> dict[str, Any]:
    return {
        "status": "active",
        "date": instant(context.services.started),
        "publisher": "CareRelay",
        "kind": "instance",
        "software": {"name": "CareRelay", "version": __version__},
        "implementation": {
            "description": "FHIR R4 server for care coordination",
            "url": context.base_url,
        },
    }


def _resource(context: Context, resource_type: str) -> dict[str, Any]:
    settings = context.settings
    enforced = ["enforced"] if settings.referential_integrity == "checked" else []
    stated = {
        "type": resource_type,
        "profile": f"http://hl7.org/fhir/StructureDefinition/{resource_type}",
        **(_subscriptions(context) if resource_type == "Subscription" else {}),
        **({"documentation": _OF_BINARIES} if resource_type == binary.TYPE else {}),
        "interaction": [{"code": code} for code in INTERACTIONS],
        # Not `versioned-update`: that would say that an update without If-Match is refused.
        "versioning": "versioned",
        "readHistory": True,
        "updateCreate": True,
        "conditionalCreate": True,
        "conditionalRead": "full-support",
        "conditionalUpdate": True,
        "conditionalDelete": settings.conditional_delete,
        "referencePolicy": ["literal", "logical", *enforced],
        "searchInclude": list(include.included_by(resource_type)),
        "searchRevInclude": list(include.including(resource_type)),
        "searchParam": [
            {"name": parameter.code, "definition": parameter.url, "type": parameter.type}
            for parameter in supported_parameters(resource_type)
        ],
        "operation": _operations(
            lambda op: op.is_for(resource_type, None) or op.is_for(resource_type, "id")
        ),
    }
    return {name: value for name, value in stated.items() if value != []}


def _subscriptions(context: Context) -> dict[str, Any]:
    """What the Subscriptions R5 Backport guide has a server say: its profile, and one canonical for each topic."""
    topics = context.services.get(SubscriptionRegistry).catalogue.canonicals
    return {
        "supportedProfile": [BACKPORT + "backport-subscription"],
        "extension": [{"url": TOPIC_CANONICAL, "valueCanonical": url} for url in topics],
    }


def _messaging(context: Context) -> dict[str, Any]:
    """Where messages are taken, of which events, and for how many minutes one that comes again is known."""
    codes = ", ".join(sorted(f"{system}#{code}" for system, code in EVENTS))
    return {
        "endpoint": [
            {
                "protocol": {"system": TRANSPORT, "code": "http"},
                "address": f"{context.base_url}/$process-message",
            }
        ],
        "reliableCache": int(context.settings.message_retention_days * 24 * 60),
        "documentation": f"Messages of these events are taken, synchronously: {codes}",
    }


def _security(context: Context) -> dict[str, Any]:
    """How to be admitted, where that is asked for, https://hl7.org/fhir/smart-app-launch/conformance.html."""
    authority = context.services.find(Authority)
    if authority is None:
        return {}
    service = {"system": SECURITY_SERVICE, "code": "SMART-on-FHIR"}
    addresses = [{"url": "token", "valueUri": authority.token_url}]
    return {
        "security": {
            "extension": [{"url": OAUTH_URIS, "extension": addresses}],
            "cors": bool(context.settings.cors_origins),
            "service": [{"coding": [service]}],
            "description": "SMART Backend Services; see .well-known/smart-configuration",
        }
    }


def _operations(is_offered: Callable[[operations.Operation], bool]) -> list[dict[str, str]]:
    """The operations for which `is_offered` holds, by code and canonical of their definition."""
    return [
        {"name": operation.code, "definition": operation.resource["url"]}
        for operation in operations.OPERATIONS
        if is_offered(operation)
    ]
