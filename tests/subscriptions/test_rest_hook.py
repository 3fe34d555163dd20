"""The rest-hook channel against real endpoints: what leaves, and what is made of the answers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.network.egress_policy import Egress
from app.subscriptions.channels import Notice
from app.subscriptions.channels.http_sender import HttpSender
from app.subscriptions.channels.protocol import ANSWER_LIMIT, NOTICE_ID_HEADER
from app.subscriptions.sending.retry import Verdict
from tests.builders.receiver import Receiver, receiving


@pytest.fixture
async def hook() -> AsyncIterator[HttpSender]:
    hook = HttpSender(Egress(loopback=True))
    yield hook
    await hook.close()


def notice(url: str, **more: Any) -> Notice:
    fields: dict[str, Any] = {
        "id": "n1",
        "method": "POST",
        "url": url,
        "headers": (("X-Practice", "7"), ("Content-Type", "application/fhir+json")),
        "body": b"{}",
        "timeout": 5.0,
    }
    return Notice(**{**fields, **more})


async def test_what_leaves_is_what_was_asked(hook: HttpSender, receiver: Receiver) -> None:
    outcome = await hook.send(notice(receiver.url + "/a?b=c"))
    assert (outcome.status, outcome.answer, outcome.verdict) == (200, "taken", Verdict.DELIVERED)
    (received,) = receiver.requests
    assert (received.method, received.path, received.body) == ("POST", "/a?b=c", b"{}")
    assert received.headers["x-practice"] == "7"
    assert received.headers["content-type"] == "application/fhir+json"
    assert received.headers[NOTICE_ID_HEADER.lower()] == "n1"


async def test_an_empty_notice_has_no_body(hook: HttpSender, receiver: Receiver) -> None:
    await hook.send(notice(receiver.url, body=b"", headers=()))
    (received,) = receiver.requests
    assert received.body == b""
    assert received.headers.get("content-length", "0") == "0"


async def test_a_redirect_is_not_followed(hook: HttpSender, receiver: Receiver) -> None:
    async with receiving() as elsewhere:
        receiver.answer = lambda _: 302
        receiver.headers = {"Location": elsewhere.url}
        outcome = await hook.send(notice(receiver.url))
        assert (outcome.status, outcome.verdict) == (302, Verdict.RETRY)
        assert not elsewhere.requests


async def test_no_answer_in_time_is_a_timeout(hook: HttpSender, receiver: Receiver) -> None:
    receiver.answer = lambda _: None
    outcome = await hook.send(notice(receiver.url, timeout=0.2))
    assert (outcome.status, outcome.reason, outcome.verdict) == (None, "timeout", Verdict.RETRY)


async def test_nobody_listening_is_no_connection(hook: HttpSender) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    outcome = await hook.send(notice(f"http://127.0.0.1:{port}/"))
    assert (outcome.status, outcome.reason) == (None, "no connection")


async def test_a_broken_answer_is_no_delivery(hook: HttpSender) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        outcome = await hook.send(notice(f"http://127.0.0.1:{port}/"))
    assert outcome.status is None
    assert outcome.verdict is Verdict.RETRY


@asynccontextmanager
async def answering(*segments: bytes, again: bytes = b"") -> AsyncIterator[str]:
    """An endpoint that answers with these bytes, then with `again` for as long as it is heard."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            await reader.readuntil(b"{}")
            for segment in segments:
                writer.write(segment)
            while again:
                writer.write(again)
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 204 No Content\r\n\r\nhello",
        b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nmuch more",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
async def test_the_head_counts_whatever_comes_with_it(hook: HttpSender, answer: bytes) -> None:
    async with answering(answer) as url:
        outcome = await hook.send(notice(url))
    assert outcome.status in (200, 204)
    assert outcome.verdict is Verdict.DELIVERED


async def test_informational_responses_without_end_are_a_failure(hook: HttpSender) -> None:
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
    async with answering(hint, again=hint * 100) as url:
        outcome = await hook.send(notice(url, timeout=60.0))
    assert outcome.status is None
    assert outcome.reason != "timeout"
    assert outcome.verdict is Verdict.RETRY


async def test_the_wait_that_is_asked_for_is_reported(hook: HttpSender, receiver: Receiver) -> None:
    receiver.answer = lambda _: 429
    receiver.headers = {"Retry-After": "17"}
    assert (await hook.send(notice(receiver.url))).retry_after == 17.0


async def test_a_forbidden_address_is_never_called(receiver: Receiver) -> None:
    hook = HttpSender(Egress(loopback=False))
    for url in (receiver.url, receiver.url.replace("127.0.0.1", "localhost")):
        outcome = await hook.send(notice(url))
        assert (outcome.status, outcome.verdict) == (None, Verdict.REJECTED)
    await hook.close()
    assert not receiver.requests


async def test_a_name_is_judged_where_the_connection_is_opened(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name's address turns bad after the Subscription was stored: the connector refuses it."""
    port = int(receiver.url.rpartition(":")[2])

    async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo, raising=False)
    hook = HttpSender(Egress(loopback=False))
    outcome = await hook.send(notice(f"http://pcp.example:{port}/"))
    assert (outcome.status, outcome.verdict) == (None, Verdict.REJECTED)
    assert not receiver.requests
    trusting = HttpSender(Egress(hosts=frozenset({"pcp.example"})))
    assert (await trusting.send(notice(f"http://pcp.example:{port}/"))).status == 200
    await hook.close()
    await trusting.close()


async def test_only_the_beginning_of_an_answer_is_kept(
    hook: HttpSender, receiver: Receiver
) -> None:
    receiver.answer = lambda _: 503
    receiver.text = "x" * 100_000
    outcome = await hook.send(notice(receiver.url))
    assert outcome.status == 503
    assert len(outcome.answer) == ANSWER_LIMIT
