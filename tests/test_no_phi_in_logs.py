"""No name, identifier, search value or token of anybody in what the server logs, prints, or says of a failure.

Words that occur nowhere else are planted in resources, searches, headers and failures; then everything is searched.
"""

from __future__ import annotations

import json
import logging
import logging.config
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from pymongo.errors import DuplicateKeyError

from app.runtime import logs
from app.store.store import Store
from tests.builders.subscriptions import classic
from tests.conftest import make_settings, running
from tests.processes import environment, started

PLANTED = ("Quetzalcoatlus", "987-65-4320", "qxz-member-77", "eyJhbGciOiJqwk", "1931-02-29x")
NAME, SSN, MEMBER, TOKEN, DATE = PLANTED
JSON = {"content-type": "application/fhir+json"}
XML = {"content-type": "application/fhir+xml"}
HEADERS = {
    "authorization": f"Bearer {TOKEN}",
    "cookie": f"session={TOKEN}",
    "x-forwarded-for": MEMBER,
    "user-agent": NAME,
}
PATIENT = {
    "resourceType": "Patient",
    "id": "planted",
    "identifier": [{"system": "urn:ssn", "value": SSN}, {"system": "urn:m", "value": MEMBER}],
    "name": [{"family": NAME, "given": [NAME]}],
    "birthDate": "1931-02-28",
}


@dataclass(frozen=True)
class Call:
    """A request that carries planted words, and the status it is answered with."""

    status: int
    method: str
    url: str
    body: Any = None
    headers: dict[str, str] | None = None


def bundle(kind: str, *entries: dict[str, Any]) -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": list(entries)}


def with_(**elements: Any) -> dict[str, Any]:
    return {**PATIENT, **elements}


CALLS = {
    # Validation
    "date": Call(400, "POST", "/Patient", with_(birthDate=DATE)),
    "code": Call(422, "POST", "/Patient", with_(gender=NAME)),
    "boolean": Call(400, "POST", "/Patient", with_(active=NAME)),
    "element": Call(400, "POST", "/Patient", with_(family=NAME, ssn=SSN)),
    "object": Call(400, "POST", "/Patient", with_(name=NAME)),
    "list": Call(400, "POST", "/Patient", with_(birthDate=[SSN])),
    "nested": Call(400, "POST", "/Patient", with_(contact=[{"name": {"family": {"x": NAME}}}])),
    "id": Call(400, "PUT", "/Patient/planted", with_(id=f"{NAME} {SSN}")),
    "other-id": Call(400, "PUT", "/Patient/planted", with_(id=MEMBER)),
    "type": Call(400, "POST", "/Patient", {"resourceType": NAME}),
    "type-other": Call(400, "POST", "/Practitioner", PATIENT),
    "reference": Call(400, "POST", "/Patient", with_(managingOrganization={"reference": [SSN]})),
    "narrative": Call(
        400, "POST", "/Patient", with_(text={"status": "generated", "div": f"<p>{NAME}"})
    ),
    "contained": Call(
        400, "POST", "/Patient", with_(contained=[{"resourceType": "Patient", "x": NAME}])
    ),
    "extension": Call(400, "POST", "/Patient", with_(extension=[{"url": NAME, "valueX": SSN}])),
    "malformed": Call(400, "POST", "/Patient", '{"name": "' + NAME),
    "malformed-2": Call(400, "POST", "/Patient", f"{NAME} {SSN}"),
    "duplicate": Call(400, "POST", "/Patient", f'{{"gender":"{NAME}","gender":"{SSN}"}}'),
    "xml": Call(400, "POST", "/Patient", f"<Patient><{NAME}>{SSN}", XML),
    "xml-element": Call(
        400,
        "POST",
        "/Patient",
        f'<Patient xmlns="http://hl7.org/fhir"><family value="{SSN}"/></Patient>',
        XML,
    ),
    "xml-value": Call(
        400,
        "POST",
        "/Patient",
        f'<Patient xmlns="http://hl7.org/fhir"><birthDate value="{SSN}"/></Patient>',
        XML,
    ),
    "media-type": Call(415, "POST", "/Patient", "x", {"content-type": NAME}),
    "encoding": Call(415, "POST", "/Patient", "x", {**JSON, "content-encoding": NAME}),
    "validate": Call(200, "POST", "/Patient/$validate", with_(gender=NAME, birthDate=DATE)),
    # Searches
    "search": Call(200, "GET", f"/Patient?family={NAME}none&identifier=urn:ssn|{SSN}"),
    "search-post": Call(200, "POST", "/Patient/_search", f"name={NAME}&identifier={SSN}x"),
    "search-date": Call(400, "GET", f"/Patient?birthdate={DATE}"),
    "search-date-2": Call(400, "GET", f"/Patient?_lastUpdated=gt{SSN}"),
    "search-number": Call(400, "GET", f"/RiskAssessment?probability={NAME}"),
    "search-quantity": Call(400, "GET", f"/Observation?value-quantity={NAME}|x|y"),
    "search-token": Call(200, "GET", f"/Patient?active={NAME}"),
    "search-reference": Call(400, "GET", f"/Observation?subject:Banana={SSN}"),
    "search-unknown": Call(400, "GET", f"/Patient?nothing={NAME}"),
    "search-modifier": Call(400, "GET", f"/Patient?birthdate:exact={SSN}"),
    "search-filter": Call(400, "GET", f'/Patient?_filter=name eqq "{NAME}"'),
    "search-filter-2": Call(400, "GET", f'/Patient?_filter=birthdate eq "{DATE}"'),
    "search-sort": Call(400, "GET", f"/Patient?_sort=family&_elements={SSN}"),
    "search-count": Call(400, "GET", f"/Patient?_count={NAME}"),
    "search-include": Call(400, "GET", f"/Patient?_include={NAME}"),
    "search-cursor": Call(410, "GET", f"/Patient?_cursor={NAME}"),
    "search-near": Call(400, "GET", f"/Location?near={NAME}"),
    "search-in": Call(400, "GET", f"/Observation?code:in={NAME}"),
    "search-missing": Call(400, "GET", f"/Patient?name:missing={NAME}"),
    "search-composite": Call(400, "GET", f"/Observation?code-value-quantity={NAME}"),
    "search-has": Call(400, "GET", f"/Patient?_has:Observation:subject:date={DATE}"),
    "search-chain": Call(400, "GET", f"/Observation?subject:Patient.birthdate={DATE}"),
    "search-elements": Call(400, "GET", f"/Patient?_elements={SSN}"),
    "search-format": Call(406, "GET", f"/Patient?_format={NAME}"),
    "history-since": Call(400, "GET", f"/Patient/_history?_since={DATE}"),
    "accept": Call(406, "GET", "/Patient/planted", None, {"accept": NAME}),
    # Places
    "no-route": Call(404, "GET", f"/Patient/planted/{NAME}/x/y"),
    "no-type": Call(404, "GET", f"/{NAME}/{MEMBER}"),
    "no-resource": Call(404, "GET", f"/Patient/{MEMBER}"),
    "no-version": Call(404, "GET", f"/Patient/planted/_history/{MEMBER}"),
    "no-operation": Call(404, "GET", f"/Patient/$nothing?name={NAME}"),
    "too-long": Call(414, "GET", "/Patient?name=" + NAME * 1000),
    # Conditions and conflicts
    "if-match": Call(412, "PUT", "/Patient/planted", PATIENT, {**JSON, "if-match": 'W/"77"'}),
    "if-match-odd": Call(400, "PUT", "/Patient/planted", PATIENT, {**JSON, "if-match": NAME}),
    "if-none-exist": Call(
        200, "POST", "/Patient", PATIENT, {**JSON, "if-none-exist": f"_id=planted&family={NAME}"}
    ),
    "if-none-exist-odd": Call(
        400, "POST", "/Patient", PATIENT, {**JSON, "if-none-exist": f"birthdate={DATE}"}
    ),
    "if-modified": Call(400, "GET", "/Patient/planted", None, {"if-modified-since": NAME}),
    "conditional": Call(400, "PUT", f"/Patient?birthdate={DATE}", PATIENT),
    "conditional-delete": Call(400, "DELETE", f"/Patient?birthdate={DATE}"),
    # Patches
    "patch": Call(
        422,
        "PATCH",
        "/Patient/planted",
        [{"op": "replace", "path": "/nickname", "value": SSN}],
        {"content-type": "application/json-patch+json"},
    ),
    "patch-test": Call(
        422,
        "PATCH",
        "/Patient/planted",
        [{"op": "test", "path": "/name/0/family", "value": MEMBER}],
        {"content-type": "application/json-patch+json"},
    ),
    # Bundles
    "batch": Call(
        200,
        "POST",
        "/",
        bundle(
            "batch",
            {"resource": with_(birthDate=DATE), "request": {"method": "POST", "url": "Patient"}},
            {"request": {"method": "GET", "url": f"Patient?birthdate={DATE}"}},
            {"request": {"method": "GET", "url": f"{NAME}/{SSN}"}},
            {"request": {"method": NAME, "url": "Patient"}},
        ),
    ),
    "transaction": Call(
        400,
        "POST",
        "/",
        bundle(
            "transaction",
            {"resource": with_(gender=NAME), "request": {"method": "PUT", "url": "Patient/x"}},
        ),
    ),
    "transaction-reference": Call(
        412,
        "POST",
        "/",
        bundle(
            "transaction",
            {
                "resource": {
                    "resourceType": "Basic",
                    "code": {"text": "x"},
                    "subject": {"reference": f"Patient?identifier={MEMBER}none"},
                },
                "request": {"method": "POST", "url": "Basic"},
            },
        ),
    ),
    # Operations and subscriptions
    "everything": Call(400, "GET", f"/Patient/planted/$everything?start={NAME}"),
    "subscription": Call(
        422, "POST", "/Subscription", classic(criteria=f"Patient?birthdate={DATE}")
    ),
    "endpoint": Call(
        422, "POST", "/Subscription", classic(endpoint=f"https://{NAME}:{TOKEN}@127.0.0.1/{SSN}")
    ),
    "admin": Call(400, "GET", f"http://carerelay.test/admin/deliveries?state={NAME}"),
}


@pytest.fixture(scope="module")
async def target(mongod: str) -> AsyncIterator[httpx.AsyncClient]:
    async with running(make_settings(mongod)) as (_, client):
        (await client.put("/Patient/planted", json=PATIENT)).raise_for_status()
        yield client


class Everything(logging.Handler):
    """All records, as they would be written at the highest level of detail, with all that was attached to them."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = ""
        self.setFormatter(logs.SafeFormatter("%(name)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        attached = {name: value for name, value in vars(record).items() if name != "exc_info"}
        self.text += f"{self.format(record)} {attached!r}\n"


@pytest.fixture
def heard() -> Iterator[Everything]:
    """What our own code and the libraries say at DEBUG, but for those that the configuration keeps quiet."""
    handler, root = Everything(), logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in ("", *logs.CONFIG["loggers"])}
    root.setLevel(logging.DEBUG)
    for name in logs.CONFIG["loggers"]:
        logging.getLogger(name).setLevel(logging.WARNING)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


async def send(client: httpx.AsyncClient, call: Call) -> httpx.Response:
    body = call.body if isinstance(call.body, str | None) else json.dumps(call.body)
    form = {"content-type": "application/x-www-form-urlencoded"}
    kind = form if call.url.endswith("_search") else JSON
    headers = {**HEADERS, **(kind if body else {}), **(call.headers or {})}
    return await client.request(call.method, call.url, content=body, headers=headers)


def planted_in(text: str) -> list[str]:
    return [word for word in PLANTED if word.lower() in text.lower()]


@pytest.mark.parametrize("name", CALLS)
async def test_failures_name_elements_and_never_values(
    target: httpx.AsyncClient, heard: Everything, name: str
) -> None:
    call = CALLS[name]
    answer = await send(target, call)
    assert answer.status_code == call.status, answer.text
    assert planted_in(heard.text) == []
    if answer.status_code >= 400 or name == "validate":
        assert answer.json()["resourceType"] == "OperationOutcome"
        assert planted_in(answer.text) == []
    elif name == "batch":
        outcomes = [entry["response"].get("outcome") for entry in answer.json()["entry"]]
        assert all(outcomes)
        assert planted_in(json.dumps(outcomes)) == []


DEFECTS = {
    "key": KeyError(NAME),
    "duplicate": DuplicateKeyError(
        f"E11000 dup key: {{ terms: '{SSN}' }}", 11000, {"keyValue": SSN}
    ),
    "value": ValueError(f"{MEMBER} {DATE}"),
}


@pytest.mark.parametrize("name", DEFECTS)
async def test_a_defect_is_logged_with_its_place_and_without_its_text(
    target: httpx.AsyncClient, heard: Everything, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    async def read(*_: Any, **__: Any) -> None:
        try:
            raise DEFECTS[name]
        except Exception as error:
            raise RuntimeError(f"about {NAME}: {error}") from error

    monkeypatch.setattr(Store, "read", read)
    answer = await target.get(f"/Patient/{MEMBER}", headers=HEADERS)
    assert answer.status_code == 500
    assert planted_in(answer.text) == []
    assert planted_in(heard.text) == []
    assert "RuntimeError" in heard.text
    assert type(DEFECTS[name]).__name__ in heard.text
    assert "test_no_phi_in_logs.py" in heard.text
    assert answer.headers["x-request-id"] in heard.text


def test_what_another_formatter_left_in_a_record_is_not_repeated() -> None:
    try:
        raise KeyError(NAME)
    except KeyError:
        record = logging.LogRecord("app", logging.ERROR, "", 0, "failed", None, sys.exc_info())
    assert planted_in(logging.Formatter().format(record)) == [NAME]
    written = logs.SafeFormatter().format(record)
    assert planted_in(written) == []
    assert written.endswith("KeyError")


@pytest.mark.processes
def test_exceptions_of_libraries_are_written_without_their_texts() -> None:
    """As the server is configured: in a process of its own, whatever logger it comes from."""
    script = f"""
import asyncio, logging, logging.config
from app.runtime import logs
logging.config.dictConfig(logs.CONFIG)
def fail():
    raise KeyError({NAME!r})
for name in ("uvicorn.error", "asyncio", "app.store.store", "somebody.else"):
    try:
        try:
            fail()
        except KeyError as error:
            raise ValueError({SSN!r}) from error
    except ValueError:
        logging.getLogger(name).exception("failed in %s", name)
logging.getLogger("pymongo.command").debug({MEMBER!r})
logging.getLogger("app.x").debug({MEMBER!r})
async def main():
    task = asyncio.create_task(lost({TOKEN!r}))
    await asyncio.sleep(0)
async def lost(token):
    raise RuntimeError(token)
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert planted_in(done.stdout + done.stderr) == []
    for name in ("uvicorn.error", "asyncio", "app.store.store", "somebody.else"):
        assert f"failed in {name}" in done.stderr
    assert done.stderr.count("KeyError") == 4
    assert done.stderr.count("RuntimeError") == 1


@pytest.mark.processes
@pytest.mark.slow
def test_a_served_session_prints_nothing_planted(mongod: str) -> None:
    """The process as it is started, with its output read to the end, a failing delivery among what it does."""
    settings = environment(mongodb_uri=mongod, mongodb_database=f"t{uuid.uuid4().hex[:8]}")
    with started("FHIR base: ", "serve", "--port", "0", env=settings) as (process, base):
        with httpx.Client(base_url=base, headers=HEADERS, timeout=30) as client:
            subscription = classic(criteria="Patient?active=true", payload="application/fhir+json")
            client.post("/Subscription", json=subscription).raise_for_status()
            for _ in range(2):
                client.put("/Patient/planted", json=with_(active=True)).raise_for_status()
            for call in CALLS.values():
                body = call.body if isinstance(call.body, str | None) else json.dumps(call.body)
                url = call.url.replace("http://carerelay.test", base.removesuffix("/fhir"))
                client.request(call.method, url, content=body, headers=call.headers or JSON)
        process.terminate()
        assert process.stdout is not None
        said = process.stdout.read()
    assert planted_in(said) == []
