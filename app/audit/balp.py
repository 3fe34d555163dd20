"""An entry of the audit as an AuditEvent, in the shape of IHE's Basic Audit Log Patterns.

https://hl7.org/fhir/R4/auditevent.html, https://profiles.ihe.net/ITI/BALP
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from app.audit.entry import BY_CONSENT, values
from app.fhir.instants import instant
from app.fhir.json import Resource
from app.runtime.mongo import Document

DICOM = "http://dicom.nema.org/resources/ontology/DCM"
REST = "http://hl7.org/fhir/restful-interaction"
TYPE = "http://terminology.hl7.org/CodeSystem/audit-event-type"
_ENTITY_TYPE = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_ROLE = "http://terminology.hl7.org/CodeSystem/object-role"
_SOURCE_TYPE = "http://terminology.hl7.org/CodeSystem/security-source-type"
_PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
_REQUEST_ID = "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType"
_CLIENT_ID = "urn:ietf:rfc:6749#client_id"
_IP, _URI = "2", "5"
# https://www.rfc-editor.org/rfc/rfc6455#section-7.4
_CLOSE_CODES = 1000

Coding = tuple[str, str, str]
# For each `what` the type, the subtypes and the action (create, read, update, delete, execute).
_REST: Coding = (TYPE, "rest", "RESTful Operation")
_OPERATION: Coding = (REST, "operation", "operation")
KINDS: dict[str, tuple[Coding, tuple[Coding, ...], str]] = {
    "login": (
        (DICOM, "110114", "User Authentication"),
        ((DICOM, "110122", "Login"),),
        "E",
    ),
    "bind": (
        (DICOM, "110114", "User Authentication"),
        ((DICOM, "110126", "Node Authentication"),),
        "E",
    ),
    "delivery": (
        _REST,
        ((REST, "create", "create"), (DICOM, "110106", "Export")),
        "C",
    ),
    "export": (_REST, (_OPERATION, (DICOM, "110106", "Export")), "R"),
    "export-status": (_REST, (_OPERATION,), "R"),
    "export-cancel": (_REST, (_OPERATION,), "D"),
    "clients": (
        (DICOM, "110113", "Security Alert"),
        ((DICOM, "110137", "User security Attributes Changed"),),
        "U",
    ),
    "administration": (
        (DICOM, "110100", "Application Activity"),
        ((DICOM, "110131", "Software Configuration"),),
        "E",
    ),
    "request": (_REST, (), "E"),
}
_ACTIONS = {
    "create": "C",
    "read": "R",
    "vread": "R",
    "history-instance": "R",
    "history-type": "R",
    "history-system": "R",
    "update": "U",
    "patch": "U",
    "delete": "D",
    "search-type": "E",
    "search-system": "E",
    "operation": "E",
    "transaction": "E",
}
# The parent code that BALP's queries search for, beside the exact code.
_SEARCH: Coding = (REST, "search", "search")


def _rest(code: str) -> tuple[Coding, ...]:
    exact = (REST, code, code)
    return (_SEARCH, exact) if code.startswith("search") else (exact,)


KINDS |= {code: (_REST, _rest(code), action) for code, action in _ACTIONS.items()}


def audit_event(id_: str, row: Document, base_url: str) -> Resource:
    """The AuditEvent of an entry; `base_url` names this server."""
    # A newer server may have recorded what this one does not know.
    type_, subtypes, action = KINDS.get(row["what"], KINDS["request"])
    resource: Resource = {
        "resourceType": "AuditEvent",
        "id": id_,
        "meta": {"versionId": "1", "lastUpdated": instant(row["at"])},
        "type": _coding(type_),
    }
    if subtypes:
        resource["subtype"] = [_coding(each) for each in subtypes]
    resource |= {"action": action, "recorded": instant(row["at"]), "outcome": row["o"]}
    if "n" in row:
        resource["period"] = {"start": instant(row["since"]), "end": instant(row["at"])}
    described = " ".join(_described(row))
    if described:
        resource["outcomeDesc"] = described
    resource["agent"] = _agents(row, base_url)
    resource["source"] = {
        "observer": _server(base_url),
        "type": [_coding((_SOURCE_TYPE, "4", "Application Server"))],
    }
    if entities := _entities(row):
        resource["entity"] = entities
    return resource


def _described(row: Document) -> Iterator[str]:
    if "s" in row:
        yield f"{'HTTP' if row['s'] < _CLOSE_CODES else 'WebSocket'} {row['s']}"
    if "n" in row:
        yield f"{row['n']} times"
    if "m" in row:
        yield row["m"]


def _server(base_url: str) -> dict[str, Any]:
    return {"identifier": {"value": base_url}, "display": "CareRelay"}


def _agents(row: Document, base_url: str) -> list[dict[str, Any]]:
    """The client, this server, and the organization that the client acts for.

    A delivery goes the other way, to an endpoint; the Subscription's client is another agent then.
    """
    ours: dict[str, Any] = {"who": _server(base_url), "requestor": False}
    theirs: dict[str, Any] = {"requestor": False}
    is_outgoing = row["what"] == "delivery"
    agents = [theirs, ours]
    for client in values(row, "c"):
        who = {"identifier": {"system": _CLIENT_ID, "value": client}}
        if is_outgoing:
            application = _code(DICOM, "110150", "Application")
            agents.append({"type": application, "who": who, "requestor": False})
        else:
            theirs["who"] = who
    if row.get("ip"):
        theirs["network"] = {"address": row["ip"], "type": _URI if is_outgoing else _IP}
    source = _code(DICOM, "110153", "Source Role ID")
    destination = _code(DICOM, "110152", "Destination Role ID")
    theirs["type"] = destination if is_outgoing else source
    ours["type"] = source if is_outgoing else destination
    for organization in values(row, "g"):
        agent: dict[str, Any] = {
            "type": _code(_PARTICIPATION, "IRCP", "information recipient"),
            "who": {"reference": organization},
            "requestor": True,
        }
        if "r" in row:
            agent["role"] = [{"text": row["r"]}]
        agents.append(agent)
    if not values(row, "g"):
        agents[-1 if len(agents) > 2 else 0]["requestor"] = True
    return agents


def _entities(row: Document) -> list[dict[str, Any]]:
    found = [_entity(f"Patient/{each}", "1", "1") for each in values(row, "p")]
    for place in values(row, "e"):
        if not (place.startswith("Patient/") and f"p:{place[8:]}" in row["k"]) or "v" in row:
            versioned = f"{place}/_history/{row['v']}" if "v" in row else place
            found.append(_entity(versioned, "2", "4"))
    found += [_entity(each, "2", "4") for each in values(row, BY_CONSENT)]
    found += [_entity(f"Subscription/{each}", "2", "9") for each in values(row, "u")]
    found += [_export(each) for each in values(row, "x")]
    if row.get("q"):
        query = base64.b64encode(row["q"].encode()).decode()
        found.append({**_typed("2", "24"), "description": row["q"], "query": query})
    if row.get("rq"):
        kind = {"system": _REQUEST_ID, "code": "XrequestId"}
        found.append({"what": {"identifier": {"value": row["rq"]}}, "type": kind})
    return found


def _export(name: str) -> dict[str, Any]:
    """An export, which is a job, or a file of one, a report: no resources, so they have identifiers."""
    return {"what": {"identifier": {"value": name}}, **_typed("2", "3" if "/" in name else "20")}


def _entity(reference: str, type_: str, role: str) -> dict[str, Any]:
    return {"what": {"reference": reference}, **_typed(type_, role)}


def _typed(type_: str, role: str) -> dict[str, Any]:
    return {
        "type": {"system": _ENTITY_TYPE, "code": type_},
        "role": {"system": _ROLE, "code": role},
    }


def _coding(coding: Coding) -> dict[str, str]:
    system, code, display = coding
    return {"system": system, "code": code, "display": display}


def _code(system: str, code: str, display: str) -> dict[str, Any]:
    return {"coding": [_coding((system, code, display))]}
