"""The email channel against a real SMTP server on loopback."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import httpx
import msgspec
import pytest
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from app.fhir import xml
from app.settings import Settings
from app.subscriptions.channels import Notice
from app.subscriptions.channels.email import Email
from app.subscriptions.channels.protocol import NOTICE_ID_HEADER
from app.subscriptions.sending.retry import Verdict
from tests.builders.subscriptions import classic, email, encounter
from tests.conftest import Server, make_settings, running

pytestmark = pytest.mark.mongo


def content(envelope: Envelope) -> bytes:
    assert isinstance(envelope.content, bytes)
    return envelope.content


def attachments(message: EmailMessage) -> list[tuple[str, bytes]]:
    """Media type and bytes of each."""
    return [
        (part.get_content_type(), bytes(part.get_content())) for part in message.iter_attachments()
    ]


class Mailbox:
    """What an SMTP server took; `answer` is its word on a recipient."""

    def __init__(self) -> None:
        self.port = 0
        self.answer = "250 OK"
        self.envelopes: list[Envelope] = []
        self.users: list[tuple[bytes, bytes]] = []

    async def handle_RCPT(  # noqa: N802 - the library's name
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.answer

    async def handle_DATA(  # noqa: N802 - the library's name
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        self.envelopes.append(envelope)
        return "250 Taken"

    def authenticate(
        self, server: SMTP, session: Session, envelope: Envelope, mechanism: str, data: Any
    ) -> AuthResult:
        assert isinstance(data, LoginPassword)
        self.users.append((data.login, data.password))
        return AuthResult(success=True)

    @property
    def messages(self) -> list[EmailMessage]:
        found = (message_from_bytes(content(e), policy=policy.SMTP) for e in self.envelopes)
        return [message for message in found if isinstance(message, EmailMessage)]


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    mailbox = Mailbox()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(
            mailbox,
            loop=loop,
            hostname="mail.test",
            authenticator=mailbox.authenticate,
            auth_require_tls=False,
        ),
        "127.0.0.1",
        0,
    )
    mailbox.port = server.sockets[0].getsockname()[1]
    yield mailbox
    server.close()
    await server.wait_closed()


@pytest.fixture
async def pair(mongod: str, mailbox: Mailbox) -> AsyncIterator[tuple[Server, httpx.AsyncClient]]:
    settings = make_settings(
        mongod,
        smtp_host="127.0.0.1",
        smtp_port=mailbox.port,
        smtp_security="none",
        smtp_from="hub@carerelay.test",
    )
    async with running(settings) as pair:
        yield pair


async def told(pair: tuple[Server, httpx.AsyncClient], subscription: dict[str, Any]) -> str:
    """Subscribe and admit a patient; returns the Subscription's id."""
    server, client = pair
    created = await client.post("/Subscription", json=subscription)
    assert created.status_code == 201, created.text
    await server.worker.drain()
    await client.post("/Encounter", json=encounter(patient="mallory"))
    await server.worker.drain()
    return str(created.json()["id"])


async def test_a_topic_based_subscription_is_told_by_mail(
    pair: tuple[Server, httpx.AsyncClient], mailbox: Mailbox
) -> None:
    id_ = await told(pair, email(content="full-resource", header=["Subject: An admission"]))
    assert (await pair[1].get(f"/Subscription/{id_}")).json()["status"] == "active"
    handshake, notice = mailbox.messages
    assert "Notification: handshake" in handshake.get_body().get_content()  # type: ignore[union-attr]
    assert mailbox.envelopes[1].rcpt_tos == ["desk@practice.example"]
    assert (notice["From"], notice["To"]) == ("hub@carerelay.test", "desk@practice.example")
    assert notice["Subject"] == "An admission"
    assert notice["Auto-Submitted"] == "auto-generated"
    body = notice.get_body()
    assert body is not None
    assert body.get_content_type() == "text/plain"
    text = body.get_content()
    assert "Event numbers: 1" in text
    assert "mallory" not in text
    ((media_type, attached),) = attachments(notice)
    assert media_type == "application/fhir+json"
    bundle = msgspec.json.decode(attached)
    assert bundle["id"] == notice[NOTICE_ID_HEADER]
    assert bundle["entry"][1]["resource"]["subject"]["reference"] == "Patient/mallory"


@pytest.mark.parametrize(
    ("subscription", "expected"),
    [
        pytest.param(email(payload="text/plain"), [], id="no-attachment"),
        pytest.param(
            email(payload="text/plain;attach=application/fhir+xml"),
            ["application/fhir+xml"],
            id="xml",
        ),
    ],
)
async def test_the_payload_type_says_what_is_attached(
    pair: tuple[Server, httpx.AsyncClient],
    mailbox: Mailbox,
    subscription: dict[str, Any],
    expected: list[str],
) -> None:
    await told(pair, subscription)
    found = attachments(mailbox.messages[-1])
    assert [media_type for media_type, _ in found] == expected
    for _, attached in found:
        assert xml.decode(attached)["type"] == "history"
    assert b"mallory" not in content(mailbox.envelopes[-1])


@pytest.mark.parametrize("payload", [None, "text/plain;attach=application/fhir+json"])
async def test_a_classic_subscription_is_told_by_mail(
    pair: tuple[Server, httpx.AsyncClient], mailbox: Mailbox, payload: str | None
) -> None:
    """No handshake; the resource where there is a payload."""
    subscription = classic("Encounter?", "mailto:desk@practice.example", payload)
    subscription["channel"]["type"] = "email"
    await told(pair, subscription)
    (notice,) = mailbox.messages
    found = [msgspec.json.decode(attached)["resourceType"] for _, attached in attachments(notice)]
    assert found == (["Encounter"] if payload else [])


def notice(timeout: float = 5.0) -> Notice:
    body = b"To: desk@practice.example\r\nSubject: x\r\n\r\nHello\r\n"
    return Notice("n1", "SEND", "mailto:desk@practice.example", (), body, timeout)


def smtp(port: int, **more: Any) -> Settings:
    given = {"smtp_host": "127.0.0.1", "smtp_port": port, "smtp_security": "none", **more}
    return Settings(**given)


@pytest.mark.parametrize(
    ("answer", "verdict", "status"),
    [
        pytest.param("250 OK", Verdict.DELIVERED, 250, id="taken"),
        pytest.param("451 Later", Verdict.RETRY, 451, id="greylisted"),
        pytest.param("550 Nobody here", Verdict.REJECTED, 550, id="unknown-mailbox"),
    ],
)
async def test_the_mail_servers_answer_decides(
    mailbox: Mailbox, answer: str, verdict: Verdict, status: int
) -> None:
    mailbox.answer = answer
    outcome = await Email(smtp(mailbox.port)).send(notice())
    assert (outcome.verdict, outcome.status) == (verdict, status)


async def test_it_logs_in_where_it_has_a_user(mailbox: Mailbox) -> None:
    settings = smtp(mailbox.port, smtp_user="hub", smtp_password="s3cret")
    assert (await Email(settings).send(notice())).verdict is Verdict.DELIVERED
    assert mailbox.users == [(b"hub", b"s3cret")]
    assert "s3cret" not in repr(settings)


async def test_a_server_without_tls_gets_nothing_where_tls_is_asked_for(mailbox: Mailbox) -> None:
    outcome = await Email(smtp(mailbox.port, smtp_security="starttls")).send(notice())
    assert (outcome.verdict, outcome.reason) == (Verdict.RETRY, "broken connection")
    assert not mailbox.envelopes


async def test_a_mail_server_that_is_away_or_silent_is_tried_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        outcome = await Email(smtp(port)).send(notice(timeout=0.2))
        assert (outcome.verdict, outcome.reason) == (Verdict.RETRY, "timeout")
    outcome = await Email(smtp(port)).send(notice())
    assert (outcome.verdict, outcome.reason) == (Verdict.RETRY, "no connection")
