"""Bodies that take long: they mean the same as small ones, cost what they may, and keep nobody else waiting."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from app.runtime.codec_process import CodecProcess
from tests.builders.access_world import world
from tests.conftest import BASE, Server, make_settings, running
from tests.outcomes import assert_outcome
from tests.processes import children, until, wait_until_gone

JSON, XML = "application/fhir+json", "application/fhir+xml"
# More than is decoded by the server itself, after what a test is about.
PADDING = "x" * 300_000

pytestmark = pytest.mark.processes


def observation(inside: str = "") -> str:
    """An Observation as text: `inside` comes before anything that makes it large."""
    return (
        '{"resourceType":"Observation","status":"final","code":{"text":"weight"},'
        f'{inside}"note":[{{"text":"PADDING"}}]}}'
    )


def patient_xml(inside: str) -> str:
    return f'<Patient xmlns="http://hl7.org/fhir">{inside}<name><text value="PADDING"/></name></Patient>'


FAULTS = {
    "malformed": (JSON, observation('"value" 1,')),
    "a key twice": (JSON, observation('"subject":{"display":"a","display":"b"},')),
    "deep": (JSON, observation('"extension":' + "[" * 200 + "]" * 200 + ",")),
    "a null character": (JSON, observation('"valueString":"\\u0000",')),
    "an element that is not there": (JSON, observation('"colour":"red",')),
    "a code that is none": (JSON, observation('"component":[{"code":{}}],"language":7,')),
    "a decimal for an integer": (JSON, observation('"valueInteger":1.00e2,')),
    "a number out of range": (
        JSON,
        observation('"valueQuantity":{"value":1e99999999999999999999},'),
    ),
    "another type than the URL's": (JSON, observation().replace("Observation", "Patient")),
    "a list": (JSON, f"[{observation()}]"),
    "malformed XML": (XML, patient_xml("<name><gender></name>")),
    "a document type": (XML, "<!DOCTYPE Patient>" + patient_xml("")),
    "an XML element that is not there": (XML, patient_xml('<colour value="red"/>')),
}


async def post(client: httpx.AsyncClient, url: str, text: str, type_: str = JSON) -> httpx.Response:
    return await client.post(url, content=text.encode(), headers={"content-type": type_})


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_large_body_is_refused_in_the_words_of_a_small_one(
    client: httpx.AsyncClient, fault: str
) -> None:
    content_type, text = FAULTS[fault]
    url = "/Patient" if content_type == XML else "/Observation"
    small = await post(client, url, text, content_type)
    large = await post(client, url, text.replace("PADDING", PADDING), content_type)
    assert small.status_code in (400, 422)
    assert (large.status_code, large.json()) == (small.status_code, small.json())


async def test_a_large_body_is_stored_to_the_digit(client: httpx.AsyncClient) -> None:
    values = ["1.50", "100", "0.0", "1E+2", "1E-10", "123456789.1234567890", "-0.50"]
    components = ",".join(
        f'{{"code":{{"text":"é\\u20ac"}},"valueQuantity":{{"value":{value}}}}}' for value in values
    )
    text = observation(f'"component":[{components}],')
    small = await post(client, "/Observation", text)
    large = await post(client, "/Observation", text.replace("PADDING", PADDING))
    assert (small.status_code, large.status_code) == (201, 201)
    begin = small.text.index('"status"')
    assert large.text[large.text.index('"status"') :] == small.text[begin:].replace(
        "PADDING", PADDING
    )
    as_xml = await client.get(f"/Observation/{large.json()['id']}", headers={"accept": XML})
    again = await client.post("/Observation", content=as_xml.content, headers={"content-type": XML})
    assert [each["valueQuantity"] for each in decoded(again)["component"]] == [
        each["valueQuantity"] for each in decoded(small)["component"]
    ]


def decoded(answer: httpx.Response) -> dict[str, Any]:
    """The resource with its numbers as they are spelled."""
    resource: dict[str, Any] = json.loads(answer.text, parse_float=str, parse_int=str)
    return resource


async def test_large_bundles_patches_and_validations_do_what_small_ones_do(
    client: httpx.AsyncClient,
) -> None:
    entries = [
        {
            "fullUrl": "urn:uuid:5f0f36c6-0d4e-4e5c-9f0c-5d8f1f0f0a01",
            "resource": {"resourceType": "Patient", "name": [{"text": PADDING}]},
            "request": {"method": "POST", "url": "Patient"},
        },
        {
            "resource": {
                **json.loads(observation()),
                "subject": {"reference": "urn:uuid:5f0f36c6-0d4e-4e5c-9f0c-5d8f1f0f0a01"},
            },
            "request": {"method": "POST", "url": "Observation"},
        },
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    answer = await client.post("", json=bundle)
    assert answer.status_code == 200, answer.text[:500]
    patient, seen = (each["resource"] for each in answer.json()["entry"])
    assert seen["subject"]["reference"] == f"Patient/{patient['id']}"

    patch = [{"op": "add", "path": "/language", "value": "de"}]
    padded = [{"op": "test", "path": "/name/0/text", "value": PADDING}, *patch]
    patched = await client.patch(
        f"/Patient/{patient['id']}",
        json=padded,
        headers={"content-type": "application/json-patch+json"},
    )
    assert (patched.status_code, patched.json()["language"]) == (200, "de")
    failed = await client.patch(
        f"/Patient/{patient['id']}",
        json=[{"op": "test", "path": "/name/0/text", "value": "other"}],
        headers={"content-type": "application/json-patch+json"},
    )
    assert_outcome(failed, 422, "processing")

    parameters = {
        "resourceType": "Parameters",
        "parameter": [{"name": "resource", "resource": {**patient, "gender": "f"}}],
    }
    outcome = (await client.post("/Patient/$validate", json=parameters)).json()
    refused = [each["code"] for each in outcome["issue"] if each["severity"] == "error"]
    assert refused == ["code-invalid"]


@pytest.fixture
async def narrow(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """A server that takes little."""
    settings = make_settings(
        mongod,
        max_elements=256 * 1024,
        large_body_timeout=3,
        max_bytes_under_way=1024 * 1024,
        max_total_bytes_under_way=1024 * 1024,
    )
    async with running(settings) as pair:
        yield pair


async def test_a_body_of_too_many_elements_is_refused_before_it_is_decoded(
    narrow: tuple[Server, httpx.AsyncClient],
) -> None:
    _, client = narrow
    nothing = f'"extension":[{"[]," * 300_000}[]],'
    assert_outcome(await post(client, "/Observation", observation(nothing)), 422, "too-costly")
    commas = await post(client, "/Observation", observation(f'"valueString":"{"{[," * 100_000}",'))
    assert commas.status_code == 201
    deep = await post(client, "/Observation", "[" * 250_000 + observation(PADDING))
    assert_outcome(deep, 400, "structure")
    many = '<name><text value="x"/></name>' * 140_000
    assert_outcome(await post(client, "/Patient", patient_xml(many), XML), 422, "too-costly")


async def test_an_operation_takes_no_more_than_a_resource(client: httpx.AsyncClient) -> None:
    large = observation().replace("PADDING", "x" * (8 * 1024 * 1024))
    assert_outcome(await post(client, "/Observation/$validate", large), 413, "too-long")


@pytest.mark.slow
async def test_a_process_that_hangs_or_dies_takes_nothing_with_it(
    narrow: tuple[Server, httpx.AsyncClient],
) -> None:
    server, client = narrow
    codec = server.services.get(CodecProcess)
    text = observation().replace("PADDING", PADDING)
    assert (await post(client, "/Observation", text)).status_code == 201
    hanging = codec.pid
    assert hanging is not None
    os.kill(hanging, signal.SIGSTOP)
    assert_outcome(await post(client, "/Observation", text), 422, "too-costly")
    wait_until_gone(hanging)
    assert (await post(client, "/Observation", text)).status_code == 201
    dying = codec.pid
    assert dying is not None
    os.kill(dying, signal.SIGSTOP)
    waiting = asyncio.create_task(post(client, "/Observation", text))
    await until(lambda: _true(codec.is_busy))
    os.kill(dying, signal.SIGKILL)
    answer = await waiting
    assert_outcome(answer, 503, "transient")
    assert answer.headers["retry-after"]
    assert (await post(client, "/Observation", text)).status_code == 201
    assert codec.pid not in (None, hanging, dying)


async def _true(holds: bool) -> bool:
    return holds


async def test_bytes_under_way_are_counted_by_client_and_in_all(
    narrow: tuple[Server, httpx.AsyncClient], mongod: str
) -> None:
    _, client = narrow
    app = client._transport.app  # type: ignore[attr-defined]
    text = observation().replace("PADDING", "x" * 700_000)
    come = asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield text[:600_000].encode()
        come.set()
        await go_on.wait()
        yield text[600_000:].encode()

    go_on = asyncio.Event()
    first = asyncio.create_task(
        client.post("/Observation", content=slowly(), headers={"content-type": JSON})
    )
    await come.wait()
    other = httpx.ASGITransport(app, client=("192.0.2.7", 1))
    async with httpx.AsyncClient(transport=other, base_url=BASE) as stranger:
        own = await post(client, "/Observation", text)
        assert_outcome(own, 429, "throttled")
        foreign = await post(stranger, "/Observation", text)
        assert_outcome(foreign, 503, "transient")
        assert own.headers["retry-after"] == foreign.headers["retry-after"] == "5"
        small = await post(client, "/Observation", observation())
        assert small.status_code == 201
        go_on.set()
        assert (await first).status_code == 201
        assert (await post(stranger, "/Observation", text)).status_code == 201


def member(number: int) -> dict[str, Any]:
    return {"entity": {"reference": f"Patient/large-{number:08}"}}


@pytest.mark.slow
async def test_the_largest_bodies_do_not_hold_up_the_loop(client: httpx.AsyncClient) -> None:
    group = {"resourceType": "Group", "type": "person", "actual": True}
    members = {**group, "member": [member(number) for number in range(10_000)]}
    creates = [
        {
            "resource": {**group, "member": [member(number)]},
            "request": {"method": "POST", "url": "Group"},
        }
        for number in range(500)
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": creates}
    component = {
        "code": {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]},
        "valueQuantity": {"value": 120.5, "unit": "mmHg"},
    }
    seen = {**json.loads(observation()), "component": [component] * 10_000}
    bodies = [
        ("/Group", json.dumps(members).encode()),
        ("/Observation/$validate", json.dumps(seen).encode()),
        ("", json.dumps(bundle).encode()),
    ]
    async with watched() as turns:
        for url, body in bodies:
            answer = await client.post(
                url, content=body, headers={"content-type": JSON, "prefer": "return=minimal"}
            )
            assert answer.status_code in (200, 201), answer.text[:500]
    assert max(turns) < 0.25


@asynccontextmanager
async def watched() -> AsyncIterator[list[float]]:
    """The processor time of the loop's thread between two of its turns: what others wait for on an idle machine."""
    turns = [0.0]

    async def watch() -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            turns[0], before = max(turns[0], now - before), now

    watching = asyncio.create_task(watch())
    yield turns
    watching.cancel()


@pytest.mark.slow
async def test_large_versions_do_not_hold_up_the_loop_for_who_may_see_some(mongod: str) -> None:
    async with world(mongod) as found:
        pn = (await found.get("north", "/Patient/pn")).json()
        many = [
            {"url": f"http://example.org/{number}", "valueCode": "v"} for number in range(60_000)
        ]
        bodies = [
            json.dumps({**pn, "active": active, "extension": many}).encode()
            for active in (True, False)
        ]
        async with watched() as turns:
            for body in bodies:
                headers = {"content-type": JSON, "prefer": "return=minimal"}
                put = await found.ask("north", "PUT", "/Patient/pn", content=body, headers=headers)
                assert put.status_code == 200, put.text[:500]
        assert max(turns) < 0.25
        async with watched() as turns:
            for url in ("_history/2", "_history", "$everything"):
                answer = await found.get("north", f"/Patient/pn/{url}")
                assert answer.status_code == 200, answer.text[:500]
        assert max(turns) < 0.1


@pytest.mark.slow
def test_the_process_ends_with_its_server() -> None:
    """However that ends: it is killed."""
    code = (
        "import asyncio\n"
        "from app.runtime.codec_process import CodecProcess\n"
        "async def main():\n"
        "    codec = CodecProcess(1_000_000, 30)\n"
        f"    await codec.decode('{JSON}', b'{{\"a\":\"' + b'x' * 300_000 + b'\"}}')\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"ready\n"
        (child,) = children(parent.pid)
        parent.kill()
    wait_until_gone(child)
