"""From settings to a running server: who may reach it, which database, which socket."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn

from app import child
from app.embedded import EmbeddedMongo
from app.security.egress import is_loopback_host
from app.settings import Settings

if TYPE_CHECKING:
    from fastapi import FastAPI

BACKLOG = 2048
GRACE_SECONDS = 10  # for requests under way when the server is asked to stop

Say = Callable[[str], None]


class ServeError(Exception):
    """The server does not start; the text is for people and says what to do."""


def serve(settings: Settings, say: Say) -> None:
    """Serve until SIGINT or SIGTERM. `say` gets the lines that a person should see.

    Raises ServeError or embedded.EmbeddedMongoError where it cannot start.
    """
    check_exposure(settings, say)
    with bind(settings.host, settings.port) as listener, stop_on_terminate():
        settings = settings.model_copy(update={"port": listener.getsockname()[1]})
        # Importing the server takes about as long as starting a database: do both at once.
        importing = threading.Thread(
            target=importlib.import_module, args=("app.main",), daemon=True
        )
        importing.start()
        with _database(settings, say) as settings:
            importing.join()  # two threads importing the same modules may see them half made
            say(f"FHIR base: {address(settings.host, settings.port)}/fhir")
            _run(settings, listener)


def check_exposure(settings: Settings, say: Say) -> None:
    """Without authorization the server stays on loopback, unless the operator insists.

    Raises ServeError where the settings would open it to others, or name what does not exist.
    """
    if settings.auth == "smart":
        raise ServeError("SMART authorization is not available yet: --auth smart cannot be served.")
    if is_loopback_host(settings.host):
        return
    if not settings.allow_open:
        raise ServeError(
            f"Without authorization the server listens on loopback only, and {settings.host} is "
            "not loopback. Use --host 127.0.0.1; or set CARERELAY_ALLOW_OPEN=1 where something "
            "else keeps strangers out."
        )
    say(
        f"[bold white on red] WARNING [/] No authorization: whoever reaches {settings.host} port "
        f"{settings.port} reads and changes every record (CARERELAY_ALLOW_OPEN is set)."
    )


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


@contextmanager
def _database(settings: Settings, say: Say) -> Iterator[Settings]:
    """The settings with a database behind them: the operator's, or an embedded one of our own."""
    if settings.mongodb_uri:
        yield settings
        return
    with EmbeddedMongo(settings.data) as mongo:
        say(f"Embedded MongoDB: files in {mongo.files}")
        yield settings.model_copy(update={"mongodb_uri": mongo.uri})


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


def _run(settings: Settings, listener: socket.socket) -> None:
    options: dict[str, Any] = {
        "access_log": False,
        "server_header": False,
        "backlog": BACKLOG,
        "log_level": "warning",
        "timeout_graceful_shutdown": GRACE_SECONDS,
    }
    if settings.workers > 1:
        _run_workers(settings, listener, options)
        return
    from app.main import create_app  # only now: other commands start without the whole server

    server = uvicorn.Server(uvicorn.Config(create_app(settings), **options))
    with suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    if not server.started:
        raise ServeError("The server did not start; the lines above say why.")


def _run_workers(settings: Settings, listener: socket.socket, options: dict[str, Any]) -> None:
    """Several processes on one port; being new interpreters, they read the environment."""
    for name in settings.model_fields_set:
        os.environ[f"CARERELAY_{name.upper()}"] = str(getattr(settings, name))
    listener.close()  # uvicorn binds the port for its workers itself
    with suppress(KeyboardInterrupt):
        uvicorn.run(
            "app.serve:worker_app",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            **options,
        )


def worker_app() -> FastAPI:
    """The application in a worker process, which ends when its supervisor does."""
    from app.main import create_app

    supervisor = multiprocessing.parent_process()
    if supervisor is not None and supervisor.pid is not None:
        child.end_with(supervisor.pid)
    return create_app(Settings())
