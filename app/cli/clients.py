"""`carerelay clients` and `carerelay keys`: who may ask for tokens, and what tokens are signed with.

They work on the database itself, whether a server is running or not.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from app.settings import Settings

if TYPE_CHECKING:
    from app.authentication.clients import Client, Clients
    from app.authentication.signing_keys import ServerKeys
    from app.runtime.mongo import Mongo

T = TypeVar("T")
Data = Annotated[Path | None, typer.Option(help="Directory of the embedded database.")]
Uri = Annotated[str | None, typer.Option(help="MongoDB replica set to use instead of it.")]
ClientId = Annotated[str, typer.Argument(help="The client's id.", metavar="CLIENT")]
Jwks = Annotated[Path | None, typer.Option(help="File with its public keys, a JWK Set or one JWK.")]
JwksUrl = Annotated[str | None, typer.Option(help="Where it publishes its JWK Set.")]
NewKey = Annotated[
    Path | None, typer.Option(help="Make a key pair; the private JWK is written to this new file.")
]

clients = typer.Typer(help="The clients that may ask for tokens.", no_args_is_help=True)
keys = typer.Typer(help="The keys that this server signs tokens with.", no_args_is_help=True)
console = Console(soft_wrap=True, highlight=False)


@clients.command()
def add(
    name: Annotated[str, typer.Option(help="What people call it.")],
    role: Annotated[
        str, typer.Option(help="practice, hospital, plan, state, directory or administrator.")
    ],
    scopes: Annotated[str, typer.Option(help="What it may ask for, as 'system/*.rs'.")],
    organization: Annotated[
        str | None, typer.Option(help="Whom it acts for: Organization/<id>.")
    ] = None,
    client: Annotated[
        str | None, typer.Option("--id", help="Its client id; made where none is given.")
    ] = None,
    jwks: Jwks = None,
    jwks_url: JwksUrl = None,
    new_key: NewKey = None,
    data: Data = None,
    mongodb_uri: Uri = None,
) -> None:
    """Register a client and print its id.

    With --jwks, --jwks-url or --new-key it asks this server for tokens; with neither, it comes with
    those of the outside provider.
    """
    wanted: dict[str, Any] = {"name": name, "role": role, "scopes": scopes}
    given = {"client_id": client, "organization": organization}
    wanted |= {field: value for field, value in given.items() if value is not None}

    async def work(registry: Clients) -> Client:
        with _new_keys(jwks, jwks_url, new_key) as found:
            return await registry.add(wanted | found)

    added = _with_clients(data, mongodb_uri, work, done="clients add")
    console.print(added.client_id)


@clients.command("list")
def list_clients(data: Data = None, mongodb_uri: Uri = None) -> None:
    """All clients, one a line."""
    found = _with_clients(data, mongodb_uri, lambda registry: registry.list())
    rows = [
        (
            client.client_id,
            client.name,
            client.role,
            client.organization or "",
            " ".join(client.scopes),
            client.jwks_uri or ", ".join(key["kid"] for key in client.jwks),
            _state(client),
        )
        for client in found
    ]
    _show(("id", "name", "role", "organization", "scopes", "keys", ""), rows)


@clients.command("rotate")
def rotate_client(
    client: ClientId,
    jwks: Jwks = None,
    jwks_url: JwksUrl = None,
    new_key: NewKey = None,
    data: Data = None,
    mongodb_uri: Uri = None,
) -> None:
    """Replace a client's keys. Tokens that it holds end within a second."""

    async def work(registry: Clients) -> Client:
        with _new_keys(jwks, jwks_url, new_key) as found:
            return await registry.rotate(client, **found)

    _with_clients(data, mongodb_uri, work, done=f"clients rotate {client}")
    console.print(f"{escape(client)} has new keys")


@clients.command("scopes")
def set_scopes(
    client: ClientId,
    scopes: Annotated[
        list[str], typer.Argument(help="The most that it may ask for from now on.", metavar="SCOPE")
    ],
    data: Data = None,
    mongodb_uri: Uri = None,
) -> None:
    """Replace a client's scopes. Tokens that it holds end within a second; it asks for new ones."""
    wanted = " ".join(scopes)
    done = f"clients scopes {client} {wanted}"
    changed = _with_clients(
        data, mongodb_uri, lambda registry: registry.set_scopes(client, wanted), done=done
    )
    console.print(f"{escape(client)} may ask for {escape(' '.join(changed.scopes))}")


@clients.command()
def disable(client: ClientId, data: Data = None, mongodb_uri: Uri = None) -> None:
    """Shut a client out, with all tokens that it holds, within a second."""
    done = f"clients disable {client}"
    _with_clients(data, mongodb_uri, lambda registry: registry.disable(client), done=done)
    console.print(f"{escape(client)} is disabled")


@clients.command()
def enable(client: ClientId, data: Data = None, mongodb_uri: Uri = None) -> None:
    """Let a disabled client in again."""
    done = f"clients enable {client}"
    _with_clients(
        data, mongodb_uri, lambda registry: registry.disable(client, disabled=False), done=done
    )
    console.print(f"{escape(client)} is enabled")


@clients.command()
def token(
    client: ClientId,
    key: Annotated[Path, typer.Option(help="File with its private key: a JWK, or PEM.")],
    scopes: Annotated[str, typer.Option(help="What to ask for.")] = "system/*.cruds",
    url: Annotated[
        str | None, typer.Option(help="FHIR base; that of the settings where none is given.")
    ] = None,
) -> None:
    """Ask a server for an access token and print it: for trying things out with curl.

    Waits for a server that is just starting.
    """
    from app.authentication.access_tokens import base_url
    from app.authentication.token_request import ask
    from app.network.backend_services_client import TokenError

    try:
        print(asyncio.run(ask(url or base_url(Settings()), client, key, scopes)))  # noqa: T201 - goes into pipes as it is
    except TokenError as error:
        _fail(str(error))


@keys.command("list")
def list_keys(data: Data = None, mongodb_uri: Uri = None) -> None:
    """The server's keys, the one that signs first."""
    found = _with_keys(data, mongodb_uri, lambda own: own.list())
    rows = [
        (
            key["kid"],
            key["at"].isoformat(timespec="seconds"),
            f"verifies until {key['expires'].isoformat(timespec='seconds')}"
            if key["expires"]
            else "signs",
        )
        for key in found
    ]
    _show(("key", "made", ""), rows)


@keys.command("rotate")
def rotate_key(data: Data = None, mongodb_uri: Uri = None) -> None:
    """Sign with a new key from now on; the tokens that were given stay good until they expire."""
    kid = _with_keys(data, mongodb_uri, lambda own: own.rotate(), done="keys rotate")
    console.print(f"{kid} signs from now on")


@clients.command()
def confirm(client: ClientId, data: Data = None, mongodb_uri: Uri = None) -> None:
    """Let a client count that was added or changed while authorization was off.

    Anybody who reached the server, web pages of its users included, could ask for that: look at it before.
    """
    done = f"clients confirm {client}"
    _with_clients(data, mongodb_uri, lambda registry: registry.confirm(client), done=done)
    console.print(f"{escape(client)} is confirmed")


def _state(client: Client) -> str:
    if client.unconfirmed:
        return "to be confirmed"
    return "disabled" if client.disabled else ""


@contextmanager
def _new_keys(
    jwks: Path | None, jwks_url: str | None, new_key: Path | None
) -> Iterator[dict[str, Any]]:
    """The keys of a client as its registry takes them. A file that was made is removed where the registry refuses."""
    from app.authentication.clients import RegistryError

    if sum(given is not None for given in (jwks, jwks_url, new_key)) > 1:
        raise RegistryError("Give one of --jwks, --jwks-url and --new-key")
    if jwks is not None:
        try:
            yield {"jwks": json.loads(jwks.read_bytes())}
        except (OSError, ValueError):
            raise RegistryError(f"{jwks} cannot be read as JSON") from None
    elif jwks_url is not None:
        yield {"jwks_uri": jwks_url}
    elif new_key is not None:
        public = _make_key(new_key)
        try:
            yield {"jwks": public}
        except BaseException:
            new_key.unlink()
            raise
    else:
        yield {}


def _make_key(file: Path) -> dict[str, Any]:
    """Write a private ES384 key to a new file of its owner's alone; the public half."""
    from joserfc.jwk import ECKey

    from app.authentication.clients import RegistryError

    made = ECKey.generate_key("P-384", {"use": "sig", "alg": "ES384"}, auto_kid=True)
    text = json.dumps(made.as_dict(private=True), indent=2) + "\n"
    try:
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(text)
    except FileExistsError:
        raise RegistryError(f"{file} exists already; keys are not overwritten") from None
    except OSError as error:
        raise RegistryError(f"{file}: {error.strerror}") from None
    return dict(made.as_dict(private=False))


def _with_clients(
    data: Path | None, uri: str | None, work: Callable[[Clients], Awaitable[T]], done: str = ""
) -> T:
    """Work on the registry; what was `done` goes on record."""
    from app.authentication.clients import Clients
    from app.network.egress_policy import Egress

    return _on_record(
        data,
        uri,
        lambda mongo, settings: work(Clients(mongo, Egress.from_settings(settings))),
        done,
    )


def _with_keys(
    data: Path | None, uri: str | None, work: Callable[[ServerKeys], Awaitable[T]], done: str = ""
) -> T:
    """Work on the server's keys; what was `done` goes on record."""
    from app.authentication.signing_keys import ServerKeys
    from app.runtime import secrets

    return _on_record(
        data,
        uri,
        lambda mongo, settings: work(ServerKeys(mongo, secrets.of_settings(settings))),
        done,
    )


def _on_record(
    data: Path | None,
    uri: str | None,
    work: Callable[[Mongo, Settings], Awaitable[T]],
    done: str,
) -> T:
    from app.audit import log

    async def on(mongo: Mongo, settings: Settings) -> T:
        result = await work(mongo, settings)
        if done:
            await log.note(mongo, settings, done)
        return result

    return with_database(data, uri, on)


def with_database(
    data: Path | None, uri: str | None, work: Callable[[Mongo, Settings], Awaitable[T]]
) -> T:
    """Do something on the database of the settings; ends the command with a sentence where that fails."""
    from app.authentication.clients import RegistryError
    from app.cli.database import on_database
    from app.errors import FhirError
    from app.runtime.collections import UnusableDatabaseError
    from app.runtime.embedded_mongod import EmbeddedMongoError
    from app.runtime.secrets import SecretsError

    try:
        return on_database(data, uri, work)
    except (
        RegistryError,
        SecretsError,
        EmbeddedMongoError,
        UnusableDatabaseError,
        FhirError,
    ) as error:
        _fail(str(error))


def _show(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for heading in headings:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def _fail(message: str) -> NoReturn:
    console.print(f"[red]{escape(message)}[/]")
    raise typer.Exit(1) from None
