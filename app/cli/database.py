"""The database of the settings for a command that works on it directly, whether a server is running or not."""

from __future__ import annotations

import asyncio
import logging.config
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from app.runtime import logs
from app.runtime.embedded_mongod import EmbeddedMongo, running_uri
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.store import format

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")


def on_database(
    data: Path | None, uri: str | None, work: Callable[[Mongo, Settings], Awaitable[T]]
) -> T:
    """What `work` returns. The database is brought forward first, as by a server that starts (app/store/format.py).

    Raises errors.Unavailable or embedded_mongod.EmbeddedMongoError where there is no database, and
    UnusableDatabaseError where it is not one for this version.
    """
    logging.config.dictConfig(logs.CONFIG)
    given = {"data": data, "mongodb_uri": uri}
    settings = Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    with _database(settings) as found:
        return asyncio.run(_run(found, work))


async def _run(settings: Settings, work: Callable[[Mongo, Settings], Awaitable[T]]) -> T:
    mongo = await Mongo.open(settings)
    try:
        await format.prepare(mongo, settings)
        return await work(mongo, settings)
    finally:
        await mongo.close()


@contextmanager
def _database(settings: Settings) -> Iterator[Settings]:
    """The settings with a database behind them: the operator's, the one a server runs, or one started for this."""
    if settings.mongodb_uri:
        yield settings
        return
    running = running_uri(settings.data)
    if running is not None:
        yield settings.model_copy(update={"mongodb_uri": running})
        return
    with EmbeddedMongo(settings.data) as own:
        yield settings.model_copy(update={"mongodb_uri": own.uri})


# A running server as the commands ask it: with the token of the settings, failures in words for people.

SERVER = "http://127.0.0.1:8080"


def ask(
    console: Console,
    method: str,
    url: str,
    parameters: Mapping[str, str] | None = None,
    *,
    timeout: float,
    body: Mapping[str, Any] | None = None,
) -> httpx.Response:
    """The server's answer; without one, or with a refusal, the command says why and ends. `timeout` in seconds."""
    import httpx  # takes its time, which other commands should not wait for

    headers = {"Content-Type": "application/json", **Settings().token_header}
    try:
        answer = httpx.request(
            method, url, params=parameters, timeout=timeout, headers=headers, json=body
        )
    except httpx.TransportError as error:
        _fail(console, f"No server at {url}: {error}")
    if answer.is_success:
        return answer
    try:
        issues = answer.json()["issue"]
    except (ValueError, KeyError):
        issues = [{"diagnostics": f"answered {answer.status_code}"}]
    _fail(console, "; ".join(issue.get("diagnostics", issue.get("code", "")) for issue in issues))


def _fail(console: Console, message: str) -> NoReturn:
    console.print(f"[red]{escape(message)}[/]")
    raise typer.Exit(1) from None
