"""Notices as HTTP requests to a subscriber's endpoint, for the channels that call one.

Some endpoints require more: a signature, a client certificate, a token (app.network.endpoint_credentials).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from yarl import URL

from app.network import endpoint_credentials
from app.network.backend_services_client import BackendToken, TokenError
from app.network.egress_policy import Egress, EgressRefusedError, UnresolvableError
from app.network.endpoint_credentials import NO_TERMS, EndpointTerms, Origin
from app.network.notice_signature import SIGNATURE_HEADER, signature
from app.subscriptions.channels import patience
from app.subscriptions.channels.connections import Connections
from app.subscriptions.channels.protocol import (
    ANSWER_LIMIT,
    NOTICE_ID_HEADER,
    AttemptOutcome,
    ChannelDependencies,
    Notice,
)
from app.subscriptions.sending.retry import retry_after_seconds

# Failures of the connection or of the far side; anything else is a defect of ours.
_FAILURES = (
    EgressRefusedError,
    UnresolvableError,
    TokenError,
    httpx.HTTPError,
    aiohttp.ClientError,
    OSError,
)


# Seconds for which the body of a response is waited for.
_END_OF_ANSWER = 1.0


@dataclass(slots=True)
class _Exchange:
    """One attempt at a notice; `outcome` is what the head of the response said, None before there is one."""

    notice: Notice
    outcome: AttemptOutcome | None = None


class HttpSender:
    """Sends notices over HTTP. `terms`: the credentials that single origins require."""

    def __init__(self, egress: Egress, terms: Mapping[Origin, EndpointTerms] | None = None) -> None:
        self._egress = egress
        self._terms = terms or {}
        self._connections = Connections(egress, self._own_tls)
        self._tokens: dict[Origin, BackendToken] = {}
        self._target = lru_cache(maxsize=4096)(self._judge)

    @classmethod
    def within(cls, around: ChannelDependencies) -> HttpSender:
        """A sender by the egress rules and credentials of the settings."""
        return cls(around.egress, terms=endpoint_credentials.of_settings(around.settings))

    async def send(self, notice: Notice) -> AttemptOutcome:
        """One attempt: no redirects, `notice.timeout` seconds for all of it; a failure is an outcome, no exception.

        What the head of a response says counts, whatever becomes of the connection after it.
        """
        exchange = _Exchange(notice)
        try:
            async with asyncio.timeout(notice.timeout) as limit:
                with patience.current().for_exchange(limit):
                    if not self._terms:
                        return await self._send(exchange, ())
                    return await self._on_terms(exchange)
        except TimeoutError:
            return exchange.outcome or AttemptOutcome(None, "timeout")
        except _FAILURES as error:
            return exchange.outcome or _failure(error)

    async def _on_terms(self, exchange: _Exchange) -> AttemptOutcome:
        """An exchange with the credentials that the endpoint requires; a token that it refuses is replaced once."""
        notice = exchange.notice
        key = endpoint_credentials.origin_of(notice.url)
        terms = self._terms.get(key, NO_TERMS) if key else NO_TERMS
        more: list[tuple[str, str]] = []
        if terms.signature_secret is not None:
            signed = signature(terms.signature_secret, notice.id, int(time.time()), notice.body)
            more.append((SIGNATURE_HEADER, signed))
        if key is None or terms.token is None:
            return await self._send(exchange, more)
        token = self._tokens.setdefault(key, BackendToken(terms.token, self._post))
        outcome = AttemptOutcome(None, "no token")
        for _ in range(2):
            exchange.outcome = None
            value = await token.value()
            outcome = await self._send(exchange, [*more, ("Authorization", f"Bearer {value}")])
            if outcome.status != 401:
                break
            token.refused(value)
        return outcome

    async def _send(self, exchange: _Exchange, more: Iterable[tuple[str, str]]) -> AttemptOutcome:
        notice = exchange.notice
        url, origin = self._target(notice.url)
        headers = [*notice.headers, *more, (NOTICE_ID_HEADER, notice.id)]
        with await self._connections.to(origin) as pool:
            async with pool.session.request(
                notice.method, url, headers=headers, data=notice.body or None, allow_redirects=False
            ) as response:
                wait = None
                if not response.ok:
                    wait = retry_after_seconds(response.headers, datetime.now(UTC))
                exchange.outcome = AttemptOutcome(response.status, retry_after=wait)
                answer = await _beginning(response.content)
                exchange.outcome = exchange.outcome._replace(
                    answer=answer.decode("utf-8", "replace")
                )
        return exchange.outcome

    async def _post(self, request: httpx.Request) -> httpx.Response:
        """A request of our own, to an authorization server, under the same rules as a notice."""
        _, origin = self._target(str(request.url))
        with await self._connections.to(origin) as pool:
            return await AiohttpTransport(client=pool.session).handle_async_request(request)

    def _judge(self, url: str) -> tuple[URL, str]:
        """The URL and its origin. Raises EgressRefusedError; the connector checks the name's addresses."""
        parts = self._egress.check_url(url)
        return URL(url, encoded=True), f"{parts.scheme}://{parts.netloc}"

    def _own_tls(self, origin: str) -> ssl.SSLContext | None:
        key = endpoint_credentials.origin_of(origin)
        return self._terms.get(key, NO_TERMS).tls() if key else None

    async def close(self) -> None:
        await self._connections.close()


async def _beginning(content: aiohttp.StreamReader) -> bytes:
    """The first bytes of a response body as received: not decompressed, and nothing beyond the limit is read.

    The head has said what there is to say: a body that breaks off or does not end is taken as far as it came.
    """
    answer = b""
    try:
        async with asyncio.timeout(_END_OF_ANSWER):
            while len(answer) < ANSWER_LIMIT and not content.at_eof():
                answer += await content.read(ANSWER_LIMIT - len(answer))
    except (TimeoutError, aiohttp.ClientError, OSError):
        pass
    return answer


def _failure(error: BaseException) -> AttemptOutcome:
    """The outcome of an error, in our own words: the libraries' texts may repeat addresses and content.

    The causes are more exact than the outermost error: the transport calls every failure to connect a timeout.
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, EgressRefusedError):
            return AttemptOutcome(None, str(cause), forbidden=True)
        if isinstance(cause, UnresolvableError):
            return AttemptOutcome(None, str(cause), unreachable=True)
        if isinstance(cause, TokenError):
            return AttemptOutcome(None, str(cause))
        if isinstance(cause, aiohttp.ClientConnectorError):
            error = cause
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, aiohttp.ClientConnectorError):
        return AttemptOutcome(None, "no connection", unreachable=True)
    return AttemptOutcome(None, "broken connection")
