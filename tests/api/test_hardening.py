"""What the server does against those who come too often, too slowly, with too much, or past the door."""

from __future__ import annotations

import asyncio
import gzip
import ipaddress
import os
import socket
import ssl
import time
import uuid
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pymongo.monitoring
import pytest
import uvicorn
import zstandard
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from app.api import limits, uvicorn_http
from app.api.limits import RequestLimits
from app.cli.serve import ServeError, _run_workers, check_exposure, options
from app.errors import TooManyRequests
from app.main import create_app
from app.network.rate_limit import Buckets, ConcurrencyLimit, site
from app.runtime.codec_process import LARGE_AND_SLOW
from app.runtime.mongo import max_time_ms
from app.settings import Settings
from app.store.store import Store
from tests.builders.listening import listening
from tests.builders.smart import bearer, ec_key, register, token_for
from tests.conftest import BASE, make_settings, running
from tests.outcomes import assert_outcome
from tests.processes import environment, started

ELSEWHERE = "192.0.2.7"
JSON = {"content-type": "application/fhir+json"}
TOO_LARGE = 2**20


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(key, hashes.SHA256())
    )
    files = tmp_path_factory.mktemp("tls")
    (files / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (files / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files / "cert.pem", files / "key.pem"


# Who may be let in at all


def exposed(**settings: Any) -> list[str]:
    said: list[str] = []
    settings.setdefault("base_url", "https://fhir.example.org/fhir")
    check_exposure(Settings(**settings), said.append)
    return said


def test_beyond_loopback_needs_authorization_and_tls(certificate: tuple[Path, Path]) -> None:
    cert, key = certificate
    with pytest.raises(ServeError, match="CARERELAY_TLS_CERTIFICATE"):
        exposed(host=ELSEWHERE, auth="smart")
    with pytest.raises(ServeError, match="--auth smart"):
        exposed(host=ELSEWHERE, tls_certificate=cert, tls_key=key)
    assert exposed(host=ELSEWHERE, auth="smart", tls_certificate=cert, tls_key=key) == []
    assert exposed(host=ELSEWHERE, auth="smart", trusted_proxy="10.0.0.0/8") == []
    assert exposed(host="127.0.0.1", auth="smart") == []


def test_the_operator_who_insists_on_no_tls_is_warned() -> None:
    [warning] = exposed(host=ELSEWHERE, auth="smart", allow_open=True)
    assert "WARNING" in warning
    assert "No TLS" in warning


def test_certificates_that_cannot_be_used_are_named(
    certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    cert, key = certificate
    (tmp_path / "other.pem").write_text("no key")
    for given in (
        {"tls_key": key},
        {"tls_certificate": tmp_path / "none.pem", "tls_key": key},
        {"tls_certificate": cert},
        {"tls_certificate": cert, "tls_key": tmp_path / "other.pem"},
    ):
        with pytest.raises(ServeError, match="CARERELAY_TLS_"):
            exposed(**given)
    both = tmp_path / "both.pem"
    both.write_bytes(cert.read_bytes() + key.read_bytes())
    assert exposed(tls_certificate=both) == []


@pytest.mark.parametrize("text", ["*", "proxy.example", "10.0.0.0/33", "10.0.0.1/8"])
def test_a_trusted_proxy_is_an_address_or_network(text: str) -> None:
    with pytest.raises(ValueError, match="addresses and CIDRs"):
        Settings(trusted_proxy=text)


@pytest.mark.processes
@pytest.mark.slow
def test_the_server_speaks_tls_with_its_own_certificate(
    mongod: str, certificate: tuple[Path, Path]
) -> None:
    cert, key = certificate
    settings = environment(
        mongodb_uri=mongod,
        mongodb_database=f"t{uuid.uuid4().hex[:8]}",
        tls_certificate=str(cert),
        tls_key=str(key),
    )
    with started("FHIR base: ", "serve", "--port", "0", env=settings) as (_, base):
        assert base.startswith("https://127.0.0.1:")
        with httpx.Client(verify=ssl.create_default_context(cafile=str(cert))) as client:
            give_up = time.monotonic() + 30
            while True:
                try:
                    answer = client.get(f"{base}/metadata", timeout=30)
                    break
                except httpx.TransportError:
                    assert time.monotonic() < give_up
            assert answer.status_code == 200
            assert answer.json()["implementation"]["url"] == base
            assert "max-age" in answer.headers["strict-transport-security"]
            assert "server" not in answer.headers
        with pytest.raises(httpx.TransportError):
            httpx.get(base.replace("https", "http"), timeout=5)


# Proxies


@asynccontextmanager
async def called_from(settings: Settings, address: str):
    app = create_app(settings)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, client=(address, 1), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://fhir.test/fhir") as c:
            yield c


FORWARDED = {"x-forwarded-proto": "https", "x-forwarded-for": "203.0.113.9"}


@pytest.mark.slow
async def test_only_a_trusted_proxy_is_believed(mongod: str) -> None:
    settings = make_settings(mongod, trusted_proxy="10.1.0.0/16, 10.9.9.9")
    for address, scheme in (
        ("10.1.2.3", "https"),
        ("10.9.9.9", "https"),
        ("10.9.9.8", "http"),
        ("127.0.0.1", "http"),
    ):
        async with called_from(settings, address) as client:
            answer = await client.get("/metadata", headers=FORWARDED)
        assert answer.json()["implementation"]["url"] == f"{scheme}://fhir.test/fhir"
        assert ("strict-transport-security" in answer.headers) is (scheme == "https")


@pytest.mark.slow
async def test_by_default_no_proxy_is_believed(mongod: str) -> None:
    async with listening(make_settings(mongod), **{**options(Settings()), "log_config": None}) as (
        _,
        client,
    ):
        answer = await client.get("/metadata", headers=FORWARDED)
        assert answer.json()["implementation"]["url"].startswith("http://127.0.0.1:")
        assert "server" not in answer.headers


@pytest.mark.slow
async def test_behind_a_proxy_plain_http_past_it_is_refused(mongod: str) -> None:
    settings = make_settings(mongod, host=ELSEWHERE, auth="smart", trusted_proxy="10.1.0.0/16")
    async with called_from(settings, "10.2.0.1") as client:
        assert_outcome(await client.get("/metadata", headers=FORWARDED), 403, "forbidden")
        assert (await client.get("http://fhir.test/healthz")).status_code == 200
    async with called_from(settings, "10.1.0.1") as client:
        assert (await client.get("/metadata", headers=FORWARDED)).status_code == 200


async def test_a_proxys_client_is_who_is_limited(mongod: str) -> None:
    settings = make_settings(mongod, trusted_proxy="10.1.0.0/16", rate_limit=0.01, rate_burst=100)
    async with called_from(settings, "10.1.0.1") as client:
        for number, status in (("1", 200), ("2", 200), ("1", 429), ("2", 429)):
            answer = await client.get(
                "/metadata", headers={"x-forwarded-for": f"1.2.3.4, 203.0.113.{number}"}
            )
            assert answer.status_code == status


# How often, how many


def test_a_bucket_gives_its_burst_and_then_its_rate() -> None:
    buckets = Buckets(rate=2.0, burst=3.0)
    assert [buckets.take("a", 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert buckets.take("a", 0.0) == 0.5
    assert buckets.take("b", 0.0) == 0.0
    assert buckets.wait("a", 0.25) == 0.25
    assert buckets.take("a", 0.5) == 0.0
    assert buckets.take("a", 100.0) == 0.0
    assert [buckets.take("a", 100.0) for _ in range(3)] == [0.0, 0.0, 0.5]


def test_buckets_do_not_grow_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.network.rate_limit._MOST_KEYS", 10)
    buckets = Buckets(rate=1.0, burst=1.0)
    for number in range(1000):
        buckets.take(str(number), 0.0)
    assert len(buckets._filled) == 10


def test_a_crowd_has_room_again_when_somebody_leaves() -> None:
    crowd = ConcurrencyLimit(2)
    assert [crowd.enter("a"), crowd.enter("a"), crowd.enter("a"), crowd.enter("b")] == [
        True,
        True,
        False,
        True,
    ]
    crowd.leave("a")
    assert crowd.enter("a")


@pytest.mark.parametrize(
    ("address", "counted"),
    [
        pytest.param("203.0.113.9", "203.0.113.9", id="v4"),
        pytest.param("2001:db8:1:2:3::4", "2001:db8:1:2::/64", id="v6-by-network"),
        pytest.param("::ffff:203.0.113.9", "203.0.113.9", id="mapped"),
        pytest.param("", "", id="none"),
    ],
)
def test_addresses_count_by_whose_they_are(address: str, counted: str) -> None:
    assert site(address) == counted


async def test_who_comes_too_often_is_told_when_to_come_back(mongod: str) -> None:
    settings = make_settings(mongod, rate_limit=0.5, rate_burst=4)
    async with called_from(settings, "203.0.113.1") as client:
        assert [(await client.get("/metadata")).status_code for _ in range(2)] == [200, 200]
        refused = await client.get("/metadata")
        assert_outcome(refused, 429, "throttled")
        assert 1 <= int(refused.headers["retry-after"]) <= 2
        assert refused.headers["x-content-type-options"] == "nosniff"
        for _ in range(5):
            assert (await client.get("http://fhir.test/healthz")).status_code == 200


@pytest.mark.slow
async def test_nobody_is_limited_without_authorization_unless_it_is_set(
    client: httpx.AsyncClient,
) -> None:
    answers = [await client.get("/Patient/none") for _ in range(500)]
    assert {answer.status_code for answer in answers} == {404}


def visited(
    limits: RequestLimits, address: str, path: str = "/fhir/Patient/p1"
) -> limits.RequestBudget:
    return limits.begin({"type": "http", "path": path, "client": (address, 1)})


async def test_with_authorization_clients_count_by_name_and_strangers_by_address() -> None:
    them = RequestLimits(Settings(auth="smart", rate_limit=0.001, rate_burst=2000))
    for _ in range(3):  # two clients behind one address do not disturb each other
        for client in ("one", "two"):
            visit = visited(them, "203.0.113.1")
            try:
                limits.identify({"visit": visit}, client)
            except TooManyRequests:
                assert _ == 2
            them.end(visit)
    for _ in range(2):
        them.end(visited(them, "203.0.113.2"))  # no valid token
    with pytest.raises(TooManyRequests):
        visited(them, "203.0.113.2")
    visited(them, "203.0.113.1")


async def test_a_client_is_limited_by_its_token(mongod: str, tmp_path: Path) -> None:
    settings = make_settings(
        mongod, auth="smart", base_url=BASE, data=tmp_path, rate_limit=0.001, rate_burst=2000
    )
    async with running(settings) as (server, client):
        tokens = []
        for name in ("one", "two"):
            key = ec_key(name)
            client_id = await register(server, key)
            tokens.append(await token_for(server, client, client_id, key))
        for token in tokens:
            statuses = [
                (await client.get("/Patient/none", headers=bearer(token))).status_code
                for _ in range(3)
            ]
            assert statuses[-1] == 429
            assert 429 not in statuses[:2]


async def test_tokens_are_given_more_slowly() -> None:
    them = RequestLimits(Settings(auth="smart", token_rate_limit=0.001, rate_limit=0))
    them._tokens = Buckets(0.001, 2)
    for _ in range(2):
        them.end(visited(them, "203.0.113.1", "/auth/token"))
    with pytest.raises(TooManyRequests) as refused:
        visited(them, "203.0.113.1", "/auth/token")
    assert int(refused.value.headers["Retry-After"]) > 100
    visited(them, "203.0.113.2", "/auth/token")
    visited(them, "203.0.113.1")


async def test_requests_under_way_are_counted(mongod: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on = asyncio.Semaphore(0), asyncio.Event()

    async def read(*_: Any) -> None:
        inside.release()
        await go_on.wait()

    settings = make_settings(mongod, max_concurrent_requests=2)
    async with called_from(settings, "203.0.113.1") as client:
        monkeypatch.setattr(Store, "read", read)
        reads = [asyncio.create_task(client.get("/Patient/p1")) for _ in range(2)]
        for _ in reads:
            await inside.acquire()
        refused = await client.get("/Patient/p1")
        assert_outcome(refused, 429, "throttled")
        assert refused.headers["retry-after"] == "1"
        go_on.set()
        assert [(await each).status_code for each in reads] == [404, 404]
        assert (await client.get("/Patient/p1")).status_code == 404


# Time


@pytest.mark.slow
async def test_an_answer_that_takes_too_long_is_given_up(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = asyncio.Event()

    async def read(*_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with running(make_settings(mongod, request_timeout=0.2)) as (_, client):
        monkeypatch.setattr(Store, "read", read)
        answer = await client.get("/Patient/p1")
        assert_outcome(answer, 503, "timeout")
        assert "retry-after" in answer.headers
        assert cancelled.is_set()
        assert (await client.get("/metadata")).status_code == 200


@pytest.mark.slow
async def test_a_cancellation_of_somebody_else_goes_through(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = asyncio.Event()

    async def read(*_: Any) -> None:
        inside.set()
        await asyncio.Event().wait()

    async with running(make_settings(mongod)) as (_, client):
        monkeypatch.setattr(Store, "read", read)
        reading = asyncio.create_task(client.get("/Patient/p1"))
        await inside.wait()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading


class Commands(pymongo.monitoring.CommandListener):
    """What the driver sends."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def started(self, event: pymongo.monitoring.CommandStartedEvent) -> None:
        self.sent.append(dict(event.command))

    def succeeded(self, event: Any) -> None: ...

    def failed(self, event: Any) -> None: ...


@pytest.mark.parametrize("driver", ["pymongo", "motor"])
async def test_the_database_knows_how_long_a_search_may_take(mongod: str, driver: str) -> None:
    heard = Commands()
    before = pymongo.monitoring._LISTENERS
    pymongo.monitoring.register(heard)
    try:
        settings = make_settings(mongod, request_timeout=7, mongodb_driver=driver)
        async with running(settings) as (_, client):
            (await client.post("/Patient", json={"resourceType": "Patient"})).raise_for_status()
            heard.sent.clear()
            for query in (
                "Patient?name=x",
                "Patient?name=x&_total=accurate&_count=1",
                "Encounter?subject:Patient.name=x",
                "Patient?_has:Encounter:subject:status=planned&_sort=family",
                "Patient/_history",
                "_history?_since=2020-01-01T00:00:00Z",
                "?_type=Patient,Encounter&_tag=x",
            ):
                (await client.get(query)).raise_for_status()
    finally:
        pymongo.monitoring._LISTENERS = before
    searches = [c for c in heard.sent if {"find", "aggregate", "count", "distinct"} & c.keys()]
    of_requests = [c for c in searches if _target(c) in ("Patient", "Encounter", "versions")]
    assert len(of_requests) > 7
    assert {c.get("maxTimeMS") for c in of_requests} == {7000}
    assert max_time_ms.get() is None


def _target(command: dict[str, Any]) -> str:
    return str(command.get("find") or command.get("aggregate") or command.get("distinct"))


async def test_a_search_that_the_database_gives_up_is_503(
    mongod: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def find(*_: Any, **__: Any) -> None:
        raise pymongo.errors.ExecutionTimeout("operation exceeded time limit: Mustermann", 50)

    async with running(make_settings(mongod)) as (_, client):
        monkeypatch.setattr(Store, "find", find)
        answer = await client.get("/Patient?name=x")
        assert_outcome(answer, 503, "timeout")
        assert "Mustermann" not in answer.text


@asynccontextmanager
async def connected(mongod: str, **settings: Any):
    """A real server as it is served, and raw connections to it."""
    served = options(Settings())
    async with listening(make_settings(mongod, **settings), **{**served, "log_config": None}) as (
        server,
        client,
    ):
        port = server.settings.port

        async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection("127.0.0.1", port)

        yield connect, client


@pytest.fixture(scope="module")
async def served(mongod: str) -> AsyncIterator[tuple[Any, httpx.AsyncClient]]:
    """One for all that ask for nothing else; larger bodies than this are refused."""
    async with connected(mongod, max_resource_bytes=TOO_LARGE // 2) as pair:
        yield pair


POST = b"POST /fhir/Patient HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/fhir+json\r\n"


@asynccontextmanager
async def dripping(writer: asyncio.StreamWriter):
    """A client that sends a little more again and again, whatever it is told."""

    async def drip() -> None:
        with suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.01)  # slower than allowed is what it is about

    task = asyncio.create_task(drip())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()


@pytest.mark.slow
async def test_a_body_that_drips_is_given_up(mongod: str) -> None:
    async with connected(mongod, body_timeout=0.3) as (connect, client):
        reader, writer = await connect()
        writer.write(POST + b"content-length: 1000\r\n\r\n{")
        async with dripping(writer), asyncio.timeout(5):
            head = await reader.readuntil(b"\r\n\r\n")
            rest = await reader.read()  # and the connection is closed
        assert b" 408 " in head
        assert b'"code":"timeout"' in rest
        assert (await client.get("/metadata")).status_code == 200


@pytest.mark.slow
async def test_headers_that_drip_are_given_up(
    served: tuple[Any, httpx.AsyncClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uvicorn_http, "HEADER_SECONDS", 0.3)
    connect, client = served
    for beginning, told in (
        (b"", b""),  # nobody has asked anything
        (b"GET /fhir/metadata HTTP/1.1\r\nhost: localhost\r\nx-a: ", b"HTTP/1.1 408 "),
        (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n", b"HTTP/1.1 408 "),
    ):
        reader, writer = await connect()
        writer.write(beginning)
        if beginning.endswith(b"\r\n\r\n"):  # the second request of the connection drips
            await reader.readuntil(b"}")
            writer.write(b"GET /healthz HTTP/1.1\r\nx-a: ")
        async with dripping(writer) if beginning else nullcontext(), asyncio.timeout(3):
            answer = await reader.read()
        assert answer[:13] == told
        writer.close()
    assert (await client.get("/metadata")).status_code == 200


# A body whose first chunk is there, and not the whole of it.
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n1\r\n{\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        pytest.param(POST + b"x-a: " + b"b" * 2**20, 431, id="headers"),
        # Complete before anybody has looked at how much of them there is.
        pytest.param(POST + b"x-a: " + b"b" * 70_000 + b"\r\n\r\n", 431, id="headers-that-end"),
        pytest.param(b"BREW \0\0\0" + b" " * 2**20, 400, id="no-http"),
        pytest.param(
            POST + b"transfer-encoding: chunked\r\n\r\nx" + b" " * 2**20, 400, id="no-chunk"
        ),
        pytest.param(CHUNKED + b"0\r\n" + b"a: b\r\n" * 2**16, 431, id="trailers"),
        pytest.param(CHUNKED + b"0\r\na: " + b"b" * 2**20, 431, id="a-long-trailer"),
        pytest.param(
            CHUNKED + b"0\r\na: " + b"b" * 70_000 + b"\r\n\r\n", 431, id="a-trailer-that-ends"
        ),
        pytest.param(CHUNKED + b"1;" + b"a" * 2**20, 431, id="extension-of-a-chunk"),
    ],
)
async def test_a_refusal_is_not_overtaken_by_a_reset(
    served: tuple[Any, httpx.AsyncClient], request_: bytes, status: int
) -> None:
    """What comes after the refusal is on its way already; unread, it would reset the connection."""
    connect, client = served
    reader, writer = await connect()
    for at in range(0, len(request_), 8000):
        writer.write(request_[at : at + 8000])
        await writer.drain()
    async with asyncio.timeout(10):
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert (await client.get("/metadata")).status_code == 200


async def test_trailers_of_a_body_are_thrown_away(
    served: tuple[Any, httpx.AsyncClient],
) -> None:
    connect, _ = served
    reader, writer = await connect()
    writer.write(CHUNKED + b"0\r\nx-a: b\r\nhost: y\r\n\r\n")
    async with asyncio.timeout(5):
        assert b" 400 " in await reader.readuntil(b"\r\n\r\n")  # `{` is no resource
    writer.close()


LARGE_BODIES = [
    pytest.param(b"content-length: %d\r\n\r\n" % TOO_LARGE, b"", id="length-told"),
    pytest.param(
        b"transfer-encoding: chunked\r\n\r\n%x\r\n" % TOO_LARGE, b"\r\n0\r\n\r\n", id="chunked"
    ),
]


@pytest.mark.parametrize(("head", "tail"), LARGE_BODIES)
async def test_who_sends_too_much_hears_of_it_and_may_go_on(
    served: tuple[Any, httpx.AsyncClient], head: bytes, tail: bytes
) -> None:
    connect, _ = served
    reader, writer = await connect()
    writer.write(POST + head)
    for _ in range(0, TOO_LARGE, 2**16):
        writer.write(b" " * 2**16)
        await writer.drain()
    writer.write(tail + b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
    async with asyncio.timeout(10):
        assert b" 413 " in await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in (await reader.readuntil(b'"ok"}')).rpartition(b"HTTP/1.1")[2]
    writer.close()


@pytest.mark.parametrize(("limit", "most"), [("LINGER_SECONDS", 0.3), ("LINGER_BYTES", 20)])
@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(POST + b"content-length: %d\r\n\r\n" % TOO_LARGE, id="may-go-on"),
        pytest.param(POST + b"x-a: " + b"b" * 70_000, id="is-to-go"),
    ],
)
async def test_who_never_ends_what_is_answered_is_cut_off(
    served: tuple[Any, httpx.AsyncClient],
    monkeypatch: pytest.MonkeyPatch,
    request_: bytes,
    limit: str,
    most: float,
) -> None:
    monkeypatch.setattr(uvicorn_http, limit, most)
    connect, client = served
    reader, writer = await connect()
    writer.write(request_)
    async with asyncio.timeout(5):
        assert b" 4" in await reader.readuntil(b"\r\n\r\n")
        async with dripping(writer) as task:
            await task  # what is sent is refused
    assert (await client.get("/metadata")).status_code == 200


@pytest.mark.processes
async def test_a_large_body_in_one_piece_is_no_header(
    served: tuple[Any, httpx.AsyncClient],
) -> None:
    _, client = served
    note = "x" * 300_000
    patient = {"resourceType": "Patient", "name": [{"text": note}]}
    for _ in range(2):  # both on one connection
        assert (await client.post("/Patient", json=patient)).status_code == 201


# Packed bodies


@pytest.mark.parametrize(
    ("encoding", "pack"),
    [
        pytest.param("gzip", gzip.compress, id="gzip"),
        pytest.param("deflate", zlib.compress, id="deflate"),
        pytest.param("zstd", lambda data: zstandard.ZstdCompressor().compress(data), id="zstd"),
    ],
)
async def test_packed_bodies_are_refused_unopened(
    client: httpx.AsyncClient, encoding: str, pack: Any
) -> None:
    bomb = pack(b" " * 50_000_000)
    begun = time.perf_counter()
    answer = await client.post(
        "/Patient", content=bomb, headers={**JSON, "content-encoding": encoding}
    )
    assert_outcome(answer, 415, "not-supported")
    assert answer.headers["accept-encoding"] == "identity"
    assert time.perf_counter() - begun < 1


# XML


ENTITY = '<!DOCTYPE Patient [<!ENTITY a "{inside}">{more}]>'
PATIENT = '<Patient xmlns="http://hl7.org/fhir">{0}</Patient>'


def laughs() -> str:
    levels = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 10))
    return f'<!DOCTYPE Patient [<!ENTITY l0 "lol">{levels}]>' + PATIENT.format(
        '<name><text value="&l9;"/></name>'
    )


XML_ATTACKS = {
    "entity": ENTITY.format(inside="x", more="") + PATIENT.format('<id value="&a;"/>'),
    "file": '<!DOCTYPE p [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    + PATIENT.format('<name><text value="&a;"/></name>'),
    "http": '<!DOCTYPE p [<!ENTITY a SYSTEM "http://169.254.169.254/">]>' + PATIENT.format("&a;"),
    "parameter": '<!DOCTYPE p [<!ENTITY % a SYSTEM "http://127.0.0.1:9/x.dtd">%a;]>'
    + PATIENT.format(""),
    "external-dtd": '<!DOCTYPE p SYSTEM "file:///etc/passwd">' + PATIENT.format(""),
    "laughs": laughs(),
    "quadratic": ENTITY.format(inside="x" * 50_000, more="")
    + PATIENT.format(f'<name><text value="{"&a;" * 5000}"/></name>'),
    "after-a-comment": "<!-- --><?x y?>" + laughs(),
    "lower-case": PATIENT.format("").replace("<Patient", "<!doctype p><Patient", 1),
    "undeclared": PATIENT.format('<name><text value="&a;"/></name>'),
    "include": PATIENT.format(
        '<xi:include xmlns:xi="http://www.w3.org/2001/XInclude" href="file:///etc/passwd" parse="text"/>'
    ),
    "deep": "<a>" * 100_000,
    "deep-known": PATIENT.format('<extension url="x">' * 20_000 + "</extension>" * 20_000),
    "huge-attribute": PATIENT.format(f'<name><text value="{"x" * 11_000_000}"/></name>'),
    "many-attributes": PATIENT.format(
        "<name " + " ".join(f'a{n}="x"' for n in range(100_000)) + "/>"
    ),
    "utf-16": ENTITY.format(inside="x", more="") + PATIENT.format(""),
}


@pytest.mark.parametrize(
    "attack",
    [
        pytest.param(name, marks=[pytest.mark.processes] if len(text) > LARGE_AND_SLOW else [])
        for name, text in XML_ATTACKS.items()
    ],
)
@pytest.mark.parametrize("content_type", ["application/fhir+xml", "application/xml-patch+xml"])
async def test_xml_attacks_are_refused_quickly(
    client: httpx.AsyncClient, attack: str, content_type: str
) -> None:
    await client.put("/Patient/xml-target", json={"resourceType": "Patient", "id": "xml-target"})
    text = XML_ATTACKS[attack]
    body = text.encode("utf-16" if attack == "utf-16" else "utf-8")
    begun = time.perf_counter()
    method, url = (
        ("POST", "/Patient") if "fhir" in content_type else ("PATCH", "/Patient/xml-target")
    )
    answer = await client.request(method, url, content=body, headers={"content-type": content_type})
    assert answer.status_code in (400, 413, 422), answer.text[:300]
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert "root:" not in answer.text
    assert time.perf_counter() - begun < 2


async def test_a_narrative_cannot_bring_entities_either(client: httpx.AsyncClient) -> None:
    div = '<!DOCTYPE d [<!ENTITY a "x">]><div xmlns="http://www.w3.org/1999/xhtml">&a;</div>'
    patient = {"resourceType": "Patient", "text": {"status": "generated", "div": div}}
    assert (await client.post("/Patient", json=patient)).status_code in (400, 422)


async def test_a_narrative_of_many_attributes_is_refused_quickly(client: httpx.AsyncClient) -> None:
    attributes = " ".join(f'a{n}="x"' for n in range(32_000))
    div = f'<div xmlns="http://www.w3.org/1999/xhtml"><p {attributes}>x</p></div>'
    patient = {"resourceType": "Patient", "text": {"status": "generated", "div": div}}
    begun = time.perf_counter()
    assert (await client.post("/Patient", json=patient)).status_code in (400, 422)
    assert time.perf_counter() - begun < 2


# Headers


ANSWERS = [
    pytest.param("GET", "/Patient/none", id="not-found"),
    pytest.param("GET", "/metadata", id="ok"),
    pytest.param("GET", "/Patient?name=x", id="search"),
    pytest.param("GET", "/Patient?nothing=x", id="refused"),
    pytest.param("GET", "http://carerelay.test/nowhere", id="no-route"),
    pytest.param("GET", "http://carerelay.test/healthz", id="health"),
    pytest.param("GET", "http://carerelay.test/admin/deliveries", id="admin"),
    pytest.param("GET", "/" + "x" * 9000, id="too-long"),
    pytest.param("BREW", "/Patient", id="method"),
]


@pytest.mark.parametrize(("method", "url"), ANSWERS)
async def test_every_answer_has_the_security_headers(
    client: httpx.AsyncClient, method: str, url: str
) -> None:
    headers = (await client.request(method, url)).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert headers["content-security-policy"].startswith("default-src 'none'")
    assert headers["x-request-id"]
    assert "server" not in headers
    assert "strict-transport-security" not in headers
    assert "access-control-allow-origin" not in headers


async def test_a_defect_has_them_too(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(*_: Any) -> None:
        raise KeyError("Mustermann")

    monkeypatch.setattr(Store, "read", read)
    answer = await client.get("/Patient/p1")
    assert_outcome(answer, 500, "exception")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["x-request-id"]
    assert "Mustermann" not in answer.text


def test_workers_get_secrets_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several workers read the environment anew: what is secret must not become asterisks on the way."""
    monkeypatch.setattr(uvicorn, "run", lambda *_, **__: None)
    monkeypatch.setattr(os, "environ", {})
    settings = Settings(secret_key="planted", workers=2, port=0, tls_key=None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        _run_workers(settings, listener)
    assert os.environ["CARERELAY_SECRET_KEY"] == "planted"
    assert "CARERELAY_TLS_KEY" not in os.environ
