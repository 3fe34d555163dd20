"""The interface of channels: their input, the outcome of an attempt, and the description of a channel type.

A channel type is one file with one `ChannelType`: the checks of a Subscription, the address and form of a notice, and
its sender.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, Protocol

from app.fhir.json import Resource
from app.network.egress_policy import Egress
from app.runtime.mongo import Mongo
from app.settings import Settings
from app.subscriptions.sending.retry import Verdict, judge

# How much of a response body is kept in the ledger, in bytes or characters.
ANSWER_LIMIT = 2048
# The header by which a receiver recognizes a repeated notice.
NOTICE_ID_HEADER = "CareRelay-Notification-Id"

# What clients are told of an attempt that failed: more would let them find out what there is behind an address. The
# ledger's attempts have the cause, for administrators.
UNREACHED = "The endpoint could not be reached"
REFUSED = "The endpoint answered with a refusal"

# An element below `channel`, an issue code, and the diagnostics.
Complaint = tuple[str, str, str]


class Notice(NamedTuple):
    """One message ready to be sent. `id` stays the same over all attempts; an empty body is sent as such.

    `headers` are the Subscription's own, then the Content-Type where there is a payload. `permitted_by` are the
    Consents (`Consent/c1`) without which its content of 42 CFR Part 2 could not be sent.
    """

    id: str
    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    timeout: float
    subscription: str = ""
    permitted_by: tuple[str, ...] = ()


class AttemptOutcome(NamedTuple):
    """The result of an attempt. `status` is None without a response; `reason` then is its cause in a few words.

    `answer` is the beginning of the body; `retry_after` is in seconds. `forbidden`: the endpoint may not be called, or
    takes no notices; `refused`: this notice will never be accepted, others may be; `accepted`: delivered, over a
    channel without a status; `unreachable`: no connection could be made.
    """

    status: int | None
    reason: str = ""
    answer: str = ""
    retry_after: float | None = None
    forbidden: bool = False
    accepted: bool = False
    refused: bool = False
    unreachable: bool = False

    @property
    def verdict(self) -> Verdict:
        if self.accepted:
            return Verdict.DELIVERED
        if self.refused:
            return Verdict.REFUSED
        return Verdict.REJECTED if self.forbidden else judge(self.status)

    @property
    def failure(self) -> str:
        """What clients are told of an attempt that was not delivered."""
        return UNREACHED if self.status is None else REFUSED


class Channel(Protocol):
    """A sender of notices. `send` never raises for failures of the far side, only for defects of our own."""

    async def send(self, notice: Notice) -> AttemptOutcome: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ChannelDependencies:
    """The parts of the server that a channel may need. `owner` names this process."""

    settings: Settings
    egress: Egress
    mongo: Mongo
    owner: str


@dataclass(frozen=True, slots=True)
class ChannelRequest:
    """The channel that a Subscription requests. `content` and `topic` are None for a classic Subscription."""

    endpoint: str | None
    payload: str | None
    content: str | None
    headers: Sequence[object]
    topic: str | None = None

    @property
    def topical(self) -> bool:
        return self.content is not None


@dataclass(frozen=True, slots=True)
class Draft:
    """The content of a notice, before a channel gives it its form.

    `resource` is the notification Bundle, or the resource of a classic payload, or None where there is no payload;
    `focus` is the classic notice's resource (`Encounter/e1`), None for a topic-based one; `payload` is the
    Subscription's.
    """

    id: str
    subscription: str
    endpoint: str
    payload: str | None
    base_url: str
    at: datetime
    resource: Resource | None
    focus: str | None


@dataclass(frozen=True, slots=True)
class ChannelType:
    """One kind of channel.

    `check` yields the complaints about a request. `address` gives the method and the URL for an endpoint; its second
    argument is the resource that a classic notice carries (`Encounter/e1`), else None. `wrap` makes the body of a
    draft, bytes as they are; None where the draft's resource itself is the body. `calls_out`: the server itself calls
    the endpoint, a URL. `proves`: a topic-based Subscription becomes active when the endpoint has accepted a handshake;
    else at once. `is_message`: every event is a message by itself, with full resources and nothing about the
    Subscription: there are neither heartbeats nor several events in one, and one that may not be sent in full is
    withheld.
    """

    make: Callable[[ChannelDependencies], Channel]
    check: Callable[[ChannelRequest, Settings], Iterator[Complaint]]
    address: Callable[[str, str | None], tuple[str, str]]
    calls_out: bool
    wrap: Callable[[Draft], Resource | bytes | None] | None = None
    proves: bool = True
    is_message: bool = False
