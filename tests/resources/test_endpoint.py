"""Endpoint: what its headers hold is used by the server, and shown to nobody but their writer."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from app.runtime import secrets
from app.store import format
from tests.builders import practices
from tests.builders.access_world import world as a_world
from tests.builders.practices import organization, patient, put, ref
from tests.builders.receiver import receiving
from tests.builders.subscriptions import encounter
from tests.conftest import Server, make_settings, running
from tests.outcomes import assert_outcome

pytestmark = pytest.mark.mongo

SECRET = "s3cret-word"
HEADERS = [f"Authorization: Bearer {SECRET}", f"{SECRET} in no header's form", "X-Kind: pcp"]
MASKED = ["Authorization: ********", "********", "X-Kind: ********"]


def endpoint(id_: str, *headers: str | None, **more: Any) -> dict[str, Any]:
    made = practices.endpoint(id_, "https://192.0.2.1/notices")
    return {**made, **({"header": list(headers)} if headers else {}), **more}


async def stored(server: Server, id_: str) -> list[str]:
    """The headers with their values, as only the server has them."""
    row = await server.mongo.collection("Endpoint").find_one({"_id": id_})
    return secrets.of_settings(server.settings).open_all(row["private"]["headers"])


async def test_headers_are_shown_by_no_way_there_is(
    server: Server, client: httpx.AsyncClient
) -> None:
    made = await client.put("/Endpoint/masked", json=endpoint("masked", *HEADERS))
    assert made.json()["header"] == HEADERS
    entry = {"resource": endpoint("masked-2", *HEADERS)}
    entry |= {"request": {"method": "PUT", "url": "Endpoint/masked-2"}}
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": [entry]}
    assert (await client.post("", json=bundle)).status_code == 200
    assert (await client.get("/Endpoint/masked")).json()["header"] == MASKED
    patched = [{"op": "add", "path": "/name", "value": "x"}]
    for answer in (
        await client.patch(
            "/Endpoint/masked",
            content=json.dumps(patched),
            headers={"content-type": "application/json-patch+json"},
        ),
        await client.get("/Endpoint/masked/_history/1"),
        await client.get("/Endpoint/masked/_history"),
        await client.get("/Endpoint", params={"_id": "masked,masked-2", "_elements": "header"}),
        await client.get("/Endpoint/masked", headers={"accept": "application/fhir+xml"}),
        await client.post("/Endpoint/$validate", json=endpoint("masked", *HEADERS)),
        await client.post(
            "",
            json={
                "resourceType": "Bundle",
                "type": "batch",
                "entry": [{"request": {"method": "GET", "url": "Endpoint/masked"}}],
            },
        ),
    ):
        assert answer.is_success
        assert SECRET not in answer.text
    # Nor can it be guessed by a search for its words, nor read in the database.
    found = await client.get("/Endpoint", params={"_content": SECRET.partition("-")[0]})
    assert "entry" not in found.json()
    for collection in ("Endpoint", "versions"):
        rows = await server.mongo.collection(collection).find({}).to_list(None)
        assert SECRET not in str(rows)
    assert await stored(server, "masked") == HEADERS


async def test_who_sends_masks_back_keeps_what_they_stand_for(
    server: Server, client: httpx.AsyncClient
) -> None:
    await client.put("/Endpoint/kept", json=endpoint("kept", *HEADERS))
    read = (await client.get("/Endpoint/kept")).json()
    # Nothing has changed, so there is no new version; then something else does, and one of the headers.
    assert (await client.put("/Endpoint/kept", json=read)).headers["etag"] == 'W/"1"'
    assert (await client.put("/Endpoint/kept", json=endpoint("kept", *HEADERS))).headers[
        "etag"
    ] == 'W/"1"'
    read["header"][2] = "X-Kind: hospital"
    assert (await client.put("/Endpoint/kept", json={**read, "name": "x"})).status_code == 200
    assert await stored(server, "kept") == [*HEADERS[:2], "X-Kind: hospital"]
    # The value alone is a change too.
    rotated = [f"Authorization: Bearer {SECRET}-2", *read["header"][1:]]
    answer = await client.put("/Endpoint/kept", json={**read, "header": rotated})
    assert answer.headers["etag"] == 'W/"3"'
    assert (await stored(server, "kept"))[0] == f"Authorization: Bearer {SECRET}-2"
    # Another address would be sent what is the old one's.
    moved = {**read, "header": MASKED, "address": "https://192.0.2.2/notices"}
    refused = await client.put("/Endpoint/kept", json=moved)
    assert_outcome(refused, 422, "value", "Endpoint.header[0]")
    unknown = await client.put("/Endpoint/new", json=endpoint("new", *MASKED))
    assert_outcome(unknown, 422, "value", "Endpoint.header[0]")


async def test_the_server_uses_them_and_new_ones_at_once(mongod: str) -> None:
    async with receiving() as receiver:
        settings = make_settings(mongod, endpoint_subscriptions=True)
        async with running(settings) as (server, client):
            await put(
                client,
                endpoint("e1", HEADERS[0], address=receiver.url),
                organization("practice", "e1"),
                patient("p1", ref("Organization/practice")),
            )
            await server.engine.drain()
            await server.worker.drain()
            await client.put("/Encounter/stay", json={**encounter(), "id": "stay"})
            [first] = await receiver.wait(1)
            assert first.headers["authorization"] == f"Bearer {SECRET}"
            await put(client, endpoint("e1", "Authorization: Bearer another", address=receiver.url))
            await server.engine.drain()
            await server.worker.drain()
            await client.put("/Encounter/stay-2", json={**encounter(), "id": "stay-2"})
            notices = await receiver.wait(2)
            assert notices[-1].headers["authorization"] == "Bearer another"
            kept = (await client.get("/Subscription")).text
            assert (SECRET in kept, "another" in kept) == (False, False)


async def test_no_organization_reads_anothers(mongod: str) -> None:
    async with a_world(mongod) as world:
        mine = endpoint("north-1", *HEADERS, managingOrganization=ref("Organization/north"))
        await world.put("north", mine)
        for who in ("north", "south", "admin"):
            answer = await world.get(who, "/Endpoint/north-1")
            assert answer.json()["header"] == MASKED


async def test_what_was_stored_in_the_clear_is_sealed_by_the_next_start(mongod: str) -> None:
    settings = make_settings(mongod)
    async with running(settings) as (server, client):
        await client.put("/Endpoint/old", json=endpoint("old", name="kind of x"))
        await client.put("/Endpoint/none", json=endpoint("none"))
        # As servers of format 2 wrote it: a version before, and the current one.
        for collection, key in (
            ("Endpoint", "old"),
            ("versions", {"t": "Endpoint", "i": "old", "v": 1}),
        ):
            rows = server.mongo.collection(collection)
            row = await rows.find_one({"_id": key})
            text = json.dumps({**json.loads(row["text"]), "header": HEADERS})
            words = ["_content=s3cret", "_content=word", "_content=kind"]
            change = {"$set": {"text": text}, "$addToSet": {"terms": {"$each": words}}}
            await rows.update_one({"_id": key}, change)
        assert (await client.get("/Endpoint", params={"_content": "s3cret"})).json()["entry"]
        await server.mongo.collection("settings").update_one(
            {"_id": "format"},
            {"$set": {"format": 2, "steps": [s.name for s in format.STEPS if s.name[0] < "3"]}},
        )
    async with running(settings) as (server, client):
        assert (await client.get("/Endpoint/old")).json()["header"] == MASKED
        assert SECRET not in (await client.get("/Endpoint/old/_history")).text
        assert await stored(server, "old") == HEADERS
        assert "entry" not in (await client.get("/Endpoint", params={"_content": "s3cret"})).json()
        assert (await client.get("/Endpoint", params={"_content": "kind"})).json()["entry"]
        assert "header" not in (await client.get("/Endpoint/none")).json()
        # Once more, as after a crash in the middle: what is masked stays as it is.
        await format.STEPS[
            [s.name for s in format.STEPS].index("3: headers of Endpoints sealed")
        ].run(server.mongo, server.settings)
        assert await stored(server, "old") == HEADERS
