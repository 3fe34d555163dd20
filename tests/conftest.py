"""One real mongod for the whole run; servers and databases on it for those who ask."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import httpx
import pytest

from app.audit.log import AuditLog
from app.authentication.access_tokens import Authority
from app.automation.engine import Engine
from app.bulk.exports import Exports
from app.context import Services
from app.main import create_app
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store.reindexing import Reindexing
from app.store.store import Store
from app.subscriptions.sending.worker import Worker
from tests.builders.receiver import Receiver, receiving
from tests.databases import DATABASES, running_mongod
from tests.log_watch import WATCH
from tests.processes import programs

BASE = "http://carerelay.test/fhir"
# The type that also a POST without a body declares.
JSON = {"content-type": "application/json"}
_MONGOD = pytest.StashKey[str]()
_CLOSING = pytest.StashKey[ExitStack]()
# As many quick tests take as long as a slow one.
_SLOW = 100


@pytest.fixture(scope="session", autouse=True)
def _clean_environment(tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in [name for name in os.environ if name.startswith("CARERELAY_")]:
        if name != "CARERELAY_SHARED":
            del os.environ[name]
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME"):  # keys and the like of nobody's own servers
        os.environ[name] = str(tmp_path_factory.mktemp(name.lower()))


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Child processes hear SIGINT, also where whoever started the suite in the background ignores it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _watched_logs() -> Iterator[None]:
    with WATCH.attached():
        yield


def pytest_configure(config: pytest.Config) -> None:
    closing = config.stash[_CLOSING] = ExitStack()
    config.add_cleanup(closing.close)
    # Files are handed out in the order in which they are collected.
    config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Workers begin with the files that take the longest: one that came last would keep one of them busy alone."""
    if not hasattr(config, "workerinput"):
        return
    weights: Counter[Path] = Counter()
    for item in items:
        weights[item.path] += _SLOW if item.get_closest_marker("slow") else 1
    items.sort(key=lambda item: -weights[item.path])


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Workers that share the tests share one mongod, which the process that hands out the tests keeps for them."""
    config: pytest.Config = node.config
    if _MONGOD not in config.stash:
        config.stash[_MONGOD] = config.stash[_CLOSING].enter_context(running_mongod())
    node.workerinput["mongod"] = config.stash[_MONGOD]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """What starts programs of its own says so: `make test-fast` leaves it out."""
    DATABASES.only_new = item.get_closest_marker("new_database") is not None
    with programs(may_start=item.get_closest_marker("processes") is not None):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Iterator[None]:
    """What was logged since the test before, by the test and by whatever was set up for it."""
    yield
    WATCH.verify()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown() -> Iterator[None]:
    """The same for what was taken down, after the last test everything."""
    yield
    DATABASES.end_test()
    WATCH.verify()


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any]) -> Iterator[Any]:
    """A database goes with what it was made for."""
    with DATABASES.made_for(fixturedef.scope):
        return (yield)


@pytest.fixture(scope="session")
def mongod(pytestconfig: pytest.Config) -> Iterator[str]:
    """The connection string of a real mongod, alive for the whole session."""
    shared: str | None = getattr(pytestconfig, "workerinput", {}).get("mongod")
    with ExitStack() as opened:
        if shared is None:
            with programs(may_start=True):
                shared = opened.enter_context(running_mongod())
        opened.enter_context(DATABASES.on(shared))
        yield shared


@pytest.fixture(scope="module", autouse=True)
def _databases_go() -> Iterator[None]:
    """What was made for a module goes with it."""
    yield
    DATABASES.end_module()


def make_settings(uri: str, **changes: Any) -> Settings:
    """Settings on an empty database of its own, which goes with the test or with the module (tests/databases.py).

    The server is called as BASE has it, and receivers are on loopback, also of a server with authorization.
    """
    usual: dict[str, Any] = {"hosts": "carerelay.test,fhir.test"}
    if changes.get("auth") == "smart":
        usual["egress_allow"] = "127.0.0.0/8,::1,localhost"
    return Settings(
        **{"mongodb_uri": uri, "mongodb_database": DATABASES.empty(uri), **usual, **changes}
    )


class Server:
    """A running server from inside, for what has no door of its own."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.settings = services.settings
        self.mongo = services.mongo
        self.store = services.store
        self.clock = services.clock
        self.accesses = services.accesses
        self.worker = services.get(Worker)
        self.reindexing = services.get(Reindexing)
        self.engine = services.get(Engine)
        self.exports = services.get(Exports)

    @property
    def audit(self) -> AuditLog:
        """For servers that put things on record."""
        assert self.services.audit is not None
        return self.services.audit

    @property
    def authority(self) -> Authority:
        """For servers that ask who comes."""
        return self.services.get(Authority)


@asynccontextmanager
async def running(
    settings: Settings, authority: Authority | None = None
) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    """The application with its lifespan open, and a client that speaks FHIR to it.

    With an `authority` it is that one that says whom a token stands for.
    """
    app = create_app(settings)
    async with AsyncExitStack() as opened:
        with pytest.MonkeyPatch.context() as patched:
            if authority is not None:
                patched.setattr(Authority, "open", AsyncMock(return_value=authority))
            await opened.enter_async_context(app.router.lifespan_context(app))
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        client = httpx.AsyncClient(transport=transport, base_url=BASE)
        yield Server(app.state.services), await opened.enter_async_context(client)


@pytest.fixture(scope="session")
async def shared_app(mongod: str) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    settings = make_settings(mongod)
    DATABASES.keep(settings.mongodb_database)
    async with running(settings) as pair:
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
    await mongo.close()


@pytest.fixture
async def store(mongo: Mongo) -> Store:
    """A store on a fresh database, through either driver."""
    store = Store(mongo)
    await store.prepare()
    return store


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """An endpoint that notices are sent to."""
    async with receiving() as receiver:
        yield receiver


SHARED = Path(os.environ.get("CARERELAY_SHARED", Path(__file__).parents[2] / "shared"))
