"""The checks of channels that call a URL: the endpoint, the headers and the payload type."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

from app.network.egress_policy import is_loopback_host
from app.settings import Settings
from app.subscriptions.channels import payload
from app.subscriptions.channels.protocol import ChannelRequest, Complaint

_HEADER = re.compile(r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]?([\x20-\x7e\t]*)$")
# Set by the connection or by the payload; a second value of one is how requests get smuggled.
_RESERVED_HEADERS = frozenset(
    {
        "host", "content-length", "content-type", "content-encoding", "transfer-encoding", "connection",
        "keep-alive", "upgrade", "te", "trailer", "expect", "proxy-authorization", "proxy-connection",
    }
)  # fmt: skip
_MAX_HEADERS, _MAX_HEADER_LENGTH = 20, 8192

_PROCESS_MESSAGE = "/$process-message"


def check(requested: ChannelRequest, settings: Settings) -> Iterator[Complaint]:
    """The checks that need no name server; app.network.egress_policy checks the endpoint's addresses."""
    yield from check_payload(requested)
    yield from check_endpoint(requested)
    yield from check_headers(requested.headers)


def check_payload(requested: ChannelRequest) -> Iterator[Complaint]:
    if requested.payload is not None and payload.format_of(requested.payload) is None:
        yield (
            "payload",
            "not-supported",
            f"The payload type is not supported; use {payload.SUPPORTED}",
        )


def check_endpoint(requested: ChannelRequest) -> Iterator[Complaint]:
    if not requested.endpoint:
        yield "endpoint", "required", "The channel needs an endpoint"
        return
    try:
        parts = urlsplit(requested.endpoint)
        host = parts.hostname or ""
    except ValueError:
        host, parts = "", urlsplit("")
    whole = requested.content == "full-resource" or (
        not requested.topical and requested.payload is not None
    )
    if parts.scheme not in ("http", "https") or not host:
        yield "endpoint", "value", "The endpoint must be an http or https URL"
    elif parts.fragment:
        yield "endpoint", "value", "An endpoint has no fragment"
    elif parts.scheme == "http" and whole and not is_loopback_host(host):
        yield "endpoint", "security", "Whole resources leave only over https"


def check_headers(headers: Sequence[object]) -> Iterator[Complaint]:
    if len(headers) > _MAX_HEADERS:
        yield "header", "too-long", f"At most {_MAX_HEADERS} headers are sent"
    for index, header in enumerate(headers):
        path = f"header[{index}]"
        parts = split_header(header) if isinstance(header, str) else None
        if parts is None:
            yield path, "value", "A header must have the form `Name: value`, in ASCII, on one line"
        elif parts[0].lower() in _RESERVED_HEADERS:
            yield path, "value", "This header is set by the server"
        elif len(str(header)) > _MAX_HEADER_LENGTH:
            yield path, "too-long", f"A header has at most {_MAX_HEADER_LENGTH} characters"


def split_header(text: str) -> tuple[str, str] | None:
    """Name and value of a `Name: value` line that is safe to send; None where it is not."""
    match = _HEADER.match(text)
    return None if match is None else (match[1], match[2].strip())


def extend(endpoint: str, suffix: str) -> str:
    """The endpoint as a FHIR base: the path grows, the query stays."""
    path, mark, parameters = endpoint.partition("?")
    return path.rstrip("/") + suffix + mark + parameters


def process_message(endpoint: str, carried: str | None) -> tuple[str, str]:
    """Method and URL of a message to an endpoint: the destination's FHIR base, or its $process-message itself."""
    if endpoint.partition("?")[0].rstrip("/").endswith(_PROCESS_MESSAGE):
        return "POST", endpoint
    return "POST", extend(endpoint, _PROCESS_MESSAGE)
