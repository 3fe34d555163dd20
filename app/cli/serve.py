"""From settings to a running server: who may reach it, which database, which socket."""

from __future__ import annotations

import asyncio
import importlib
import logging
import logging.config
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn
from pydantic import SecretStr

from app.network import exposure
from app.network.egress_policy import is_loopback_host
from app.runtime import child_process, logs
from app.runtime.embedded_mongod import EmbeddedMongo
from app.settings import KEY_FILE, Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

BACKLOG = 2048
WEBSOCKET_BYTES = 64 * 1024  # the longest message that a client may send
GRACE_SECONDS = 10  # for requests under way when the server is asked to stop
STOP_SECONDS = 15.0  # for all that is stopped after them
_LOOK_SECONDS = 0.5

Say = Callable[[str], None]


class ServeError(Exception):
    """The server does not start; the text is for people and says what to do."""


def serve(settings: Settings, say: Say) -> None:
    """Serve until SIGINT or SIGTERM. `say` gets the lines that a person should see.

    Raises ServeError or embedded_mongod.EmbeddedMongoError where it cannot start.
    """
    settings = with_authorization(settings)
    check_exposure(settings, say)
    with bind(settings.host, settings.port) as listener, stop_on_terminate():
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        # Importing the server takes about as long as starting a database: do both at once.
        importing = threading.Thread(
            target=importlib.import_module, args=("app.main",), daemon=True
        )
        importing.start()
        _warn_of_key(settings, say)
        with _database(settings, say) as settings:
            importing.join()  # two threads importing the same modules may see them half made
            logging.config.dictConfig(logs.CONFIG)
            asyncio.run(_bring_forward(settings))
            say(f"FHIR base: {exposure.address(settings)}/fhir")
            _run(settings, listener)


def with_authorization(settings: Settings) -> Settings:
    """The settings with authorization decided: off on loopback, smart elsewhere, unless they say or ask for less."""
    if settings.auth is not None:
        return settings
    open_to_all = is_loopback_host(settings.host) or settings.allow_open
    return settings.model_copy(update={"auth": "off" if open_to_all else "smart"})


def check_exposure(settings: Settings, say: Say) -> None:
    """Beyond loopback only with authorization and TLS, unless the operator insists.

    Raises ServeError where the settings would open it to others, or name what does not exist.
    """
    try:
        warning = exposure.check(settings)
    except exposure.ExposureError as error:
        raise ServeError(str(error)) from None
    if settings.auth == "smart" and not settings.base_url and not is_loopback_host(settings.host):
        raise ServeError(
            "With authorization clients have to know the server by one name: set CARERELAY_BASE_URL "
            "to its public FHIR base, as https://fhir.example.org/fhir."
        )
    if warning is not None:
        say(
            f"[bold white on red] WARNING [/] {warning}, on {settings.host} port {settings.port} "
            "(CARERELAY_ALLOW_OPEN is set)."
        )
    warning = exposure.pages_warning(settings)
    if warning is not None:
        say(f"[bold white on red] WARNING [/] {warning}.")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens, before anything else is started; port 0 takes a free one.

    Who connects early waits for the server instead of being turned away.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServeError(f"Cannot listen on {host}: {error.strerror}.") from None
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(place)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ServeError(
            f"Cannot listen on {host} port {port}: {error.strerror}. Choose another with --port."
        ) from None
    return listener


def address(host: str, port: int) -> str:
    """The URL of the server for people on this machine."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def _warn_of_key(settings: Settings, say: Say) -> None:
    """Say where the key that protects the database is copied and taken together with it."""
    named = settings.secret_key.get_secret_value() or settings.secret_key_file
    beside = settings.data / KEY_FILE
    if not named and beside.exists():
        say(
            f"[bold white on red] WARNING [/] {beside} lies beside what it protects: who has a copy of {settings.data} "
            'has the key too. docs/upgrading.md, "The key", says how to move it.'
        )


@contextmanager
def _database(settings: Settings, say: Say) -> Iterator[Settings]:
    """The settings with a database behind them: the operator's, or an embedded one of our own."""
    if settings.mongodb_uri:
        yield settings
        return
    with EmbeddedMongo(settings.data) as mongo:
        say(f"Embedded MongoDB: files in {mongo.files}, for its owner alone: {mongo.uri}")
        yield settings.model_copy(update={"mongodb_uri": mongo.uri})


async def _bring_forward(settings: Settings) -> None:
    """Bring the database to this server's format, so that it says in words why it cannot, once for all workers."""
    from app.errors import Unavailable
    from app.runtime.collections import UnusableDatabaseError
    from app.runtime.mongo import Mongo
    from app.store import format

    try:
        mongo = await Mongo.open(settings)
        try:
            await format.prepare(mongo, settings)
        finally:
            await mongo.close()
    except (UnusableDatabaseError, Unavailable) as error:
        raise ServeError(str(error)) from None


@contextmanager
def stop_on_terminate() -> Iterator[None]:
    """Make SIGTERM unwind the stack, so that the database is shut down in order."""

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def options(settings: Settings) -> dict[str, Any]:
    """How uvicorn serves, for uvicorn.Config."""
    chosen: dict[str, Any] = {
        "access_log": False,
        "server_header": False,
        "backlog": BACKLOG,
        "log_level": "warning",
        "log_config": logs.CONFIG,
        "timeout_graceful_shutdown": GRACE_SECONDS,
        # The application itself believes the proxies of the settings, and nobody else.
        "proxy_headers": False,
        "ws": "app.api.uvicorn_websocket:WebSocketProtocol",
        "ws_max_size": WEBSOCKET_BYTES,
    }
    if sys.platform != "win32":
        chosen["http"] = "app.api.uvicorn_http:HttpProtocol"
    if settings.tls_certificate is not None:
        chosen["ssl_certfile"] = str(settings.tls_certificate)
        chosen["ssl_keyfile"] = None if settings.tls_key is None else str(settings.tls_key)
    return chosen


def _run(settings: Settings, listener: socket.socket) -> None:
    if settings.workers > 1:
        _run_workers(settings, listener)
        return
    from app.main import create_app  # only now: other commands start without the whole server

    def end() -> None:
        server.should_exit = True

    app = create_app(settings, end)
    started, stopped = leave_when_overdue(app)
    server = uvicorn.Server(uvicorn.Config(app, **options(settings)))
    _leave_unless_started(lambda: server.should_exit, started, stopped)
    try:
        with suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    finally:
        stopped.set()
    if not server.started:
        raise ServeError("The server did not start; the lines above say why.")
    refusal = app.state.services.store.cluster.refusal
    if refusal is not None:
        raise ServeError(refusal)


def _run_workers(settings: Settings, listener: socket.socket) -> None:
    """Several processes on one port; being new interpreters, they read the environment."""
    with tempfile.TemporaryDirectory(prefix="carerelay-metrics-") as metrics:
        if settings.metrics_directory is None:
            settings = settings.model_copy(update={"metrics_directory": Path(metrics)})
        _supervise(settings, listener)


def _supervise(settings: Settings, listener: socket.socket) -> None:
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        if value is not None:
            text = value.get_secret_value() if isinstance(value, SecretStr) else str(value)
            os.environ[f"CARERELAY_{name.upper()}"] = text
    listener.close()  # uvicorn binds the port for its workers itself
    with suppress(KeyboardInterrupt):
        uvicorn.run(
            "app.cli.serve:worker_app",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            **options(settings),
        )


def worker_app() -> FastAPI:
    """The application in a worker process, which ends when its supervisor does."""
    from app.main import create_app

    supervisor = multiprocessing.parent_process()
    if supervisor is None or supervisor.pid is None:
        app = create_app(Settings())
    else:
        child_process.end_with(supervisor.pid)
        # A worker that ended alone would be started anew.
        app = create_app(Settings(), partial(os.kill, supervisor.pid, signal.SIGTERM))
    _leave_unless_started(_is_asked_to_stop(), *leave_when_overdue(app))
    return app


def _is_asked_to_stop() -> Callable[[], bool]:
    """Whether this worker is to stop. uvicorn knows, from before it imported this, by the handler of its server."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return lambda: isinstance(server, uvicorn.Server) and server.should_exit


def leave_when_overdue(app: FastAPI) -> tuple[threading.Event, threading.Event]:
    """End the process where the application does not stop in time. Returns events of its start and of its stop.

    A database that is reached but does not answer keeps its driver waiting for most of a minute. Nothing is lost: what
    this process had in hand is taken over by others, or at the next start, as if it had been killed.
    """
    started, stopped = threading.Event(), threading.Event()
    opened = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with opened(app) as state:
            started.set()
            yield state
            watching = (stopped, asyncio.get_running_loop())
            threading.Thread(target=_leave_unless, args=watching, daemon=True).start()

    app.router.lifespan_context = lifespan
    return started, stopped


def _leave_unless_started(
    is_asked: Callable[[], bool], started: threading.Event, stopped: threading.Event
) -> None:
    """End the process where it is asked to stop while it starts, and a database that does not answer holds it up."""

    def watch() -> None:
        while not is_asked():
            if started.wait(_LOOK_SECONDS) or stopped.is_set():
                return
        if not started.is_set() and not stopped.wait(STOP_SECONDS):
            log.error("did not start, and did not stop in time", extra={"action": "stop"})
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _leave_unless(stopped: threading.Event, loop: asyncio.AbstractEventLoop) -> None:
    if stopped.wait(STOP_SECONDS):
        return
    with suppress(RuntimeError):  # the loop runs on, and its tasks come and go
        coroutines = [task.get_coro() for task in asyncio.all_tasks(loop)]
        waiting = sorted(getattr(each, "__qualname__", "") for each in coroutines)
        log.error("did not stop in time, left: %s", ", ".join(waiting), extra={"action": "stop"})
    os._exit(1)
