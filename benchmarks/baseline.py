"""The bare baseline: plain Starlette routes that do only the database work of an interaction.

`python -m benchmarks.baseline MONGODB_URI`: one process under uvicorn with uvloop and httptools, the same driver
and write concern as the server. Reads answer from the server's own collection, creates go to a database of their own.
No FHIR beyond the one check that a create cannot do without, and that by the R4B model.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec
import uvicorn
from fhir.resources.R4B.encounter import Encounter
from pymongo import AsyncMongoClient
from pymongo.asynchronous.client_session import AsyncClientSession
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.fhir.ids import new_id

SERVER_DATABASE = "carerelay"
BASELINE_DATABASE = "baseline"
_FHIR_JSON = "application/fhir+json"


def create_app(uri: str) -> Starlette:
    """The baseline as an ASGI application."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with AsyncMongoClient[dict[str, Any]](uri, w="majority", maxPoolSize=64) as client:
            app.state.client = client
            app.state.encounters = client[SERVER_DATABASE]["Encounter"]
            app.state.care_plans = client[SERVER_DATABASE]["CarePlan"]
            app.state.current = client[BASELINE_DATABASE]["current"]
            app.state.versions = client[BASELINE_DATABASE]["versions"]
            yield

    return Starlette(
        lifespan=lifespan,
        routes=[
            Route("/readyz", ready),
            Route("/fhir/Encounter/{id}", read),
            Route("/fhir/CarePlan", page),
            Route("/fhir/Encounter", create, methods=["POST"]),
        ],
    )


async def ready(request: Request) -> Response:
    return Response()


async def read(request: Request) -> Response:
    """One find, and the stored text as it is."""
    found = await request.app.state.encounters.find_one(
        {"_id": request.path_params["id"]}, {"text": 1}
    )
    if found is None:
        return Response(status_code=404)
    return Response(found["text"].encode(), media_type=_FHIR_JSON)


async def page(request: Request) -> Response:
    """One find in the order of the server's own page, and the stored texts joined."""
    found = request.app.state.care_plans.find({"terms": "status=active"}, {"text": 1})
    found = found.sort([("date", -1), ("_id", -1)]).limit(50)
    texts = [document["text"] for document in await found.to_list(None)]
    entries = ",".join(f'{{"resource":{text}}}' for text in texts)
    bundle = f'{{"resourceType":"Bundle","type":"searchset","entry":[{entries}]}}'
    return Response(bundle.encode(), media_type=_FHIR_JSON)


async def create(request: Request) -> Response:
    """One check by the model, one transaction of two inserts."""
    state = request.app.state
    resource = msgspec.json.decode(await request.body())
    Encounter.model_validate(resource)
    resource["id"] = resource_id = new_id()
    text = msgspec.json.encode(resource)
    at = datetime.now(UTC)
    current = {"_id": resource_id, "v": 1, "at": at, "text": text.decode()}
    version = {**current, "_id": {"t": "Encounter", "i": resource_id, "v": 1}}

    async def insert(session: AsyncClientSession) -> None:
        await state.current.insert_one(current, session=session)
        await state.versions.insert_one(version, session=session)

    async with state.client.start_session() as session:
        await session.with_transaction(insert)
    location = f"/fhir/Encounter/{resource_id}/_history/1"
    return Response(text, 201, {"Location": location}, _FHIR_JSON)


def serve(uri: str) -> None:
    """Serve on a free port of loopback, whose address is printed, until a signal ends it."""
    config = uvicorn.Config(
        create_app(uri),
        loop="uvloop",
        http="httptools",
        access_log=False,
        server_header=False,
        log_level="warning",
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(f"Baseline: http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    serve(sys.argv[1])
