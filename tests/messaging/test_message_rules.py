"""What a message must have to be taken, and what its sender is told where it lacks something.

http://hl7.org/fhir/us/davinci-alerts/StructureDefinition/notifications-bundle and notifications-messageheader
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.authentication.caller import EVERYBODY
from app.context import Context
from app.errors import Conflict, FhirError, Forbidden, Unavailable
from app.messaging import answers
from tests.builders.messages import ROOT, ForeignStay, found, refused, send, taken
from tests.builders.subscriptions import topic_based
from tests.conftest import BASE, Server

pytestmark = pytest.mark.mongo

Json = dict[str, Any]
STAY = ForeignStay()


def without(*path: str | int) -> Callable[[Json], None]:
    def change(message: Json) -> None:
        value: Any = message
        for step in path[:-1]:
            value = value[step]
        del value[path[-1]]

    return change


def with_(value: Any, *path: str | int) -> Callable[[Json], None]:
    def change(message: Json) -> None:
        inner: Any = message
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value

    return change


def added(resource: Json) -> Callable[[Json], None]:
    def change(message: Json) -> None:
        message["entry"].append(STAY.entry(resource))

    return change


def with_many(message: Json) -> None:
    """Each identifier is a search."""
    person = message["entry"][2]["resource"]
    person["identifier"] = [{"system": "urn:mrn", "value": str(n)} for n in range(1001)]


HEADER = ("entry", 0, "resource")
SUBSCRIPTION = {**topic_based(), "id": "1"}
VISIT = ("entry", 1, "resource")
FOREIGN_EVENT = {"system": "http://example.org", "code": "notification-admit"}


@pytest.mark.parametrize(
    ("change", "code", "expression"),
    [
        (without("id"), "required", "Bundle.id"),
        (without("timestamp"), "required", "Bundle.timestamp"),
        (with_(7, "total"), "invalid invariant", None),
        (with_({"mode": "match"}, "entry", 1, "search"), "invalid invariant", None),
        (without("entry", 1, "fullUrl"), "required", "Bundle.entry[1].fullUrl"),
        (
            with_(f"{ROOT}/Encounter/12", "entry", 2, "fullUrl"),
            "duplicate invariant",
            None,
        ),
        (with_("other", *VISIT, "id"), "value", "Bundle.entry[1].fullUrl"),
        (with_(FOREIGN_EVENT, *HEADER, "eventCoding"), "not-supported", None),
        (without(*HEADER, "focus"), "required", "Bundle.entry[0].resource.focus"),
        (
            with_({"reference": f"{ROOT}/Patient/77"}, *HEADER, "focus", 0),
            "value",
            "Bundle.entry[0].resource.focus[0]",
        ),
        (
            with_({"identifier": "x1", "code": "ok"}, *HEADER, "response"),
            "not-supported",
            "Bundle.entry[0].resource.response",
        ),
        (without(*VISIT, "subject"), "required", "Bundle.entry[1].resource.subject"),
        (
            with_("Patient?identifier=1", *VISIT, "subject", "reference"),
            "required",
            "Bundle.entry[1].resource.subject",
        ),
        (
            with_({"display": "A ward"}, *VISIT, "location", 0, "location"),
            "value",
            "Bundle.entry[1].resource.location[0].location",
        ),
        (without("entry", 2, "resource", "identifier"), "required", None),
        (with_("banana", *VISIT, "status"), "code-invalid", None),
        (with_many, "too-costly", "Bundle"),
        (added(SUBSCRIPTION), "not-supported", "Bundle.entry[7].resource"),
    ],
)
async def test_what_a_message_must_have(
    client: httpx.AsyncClient,
    stay: ForeignStay,
    change: Callable[[Json], None],
    code: str,
    expression: str | None,
) -> None:
    message = stay.message()
    change(message)
    issues = (await refused(client, message))["issue"]
    places = {(each["code"], path) for each in issues for path in each.get("expression", [None])}
    codes = code.split()  # some of it R4's own invariants say as well
    assert any(c in codes and expression in (None, path) for c, path in places), issues
    assert await found(client, stay.visit) == []


async def test_two_entries_for_one_person_or_visit_fail_naming_both(
    client: httpx.AsyncClient, stay: ForeignStay
) -> None:
    for resource in (stay.patient, stay.encounter()):
        message = stay.message()
        other = {**resource, "id": "other", "language": "en"}
        message["entry"].append(stay.entry(other))
        (issue,) = (await refused(client, message))["issue"]
        assert (issue["code"], len(issue["expression"])) == ("duplicate", 2)
        message["entry"][-1]["resource"].pop("language")
    await taken(client, message)  # said twice it is the same


@pytest.mark.parametrize(
    ("body", "expression"),
    [
        ({"resourceType": "Bundle", "type": "transaction"}, "Bundle.type"),
        ({"resourceType": "Bundle", "type": "message", "entry": []}, "Bundle.entry[0].resource"),
        (
            {**STAY.message(), "entry": STAY.message()["entry"][1:]},
            "Bundle.entry[0].resource",
        ),
    ],
    ids=["no message", "empty", "no header"],
)
async def test_what_is_no_message_is_answered_by_an_outcome(
    client: httpx.AsyncClient, body: Json, expression: str
) -> None:
    answer = await send(client, body)
    assert answer.status_code == 400
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert answer.json()["issue"][0]["expression"] == [expression]


async def test_messages_are_taken_synchronously_and_by_post(
    client: httpx.AsyncClient, stay: ForeignStay
) -> None:
    for query in ("async=true", "response-url=http://elsewhere.example/fhir"):
        answer = await send(client, stay.message(), params=query)
        assert answer.status_code == 400
        (issue,) = answer.json()["issue"]
        assert (issue["code"], issue["expression"]) == ("not-supported", [query.split("=")[0]])
    assert await found(client, stay.visit) == []
    assert (await client.get("/$process-message")).status_code == 405
    assert (await send(client, stay.message(), params="async=false")).status_code == 200


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (Unavailable("Later"), "transient-error"),
        (Conflict("Others were faster"), "transient-error"),
        (Forbidden("No"), "fatal-error"),
    ],
    ids=["unavailable", "conflict", "forbidden"],
)
def test_a_sender_is_told_whether_the_same_message_may_be_taken_later(
    server: Server, error: FhirError, code: str
) -> None:
    header = STAY.message()["entry"][0]["resource"]
    context = Context(server.services, EVERYBODY, BASE)
    response = answers.refusal(context, header, error)
    assert response["entry"][0]["resource"]["response"]["code"] == code
