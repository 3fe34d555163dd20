"""One real mongod for the whole run; servers and databases on it for those who ask."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.context import Server
from app.main import create_app
from app.runtime.embedded_mongod import EmbeddedMongo
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store.store import Store
from tests.log_watch import WATCH

BASE = "http://carerelay.test/fhir"


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> None:
    for name in [name for name in os.environ if name.startswith("CARERELAY_")]:
        if name != "CARERELAY_SHARED":
            del os.environ[name]


@pytest.fixture(scope="session", autouse=True)
def _watched_logs() -> Iterator[None]:
    with WATCH.attached():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """What was logged since the test before, by the test and by whatever was set up for it."""
    yield
    WATCH.verify()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """The same for what was taken down, after the last test everything."""
    yield
    WATCH.verify()


@pytest.fixture(scope="session")
def mongod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The connection string of a real mongod, alive for the whole session."""
    with EmbeddedMongo(tmp_path_factory.mktemp("mongod")) as embedded:
        yield embedded.uri


def make_settings(uri: str, **changes: Any) -> Settings:
    """Settings on a database of its own."""
    return Settings(
        **{"mongodb_uri": uri, "mongodb_database": f"t{uuid.uuid4().hex[:12]}", **changes}
    )


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """The application with its lifespan open, and a client that speaks FHIR to it."""
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
            yield app.state.server, client


@pytest.fixture(scope="session")
async def shared_app(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    async with running(make_settings(mongod)) as pair:
        yield pair


@pytest.fixture
def client(shared_app: tuple[Server, httpx.AsyncClient]) -> httpx.AsyncClient:
    """A client of the session's server: use ids and identifiers of your own."""
    return shared_app[1]


@pytest.fixture
def server(shared_app: tuple[Server, httpx.AsyncClient]) -> Server:
    """The session's server itself, for what has no door of its own."""
    return shared_app[0]


@pytest.fixture(params=["pymongo", "motor"])
async def mongo(mongod: str, request: pytest.FixtureRequest) -> AsyncIterator[Mongo]:
    """A fresh database, through either driver."""
    mongo = await Mongo.open(make_settings(mongod, mongodb_driver=request.param))
    yield mongo
    await mongo.client.drop_database(mongo.db.name)
    await mongo.close()


@pytest.fixture
async def store(mongo: Mongo) -> Store:
    """A store on a fresh database, through either driver."""
    store = Store(mongo)
    await store.prepare()
    return store


SHARED = Path(os.environ.get("CARERELAY_SHARED", Path(__file__).parents[2] / "shared"))
