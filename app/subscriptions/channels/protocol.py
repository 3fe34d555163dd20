"""What every channel is given and gives back, and what a channel type says of itself.

A channel type is one file with one `ChannelType`: what a Subscription may ask of it, where a notice goes and in what
form, and how it leaves.
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

# How much of an answer is kept in the ledger.
ANSWER_LIMIT = 2048
# The header by which a receiver tells a repetition from a new notice.
NOTICE_ID_HEADER = "CareRelay-Notification-Id"

# An element below `channel`, an issue code, and what is wrong there.
Complaint = tuple[str, str, str]


class Notice(NamedTuple):
    """One message ready to leave. `id` stays the same over all attempts; an empty body is sent as such.

    `headers` are the Subscription's own, then the Content-Type where there is a payload.
    """

    id: str
    method: str
    url: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    timeout: float
    subscription: str = ""


class AttemptOutcome(NamedTuple):
    """What came of an attempt. `status` is None where nothing answered; `reason` then says why, in a word.

    `answer` is the beginning of the body; `retry_after` is in seconds. `forbidden`: trying again is of no use;
    `refused`: this notice will not be taken, others may be; `accepted`: taken, over a channel that has no status to
    say so.
    """

    status: int | None
    reason: str = ""
    answer: str = ""
    retry_after: float | None = None
    forbidden: bool = False
    accepted: bool = False
    refused: bool = False

    @property
    def verdict(self) -> Verdict:
        if self.accepted:
            return Verdict.DELIVERED
        if self.refused:
            return Verdict.REFUSED
        return Verdict.STOP if self.forbidden else judge(self.status)


class Channel(Protocol):
    """A way out. `send` never raises for what the far side does; it raises only for defects of our own."""

    async def send(self, notice: Notice) -> AttemptOutcome: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ChannelDependencies:
    """What a channel may need of the server. `owner` names this process."""

    settings: Settings
    egress: Egress
    mongo: Mongo
    owner: str


@dataclass(frozen=True, slots=True)
class ChannelRequest:
    """What a Subscription asks of its channel. `content` is None for a classic Subscription, and so is the `topic`."""

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
    """What is to be said, before a channel gives it its form.

    `resource` is the notification Bundle, or what a classic payload carries, or None where there is no payload;
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

    `check` yields what a Subscription asks in vain. `address` gives the method and the URL for an endpoint; its second
    argument is the resource that a classic notice carries (`Encounter/e1`), else None. `wrap` says what travels instead
    of a draft's resource, bytes as they are; None where the resource itself does. `calls_out`: the endpoint is a URL
    that the server itself calls. `proves`: a topic-based Subscription becomes active when the endpoint has taken a
    handshake; else at once. `is_message`: every event is a message by itself, with whole resources and nothing about
    the Subscription, so there are neither heartbeats nor several events in one, and what may not be told is withheld.
    """

    make: Callable[[ChannelDependencies], Channel]
    check: Callable[[ChannelRequest, Settings], Iterator[Complaint]]
    address: Callable[[str, str | None], tuple[str, str]]
    calls_out: bool
    wrap: Callable[[Draft], Resource | bytes | None] | None = None
    proves: bool = True
    is_message: bool = False
