"""Makes a data directory as the server of this checkout writes it: a little of everything, through the front door.

    python tests/store/make_format_1.py DIRECTORY

DIRECTORY gets the embedded database, the server's secret key and `made.json`: questions, and what the server that made
it answered. A later server that is started over the directory has to give the same answers; `answers` asks again
(tests/store/test_made_by_format_1.py).

The first version with a format marker (app/store/format.py) wrote format 1. A change of what is stored is tested on
data of that version, made by its own checkout, where TAG is its release:

    git worktree add ../format-1 TAG
    cd ../format-1 && make install && .venv/bin/python tests/store/make_format_1.py /tmp/format-1

Everything here goes by commands and HTTP, so that the script itself can be run in later checkouts too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]
MANIFEST = "made.json"
# Addresses in answers are the same whoever gives them, and wherever.
BASE = "http://made.example/fhir"
SETTINGS = {
    "CARERELAY_AUDIT": "required",
    "CARERELAY_BASE_URL": BASE,
    # The files of the export are there for years.
    "CARERELAY_EXPORT_HOURS": "1000000",
}
CLIENT, KEY = "keeper", "keeper.jwk"
_ADMISSION = "http://carerelay.example/SubscriptionTopic/encounter-admission"
_BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition"
_ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
_SECONDS = 60.0

Resource = dict[str, Any]

QUESTIONS: Sequence[str] = (
    # Each version of each resource, current or deleted.
    "Patient/anna",
    "Patient/anna/_history",
    "Patient/anna/_history/1",
    "Patient/gone",
    "Patient/gone/_history",
    "Patient/back",
    "Patient/back/_history",
    "Encounter/stay/_history",
    # Every kind of search field, and the indexes behind them.
    "Patient?family=Bergström",
    "Patient?birthdate=lt1950",
    "Patient?marital=M",
    "Patient?_has:Encounter:subject:class=IMP",
    "Patient?organization.name=practice",
    "Patient?_sort=birthdate",
    "Patient?_lastUpdated=gt2020-01-01",
    "Patient?_has:Group:member:_id=panel",
    "Encounter?patient=anna&status=finished",
    "Encounter?date=2026-01&_include=Encounter:subject",
    "Observation?value-quantity=gt60|http://unitsofmeasure.org|kg",
    "Observation?code=http://loinc.org|29463-7&_sort=-date",
    "Location?near=40.7|-74.0|5|km",
    "Group?member=Patient/anna",
    "CareTeam?participant=Practitioner/nora",
    "CarePlan?subject=Patient/anna",
    "SearchParameter?code=marital",
    # What the server remembers beside resources.
    "/admin/topics/topic-of-ours",
    "/admin/clients",
)


def make(directory: Path) -> None:
    """Fill an empty directory. Raises AssertionError where the server does not do what is expected of it."""
    directory.mkdir(parents=True, exist_ok=True)
    assert not any(directory.iterdir()), f"{directory} is not empty"
    key = directory / KEY
    command(
        directory,
        *("clients", "add", "--id", CLIENT, "--name", "Keeper", "--role", "administrator"),
        *("--scopes", "system/*.cruds", "--new-key", str(key)),
    )
    with _receiver() as endpoint, serving(directory) as client:
        _write_resources(client)
        _reindex(client)
        told = _tell(client, endpoint)
        export = _export(client)
        questions = [*QUESTIONS, *(f"Subscription/{id_}" for id_ in told), *export]
        made = {"answers": answers(client, questions), "deliveries": deliveries(client)}
    # What only a server with authorization has: keys that sign, and assertions that were used.
    with serving(directory, "--auth", "smart", CARERELAY_BASE_URL="") as client:
        token = command(
            directory, "clients", "token", CLIENT, "--key", str(key), "--url", str(client.base_url)
        )
        allowed = {"Authorization": f"Bearer {token.strip()}"}
        assert client.get("Patient/anna", headers=allowed).status_code == 200
        assert client.get("Patient/anna").status_code == 401
    made["audit"] = audit(directory)
    (directory / MANIFEST).write_text(json.dumps(made, indent=1, ensure_ascii=False))


def answers(client: httpx.Client, questions: Sequence[str]) -> dict[str, Any]:
    """What a server says to each question: the status, and what of the body is the same at any time."""
    found: dict[str, Any] = {}
    for question in questions:
        url = question if not question.startswith("/") else _root(client) + question
        response = client.get(url)
        found[question] = [response.status_code, _lasting(response)]
    return found


def deliveries(client: httpx.Client) -> list[Resource]:
    """The ledger but for what goes on: attempts that are still being made."""
    rows = client.get(f"{_root(client)}/admin/deliveries", params={"_count": "1000"}).json()
    kept = ("id", "subscription", "number", "topic", "focus", "created_at")
    return sorted(
        ({name: row[name] for name in kept if name in row} for row in rows["deliveries"]),
        key=lambda row: str(row["id"]),
    )


def audit(directory: Path, *options: str) -> str:
    """The hash that stands for the audit up to now, once all of it was followed."""
    said = command(directory, "audit", "verify", *options)
    return next(line.split()[1] for line in said.splitlines() if line.startswith("hash "))


def command(directory: Path, *arguments: str) -> str:
    """What a command on the directory's database prints. Raises AssertionError where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        cwd=ROOT,
        env=environment(directory),
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def environment(directory: Path, **changes: str) -> dict[str, str]:
    """Nobody's CARERELAY_* settings but these."""
    kept = {name: text for name, text in os.environ.items() if not name.startswith("CARERELAY_")}
    own = {"CARERELAY_DATA": str(directory.absolute()), "COLUMNS": "200"}
    return {**kept, **SETTINGS, **own, **changes}


@contextmanager
def serving(
    directory: Path, *options: str, program: Sequence[str] = ("-m", "app.cli"), **settings: str
) -> Iterator[httpx.Client]:
    """A server over the directory, and a client of its FHIR base; it is stopped in good order."""
    command_ = [sys.executable, *program, "serve", "--port", "0", *options]
    with subprocess.Popen(
        command_,
        cwd=ROOT,
        env=environment(directory, **settings),
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            said = next(line for line in process.stdout if "FHIR base: " in line)
            base = said.split("FHIR base: ")[1].strip()
            with httpx.Client(base_url=base, timeout=_SECONDS) as client:
                _until(lambda: _is_ready(client))
                yield client
        finally:
            process.terminate()
            process.wait(_SECONDS)
            process.stdout.read()


def _is_ready(client: httpx.Client) -> bool:
    try:
        return client.get(f"{_root(client)}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def _root(client: httpx.Client) -> str:
    return str(client.base_url).rstrip("/").removesuffix("/fhir")


def _until(condition: Any) -> None:
    give_up = time.monotonic() + _SECONDS
    while not condition():
        assert time.monotonic() < give_up, "what was waited for does not come"
        time.sleep(0.1)


def _lasting(response: httpx.Response) -> Any:
    """The body without what differs between two answers to the same question."""
    kind = response.headers.get("content-type", "").partition(";")[0]
    if kind not in ("application/json", "application/fhir+json"):
        return response.text.splitlines()
    body = response.json()
    if body.get("resourceType") == "Bundle":
        return [
            {name: each[name] for name in ("resource", "request", "search") if name in each}
            for each in body.get("entry", ())
        ]
    if body.get("resourceType") == "OperationOutcome":
        return [issue["code"] for issue in body["issue"]]
    return body


# What is written


def _put(client: httpx.Client, kind: str, id_: str, **elements: Any) -> None:
    resource = {"resourceType": kind, "id": id_, **elements}
    response = client.put(f"{kind}/{id_}", json=resource)
    assert response.status_code in (200, 201), response.text


def _write_resources(client: httpx.Client) -> None:
    _put(client, "Organization", "practice", name="Practice by the River")
    _put(client, "Organization", "hospital", name="General Hospital")
    _put(client, "Practitioner", "nora", name=[{"family": "Quist", "given": ["Nora"]}])
    position = {"latitude": 40.7128, "longitude": -74.006}
    _put(client, "Location", "ward", name="Ward 3", position=position)

    married = {"coding": [{"system": "http://m.example", "code": "M"}]}
    anna = {
        "name": [{"family": "Bergström", "given": ["Anna"]}],
        "birthDate": "1948-03-02",
        "maritalStatus": married,
        "managingOrganization": {"reference": "Organization/practice"},
    }
    _put(client, "Patient", "anna", active=False, **anna)
    _put(client, "Patient", "anna", active=True, **anna)
    patch = [{"op": "add", "path": "/gender", "value": "female"}]
    sent = {"Content-Type": "application/json-patch+json"}
    assert client.patch("Patient/anna", content=json.dumps(patch), headers=sent).is_success
    for id_ in ("gone", "back"):
        _put(client, "Patient", id_, name=[{"family": "Okafor"}], birthDate="1951-11-30")
        assert client.delete(f"Patient/{id_}").is_success
    _put(client, "Patient", "back", name=[{"family": "Okafor"}], birthDate="1951-11-30")
    once = {"resourceType": "Patient", "identifier": [{"system": "http://i.example", "value": "1"}]}
    condition = {"If-None-Exist": "identifier=http://i.example|1"}
    assert client.post("Patient", json=once, headers=condition).status_code == 201
    assert client.post("Patient", json=once, headers=condition).status_code == 200

    members: list[Resource] = [
        {"entity": {"reference": f"Patient/{id_}"}} for id_ in ("anna", "back")
    ]
    _put(client, "Group", "panel", type="person", actual=True, member=members)
    members.append(
        {"entity": {"reference": "Patient/gone"}, "period": {"end": "2025-12-31"}, "inactive": True}
    )
    _put(client, "Group", "panel", type="person", actual=True, member=members)
    subject: Resource = {"subject": {"reference": "Patient/anna"}}
    participant = [{"member": {"reference": "Practitioner/nora"}}]
    _put(client, "CareTeam", "team", status="active", participant=participant, **subject)
    plan: Resource = {
        "status": "active",
        "intent": "plan",
        "period": {"start": "2025-06-01"},
        **subject,
    }
    _put(client, "CarePlan", "plan", title="Heart failure", **plan)
    _put(client, "CarePlan", "plan", title="Heart failure and diabetes", **plan)
    for number, kilograms in enumerate((70.5, 54)):
        _put(
            client,
            *("Observation", f"weight-{number}"),
            status="final",
            code={"coding": [{"system": "http://loinc.org", "code": "29463-7"}]},
            effectiveDateTime=f"2026-01-0{number + 1}",
            valueQuantity={
                "value": kilograms,
                "system": "http://unitsofmeasure.org",
                "code": "kg",
            },
            **subject,
        )


def _reindex(client: httpx.Client) -> None:
    """A parameter of a client's, searchable once all that is stored was indexed by it."""
    _put(
        client,
        *("SearchParameter", "marital"),
        url="http://made.example/SearchParameter/marital",
        name="Marital",
        status="active",
        description="By marital status",
        code="marital",
        base=["Patient"],
        type="token",
        expression="Patient.maritalStatus",
    )
    asked = {
        "resourceType": "Parameters",
        "parameter": [{"name": "type", "valueCode": "Patient"}],
    }
    started = client.post("$reindex", json=asked)
    assert started.status_code == 202, started.text
    _until(lambda: client.get("Patient", params={"marital": "M"}).is_success)


def _tell(client: httpx.Client, endpoint: str) -> list[str]:
    """Subscriptions, and a stay that they are told of; the ids of those whose endpoint does not refuse."""
    topic: Resource = {
        "resourceType": "SubscriptionTopic",
        "url": "http://made.example/SubscriptionTopic/weights",
        "status": "active",
        "resourceTrigger": [
            {"resource": "Observation", "supportedInteraction": ["create", "update"]}
        ],
    }
    put = client.put(f"{_root(client)}/admin/topics/topic-of-ours", json=topic)
    assert put.status_code == 201, put.text
    ids = [
        _subscribe(client, _ADMISSION, f"{endpoint}/topic"),
        _subscribe(client, "Encounter?status=finished", f"{endpoint}/classic"),
        _subscribe(client, topic["url"], f"{endpoint}/weights"),
    ]
    down = _subscribe(client, _ADMISSION, f"{endpoint}/topic?then=down")
    stay = {
        "class": {"system": _ACT_CODE, "code": "IMP"},
        "subject": {"reference": "Patient/anna"},
        "serviceProvider": {"reference": "Organization/hospital"},
    }
    start = "2026-01-10T08:00:00Z"
    _put(client, "Encounter", "stay", status="in-progress", period={"start": start}, **stay)
    period = {"start": start, "end": "2026-01-14T10:00:00Z"}
    _put(client, "Encounter", "stay", status="finished", period=period, **stay)
    _put(client, "Observation", "note", status="final", code={"text": "note"})

    def told(subscription: str) -> list[str]:
        found = client.get(
            f"{_root(client)}/admin/deliveries", params={"subscription": subscription}
        )
        return [row["state"] for row in found.json()["deliveries"]]

    _until(lambda: all(told(id_) == ["delivered"] for id_ in ids))
    _until(lambda: told(down) == ["retrying"])
    return ids


def _subscribe(client: httpx.Client, criteria: str, endpoint: str) -> str:
    channel: Resource = {
        "type": "rest-hook",
        "endpoint": endpoint,
        "payload": "application/fhir+json",
    }
    if "?" not in criteria:
        content = {"url": f"{_BACKPORT}/backport-payload-content", "valueCode": "id-only"}
        channel["_payload"] = {"extension": [content]}
    asked = {
        "resourceType": "Subscription",
        "status": "requested",
        "reason": "To be told",
        "criteria": criteria,
        "channel": channel,
    }
    response = client.post("Subscription", json=asked)
    assert response.status_code == 201, response.text
    id_: str = response.json()["id"]
    _until(lambda: client.get(f"Subscription/{id_}").json()["status"] == "active")
    return id_


def _export(client: httpx.Client) -> list[str]:
    """The address of a finished export's status, and those of its files, below the FHIR base."""
    started = client.get("Group/panel/$export", headers={"Prefer": "respond-async"})
    assert started.status_code == 202, started.text
    place: str = started.headers["content-location"].removeprefix(f"{BASE}/")
    give_up = time.monotonic() + _SECONDS
    while (status := client.get(place)).status_code != 200:
        assert time.monotonic() < give_up
        assert status.status_code in (202, 429), status.text
        time.sleep(1.5)  # sooner is answered 429
    files = [each["url"].removeprefix(f"{BASE}/") for each in status.json()["output"]]
    assert files
    return [place, *files]


class _Endpoint(BaseHTTPRequestHandler):
    """Takes every notice, but at an address that says so only the handshake."""

    seen: set[str] = set()  # noqa: RUF012 - one for all requests

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        is_down = self.path.endswith("then=down") and self.path in self.seen
        self.seen.add(self.path)
        self.send_response(503 if is_down else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: what comes are notices."""


@contextmanager
def _receiver() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Endpoint)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    make(Path(sys.argv[1]))
