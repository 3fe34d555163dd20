"""What one Subscription asks for, read out of its resource: the only reader, for the checks and for the delivery alike.

Classic: https://hl7.org/fhir/R4/subscription.html
Topic-based: http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/backport-subscription (R4)
Whatever is not understood is refused: a dropped filter or extension would widen what is disclosed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from urllib.parse import urlsplit

from app.errors import FhirError, Issue, Unprocessable
from app.fhir_json import Resource
from app.security.egress import is_loopback_host
from app.settings import Settings
from app.subscriptions import criteria as criteria_
from app.subscriptions.channels import CHANNELS
from app.subscriptions.criteria import Criteria
from app.subscriptions.topics import Catalogue, Topic

BACKPORT = "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
FILTER_CRITERIA = BACKPORT + "backport-filter-criteria"
PAYLOAD_CONTENT = BACKPORT + "backport-payload-content"
HEARTBEAT_PERIOD = BACKPORT + "backport-heartbeat-period"
TIMEOUT = BACKPORT + "backport-timeout"
MAX_COUNT = BACKPORT + "backport-max-count"

Content = Literal["empty", "id-only", "full-resource"]
Status = Literal["requested", "active", "error", "off"]

# What a client may ask for, in seconds or resources; a lease must outlast the longest attempt.
_RANGES = {HEARTBEAT_PERIOD: (5, 7 * 24 * 3600), TIMEOUT: (1, 120), MAX_COUNT: (1, 1000)}
_VALUE_KEY = {
    HEARTBEAT_PERIOD: "valueUnsignedInt",
    TIMEOUT: "valueUnsignedInt",
    MAX_COUNT: "valuePositiveInt",
}
_CONTENTS = ("empty", "id-only", "full-resource")
_PAYLOAD = re.compile(
    r"^application/(fhir\+)?json\s*(;\s*fhirVersion=4\.0\s*)?(;\s*charset=utf-8\s*)?$",
    re.IGNORECASE,
)
_HEADER = re.compile(r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]?([\x20-\x7e\t]*)$")
# Set by the connection or by the payload; a second opinion on them is how requests get smuggled.
_RESERVED_HEADERS = frozenset(
    {
        "host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection",
        "keep-alive", "upgrade", "te", "trailer", "expect", "proxy-authorization", "proxy-connection",
    }
)  # fmt: skip
_CANONICAL = ("http://", "https://", "urn:")
_MAX_HEADERS, _MAX_HEADER_LENGTH = 20, 8192


@dataclass(frozen=True, slots=True)
class ChannelTerms:
    """How notices travel. `content` is None for a classic Subscription; times are seconds."""

    type: str
    endpoint: str
    payload: str | None
    content: Content | None
    heartbeat: int | None
    timeout: float


@dataclass(frozen=True, slots=True)
class Registration:
    """One Subscription as the server acts on it."""

    id: str
    version: int
    status: Status
    end: datetime | None
    topic: Topic | None
    criteria: Criteria
    channel: ChannelTerms


class _Issues(list[Issue]):
    """Collects what is wrong, so that a client hears all of it at once."""

    def refuse(self, expression: str, diagnostics: str, code: str = "not-supported") -> None:
        self.append(Issue(code, diagnostics, (f"Subscription.{expression}",)))

    def attempt(self, expression: str, read: Callable[[], Any]) -> Any:
        """The result of `read`, or None with its complaint noted at the element."""
        try:
            return read()
        except FhirError as error:
            for issue in error.issues:
                self.refuse(expression, issue.diagnostics, issue.code)
        return None


def read(resource: Resource, catalogue: Catalogue, settings: Settings) -> Registration:
    """Everything a Subscription says. Raises Unprocessable with one issue for each thing that is not supported."""
    issues = _Issues()
    for path in _modifier_extensions(resource, ""):
        issues.refuse(path, "Unknown modifier extension")
    text = str(resource.get("criteria", ""))
    topic = catalogue.find(text)
    topical = topic is not None or text.startswith(_CANONICAL)
    criteria = _read_criteria(resource, topic, settings, issues)
    channel = _read_channel(resource.get("channel", {}), settings, issues, topical=topical)
    end = issues.attempt("end", lambda: _read_instant(resource.get("end")))
    if issues:
        raise Unprocessable(issues=issues)
    return Registration(
        id=resource.get("id", ""),
        version=int(resource.get("meta", {}).get("versionId", "0")),
        status=resource.get("status", "requested"),
        end=end,
        topic=topic,
        criteria=criteria,
        channel=channel,
    )


def split_header(text: str) -> tuple[str, str] | None:
    """Name and value of a `Name: value` line that is safe to send; None where it is not."""
    match = _HEADER.match(text)
    return None if match is None else (match[1], match[2].strip())


def _read_criteria(
    resource: Resource, topic: Topic | None, settings: Settings, issues: _Issues
) -> Any:
    filters: list[str] = []
    text = str(resource.get("criteria", ""))
    extensions = resource.get("_criteria", {}).get("extension", [])
    for index, extension in enumerate(extensions):
        path = f"criteria.extension[{index}]"
        if extension.get("url") != FILTER_CRITERIA:
            issues.refuse(path, "Unknown extension: a filter under a wrong name would be no filter")
        elif topic is None and text.startswith(_CANONICAL):
            break  # the unknown topic is what is wrong
        elif topic is None:
            issues.refuse(path, "Only a topic-based Subscription takes filter criteria")
        elif not isinstance(extension.get("valueString"), str):
            issues.refuse(path, "Filter criteria need a valueString", "required")
        else:
            filters.append(extension["valueString"])
            issues.attempt(path, lambda: criteria_.topic_based(topic, filters[-1:], settings))
    if issues:
        return None
    if topic is not None:
        return issues.attempt("criteria", lambda: criteria_.topic_based(topic, filters, settings))
    if text.startswith(_CANONICAL):
        issues.refuse("criteria", "Unknown topic")
        return None
    return issues.attempt("criteria", lambda: criteria_.classic(text, settings))


def _read_channel(
    channel: dict[str, Any], settings: Settings, issues: _Issues, *, topical: bool
) -> ChannelTerms:
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
    for index, extension in enumerate(channel.get("_type", {}).get("extension", [])):
        reason = (
            "No additional channel type is supported"
            if extension.get("url")
            else "Unknown extension"
        )
        issues.refuse(f"channel.type.extension[{index}]", reason)
    type_ = channel.get("type", "")
    if type_ not in CHANNELS:
        known_types = ", ".join(sorted(CHANNELS))
        issues.refuse(
            "channel.type", f"The channel type is not supported; supported: {known_types}"
        )
    payload = channel.get("payload")
    content = _read_content(channel, issues, topical=topical)
    _check_payload(payload, issues, topical=topical)
    _check_endpoint(channel.get("endpoint"), content or payload, issues)
    _check_headers(channel.get("header", []), issues)
    return ChannelTerms(
        type=type_,
        endpoint=channel.get("endpoint", ""),
        payload=payload,
        content=content,
        heartbeat=numbers.get(HEARTBEAT_PERIOD),
        timeout=float(numbers.get(TIMEOUT, 0)) or settings.delivery_timeout,
    )


def _in_range(extension: dict[str, Any], path: str, issues: _Issues) -> int:
    url = extension["url"]
    value = extension.get(_VALUE_KEY[url])
    if not isinstance(value, int):
        issues.refuse(path, f"The extension needs a {_VALUE_KEY[url]}", "required")
        return 0
    least, greatest = _RANGES[url]
    if not least <= value <= greatest:
        issues.refuse(path, f"The value must lie between {least} and {greatest}", "value")
    return value


def _read_content(channel: dict[str, Any], issues: _Issues, *, topical: bool) -> Content | None:
    found: list[Content] = []
    for index, extension in enumerate(channel.get("_payload", {}).get("extension", [])):
        path = f"channel.payload.extension[{index}]"
        value = extension.get("valueCode")
        if extension.get("url") != PAYLOAD_CONTENT:
            issues.refuse(path, "Unknown extension")
        elif not topical:
            issues.refuse(path, "Only a topic-based Subscription takes a content level")
        elif value not in _CONTENTS:
            issues.refuse(path, f"The content level must be one of {', '.join(_CONTENTS)}")
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


def _check_payload(payload: str | None, issues: _Issues, *, topical: bool) -> None:
    if payload is None:
        if topical:
            issues.refuse(
                "channel.payload", "A topic-based Subscription needs a payload type", "required"
            )
    elif not _PAYLOAD.match(payload):
        issues.refuse(
            "channel.payload", "The payload type is not supported; use application/fhir+json"
        )


def _check_endpoint(endpoint: str | None, content: str | None, issues: _Issues) -> None:
    """What needs no name server; app.security.egress judges where the endpoint leads to."""
    if not endpoint:
        issues.refuse("channel.endpoint", "The channel needs an endpoint", "required")
        return
    try:
        parts = urlsplit(endpoint)
        host = parts.hostname or ""
    except ValueError:
        host, parts = "", urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        issues.refuse("channel.endpoint", "The endpoint must be an http or https URL", "value")
    elif parts.fragment:
        issues.refuse("channel.endpoint", "An endpoint has no fragment", "value")
    elif (
        parts.scheme == "http"
        and content not in (None, "empty", "id-only")
        and not is_loopback_host(host)
    ):
        issues.refuse("channel.endpoint", "Whole resources leave only over https", "security")


def _check_headers(headers: Sequence[str], issues: _Issues) -> None:
    if len(headers) > _MAX_HEADERS:
        issues.refuse("channel.header", f"At most {_MAX_HEADERS} headers are sent", "too-long")
    for index, header in enumerate(headers):
        path = f"channel.header[{index}]"
        parts = split_header(header) if isinstance(header, str) else None
        if parts is None:
            issues.refuse(
                path, "A header must have the form `Name: value`, in ASCII, on one line", "value"
            )
        elif parts[0].lower() in _RESERVED_HEADERS:
            issues.refuse(path, "This header is set by the server", "value")
        elif len(header) > _MAX_HEADER_LENGTH:
            issues.refuse(path, f"A header has at most {_MAX_HEADER_LENGTH} characters", "too-long")


def _read_instant(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise Unprocessable("Not an instant", code="value") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _modifier_extensions(value: Any, path: str) -> Iterator[str]:
    """The location of every modifierExtension, contained resources included."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _modifier_extensions(item, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            child = f"{path}.{key}" if path else key
            if key == "modifierExtension":
                yield child
            yield from _modifier_extensions(item, child)
