"""The conditional headers and preferences of a request, over HTTP or in a Bundle's entry.

https://hl7.org/fhir/R4/http.html#ops
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal, cast

from app.errors import BadRequest

# Some clients send the bare versionId.
_ETAG = re.compile(r'^(?:W/)?"([^"]*)"$|^([0-9]+)$')


@dataclass(frozen=True, slots=True)
class Preconditions:
    """The conditional headers of a request; versions are bare numbers out of `W/"3"`."""

    if_match: str | None = None
    if_none_match: str | None = None
    if_modified_since: datetime | None = None
    if_none_exist: str | None = None


NO_PRECONDITIONS = Preconditions()


@dataclass(frozen=True, slots=True)
class Prefer:
    """The Prefer header, https://hl7.org/fhir/R4/http.html#ops."""

    returns: Literal["minimal", "representation", "OperationOutcome"] = "representation"
    handling: Literal["strict", "lenient"] | None = None
    respond_async: bool = False


def read_prefer(header: str | None) -> Prefer:
    """The preferences of a Prefer header; unknown ones are ignored, as RFC 7240 requires."""
    if not header:
        return Prefer()
    preferences = {}
    for part in re.split(r"[,;]", header):
        name, _, value = part.strip().partition("=")
        preferences[name.strip().lower()] = value.strip().strip('"')
    returns = preferences.get("return", "representation")
    if returns not in ("minimal", "representation", "OperationOutcome"):
        returns = "representation"
    handling = preferences.get("handling")
    return Prefer(
        cast("Literal['minimal', 'representation', 'OperationOutcome']", returns),
        cast("Literal['strict', 'lenient']", handling)
        if handling in ("strict", "lenient")
        else None,
        "respond-async" in preferences,
    )


def read_preconditions(headers: Mapping[str, str]) -> Preconditions:
    """The conditional headers. Raises BadRequest for one that cannot be read: guessing would lose an update."""
    if not any(name.startswith("if-") for name in headers):
        return NO_PRECONDITIONS
    since = headers.get("if-modified-since")
    moment = None
    if since:
        try:
            moment = parsedate_to_datetime(since)
        except ValueError:
            raise BadRequest("If-Modified-Since is not an HTTP date") from None
        if moment.tzinfo is None:  # HTTP dates are in GMT, whether they say so or not
            moment = moment.replace(tzinfo=UTC)
    return Preconditions(
        _etag(headers.get("if-match"), "If-Match"),
        _etag(headers.get("if-none-match"), "If-None-Match"),
        moment,
        headers.get("if-none-exist"),
    )


def _etag(value: str | None, header: str) -> str | None:
    if value is None or value.strip() == "*":
        return value and "*"
    match = _ETAG.match(value.strip())
    if match is None:
        raise BadRequest(f'{header} must look like W/"1"')
    return match[1] if match[1] is not None else match[2]
