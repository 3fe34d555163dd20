"""The conditional headers and preferences of a request, over HTTP or in a Bundle's entry.

https://hl7.org/fhir/R4/http.html#ops
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Literal

from app.errors import BadRequest, PreconditionFailed
from app.records.versions import ResourceVersion

# Some clients send the bare versionId.
_TAG = r'(?:W/)?"[^"]*"|[0-9]+'
_TAGS = re.compile(rf"(?:{_TAG})(?:[ \t]*,[ \t]*(?:{_TAG}))*")
_EACH = re.compile(r'(?:W/)?"([^"]*)"|([0-9]+)')


@dataclass(frozen=True, slots=True)
class ETags:
    """The versions that an If-Match or If-None-Match lists, as bare ids; `any` for its `*`."""

    versions: frozenset[str] = frozenset()
    any: bool = False

    def has(self, stored: ResourceVersion | None) -> bool:
        """Whether the current version is one of them; what is not there or deleted is none of `*`."""
        if stored is None or (self.any and stored.deleted):
            return False
        return self.any or str(stored.version) in self.versions


ANY = ETags(any=True)


@dataclass(frozen=True, slots=True)
class Preconditions:
    """The conditional headers of a request."""

    if_match: ETags | None = None
    if_none_match: ETags | None = None
    if_modified_since: datetime | None = None
    if_unmodified_since: datetime | None = None
    if_none_exist: str | None = None

    @property
    def named(self) -> frozenset[str]:
        """The headers that are there."""
        return frozenset(
            header for header, name in _FIELDS.items() if getattr(self, name) is not None
        )

    def check(self, current: ResourceVersion | None) -> None:
        """Judge If-Match, If-Unmodified-Since and If-None-Match before a write. Raises PreconditionFailed.

        https://hl7.org/fhir/R4/http.html#concurrency and https://www.rfc-editor.org/rfc/rfc9110#section-13.2.2
        """
        self.check_match(current)
        if self.if_none_match is not None and self.if_none_match.has(current):
            raise PreconditionFailed("If-None-Match forbids replacing the resource's version")

    def check_match(self, current: ResourceVersion | None) -> None:
        """Judge If-Match, and without it If-Unmodified-Since. Raises PreconditionFailed."""
        if self.if_match is not None:
            if not self.if_match.has(current):
                raise PreconditionFailed(
                    "If-Match: * needs an existing resource"
                    if self.if_match.any
                    else "The resource has another version than If-Match names"
                )
            return
        since = self.if_unmodified_since
        if since is not None and current is not None and not _is_unmodified(current, since):
            raise PreconditionFailed("The resource was changed after If-Unmodified-Since")

    def is_unchanged(self, current: ResourceVersion) -> bool:
        """Whether a read is answered 304: the client has this version, https://hl7.org/fhir/R4/http.html#cread."""
        if self.if_none_match is not None:
            return self.if_none_match.has(current)
        since = self.if_modified_since
        return since is not None and _is_unmodified(current, since)


_FIELDS = {
    "If-Match": "if_match",
    "If-None-Match": "if_none_match",
    "If-Modified-Since": "if_modified_since",
    "If-Unmodified-Since": "if_unmodified_since",
    "If-None-Exist": "if_none_exist",
}
NO_PRECONDITIONS = Preconditions()
# A write that may only create.
ONLY_NEW = Preconditions(if_none_match=ANY)


def only_of(version: int) -> Preconditions:
    """A write of this version, and no other."""
    return Preconditions(if_match=ETags(frozenset({str(version)})))


def _is_unmodified(stored: ResourceVersion, since: datetime) -> bool:
    """By the second, as HTTP dates have it, unless the moment is told more exactly."""
    at = stored.at if since.microsecond else stored.at.replace(microsecond=0)
    return at <= since


@dataclass(frozen=True, slots=True)
class Prefer:
    """The Prefer header, https://hl7.org/fhir/R4/http.html#ops.

    `understood` are the preferences of it that are, as the client wrote them.
    """

    returns: Literal["minimal", "representation", "OperationOutcome"] = "representation"
    handling: Literal["strict", "lenient"] | None = None
    respond_async: bool = False
    understood: tuple[str, ...] = ()


def read_prefer(header: str | None) -> Prefer:
    """The preferences of a Prefer header, https://www.rfc-editor.org/rfc/rfc7240#section-2

    As it requires, unknown ones are ignored, and the first of two counts.
    """
    if not header:
        return Prefer()
    preferences: dict[str, str] = {}
    for part in re.split(r"[,;]", header):
        name, _, value = part.strip().partition("=")
        preferences.setdefault(name.strip().lower(), value.strip().strip('"'))
    found = Prefer(respond_async="respond-async" in preferences)
    match preferences.get("return"):
        case "minimal" | "representation" | "OperationOutcome" as returns:
            found = replace(found, returns=returns, understood=(f"return={returns}",))
    match preferences.get("handling"):
        case "strict" | "lenient" as handling:
            named = (*found.understood, f"handling={handling}")
            found = replace(found, handling=handling, understood=named)
    return found


def read_preconditions(headers: Mapping[str, str]) -> Preconditions:
    """The conditional headers. Raises BadRequest for one that cannot be read: guessing would lose an update."""
    if not any(name.startswith("if-") for name in headers):
        return NO_PRECONDITIONS
    return Preconditions(
        _etags(headers.get("if-match"), "If-Match"),
        _etags(headers.get("if-none-match"), "If-None-Match"),
        _date(headers.get("if-modified-since"), "If-Modified-Since"),
        _date(headers.get("if-unmodified-since"), "If-Unmodified-Since"),
        headers.get("if-none-exist"),
    )


def _date(text: str | None, header: str) -> datetime | None:
    if not text:
        return None
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        raise BadRequest(f"{header} is not an HTTP date") from None
    # HTTP dates are in GMT, whether they say so or not
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _etags(value: str | None, header: str) -> ETags | None:
    if value is None:
        return None
    text = value.strip()
    if text == "*":
        return ANY
    if not _TAGS.fullmatch(text):
        raise BadRequest(f'{header} must look like W/"1", or be a list of these, or *')
    return ETags(frozenset(quoted or bare for quoted, bare in _EACH.findall(text)))
