"""The email channel: a human-readable message by SMTP, with the notice attached where the payload type requires it.

https://hl7.org/fhir/R4/subscription.html#2.46.7.3; the Subscriptions R5 Backport guide, Channels, Email
The body holds no patient data, whatever the content level: numbers, and a link into this server. `text/plain` is that
alone; `text/plain;attach=application/fhir+json` (or +xml) attaches the notification Bundle or a classic payload.
"""

from __future__ import annotations

import asyncio
import re
import smtplib
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes, policy
from email.message import EmailMessage
from email.utils import format_datetime
from urllib.parse import unquote

from app.consent import redisclosure
from app.fhir.json import Resource
from app.network.egress_policy import is_loopback_host
from app.settings import Settings
from app.subscriptions.channels import http_endpoint, payload
from app.subscriptions.channels.protocol import (
    ANSWER_LIMIT,
    NOTICE_ID_HEADER,
    AttemptOutcome,
    ChannelRequest,
    ChannelType,
    Complaint,
    Draft,
    Notice,
)

_ADDRESS = re.compile(r"^[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,253}$")
# Headers of a mail that a Subscription may set; the rest is the server's.
_OWN_HEADER = re.compile(r"^(subject|x-[a-z0-9-]+)$", re.IGNORECASE)
_ATTACH = "attach"
_CONNECTIONS = 8
_ENDINGS = {payload.FHIR_JSON: "json", payload.FHIR_XML: "xml"}


class Email:
    """Sends mail over the operator's SMTP server, one connection a mail, a few at once in threads of their own."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        # Not the loop's own threads: names are resolved there, and a mail server that hangs must not stop that.
        self._threads = ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="smtp")
        self._turns = asyncio.Semaphore(_CONNECTIONS)

    async def send(self, notice: Notice) -> AttemptOutcome:
        """One attempt. 4xx answers are tried again, 5xx answers for a shorter while."""
        try:
            # Its time begins when it is its turn.
            async with (
                self._turns,
                asyncio.timeout(notice.timeout + 1),
            ):  # the thread's own timeout comes first
                loop = asyncio.get_running_loop()
                await loop.run_in_executor(self._threads, self._transmit, notice)
        except smtplib.SMTPRecipientsRefused as refusal:
            code, text = next(iter(refusal.recipients.values()))
            return _answered(code, text)
        except smtplib.SMTPResponseException as error:
            return _answered(error.smtp_code, error.smtp_error)
        except TimeoutError:
            return AttemptOutcome(None, "timeout")
        except (smtplib.SMTPException, ssl.SSLError) as error:
            silent = isinstance(error.__context__, TimeoutError)
            return AttemptOutcome(None, "timeout" if silent else "broken connection")
        except OSError:
            return AttemptOutcome(None, "no connection", unreachable=True)
        return AttemptOutcome(250, accepted=True)

    def _transmit(self, notice: Notice) -> None:
        settings = self._settings
        message = message_from_bytes(notice.body, policy=policy.SMTP)
        message["From"] = settings.smtp_from
        for name, value in notice.headers:
            if _OWN_HEADER.match(name):
                del message[name]
                message[name] = value
        tls = ssl.create_default_context()
        if settings.smtp_security == "tls":
            client: smtplib.SMTP = smtplib.SMTP_SSL(
                settings.smtp_host, settings.smtp_port, timeout=notice.timeout, context=tls
            )
        else:
            client = smtplib.SMTP(settings.smtp_host, settings.smtp_port, timeout=notice.timeout)
        with client:
            if settings.smtp_security == "starttls":
                client.starttls(context=tls)
            if settings.smtp_user:
                client.login(settings.smtp_user, settings.smtp_password.get_secret_value())
            client.send_message(message, settings.smtp_from, [_address(notice.url)])

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def check(requested: ChannelRequest, settings: Settings) -> Iterator[Complaint]:
    if not settings.smtp_host:
        yield "type", "not-supported", "This server sends no mail: it knows no SMTP server"
    if not requested.endpoint:
        yield "endpoint", "required", "The channel needs an endpoint"
    elif not requested.endpoint.startswith("mailto:") or not _ADDRESS.match(
        _address(requested.endpoint)
    ):
        yield "endpoint", "value", "The endpoint must be one address, as mailto:name@example.org"
    yield from _check_payload(requested, settings)
    for index, header in enumerate(requested.headers):
        parts = http_endpoint.split_header(header) if isinstance(header, str) else None
        if parts is None or not _OWN_HEADER.match(parts[0]):
            yield (
                f"header[{index}]",
                "value",
                "A mail takes `Subject: text` and `X-Name: text` only",
            )


def _check_payload(requested: ChannelRequest, settings: Settings) -> Iterator[Complaint]:
    if requested.payload is None:
        return
    name, parameters = payload.split(requested.payload)
    attached = attachment_format(requested.payload)
    if name != "text/plain" or set(parameters) - {_ATTACH} or (parameters and attached is None):
        yield (
            "payload",
            "not-supported",
            "The payload type is not supported; use text/plain or text/plain;attach=application/fhir+json",
        )
        return
    whole = requested.content == "full-resource" or not requested.topical
    if whole and attached is None:
        yield "payload", "not-supported", "Whole resources travel as attachments only"
    if whole and not (settings.smtp_secure or is_loopback_host(settings.smtp_host)):
        yield "payload", "security", "Whole resources do not leave by mail from this server"


def attachment_format(text: str) -> str | None:
    """The format of the attachment; None without one."""
    attach = payload.split(text)[1].get(_ATTACH)
    return payload.format_of(attach) if attach else None


def mail(draft: Draft) -> bytes:
    """The whole mail but for its sender and the Subscription's own headers, the same for every attempt."""
    message = EmailMessage(policy=policy.SMTP)
    message["To"] = _address(draft.endpoint)
    message["Date"] = format_datetime(draft.at)
    message["Subject"] = "Notification of a FHIR Subscription"
    message["Message-ID"] = f"<{draft.id}@carerelay>"
    message[NOTICE_ID_HEADER] = draft.id
    message["Auto-Submitted"] = "auto-generated"
    message.set_content(_text(draft))
    format_ = attachment_format(draft.payload) if draft.payload else None
    if format_ is not None and draft.resource is not None:
        message.add_attachment(
            payload.encode(draft.resource, format_),
            maintype="application",
            subtype=format_.partition("/")[2],
            filename=f"notification.{_ENDINGS[format_]}",
        )
        message.set_boundary(f"=={draft.id}==")
    return message.as_bytes()


def _text(draft: Draft) -> str:
    subscription = f"{draft.base_url}/Subscription/{draft.subscription}"
    lines = ["This is an automatic message of a FHIR server.", "", f"Subscription: {subscription}"]
    if draft.focus is None and draft.resource is not None:
        lines += _summary(draft.resource)
    else:
        lines.append("A resource that matches its criteria was created or changed.")
    lines += redisclosure.lines(draft.resource)
    return "\n".join(lines) + "\n"


def _summary(bundle: Resource) -> Iterator[str]:
    """The status of a notification Bundle as lines of text, without patient data."""
    parameters = bundle["entry"][0]["resource"]["parameter"]
    values = {p["name"]: next((v for k, v in p.items() if k != "name"), "") for p in parameters}
    numbers = [
        part["valueString"]
        for parameter in parameters
        if parameter["name"] == "notification-event"
        for part in parameter["part"]
        if part["name"] == "event-number"
    ]
    yield f"Notification: {values['type']}"
    yield f"Status: {values['status']}"
    if numbers:
        yield f"Event numbers: {', '.join(numbers)}"
    yield f"Events since its start: {values['events-since-subscription-start']}"


def _address(endpoint: str) -> str:
    return unquote(endpoint.removeprefix("mailto:"))


def _answered(code: int, text: bytes | str) -> AttemptOutcome:
    shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return AttemptOutcome(code, answer=shown[:ANSWER_LIMIT], forbidden=500 <= code < 600)


EMAIL = ChannelType(
    make=lambda around: Email(around.settings),
    check=check,
    address=lambda endpoint, _: ("SEND", endpoint),
    wrap=mail,
    calls_out=False,
)
