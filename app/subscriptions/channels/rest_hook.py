"""The rest-hook channel: an HTTP request to the subscriber's endpoint.

https://hl7.org/fhir/R4/subscription.html#2.46.7.1
httpx gives the API, aiohttp moves the bytes: a tenth of the CPU per request (design decision 13). Each origin has a
small client of its own, so that one that hangs holds no connection another waits for; all share one TLS context.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import OrderedDict
from datetime import UTC, datetime

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport

from app.security.egress import CheckedResolver, Egress, EgressRefusedError, UnresolvableError
from app.subscriptions.channels import http_endpoint
from app.subscriptions.channels.protocol import (
    ANSWER_LIMIT,
    NOTICE_ID_HEADER,
    ChannelType,
    Draft,
    Notice,
    Outcome,
    Shape,
)
from app.subscriptions.retry import retry_after_seconds

CONNECTIONS_PER_ORIGIN = 32
_MAX_ORIGINS = 512
_USER_AGENT = "CareRelay"


class RestHook:
    """Sends notices over HTTP. `transport` replaces the network in tests."""

    def __init__(self, egress: Egress, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._egress = egress
        self._transport = transport
        self._tls = ssl.create_default_context()
        self._clients: OrderedDict[str, httpx.AsyncClient] = OrderedDict()
        self._in_use: dict[str, int] = {}

    async def send(self, notice: Notice) -> Outcome:
        """One attempt: no redirects, `notice.timeout` seconds for all of it, and no exception for what goes wrong."""
        try:
            parts = self._egress.check_url(notice.url)
        except EgressRefusedError as refusal:
            return Outcome(None, str(refusal), forbidden=True)
        origin = f"{parts.scheme}://{parts.netloc}"
        self._in_use[origin] = self._in_use.get(origin, 0) + 1
        try:
            async with asyncio.timeout(notice.timeout):
                return await self._exchange(self._client(origin), notice)
        except TimeoutError:
            return Outcome(None, "timeout")
        except (
            EgressRefusedError,
            UnresolvableError,
            httpx.HTTPError,
            aiohttp.ClientError,
            OSError,
        ) as error:
            return _failure(error)
        finally:
            self._in_use[origin] -= 1
            if not self._in_use[origin]:
                del self._in_use[origin]
            await self._close_idle()

    async def _exchange(self, client: httpx.AsyncClient, notice: Notice) -> Outcome:
        headers = [*notice.headers, (NOTICE_ID_HEADER, notice.id)]
        request = client.build_request(
            notice.method, notice.url, headers=headers, content=notice.body
        )
        response = await client.send(request, stream=True)
        try:
            answer = await _beginning(response)
        finally:
            await response.aclose()
        return Outcome(
            response.status_code,
            answer=answer[:ANSWER_LIMIT].decode("utf-8", "replace"),
            retry_after=retry_after_seconds(response.headers, datetime.now(UTC)),
        )

    def _client(self, origin: str) -> httpx.AsyncClient:
        client = self._clients.get(origin)
        if client is None:
            client = httpx.AsyncClient(
                transport=self._transport
                or AiohttpTransport(verify=self._tls, client=self._session),
                headers={"User-Agent": _USER_AGENT, "Accept-Encoding": "identity"},
                trust_env=False,
                follow_redirects=False,
                timeout=httpx.Timeout(None),  # the attempt as a whole is timed
            )
            self._clients[origin] = client
        self._clients.move_to_end(origin)
        return client

    def _session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            ssl=self._tls,
            limit=CONNECTIONS_PER_ORIGIN,
            resolver=CheckedResolver(self._egress),
            family=socket.AF_UNSPEC,
            use_dns_cache=False,
        )
        return aiohttp.ClientSession(
            connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False
        )

    async def _close_idle(self) -> None:
        """Keep the number of open clients bounded: the one unused for longest goes first."""
        while len(self._clients) > _MAX_ORIGINS:
            idle = next((origin for origin in self._clients if origin not in self._in_use), None)
            if idle is None:
                return
            await self._clients.pop(idle).aclose()

    async def close(self) -> None:
        clients, self._clients = self._clients, OrderedDict()
        for client in clients.values():
            await client.aclose()


async def _beginning(response: httpx.Response) -> bytes:
    """The first bytes of an answer, as they came: nothing is unpacked, nothing beyond the limit is read."""
    if response.is_stream_consumed:  # a transport that has read it already
        return response.content
    answer = b""
    async for chunk in response.aiter_raw():
        answer += chunk
        if len(answer) >= ANSWER_LIMIT:
            break
    return answer


def _failure(error: BaseException) -> Outcome:
    """Our own words for what went wrong: the libraries' texts may repeat addresses and content.

    The causes tell more than the outermost error: the transport calls every failure to connect a timeout.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, EgressRefusedError):
            return Outcome(None, str(cause), forbidden=True)
        if isinstance(cause, UnresolvableError):
            return Outcome(None, str(cause))
        if isinstance(cause, aiohttp.ClientConnectorError | httpx.ConnectError):
            error = cause
        cause = cause.__cause__ or cause.__context__
    connected = not isinstance(error, aiohttp.ClientConnectorError | httpx.ConnectError)
    return Outcome(None, "broken connection" if connected else "no connection")


def shape(draft: Draft) -> Shape:
    """A topic-based notice is posted; of a classic one, a payload is put to the endpoint as a FHIR base."""
    if draft.focus is None or draft.resource is None:
        return Shape("POST", draft.endpoint, draft.resource)
    return Shape("PUT", http_endpoint.extend(draft.endpoint, f"/{draft.focus}"), draft.resource)


REST_HOOK = ChannelType(
    make=lambda around: RestHook(around.egress),
    check=http_endpoint.check,
    shape=shape,
    calls_out=True,
)
