"""The channel terms of a Subscription: extensions, payload, content level, endpoint and headers.

https://hl7.org/fhir/R4/subscription.html and the extensions of the Subscriptions R5 Backport guide on `channel`. Each
channel type checks what is its own (`channels/`); the terms that all have in common are read here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from app.errors import FhirError, Issue
from app.settings import Settings
from app.subscriptions.channels import ADDITIONAL, CHANNELS, ChannelRequest

BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
PAYLOAD_CONTENT = BACKPORT + "backport-payload-content"
HEARTBEAT_PERIOD = BACKPORT + "backport-heartbeat-period"
TIMEOUT = BACKPORT + "backport-timeout"
MAX_COUNT = BACKPORT + "backport-max-count"
CHANNEL_TYPE = BACKPORT + "backport-channel-type"

Content = Literal["empty", "id-only", "full-resource"]
# From the least to the most content.
CONTENTS: tuple[Content, ...] = ("empty", "id-only", "full-resource")

# The values that a client may request, in seconds or events; a lease must outlast the longest attempt.
_RANGES = {HEARTBEAT_PERIOD: (5, 7 * 24 * 3600), TIMEOUT: (1, 120), MAX_COUNT: (1, 1000)}
_VALUE_KEY = {
    HEARTBEAT_PERIOD: "valueUnsignedInt",
    TIMEOUT: "valueUnsignedInt",
    MAX_COUNT: "valuePositiveInt",
}
# R5's code system of channel types: an additional type from it may only repeat the channel's type.
_CHANNEL_TYPES = "http://terminology.hl7.org/CodeSystem/subscription-channel-type"


@dataclass(frozen=True, slots=True)
class ChannelTerms:
    """The channel of a Subscription. `content` is None for a classic one; times are seconds.

    `max_count` is how many events one notice may have.
    """

    type: str
    endpoint: str
    payload: str | None
    content: Content | None
    heartbeat: int | None
    timeout: float
    max_count: int = 1

    @property
    def proves(self) -> bool:
        """Whether the endpoint has to answer a handshake before anything else is sent."""
        return self.content is not None and CHANNELS[self.type].proves

    @property
    def is_message(self) -> bool:
        """Whether every event is a message of full resources, which cannot be reduced."""
        return CHANNELS[self.type].is_message


class Issues(list[Issue]):
    """Collects the issues of a Subscription, so that a client gets all of them at once."""

    def refuse(self, expression: str, diagnostics: str, code: str = "not-supported") -> None:
        self.append(Issue(code, diagnostics, (f"Subscription.{expression}",)))

    def attempt(self, expression: str, read: Callable[[], Any]) -> Any:
        """The result of `read`, or None with its issues noted at the element."""
        try:
            return read()
        except FhirError as error:
            for issue in error.issues:
                self.refuse(expression, issue.diagnostics, issue.code)
        return None


def read(
    channel: dict[str, Any], settings: Settings, issues: Issues, *, topic: str | None
) -> ChannelTerms:
    """The terms of a Subscription's `channel`; what is wrong goes into `issues`. `topic` is None for a classic one."""
    topical = topic is not None
    numbers = _read_numbers(channel, issues, topical=topical)
    type_ = _read_type(channel, issues)
    payload = channel.get("payload")
    content = _read_content(channel, issues, topical=topical)
    if topical and payload is None:
        reason = "A topic-based Subscription needs a payload type"
        issues.refuse("channel.payload", reason, "required")
    if type_ in CHANNELS:
        # Where the content level itself is wrong, the least is assumed: one complaint is enough.
        level = content or ("empty" if topical else None)
        requested = ChannelRequest(
            channel.get("endpoint"), payload, level, channel.get("header", []), topic
        )
        for element, code, diagnostics in CHANNELS[type_].check(requested, settings):
            issues.refuse(f"channel.{element}", diagnostics, code)
        if CHANNELS[type_].is_message:
            _check_message(numbers, issues)
    return ChannelTerms(
        type=type_,
        endpoint=channel.get("endpoint", ""),
        payload=payload,
        content=content,
        heartbeat=numbers.get(HEARTBEAT_PERIOD),
        timeout=float(numbers.get(TIMEOUT, 0)) or settings.delivery_timeout,
        max_count=numbers.get(MAX_COUNT, 1),
    )


def _read_numbers(channel: dict[str, Any], issues: Issues, *, topical: bool) -> dict[str, int]:
    known = _RANGES if topical else {}
    numbers: dict[str, int] = {}
    for index, extension in enumerate(channel.get("extension", [])):
        path = f"channel.extension[{index}]"
        url = extension.get("url")
        if url not in known:
            issues.refuse(path, "Unknown extension")
        elif url in numbers:
            issues.refuse(path, "The extension may occur once", "structure")
        else:
            numbers[url] = _in_range(extension, path, issues)
    return numbers


def _in_range(extension: dict[str, Any], path: str, issues: Issues) -> int:
    url = extension["url"]
    value = extension.get(_VALUE_KEY[url])
    if not isinstance(value, int):
        issues.refuse(path, f"The extension needs a {_VALUE_KEY[url]}", "required")
        return 0
    least, greatest = _RANGES[url]
    if not least <= value <= greatest:
        issues.refuse(path, f"The value must lie between {least} and {greatest}", "value")
    return value


def _read_type(channel: dict[str, Any], issues: Issues) -> str:
    """The key of the channel type in CHANNELS: an additional one takes the place of the code that it extends."""
    type_: str = channel.get("type", "")
    found = type_
    standard = CHANNELS.keys() - {key for _, key in ADDITIONAL.values()}
    extensions = channel.get("_type", {}).get("extension", [])
    for index, extension in enumerate(extensions):
        path = f"channel.type.extension[{index}]"
        coding = extension.get("valueCoding", {})
        named = (coding.get("system"), coding.get("code"))
        if extension.get("url") != CHANNEL_TYPE:
            issues.refuse(path, "Unknown extension")
        elif index:
            issues.refuse(path, "The extension may occur once", "structure")
        elif named in ADDITIONAL:
            base, found = ADDITIONAL[named]
            if type_ != base:
                issues.refuse(path, f"This additional channel type goes with `{base}`", "value")
        elif named != (_CHANNEL_TYPES, type_):
            known = ", ".join("|".join(each) for each in ADDITIONAL)
            issues.refuse(path, f"The additional channel type is not supported; supported: {known}")
    if type_ not in standard:
        known = ", ".join(sorted(standard))
        issues.refuse("channel.type", f"The channel type is not supported; supported: {known}")
    return found


def _check_message(numbers: dict[str, int], issues: Issues) -> None:
    """Refuse heartbeats and several events in one notice, which a message cannot have."""
    for url, least in ((HEARTBEAT_PERIOD, 0), (MAX_COUNT, 1)):
        if numbers.get(url, least) > least:
            name = url.removeprefix(BACKPORT)
            issues.refuse("channel.extension", f"This channel type takes no {name}")


def _read_content(channel: dict[str, Any], issues: Issues, *, topical: bool) -> Content | None:
    found: list[Content] = []
    for index, extension in enumerate(channel.get("_payload", {}).get("extension", [])):
        path = f"channel.payload.extension[{index}]"
        value = extension.get("valueCode")
        if extension.get("url") != PAYLOAD_CONTENT:
            issues.refuse(path, "Unknown extension")
        elif not topical:
            issues.refuse(path, "Only a topic-based Subscription takes a content level")
        elif value not in CONTENTS:
            issues.refuse(path, f"The content level must be one of {', '.join(CONTENTS)}")
        elif found:
            issues.refuse(path, "The content level may be given once", "structure")
        else:
            found.append(value)
            continue
        return None
    if topical and not found:
        issues.refuse(
            "channel.payload", "A topic-based Subscription needs a content level", "required"
        )
    return found[0] if found else None
