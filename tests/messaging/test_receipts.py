"""The same message again: answered as the first time, and written once, whatever happens to the process.

https://hl7.org/fhir/R4/messaging.html#reliable
"""

from __future__ import annotations

import asyncio
import copy
import re
from datetime import timedelta
from typing import Any

import httpx
import pytest
from pymongo import AsyncMongoClient

from app.fhir.ids import new_id
from tests.builders.messages import ForeignStay, found, outcome_of, refused, send, taken
from tests.builders.transactions import held
from tests.conftest import BASE, Server, make_settings, running
from tests.processes import environment, started, until

pytestmark = pytest.mark.mongo

Json = dict[str, Any]
Pair = tuple[Server, httpx.AsyncClient]


async def versions(server: Server) -> int:
    return int(await server.mongo.collection("versions").count_documents({}))


async def test_the_same_message_is_answered_the_same_and_writes_nothing(
    pair: Pair, http: httpx.AsyncClient, stay: ForeignStay
) -> None:
    message = stay.message()
    first = await send(http, message)
    outcome_of(first, message, 200, "ok")
    before = await versions(pair[0])
    again = copy.deepcopy(message)
    again["entry"][1]["resource"] = dict(reversed(again["entry"][1]["resource"].items()))
    # Sent again in a new envelope it is the same message (messaging.html#reliable).
    resubmitted = {**message, "id": new_id(), "timestamp": "2026-11-20T08:30:00Z"}
    for each in (message, again, resubmitted):
        answer = await send(http, each)
        assert (answer.status_code, answer.content) == (200, first.content)
    for name in ("Bundle.id", "Bundle.entry[0].resource.id"):
        other = copy.deepcopy(message)
        other["entry"][2]["resource"]["gender"] = "unknown"
        if name == "Bundle.id":
            other["entry"][0]["resource"]["id"] = new_id()
        else:
            other["id"] = new_id()
        (issue,) = (await refused(http, other))["issue"]
        assert (issue["code"], issue["expression"]) == ("duplicate", [name])
    assert await versions(pair[0]) == before


async def test_a_receipt_ends(pair: Pair, http: httpx.AsyncClient, stay: ForeignStay) -> None:
    """It names nobody: digests, and an answer that refers to what was written."""
    message = stay.message()
    await taken(http, message)
    rows = pair[0].mongo.collection("messages")
    row = await rows.find_one({"answer": {"$regex": message["entry"][0]["resource"]["id"]}})
    assert row is not None
    left = row["expires"] - pair[0].mongo.now()
    assert timedelta(days=29) < left <= timedelta(days=30)
    indexes = await rows.index_information()
    assert indexes["expires"]["expireAfterSeconds"] == 0
    assert not {"Meadow", stay.n} & set(re.findall(r"[\w-]+", str(row)))


async def test_what_was_refused_may_come_again_under_its_id(
    http: httpx.AsyncClient, stay: ForeignStay
) -> None:
    message = stay.message()
    person = message["entry"][2]["resource"]
    numbers = person.pop("identifier")
    (issue,) = (await refused(http, message))["issue"]
    assert issue["expression"] == ["Bundle.entry[2].resource.identifier"]
    person["identifier"] = numbers
    await taken(http, message)
    assert len(await found(http, stay.visit)) == 1


async def test_two_processes_that_take_a_message_at_once_write_it_once(
    mongod: str, stay: ForeignStay
) -> None:
    settings = make_settings(mongod, base_url=BASE)
    async with running(settings) as (server, one_), running(settings) as (_, other):
        message = stay.message()
        answers = await asyncio.gather(
            *(send(each, message) for each in (one_, other) for _ in range(4))
        )
        assert len({answer.content for answer in answers}) == 1
        outcome_of(answers[0], message, 200, "ok")
        for type_ in ("Bundle", "Patient", "Encounter", "Condition", "Organization", "Location"):
            assert await server.store.count(type_, {}) == 1, type_


@pytest.mark.processes
@pytest.mark.slow
async def test_a_message_whose_process_is_killed_is_taken_whole_by_another(
    mongod: str, stay: ForeignStay
) -> None:
    """It stands in the middle of the message's transaction: nothing of it is there, and the next one takes all."""
    settings = make_settings(mongod, base_url=BASE)
    database = settings.mongodb_database
    async with running(settings) as (server, http):
        known = {**stay.patient, "id": stay.n, "gender": None}
        del known["gender"]
        assert (await http.put(f"/Patient/{stay.n}", json=known)).status_code == 201
        message = stay.message()
        options = environment(mongodb_uri=mongod, mongodb_database=database)
        with started("FHIR base: ", "serve", "--port", "0", env=options) as (process, url):
            async with (
                held(mongod, database, ("Patient", stay.n)),
                httpx.AsyncClient(timeout=30) as dying,
                AsyncMongoClient[Json](mongod) as client,
            ):
                sending = asyncio.create_task(dying.post(f"{url}/$process-message", json=message))

                async def has_begun() -> bool:
                    status = await client.admin.command("serverStatus")
                    return bool(status["transactions"]["totalAborted"] > aborted)

                aborted = (await client.admin.command("serverStatus"))["transactions"][
                    "totalAborted"
                ]
                await until(has_begun)
                process.kill()
                process.wait()
                with pytest.raises(httpx.TransportError):
                    await sending
        assert await server.store.count("Bundle", {}) == 0
        outcome_of(await send(http, message), message, 200, "ok")
        for type_ in ("Bundle", "Patient", "Encounter", "Condition"):
            assert await server.store.count(type_, {}) == 1, type_
