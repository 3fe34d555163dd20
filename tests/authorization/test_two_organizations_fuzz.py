"""Whatever one organization asks, nothing of another comes back, and nothing fails.

Each drawn request is sent twice: once with what is true of the other's patient (ids, identifiers, names, codes), once
with decoys that are true of nobody. Who may see neither must get the same answer to both, so no answer can be used to
guess by. Besides, a marker that no request contains lies in all of the other's records, and in no answer or header.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Mapping
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.authorization.access_records import bundle, entry
from tests.builders.access_world import (
    World,
    condition,
    coverage,
    designated,
    encounter,
    world as a_world,
)
from tests.builders.practices import ref

pytestmark = [pytest.mark.mongo, pytest.mark.slow]

# In everything of the other side, and in no request.
MARKER = "Zwietrachtsmarke"
CALLERS = ("north", "general", "plan-a", "agency")
# What is true of the other's patient, and what of nobody.
TRUE: Mapping[str, str] = {
    "patient": "geheim-0",
    "condition": "geheim-1",
    "encounter": "geheim-2",
    "plan": "geheim-3",
    "group": "geheim-5",
    "subscription": "geheim-4",
    "mrn": "774411",
    "name": "Zwietr",
    "code": "K52.9x",
    "tag": "tag-774",
    "date": "1950-03-17",
}
DECOY: Mapping[str, str] = {
    "patient": "keines-0",
    "condition": "keines-1",
    "encounter": "keines-2",
    "plan": "keines-3",
    "group": "keines-5",
    "subscription": "keines-4",
    "mrn": "885522",
    "name": "Quxbar",
    "code": "Q77.1x",
    "tag": "tag-885",
    "date": "1950-08-26",
}
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)|[0-9a-f]{8}-[0-9a-f-]{27}")
_BUNDLE_ID = re.compile(r'(?<="resourceType":"Bundle","id":")[^"]+')

bounded = settings(
    max_examples=250,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def secrets() -> list[dict[str, Any]]:
    """The record of the south's patient."""
    tag = {"tag": [{"system": "urn:t", "code": TRUE["tag"], "display": MARKER}]}
    text = {
        "status": "generated",
        "div": f'<div xmlns="http://www.w3.org/1999/xhtml">{MARKER}</div>',
    }
    about = {"meta": tag, "text": text}
    code = {"text": MARKER, "coding": [{"system": "urn:c", "code": TRUE["code"]}]}
    subject = ref(f"Patient/{TRUE['patient']}")
    return [
        about
        | {
            "resourceType": "Patient",
            "id": TRUE["patient"],
            "identifier": [{"system": "urn:mrn", "value": TRUE["mrn"]}],
            "name": [{"family": MARKER}],
            "birthDate": TRUE["date"],
            "generalPractitioner": [ref("PractitionerRole/role-s")],
        },
        about
        | {"resourceType": "Condition", "id": TRUE["condition"], "code": code, "subject": subject},
        about
        | encounter(TRUE["encounter"], TRUE["patient"], "city")
        | {"identifier": [{"system": "urn:mrn", "value": TRUE["mrn"]}], "type": [code]},
        about
        | {
            "resourceType": "CarePlan",
            "id": TRUE["plan"],
            "status": "active",
            "intent": "plan",
            "title": MARKER,
            "category": [code],
            "subject": subject,
        },
        about | coverage(f"{MARKER}-1", TRUE["patient"], "plan-b"),
        about | designated(TRUE["group"], "bureau", TRUE["patient"]),
    ]


def subscription() -> dict[str, Any]:
    return {
        "resourceType": "Subscription",
        "id": TRUE["subscription"],
        "status": "off",
        "reason": MARKER,
        "criteria": "Encounter?status=planned",
        "channel": {"type": "rest-hook", "endpoint": "http://127.0.0.1:9/hook"},
    }


@pytest.fixture(scope="module")
async def world(mongod: str) -> AsyncIterator[World]:
    async with a_world(mongod, rate_limit=0, audit="off") as found:
        await found.put("admin", *secrets())
        await found.put("south", subscription())
        yield found


# Requests, with {names} of what is true in one and untrue in the other

values = st.sampled_from(
    [
        *("{patient}", "Patient/{patient}", "{condition}", "{encounter}", "{plan}", "{group}"),
        *("{mrn}", "urn:mrn|{mrn}", "{name}", "{code}", "urn:c|{code}", "{tag}", "{date}"),
        *("{patient},pn", "le{date}", "gt{date}", "", "pn", "http://x/Patient/{patient}"),
    ]
)
types = st.sampled_from(
    [
        *("Patient", "Encounter", "Condition", "CarePlan", "Coverage", "Group", "Subscription"),
        *("Organization", "Practitioner", "PractitionerRole", "Provenance", "AuditEvent", "Basic"),
    ]
)
plain_names = st.sampled_from(
    [
        *("_id", "identifier", "family", "family:contains", "family:exact", "birthdate", "code"),
        *(
            "patient",
            "subject",
            "subject:Patient",
            "patient:identifier",
            "_tag",
            "_text",
            "_content",
        ),
        *("_list", "_lastUpdated", "member", "beneficiary", "category", "_id:missing", "_tag:not"),
        *("general-practitioner", "service-provider", "link", "target", "type", "code:text"),
    ]
)
chained_names = st.sampled_from(
    [
        *("patient.family", "subject:Patient.family", "patient.identifier", "patient._tag"),
        *(
            "patient._id",
            "patient.general-practitioner",
            "beneficiary.family",
            "member:Patient._id",
        ),
        *("_has:Encounter:patient:_id", "_has:Condition:patient:code", "_has:Group:member:_id"),
        *("_has:Condition:subject:_tag", "_has:Encounter:service-provider:patient"),
        *("_has:Encounter:service-provider:patient.family", "_has:Coverage:payor:beneficiary"),
        "_has:PractitionerRole:practitioner:_has:Patient:general-practitioner:family",
        "patient._has:Condition:patient:code",
    ]
)
modifying = st.sampled_from(
    [
        *(("_total", "accurate"), ("_summary", "count"), ("_summary", "true"), ("_count", "1")),
        *(("_sort", "_id"), ("_sort", "-_lastUpdated"), ("_sort", "birthdate"), ("_count", "0")),
        *(("_include", "*"), ("_revinclude", "*"), ("_include:iterate", "Encounter:patient")),
        *(("_revinclude", "Encounter:patient"), ("_revinclude:iterate", "Condition:patient")),
        *(("_elements", "id"), ("_contained", "both"), ("_explain", "true"), ("_format", "xml")),
        *(("_filter", "family eq {name}"), ("_filter", "_id eq {patient} or _id eq pn")),
        *(("_filter", "patient eq Patient/{patient}"), ("_filter", "code eq {code}")),
        *(("_type", "Patient,Condition"), ("_since", "2020-01-01T00:00:00Z")),
    ]
)
parameters = st.lists(
    st.one_of(st.tuples(plain_names | chained_names, values), modifying), min_size=1, max_size=4
)
places = st.sampled_from(
    [
        *("Patient/{patient}", "Condition/{condition}", "Encounter/{encounter}", "CarePlan/{plan}"),
        *("Group/{group}", "Subscription/{subscription}", "Patient/pn", "Condition/cn"),
    ]
)
endings = st.sampled_from(
    [
        *("", "/_history", "/_history/1", "/_history/2", "/$everything", "/$pcp", "/$meta", "/*"),
        *(
            "/Encounter",
            "/Condition",
            "/$summary",
            "/$changes",
            "/$notices",
            "/$status",
            "/$events",
        ),
        *("/$validate?mode=delete", "/$explain?reference=Encounter/{encounter}", "/Coverage"),
    ]
)
headers = st.sampled_from(
    [
        {},
        {"If-None-Match": 'W/"1"'},
        {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"},
        {"Prefer": "handling=lenient"},
        {"If-Match": 'W/"1"'},
        {"Accept": "application/fhir+xml"},
    ]
)
scopes = st.sampled_from(
    [
        "",
        "system/*.rs",
        "system/Patient.rs system/Encounter.s",
        "system/Encounter.cruds?patient=Patient/geheim-0 system/Patient.rs",
        "system/Condition.cruds system/Organization.rs",
    ]
)
callers = st.sampled_from(CALLERS)
bodies = st.sampled_from(
    [
        condition("{condition}", "{patient}"),
        condition("{condition}", "x") | {"subject": ref("Patient?identifier=urn:mrn|{mrn}")},
        encounter("{encounter}", "{patient}", "city"),
        coverage("geheim", "{patient}", "plan-a"),
        designated("{group}", "plan-a", "{patient}"),
    ]
)


def filled(template: Any, words: Mapping[str, str]) -> Any:
    """The template with the words in the place of their names."""
    text = json.dumps(template)
    for name, word in words.items():
        text = text.replace(f"{{{name}}}", word)
    return json.loads(text)


def plain(answer: httpx.Response, words: Mapping[str, str]) -> tuple[int, str, dict[str, str]]:
    """The answer without the words that were asked for, and without what no two answers share."""

    def blank(text: str) -> str:
        for name, word in words.items():
            text = text.replace(quote(word, safe=""), f"<{name}>").replace(word, f"<{name}>")
        return _MOMENT.sub("<moment>", _BUNDLE_ID.sub("<id>", text))

    headers_ = {
        name: blank(value)
        for name, value in answer.headers.items()
        if name not in ("date", "x-request-id", "content-length", "etag", "last-modified")
    }
    return answer.status_code, blank(answer.text), headers_


async def compare(world: World, who: str, request: dict[str, Any], given_scopes: str) -> None:
    """Send a request with the truth and with decoys; both must be answered alike, and tell nothing."""
    told = []
    for words in (TRUE, DECOY):
        asked = filled(request, words)
        answer = await world.ask(who, scopes=given_scopes, **asked)
        assert answer.status_code < 500, (who, asked, answer.text)
        assert MARKER not in answer.text + str(answer.headers), (who, asked, answer.text)
        told.append(plain(answer, words))
    assert told[0] == told[1], (who, given_scopes, request)


@bounded
@given(callers, types, parameters, headers, scopes)
async def test_any_search(
    world: World, who: str, type_: str, given_: Any, header: dict[str, str], scope: str
) -> None:
    query = "&".join(f"{name}={value}" for name, value in given_)
    await compare(
        world, who, {"method": "GET", "url": f"/{type_}?{query}", "headers": header}, scope
    )


@bounded
@given(callers, places, endings, headers, st.sampled_from(["GET", "HEAD"]), scopes)
async def test_any_place(
    world: World, who: str, place: str, ending: str, header: dict[str, str], verb: str, scope: str
) -> None:
    await compare(
        world, who, {"method": verb, "url": f"/{place}{ending}", "headers": header}, scope
    )


@bounded
@given(callers, bodies, st.integers(0, 7), scopes)
async def test_any_write_about_somebody_elses_patient(
    world: World, who: str, body: dict[str, Any], door: int, scope: str
) -> None:
    type_ = body["resourceType"]
    own = f"{type_}/{body['id']}"
    patch = [{"op": "add", "path": "/language", "value": "de"}]
    patching = {"Content-Type": "application/json-patch+json"}
    query = f"{type_}?_tag=urn:t|{{tag}}"
    requests: list[dict[str, Any]] = [
        {"method": "PUT", "url": f"/{own}", "body": body},
        {"method": "POST", "url": f"/{type_}", "body": body},
        {"method": "POST", "url": f"/{type_}", "body": body, "headers": {"If-None-Exist": "_tag=urn:t|{tag}"}},
        {"method": "PUT", "url": f"/{query}", "body": body},
        {"method": "PATCH", "url": f"/{own}", "body": patch, "headers": patching},
        {"method": "PATCH", "url": f"/{query}", "body": patch, "headers": patching},
        {"method": "DELETE", "url": f"/{own}"},
        {"method": "DELETE", "url": f"/{query}"},
    ]  # fmt: skip
    await compare(world, who, requests[door], scope)


@bounded
@given(
    callers,
    st.sampled_from(["batch", "transaction"]),
    st.lists(
        st.one_of(
            st.builds(lambda place, end: entry("GET", place + end), places, endings),
            st.builds(lambda body: entry("POST", body["resourceType"], body), bodies),
            st.builds(
                lambda body: entry("PUT", f"{body['resourceType']}/{body['id']}", body), bodies
            ),
            st.builds(lambda place: entry("DELETE", place), places.filter(lambda p: "{" in p)),
            st.builds(
                lambda type_, pair: entry("GET", f"{type_}?{pair[0]}={pair[1]}"),
                types,
                st.tuples(plain_names | chained_names, values),
            ),
        ),
        min_size=1,
        max_size=4,
    ),
    scopes,
)
async def test_any_bundle(world: World, who: str, kind: str, entries: Any, scope: str) -> None:
    await compare(world, who, {"method": "POST", "url": "/", "body": bundle(kind, *entries)}, scope)


async def test_the_markers_are_where_they_are_looked_for(world: World) -> None:
    """South sees them through the same doors; afterwards nothing of south's has changed."""
    for url in ("/Patient/{patient}", "/Condition?code={code}", "/Encounter?patient.family={name}"):
        assert MARKER in (await world.get("south", filled(url, TRUE))).text
    for each in secrets()[1:]:
        answer = await world.get("admin", f"/{each['resourceType']}/{each['id']}")
        assert answer.json()["meta"]["versionId"] == "1"
